/** The events of one object. */
import { EVENTS, pathOf } from "../api/kinds";
import { useList } from "../api/reflector";
import { eventRow, newestFirst } from "../core/events";
import { count } from "../core/quantity";
import { Age, Missing, Panel, State } from "./parts";
import { Rows } from "./table";

export function EventsOf({ kind, namespace, name, uid }: { kind: string; namespace: string; name: string; uid?: string }) {
  const selector = uid ? `involvedObject.uid=${uid}` : `involvedObject.kind=${kind},involvedObject.name=${name}`;
  const view = useList(pathOf(EVENTS, namespace), `fieldSelector=${encodeURIComponent(selector)}`, eventRow);
  const rows = newestFirst(view.rows);
  return (
    <Panel title="Events">
      <Missing view={view} what="events" empty="No events of the last hour." />
      {rows.length > 0 && <Rows label={`Events of ${name}`} rows={rows} keyOf={(row) => row.uid} max={40} columns={[
        { name: "Reason", width: "", cell: (row) => <State tone={row.type === "Warning" ? "bad" : "idle"}>{row.reason}</State> },
        { name: "Message", width: "", cell: (row) => <span class="wrap">{row.message}</span> },
        { name: "Times", width: "", number: true, cell: (row) => count(row.count) },
        { name: "From", width: "", cell: (row) => row.source },
        { name: "Last", width: "", number: true, cell: (row) => <Age at={row.last} /> },
      ]} />}
    </Panel>
  );
}

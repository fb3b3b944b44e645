/** The events of the cluster, newest first. */
import { EVENTS, pathOf } from "../api/kinds";
import { useList } from "../api/reflector";
import { eventRow, newestFirst, type EventRow } from "../core/events";
import { count } from "../core/quantity";
import { matcher, type Route } from "../core/route";
import { workloadKind } from "../api/kinds";
import { link, useTitle } from "../ui/hooks";
import { Age, Missing, State } from "../ui/parts";
import { Grid } from "../ui/table";

/** The page of the object that an event is about. */
function pageOf(row: EventRow): string | undefined {
  const namespace = row.about.includes("/") ? row.about.split("/")[0]! : "";
  if (row.kind === "Pod") return link("pods", namespace, row.name);
  if (row.kind === "Node") return link("nodes", row.name);
  if (row.kind === "Service") return link("services", namespace, row.name);
  return workloadKind(row.kind) ? link("workloads", row.kind, namespace, row.name) : undefined;
}

export function EventsPage({ route }: { route: Route }) {
  useTitle("Events");
  const view = useList(pathOf(EVENTS, route.namespace), "", eventRow);
  const matches = matcher(route.filter);
  const rows = newestFirst(view.rows.filter((row) => matches(row.search)));
  return (
    <div class="page fill">
      <h1>Events <span class="counted">{rows.length === view.rows.length ? count(rows.length) : `${count(rows.length)} of ${count(view.rows.length)}`}, kept for an hour</span></h1>
      <Missing view={view} what={route.namespace ? `events in ${route.namespace}` : "events in all namespaces"} />
      {view.rows.length > 0 && <Grid label="Events" rows={rows} keyOf={(row) => row.uid} href={(row) => pageOf(row) ?? location.hash} columns={[
        { name: "Reason", width: "minmax(9rem, 0.8fr)", cell: (row) => <State tone={row.type === "Warning" ? "bad" : "idle"}>{row.reason}</State>, sort: (row) => row.reason },
        { name: "Object", width: "minmax(13rem, 1.4fr)", cell: (row) => <>{row.kind} {row.about}</>, sort: (row) => `${row.kind} ${row.about}` },
        { name: "Message", width: "minmax(20rem, 3fr)", cell: (row) => <span title={row.message}>{row.message}</span> },
        { name: "Times", width: "4.5rem", number: true, cell: (row) => count(row.count), sort: (row) => row.count },
        { name: "Last", width: "5rem", number: true, cell: (row) => <Age at={row.last} />, sort: (row) => -Date.parse(row.last) || 0 },
      ]} />}
    </div>
  );
}

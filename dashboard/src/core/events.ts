/** Events of the cluster as rows. */
import { keyOf, type Obj } from "./kube";

export interface EventRow {
  uid: string;
  namespace: string;
  type: string;
  reason: string;
  message: string;
  kind: string;
  name: string;
  about: string;
  count: number;
  /** RFC 3339, of the last occurrence. */
  last: string;
  source: string;
  search: string;
}

export function eventRow(event: Obj): EventRow {
  const about = event.involvedObject ?? {};
  const row = {
    uid: event.metadata.uid, namespace: event.metadata.namespace ?? "", type: event.type ?? "", reason: event.reason ?? "", message: event.message ?? "",
    kind: about.kind ?? "", name: about.name ?? "", about: keyOf(about.namespace, about.name ?? ""), count: event.series?.count ?? event.count ?? 1,
    last: event.series?.lastObservedTime ?? event.lastTimestamp ?? event.eventTime ?? event.metadata.creationTimestamp ?? "",
    source: event.source?.component ?? event.reportingComponent ?? "",
  };
  return { ...row, search: `${row.type} ${row.reason} ${row.kind} ${row.about} ${row.message}`.toLowerCase() };
}

export const newestFirst = (rows: EventRow[]): EventRow[] => [...rows].sort((a, b) => (a.last < b.last ? 1 : a.last > b.last ? -1 : 0));

/** Columns that several lists share. */
import type { Usage, Traffic } from "../core/metrics";
import { explainStatus } from "../core/reasons";
import type { PodRow } from "../core/pod";
import { bytes, cpu, duration, rate } from "../core/quantity";
import { Age, Spark, State } from "./parts";
import type { Column } from "./table";

export interface Measured {
  usage?: Usage;
  traffic?: Traffic;
  /** Requests a second of the last minutes. */
  spark?: number[];
}

/** The columns of metrics, from what `of` finds for a row. Undefined sorts below 0. */
export function metricColumns<Row>(of: (row: Row) => Measured): Column<Row>[] {
  const number = (name: string, width: string, title: string, value: (found: Measured) => number | undefined, shown: (value: number | undefined) => string): Column<Row> => ({
    name, width, title, number: true, cell: (row) => shown(value(of(row))), sort: (row) => value(of(row)) ?? -1,
  });
  const errors = (row: Row) => {
    const value = of(row).traffic?.errors;
    return value ? <span class="bad-text">{rate(value)}</span> : rate(value);
  };
  return [
    {
      name: "Req/s", width: "minmax(9rem, 0.6fr)", title: "HTTP requests a second", number: true, sort: (row) => of(row).traffic?.requests ?? -1,
      cell: (row) => <>{of(row).spark && <Spark values={of(row).spark!} />}<span class="figures">{rate(of(row).traffic?.requests)}</span></>,
    },
    { ...number("Err/s", "4.5rem", "Responses with a status of 500 and above, a second", (m) => m.traffic?.errors, rate), cell: errors },
    number("p50", "5rem", "Median latency. Of several pods: their medians, weighted by requests", (m) => m.traffic?.p50, duration),
    number("p99", "5rem", "99th percentile of the latency. Of several pods: the slowest pod's", (m) => m.traffic?.p99, duration),
    number("CPU", "4.5rem", "CPU in cores", (m) => m.usage?.cpu, cpu),
    number("Memory", "5.5rem", "Memory in use", (m) => m.usage?.memory, bytes),
  ];
}

export const podColumns = (withNamespace: boolean, withNode = true): Column<PodRow>[] => [
  { name: "Name", width: "minmax(13rem, 2fr)", cell: (row) => row.name, sort: (row) => `${row.name} ${row.namespace}` },
  ...(withNamespace ? [{ name: "Namespace", width: "minmax(6rem, 0.7fr)", cell: (row: PodRow) => row.namespace, sort: (row: PodRow) => `${row.namespace} ${row.name}` }] : []),
  {
    name: "Status", width: "minmax(9rem, 1fr)", sort: (row) => row.status,
    cell: (row) => <State tone={row.tone} title={[explainStatus(row.status), row.message].filter(Boolean).join(" ")}>{row.status}</State>,
  },
  { name: "Ready", width: "4rem", number: true, cell: (row) => `${row.ready}/${row.containers}`, sort: (row) => row.ready / (row.containers || 1) },
  { name: "Restarts", width: "5rem", number: true, cell: (row) => row.restarts, sort: (row) => row.restarts },
  ...(withNode ? [{ name: "Node", width: "minmax(6rem, 0.7fr)", cell: (row: PodRow) => row.node || "–", sort: (row: PodRow) => row.node }] : []),
];

export const ageColumn = <Row extends { created: string }>(): Column<Row> => ({ name: "Age", width: "4.5rem", number: true, cell: (row) => <Age at={row.created} />, sort: (row) => -Date.parse(row.created) || 0 });

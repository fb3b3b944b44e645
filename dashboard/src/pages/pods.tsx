/** The list of pods. */
import { usePods } from "../api/kinds";
import { NAMESPACES_MAX, recorded, usePodUsage, useTraffic } from "../api/metrics";
import { matcher, type Route } from "../core/route";
import type { PodRow } from "../core/pod";
import { count } from "../core/quantity";
import { ageColumn, metricColumns, podColumns } from "../ui/columns";
import { link, useTitle } from "../ui/hooks";
import { Missing, NoMetrics } from "../ui/parts";
import { Grid } from "../ui/table";
import { PodPage } from "./pod";

export function PodsPage({ route }: { route: Route }) {
  const [, namespace, name] = route.path;
  return namespace && name ? <PodPage key={`${namespace}/${name}`} namespace={namespace} name={name} part={route.path[3] ?? ""} filter={route.filter} /> : <PodList route={route} />;
}

/** The namespaces with the most rows, in the order of their names. */
export function largestNamespaces(rows: { namespace: string }[], chosen: string): string[] {
  if (chosen) return [chosen];
  const counts = new Map<string, number>();
  for (const { namespace } of rows) counts.set(namespace, (counts.get(namespace) ?? 0) + 1);
  const largest = [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).slice(0, NAMESPACES_MAX);
  return largest.map((each) => each[0]).sort();
}

function PodList({ route }: { route: Route }) {
  useTitle("Pods");
  const view = usePods(route.namespace);
  const usage = usePodUsage(route.namespace);
  const traffic = useTraffic("pods", largestNamespaces(view.rows, route.namespace));
  const matches = matcher(route.filter);
  const rows = view.rows.filter((row) => matches(row.search));
  const measured = (row: PodRow) => {
    const found = traffic.value?.get(row.key);
    return { usage: usage.value?.get(row.key), traffic: found, spark: found && recorded(`pod ${row.key}`, traffic.at, found.requests) };
  };
  const failing = view.rows.filter((row) => row.tone === "bad").length;
  return (
    <div class="page fill">
      <h1>Pods <span class="counted">{rows.length === view.rows.length ? count(rows.length) : `${count(rows.length)} of ${count(view.rows.length)}`}{view.loaded ? "" : ", loading…"}</span>
        {failing > 0 && <span class="badge bad">{count(failing)} failing</span>}
        {view.truncated && <span class="badge">The cluster has more pods. Choose a namespace.</span>}
        <NoMetrics error={traffic.error ?? usage.error} /></h1>
      <Missing view={view} what={route.namespace ? `pods in ${route.namespace}` : "pods in all namespaces"} />
      {view.rows.length > 0 && <Grid label="Pods" rows={rows} keyOf={(row) => row.uid} href={(row) => link("pods", row.namespace, row.name)} initial={{ column: 0, descending: false }}
        columns={[...podColumns(!route.namespace), ...metricColumns(measured), ageColumn()]} />}
    </div>
  );
}

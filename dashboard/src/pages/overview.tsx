/** What runs where, what fails, and why. */
import { CRONJOBS, DAEMONSETS, DEPLOYMENTS, EVENTS, JOBS, NODES, pathOf, STATEFULSETS, useObjects, usePods, type Kind } from "../api/kinds";
import { recorded, useNodeUsage, usePodUsage, useTraffic } from "../api/metrics";
import { useList, type View } from "../api/reflector";
import { eventRow, newestFirst } from "../core/events";
import { combined, type Traffic } from "../core/metrics";
import { nodeRow } from "../core/node";
import { workloadOf, type PodRow } from "../core/pod";
import { bytes, count, cpu, duration, percent, rate } from "../core/quantity";
import { explainStatus } from "../core/reasons";
import { matcher, type Route } from "../core/route";
import { isOwnedJob, workloadRow, type WorkloadRow } from "../core/workload";
import { link, useTitle } from "../ui/hooks";
import { Age, Bar, Figure, Missing, NoMetrics, Panel, Spark, State } from "../ui/parts";
import { Rows } from "../ui/table";
import { largestNamespaces } from "./pods";

const KINDS: Kind[] = [DEPLOYMENTS, STATEFULSETS, DAEMONSETS, JOBS, CRONJOBS];
const TONES = { bad: 0, busy: 1, good: 2, idle: 3 };
const PROBLEMS_MAX = 30;
const WARNINGS_MAX = 12;

/** All workloads of the namespace, and the first list that isn't there. */
export function useWorkloads(namespace: string): { rows: WorkloadRow[]; views: View<unknown>[] } {
  const views = KINDS.map((kind) => useObjects(kind, namespace));
  const rows = views.flatMap((view, n) => view.rows.filter((each) => !isOwnedJob(each) || workloadRow("Job", each).tone === "bad").map((each) => workloadRow(KINDS[n]!.kind, each)));
  return { rows, views };
}

/** The traffic of each workload, by kind and name. */
export function byWorkload(pods: PodRow[], traffic: Map<string, Traffic> | undefined): Map<string, Traffic> {
  const groups = new Map<string, (Traffic | undefined)[]>();
  for (const pod of pods) {
    const owner = workloadOf(pod);
    const found = traffic?.get(pod.key);
    if (!owner || !found) continue;
    const key = `${owner.kind}/${pod.namespace}/${owner.name}`;
    groups.set(key, [...(groups.get(key) ?? []), found]);
  }
  return new Map([...groups].map(([key, all]) => [key, combined(all)]));
}

function Problems({ view, pods, workloads }: { view: View<PodRow>; pods: PodRow[]; workloads: WorkloadRow[] }) {
  const failing = pods.filter((pod) => pod.tone === "bad");
  const waiting = pods.filter((pod) => pod.tone === "busy" && pod.message);
  const stuck = workloads.filter((row) => row.tone === "bad" && (row.message || row.kind === "Job"));
  const all = [
    ...stuck.map((row) => ({ key: row.key, href: link("workloads", row.kind, row.namespace, row.name), name: row.name, what: `${row.kind} in ${row.namespace}`, status: row.state, tone: row.tone, why: row.message, created: row.created })),
    ...[...failing, ...waiting].map((pod) => ({ key: pod.uid, href: link("pods", pod.namespace, pod.name), name: pod.name, what: `Pod in ${pod.namespace}`, status: pod.status, tone: pod.tone, why: [explainStatus(pod.status), pod.message].filter(Boolean).join(" "), created: pod.created })),
  ];
  return (
    <Panel title="Pending or failing" id="problems" aside={all.length > 0 && <span class="badge bad">{count(all.length)}</span>}>
      {all.length === 0 ? (view.loaded && !view.error ? <p class="missing">Nothing is pending or failing.</p> : <Missing view={{ ...view, rows: [] }} what="pods" empty="Nothing is known of the pods now." />) : (
        <ul class="problems">
          {all.slice(0, PROBLEMS_MAX).map((each) => (
            <li key={each.key}>
              <div><a href={each.href}>{each.name}</a> <span class="hint">{each.what}, <Age at={each.created} /></span></div>
              <State tone={each.tone}>{each.status}</State>
              {each.why && <p>{each.why}</p>}
            </li>
          ))}
        </ul>
      )}
      {all.length > PROBLEMS_MAX && <p class="more"><a href={link("pods")}>All pods</a></p>}
    </Panel>
  );
}

function Nodes({ pods }: { pods: View<PodRow> }) {
  const view = useObjects(NODES, "");
  const usage = useNodeUsage();
  const perNode = new Map<string, number>();
  for (const pod of pods.rows) if (pod.node) perNode.set(pod.node, (perNode.get(pod.node) ?? 0) + 1);
  const rows = view.rows.map(nodeRow).sort((a, b) => TONES[a.tone] - TONES[b.tone] || (a.name < b.name ? -1 : 1));
  return (
    <Panel title="Nodes" id="nodes" aside={<NoMetrics error={usage.error} />}>
      <Missing view={view} what="nodes" />
      {rows.length > 0 && <Rows label="Nodes" rows={rows} keyOf={(row) => row.name} href={(row) => link("nodes", row.name)} max={12} columns={[
        { name: "Name", width: "", cell: (row) => row.name },
        { name: "State", width: "", cell: (row) => <State tone={row.tone} title={row.message}>{row.state}</State> },
        { name: "CPU", width: "", cell: (row) => { const used = usage.value?.get(row.name)?.cpu; return <span class="meter"><Bar part={used} whole={row.cpu} label={`CPU ${percent(used, row.cpu)}`} />{cpu(used)} of {cpu(row.cpu)}</span>; } },
        { name: "Memory", width: "", cell: (row) => { const used = usage.value?.get(row.name)?.memory; return <span class="meter"><Bar part={used} whole={row.memory} label={`Memory ${percent(used, row.memory)}`} />{bytes(used)} of {bytes(row.memory)}</span>; } },
        { name: "Pods", width: "", number: true, cell: (row) => `${count(perNode.get(row.name) ?? 0)} of ${count(row.pods)}` },
      ]} />}
    </Panel>
  );
}

function Workloads({ rows, view, traffic, at }: { rows: WorkloadRow[]; view: Pick<View<unknown>, "rows" | "loaded" | "error">; traffic: Map<string, Traffic>; at: number }) {
  const sorted = [...rows].sort((a, b) => TONES[a.tone] - TONES[b.tone] || (traffic.get(b.key)?.requests ?? 0) - (traffic.get(a.key)?.requests ?? 0) || (a.key < b.key ? -1 : 1));
  return (
    <Panel title="Workloads" id="workloads" aside={<a href={link("workloads")}>All {count(rows.length)}</a>}>
      <Missing view={view} what="workloads" />
      {rows.length > 0 && <Rows label="Workloads" rows={sorted.slice(0, 14)} keyOf={(row) => row.key} href={(row) => link("workloads", row.kind, row.namespace, row.name)} columns={[
        { name: "Name", width: "", cell: (row) => row.name },
        { name: "Namespace", width: "", cell: (row) => row.namespace },
        { name: "Ready", width: "", number: true, cell: (row) => (row.kind === "CronJob" ? "–" : `${row.ready}/${row.wanted}`) },
        { name: "State", width: "", cell: (row) => <State tone={row.tone} title={row.message}>{row.state}</State> },
        { name: "Req/s", width: "", number: true, cell: (row) => { const found = traffic.get(row.key); return <><Spark values={recorded(`workload ${row.key}`, at, found?.requests)} /><span class="figures">{rate(found?.requests)}</span></>; } },
        { name: "p50", width: "", number: true, cell: (row) => duration(traffic.get(row.key)?.p50) },
      ]} />}
    </Panel>
  );
}

function Warnings({ namespace, filter }: { namespace: string; filter: string }) {
  const view = useList(pathOf(EVENTS, namespace), "fieldSelector=type%3DWarning", eventRow);
  const matches = matcher(filter);
  const rows = newestFirst(view.rows.filter((row) => matches(row.search))).slice(0, WARNINGS_MAX);
  return (
    <Panel title="Latest warnings" id="warnings" aside={<a href={link("events")}>All events</a>}>
      <Missing view={view} what="events" empty="No warnings." />
      {rows.length > 0 && (
        <ul class="events">
          {rows.map((row) => (
            <li key={row.uid}>
              <div><strong>{row.reason}</strong> <span class="hint">{row.kind} {row.about}{row.count > 1 ? `, ${count(row.count)} times` : ""}, <Age at={row.last} /></span></div>
              <p>{row.message}</p>
            </li>
          ))}
        </ul>
      )}
    </Panel>
  );
}

export function OverviewPage({ route }: { route: Route }) {
  useTitle("Overview");
  const pods = usePods(route.namespace);
  const { rows: workloads, views } = useWorkloads(route.namespace);
  const usage = usePodUsage(route.namespace);
  const traffic = useTraffic("pods", largestNamespaces(pods.rows, route.namespace));
  const matches = matcher(route.filter);
  const shownPods = pods.rows.filter((row) => matches(row.search));
  const shown = workloads.filter((row) => matches(row.search));
  const total = combined(traffic.value ? [...traffic.value.values()] : []);
  const used = usage.value ? [...usage.value.values()].reduce((sum, each) => ({ cpu: sum.cpu + each.cpu, memory: sum.memory + each.memory }), { cpu: 0, memory: 0 }) : undefined;
  const failing = pods.rows.filter((row) => row.tone === "bad").length;
  const running = pods.rows.filter((row) => row.tone === "good").length;
  const scope = route.namespace || "all";
  const note = traffic.error ? <NoMetrics error={traffic.error} /> : undefined;
  const missing = { rows: workloads, loaded: views.some((view) => view.loaded && !view.error), error: views.find((view) => view.error)?.error };
  return (
    <div class="page">
      <h1>Overview <span class="counted">{route.namespace || "all namespaces"}</span></h1>
      <div class="figures-row">
        <Figure label="Requests/s" value={rate(total.requests)} note={note ?? "HTTP, all pods"} spark={recorded(`total ${scope}`, traffic.at, total.requests)} />
        <Figure label="Errors/s" value={rate(total.errors)} tone={total.errors ? "bad" : undefined} note={total.errors === undefined ? "no data" : percent(total.errors, total.requests || undefined) === "–" ? "none" : `${percent(total.errors, total.requests)} of requests`} spark={recorded(`errors ${scope}`, traffic.at, total.errors)} />
        <Figure label="Latency p50" value={duration(total.p50)} note={total.p99 === undefined ? "no data" : `p99 ${duration(total.p99)}`} spark={recorded(`p50 ${scope}`, traffic.at, total.p50)} />
        <Figure label="CPU" value={cpu(used?.cpu)} note={used ? "cores, all pods" : "no data"} spark={recorded(`cpu ${scope}`, usage.at, used?.cpu)} />
        <Figure label="Memory" value={bytes(used?.memory)} note={used ? "all pods" : "no data"} spark={recorded(`memory ${scope}`, usage.at, used?.memory)} />
        <Figure label="Pods" value={pods.error?.status === 403 ? "–" : count(pods.rows.length)} tone={failing ? "bad" : undefined} note={pods.error?.status === 403 ? "You may not list pods here." : `${count(running)} running, ${count(failing)} failing`} />
      </div>
      <div class="two-columns">
        <div>
          <Nodes pods={pods} />
          <Workloads rows={shown} view={missing} traffic={byWorkload(pods.rows, traffic.value)} at={traffic.at} />
        </div>
        <div>
          <Problems view={pods} pods={shownPods} workloads={shown} />
          <Warnings namespace={route.namespace} filter={route.filter} />
        </div>
      </div>
    </div>
  );
}

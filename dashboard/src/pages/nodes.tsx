/** Nodes, and one node: conditions, capacity, pods. */
import { NODES, useObject, useObjects, usePods } from "../api/kinds";
import { recorded, useNodeUsage, usePodUsage, useTraffic } from "../api/metrics";
import type { Obj, Open } from "../core/kube";
import { nodeRow, type NodeRow } from "../core/node";
import type { PodRow } from "../core/pod";
import { bytes, count, cpu, percent } from "../core/quantity";
import { matcher, type Route } from "../core/route";
import { request } from "../api/client";
import { Action, useOutcome } from "../ui/action";
import { ageColumn, metricColumns, podColumns, type Measured } from "../ui/columns";
import { EventsOf } from "../ui/events";
import { link, useTitle } from "../ui/hooks";
import { Age, Bar, Fact, Facts, Figure, Labels, Missing, NoMetrics, Panel, State } from "../ui/parts";
import { Grid, Rows } from "../ui/table";
import { largestNamespaces } from "./pods";

export function NodesPage({ route }: { route: Route }) {
  const name = route.path[1];
  return name ? <NodePage key={name} name={name} route={route} /> : <NodeList route={route} />;
}

function NodeList({ route }: { route: Route }) {
  useTitle("Nodes");
  const view = useObjects(NODES, "");
  const pods = usePods(route.namespace);
  const usage = useNodeUsage();
  const matches = matcher(route.filter);
  const all = view.rows.map(nodeRow);
  const rows = all.filter((row) => matches(row.search));
  const perNode = new Map<string, number>();
  for (const pod of pods.rows) perNode.set(pod.node, (perNode.get(pod.node) ?? 0) + 1);
  const used = (row: NodeRow) => usage.value?.get(row.name);
  return (
    <div class="page fill">
      <h1>Nodes <span class="counted">{count(rows.length)}</span><NoMetrics error={usage.error} /></h1>
      <Missing view={view} what="nodes" />
      {all.length > 0 && <Grid label="Nodes" rows={rows} keyOf={(row) => row.uid} href={(row) => link("nodes", row.name)} initial={{ column: 0, descending: false }} columns={[
        { name: "Name", width: "minmax(10rem, 1.2fr)", cell: (row) => row.name, sort: (row) => row.name },
        { name: "State", width: "minmax(8rem, 1fr)", cell: (row) => <State tone={row.tone} title={row.message}>{row.state}</State>, sort: (row) => row.state },
        { name: "CPU", width: "minmax(12rem, 1fr)", cell: (row) => <span class="meter"><Bar part={used(row)?.cpu} whole={row.cpu} label={`CPU ${percent(used(row)?.cpu, row.cpu)}`} />{cpu(used(row)?.cpu)} of {cpu(row.cpu)}</span>, sort: (row) => used(row)?.cpu ?? -1 },
        { name: "Memory", width: "minmax(14rem, 1fr)", cell: (row) => <span class="meter"><Bar part={used(row)?.memory} whole={row.memory} label={`Memory ${percent(used(row)?.memory, row.memory)}`} />{bytes(used(row)?.memory)} of {bytes(row.memory)}</span>, sort: (row) => used(row)?.memory ?? -1 },
        { name: "Pods", width: "7rem", number: true, cell: (row) => `${count(perNode.get(row.name) ?? 0)} of ${count(row.pods)}`, sort: (row) => perNode.get(row.name) ?? 0, title: route.namespace ? `Pods of ${route.namespace}` : "Pods of all namespaces" },
        { name: "Address", width: "minmax(7rem, 0.7fr)", cell: (row) => row.address },
        { name: "Version", width: "minmax(7rem, 0.8fr)", cell: (row) => row.version },
        ageColumn(),
      ]} />}
    </div>
  );
}

function NodePage({ name, route }: { name: string; route: Route }) {
  useTitle(name);
  const view = useObject(NODES, "", name);
  const [outcome, report] = useOutcome();
  const node = view.rows[0];
  const row = node && nodeRow(node);
  const cordoned = Boolean(node?.spec?.unschedulable);
  return (
    <div class="page">
      <p class="crumbs"><a href={link("nodes")}>Nodes</a></p>
      <h1>{name} {row && <span class="counted"><State tone={row.tone}>{row.state}</State></span>}
        {node && <span class="actions right"><Action label={cordoned ? "Uncordon" : "Cordon"} right={{ verb: "patch", group: "", resource: "nodes" }} onDone={report} done={cordoned ? "The node takes pods again." : "The node takes no new pods. Its pods stay."}
          run={() => request(`/api/v1/nodes/${encodeURIComponent(name)}`, { method: "PATCH", contentType: "application/merge-patch+json", body: { spec: { unschedulable: cordoned ? null : true } } })} /></span>}
      </h1>
      {outcome}
      <Missing view={view} what={`the node ${name}`} empty="This node does not exist (any more)." />
      {node && row && <NodeBody node={node} row={row} route={route} />}
    </div>
  );
}

function NodeBody({ node, row, route }: { node: Obj; row: NodeRow; route: Route }) {
  const usage = useNodeUsage();
  const all = usePods(route.namespace);
  const podUsage = usePodUsage(route.namespace);
  const pods = all.rows.filter((pod) => pod.node === row.name);
  const traffic = useTraffic("pods", largestNamespaces(pods, route.namespace));
  const used = usage.value?.get(row.name);
  const info = node.status?.nodeInfo ?? {};
  const measured = (pod: PodRow): Measured => ({ usage: podUsage.value?.get(pod.key), traffic: traffic.value?.get(pod.key) });
  const taints: Open[] = node.spec?.taints ?? [];
  return (
    <>
      {row.message && <div class="alert" role="note"><strong>{row.state}</strong>{row.message}</div>}
      <div class="figures-row">
        <Figure label="CPU" value={cpu(used?.cpu)} note={used ? `${percent(used.cpu, row.cpu)} of ${cpu(row.cpu)} cores` : <NoMetrics error={usage.error} />} spark={recorded(`node cpu ${row.name}`, usage.at, used?.cpu)} />
        <Figure label="Memory" value={bytes(used?.memory)} note={used ? `${percent(used.memory, row.memory)} of ${bytes(row.memory)}` : "no data"} spark={recorded(`node memory ${row.name}`, usage.at, used?.memory)} />
        <Figure label="Pods" value={count(pods.length)} note={`of ${count(row.pods)}${route.namespace ? `, those of ${route.namespace}` : ""}`} />
      </div>
      <div class="two-columns">
        <Panel title="Conditions">
          <Rows label="Conditions" rows={(node.status?.conditions ?? []) as Open[]} keyOf={(each) => each.type} columns={[
            { name: "Condition", width: "", cell: (each) => <State tone={(each.type === "Ready") === (each.status === "True") ? "good" : "bad"}>{each.type}: {each.status === "True" ? "yes" : each.status === "False" ? "no" : "unknown"}</State> },
            { name: "Message", width: "", cell: (each) => each.message },
            { name: "Since", width: "", number: true, cell: (each) => <Age at={each.lastTransitionTime} /> },
          ]} />
        </Panel>
        <Panel title="Node">
          <Facts>
            <Fact name="Address">{row.address || "–"}</Fact>
            <Fact name="Version">{row.version || "–"}</Fact>
            <Fact name="Runtime">{info.containerRuntimeVersion ?? "–"}</Fact>
            <Fact name="System">{[info.operatingSystem, info.architecture, info.osImage].filter(Boolean).join(", ") || "–"}</Fact>
            <Fact name="Capacity">{Object.entries<string>(node.status?.capacity ?? {}).map(([key, value]) => <div key={key}>{key} {value}</div>)}</Fact>
            {taints.length > 0 && <Fact name="Taints">{taints.map((taint) => <div key={taint.key + taint.effect}><code>{taint.key}{taint.value ? `=${taint.value}` : ""}:{taint.effect}</code></div>)}</Fact>}
            <Fact name="Labels"><Labels labels={node.metadata.labels} /></Fact>
          </Facts>
        </Panel>
      </div>
      <Panel title="Pods of the node" aside={<span class="hint">{count(pods.length)}</span>}>
        <Missing view={{ ...all, rows: pods }} what={route.namespace ? `pods in ${route.namespace}` : "pods in all namespaces"} empty="No pods." />
        {pods.length > 0 && <Rows label="Pods of the node" rows={pods} keyOf={(pod) => pod.uid} href={(pod) => link("pods", pod.namespace, pod.name)} max={100} columns={[...podColumns(true, false), ...metricColumns(measured), ageColumn()]} />}
      </Panel>
      <EventsOf kind="Node" namespace="" name={row.name} />
    </>
  );
}

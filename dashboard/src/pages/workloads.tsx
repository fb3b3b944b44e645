/** Workloads by namespace, and one workload: pods, rollout, history with undo, restart, scale, events. */
import { useState } from "preact/hooks";
import { request } from "../api/client";
import { AUTOSCALERS, pathOf, REPLICASETS, REVISIONS, useObject, useObjects, usePods, workloadKind, type Kind } from "../api/kinds";
import { recorded, usePodUsage, useTraffic } from "../api/metrics";
import { useMay } from "../api/rights";
import { selectorText, selects, type Obj, type Open } from "../core/kube";
import { combined, type Usage } from "../core/metrics";
import { workloadOf, type PodRow } from "../core/pod";
import { bytes, count, cpu, duration, rate } from "../core/quantity";
import { matcher, type Route } from "../core/route";
import { controllerRevisions, deploymentRevisions, restartPatch, undoPatch, workloadRow, type Revision, type WorkloadRow } from "../core/workload";
import { Action, useOutcome } from "../ui/action";
import { ageColumn, metricColumns, podColumns, type Measured } from "../ui/columns";
import { EventsOf } from "../ui/events";
import { link, useTitle } from "../ui/hooks";
import { Age, Dialog, Fact, Facts, Figure, Labels, Missing, NoMetrics, Panel, State } from "../ui/parts";
import { Grid, Rows } from "../ui/table";
import { byWorkload, useWorkloads } from "./overview";
import { largestNamespaces } from "./pods";

export function WorkloadsPage({ route }: { route: Route }) {
  const [, kind = "", namespace, name] = route.path;
  const found = workloadKind(kind);
  if (found && namespace && name) return <WorkloadPage key={route.path.join("/")} kind={found} namespace={namespace} name={name} />;
  return kind ? <p class="page missing">There is no page for {kind}.</p> : <WorkloadList route={route} />;
}

/** The usage of the pods of each workload together. */
function usageByWorkload(pods: PodRow[], usage: Map<string, Usage> | undefined): Map<string, Usage> {
  const sums = new Map<string, Usage>();
  for (const pod of pods) {
    const [owner, used] = [workloadOf(pod), usage?.get(pod.key)];
    if (!owner || !used) continue;
    const key = `${owner.kind}/${pod.key.slice(0, -pod.name.length)}${owner.name}`;
    const sum = sums.get(key) ?? { cpu: 0, memory: 0 };
    sums.set(key, { cpu: sum.cpu + used.cpu, memory: sum.memory + used.memory });
  }
  return sums;
}

function WorkloadList({ route }: { route: Route }) {
  useTitle("Workloads");
  const pods = usePods(route.namespace);
  const { rows: all, views } = useWorkloads(route.namespace);
  const usage = usePodUsage(route.namespace);
  const traffic = useTraffic("pods", largestNamespaces(pods.rows, route.namespace));
  const flows = byWorkload(pods.rows, traffic.value);
  const used = usageByWorkload(pods.rows, usage.value);
  const matches = matcher(route.filter);
  const rows = all.filter((row) => matches(row.search));
  const measured = (row: WorkloadRow): Measured => {
    const flow = flows.get(row.key);
    return { usage: used.get(row.key), traffic: flow, spark: flow && recorded(`workload ${row.key}`, traffic.at, flow.requests) };
  };
  const denied = views.filter((view) => view.error?.status === 403);
  const missing = { rows: all, loaded: views.every((view) => view.loaded), error: denied.length === views.length ? denied[0]!.error : views.find((view) => !view.loaded && view.error)?.error };
  return (
    <div class="page fill">
      <h1>Workloads <span class="counted">{rows.length === all.length ? count(rows.length) : `${count(rows.length)} of ${count(all.length)}`}</span><NoMetrics error={traffic.error ?? usage.error} /></h1>
      <Missing view={missing} what={route.namespace ? `workloads in ${route.namespace}` : "workloads in all namespaces"} />
      {denied.length > 0 && denied.length < views.length && <p class="missing denied">You may not list some kinds of workloads here.</p>}
      {all.length > 0 && <Grid label="Workloads" rows={rows} keyOf={(row) => row.key} href={(row) => link("workloads", row.kind, row.namespace, row.name)} initial={{ column: 0, descending: false }} columns={[
        { name: "Name", width: "minmax(11rem, 1.4fr)", cell: (row) => row.name, sort: (row) => `${row.name} ${row.namespace}` },
        { name: "Kind", width: "minmax(7rem, 0.7fr)", cell: (row) => row.kind, sort: (row) => row.kind },
        ...(route.namespace ? [] : [{ name: "Namespace", width: "minmax(6rem, 0.7fr)", cell: (row: WorkloadRow) => row.namespace, sort: (row: WorkloadRow) => `${row.namespace} ${row.name}` }]),
        { name: "Ready", width: "4.5rem", number: true, cell: (row) => (row.kind === "CronJob" ? "–" : `${row.ready}/${row.wanted}`), sort: (row) => row.ready },
        { name: "State", width: "minmax(11.5rem, 1.1fr)", cell: (row) => <State tone={row.tone} title={row.message}>{row.state}</State>, sort: (row) => row.state },
        ...metricColumns(measured), ageColumn(),
      ]} />}
    </div>
  );
}

const hasScale = (kind: Kind): boolean => kind.kind === "Deployment" || kind.kind === "StatefulSet";
const rolls = (kind: Kind): boolean => hasScale(kind) || kind.kind === "DaemonSet";

function WorkloadPage({ kind, namespace, name }: { kind: Kind; namespace: string; name: string }) {
  useTitle(name);
  const view = useObject(kind, namespace, name);
  const [outcome, report] = useOutcome();
  const object = view.rows[0];
  const row = object && workloadRow(kind.kind, object);
  return (
    <div class="page">
      <p class="crumbs"><a href={link("workloads")}>Workloads</a> / {namespace} / {kind.kind}</p>
      <h1>{name} {row && <span class="counted"><State tone={row.tone}>{row.state}</State></span>}
        {object && row && <Actions kind={kind} object={object} row={row} report={report} />}
      </h1>
      {outcome}
      <Missing view={view} what={`the ${kind.kind} ${name}`} empty={`This ${kind.kind} does not exist (any more).`} />
      {object && row && (
        <>
          {row.message && <div class="alert" role="note"><strong>{row.state}</strong>{row.message}</div>}
          <Body kind={kind} object={object} row={row} />
          {rolls(kind) && <History kind={kind} object={object} report={report} />}
          <EventsOf kind={kind.kind} namespace={namespace} name={name} uid={object.metadata.uid} />
        </>
      )}
    </div>
  );
}

type Report = (message: string, failed: boolean) => void;

const patch = (path: string, body: Open, contentType = "application/strategic-merge-patch+json") => request(path, { method: "PATCH", body, contentType });

function Actions({ kind, object, row, report }: { kind: Kind; object: Obj; row: WorkloadRow; report: Report }) {
  const path = pathOf(kind, row.namespace, row.name);
  const right = { verb: "patch", group: kind.group, resource: kind.plural, namespace: row.namespace };
  const suspended = Boolean(object.spec?.suspend);
  return (
    <span class="actions right">
      {hasScale(kind) && <Scale kind={kind} row={row} report={report} />}
      {rolls(kind) && <Action label="Restart" right={right} done="The rollout has begun." onDone={report} disabled={object.spec?.paused ? "The rollout is paused." : undefined}
        confirm={<p>All pods of <strong>{row.name}</strong> are replaced, as its rollout strategy allows.</p>} run={() => patch(path, restartPatch(new Date().toISOString().replace(/\.\d+/, "")))} />}
      {(kind.kind === "CronJob" || kind.kind === "Job") && <Action label={suspended ? "Resume" : "Suspend"} right={right} done={suspended ? "It runs again." : "It is suspended."} onDone={report} run={() => patch(path, { spec: { suspend: !suspended } })} />}
      <Action label="Delete" danger right={{ ...right, verb: "delete" }} done={`The ${kind.kind} is being deleted.`} onDone={report}
        confirm={<p>The {kind.kind} <strong>{row.name}</strong> and all its pods are deleted.</p>} run={() => request(`${path}?propagationPolicy=Background`, { method: "DELETE" })} />
    </span>
  );
}

const REPLICAS_MAX = 100_000;

/** The autoscaler that holds the workload's replicas. */
function useAutoscaler(kind: Kind, namespace: string, name: string): Obj | undefined {
  const view = useObjects(AUTOSCALERS, namespace);
  return view.rows.find((each) => each.spec?.scaleTargetRef?.kind === kind.kind && each.spec.scaleTargetRef.name === name);
}

function Scale({ kind, row, report }: { kind: Kind; row: WorkloadRow; report: Report }) {
  const [asking, setAsking] = useState(false);
  const allowed = useMay({ verb: "patch", group: kind.group, resource: kind.plural, subresource: "scale", namespace: row.namespace });
  const autoscaler = useAutoscaler(kind, row.namespace, row.name);
  const submit = (event: Event) => {
    event.preventDefault();
    const replicas = Number(new FormData(event.target as HTMLFormElement).get("replicas"));
    setAsking(false);
    patch(`${pathOf(kind, row.namespace, row.name)}/scale`, { spec: { replicas } }, "application/merge-patch+json")
      .then(() => report(`${row.name} is scaled to ${replicas}.`, false), (error: Error) => report(error.message, true));
  };
  return (
    <>
      <button type="button" disabled={!allowed} title={allowed === false ? `You may not patch ${kind.plural}/scale here.` : undefined} onClick={() => setAsking(true)}>Scale</button>
      {asking && (
        <Dialog title={`Scale ${row.name}`} onClose={() => setAsking(false)}>
          {autoscaler && <p class="alert info" role="note">The HorizontalPodAutoscaler <strong>{autoscaler.metadata.name}</strong> holds the replicas between {autoscaler.spec.minReplicas ?? 1} and {autoscaler.spec.maxReplicas}: it will set them again. 0 turns it off.</p>}
          <form onSubmit={submit}>
            <label>Replicas <input name="replicas" type="number" min={0} max={REPLICAS_MAX} step={1} defaultValue={String(row.wanted)} required autofocus /></label>
            <div class="actions"><button type="submit" class="primary">Scale</button><button type="button" onClick={() => setAsking(false)}>Cancel</button></div>
          </form>
        </Dialog>
      )}
    </>
  );
}

function Body({ kind, object, row }: { kind: Kind; object: Obj; row: WorkloadRow }) {
  const all = usePods(row.namespace);
  const usage = usePodUsage(row.namespace);
  const traffic = useTraffic("pods", [row.namespace]);
  const autoscaler = useAutoscaler(kind, row.namespace, row.name);
  const pods = all.rows.filter((pod) => (kind.kind === "CronJob" ? pod.owner?.kind === "Job" && pod.owner.name.startsWith(`${row.name}-`) : selects(object.spec?.selector, pod.labels)));
  const flow = combined(pods.map((pod) => traffic.value?.get(pod.key)));
  const used = usage.value && pods.reduce((sum, pod) => ({ cpu: sum.cpu + (usage.value?.get(pod.key)?.cpu ?? 0), memory: sum.memory + (usage.value?.get(pod.key)?.memory ?? 0) }), { cpu: 0, memory: 0 });
  const measured = (pod: PodRow): Measured => { const found = traffic.value?.get(pod.key); return { usage: usage.value?.get(pod.key), traffic: found, spark: found && recorded(`pod ${pod.key}`, traffic.at, found.requests) }; };
  const series = (what: string, at: number, value: number | undefined) => recorded(`${what} ${row.key}`, at, value);
  const strategy = object.spec?.strategy ?? object.spec?.updateStrategy;
  return (
    <>
      <div class="figures-row">
        <Figure label={kind.kind === "Job" ? "Succeeded" : kind.kind === "CronJob" ? "Running" : "Ready"} value={kind.kind === "CronJob" ? row.ready : `${row.ready} of ${row.wanted}`} tone={row.tone === "bad" ? "bad" : undefined}
          note={rolls(kind) ? <Progress row={row} /> : row.state} />
        <Figure label="Requests/s" value={rate(flow.requests)} note={<NoMetrics error={traffic.error} />} spark={series("workload", traffic.at, flow.requests)} />
        <Figure label="Errors/s" value={rate(flow.errors)} tone={flow.errors ? "bad" : undefined} note={flow.errors === undefined ? "no data" : "status 500 and above"} spark={series("errors", traffic.at, flow.errors)} />
        <Figure label="Latency p50" value={duration(flow.p50)} note={flow.p99 === undefined ? "no data" : `p99 ${duration(flow.p99)}`} spark={series("p50", traffic.at, flow.p50)} />
        <Figure label="CPU" value={cpu(used?.cpu)} note={used ? "cores" : "no data"} spark={series("cpu", usage.at, used?.cpu)} />
        <Figure label="Memory" value={bytes(used?.memory)} note={used ? "in use" : "no data"} spark={series("memory", usage.at, used?.memory)} />
      </div>
      <Panel title="Pods" aside={<span class="hint">{count(pods.length)}</span>}>
        <Missing view={{ ...all, rows: pods }} what="pods" empty="No pods." />
        {pods.length > 0 && <Rows label={`Pods of ${row.name}`} rows={pods} keyOf={(pod) => pod.uid} href={(pod) => link("pods", pod.namespace, pod.name)} max={50} columns={[...podColumns(false), ...metricColumns(measured), ageColumn()]} />}
      </Panel>
      <Panel title={kind.kind}>
        <Facts>
          <Fact name="Images">{row.images.map((image) => <div key={image}><code>{image}</code></div>)}</Fact>
          {object.spec?.selector && <Fact name="Selector"><code>{selectorText(object.spec.selector)}</code></Fact>}
          {strategy && <Fact name="Strategy">{strategy.type ?? "RollingUpdate"}{strategy.rollingUpdate && ` (${Object.entries(strategy.rollingUpdate).map(([key, value]) => `${key} ${value}`).join(", ")})`}</Fact>}
          {object.spec?.schedule && <Fact name="Schedule"><code>{object.spec.schedule}</code> {object.spec.timeZone}</Fact>}
          {object.status?.lastScheduleTime && <Fact name="Last run"><Age at={object.status.lastScheduleTime} /> ago</Fact>}
          {autoscaler && <Fact name="Autoscaler">{autoscaler.metadata.name}: {autoscaler.spec.minReplicas ?? 1} to {autoscaler.spec.maxReplicas}, wants {autoscaler.status?.desiredReplicas ?? "–"}</Fact>}
          <Fact name="Created"><Age at={row.created} /> ago</Fact>
          <Fact name="Labels"><Labels labels={object.metadata.labels} /></Fact>
          {((object.status?.conditions ?? []) as Open[]).length > 0 && <Fact name="Conditions">{(object.status.conditions as Open[]).map((each) => <div key={each.type} title={each.message}>{each.type}: {each.status === "True" ? "yes" : "no"} <span class="hint">{each.reason}</span></div>)}</Fact>}
        </Facts>
      </Panel>
    </>
  );
}

/** How many pods have the newest template. */
function Progress({ row }: { row: WorkloadRow }) {
  const share = row.wanted ? Math.min(1, row.updated / row.wanted) : 1;
  return (
    <span class="meter">
      <svg class="bar" width="48" height="6" role="img" aria-label={`${row.updated} of ${row.wanted} updated`}><rect class="whole" width="48" height="6" rx="3" />{share > 0 && <rect class="part" width={share * 48} height="6" rx="3" />}</svg>
      {Math.min(row.updated, row.wanted)} of {row.wanted} updated
    </span>
  );
}

function History({ kind, object, report }: { kind: Kind; object: Obj; report: Report }) {
  const { namespace = "", name } = object.metadata;
  const source = kind.kind === "Deployment" ? REPLICASETS : REVISIONS;
  const view = useObjects(source, namespace, `labelSelector=${encodeURIComponent(selectorText(object.spec?.selector))}`);
  const revisions = kind.kind === "Deployment" ? deploymentRevisions(object, view.rows) : controllerRevisions(object, view.rows);
  const path = pathOf(kind, namespace, name);
  const undo = async (revision: Revision) => {
    // The patch replaces all annotations, so it begins with those that the API has now.
    const { contentType, body } = undoPatch(await request(path), revision);
    await patch(path, body, contentType);
  };
  return (
    <Panel title="History">
      <Missing view={view} what={`${source.plural}`} empty="No revisions." />
      {revisions.length > 0 && <Rows label="Revisions" rows={revisions} keyOf={(each) => each.name} max={20} columns={[
        { name: "Revision", width: "", cell: (each) => <>{each.number} {each.current && <span class="badge">current</span>}</> },
        { name: "Images", width: "", cell: (each) => each.images.map((image) => <code key={image}>{image}</code>) },
        { name: "Change", width: "", cell: (each) => each.cause || <span class="hint">–</span> },
        { name: "Made", width: "", number: true, cell: (each) => <Age at={each.created} /> },
        { name: "", width: "", number: true, cell: (each) => !each.current && <Action label="Undo to this" right={{ verb: "patch", group: kind.group, resource: kind.plural, namespace }} done={`The rollout back to revision ${each.number} has begun.`} onDone={report}
          disabled={object.spec?.paused ? "The rollout is paused." : undefined} confirm={<p>The pods of <strong>{name}</strong> get the template of revision {each.number} ({each.images.join(", ")}), by a rollout.</p>} run={() => undo(each)} /> },
      ]} />}
    </Panel>
  );
}

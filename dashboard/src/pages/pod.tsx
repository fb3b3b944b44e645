/** One pod: containers and why they ended, log, terminal, events, metrics. */
import { useState } from "preact/hooks";
import { request } from "../api/client";
import { PODS, pathOf, useObject } from "../api/kinds";
import { recorded, usePodUsage, useTraffic } from "../api/metrics";
import { useMay } from "../api/rights";
import type { Obj, Open } from "../core/kube";
import { podRow, workloadOf } from "../core/pod";
import { bytes, cpu, duration, rate } from "../core/quantity";
import { explainEnd, explainPod, explainWait } from "../core/reasons";
import { Action, useOutcome } from "../ui/action";
import { EventsOf } from "../ui/events";
import { link, useTitle } from "../ui/hooks";
import { LogView } from "../ui/logview";
import { Age, Fact, Facts, Figure, Labels, Missing, NoMetrics, Panel, State } from "../ui/parts";
import { TerminalView } from "../ui/terminal";

export interface PodPageProps {
  namespace: string;
  name: string;
  part: string;
  /** Of the log's lines. */
  filter: string;
}

const PARTS: [string, string][] = [["", "Containers"], ["logs", "Log"], ["exec", "Terminal"], ["events", "Events"]];

const containersOf = (pod: Obj): Open[] => [...(pod.spec?.containers ?? []), ...(pod.spec?.initContainers ?? [])];

export function PodPage({ namespace, name, part, filter }: PodPageProps) {
  useTitle(name);
  const view = useObject(PODS, namespace, name);
  const [outcome, report] = useOutcome();
  const pod = view.rows[0];
  const row = pod && podRow(pod);
  const path = pathOf(PODS, namespace, name);
  const owner = row && workloadOf(row);
  return (
    <div class={`page ${part === "logs" || part === "exec" ? "fill" : ""}`}>
      <p class="crumbs"><a href={link("pods")}>Pods</a> / {namespace}{owner && <> / <a href={link("workloads", owner.kind, namespace, owner.name)}>{owner.name}</a></>}</p>
      <h1>{name} {row && <span class="counted"><State tone={row.tone}>{row.status}</State></span>}
        {pod && <span class="actions right"><Action label="Delete" danger right={{ verb: "delete", group: "", resource: "pods", namespace }} done="The pod is being deleted." onDone={report}
          confirm={<p>The pod <strong>{name}</strong> is deleted. {owner ? `Its ${owner.kind} creates another one.` : "No workload replaces it."}</p>} run={() => request(path, { method: "DELETE" })} /></span>}
      </h1>
      {outcome}
      <Missing view={view} what={`the pod ${name}`} empty="This pod does not exist (any more)." />
      {pod && (
        <>
          <nav class="tabs" aria-label="Parts of the pod">{PARTS.map(([id, title]) => <a key={id} href={link("pods", namespace, name, ...(id ? [id] : []))} aria-current={part === id ? "page" : undefined}>{title}</a>)}</nav>
          {part === "" && <Containers pod={pod} />}
          {part === "logs" && <Log path={path} pod={pod} namespace={namespace} filter={filter} />}
          {part === "exec" && <Exec path={path} pod={pod} namespace={namespace} />}
          {part === "events" && <EventsOf kind="Pod" namespace={namespace} name={name} uid={pod.metadata.uid} />}
        </>
      )}
    </div>
  );
}

function Containers({ pod }: { pod: Obj }) {
  const { namespace = "", name } = pod.metadata;
  const usage = usePodUsage(namespace);
  const traffic = useTraffic("pods", [namespace]);
  const used = usage.value?.get(`${namespace}/${name}`);
  const flow = traffic.value?.get(`${namespace}/${name}`);
  const why = explainPod(pod);
  const series = (what: string, at: number, value: number | undefined) => recorded(`${what} ${namespace}/${name}`, at, value);
  return (
    <>
      {why && <div class="alert" role="note"><strong>{why.reason}</strong>{why.sentence} {why.message}</div>}
      <div class="figures-row">
        <Figure label="Requests/s" value={rate(flow?.requests)} note={<NoMetrics error={traffic.error} />} spark={series("requests", traffic.at, flow?.requests)} />
        <Figure label="Errors/s" value={rate(flow?.errors)} tone={flow?.errors ? "bad" : undefined} note={flow?.errors === undefined ? "no data" : "status 500 and above"} spark={series("errors", traffic.at, flow?.errors)} />
        <Figure label="Latency p50" value={duration(flow?.p50)} note={flow?.p99 === undefined ? "no data" : `p99 ${duration(flow.p99)}`} spark={series("p50", traffic.at, flow?.p50)} />
        <Figure label="CPU" value={cpu(used?.cpu)} note={used ? "cores" : "no data"} spark={series("cpu", usage.at, used?.cpu)} />
        <Figure label="Memory" value={bytes(used?.memory)} note={used ? "in use" : "no data"} spark={series("memory", usage.at, used?.memory)} />
        {flow?.fuel !== undefined && <Figure label="Fuel/s" value={rate(flow.fuel)} note="instructions, roughly" spark={series("fuel", traffic.at, flow.fuel)} />}
      </div>
      {containersOf(pod).map((container) => <Container key={container.name} pod={pod} container={container} />)}
      <Panel title="Pod">
        <Facts>
          <Fact name="Node">{pod.spec?.nodeName ? <a href={link("nodes", pod.spec.nodeName)}>{pod.spec.nodeName}</a> : "none yet"}</Fact>
          <Fact name="Address">{pod.status?.podIP ?? "–"}</Fact>
          <Fact name="Created"><Age at={pod.metadata.creationTimestamp} /> ago</Fact>
          <Fact name="Service account">{pod.spec?.serviceAccountName ?? "–"}</Fact>
          <Fact name="Priority">{pod.spec?.priorityClassName || (pod.spec?.priority ?? 0)}</Fact>
          <Fact name="Restarts">{pod.spec?.restartPolicy}</Fact>
          <Fact name="Quality of service">{pod.status?.qosClass ?? "–"}</Fact>
          <Fact name="Labels"><Labels labels={pod.metadata.labels} /></Fact>
          {Object.keys(pod.metadata.annotations ?? {}).length > 0 && <Fact name="Annotations"><Labels labels={pod.metadata.annotations} /></Fact>}
          <Fact name="Conditions">{((pod.status?.conditions ?? []) as Open[]).map((each) => <div key={each.type}><State tone={each.status === "True" ? "good" : "busy"} title={each.message}>{each.type}{each.status === "True" ? "" : ": no"}</State></div>)}</Fact>
        </Facts>
      </Panel>
    </>
  );
}

const amount = (resources: Open, name: string): string => [resources?.requests?.[name] ?? "–", resources?.limits?.[name] ?? "no limit"].join(" / ");

function Container({ pod, container }: { pod: Obj; container: Open }) {
  const statuses: Open[] = [...(pod.status?.containerStatuses ?? []), ...(pod.status?.initContainerStatuses ?? [])];
  const status = statuses.find((each) => each.name === container.name);
  const { running, waiting, terminated } = status?.state ?? {};
  const last = status?.lastState?.terminated;
  const init = ((pod.spec?.initContainers ?? []) as Open[]).some((each) => each.name === container.name);
  const state = running ? <State tone={status.ready ? "good" : "busy"}>{status.ready ? "Running" : "Running, not ready"}</State>
    : waiting ? <State tone={waiting.reason === "ContainerCreating" || waiting.reason === "PodInitializing" ? "busy" : "bad"}>{waiting.reason}</State>
    : terminated ? <State tone={terminated.exitCode ? "bad" : "idle"}>{terminated.reason || `Exit code ${terminated.exitCode}`}</State>
    : <State tone="idle">Not started</State>;
  return (
    <Panel title={`${container.name}${init ? (container.restartPolicy === "Always" ? " (sidecar)" : " (init)") : ""}`} aside={state}>
      <div class="content stack">
        {waiting && <div class={`alert ${waiting.reason === "ContainerCreating" || waiting.reason === "PodInitializing" ? "info" : ""}`}><strong>{waiting.reason}</strong>{explainWait(waiting)} {waiting.message && <code>{waiting.message}</code>}</div>}
        {terminated && <End title={terminated.reason || "Ended"} end={terminated} info={!terminated.exitCode} />}
        {last && <End title={`Last end: ${last.reason || "ended"}`} end={last} info={!last.exitCode} />}
      </div>
      <Facts>
        <Fact name="Image"><code>{container.image}</code></Fact>
        {running && <Fact name="Started"><Age at={running.startedAt} /> ago</Fact>}
        <Fact name="Restarts">{status?.restartCount ?? 0}</Fact>
        <Fact name="CPU, request / limit">{amount(container.resources, "cpu")}</Fact>
        <Fact name="Memory, request / limit">{amount(container.resources, "memory")}</Fact>
        {(container.ports ?? []).length > 0 && <Fact name="Ports">{container.ports.map((port: Open) => `${port.containerPort}${port.name ? ` (${port.name})` : ""}`).join(", ")}</Fact>}
      </Facts>
    </Panel>
  );
}

function End({ title, end, info }: { title: string; end: Open; info: boolean }) {
  return (
    <div class={`alert ${info ? "info" : ""}`}>
      <strong>{title}</strong>{explainEnd(end)} <span class="hint">Exit code {end.exitCode}{end.finishedAt && <>, <Age at={end.finishedAt} /> ago</>}.</span>
      {end.message && <pre>{end.message}</pre>}
    </div>
  );
}

function Log({ path, pod, namespace, filter }: { path: string; pod: Obj; namespace: string; filter: string }) {
  const allowed = useMay({ verb: "get", group: "", resource: "pods", subresource: "log", namespace });
  const names = containersOf(pod).map((each) => each.name);
  if (allowed === false) return <p class="missing denied" role="note">You may not read logs in {namespace}.</p>;
  return <LogView path={`${path}/log`} containers={names} filter={filter} />;
}

function Exec({ path, pod, namespace }: { path: string; pod: Obj; namespace: string }) {
  const allowed = useMay({ verb: "create", group: "", resource: "pods", subresource: "exec", namespace });
  const names: string[] = (pod.spec?.containers ?? []).map((each: Open) => each.name);
  const [container, setContainer] = useState(names[0] ?? "");
  const [command, setCommand] = useState("sh");
  const [session, setSession] = useState<string>();
  const [ended, setEnded] = useState("");
  if (allowed === false) return <p class="missing denied" role="note">You may not run commands in pods of {namespace} (create pods/exec).</p>;
  const start = (event: Event) => {
    event.preventDefault();
    const query = new URLSearchParams({ container, stdin: "true", stdout: "true", tty: "true" });
    for (const word of command.trim().split(/\s+/)) query.append("command", word);
    setEnded("");
    // The number makes each session another one.
    setSession(`${path}/exec?${query}#${Date.now()}`);
  };
  return (
    <>
      <form class="actions" onSubmit={start}>
        <label>Container <select value={container} onChange={(event) => setContainer(event.currentTarget.value)}>{names.map((each) => <option key={each}>{each}</option>)}</select></label>
        <label>Command <input value={command} required onInput={(event) => setCommand(event.currentTarget.value)} /></label>
        <button type="submit" class="primary">{session ? "Start again" : "Start"}</button>
        {session && !ended && <button type="button" onClick={() => setSession(undefined)}>Disconnect</button>}
        <span class="hint" role="status">{ended || (session ? "Shift+Tab leaves the terminal" : "A new instance in the container's sandbox")}</span>
      </form>
      {session && <TerminalView key={session} path={session.split("#")[0]!} onEnd={setEnded} />}
    </>
  );
}


/** Services whose pods are plugins: a form for each function, called through the API server. */
import { useEffect, useState } from "preact/hooks";
import { ApiError, open, request } from "../api/client";
import { pathOf, SERVICES, SLICES, useObjects } from "../api/kinds";
import { useMay } from "../api/rights";
import { emptyInput, functionPath, functionsOf, InputError, typeWords, valueOf, type PluginFunction } from "../core/form";
import type { Obj, Open } from "../core/kube";
import { duration } from "../core/quantity";
import { matcher, type Route } from "../core/route";
import { serviceRow } from "../core/service";
import { FormView } from "../ui/form";
import { link, useTitle } from "../ui/hooks";
import { Missing, Panel, State } from "../ui/parts";

/** A Service that doesn't answer this fast is no plugin that a person calls. */
const PROBE_TIMEOUT_MS = 4000;
const PORTS_MAX = 3;
/** Services that the page asks whether they are plugins. */
const PROBED_MAX = 60;

export function PluginsPage({ route }: { route: Route }) {
  const [, namespace, name] = route.path;
  return namespace && name ? <PluginPage key={`${namespace}/${name}`} namespace={namespace} name={name} /> : <PluginList route={route} />;
}

interface Plugin {
  /** The path of the Service's proxy. */
  path: string;
  port: number;
  functions: PluginFunction[];
}

const proxyPath = (namespace: string, name: string, port: number): string => `${pathOf(SERVICES, namespace, `${name}:${port}`).replace("%3A", ":")}/proxy/`;

/** Reads the description of a plugin; undefined if the Service is none. */
async function probe(service: Obj): Promise<Plugin | undefined> {
  const { namespace = "", name } = service.metadata;
  const ports: Open[] = (service.spec?.ports ?? []).filter((port: Open) => (port.protocol ?? "TCP") === "TCP");
  for (const { port } of ports.slice(0, PORTS_MAX)) {
    const path = proxyPath(namespace, name, port);
    const response = await open(path, { raw: true, timeoutMs: PROBE_TIMEOUT_MS }).catch(() => undefined);
    const functions = response?.ok && /json/.test(response.headers.get("content-type") ?? "") ? functionsOf(await response.json().catch(() => undefined)) : undefined;
    if (functions) return { path, port, functions };
  }
  return undefined;
}

/** By uid: each Service gets one request. */
const probed = new Map<string, Promise<Plugin | undefined>>();

/** The plugins among the Services with a ready pod: a request wakes no workload that is scaled to zero. */
function usePlugins(services: Obj[], slices: Obj[], allowed: boolean): { found: [Obj, Plugin][]; waiting: boolean } {
  const [plugins, set] = useState(new Map<string, Plugin | undefined>());
  const candidates = services.filter((each) => each.spec?.selector && serviceRow(each, slices).ready > 0).slice(0, PROBED_MAX);
  const uids = candidates.map((each) => each.metadata.uid).join();
  useEffect(() => {
    let current = true;
    const queue = [...candidates];
    const work = async () => {
      for (let next = queue.shift(); next && current; next = queue.shift()) {
        const { uid } = next.metadata;
        if (!probed.has(uid)) probed.set(uid, probe(next));
        const plugin = await probed.get(uid);
        if (current) set((before) => new Map(before).set(uid, plugin));
      }
    };
    if (allowed) void Promise.all([work(), work()]);
    return () => void (current = false);
  }, [uids, allowed]);
  const found = candidates.flatMap((each): [Obj, Plugin][] => { const plugin = plugins.get(each.metadata.uid); return plugin ? [[each, plugin]] : []; });
  return { found, waiting: allowed && candidates.some((each) => !plugins.has(each.metadata.uid)) };
}

const useMayProxy = (namespace: string): boolean | undefined => useMay({ verb: "get", group: "", resource: "services", subresource: "proxy", namespace });

function PluginList({ route }: { route: Route }) {
  useTitle("Plugins");
  const view = useObjects(SERVICES, route.namespace);
  const slices = useObjects(SLICES, route.namespace);
  const allowed = useMayProxy(route.namespace);
  const matches = matcher(route.filter);
  const { found, waiting } = usePlugins(view.rows, slices.rows, allowed === true);
  const shown = found.filter(([service, plugin]) => matches(`${service.metadata.namespace}/${service.metadata.name} ${plugin.functions.map((each) => each.name).join(" ")}`.toLowerCase()));
  return (
    <div class="page">
      <h1>Plugins <span class="counted">{waiting ? "asking the Services…" : shown.length}</span></h1>
      <Missing view={view} what={route.namespace ? `services in ${route.namespace}` : "services in all namespaces"} />
      {allowed === false && <p class="missing denied" role="note">You may not call Services {route.namespace ? `of ${route.namespace}` : "of all namespaces"} (get services/proxy).</p>}
      {allowed && view.loaded && !waiting && shown.length === 0 && <p class="missing">No Service with a ready pod describes functions. A plugin is a component that exports functions of its own.</p>}
      <div class="cards">
        {shown.map(([service, plugin]) => (
          <Panel key={service.metadata.uid} title={service.metadata.name} aside={<span class="hint">{service.metadata.namespace}</span>}>
            <ul class="functions">{plugin.functions.map((each) => <li key={each.name}><a href={link("plugins", service.metadata.namespace!, service.metadata.name)}>{each.short}</a> <span class="hint">{typeWords(each.result)}</span></li>)}</ul>
          </Panel>
        ))}
      </div>
    </div>
  );
}

function PluginPage({ namespace, name }: { namespace: string; name: string }) {
  useTitle(name);
  const allowed = useMayProxy(namespace);
  const [plugin, setPlugin] = useState<Plugin | null>();
  const [error, setError] = useState("");
  const [session, setSession] = useState("");
  useEffect(() => {
    let current = true;
    request(pathOf(SERVICES, namespace, name)).then(probe).then((found) => current && setPlugin(found ?? null), (failed: Error) => current && setError(failed.message));
    return () => void (current = false);
  }, []);
  return (
    <div class="page">
      <p class="crumbs"><a href={link("plugins")}>Plugins</a> / {namespace} / <a href={link("services", namespace, name)}>Service</a></p>
      <h1>{name}</h1>
      {allowed === false && <p class="missing denied" role="note">You may not call Services of {namespace} (get services/proxy).</p>}
      {error && <p class="alert" role="alert">{error}</p>}
      {plugin === undefined && !error && <p class="missing waiting" role="status">Asking the Service for its functions…</p>}
      {plugin === null && <p class="missing">This Service describes no functions: its pods are no plugin, or none is ready.</p>}
      {session && <p class="alert info" role="status"><strong>Session</strong><code>{session}</code> goes with each call. <button type="button" onClick={() => setSession("")}>Leave it</button></p>}
      {plugin?.functions.map((each) => <FunctionView key={each.name} plugin={plugin} of={each} session={session} onSession={setSession} />)}
    </div>
  );
}

interface Outcome {
  status: number;
  reason: string;
  seconds: number;
  body: string;
}

const BODY_CHARS_MAX = 200_000;

function pretty(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

async function invoke(path: string, body: unknown, session: string): Promise<{ outcome: Outcome; session: string }> {
  const began = performance.now();
  const headers: Record<string, string> = session ? { "coracle-session": session } : {};
  // The node ends a call after 60 s by default.
  const response = await open(path, { method: "POST", body, headers, raw: true, timeoutMs: 70_000 });
  const text = await response.text();
  const outcome = { status: response.status, reason: response.headers.get("coracle-reason") ?? "", seconds: (performance.now() - began) / 1000, body: pretty(text).slice(0, BODY_CHARS_MAX) };
  return { outcome, session: response.headers.get("coracle-session") ?? "" };
}

function FunctionView({ plugin, of, session, onSession }: { plugin: Plugin; of: PluginFunction; session: string; onSession: (session: string) => void }) {
  const [input, setInput] = useState(() => emptyInput(of.form));
  const [outcome, setOutcome] = useState<Outcome>();
  const [problem, setProblem] = useState("");
  const [busy, setBusy] = useState(false);
  const call = async (event: Event) => {
    event.preventDefault();
    setProblem("");
    setBusy(true);
    try {
      const done = await invoke(plugin.path + functionPath(of.name), valueOf(of.form, input) as object, session);
      setOutcome(done.outcome);
      if (done.session) onSession(done.session);
    } catch (error) {
      setOutcome(undefined);
      setProblem(error instanceof InputError || error instanceof ApiError ? error.message : String(error));
    } finally {
      setBusy(false);
    }
  };
  return (
    <Panel title={of.short} aside={<span class="hint">→ {typeWords(of.result)}</span>}>
      <form class="content call" data-function={of.name} onSubmit={(event) => void call(event)}>
        {of.name !== of.short && <p class="hint mono">{of.name}</p>}
        <FormView form={of.form} input={input} onInput={setInput} id={of.name} label="" />
        <div class="actions"><button type="submit" class="primary" disabled={busy}>{busy ? "Calling…" : "Call"}</button>
          {outcome && <State tone={outcome.status < 300 ? "good" : "bad"}>{outcome.status}{outcome.reason && ` ${outcome.reason}`}</State>}
          {outcome && <span class="hint">{duration(outcome.seconds)}</span>}</div>
        {problem && <p class="alert" role="alert">{problem}</p>}
        {outcome && <pre class="result" role="status" aria-label="Result">{outcome.body || "(no body)"}</pre>}
      </form>
    </Panel>
  );
}

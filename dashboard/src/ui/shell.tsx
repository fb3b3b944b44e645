/** The frame around the pages: navigation, namespace, filter, connection, keys. */
import type { ComponentType } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { NAMESPACES, pathOf } from "../api/kinds";
import { useList } from "../api/reflector";
import { may, user, whoAmI } from "../api/rights";
import { connection, rejected, setToken, token } from "../api/session";
import type { Obj } from "../core/kube";
import { formatRoute, type Route } from "../core/route";
import { span } from "../core/quantity";
import { EventsPage } from "../pages/events";
import { MapPage } from "../pages/map";
import { NodesPage } from "../pages/nodes";
import { OverviewPage } from "../pages/overview";
import { PluginsPage } from "../pages/plugins";
import { PodsPage } from "../pages/pods";
import { ServicesPage } from "../pages/services";
import { WorkloadsPage } from "../pages/workloads";
import { go, link, replaceRoute, useNow, useRoute } from "./hooks";
import { Dialog } from "./parts";
import { nextTheme, theme } from "./theme";

interface Page {
  name: string;
  title: string;
  key: string;
  view: ComponentType<{ route: Route }>;
}

const PAGES: Page[] = [
  { name: "overview", title: "Overview", key: "o", view: OverviewPage },
  { name: "workloads", title: "Workloads", key: "w", view: WorkloadsPage },
  { name: "pods", title: "Pods", key: "p", view: PodsPage },
  { name: "map", title: "Map", key: "m", view: MapPage },
  { name: "plugins", title: "Plugins", key: "f", view: PluginsPage },
  { name: "services", title: "Services", key: "s", view: ServicesPage },
  { name: "nodes", title: "Nodes", key: "n", view: NodesPage },
  { name: "events", title: "Events", key: "e", view: EventsPage },
];

const CHORD_MS = 1500;

const isTyping = (event: KeyboardEvent): boolean => (event.target as Element).closest("input,textarea,select,dialog,[data-keys]") !== null;

/** `g` and a letter, `/`, `?`. */
function useKeys(showKeys: () => void): void {
  useEffect(() => {
    let chord = 0;
    const pressed = (event: KeyboardEvent) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "Escape" && (event.target as Element).id === "filter") (event.target as HTMLElement).blur();
      if (isTyping(event)) return;
      const page = PAGES.find((each) => each.key === event.key);
      if (Date.now() - chord < CHORD_MS && page) go([page.name]);
      else if (event.key === "/") document.getElementById("filter")?.focus();
      else if (event.key === "?") showKeys();
      else if (event.key !== "g") return;
      chord = event.key === "g" ? Date.now() : 0;
      event.preventDefault();
    };
    document.addEventListener("keydown", pressed);
    return () => document.removeEventListener("keydown", pressed);
  }, []);
}

function Keys({ onClose }: { onClose: () => void }) {
  const keys: [string, string][] = [
    ...PAGES.map((page): [string, string] => [`g ${page.key}`, page.title]),
    ["/", "Filter the list"], ["Esc", "Leave the filter or a dialog"], ["↑ ↓", "Select a row of a list"], ["Enter", "Open the selected row"],
    ["Home End", "First and last row"], ["Shift+Tab", "Leave the terminal"], ["?", "These keys"],
  ];
  return (
    <Dialog title="Keys" onClose={onClose}>
      <dl class="keys">{keys.map(([key, what]) => <div key={key}><dt>{key.split(" ").map((part) => <kbd key={part}>{part}</kbd>)}</dt><dd>{what}</dd></div>)}</dl>
      <form method="dialog"><button type="submit">Close</button></form>
    </Dialog>
  );
}

function ConnectionState() {
  const { seen, problem } = connection.use();
  const now = useNow();
  if (!problem) return <span class="connection" role="status"><span class={`dot ${seen ? "good" : ""}`} aria-hidden="true" />{seen ? "Live" : "Waiting for the API…"}</span>;
  const text = seen ? `API last seen ${span((now - seen) / 1000)} ago, retrying` : "No answer from the API yet, retrying";
  return <span class="connection lost" role="status" title={problem}><span class="dot bad" aria-hidden="true" />{text}</span>;
}

const serviceAccountNamespace = (name: string): string => /^system:serviceaccount:([^:]+):/.exec(name)?.[1] ?? "";

const nameOf = (object: Obj): string => object.metadata.name;

/** A choice from the list of namespaces; an account that may not list them types one. */
function NamespaceChoice({ route }: { route: Route }) {
  const view = useList(pathOf(NAMESPACES, ""), "", nameOf);
  const name = user.use();
  const denied = view.error?.status === 403;
  // An account that may not list namespaces begins in its own one, if it may do something there.
  useEffect(() => {
    const own = serviceAccountNamespace(name);
    if (!denied || route.namespace || !own) return;
    void may({ verb: "list", group: "", resource: "pods", namespace: own }).then((allowed) => allowed && replaceRoute({ namespace: own }), () => undefined);
  }, [denied, name, route.namespace]);
  if (denied) {
    const submit = (event: Event) => {
      event.preventDefault();
      replaceRoute({ namespace: String(new FormData(event.target as HTMLFormElement).get("namespace")).trim() });
    };
    return (
      <form class="namespace" onSubmit={submit}>
        <label for="namespace">Namespace</label>
        <input id="namespace" name="namespace" key={route.namespace} defaultValue={route.namespace} placeholder="type a name" autoComplete="off" spellcheck={false} />
        <button type="submit">Show</button>
      </form>
    );
  }
  const names = [...new Set([...view.rows, ...(route.namespace ? [route.namespace] : [])])].sort();
  return (
    <div class="namespace">
      <label for="namespace">Namespace</label>
      <select id="namespace" value={route.namespace} onChange={(event) => replaceRoute({ namespace: event.currentTarget.value })}>
        <option value="">All</option>
        {names.map((each) => <option key={each} value={each}>{each}</option>)}
      </select>
    </div>
  );
}

function Filter({ route }: { route: Route }) {
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => {
    if (input.current && input.current !== document.activeElement) input.current.value = route.filter;
  }, [route.filter]);
  return (
    <div class="filter" role="search">
      <input id="filter" ref={input} type="search" aria-label="Filter" placeholder="Filter" defaultValue={route.filter} autoComplete="off" spellcheck={false}
        onInput={(event) => replaceRoute({ filter: event.currentTarget.value })} />
      <kbd aria-hidden="true">/</kbd>
    </div>
  );
}

/** In place of the pages while the API rejects the user. */
function TokenForm() {
  const submit = (event: Event) => {
    event.preventDefault();
    const value = String(new FormData(event.target as HTMLFormElement).get("token")).trim();
    if (value) setToken(value);
  };
  return (
    <main class="signin" id="main">
      <form class="panel" onSubmit={submit}>
        <h1>Sign in</h1>
        <p>{token.get() ? "The API rejects the token: it is wrong or has expired." : "The API does not know who you are."} On your machine, <code>coracle dashboard</code> opens this page with the rights of your kubeconfig. Or paste a token:</p>
        <label for="token">Token</label>
        <input id="token" name="token" type="password" autoComplete="off" required />
        <button type="submit" class="primary">Sign in</button>
        <p class="hint">A token of a ServiceAccount that may see what you need:</p>
        <pre>kubectl create token NAME --namespace NAMESPACE</pre>
        <p class="hint">The token stays in this tab and goes to this API server alone.</p>
      </form>
    </main>
  );
}

function Navigation({ current }: { current: string }) {
  return (
    <nav class="sidebar" aria-label="Pages">
      <a class="brand" href={link("overview")}><img src="icon.svg" alt="" width="28" height="28" /><span>Coracle</span></a>
      <ul>
        {PAGES.map((page) => (
          <li key={page.name}>
            <a href={link(page.name)} aria-current={page.name === current ? "page" : undefined} title={`g ${page.key}`}>{page.title}<kbd aria-hidden="true">{page.key}</kbd></a>
          </li>
        ))}
      </ul>
    </nav>
  );
}

function User() {
  const name = user.use();
  const bearer = token.use();
  const refused = rejected.use();
  useEffect(() => {
    if (!refused) void whoAmI().catch(() => user.set(""));
  }, [bearer, refused]);
  return (
    <span class="user">
      <span title={name}>{name}</span>
      {bearer && <button type="button" onClick={() => { setToken(""); user.set(""); }}>Sign out</button>}
    </span>
  );
}

export function Shell() {
  const route = useRoute();
  const [keys, setKeys] = useState(false);
  const refused = rejected.use();
  const bearer = token.use();
  const look = theme.use();
  const main = useRef<HTMLElement>(null);
  useKeys(() => setKeys(true));
  const page = PAGES.find((each) => each.name === route.path[0]);
  const place = route.path.join("/");
  useEffect(() => void main.current?.scrollTo(0, 0), [place]);
  const View = page?.view;
  return (
    <>
      <a class="skip" href="#main" onClick={(event) => { event.preventDefault(); main.current?.focus(); }}>Skip to the content</a>
      <Navigation current={route.path[0]!} />
      <header class="top">
        <NamespaceChoice key={bearer} route={route} />
        <Filter route={route} />
        <ConnectionState />
        <User />
        <button type="button" onClick={nextTheme} aria-label={`Colors: ${look}`} title="Colors: the system's, light or dark">{{ system: "◐", light: "☀", dark: "☾" }[look]}</button>
        <button type="button" onClick={() => setKeys(true)} aria-label="Keys" title="Keys (?)">?</button>
      </header>
      {refused ? <TokenForm /> : (
        <main id="main" ref={main} tabIndex={-1} key={bearer}>
          {View ? <View key={page!.name} route={route} /> : <p class="missing">There is no page of this name. <a href={formatRoute(["overview"])}>Overview</a></p>}
        </main>
      )}
      {keys && <Keys onClose={() => setKeys(false)} />}
    </>
  );
}

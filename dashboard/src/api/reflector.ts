/** Lists that follow the API: list in chunks, then a watch, again after an error. Shared by all that show the same list. */
import { useEffect, useReducer } from "preact/hooks";
import type { Obj, Open } from "../core/kube";
import { applyEvent, Lines, retryDelay } from "../core/watch";
import { ApiError, open, request } from "./client";
import { recoveries, rejected, token } from "./session";

const CHUNK_ITEMS = 500;
/** The memory of a tab: 20,000 rows are some 30 MB. */
const ITEMS_MAX = 20_000;
const LIST_TIMEOUT_MS = 20_000;
const WATCH_SECONDS = 290;
const EVENT_CHARS_MAX = 8_000_000;
/** Changes are shown together: a rollout of thousands of pods must not render thousands of times. */
const NOTIFY_MS = 120;
/** Without a watch a list is read again. */
const POLL_MS = 3000;
const POLL_LONG_MS = 10_000;
const LONG_ITEMS = 400;
/** After 403 or 404: rights and kinds change seldom. */
const REFUSED_MS = 30_000;
/** A list that no part of the page shows is kept this long: going back is instant. */
const LINGER_MS = 15_000;

/** Over HTTP/1.1 a browser has six connections for a host and all its tabs. */
const watchesMax = (): number => {
  const [navigation] = performance.getEntriesByType("navigation") as PerformanceNavigationTiming[];
  return navigation && /^h[23]/.test(navigation.nextHopProtocol) ? 40 : 2;
};
let watches = 0;

export interface View<Row> {
  rows: Row[];
  /** Whether the first list is complete. */
  loaded: boolean;
  error?: ApiError;
  /** More exist than are shown. */
  truncated: boolean;
}

export class Reflector<Row> {
  private rows = new Map<string, Row>();
  private version = "";
  private failures = 0;
  private users = 0;
  private stopping?: AbortController;
  private wake?: () => void;
  private notifying?: ReturnType<typeof setTimeout>;
  private lingering?: ReturnType<typeof setTimeout>;
  private readonly subscribers = new Set<() => void>();
  view: View<Row> = { rows: [], loaded: false, truncated: false };

  constructor(private readonly path: string, private readonly query: string, private readonly project: (object: Obj) => Row) {}

  subscribe(subscriber: () => void): () => void {
    this.subscribers.add(subscriber);
    this.users += 1;
    clearTimeout(this.lingering);
    if (!this.stopping) void this.run((this.stopping = new AbortController()).signal);
    return () => {
      this.subscribers.delete(subscriber);
      this.users -= 1;
      if (this.users === 0) this.lingering = setTimeout(() => this.stop(), LINGER_MS);
    };
  }

  /** Reads the list again at once, after a change by this page. */
  poke(): void {
    this.wake?.();
  }

  private stop(): void {
    this.stopping?.abort();
    this.stopping = undefined;
    reflectors.delete(keyOf(this.path, this.query, this.project));
  }

  private async run(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      if (document.hidden) await this.sleep(Infinity, signal);
      if (rejected.get()) await this.sleep(1000, signal);
      else await this.turn(signal);
    }
  }

  private async turn(signal: AbortSignal): Promise<void> {
    try {
      if (!this.version) await this.list(signal);
      this.failures = 0;
      if (watches < watchesMax()) await this.watch(signal);
      else {
        await this.sleep(this.rows.size > LONG_ITEMS ? POLL_LONG_MS : POLL_MS, signal);
        this.version = "";
      }
    } catch (error) {
      if (signal.aborted) return;
      const known = error instanceof ApiError ? error : new ApiError(0, String(error));
      const refused = known.status === 403 || known.status === 404;
      this.failures += 1;
      if (known.status === 410) this.version = "";
      if (refused) this.rows.clear();
      this.publish({ error: known, loaded: this.view.loaded || refused });
      await this.sleep(refused ? REFUSED_MS : retryDelay(this.failures, Math.random()), signal);
    }
  }

  private async list(signal: AbortSignal): Promise<void> {
    const first = !this.view.loaded;
    const rows = new Map<string, Row>();
    let next = "";
    do {
      const query = `${this.query}${this.query ? "&" : ""}limit=${CHUNK_ITEMS}${next ? `&continue=${encodeURIComponent(next)}` : ""}`;
      const page: Open = await request(`${this.path}?${query}`, { timeoutMs: LIST_TIMEOUT_MS, signal, background: !first });
      for (const object of page.items ?? []) rows.set(object.metadata.uid, this.project(object));
      next = page.metadata?.continue ?? "";
      this.version = page.metadata?.resourceVersion ?? "";
      // The first list shows each chunk as it arrives.
      if (first) { this.rows = rows; this.publish({ error: undefined }); }
    } while (next && rows.size < ITEMS_MAX);
    this.rows = rows;
    this.publish({ error: undefined, loaded: true, truncated: Boolean(next) });
  }

  private async watch(signal: AbortSignal): Promise<void> {
    watches += 1;
    const ended = new AbortController();
    const end = () => ended.abort();
    const hidden = () => document.hidden && ended.abort();
    const forget = [recoveries.subscribe(end), token.subscribe(end)];
    document.addEventListener("visibilitychange", hidden);
    try {
      const query = `${this.query}${this.query ? "&" : ""}watch=1&allowWatchBookmarks=true&timeoutSeconds=${WATCH_SECONDS}&resourceVersion=${this.version}`;
      const response = await open(`${this.path}?${query}`, { signal: AbortSignal.any([signal, ended.signal]) });
      this.publish({ error: undefined });
      await this.read(response.body!.getReader());
    } catch (error) {
      if (!ended.signal.aborted) throw error instanceof ApiError ? error : new ApiError(0, "the watch was cut off");
    } finally {
      watches -= 1;
      forget.forEach((each) => each());
      document.removeEventListener("visibilitychange", hidden);
    }
  }

  private async read(reader: ReadableStreamDefaultReader<Uint8Array>): Promise<void> {
    const lines = new Lines(EVENT_CHARS_MAX);
    const decoder = new TextDecoder();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      for (const line of lines.push(decoder.decode(value, { stream: true }))) if (line) this.event(line);
    }
  }

  private event(line: string): void {
    const event = JSON.parse(line);
    if (event.type === "ADDED" && this.rows.size >= ITEMS_MAX) return;
    const step = applyEvent(this.rows, event, this.project);
    if (step.what === "relist") throw new ApiError(410, "the watch is too old");
    if (step.what === "failed") throw new ApiError(0, step.message);
    this.version = step.version || this.version;
    if (step.what === "changed") this.changed();
  }

  private changed(): void {
    this.notifying ??= setTimeout(() => this.publish({}), NOTIFY_MS);
  }

  private publish(change: Partial<View<Row>>): void {
    clearTimeout(this.notifying);
    this.notifying = undefined;
    this.view = { ...this.view, rows: [...this.rows.values()], ...change };
    for (const subscriber of [...this.subscribers]) subscriber();
  }

  /** Ends early by `poke`, when the tab is shown, with another token, or when the API is back. */
  private sleep(ms: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const timer = ms === Infinity ? undefined : setTimeout(() => done(), ms);
      const shown = () => !document.hidden && done();
      const forget = [recoveries.subscribe(() => done()), token.subscribe(() => done())];
      const done = () => {
        clearTimeout(timer);
        document.removeEventListener("visibilitychange", shown);
        signal.removeEventListener("abort", done);
        forget.forEach((each) => each());
        this.wake = undefined;
        resolve();
      };
      this.wake = () => { this.version = ""; done(); };
      document.addEventListener("visibilitychange", shown);
      signal.addEventListener("abort", done);
      if (signal.aborted) done();
    });
  }
}

const reflectors = new Map<string, Reflector<unknown>>();

/** Numbers of the projections: two lists of one path may keep different rows. */
const projections = new WeakMap<object, number>();
let projectionsCount = 0;

function keyOf(path: string, query: string, project: (object: Obj) => unknown): string {
  if (!projections.has(project)) projections.set(project, (projectionsCount += 1));
  return `${path}?${query} ${projections.get(project)}`;
}

/** `project` is a function of a module: one made in each rendering would be another list each time. */
export function reflectorOf<Row>(path: string, query: string, project: (object: Obj) => Row): Reflector<Row> {
  const key = keyOf(path, query, project);
  let found = reflectors.get(key) as Reflector<Row> | undefined;
  if (!found) reflectors.set(key, (found = new Reflector(path, query, project)) as Reflector<unknown>);
  return found;
}

/** All lists are read again: after a write by this page. */
export const pokeAll = (): void => reflectors.forEach((each) => each.poke());

const NOTHING: View<never> = { rows: [], loaded: true, truncated: false };

/** The rows of a list; nothing is read while `path` is empty. */
export function useList<Row>(path: string | undefined, query: string, project: (object: Obj) => Row): View<Row> {
  const [, render] = useReducer((n: number) => n + 1, 0);
  const reflector = path ? reflectorOf(path, query, project) : undefined;
  useEffect(() => reflector?.subscribe(() => render(undefined as never)), [reflector]);
  return reflector ? reflector.view : (NOTHING as View<Row>);
}

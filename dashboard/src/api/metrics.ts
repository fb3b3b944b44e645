/** Polls of metrics, each shared by all that show it, and only while a visible part of the page does. */
import { useEffect, useReducer } from "preact/hooks";
import { addTraffic, CALL_METRICS, calls, CUSTOM, nodeUsage, podUsage, type Call, type Traffic, type Usage } from "../core/metrics";
import type { Open } from "../core/kube";
import { ApiError, request } from "./client";
import { rejected, token } from "./session";

const POLL_MS = 5000;
/** An API that isn't there, or that the account may not read. */
const REFUSED_MS = 30_000;
/** Custom metrics are read by namespace. Beyond the largest ones the page would spend its connections on them. */
export const NAMESPACES_MAX = 8;
const CUSTOM_BASE = "/apis/custom.metrics.k8s.io/v1beta2";

interface Polled<T> {
  value?: T;
  /** Of the last answer, in milliseconds. */
  at: number;
  error?: ApiError;
}

class Poll<T> {
  polled: Polled<T> = { at: 0 };
  private users = 0;
  private timer?: ReturnType<typeof setTimeout>;
  private readonly subscribers = new Set<() => void>();

  constructor(private readonly read: () => Promise<T>) {}

  subscribe(subscriber: () => void): () => void {
    this.subscribers.add(subscriber);
    this.users += 1;
    if (this.users === 1) void this.turn();
    return () => {
      this.subscribers.delete(subscriber);
      this.users -= 1;
      if (this.users === 0) clearTimeout(this.timer);
    };
  }

  private async turn(): Promise<void> {
    let wait = POLL_MS;
    if (!document.hidden && !rejected.get()) {
      try {
        this.polled = { value: await this.read(), at: Date.now() };
      } catch (error) {
        const known = error instanceof ApiError ? error : new ApiError(0, String(error));
        const refused = known.status === 403 || known.status === 404;
        if (refused) wait = REFUSED_MS;
        this.polled = { ...(refused ? { at: 0 } : this.polled), error: known };
      }
      for (const subscriber of [...this.subscribers]) subscriber();
    }
    clearTimeout(this.timer);
    if (this.users > 0) this.timer = setTimeout(() => void this.turn(), wait);
  }
}

const polls = new Map<string, Poll<unknown>>();

function usePoll<T>(key: string, read: () => Promise<T>): Polled<T> {
  const [, render] = useReducer((n: number) => n + 1, 0);
  let poll = polls.get(key) as Poll<T> | undefined;
  if (!poll) polls.set(key, (poll = new Poll(read)) as Poll<unknown>);
  useEffect(() => poll.subscribe(() => render(undefined as never)), [poll]);
  return poll.polled;
}

const get = (path: string): Promise<Open> => request(path, { background: true });
const namespaced = (base: string, namespace: string, rest: string): string => `${base}${namespace ? `/namespaces/${encodeURIComponent(namespace)}` : ""}/${rest}`;

export const useNodeUsage = (): Polled<Map<string, Usage>> => usePoll("nodes", async () => nodeUsage(await get("/apis/metrics.k8s.io/v1beta1/nodes")));
export const usePodUsage = (namespace: string): Polled<Map<string, Usage>> =>
  usePoll(`pods ${namespace}`, async () => podUsage(await get(namespaced("/apis/metrics.k8s.io/v1beta1", namespace, "pods"))));

let discovered: { at: number; names: Promise<Set<string>> } | undefined;
const DISCOVERY_MS = 60_000;

/** The served custom metrics, as `services/http_requests_per_second`. */
function served(): Promise<Set<string>> {
  if (!discovered || Date.now() - discovered.at > DISCOVERY_MS) {
    const names = get(CUSTOM_BASE).then((list) => new Set<string>(((list.resources ?? []) as Open[]).map((each) => each.name)));
    discovered = { at: Date.now(), names };
    names.catch(() => (discovered = undefined));
  }
  return discovered.names;
}

/** Lists that the API refused, with the time: they are not read again for a while. */
const refusedAt = new Map<string, number>();
token.subscribe(() => refusedAt.clear());

/** The lists of several metrics, without those that aren't served or that the account may not read. */
async function lists(resource: "pods" | "services", metrics: string[], namespaces: string[]): Promise<[string, Open][]> {
  const names = await served();
  const wanted = metrics.filter((metric) => names.has(`${resource}/${metric}`));
  if (wanted.length === 0) throw new ApiError(404, "the cluster serves no such metrics");
  const one = async (namespace: string, metric: string): Promise<[string, Open] | undefined> => {
    const path = namespaced(CUSTOM_BASE, namespace, `${resource}/*/${metric}`);
    if (Date.now() - (refusedAt.get(path) ?? 0) < DISCOVERY_MS) return undefined;
    try {
      return [metric, await get(path)];
    } catch (error) {
      if (error instanceof ApiError && (error.status === 403 || error.status === 404)) {
        refusedAt.set(path, Date.now());
        return undefined;
      }
      throw error;
    }
  };
  const all = await Promise.all(namespaces.slice(0, NAMESPACES_MAX).flatMap((namespace) => wanted.map((metric) => one(namespace, metric))));
  const found = all.filter((each) => each !== undefined);
  if (found.length === 0 && all.length > 0) throw new ApiError(403, "the account may not read these metrics");
  return found;
}

/** The traffic of pods or Services by `NAMESPACE/NAME`. */
export function useTraffic(resource: "pods" | "services", namespaces: string[]): Polled<Map<string, Traffic>> {
  const within = namespaces.slice(0, NAMESPACES_MAX);
  return usePoll(`${resource} ${within.join()}`, async () => {
    const samples = new Map<string, Traffic>();
    for (const [metric, list] of await lists(resource, Object.keys(CUSTOM), within)) addTraffic(samples, metric, list);
    return samples;
  });
}

/** Who calls which Service. */
export function useCalls(namespaces: string[]): Polled<Call[]> {
  const within = namespaces.slice(0, NAMESPACES_MAX);
  return usePoll(`calls ${within.join()}`, async () => calls(await lists("services", CALL_METRICS, within)));
}

/** Samples of a figure: enough for five minutes at a poll each 5 s. */
const SAMPLES_MAX = 60;
const SERIES_MAX = 3000;
const series = new Map<string, { at: number; values: number[] }>();

/** Records a figure under a name, once for each poll, and returns the recorded ones, oldest first. */
export function recorded(name: string, at: number, value: number | undefined): number[] {
  let known = series.get(name);
  if (value === undefined || at === 0) return known?.values ?? [];
  if (!known) {
    if (series.size >= SERIES_MAX) series.delete(series.keys().next().value!);
    series.set(name, (known = { at: 0, values: [] }));
  }
  if (known.at !== at) {
    known.at = at;
    known.values = [...known.values, value].slice(-SAMPLES_MAX);
  }
  return known.values;
}

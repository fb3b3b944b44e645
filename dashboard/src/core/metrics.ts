/** Metrics of pods, nodes and Services, as `metrics.k8s.io` and `custom.metrics.k8s.io` give them. */
import { keyOf, type Open } from "./kube";
import { quantity } from "./quantity";

export interface Usage {
  cpu: number;
  memory: number;
}

/** The custom metrics that the page shows, and the field of a sample that each fills. */
export const CUSTOM = {
  http_requests_per_second: "requests",
  http_errors_per_second: "errors",
  http_request_duration_p50_seconds: "p50",
  http_request_duration_p99_seconds: "p99",
  fuel_per_second: "fuel",
} as const;

/** Undefined: the cluster has no such figure. */
export interface Traffic {
  requests?: number;
  errors?: number;
  p50?: number;
  p99?: number;
  fuel?: number;
}

export function podUsage(list: Open): Map<string, Usage> {
  const usage = new Map<string, Usage>();
  for (const item of list.items ?? []) {
    const sum = { cpu: 0, memory: 0 };
    for (const container of item.containers ?? []) {
      sum.cpu += quantity(container.usage?.cpu) ?? 0;
      sum.memory += quantity(container.usage?.memory) ?? 0;
    }
    usage.set(keyOf(item.metadata.namespace, item.metadata.name), sum);
  }
  return usage;
}

export function nodeUsage(list: Open): Map<string, Usage> {
  return new Map(((list.items ?? []) as Open[]).map((item) => [item.metadata.name, { cpu: quantity(item.usage?.cpu) ?? 0, memory: quantity(item.usage?.memory) ?? 0 }]));
}

/** Adds the values of one metric to the samples. Metrics without a field are left out. */
export function addTraffic(samples: Map<string, Traffic>, metric: string, list: Open): void {
  const field = CUSTOM[metric as keyof typeof CUSTOM];
  if (!field) return;
  for (const item of list.items ?? []) {
    const value = quantity(item.value);
    if (value === undefined) continue;
    const key = keyOf(item.describedObject?.namespace, item.describedObject?.name);
    samples.set(key, { ...samples.get(key), [field]: value });
  }
}

/**
 * The traffic of several pods together. Rates add up. The median is the mean of the pods' medians, weighted by their requests; the 99th
 * percentile is the slowest pod's: exact figures would need the histograms.
 */
export function combined(all: (Traffic | undefined)[]): Traffic {
  const sum = (field: "requests" | "errors" | "fuel"): number | undefined => {
    const values = all.map((each) => each?.[field]).filter((value) => value !== undefined);
    return values.length ? values.reduce((a, b) => a + b) : undefined;
  };
  const slowest = all.map((each) => each?.p99).filter((value) => value !== undefined);
  const medians = all.filter((each) => each?.p50 !== undefined) as Traffic[];
  const weight = medians.reduce((total, each) => total + (each.requests ?? 0), 0);
  const p50 = weight > 0 ? medians.reduce((total, each) => total + each.p50! * (each.requests ?? 0), 0) / weight : medians.length ? Math.max(...medians.map((each) => each.p50!)) : undefined;
  return { requests: sum("requests"), errors: sum("errors"), fuel: sum("fuel"), p50, p99: slowest.length ? Math.max(...slowest) : undefined };
}

/** One caller of a Service, from the metrics of calls. */
export interface Call {
  namespace: string;
  service: string;
  /** The calling pod; undefined for callers outside of pods. */
  caller?: { namespace: string; pod: string };
  rate: number;
  errors?: number;
  p50?: number;
}

const CALL_FIELDS: Record<string, "rate" | "errors" | "p50"> = { http_calls_per_second: "rate", http_call_errors_per_second: "errors", http_call_duration_p50_seconds: "p50" };
export const CALL_METRICS = Object.keys(CALL_FIELDS);

/** Joins the metrics of calls by Service and caller. */
export function calls(lists: [metric: string, list: Open][]): Call[] {
  const found = new Map<string, Call>();
  for (const [metric, list] of lists) {
    const field = CALL_FIELDS[metric];
    if (!field) continue;
    for (const item of list?.items ?? []) {
      const value = quantity(item.value);
      if (value === undefined) continue;
      const { namespace = "", name = "" } = item.describedObject ?? {};
      const labels = item.metric?.selector?.matchLabels ?? {};
      const pod: string = labels["caller-pod"] ?? "";
      const caller = pod ? { namespace: labels["caller-namespace"] ?? "", pod } : undefined;
      const key = `${namespace}/${name} ${caller ? keyOf(caller.namespace, caller.pod) : ""}`;
      const call: Call = found.get(key) ?? { namespace, service: name, caller, rate: 0 };
      call[field] = value;
      found.set(key, call);
    }
  }
  return [...found.values()];
}

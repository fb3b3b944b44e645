/** Who calls whom: Services, and the workloads that call them. */
import { selects, type Obj } from "./kube";
import type { Call, Traffic } from "./metrics";
import { workloadOf, type PodRow } from "./pod";

export interface GraphNode {
  id: string;
  kind: "service" | "workload" | "outside";
  title: string;
  namespace: string;
  /** The page of the node: its segments. */
  page?: string[];
  rate?: number;
  errors?: number;
  p50?: number;
}

export interface GraphEdge {
  from: string;
  to: string;
  rate: number;
  errors?: number;
  p50?: number;
}

export interface Graph {
  nodes: GraphNode[];
  edges: GraphEdge[];
  /** Services without calls. */
  quiet: GraphNode[];
  /** Services beyond the largest ones that are drawn. */
  left: number;
}

/** More can't be read in a picture. */
const NODES_MAX = 60;
const OUTSIDE = "outside";

const service = (namespace: string, name: string, traffic?: Traffic): GraphNode => ({
  id: `service/${namespace}/${name}`, kind: "service", title: name, namespace, page: ["services", namespace, name], rate: traffic?.requests, errors: traffic?.errors, p50: traffic?.p50,
});

/** The node of a caller: the Service that selects the pod, else the pod's workload, else the pod. */
function callerOf(caller: Call["caller"], pods: Map<string, PodRow>, services: Obj[]): GraphNode {
  if (!caller) return { id: OUTSIDE, kind: "outside", title: "Outside", namespace: "" };
  const { namespace, pod } = caller;
  const row = pods.get(`${namespace}/${pod}`);
  const own = row && services.find((each) => each.metadata.namespace === namespace && selects({ matchLabels: each.spec?.selector }, row.labels));
  if (own) return service(namespace, own.metadata.name);
  const workload = row && workloadOf(row);
  if (workload) return { id: `${workload.kind}/${namespace}/${workload.name}`, kind: "workload", title: workload.name, namespace, page: ["workloads", workload.kind, namespace, workload.name] };
  return { id: `pod/${namespace}/${pod}`, kind: "workload", title: pod, namespace, page: ["pods", namespace, pod] };
}

interface Sum extends GraphEdge {
  /** Of the medians: weighted by the calls. */
  weight: number;
}

function addCall(edges: Map<string, Sum>, from: string, to: string, call: Call): void {
  const key = `${from} ${to}`;
  const edge = edges.get(key) ?? { from, to, rate: 0, weight: 0 };
  edge.rate += call.rate;
  if (call.errors !== undefined) edge.errors = (edge.errors ?? 0) + call.errors;
  if (call.p50 !== undefined) {
    const weight = Math.max(call.rate, 1e-6);
    edge.p50 = ((edge.p50 ?? 0) * edge.weight + call.p50 * weight) / (edge.weight + weight);
    edge.weight += weight;
  }
  edges.set(key, edge);
}

/** A Service without figures of its own has the sum of its calls. */
function addIncoming(node: GraphNode, edge: GraphEdge, traffic: Map<string, Traffic> | undefined): void {
  if (traffic?.get(`${node.namespace}/${node.title}`)?.requests !== undefined) return;
  node.rate = (node.rate ?? 0) + edge.rate;
  if (edge.errors !== undefined) node.errors = (node.errors ?? 0) + edge.errors;
}

const byId = (a: { id: string }, b: { id: string }): number => (a.id < b.id ? -1 : 1);

export function graph(calls: Call[], pods: PodRow[], services: Obj[], traffic: Map<string, Traffic> | undefined): Graph {
  const rows = new Map(pods.map((pod) => [pod.key, pod]));
  const sorted = [...services].sort((a, b) => (a.metadata.name < b.metadata.name ? -1 : 1));
  const nodes = new Map<string, GraphNode>();
  for (const each of sorted) {
    const { namespace = "", name } = each.metadata;
    const node = service(namespace, name, traffic?.get(`${namespace}/${name}`));
    nodes.set(node.id, node);
  }
  const edges = new Map<string, Sum>();
  for (const call of calls) {
    const [from, to] = [callerOf(call.caller, rows, sorted), service(call.namespace, call.service, traffic?.get(`${call.namespace}/${call.service}`))];
    for (const node of [from, to]) if (!nodes.has(node.id)) nodes.set(node.id, node);
    addCall(edges, from.id, to.id, call);
  }
  for (const edge of edges.values()) addIncoming(nodes.get(edge.to)!, edge, traffic);
  const sums = [...edges.values()].map(({ weight: _, ...edge }) => edge).sort((a, b) => b.rate - a.rate || (a.from + a.to < b.from + b.to ? -1 : 1));
  return drawn([...nodes.values()], sums);
}

/** The nodes of the busiest edges, up to the limit. */
function drawn(nodes: GraphNode[], edges: GraphEdge[]): Graph {
  const kept = new Set<string>();
  for (const { from, to } of edges) {
    if (new Set([...kept, from, to]).size > NODES_MAX) continue;
    kept.add(from);
    kept.add(to);
  }
  const called = new Set(edges.flatMap((edge) => [edge.from, edge.to]));
  return {
    nodes: nodes.filter((node) => kept.has(node.id)).sort(byId),
    edges: edges.filter((edge) => kept.has(edge.from) && kept.has(edge.to)),
    quiet: nodes.filter((node) => !called.has(node.id)).sort(byId),
    left: called.size - kept.size,
  };
}

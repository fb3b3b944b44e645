/** Services and their endpoints as rows. */
import { keyOf, type Obj, type Open } from "./kube";
import type { Tone } from "./pod";

export interface Endpoint {
  address: string;
  pod: string;
  node: string;
  ready: boolean;
  terminating: boolean;
}

export interface ServiceRow {
  key: string;
  uid: string;
  namespace: string;
  name: string;
  type: string;
  addresses: string[];
  ports: string[];
  ready: number;
  state: string;
  tone: Tone;
  created: string;
  search: string;
}

/** Endpoints of slices, without repeats: an address is in one slice for each family of ports. */
export function endpointsOf(slices: Obj[]): Endpoint[] {
  const found = new Map<string, Endpoint>();
  for (const slice of slices) {
    for (const each of (slice.endpoints ?? []) as Open[]) {
      const address: string = each.addresses?.[0] ?? "";
      const pod: string = each.targetRef?.kind === "Pod" ? each.targetRef.name : "";
      // A condition that isn't set is true for `ready`, and false for `terminating`.
      found.set(`${address} ${pod}`, { address, pod, node: each.nodeName ?? "", ready: each.conditions?.ready !== false, terminating: each.conditions?.terminating === true });
    }
  }
  return [...found.values()].sort((a, b) => (a.pod + a.address < b.pod + b.address ? -1 : 1));
}

function stateOf(service: Obj, ready: number, all: number): [string, Tone] {
  if (service.spec?.type === "ExternalName") return ["External name", "idle"];
  const pending = service.spec?.type === "LoadBalancer" && !(service.status?.loadBalancer?.ingress ?? []).length;
  if (pending) return ["No address yet", "busy"];
  if (ready > 0) return [`${ready} ready`, ready < all ? "busy" : "good"];
  if (!service.spec?.selector && all === 0) return ["No endpoints", "idle"];
  return [all > 0 ? "None ready" : "No endpoints", "bad"];
}

export function serviceRow(service: Obj, slices: Obj[]): ServiceRow {
  const { name, namespace = "", uid, creationTimestamp = "" } = service.metadata;
  const own = slices.filter((slice) => slice.metadata.namespace === namespace && slice.metadata.labels?.["kubernetes.io/service-name"] === name);
  const endpoints = endpointsOf(own);
  const ready = endpoints.filter((each) => each.ready).length;
  const [state, tone] = stateOf(service, ready, endpoints.length);
  const { spec = {}, status = {} } = service;
  const balanced = ((status.loadBalancer?.ingress ?? []) as Open[]).map((each) => each.ip ?? each.hostname);
  const cluster: string[] = (spec.clusterIPs ?? [spec.clusterIP]).filter((each: string | undefined) => each && each !== "None");
  const addresses: string[] = [...balanced, ...(spec.externalIPs ?? []), ...(spec.type === "ExternalName" ? [spec.externalName] : []), ...cluster];
  const ports = ((spec.ports ?? []) as Open[]).map((port) => `${port.port}${port.nodePort ? `:${port.nodePort}` : ""}${port.protocol && port.protocol !== "TCP" ? `/${port.protocol}` : ""}`);
  const type = spec.clusterIP === "None" ? "Headless" : (spec.type ?? "ClusterIP");
  return {
    key: keyOf(namespace, name), uid, namespace, name, type, addresses, ports, ready, state, tone, created: creationTimestamp,
    search: `${namespace}/${name} ${type} ${state} ${addresses.join(" ")} ${ports.join(" ")}`.toLowerCase(),
  };
}

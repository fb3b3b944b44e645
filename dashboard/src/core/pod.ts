/** Rows of pods: the status as `kubectl get pods` computes it (upstream's `printPod`), and little else, so that thousands fit. */
import { controllerOf, keyOf, type Obj, type Open, type OwnerReference } from "./kube";

export type Tone = "good" | "busy" | "bad" | "idle";

export interface PodRow {
  key: string;
  uid: string;
  namespace: string;
  name: string;
  status: string;
  tone: Tone;
  ready: number;
  containers: number;
  restarts: number;
  node: string;
  ip: string;
  created: string;
  labels: Record<string, string>;
  owner?: OwnerReference;
  /** Why the pod isn't running, in the words of its status; empty for a healthy pod. */
  message: string;
  /** Lower case, for the filter. */
  search: string;
}

const condition = (pod: Obj, type: string): Open => (pod.status?.conditions as Open[] | undefined)?.find((each) => each.type === type);

interface Counted {
  reason: string;
  restarts: number;
  ready: number;
  containers: number;
}

const isSidecar = (container: Open): boolean => container?.restartPolicy === "Always";

/** Init containers, in order, up to the first one that hasn't finished. */
function initProgress(pod: Obj, counted: Counted): { initializing: boolean; sidecarRestarts: number } {
  const specs = new Map<string, Open>(((pod.spec?.initContainers ?? []) as Open[]).map((each) => [each.name, each]));
  let sidecarRestarts = 0;
  const statuses: Open[] = pod.status?.initContainerStatuses ?? [];
  for (const [index, status] of statuses.entries()) {
    const sidecar = isSidecar(specs.get(status.name));
    counted.restarts += status.restartCount ?? 0;
    if (sidecar) sidecarRestarts += status.restartCount ?? 0;
    const { terminated, waiting } = status.state ?? {};
    if (terminated && (terminated.exitCode ?? 0) === 0) continue;
    if (sidecar && status.started) {
      if (status.ready) counted.ready += 1;
      continue;
    }
    if (terminated) counted.reason = `Init:${terminated.reason || (terminated.signal ? `Signal:${terminated.signal}` : `ExitCode:${terminated.exitCode}`)}`;
    else if (waiting?.reason && waiting.reason !== "PodInitializing") counted.reason = `Init:${waiting.reason}`;
    else counted.reason = `Init:${index}/${specs.size}`;
    return { initializing: true, sidecarRestarts };
  }
  return { initializing: false, sidecarRestarts };
}

function containerProgress(pod: Obj, counted: Counted): void {
  let running = false;
  for (const status of [...((pod.status?.containerStatuses ?? []) as Open[])].reverse()) {
    counted.restarts += status.restartCount ?? 0;
    const { terminated, waiting } = status.state ?? {};
    if (waiting?.reason) counted.reason = waiting.reason;
    else if (terminated?.reason) counted.reason = terminated.reason;
    else if (terminated) counted.reason = terminated.signal ? `Signal:${terminated.signal}` : `ExitCode:${terminated.exitCode}`;
    else if (status.ready && status.state?.running) {
      running = true;
      counted.ready += 1;
    }
  }
  if (counted.reason === "Completed" && running) counted.reason = condition(pod, "Ready")?.status === "True" ? "Running" : "NotReady";
}

export function podStatus(pod: Obj): Counted {
  const phase: string = pod.status?.phase ?? "Pending";
  const sidecars = ((pod.spec?.initContainers ?? []) as Open[]).filter(isSidecar).length;
  const counted = { reason: pod.status?.reason || phase, restarts: 0, ready: 0, containers: (pod.spec?.containers ?? []).length + sidecars };
  if (condition(pod, "PodScheduled")?.reason === "SchedulingGated") counted.reason = "SchedulingGated";
  const { initializing, sidecarRestarts } = initProgress(pod, counted);
  if (!initializing || condition(pod, "Initialized")?.status === "True") {
    counted.restarts = sidecarRestarts;
    containerProgress(pod, counted);
  }
  const ended = phase === "Succeeded" || phase === "Failed";
  if (pod.metadata.deletionTimestamp && pod.status?.reason === "NodeLost") counted.reason = "Unknown";
  else if (pod.metadata.deletionTimestamp && !ended) counted.reason = "Terminating";
  return counted;
}

function toneOf(status: string, ready: boolean, restarts: number): Tone {
  if (status === "Completed" || status === "Succeeded") return "idle";
  if (status === "Running") return ready ? "good" : "busy";
  if (["ContainerCreating", "PodInitializing", "Terminating", "SchedulingGated", "NotReady"].includes(status) || /^Init:\d+\/\d+$/.test(status)) return "busy";
  if (status === "Pending") return restarts > 0 ? "bad" : "busy";
  return "bad";
}

/** The first statement of the status about what is wrong. */
function messageOf(pod: Obj): string {
  const scheduled = condition(pod, "PodScheduled");
  if (scheduled?.status === "False" && scheduled.message) return scheduled.message;
  const statuses: Open[] = [...(pod.status?.initContainerStatuses ?? []), ...(pod.status?.containerStatuses ?? [])];
  const waiting = statuses.map((status) => status.state?.waiting).find((state) => state?.message && state.reason !== "ContainerCreating");
  const ended = statuses.map((status) => status.state?.terminated).find((state) => state && state.exitCode !== 0 && (state.message || state.reason));
  return waiting?.message ?? ended?.message ?? ended?.reason ?? pod.status?.message ?? "";
}

const MESSAGE_CHARS_MAX = 400;

export function podRow(pod: Obj): PodRow {
  const { reason, restarts, ready, containers } = podStatus(pod);
  const { name, namespace = "", uid } = pod.metadata;
  const node: string = pod.spec?.nodeName ?? "";
  const ip: string = pod.status?.podIP ?? "";
  const tone = toneOf(reason, ready === containers, restarts);
  const message = tone === "bad" || tone === "busy" ? messageOf(pod).slice(0, MESSAGE_CHARS_MAX) : "";
  // A pod that no node takes is a failure, though kubectl calls it Pending.
  const unschedulable = condition(pod, "PodScheduled")?.reason === "Unschedulable" && reason === "Pending";
  return {
    key: keyOf(namespace, name), uid, namespace, name, status: reason, tone: unschedulable ? "bad" : tone, ready, containers, restarts, node, ip,
    created: pod.metadata.creationTimestamp ?? "", labels: pod.metadata.labels ?? {}, owner: controllerOf(pod.metadata), message,
    search: `${namespace}/${name} ${reason} ${node} ${ip}`.toLowerCase(),
  };
}

/** The workload that a pod belongs to. A ReplicaSet's name is its Deployment's and the hash of the template. */
export function workloadOf(row: Pick<PodRow, "owner" | "labels">): { kind: string; name: string } | undefined {
  if (!row.owner) return undefined;
  const hash = row.labels["pod-template-hash"];
  const { kind, name } = row.owner;
  if (kind === "ReplicaSet" && hash && name.endsWith(`-${hash}`)) return { kind: "Deployment", name: name.slice(0, -hash.length - 1) };
  return { kind, name };
}

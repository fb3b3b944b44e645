/** Workloads as rows: how many run, and a word for their state. */
import { controllerOf, keyOf, type Obj, type Open } from "./kube";
import type { Tone } from "./pod";

export interface WorkloadRow {
  key: string;
  uid: string;
  kind: string;
  namespace: string;
  name: string;
  ready: number;
  wanted: number;
  updated: number;
  state: string;
  tone: Tone;
  /** Why, in the words of its conditions. */
  message: string;
  images: string[];
  created: string;
  search: string;
}

interface Progress {
  ready: number;
  wanted: number;
  updated: number;
  state: string;
  tone: Tone;
  message?: string;
}

const condition = (object: Obj, type: string): Open => ((object.status?.conditions ?? []) as Open[]).find((each) => each.type === type);

/** The words of replicas in a rollout. */
function rollout(ready: number, wanted: number, updated: number, seen: boolean): Pick<Progress, "state" | "tone"> {
  if (!seen) return { state: "Change not seen yet", tone: "busy" };
  if (wanted === 0 && ready === 0) return { state: "Scaled to zero", tone: "idle" };
  if (updated < wanted) return { state: `Rolling out, ${updated} of ${wanted} new`, tone: "busy" };
  if (ready < wanted) return { state: ready === 0 ? "Not available" : "Not all ready", tone: ready === 0 ? "bad" : "busy" };
  if (ready > wanted) return { state: "Scaling down", tone: "busy" };
  return { state: "Ready", tone: "good" };
}

function deployment(object: Obj): Progress {
  const { spec, status } = object;
  const [wanted, ready, updated] = [spec?.replicas ?? 1, status?.readyReplicas ?? 0, status?.updatedReplicas ?? 0];
  const counts = { wanted, ready, updated };
  const seen = (status?.observedGeneration ?? 0) >= (object.metadata.generation ?? 0);
  const stuck = condition(object, "Progressing");
  if (stuck?.reason === "ProgressDeadlineExceeded") return { ...counts, state: "Rollout is stuck", tone: "bad", message: stuck.message };
  const failure = condition(object, "ReplicaFailure");
  if (failure?.status === "True") return { ...counts, state: "Pods can't be created", tone: "bad", message: failure.message };
  if (spec?.paused) return { ...counts, state: "Paused", tone: "idle" };
  return { ...counts, ...rollout(ready, wanted, updated, seen) };
}

function statefulSet(object: Obj): Progress {
  const { spec, status } = object;
  const [wanted, ready] = [spec?.replicas ?? 1, status?.readyReplicas ?? 0];
  // Without a change under way upstream leaves updatedReplicas at the current revision's count.
  const settled = status?.currentRevision === status?.updateRevision;
  const updated = settled ? wanted : (status?.updatedReplicas ?? 0);
  const seen = (status?.observedGeneration ?? 0) >= (object.metadata.generation ?? 0);
  return { wanted, ready, updated, ...rollout(ready, wanted, updated, seen) };
}

function daemonSet(object: Obj): Progress {
  const { status } = object;
  const [wanted, ready, updated] = [status?.desiredNumberScheduled ?? 0, status?.numberReady ?? 0, status?.updatedNumberScheduled ?? 0];
  const seen = (status?.observedGeneration ?? 0) >= (object.metadata.generation ?? 0);
  return { wanted, ready, updated, ...rollout(ready, wanted, updated, seen) };
}

function job(object: Obj): Progress {
  const { spec, status } = object;
  const counts = { wanted: spec?.completions ?? 1, ready: status?.succeeded ?? 0, updated: status?.active ?? 0 };
  const failed = condition(object, "Failed");
  if (failed?.status === "True") return { ...counts, state: `Failed: ${failed.reason}`, tone: "bad", message: failed.message };
  if (condition(object, "Complete")?.status === "True") return { ...counts, state: "Complete", tone: "idle" };
  if (spec?.suspend) return { ...counts, state: "Suspended", tone: "idle" };
  return { ...counts, state: status?.active ? `${status.active} running` : "Starting", tone: "busy" };
}

function cronJob(object: Obj): Progress {
  const active = (object.status?.active ?? []).length;
  const counts = { wanted: 0, ready: active, updated: active };
  if (object.spec?.suspend) return { ...counts, state: "Suspended", tone: "idle" };
  return { ...counts, state: active ? `${active} running` : `Waits for ${object.spec?.schedule}`, tone: active ? "busy" : "good" };
}

const BY_KIND: Record<string, (object: Obj) => Progress> = { Deployment: deployment, StatefulSet: statefulSet, DaemonSet: daemonSet, Job: job, CronJob: cronJob };

export function workloadRow(kind: string, object: Obj): WorkloadRow {
  const { name, namespace = "", uid, creationTimestamp = "" } = object.metadata;
  const progress = BY_KIND[kind]!(object);
  const template = kind === "CronJob" ? object.spec?.jobTemplate?.spec?.template : object.spec?.template;
  const images = ((template?.spec?.containers ?? []) as Open[]).map((each) => each.image ?? "");
  return {
    key: `${kind}/${keyOf(namespace, name)}`, uid, kind, namespace, name, message: "", ...progress, images, created: creationTimestamp,
    search: `${kind} ${namespace}/${name} ${progress.state} ${images.join(" ")}`.toLowerCase(),
  };
}

/** A Job of a CronJob is shown on its CronJob's page, unless it fails. */
export const isOwnedJob = (object: Obj): boolean => controllerOf(object.metadata)?.kind === "CronJob";

/** The annotation that `kubectl rollout restart` sets, with the time of the restart (RFC 3339). */
export const restartPatch = (now: string): Open => ({ spec: { template: { metadata: { annotations: { "kubectl.kubernetes.io/restartedAt": now } } } } });

export interface Revision {
  number: number;
  name: string;
  created: string;
  images: string[];
  cause: string;
  current: boolean;
  /** The ReplicaSet or ControllerRevision. */
  source: Obj;
}

const REVISION = "deployment.kubernetes.io/revision";
const CAUSE = "kubernetes.io/change-cause";

const imagesOf = (template: Open): string[] => ((template?.spec?.containers ?? []) as Open[]).map((each) => each.image ?? "");

/** The revisions of a Deployment, newest first: its ReplicaSets. */
export function deploymentRevisions(deployment: Obj, replicaSets: Obj[]): Revision[] {
  const own = replicaSets.filter((set) => controllerOf(set.metadata)?.uid === deployment.metadata.uid);
  const current = deployment.metadata.annotations?.[REVISION];
  const revisions = own.map((source) => {
    const annotations = source.metadata.annotations ?? {};
    return {
      number: Number(annotations[REVISION] ?? 0), name: source.metadata.name, created: source.metadata.creationTimestamp ?? "",
      images: imagesOf(source.spec?.template), cause: annotations[CAUSE] ?? "", current: annotations[REVISION] === current, source,
    };
  });
  return revisions.filter((each) => each.number > 0).sort((a, b) => b.number - a.number);
}

/** The revisions of a StatefulSet or DaemonSet, newest first. */
export function controllerRevisions(workload: Obj, revisions: Obj[]): Revision[] {
  const own = revisions.filter((each) => controllerOf(each.metadata)?.uid === workload.metadata.uid).sort((a, b) => b.revision - a.revision);
  const updated: string | undefined = workload.status?.updateRevision;
  return own.map((source, n) => ({
    number: source.revision, name: source.metadata.name, created: source.metadata.creationTimestamp ?? "", images: imagesOf(source.data?.spec?.template),
    cause: source.metadata.annotations?.[CAUSE] ?? "", current: updated ? source.metadata.name === updated : n === 0, source,
  }));
}

/** Annotations of a ReplicaSet that `kubectl rollout undo` doesn't take back to the Deployment. */
const KEPT = [
  "kubectl.kubernetes.io/last-applied-configuration", REVISION, "deployment.kubernetes.io/revision-history",
  "deployment.kubernetes.io/desired-replicas", "deployment.kubernetes.io/max-replicas", "deprecated.deployment.rollback.to",
];

/** The patch of `kubectl rollout undo`. `workload` is as the API has it now: with all of its annotations. */
export function undoPatch(workload: Obj, { source }: Revision): { contentType: string; body: Open } {
  // A ControllerRevision's data is the patch.
  if (source.data) return { contentType: "application/strategic-merge-patch+json", body: source.data };
  const { "pod-template-hash": _, ...labels } = source.spec?.template?.metadata?.labels ?? {};
  const template = { ...source.spec?.template, metadata: { ...source.spec?.template?.metadata, labels } };
  const kept = Object.entries(workload.metadata.annotations ?? {}).filter(([key]) => KEPT.includes(key));
  const back = Object.entries(source.metadata.annotations ?? {}).filter(([key]) => !KEPT.includes(key));
  const annotations = Object.fromEntries([...kept, ...back]);
  const body = [
    { op: "replace", path: "/spec/template", value: template },
    // `add` replaces a member that exists (RFC 6902, 4.1).
    { op: "add", path: "/metadata/annotations", value: annotations },
  ];
  return { contentType: "application/json-patch+json", body };
}

/** Reasons of containers and pods, explained in a sentence that says what to do next. */
import type { Obj, Open } from "./kube";

const WAITING: Record<string, string> = {
  ContainerCreating: "The node prepares the container: it pulls the image, compiles the module and mounts the volumes.",
  PodInitializing: "The container waits for the init containers.",
  CrashLoopBackOff: "The container ended several times. The node waits before the next start, up to 5 minutes. Its last end and the previous log say why.",
  ErrImagePull: "The image could not be pulled. Check its name and tag, and that the registry is reachable.",
  ImagePullBackOff: "The image could not be pulled, and the node waits before it tries again. Check its name and tag, and the pull secret.",
  ErrImageNeverPull: "The image is not on the node, and imagePullPolicy is Never. Push the image, or change the policy.",
  InvalidImageName: "The image's name is not valid.",
  RegistryUnavailable: "The registry did not answer.",
  SignatureValidationFailed: "The image has no signature that the node's policy accepts.",
  ImageInspectError: "The pulled image could not be read: it may not be a WebAssembly module.",
  CreateContainerConfigError: "A ConfigMap, a Secret or one of its keys that the container needs is missing.",
  CreateContainerError: "The container could not be created.",
  RunContainerError: "The container could not be started.",
  PostStartHookError: "The postStart hook failed, so the container was stopped.",
  Unsupported: "The pod has a field that this cluster does not act on, so the node does not run it.",
};

const TERMINATED: Record<string, string> = {
  Completed: "The container ended by itself, without an error.",
  FuelExhausted: "The guest used the whole fuel of its run and was stopped. Raise the annotation fuel.coracle.dev/CONTAINER, or look for an endless loop.",
  OOMKilled: "The guest needed more memory than its limit and was stopped. Raise resources.limits.memory.",
  DeadlineExceeded: "The time limit was reached, so it was stopped. Raise activeDeadlineSeconds or the timeout.",
  ContainerStatusUnknown: "The node was lost or restarted, and no one knows how the container ended.",
  ContainerCannotRun: "The container could not run.",
  StartError: "The container could not be started.",
  ResourceExhausted: "The node had no resources left for the container.",
  Evicted: "The node needed the resources and evicted the pod.",
};

const POD: Record<string, string> = {
  Unschedulable: "No node takes the pod.",
  SchedulingGated: "A scheduling gate holds the pod back until its owner removes the gate.",
  Evicted: "The node needed the resources and evicted the pod.",
  NodeLost: "The node is not reachable.",
  Preempting: "The pod was removed for a pod of a higher priority.",
  DeadlineExceeded: "activeDeadlineSeconds is over, so the pod was stopped.",
  Shutdown: "The node shut down.",
};

const SIGNALS: Record<number, string> = { 1: "HUP", 2: "INT", 4: "ILL", 6: "ABRT", 8: "FPE", 9: "KILL", 11: "SEGV", 13: "PIPE", 15: "TERM" };
/** A trap ends a guest as SIGABRT ends a process. */
const TRAP_EXIT_CODE = 134;

/** The end of a container, from its `terminated` state. */
export function explainEnd(end: Open): string {
  const reason: string = end?.reason ?? "";
  const code: number = end?.exitCode ?? 0;
  if (TERMINATED[reason]) return TERMINATED[reason];
  if (code === TRAP_EXIT_CODE) return "The guest trapped: it reached an unreachable instruction, accessed memory out of bounds or panicked. The log ends with the backtrace.";
  if (code === 137) return "The container did not end in its grace period and was killed.";
  if (code === 143) return "The container was asked to end (SIGTERM), and ended.";
  if (code > 128) return `The container ended by signal ${SIGNALS[code - 128] ?? code - 128}.`;
  if (code !== 0) return `The program ended with exit code ${code}. Its log says why.`;
  return "The container ended by itself, without an error.";
}

export const explainWait = (waiting: Open): string => WAITING[waiting?.reason ?? ""] ?? "The container waits.";

/** What keeps the pod as a whole from running; undefined if nothing does. */
export function explainPod(pod: Obj): { reason: string; sentence: string; message: string } | undefined {
  const conditions: Open[] = pod.status?.conditions ?? [];
  const scheduled = conditions.find((each) => each.type === "PodScheduled" && each.status === "False");
  if (scheduled) return { reason: scheduled.reason, sentence: POD[scheduled.reason] ?? "The pod has no node yet.", message: scheduled.message ?? "" };
  const reason: string = pod.status?.reason ?? "";
  if (reason) return { reason, sentence: POD[reason] ?? WAITING[reason] ?? TERMINATED[reason] ?? "", message: pod.status?.message ?? "" };
  return undefined;
}

const EXPLAINED: Record<string, string> = { ...POD, ...TERMINATED, ...WAITING };
/** A status of the pods' list in a sentence, or nothing. */
export const explainStatus = (status: string): string => EXPLAINED[status.replace(/^Init:/, "")] ?? "";

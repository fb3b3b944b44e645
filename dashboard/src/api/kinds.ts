/** The kinds that the page lists: where the API serves them. */
import { trimmed, type Obj } from "../core/kube";
import { podRow, type PodRow } from "../core/pod";
import { useList, type View } from "./reflector";

export interface Kind {
  kind: string;
  /** The API's group and version as a path. */
  base: string;
  group: string;
  plural: string;
  namespaced: boolean;
}

const core = (kind: string, plural: string, namespaced = true): Kind => ({ kind, base: "/api/v1", group: "", plural, namespaced });
const of = (group: string, version: string, kind: string, plural: string): Kind => ({ kind, base: `/apis/${group}/${version}`, group, plural, namespaced: true });

export const PODS = core("Pod", "pods");
export const NODES = core("Node", "nodes", false);
export const NAMESPACES = core("Namespace", "namespaces", false);
export const SERVICES = core("Service", "services");
export const EVENTS = core("Event", "events");
export const DEPLOYMENTS = of("apps", "v1", "Deployment", "deployments");
export const STATEFULSETS = of("apps", "v1", "StatefulSet", "statefulsets");
export const DAEMONSETS = of("apps", "v1", "DaemonSet", "daemonsets");
export const REPLICASETS = of("apps", "v1", "ReplicaSet", "replicasets");
export const REVISIONS = of("apps", "v1", "ControllerRevision", "controllerrevisions");
export const JOBS = of("batch", "v1", "Job", "jobs");
export const CRONJOBS = of("batch", "v1", "CronJob", "cronjobs");
export const AUTOSCALERS = of("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers");
export const SLICES = of("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices");

const WORKLOADS = [DEPLOYMENTS, STATEFULSETS, DAEMONSETS, JOBS, CRONJOBS];
export const workloadKind = (name: string): Kind | undefined => WORKLOADS.find((each) => each.kind === name);

/** The path of a list, or of one object. Without a namespace the list is of all namespaces. */
export function pathOf(kind: Kind, namespace: string, name?: string): string {
  const within = kind.namespaced && namespace ? `/namespaces/${encodeURIComponent(namespace)}` : "";
  return `${kind.base}${within}/${kind.plural}${name ? `/${encodeURIComponent(name)}` : ""}`;
}

export const usePods = (namespace: string): View<PodRow> => useList(pathOf(PODS, namespace), "", podRow);
export const useObjects = (kind: Kind, namespace: string, query = ""): View<Obj> => useList(pathOf(kind, namespace), query, trimmed);

/** One object, watched; not found is an empty list. */
export function useObject(kind: Kind | undefined, namespace: string, name: string): View<Obj> {
  return useList(kind && pathOf(kind, namespace), `fieldSelector=${encodeURIComponent(`metadata.name=${name}`)}`, trimmed);
}

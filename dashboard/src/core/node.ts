/** Nodes as rows. */
import type { Obj, Open } from "./kube";
import type { Tone } from "./pod";
import { quantity } from "./quantity";

export interface NodeRow {
  name: string;
  uid: string;
  state: string;
  tone: Tone;
  message: string;
  roles: string;
  version: string;
  address: string;
  /** Allocatable. */
  cpu: number;
  memory: number;
  pods: number;
  created: string;
  search: string;
}

const ROLE = "node-role.kubernetes.io/";

export function nodeRow(node: Obj): NodeRow {
  const { name, uid, labels = {}, creationTimestamp = "" } = node.metadata;
  const conditions: Open[] = node.status?.conditions ?? [];
  const ready = conditions.find((each) => each.type === "Ready");
  const pressure = conditions.filter((each) => each.type !== "Ready" && each.status === "True").map((each) => each.type);
  const words = [ready?.status === "True" ? "Ready" : ready?.status === "False" ? "Not ready" : "Lost", ...(node.spec?.unschedulable ? ["cordoned"] : []), ...pressure];
  const tone: Tone = ready?.status !== "True" ? "bad" : pressure.length ? "bad" : node.spec?.unschedulable ? "busy" : "good";
  const room = node.status?.allocatable ?? {};
  const addresses: Open[] = node.status?.addresses ?? [];
  const row = {
    name, uid, state: words.join(", "), tone, message: tone === "good" ? "" : (ready?.message ?? ""),
    roles: Object.keys(labels).filter((key) => key.startsWith(ROLE)).map((key) => key.slice(ROLE.length)).join(", "),
    version: node.status?.nodeInfo?.kubeletVersion ?? "", address: addresses.find((each) => each.type === "InternalIP")?.address ?? "",
    cpu: quantity(room.cpu) ?? 0, memory: quantity(room.memory) ?? 0, pods: quantity(room.pods) ?? 0, created: creationTimestamp,
  };
  return { ...row, search: `${name} ${row.state} ${row.roles} ${row.version} ${row.address}`.toLowerCase() };
}

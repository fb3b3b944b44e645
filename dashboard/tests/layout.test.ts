import assert from "node:assert/strict";
import { test } from "node:test";
import { graph } from "../src/core/graph";
import type { Obj } from "../src/core/kube";
import { curve, layout, type Sizes } from "../src/core/layout";
import { podRow } from "../src/core/pod";
import { serviceRow } from "../src/core/service";

const SIZES: Sizes = { nodeWidth: 100, nodeHeight: 40, layerGap: 60, rowGap: 20 };
const edge = (text: string) => { const [from, to] = text.split(">"); return { from: from!, to: to! }; };
const drawn = (ids: string, edges: string) => layout(ids.split(""), edges.split(" ").filter(Boolean).map(edge), SIZES);

test("callers are left of what they call", () => {
  const { nodes, width, height, edges } = drawn("abcd", "a>b a>c b>d c>d a>d");
  const x = (id: string) => nodes.get(id)!.x;
  assert.deepEqual(["a", "b", "c", "d"].map(x), [0, 160, 160, 320]);
  assert.equal(width, 420);
  assert.ok(height >= 100);
  assert.equal(edges[4]!.length, 4, "the long edge passes its layer at a place of its own");
  const boxes = ["b", "c"].map((id) => nodes.get(id)!.y);
  for (const y of boxes) assert.ok(edges[4]![1]!.y <= y || edges[4]![1]!.y >= y + SIZES.nodeHeight, "no line crosses a node");
});

test("nodes of a layer don't overlap, and the picture is the same each time", () => {
  const ids = "abcdefghij";
  const edges = "a>b a>c a>d b>e c>f d>g e>h f>h g>i a>j";
  const { nodes } = drawn(ids, edges);
  const places = [...nodes.values()];
  for (const [n, a] of places.entries()) for (const b of places.slice(n + 1)) assert.ok(a.x !== b.x || Math.abs(a.y - b.y) >= SIZES.nodeHeight);
  assert.deepEqual(drawn(ids, edges), drawn(ids, edges));
});

test("cycles and calls to oneself end", () => {
  const { nodes, edges } = drawn("abc", "a>b b>c c>a b>b");
  assert.equal(nodes.size, 3);
  assert.deepEqual(edges.map((each) => each.length > 1), [true, true, true, true]);
  assert.deepEqual(drawn("", ""), { nodes: new Map(), edges: [], width: 0, height: 0 });
  assert.deepEqual(drawn("a", "a>x").edges, [[]], "an edge to an unknown node is left out");
  const long = Array.from({ length: 300 }, (_, n) => `n${n}`);
  assert.equal(layout(long, long.slice(1).map((to, n) => ({ from: long[n]!, to })), SIZES).nodes.get("n299")!.x, 299 * 160);
});

test("lines", () => {
  assert.equal(curve([]), "");
  assert.equal(curve([{ x: 0, y: 5 }, { x: 10, y: 5 }]), "M0 5L10 5");
  assert.equal(curve([{ x: 0, y: 0 }, { x: 10, y: 20 }]), "M0 0C5 0 5 20 10 20");
  assert.equal(curve([{ x: 10, y: 0 }, { x: 0, y: 0 }]), "M10 0C70 0 -60 0 0 0");
});

const service = (name: string): Obj => ({ metadata: { name, namespace: "shop", uid: name }, spec: { selector: { app: name } } });
const pod = (name: string, labels: Record<string, string>, owner?: { kind: string; name: string }) =>
  podRow({ metadata: { name, namespace: "shop", uid: name, labels, ownerReferences: owner && [{ ...owner, uid: "o", controller: true }] }, spec: { containers: [] }, status: {} });

test("callers are Services, workloads or the outside", () => {
  const pods = [pod("front-1", { app: "front" }), pod("front-2", { app: "front" }), pod("job-1", {}, { kind: "Job", name: "job" })];
  const from = (name: string) => ({ namespace: "shop", pod: name });
  const call = (name: string, rate: number, caller?: { namespace: string; pod: string }, p50?: number, errors?: number) => ({ namespace: "shop", service: name, rate, caller, p50, errors });
  const found = graph([call("users", 3, from("front-1"), 0.001, 1), call("users", 1, from("front-2"), 0.005, 0), call("users", 1, from("job-1")), call("front", 9), call("users", 1, from("gone"))], pods, [service("users"), service("front"), service("idle")], new Map([["shop/users", { requests: 6 }]]));
  assert.deepEqual(found.edges.map((each) => [each.from, each.to, each.rate]), [
    ["outside", "service/shop/front", 9], ["service/shop/front", "service/shop/users", 4], ["Job/shop/job", "service/shop/users", 1], ["pod/shop/gone", "service/shop/users", 1],
  ]);
  assert.deepEqual([found.edges[1]!.p50, found.edges[1]!.errors], [0.002, 1]);
  assert.deepEqual(found.quiet.map((each) => each.title), ["idle"]);
  const rates = Object.fromEntries(found.nodes.map((each) => [each.id, each.rate]));
  assert.deepEqual([rates["service/shop/users"], rates["service/shop/front"], rates.outside], [6, 9, undefined]);
});

test("a picture is bounded", () => {
  const calls = Array.from({ length: 200 }, (_, n) => ({ namespace: "shop", service: `s${n}`, rate: n + 1 }));
  const found = graph(calls, [], [], undefined);
  assert.equal(found.nodes.length, 60);
  assert.equal(found.left, 141);
  assert.equal(found.edges[0]!.rate, 200);
});

test("states of Services", () => {
  const slice = (ready: boolean): Obj => ({ metadata: { name: "x", namespace: "shop", uid: "x", labels: { "kubernetes.io/service-name": "users" } }, endpoints: [{ addresses: ["10.0.0.1"], conditions: { ready } }, { addresses: ["10.0.0.2"], conditions: {} }] });
  const row = (given: Obj, slices: Obj[]) => { const found = serviceRow(given, slices); return [found.state, found.tone]; };
  assert.deepEqual(row(service("users"), [slice(true)]), ["2 ready", "good"]);
  assert.deepEqual(row(service("users"), [slice(false)]), ["1 ready", "busy"]);
  assert.deepEqual(row(service("users"), []), ["No endpoints", "bad"]);
  assert.deepEqual(row({ ...service("users"), spec: { type: "ExternalName", externalName: "a.example" } }, []), ["External name", "idle"]);
  assert.deepEqual(row({ ...service("users"), spec: { ...service("users").spec, type: "LoadBalancer" } }, [slice(true)]), ["No address yet", "busy"]);
});

import assert from "node:assert/strict";
import { test } from "node:test";
import { selectorText, selects, trimmed, type Obj, type Open } from "../src/core/kube";
import { controllerRevisions, deploymentRevisions, undoPatch, workloadRow } from "../src/core/workload";

const object = (spec: Open, status: Open, meta: Open = {}): Obj => ({ metadata: { name: "w", namespace: "n", uid: "u", generation: 2, ...meta }, spec, status });
const state = (kind: string, given: Obj) => { const row = workloadRow(kind, given); return [row.state, row.tone, `${row.ready}/${row.wanted}`]; };

test("states of workloads", () => {
  const seen = { observedGeneration: 2 };
  const cases: [string, Obj, string[]][] = [
    ["Deployment", object({ replicas: 2 }, { ...seen, readyReplicas: 2, updatedReplicas: 2 }), ["Ready", "good", "2/2"]],
    ["Deployment", object({ replicas: 2 }, { ...seen, readyReplicas: 2, updatedReplicas: 1 }), ["Rolling out, 1 of 2 new", "busy", "2/2"]],
    ["Deployment", object({ replicas: 2 }, { observedGeneration: 1, readyReplicas: 2, updatedReplicas: 2 }), ["Change not seen yet", "busy", "2/2"]],
    ["Deployment", object({ replicas: 2 }, { ...seen, readyReplicas: 0, updatedReplicas: 2 }), ["Not available", "bad", "0/2"]],
    ["Deployment", object({ replicas: 2 }, { ...seen, readyReplicas: 1, updatedReplicas: 2 }), ["Not all ready", "busy", "1/2"]],
    ["Deployment", object({ replicas: 0 }, seen), ["Scaled to zero", "idle", "0/0"]],
    ["Deployment", object({ replicas: 1, paused: true }, seen), ["Paused", "idle", "0/1"]],
    ["Deployment", object({ replicas: 1 }, { ...seen, conditions: [{ type: "Progressing", reason: "ProgressDeadlineExceeded" }] }), ["Rollout is stuck", "bad", "0/1"]],
    ["Deployment", object({ replicas: 1 }, { ...seen, conditions: [{ type: "ReplicaFailure", status: "True", message: "quota" }] }), ["Pods can't be created", "bad", "0/1"]],
    ["StatefulSet", object({ replicas: 3 }, { ...seen, readyReplicas: 3, currentRevision: "a", updateRevision: "a" }), ["Ready", "good", "3/3"]],
    ["StatefulSet", object({ replicas: 3 }, { ...seen, readyReplicas: 3, updatedReplicas: 1, currentRevision: "a", updateRevision: "b" }), ["Rolling out, 1 of 3 new", "busy", "3/3"]],
    ["DaemonSet", object({}, { ...seen, desiredNumberScheduled: 2, numberReady: 1, updatedNumberScheduled: 2 }), ["Not all ready", "busy", "1/2"]],
    ["Job", object({ completions: 2 }, { succeeded: 2, conditions: [{ type: "Complete", status: "True" }] }), ["Complete", "idle", "2/2"]],
    ["Job", object({}, { conditions: [{ type: "Failed", status: "True", reason: "BackoffLimitExceeded" }] }), ["Failed: BackoffLimitExceeded", "bad", "0/1"]],
    ["Job", object({}, { active: 1 }), ["1 running", "busy", "0/1"]],
    ["CronJob", object({ schedule: "0 2 * * *" }, {}), ["Waits for 0 2 * * *", "good", "0/0"]],
    ["CronJob", object({ suspend: true }, {}), ["Suspended", "idle", "0/0"]],
  ];
  for (const [kind, given, wanted] of cases) assert.deepEqual(state(kind, given), wanted, kind);
});

const set = (revision: string, owner: string, image: string): Obj => ({
  metadata: { name: `w-${revision}`, uid: `r${revision}`, ownerReferences: [{ kind: "Deployment", name: "w", uid: owner, controller: true }], annotations: { "deployment.kubernetes.io/revision": revision, "deployment.kubernetes.io/max-replicas": "3", note: `of ${revision}` } },
  spec: { template: { metadata: { labels: { app: "w", "pod-template-hash": "5d9" } }, spec: { containers: [{ name: "w", image }] } } },
});

test("an undo of a Deployment is kubectl's", () => {
  const deployment = object({}, {}, { annotations: { "deployment.kubernetes.io/revision": "10", "kubectl.kubernetes.io/last-applied-configuration": "{}", note: "new" } });
  const revisions = deploymentRevisions(deployment, [set("9", "u", "w:v1"), set("10", "u", "w:v2"), set("3", "other", "x")]);
  assert.deepEqual(revisions.map((each) => [each.number, each.current, each.images]), [[10, true, ["w:v2"]], [9, false, ["w:v1"]]]);
  const { contentType, body } = undoPatch(deployment, revisions[1]!);
  assert.equal(contentType, "application/json-patch+json");
  assert.deepEqual(body, [
    { op: "replace", path: "/spec/template", value: { metadata: { labels: { app: "w" } }, spec: { containers: [{ name: "w", image: "w:v1" }] } } },
    { op: "add", path: "/metadata/annotations", value: { "deployment.kubernetes.io/revision": "10", "kubectl.kubernetes.io/last-applied-configuration": "{}", note: "of 9" } },
  ]);
});

test("an undo of a StatefulSet is its revision's data", () => {
  const owned = (revision: number): Obj => ({ metadata: { name: `w-${revision}`, uid: `c${revision}`, ownerReferences: [{ kind: "StatefulSet", name: "w", uid: "u", controller: true }] }, revision, data: { spec: { template: { $patch: "replace", spec: { containers: [{ image: `w:v${revision}` }] } } } } });
  const workload = object({}, { updateRevision: "w-2" });
  const revisions = controllerRevisions(workload, [owned(1), owned(2)]);
  assert.deepEqual(revisions.map((each) => [each.number, each.current, each.images]), [[2, true, ["w:v2"]], [1, false, ["w:v1"]]]);
  assert.deepEqual(undoPatch(workload, revisions[1]!), { contentType: "application/strategic-merge-patch+json", body: owned(1).data });
});

test("selectors", () => {
  const selector = { matchLabels: { app: "w" }, matchExpressions: [{ key: "tier", operator: "In", values: ["a", "b"] }, { key: "old", operator: "DoesNotExist" }] };
  assert.equal(selectorText(selector), "app=w,tier in (a,b),!old");
  assert.equal(selects(selector, { app: "w", tier: "b" }), true);
  assert.equal(selects(selector, { app: "w", tier: "b", old: "" }), false);
  assert.equal(selects({}, { app: "w" }), false);
  assert.equal(selects({ matchExpressions: [{ key: "a", operator: "Exists" }, { key: "b", operator: "NotIn", values: ["x"] }] }, { a: "1" }), true);
});

test("objects lose what is never shown", () => {
  const given = { metadata: { name: "a", uid: "u", managedFields: [1], annotations: { "kubectl.kubernetes.io/last-applied-configuration": "{}", b: "c" } } };
  assert.deepEqual(trimmed(given as unknown as Obj), { metadata: { name: "a", uid: "u", annotations: { b: "c" } } });
});

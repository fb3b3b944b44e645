import assert from "node:assert/strict";
import { test } from "node:test";
import type { Obj, Open } from "../src/core/kube";
import { podRow, podStatus, workloadOf } from "../src/core/pod";
import { explainEnd, explainPod, explainStatus, explainWait } from "../src/core/reasons";

const pod = (status: Open, spec: Open = { containers: [{ name: "a" }] }, meta: Open = {}): Obj => ({ metadata: { name: "p", namespace: "n", uid: "u", ...meta }, spec, status });
const running = { name: "a", ready: true, restartCount: 0, state: { running: {} } };
const ended = (exitCode: number, reason?: string, signal?: number) => ({ name: "a", ready: false, restartCount: 2, state: { terminated: { exitCode, reason, signal } } });
const init = (state: Open, more: Open = {}) => ({ name: "i", restartCount: 1, state, ...more });
const withInit = { initContainers: [{ name: "i" }], containers: [{ name: "a" }] };
const withSidecar = { initContainers: [{ name: "i", restartPolicy: "Always" }], containers: [{ name: "a" }] };

test("the status of kubectl get pods", () => {
  const cases: [string, Obj, string, string, number][] = [
    ["running", pod({ phase: "Running", containerStatuses: [running] }), "Running", "1/1", 0],
    ["no status yet", pod({}), "Pending", "0/1", 0],
    ["waiting", pod({ phase: "Pending", containerStatuses: [{ name: "a", restartCount: 3, state: { waiting: { reason: "CrashLoopBackOff" } } }] }), "CrashLoopBackOff", "0/1", 3],
    ["ended", pod({ phase: "Failed", containerStatuses: [ended(1, "FuelExhausted")] }), "FuelExhausted", "0/1", 2],
    ["ended without a reason", pod({ phase: "Failed", containerStatuses: [ended(3)] }), "ExitCode:3", "0/1", 2],
    ["ended by a signal", pod({ phase: "Failed", containerStatuses: [ended(137, undefined, 9)] }), "Signal:9", "0/1", 2],
    ["evicted", pod({ phase: "Failed", reason: "Evicted" }), "Evicted", "0/1", 0],
    ["gated", pod({ phase: "Pending", conditions: [{ type: "PodScheduled", reason: "SchedulingGated" }] }), "SchedulingGated", "0/1", 0],
    ["init waits", pod({ phase: "Pending", initContainerStatuses: [init({ running: {} })], containerStatuses: [{ name: "a", state: { waiting: { reason: "PodInitializing" } } }] }, withInit), "Init:0/1", "0/1", 1],
    ["init failed", pod({ phase: "Pending", initContainerStatuses: [init({ terminated: { exitCode: 2 } })] }, withInit), "Init:ExitCode:2", "0/1", 1],
    ["init backs off", pod({ phase: "Pending", initContainerStatuses: [init({ waiting: { reason: "CrashLoopBackOff" } })] }, withInit), "Init:CrashLoopBackOff", "0/1", 1],
    ["init done", pod({ phase: "Running", initContainerStatuses: [init({ terminated: { exitCode: 0 } })], containerStatuses: [running] }, withInit), "Running", "1/1", 0],
    ["sidecar", pod({ phase: "Running", initContainerStatuses: [init({ running: {} }, { started: true, ready: true })], containerStatuses: [running] }, withSidecar), "Running", "2/2", 1],
    ["one completed, not ready", pod({ phase: "Running", containerStatuses: [ended(0, "Completed"), { ...running, name: "b" }] }, { containers: [{ name: "a" }, { name: "b" }] }), "NotReady", "1/2", 2],
    ["deleted", pod({ phase: "Running", containerStatuses: [running] }, undefined, { deletionTimestamp: "2026-01-01T00:00:00Z" }), "Terminating", "1/1", 0],
    ["deleted after its end", pod({ phase: "Succeeded", containerStatuses: [ended(0, "Completed")] }, undefined, { deletionTimestamp: "2026-01-01T00:00:00Z" }), "Completed", "0/1", 2],
    ["deleted on a lost node", pod({ phase: "Running", reason: "NodeLost" }, undefined, { deletionTimestamp: "2026-01-01T00:00:00Z" }), "Unknown", "0/1", 0],
  ];
  for (const [what, given, status, ready, restarts] of cases) {
    const row = podStatus(given);
    assert.deepEqual([row.reason, `${row.ready}/${row.containers}`, row.restarts], [status, ready, restarts], what);
  }
});

test("a row says what is wrong", () => {
  const unschedulable = podRow(pod({ phase: "Pending", conditions: [{ type: "PodScheduled", status: "False", reason: "Unschedulable", message: "0/2 nodes" }] }));
  assert.deepEqual([unschedulable.tone, unschedulable.message, unschedulable.status], ["bad", "0/2 nodes", "Pending"]);
  const waiting = podRow(pod({ phase: "Pending", containerStatuses: [{ name: "a", state: { waiting: { reason: "ErrImagePull", message: "not found" } } }] }));
  assert.deepEqual([waiting.tone, waiting.message], ["bad", "not found"]);
  assert.deepEqual([podRow(pod({ phase: "Running", containerStatuses: [running] })).tone, podRow(pod({ phase: "Running", containerStatuses: [{ ...running, ready: false }] })).tone], ["good", "busy"]);
  assert.equal(podRow(pod({ phase: "Pending", containerStatuses: [{ name: "a", state: { waiting: { reason: "X", message: "y".repeat(9000) } } }] })).message.length, 400);
});

test("the workload of a pod", () => {
  const owner = { kind: "ReplicaSet", name: "web-5d9", uid: "r", controller: true };
  assert.deepEqual(workloadOf({ owner, labels: { "pod-template-hash": "5d9" } }), { kind: "Deployment", name: "web" });
  assert.deepEqual(workloadOf({ owner, labels: {} }), { kind: "ReplicaSet", name: "web-5d9" });
  assert.equal(workloadOf({ labels: {} }), undefined);
});

test("reasons in sentences", () => {
  assert.match(explainEnd({ reason: "FuelExhausted", exitCode: 137 }), /fuel/);
  assert.match(explainEnd({ reason: "OOMKilled", exitCode: 137 }), /memory/);
  assert.match(explainEnd({ reason: "Error", exitCode: 134 }), /trapped/);
  assert.match(explainEnd({ reason: "Error", exitCode: 7 }), /exit code 7/);
  assert.match(explainEnd({ reason: "Error", exitCode: 139 }), /SEGV/);
  assert.match(explainEnd({ reason: "Completed", exitCode: 0 }), /without an error/);
  assert.match(explainWait({ reason: "CrashLoopBackOff" }), /several times/);
  assert.equal(explainWait({ reason: "Unheard" }), "The container waits.");
  assert.match(explainStatus("Init:CrashLoopBackOff"), /several times/);
  const found = explainPod(pod({ conditions: [{ type: "PodScheduled", status: "False", reason: "Unschedulable", message: "0/2 nodes" }] }));
  assert.deepEqual(found, { reason: "Unschedulable", sentence: "No node takes the pod.", message: "0/2 nodes" });
  assert.equal(explainPod(pod({ phase: "Running" })), undefined);
});

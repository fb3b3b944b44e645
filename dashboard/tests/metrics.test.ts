import assert from "node:assert/strict";
import { test } from "node:test";
import { addTraffic, calls, combined, nodeUsage, podUsage, type Traffic } from "../src/core/metrics";

const item = (name: string, value: string, matchLabels?: Record<string, string>) => ({ describedObject: { namespace: "shop", name }, metric: { name: "m", selector: matchLabels ? { matchLabels } : null }, value });

test("usage adds up containers", () => {
  const list = { items: [{ metadata: { namespace: "a", name: "p" }, containers: [{ usage: { cpu: "100m", memory: "1Mi" } }, { usage: { cpu: "1", memory: "0" } }] }] };
  assert.deepEqual(podUsage(list).get("a/p"), { cpu: 1.1, memory: 2 ** 20 });
  assert.deepEqual(nodeUsage({ items: [{ metadata: { name: "n" }, usage: { cpu: "2", memory: "1Ki" } }] }).get("n"), { cpu: 2, memory: 1024 });
});

test("traffic of pods, and of several together", () => {
  const samples = new Map<string, Traffic>();
  addTraffic(samples, "http_requests_per_second", { items: [item("a", "3"), item("b", "1"), item("c", "x")] });
  addTraffic(samples, "http_request_duration_p50_seconds", { items: [item("a", "10m"), item("b", "50m")] });
  addTraffic(samples, "http_request_duration_p99_seconds", { items: [item("a", "1"), item("b", "2")] });
  addTraffic(samples, "unknown", { items: [item("a", "1")] });
  assert.deepEqual(samples.get("shop/a"), { requests: 3, p50: 0.01, p99: 1 });
  assert.equal(samples.has("shop/c"), false);
  assert.deepEqual(combined([...samples.values(), undefined]), { requests: 4, errors: undefined, fuel: undefined, p50: 0.02, p99: 2 });
  assert.deepEqual(combined([]), { requests: undefined, errors: undefined, fuel: undefined, p50: undefined, p99: undefined });
});

test("calls are joined by Service and caller", () => {
  const from = { "caller-namespace": "shop", "caller-pod": "front-1" };
  const found = calls([
    ["http_calls_per_second", { items: [item("users", "4", from), item("front", "9")] }],
    ["http_call_errors_per_second", { items: [item("users", "500m", from)] }],
    ["http_call_duration_p50_seconds", { items: [item("users", "2m", from)] }],
    ["other", { items: [item("users", "1")] }],
  ]);
  assert.deepEqual(found, [
    { namespace: "shop", service: "users", caller: { namespace: "shop", pod: "front-1" }, rate: 4, errors: 0.5, p50: 0.002 },
    { namespace: "shop", service: "front", caller: undefined, rate: 9 },
  ]);
});

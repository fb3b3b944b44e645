import assert from "node:assert/strict";
import { test } from "node:test";
import { applyEvent, Lines, retryDelay } from "../src/core/watch";

const object = (uid: string, resourceVersion: string) => ({ metadata: { name: uid, uid, resourceVersion } });
const project = (given: { metadata: { name: string; resourceVersion?: string } }) => given.metadata.resourceVersion;

test("events change the rows", () => {
  const rows = new Map<string, string | undefined>();
  const apply = (type: string, given: unknown) => applyEvent(rows, { type, object: given }, project);
  assert.deepEqual(apply("ADDED", object("a", "1")), { what: "changed", version: "1" });
  assert.deepEqual(apply("MODIFIED", object("a", "2")), { what: "changed", version: "2" });
  assert.deepEqual([...rows], [["a", "2"]]);
  assert.deepEqual(apply("BOOKMARK", object("", "9")), { what: "bookmark", version: "9" });
  assert.deepEqual(apply("DELETED", object("a", "10")), { what: "changed", version: "10" });
  assert.equal(rows.size, 0);
  assert.deepEqual(apply("ERROR", { code: 410, message: "too old" }), { what: "relist" });
  assert.deepEqual(apply("ERROR", { code: 500, message: "no" }), { what: "failed", message: "no" });
  assert.equal(apply("NEW", object("a", "1")).what, "failed");
});

test("lines of a stream", () => {
  const lines = new Lines(10);
  assert.deepEqual(lines.push("a\nb"), ["a"]);
  assert.deepEqual(lines.push("c\n\nd"), ["bc", ""]);
  assert.equal(lines.end(), "d");
  assert.deepEqual(lines.push("0123456789x"), ["0123456789x"]);
  assert.equal(lines.end(), "");
});

test("retries wait longer, up to a limit", () => {
  assert.deepEqual([1, 2, 3, 6, 60].map((n) => retryDelay(n, 0.5)), [1000, 2000, 4000, 30000, 30000]);
  assert.deepEqual([retryDelay(1, 0), retryDelay(1, 1)], [875, 1125]);
});

import assert from "node:assert/strict";
import { test } from "node:test";
import { age, bytes, count, cpu, duration, percent, quantity, rate, span } from "../src/core/quantity";

test("quantities of Kubernetes", () => {
  const cases: [unknown, number | undefined][] = [
    ["1500m", 1.5], ["0", 0], ["12", 12], ["1Ki", 1024], ["1.5Gi", 1.5 * 2 ** 30], ["2k", 2000], ["250n", 250 * 1e-9], ["1e3", 1000], ["1E", 1e18],
    ["-3", -3], [".5", 0.5], [7, 7], ["", undefined], ["1x", undefined], ["Ki", undefined], [null, undefined], ["1 Ki", undefined],
  ];
  for (const [text, wanted] of cases) assert.equal(quantity(text), wanted, String(text));
});

test("figures", () => {
  assert.deepEqual([undefined, 0, 0.0004, 0.036, 1, 2.257, 12.34].map(cpu), ["–", "0", "<1m", "36m", "1", "2.26", "12.3"]);
  assert.deepEqual([undefined, 0, 1023, 1024, 2.5 * 2 ** 20].map(bytes), ["–", "0 B", "1023 B", "1 Ki", "2.5 Mi"]);
  assert.deepEqual([undefined, 0, 0.001, 0.5, 10.84, 1234.5, 2.5e6].map(rate), ["–", "0", "<0.01", "0.5", "10.8", "1\u202f235", "2.5M"]);
  assert.deepEqual([undefined, 0, 0.0000421, 0.0042, 1.5].map(duration), ["–", "0", "42.1 µs", "4.2 ms", "1.5 s"]);
  assert.deepEqual([percent(1, 4), percent(0, 4), percent(1, 0), percent(1, 1e5)], ["25 %", "0 %", "–", "<0.1 %"]);
  assert.equal(count(1234567), "1\u202f234\u202f567");
});

test("ages as kubectl prints them", () => {
  const cases: [number, string][] = [[0, "0s"], [119, "119s"], [120, "2m"], [150, "2m30s"], [600, "10m"], [3600 * 3, "3h"], [3600 * 3 + 60, "3h1m"], [86400 * 2, "2d"], [86400 * 3 + 7200, "3d2h"], [86400 * 30, "30d"], [86400 * 800, "2y"]];
  for (const [seconds, wanted] of cases) assert.equal(span(seconds), wanted);
  assert.equal(age("2026-01-01T00:00:00Z", Date.parse("2026-01-01T00:00:05Z")), "5s");
  assert.equal(age("2026-01-01T00:00:09Z", Date.parse("2026-01-01T00:00:05Z")), "0s");
  assert.equal(age("nonsense", 0), "–");
});

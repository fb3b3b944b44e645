import assert from "node:assert/strict";
import { test } from "node:test";
import { endOf, frame, keyBytes } from "../src/core/keys";
import { LogBuffer, logLine, logQuery } from "../src/core/log";

test("keys of the terminal", () => {
  const plain = { ctrl: false, alt: false, shift: false };
  const cases: [string, Partial<typeof plain>, boolean, string | undefined][] = [
    ["Enter", {}, false, "\r"], ["ArrowUp", {}, false, "\x1b[A"], ["ArrowUp", {}, true, "\x1bOA"], ["ArrowUp", { ctrl: true }, true, "\x1b[1;5A"], ["Delete", {}, false, "\x1b[3~"],
    ["c", { ctrl: true }, false, "\x03"], ["[", { ctrl: true }, false, "\x1b"], ["b", { alt: true }, false, "\x1bb"], ["Tab", {}, false, "\t"], ["Tab", { shift: true }, false, undefined],
    ["a", {}, false, undefined], ["C", { ctrl: true, shift: true }, false, undefined], ["Shift", { shift: true }, false, undefined], ["Backspace", {}, false, "\x7f"], [" ", { ctrl: true }, false, "\0"],
  ];
  for (const [key, modifiers, application, wanted] of cases) assert.equal(keyBytes({ ...plain, ...modifiers, key }, application), wanted, `${key} ${JSON.stringify(modifiers)}`);
});

test("messages of a session", () => {
  assert.deepEqual([...frame(0, "é")], [0, 0xc3, 0xa9]);
  assert.equal(endOf('{"status":"Success"}'), "The session has ended.");
  assert.equal(endOf('{"status":"Failure","message":"m","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}'), "The session has ended with exit code 3.");
  assert.equal(endOf('{"status":"Failure","message":"no such container"}'), "The session has ended: no such container");
});

test("lines of a log", () => {
  assert.deepEqual(logLine("2026-01-01T00:00:00.5Z hello"), { at: "2026-01-01T00:00:00.500000000Z", text: "hello" });
  assert.deepEqual(logLine("2026-01-01T00:00:00Z "), { at: "2026-01-01T00:00:00.000000000Z", text: "" });
  assert.deepEqual(logLine("\u001b[31mred\u001b[0m\r"), { at: "", text: "red" });
  assert.equal(logLine("x".repeat(5000)).text.length, 4001);
});

test("a log keeps its last lines, and a resumed stream repeats none", () => {
  const buffer = new LogBuffer(4);
  const line = (n: number) => logLine(`2026-01-01T00:00:0${n}Z ${n}`);
  buffer.add([1, 2, 3].map(line), false);
  buffer.add([2, 3, 4, 5, 6].map(line), true);
  assert.deepEqual(buffer.lines().map((each) => each.text), ["3", "4", "5", "6"]);
  assert.equal(buffer.dropped, 2);
  assert.equal(buffer.last(), "2026-01-01T00:00:06.000000000Z");
});

test("queries of logs", () => {
  assert.equal(logQuery({ container: "a", previous: false, tail: 500, since: 0 }), "container=a&timestamps=true&follow=true&tailLines=500");
  assert.equal(logQuery({ container: "a", previous: true, tail: 0, since: 60 }), "container=a&timestamps=true&previous=true&sinceSeconds=60");
  assert.equal(logQuery({ container: "a", previous: false, tail: 500, since: 60 }, "2026-01-01T00:00:00Z"), "container=a&timestamps=true&follow=true&sinceTime=2026-01-01T00%3A00%3A00Z");
});

import assert from "node:assert/strict";
import { test } from "node:test";
import { formatRoute, matcher, parseRoute, takeToken } from "../src/core/route";

test("addresses", () => {
  assert.deepEqual(parseRoute(""), { path: ["overview"], namespace: "", filter: "" });
  assert.deepEqual(parseRoute("#/pods/a%2Fb/c?ns=shop&q=web+1"), { path: ["pods", "a/b", "c"], namespace: "shop", filter: "web 1" });
  assert.deepEqual(parseRoute("#/pods/%zz").path, ["pods", "%zz"]);
  for (const [path, namespace, filter] of [[["pods", "a b"], "n", "x&y"], [["map"], "", ""]] as [string[], string, string][])
    assert.deepEqual(parseRoute(formatRoute(path, namespace, filter)), { path, namespace, filter });
});

test("a token is taken out of the address", () => {
  assert.deepEqual(takeToken("#token=ab.c-d"), { token: "ab.c-d", rest: "" });
  assert.deepEqual(takeToken("#/pods?token=x&ns=a"), { token: "x", rest: "#/pods?ns=a" });
  assert.deepEqual(takeToken("#/pods?ns=a&token=x%3D"), { token: "x=", rest: "#/pods?ns=a" });
  assert.equal(takeToken("#/pods?ns=token"), undefined);
  assert.equal(takeToken("#token="), undefined);
});

test("filters", () => {
  const matches = matcher(" Web  RUN ");
  assert.deepEqual(["shop/web running", "web", ""].map(matches), [true, false, false]);
  assert.equal(matcher("")("anything"), true);
});

import assert from "node:assert/strict";
import { test } from "node:test";
import { emptyInput, formOf, functionPath, functionsOf, InputError, typeWords, valueOf } from "../src/core/form";

const only = (name: string, schema: unknown) => ({ type: "object", properties: { [name]: schema }, required: [name], additionalProperties: false });
const u8 = { type: "integer", minimum: 0, maximum: 255 };
const s64 = { type: ["integer", "string"], minimum: -9e18, maximum: 9e18, pattern: "^-?[0-9]+$" };
const option = (schema: unknown) => ({ anyOf: [schema, { type: "null" }] });

test("the shapes of the component model", () => {
  const cases: [string, unknown, unknown, unknown][] = [
    ["string", { type: "string" }, "a", "a"],
    ["char", { type: "string", minLength: 1, maxLength: 1 }, "é", "é"],
    ["bool", { type: "boolean" }, true, true],
    ["u8", u8, " 7 ", 7],
    ["s64", s64, "-9007199254740993", "-9007199254740993"],
    ["float", { anyOf: [{ type: "number" }, { enum: ["NaN", "inf", "-inf"] }] }, "1.5e3", 1500],
    ["special float", { anyOf: [{ type: "number" }, { enum: ["NaN", "inf", "-inf"] }] }, "-inf", "-inf"],
    ["enum", { type: "string", enum: ["a", "b"] }, "b", "b"],
    ["flags", { type: "array", items: { type: "string", enum: ["r", "w"] }, uniqueItems: true }, ["w"], ["w"]],
    ["list", { type: "array", items: u8 }, ["1", "2"], [1, 2]],
    ["bytes", { anyOf: [{ type: "string", contentEncoding: "base64" }, { type: "array", items: u8 }] }, "AQI=", "AQI="],
    ["tuple", { type: "array", prefixItems: [u8, { type: "string" }], items: false }, ["1", "x"], [1, "x"]],
    ["map", { type: "object", additionalProperties: u8 }, [["tea", "3"]], { tea: 3 }],
    ["record", { type: "object", properties: { a: u8, b: option({ type: "string" }) }, required: ["a"] }, { a: "1", b: { some: false, value: "" } }, { a: 1 }],
    ["option", option(u8), { some: true, value: "4" }, 4],
    ["nested option", option(only("some", option(u8))), { some: true, value: { some: { some: false, value: "" } } }, { some: null }],
    ["result", { oneOf: [only("ok", u8), only("err", { type: "string" })] }, { at: 1, value: "no" }, { err: "no" }],
    ["variant", { oneOf: [only("circle", { type: "number" }), only("point", { type: "null" }), { type: "string", enum: ["point"] }] }, { at: 1, value: null }, "point"],
    ["unknown", { type: "strange" }, '{"a": [1]}', { a: [1] }],
    ["a reference", { $ref: "#/x" }, "1", 1],
  ];
  for (const [what, schema, input, wanted] of cases) assert.deepEqual(valueOf(formOf(schema), input), wanted, what);
});

test("wrong input names its place", () => {
  const form = formOf({ type: "object", properties: { a: { type: "array", items: u8 } }, required: ["a"] });
  const wrong = (given: unknown, message: RegExp) => assert.throws(() => valueOf(form, given), (error: InputError) => message.test(error.message));
  wrong({ a: ["1", "x"] }, /^a\.1: a whole number/);
  wrong({ a: ["256"] }, /^a\.0: from 0 to 255/);
  assert.throws(() => valueOf(formOf({ type: "strange" }), "{"), /no JSON/);
  assert.throws(() => valueOf(formOf({ type: "string", maxLength: 1 }), ""), /one character/);
  assert.throws(() => valueOf(formOf({ type: "object", additionalProperties: u8 }), [["a", "1"], ["a", "2"]]), /twice/);
});

test("an empty form fits its form", () => {
  const schema = { type: "object", properties: { a: option(u8), b: { oneOf: [only("ok", { type: "null" }), only("err", { type: "string" })] }, c: { type: "array", items: { type: "string" } } }, required: ["a", "b", "c"] };
  assert.deepEqual(valueOf(formOf(schema), emptyInput(formOf(schema))), { a: null, b: { ok: null }, c: [] });
  let deep: unknown = u8;
  for (let n = 0; n < 100; n += 1) deep = { type: "array", prefixItems: [deep] };
  assert.match(JSON.stringify(emptyInput(formOf(deep))), /^\[+"null"\]+$/);
});

test("descriptions of plugins", () => {
  const functions = functionsOf({ functions: [{ name: "a:b/c/[method]d.e", parameters: only("self", { type: "string" }), result: u8 }] })!;
  assert.deepEqual([functions[0]!.short, functions[0]!.form.kind], ["[method]d.e", "record"]);
  for (const other of [null, {}, { functions: "x" }, { functions: [{}] }, []]) assert.equal(functionsOf(other), undefined);
  assert.equal(functionPath("a:b/c@0.1.0/[method]d.e"), "a:b/c@0.1.0/%5Bmethod%5Dd.e");
  assert.equal(typeWords({ oneOf: [only("ok", { type: "null" }), only("err", { type: "string" })] }), "ok | err: string");
  assert.equal(typeWords(option({ type: "array", items: u8 })), "list of integer | null");
});

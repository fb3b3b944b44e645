/** Forms from JSON Schema, as `GET /` of a plugin gives it: a form, what is typed into it, and the JSON that it means. */
import type { Open } from "./kube";

export type Form =
  | { kind: "text"; base64: boolean; charsMax?: number; hint: string }
  | { kind: "number"; integer: boolean; long: boolean; special: string[]; min?: number; max?: number }
  | { kind: "boolean" }
  | { kind: "choice"; options: string[] }
  | { kind: "flags"; options: string[] }
  | { kind: "list"; of: Form }
  | { kind: "tuple"; of: Form[] }
  | { kind: "map"; of: Form }
  | { kind: "record"; fields: { name: string; required: boolean; form: Form }[] }
  | { kind: "option"; of: Form }
  | { kind: "variant"; cases: { name: string; wrapped: boolean; form: Form }[] }
  | { kind: "nothing" }
  | { kind: "raw" };

/** What is typed: texts for texts, numbers and raw JSON; the rest as its parts. */
export type Input = Open;

/** Beyond it a part of the form is raw JSON. */
const DEPTH_MAX = 12;
const RAW: Form = { kind: "raw" };

const isNull = (schema: Open): boolean => schema?.type === "null";

export function formOf(schema: Open, depth = 0): Form {
  if (!schema || typeof schema !== "object" || depth > DEPTH_MAX || schema.$ref) return RAW;
  const alternatives: Open[] | undefined = schema.oneOf ?? schema.anyOf;
  if (alternatives) return alternativesOf(alternatives, depth);
  if (Array.isArray(schema.enum)) return schema.enum.every((each: unknown) => typeof each === "string") ? { kind: "choice", options: schema.enum } : RAW;
  if (Array.isArray(schema.type)) return schema.type.includes("integer") ? numberOf(schema, true, true) : RAW;
  switch (schema.type) {
    case "null": return { kind: "nothing" };
    case "boolean": return { kind: "boolean" };
    case "integer": return numberOf(schema, true, false);
    case "number": return numberOf(schema, false, false);
    case "string": return { kind: "text", base64: schema.contentEncoding === "base64", charsMax: schema.maxLength, hint: schema.description ?? "" };
    case "array": return arrayOf(schema, depth);
    case "object": return objectOf(schema, depth);
    default: return RAW;
  }
}

const numberOf = (schema: Open, integer: boolean, long: boolean, special: string[] = []): Form => ({ kind: "number", integer, long, special, min: schema.minimum, max: schema.maximum });

function arrayOf(schema: Open, depth: number): Form {
  if (Array.isArray(schema.prefixItems)) return { kind: "tuple", of: schema.prefixItems.map((each: Open) => formOf(each, depth + 1)) };
  const of = formOf(schema.items, depth + 1);
  return schema.uniqueItems && of.kind === "choice" ? { kind: "flags", options: of.options } : { kind: "list", of };
}

function objectOf(schema: Open, depth: number): Form {
  if (!schema.properties && schema.additionalProperties && typeof schema.additionalProperties === "object") return { kind: "map", of: formOf(schema.additionalProperties, depth + 1) };
  const required: string[] = schema.required ?? [];
  // The order of `required` is the author's; that of the properties is the alphabet's.
  const names = [...new Set([...required, ...Object.keys(schema.properties ?? {})])];
  return { kind: "record", fields: names.map((name) => ({ name, required: required.includes(name), form: formOf(schema.properties?.[name], depth + 1) })) };
}

/** The one member of an object schema of one required member. */
function memberOf(schema: Open): string | undefined {
  const names = Object.keys(schema?.properties ?? {});
  return schema?.type === "object" && names.length === 1 && schema.required?.length === 1 && schema.additionalProperties === false ? names[0] : undefined;
}

function alternativesOf(all: Open[], depth: number): Form {
  const others = all.filter((each) => !isNull(each));
  if (others.length === 1 && others.length < all.length) return { kind: "option", of: formOf(others[0], depth + 1) };
  const bytes = all.find((each) => each.contentEncoding === "base64");
  if (bytes) return formOf(bytes, depth + 1);
  const number = all.find((each) => each.type === "number");
  if (number && all.length === 2) return numberOf(number, false, false, all.find((each) => each.enum)?.enum ?? []);
  const bare: string[] = all.flatMap((each) => (each.type === "string" && Array.isArray(each.enum) ? each.enum : []));
  const cases = all.filter((each) => memberOf(each)).map((each) => {
    const name = memberOf(each)!;
    // A case without payload is its name alone.
    return bare.includes(name) ? { name, wrapped: false, form: { kind: "nothing" } as Form } : { name, wrapped: true, form: formOf(each.properties[name], depth + 1) };
  });
  return cases.length > 0 ? { kind: "variant", cases } : RAW;
}

/** An empty form. */
export function emptyInput(form: Form): Input {
  switch (form.kind) {
    case "text": case "number": return "";
    case "raw": return "null";
    case "boolean": return false;
    case "choice": return form.options[0] ?? "";
    case "flags": case "list": case "map": return [];
    case "tuple": return form.of.map(emptyInput);
    case "record": return Object.fromEntries(form.fields.map((field) => [field.name, emptyInput(field.form)]));
    case "option": return { some: false, value: emptyInput(form.of) };
    case "variant": return { at: 0, value: emptyInput(form.cases[0]!.form) };
    case "nothing": return null;
  }
}

/** What is wrong with an input, and where. */
export class InputError extends Error {
  constructor(readonly at: string, message: string) {
    super(at ? `${at}: ${message}` : message);
  }
}

/** The JSON that the input means. Throws `InputError`. */
export function valueOf(form: Form, input: Input, at = ""): unknown {
  const within = (name: string | number) => (at ? `${at}.${name}` : String(name));
  switch (form.kind) {
    case "text": return textOf(form, input, at);
    case "number": return numericOf(form, input, at);
    case "boolean": case "choice": case "flags": return input;
    case "list": return input.map((each: Input, n: number) => valueOf(form.of, each, within(n)));
    case "tuple": return form.of.map((each, n) => valueOf(each, input[n], within(n)));
    case "map": return mapOf(form, input, at);
    case "record": return recordOf(form, input, within);
    case "option": return input.some ? valueOf(form.of, input.value, at) : null;
    case "variant": {
      const chosen = form.cases[input.at]!;
      return chosen.wrapped ? { [chosen.name]: valueOf(chosen.form, input.value, within(chosen.name)) } : chosen.name;
    }
    case "nothing": return null;
    case "raw":
      try {
        return JSON.parse(input);
      } catch {
        throw new InputError(at, "this is no JSON");
      }
  }
}

function textOf(form: Form & { kind: "text" }, input: string, at: string): string {
  if (form.charsMax !== undefined && [...input].length > form.charsMax) throw new InputError(at, `at most ${form.charsMax} characters`);
  if (form.charsMax === 1 && input === "") throw new InputError(at, "one character is needed");
  if (form.base64 && !/^[A-Za-z0-9+/]*={0,2}$/.test(input)) throw new InputError(at, "this is no base64");
  return input;
}

function numericOf(form: Form & { kind: "number" }, input: string, at: string): number | string {
  const text = input.trim();
  if (form.special.includes(text)) return text;
  const shape = form.integer ? /^-?\d+$/ : /^-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$/;
  if (!shape.test(text)) throw new InputError(at, form.integer ? "a whole number is needed" : "a number is needed");
  // A 64-bit number keeps its digits as a string; the server checks its range.
  if (form.long) return text;
  const value = Number(text);
  if ((form.min !== undefined && value < form.min) || (form.max !== undefined && value > form.max)) throw new InputError(at, `from ${form.min} to ${form.max}`);
  return value;
}

function mapOf(form: Form & { kind: "map" }, input: [string, Input][], at: string): unknown {
  const names = new Set<string>();
  const entries = input.map(([key, value]) => {
    if (names.has(key)) throw new InputError(at, `the key "${key}" is there twice`);
    names.add(key);
    return [key, valueOf(form.of, value, at ? `${at}.${key}` : key)] as const;
  });
  return Object.fromEntries(entries);
}

/** Optional members that are off are left out. */
function recordOf(form: Form & { kind: "record" }, input: Record<string, Input>, within: (name: string) => string): unknown {
  const entries = form.fields.map((field) => [field, valueOf(field.form, input[field.name], within(field.name))] as const);
  return Object.fromEntries(entries.filter(([field, value]) => field.required || value !== null).map(([field, value]) => [field.name, value]));
}

export interface PluginFunction {
  name: string;
  /** The last part of the name, without the interface. */
  short: string;
  form: Form;
  result: Open;
}

const FUNCTIONS_MAX = 500;

/** The functions in a plugin's description; undefined if it is none. */
export function functionsOf(description: Open): PluginFunction[] | undefined {
  const all = description?.functions;
  if (!Array.isArray(all) || !all.every((each) => typeof each?.name === "string" && each.parameters)) return undefined;
  return all.slice(0, FUNCTIONS_MAX).map((each) => ({ name: each.name, short: each.name.slice(each.name.lastIndexOf("/") + 1), form: formOf(each.parameters), result: each.result }));
}

/** A type in few words, for a heading. */
export function typeWords(schema: Open, depth = 0): string {
  if (!schema || depth > 3) return "…";
  const alternatives: Open[] | undefined = schema.oneOf ?? schema.anyOf;
  if (alternatives) return alternatives.filter((each) => !isNull(each)).map((each) => { const member = memberOf(each); return member ? (isNull(each.properties[member]) ? member : `${member}: ${typeWords(each.properties[member], depth + 1)}`) : typeWords(each, depth + 1); }).join(" | ") + (alternatives.some(isNull) ? " | null" : "");
  if (schema.enum) return schema.enum.slice(0, 6).join(" | ");
  if (Array.isArray(schema.type)) return schema.type[0];
  if (schema.type === "array") return schema.prefixItems ? `(${schema.prefixItems.map((each: Open) => typeWords(each, depth + 1)).join(", ")})` : `list of ${typeWords(schema.items, depth + 1)}`;
  if (schema.type === "object") return `{${Object.keys(schema.properties ?? {}).join(", ")}}`;
  return schema.type ?? "…";
}

/** The path of a function: its name's segments, encoded. */
export const functionPath = (name: string): string => name.split("/").map((part) => encodeURIComponent(part).replace(/%3A/g, ":").replace(/%40/g, "@")).join("/");

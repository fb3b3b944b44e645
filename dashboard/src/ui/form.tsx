/** The fields of a form that a JSON Schema describes. */
import type { ComponentChildren } from "preact";
import { emptyInput, type Form, type Input } from "../core/form";

export interface FormViewProps {
  form: Form;
  input: Input;
  onInput: (input: Input) => void;
  /** Of the field: the path of its names. */
  id: string;
  label: string;
}

const ITEMS_MAX = 1000;
const replaced = <T,>(all: T[], at: number, value: T): T[] => all.map((each, n) => (n === at ? value : each));

function Group({ label, children }: { label: string; children: ComponentChildren }) {
  return <fieldset class={label ? "" : "plain"}>{label && <legend>{label}</legend>}{children}</fieldset>;
}

function Field({ id, label, children }: { id: string; label: string; children: ComponentChildren }) {
  return <div class="field"><label for={id}>{label || "value"}</label>{children}</div>;
}

export function FormView(props: FormViewProps) {
  const { form, input, onInput, id, label } = props;
  switch (form.kind) {
    case "text":
      return form.charsMax === 1 || form.base64
        ? <Field id={id} label={label}><input id={id} value={input} placeholder={form.base64 ? "base64" : "one character"} spellcheck={false} onInput={(event) => onInput(event.currentTarget.value)} /></Field>
        : <Field id={id} label={label}><textarea id={id} rows={1} value={input} placeholder={form.hint} spellcheck={false} onInput={(event) => onInput(event.currentTarget.value)} /></Field>;
    case "number":
      return <Field id={id} label={label}><input id={id} value={input} inputMode={form.integer ? "numeric" : "decimal"} placeholder={form.long ? "whole number" : form.min === undefined ? "number" : `${form.min} to ${form.max}`} autoComplete="off" onInput={(event) => onInput(event.currentTarget.value)} /></Field>;
    case "boolean":
      return <Field id={id} label={label}><input id={id} type="checkbox" checked={input} onChange={(event) => onInput(event.currentTarget.checked)} /></Field>;
    case "choice":
      return <Field id={id} label={label}><select id={id} value={input} onChange={(event) => onInput(event.currentTarget.value)}>{form.options.map((each) => <option key={each}>{each}</option>)}</select></Field>;
    case "flags":
      return <Group label={label}>{form.options.map((each) => <label key={each} class="flag"><input type="checkbox" checked={input.includes(each)} onChange={(event) => onInput(event.currentTarget.checked ? [...input, each] : input.filter((other: string) => other !== each))} /> {each}</label>)}</Group>;
    case "record":
      return form.fields.length === 0 ? <p class="hint">no arguments</p> : <Group label={label}>{form.fields.map((field) => <FormView key={field.name} form={field.form} input={input[field.name]} id={`${id}.${field.name}`} label={field.name} onInput={(value) => onInput({ ...input, [field.name]: value })} />)}</Group>;
    case "tuple":
      return <Group label={label}>{form.of.map((each, n) => <FormView key={n} form={each} input={input[n]} id={`${id}.${n}`} label={String(n)} onInput={(value) => onInput(replaced(input, n, value))} />)}</Group>;
    case "list": return <ListView {...props} form={form} />;
    case "map": return <MapView {...props} form={form} />;
    case "option":
      return (
        <Group label={label}>
          <label class="flag"><input type="checkbox" checked={input.some} onChange={(event) => onInput({ ...input, some: event.currentTarget.checked })} /> given</label>
          {input.some && <FormView form={form.of} input={input.value} id={`${id}.some`} label="" onInput={(value) => onInput({ ...input, value })} />}
        </Group>
      );
    case "variant": {
      const chosen = form.cases[input.at]!;
      return (
        <Group label={label}>
          <Field id={id} label="case"><select id={id} value={String(input.at)} onChange={(event) => { const at = Number(event.currentTarget.value); onInput({ at, value: emptyInput(form.cases[at]!.form) }); }}>{form.cases.map((each, n) => <option key={each.name} value={String(n)}>{each.name}</option>)}</select></Field>
          {chosen.form.kind !== "nothing" && <FormView key={chosen.name} form={chosen.form} input={input.value} id={`${id}.${chosen.name}`} label={chosen.name} onInput={(value) => onInput({ ...input, value })} />}
        </Group>
      );
    }
    case "nothing": return <p class="hint">{label ? `${label}: ` : ""}no value</p>;
    case "raw":
      return <Field id={id} label={label ? `${label} (JSON)` : "JSON"}><textarea id={id} rows={3} class="mono" value={input} spellcheck={false} onInput={(event) => onInput(event.currentTarget.value)} /></Field>;
  }
}

function ListView({ form, input, onInput, id, label }: FormViewProps & { form: Form & { kind: "list" } }) {
  return (
    <Group label={label || "list"}>
      {input.map((each: Input, n: number) => (
        <div key={n} class="item">
          <FormView form={form.of} input={each} id={`${id}.${n}`} label={String(n)} onInput={(value) => onInput(replaced(input, n, value))} />
          <button type="button" aria-label={`Remove ${label} ${n}`} onClick={() => onInput(input.filter((_: Input, other: number) => other !== n))}>×</button>
        </div>
      ))}
      <button type="button" disabled={input.length >= ITEMS_MAX} onClick={() => onInput([...input, emptyInput(form.of)])}>Add</button>
    </Group>
  );
}

function MapView({ form, input, onInput, id, label }: FormViewProps & { form: Form & { kind: "map" } }) {
  const change = (at: number, entry: [string, Input]) => onInput(replaced(input, at, entry));
  return (
    <Group label={label || "map"}>
      {input.map(([key, value]: [string, Input], n: number) => (
        <div key={n} class="item">
          <Field id={`${id}.${n}.key`} label="key"><input id={`${id}.${n}.key`} value={key} onInput={(event) => change(n, [event.currentTarget.value, value])} /></Field>
          <FormView form={form.of} input={value} id={`${id}.${n}`} label="value" onInput={(next) => change(n, [key, next])} />
          <button type="button" aria-label={`Remove ${key}`} onClick={() => onInput(input.filter((_: Input, other: number) => other !== n))}>×</button>
        </div>
      ))}
      <button type="button" disabled={input.length >= ITEMS_MAX} onClick={() => onInput([...input, ["", emptyInput(form.of)]])}>Add</button>
    </Group>
  );
}

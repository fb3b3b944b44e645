/** Small pieces of pages. */
import type { ComponentChildren } from "preact";
import { useEffect, useRef } from "preact/hooks";
import type { ApiError } from "../api/client";
import type { View } from "../api/reflector";
import type { Tone } from "../core/pod";
import { age } from "../core/quantity";
import { useNow } from "./hooks";

const MARKS: Record<Tone, string> = { good: "●", busy: "◐", bad: "▲", idle: "○" };

/** A state: a mark and a word, so that color alone doesn't carry it. */
export function State({ tone, children, title }: { tone: Tone; children: ComponentChildren; title?: string }) {
  return <span class={`state ${tone}`} title={title}><span class="mark" aria-hidden="true">{MARKS[tone]}</span>{children}</span>;
}

export function Panel({ title, aside, children, id }: { title: string; aside?: ComponentChildren; children: ComponentChildren; id?: string }) {
  return (
    <section class="panel" id={id} aria-label={title}>
      <header><h2>{title}</h2>{aside && <div class="aside">{aside}</div>}</header>
      {children}
    </section>
  );
}

export function Figure({ label, value, note, spark, tone }: { label: string; value: ComponentChildren; note?: ComponentChildren; spark?: number[]; tone?: Tone }) {
  return (
    <div class={`figure ${tone ?? ""}`}>
      <div class="label">{label}</div>
      <div class="value">{value}</div>
      <div class="note">{note}</div>
      {spark && <Spark values={spark} width={84} height={26} />}
    </div>
  );
}

/** The last minutes of a figure. Decoration: the figure beside it is the information. */
export function Spark({ values, width = 64, height = 18 }: { values: number[]; width?: number; height?: number }) {
  if (values.length < 2) return <svg class="spark" width={width} height={height} aria-hidden="true" />;
  const top = Math.max(...values) || 1;
  const step = width / (values.length - 1);
  const points = values.map((value, n) => `${(n * step).toFixed(1)},${(height - 1.5 - (value / top) * (height - 3)).toFixed(1)}`);
  return (
    <svg class="spark" width={width} height={height} viewBox={`0 0 ${width} ${height}`} aria-hidden="true">
      <polygon points={`0,${height} ${points.join(" ")} ${width},${height}`} />
      <polyline points={points.join(" ")} />
    </svg>
  );
}

/** A part of a whole as a bar. */
export function Bar({ part, whole, label }: { part: number | undefined; whole: number | undefined; label: string }) {
  const share = part === undefined || !whole ? 0 : Math.min(1, part / whole);
  return (
    <svg class={`bar ${share > 0.9 ? "bad" : ""}`} width="72" height="6" role="img" aria-label={label}>
      <rect class="whole" width="72" height="6" rx="3" />
      {share > 0 && <rect class="part" width={Math.max(2, share * 72)} height="6" rx="3" />}
    </svg>
  );
}

export function Age({ at }: { at: string | undefined }) {
  const now = useNow(5000);
  return <time dateTime={at} title={at}>{age(at, now)}</time>;
}

/** In place of a list that isn't there: why, or that it is awaited. Nothing if the list is there. */
export function Missing({ view, what, empty }: { view: Pick<View<unknown>, "rows" | "loaded" | "error">; what: string; empty?: ComponentChildren }) {
  if (view.error?.status === 403) return <p class="missing denied" role="note">You may not list {what}.</p>;
  if (view.error?.status === 404) return <p class="missing" role="note">This cluster has no {what}.</p>;
  if (!view.loaded && view.error) return <p class="missing waiting" role="status">No answer for {what} yet: {view.error.message}. Trying again.</p>;
  if (!view.loaded && view.rows.length === 0) return <p class="missing waiting" role="status">Waiting for {what}…</p>;
  if (view.rows.length === 0) return <p class="missing">{empty ?? `No ${what}.`}</p>;
  return null;
}

/** Metrics that the cluster or the account doesn't have. */
export function NoMetrics({ error }: { error?: ApiError }) {
  if (!error) return null;
  return <span class="hint">{error.status === 403 ? "You may not read metrics." : error.status === 404 ? "No data: this cluster serves no such metrics." : `No data: ${error.message}.`}</span>;
}

export function Dialog({ title, onClose, children }: { title: string; onClose: () => void; children: ComponentChildren }) {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    // The browser keeps the focus inside, and returns it after the end.
    dialog.current!.showModal();
    return () => dialog.current?.close();
  }, []);
  return (
    <dialog ref={dialog} aria-label={title} onClose={onClose}>
      <h2>{title}</h2>
      {children}
    </dialog>
  );
}

export function Labels({ labels }: { labels: Record<string, string> | undefined }) {
  return <span class="labels">{Object.entries(labels ?? {}).map(([key, value]) => <code key={key}>{key}={value}</code>)}</span>;
}

/** Names and values. */
export function Facts({ children }: { children: ComponentChildren }) {
  return <dl class="facts">{children}</dl>;
}

export function Fact({ name, children }: { name: string; children: ComponentChildren }) {
  return <div><dt>{name}</dt><dd>{children}</dd></div>;
}

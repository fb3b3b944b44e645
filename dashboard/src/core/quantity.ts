/** Kubernetes quantities, and figures as the page shows them. */

const SUFFIXES: Record<string, number> = {
  n: 1e-9, u: 1e-6, m: 1e-3, "": 1, k: 1e3, M: 1e6, G: 1e9, T: 1e12, P: 1e15, E: 1e18,
  Ki: 2 ** 10, Mi: 2 ** 20, Gi: 2 ** 30, Ti: 2 ** 40, Pi: 2 ** 50, Ei: 2 ** 60,
};

/** The number that a quantity states, or undefined for other text. */
export function quantity(text: unknown): number | undefined {
  if (typeof text === "number") return text;
  if (typeof text !== "string") return undefined;
  const parts = /^([+-]?(?:\d+\.?\d*|\.\d+))(?:([eE][+-]?\d+)|([numkMGTPE]|[KMGTPE]i)?)$/.exec(text.trim());
  if (!parts) return undefined;
  const number = Number(parts[1] + (parts[2] ?? ""));
  return number * SUFFIXES[parts[3] ?? ""]!;
}

/** At most three significant digits, without trailing zeros. */
function digits(value: number): string {
  if (value === 0) return "0";
  const magnitude = Math.abs(value);
  const places = magnitude >= 100 ? 0 : magnitude >= 10 ? 1 : 2;
  const text = value.toFixed(places);
  return text.includes(".") ? text.replace(/\.?0+$/, "") : text;
}

/** Groups of three digits, separated by a thin space. */
const grouped = (value: number): string => Math.round(value).toString().replace(/\B(?=(\d{3})+$)/g, "\u202f");

export const count = (value: number): string => grouped(value);

export function cpu(cores: number | undefined): string {
  if (cores === undefined) return "–";
  if (cores === 0) return "0";
  if (cores < 0.001) return "<1m";
  return cores < 1 ? `${Math.round(cores * 1000)}m` : digits(cores);
}

export function bytes(value: number | undefined): string {
  if (value === undefined) return "–";
  const units = ["B", "Ki", "Mi", "Gi", "Ti", "Pi"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return `${digits(value)} ${units[unit]}`;
}

/** A rate, without its unit: the column says "/s". */
export function rate(value: number | undefined): string {
  if (value === undefined) return "–";
  if (value > 0 && value < 0.01) return "<0.01";
  if (value >= 1e9) return `${digits(value / 1e9)}G`;
  if (value >= 1e6) return `${digits(value / 1e6)}M`;
  return value >= 1000 ? grouped(value) : digits(value);
}

export function duration(seconds: number | undefined): string {
  if (seconds === undefined) return "–";
  if (seconds === 0) return "0";
  if (seconds < 0.001) return `${digits(seconds * 1e6)} µs`;
  return seconds < 1 ? `${digits(seconds * 1000)} ms` : `${digits(seconds)} s`;
}

export function percent(part: number | undefined, whole: number | undefined): string {
  if (part === undefined || !whole) return "–";
  const value = (part / whole) * 100;
  return value > 0 && value < 0.1 ? "<0.1 %" : `${digits(value)} %`;
}

/** An age as kubectl prints it: at most two units. `at` is RFC 3339, `now` in milliseconds. */
export function age(at: string | undefined, now: number): string {
  const began = at ? Date.parse(at) : Number.NaN;
  return Number.isNaN(began) ? "–" : span((now - began) / 1000);
}

/** A span of seconds in at most two units. */
export function span(seconds: number): string {
  const s = Math.max(0, Math.floor(seconds));
  const [minutes, hours, days] = [Math.floor(s / 60), Math.floor(s / 3600), Math.floor(s / 86400)];
  if (s < 120) return `${s}s`;
  if (minutes < 10) return s % 60 ? `${minutes}m${s % 60}s` : `${minutes}m`;
  if (hours < 3) return `${minutes}m`;
  if (hours < 8) return minutes % 60 ? `${hours}h${minutes % 60}m` : `${hours}h`;
  if (hours < 48) return `${hours}h`;
  if (days < 8) return hours % 24 ? `${days}d${hours % 24}h` : `${days}d`;
  if (days < 730) return `${days}d`;
  return `${Math.floor(days / 365)}y`;
}

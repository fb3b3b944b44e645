/** Lines of a container's log, requested with timestamps so that a broken stream goes on where it ended. */

export interface LogLine {
  /** RFC 3339 with nanoseconds; empty for a line without a time. */
  at: string;
  text: string;
}

const STAMP = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z ?/;
/** What a line shows: a longer one is cut. */
export const LINE_CHARS_MAX = 4000;

/** Escape sequences of terminals: colors and the like. */
const ESCAPES = /\u001b\[[0-9;?]*[ -/]*[@-~]|\u001b[@-Z\\-_]|[\u0000-\u0008\u000b-\u001f]/g;

export function logLine(raw: string): LogLine {
  const stamp = STAMP.exec(raw);
  const text = (stamp ? raw.slice(stamp[0].length) : raw).replace(ESCAPES, "");
  return { at: stamp ? `${stamp[1]}.${(stamp[2] ?? "").padEnd(9, "0")}Z` : "", text: text.length > LINE_CHARS_MAX ? `${text.slice(0, LINE_CHARS_MAX)}…` : text };
}

/** The last lines, at most `max`: the oldest leave first. */
export class LogBuffer {
  private kept: LogLine[] = [];
  /** Lines that left. */
  dropped = 0;

  constructor(private readonly max: number) {}

  /** Adds the lines that are newer than the last one, if `resumed`: a resumed stream repeats the last second. */
  add(lines: LogLine[], resumed: boolean): void {
    const last = this.kept.at(-1)?.at ?? "";
    const fresh = resumed ? lines.filter((line) => line.at > last) : lines;
    this.kept.push(...fresh);
    // In larger steps than one line: each one moves the whole array.
    if (this.kept.length > this.max + this.max / 4) this.cut();
  }

  private cut(): void {
    const over = this.kept.length - this.max;
    this.dropped += over;
    this.kept = this.kept.slice(over);
  }

  lines(): LogLine[] {
    if (this.kept.length > this.max) this.cut();
    return this.kept;
  }

  last(): string {
    return this.kept.at(-1)?.at ?? "";
  }
}

export interface LogChoice {
  container: string;
  previous: boolean;
  /** Lines before now; 0 for all. */
  tail: number;
  /** Seconds before now; 0 for all. */
  since: number;
}

/** The query of the log's subresource. `after` is the time of the last line of a stream that broke off. */
export function logQuery(choice: LogChoice, after = ""): string {
  const query = new URLSearchParams({ container: choice.container, timestamps: "true" });
  if (choice.previous) query.set("previous", "true");
  else query.set("follow", "true");
  if (after) query.set("sinceTime", after);
  else {
    if (choice.since) query.set("sinceSeconds", String(choice.since));
    if (choice.tail) query.set("tailLines", String(choice.tail));
  }
  return query.toString();
}

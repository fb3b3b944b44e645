/** The pure half of list and watch: events, lines, delays. */
import type { Obj, Open } from "./kube";

export interface WatchEvent {
  type: string;
  object: Open;
}

/** What an event means for the client. */
export type WatchStep =
  | { what: "changed"; version: string }
  | { what: "bookmark"; version: string }
  | { what: "relist" }
  | { what: "failed"; message: string };

/** Applies one event to the rows, which are by uid. */
export function applyEvent<Row>(rows: Map<string, Row>, event: WatchEvent, project: (object: Obj) => Row): WatchStep {
  const object = event.object;
  const version: string = object?.metadata?.resourceVersion ?? "";
  switch (event.type) {
    case "ADDED":
    case "MODIFIED":
      rows.set(object.metadata.uid, project(object));
      return { what: "changed", version };
    case "DELETED":
      rows.delete(object.metadata.uid);
      return { what: "changed", version };
    case "BOOKMARK":
      return { what: "bookmark", version };
    case "ERROR":
      // 410: the version is compacted, so a list is needed.
      return object?.code === 410 ? { what: "relist" } : { what: "failed", message: object?.message ?? "the watch failed" };
    default:
      return { what: "failed", message: `an event of unknown type ${event.type}` };
  }
}

/** Splits a stream of text into lines. A line without an end stays for the next piece. */
export class Lines {
  private rest = "";

  /** `charsMax` bounds a line: a stream without line ends must not fill the memory. */
  constructor(private readonly charsMax: number) {}

  push(piece: string): string[] {
    const lines = (this.rest + piece).split("\n");
    this.rest = lines.pop()!;
    if (this.rest.length > this.charsMax) {
      lines.push(this.rest);
      this.rest = "";
    }
    return lines;
  }

  /** What came after the last line end. */
  end(): string {
    const rest = this.rest;
    this.rest = "";
    return rest;
  }
}

const RETRY_MS = 1000;
const RETRY_MS_MAX = 30_000;

/** The delay before retry number `failures` (from 1): doubled each time, with a jitter of a quarter. `chance` is from 0 to 1. */
export function retryDelay(failures: number, chance: number): number {
  const delay = Math.min(RETRY_MS * 2 ** (failures - 1), RETRY_MS_MAX);
  return Math.round(delay * (0.875 + chance * 0.25));
}

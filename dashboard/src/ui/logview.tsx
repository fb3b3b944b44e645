/** The log of a container: follows, bounded, and goes on after a broken connection. */
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { ApiError, open } from "../api/client";
import { LogBuffer, logLine, logQuery, type LogChoice, type LogLine } from "../core/log";
import { matcher } from "../core/route";
import { Lines, retryDelay } from "../core/watch";

const LINES_MAX = 5000;
const LINE_CHARS_READ_MAX = 64_000;
const RENDER_MS = 150;
const LINE_PX = 19;
const SPARE_LINES = 10;

interface Followed {
  lines: LogLine[];
  dropped: number;
  state: string;
}

/** Reads the log until `signal` ends it. */
async function follow(path: string, choice: LogChoice, signal: AbortSignal, publish: (followed: Followed) => void): Promise<void> {
  const buffer = new LogBuffer(LINES_MAX);
  let timer: ReturnType<typeof setTimeout> | undefined;
  let state = "waiting for the log…";
  const show = () => { timer = undefined; if (!signal.aborted) publish({ lines: [...buffer.lines()], dropped: buffer.dropped, state }); };
  const soon = () => { timer ??= setTimeout(show, RENDER_MS); };
  const say = (text: string) => { state = text; soon(); };
  say(state);
  for (let failures = 0; !signal.aborted; ) {
    const after = buffer.last();
    try {
      const response = await open(`${path}?${logQuery(choice, after)}`, { signal, accept: "*/*" });
      say(choice.previous ? "" : "following");
      const reader = response.body!.getReader();
      const split = new Lines(LINE_CHARS_READ_MAX);
      const decoder = new TextDecoder();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        failures = 0;
        buffer.add(split.push(decoder.decode(value, { stream: true })).map(logLine), after !== "");
        soon();
      }
      const rest = split.end();
      if (rest) buffer.add([logLine(rest)], after !== "");
      if (choice.previous) return say("the end of the previous container's log");
      say("the container has ended, waiting for its next start");
    } catch (error) {
      if (signal.aborted) return;
      say(error instanceof ApiError ? `${error.message}, trying again` : "the connection failed, trying again");
      if (error instanceof ApiError && (error.status === 403 || choice.previous)) return say(error.status === 403 ? "You may not read logs here." : error.message);
    }
    failures += 1;
    await new Promise<void>((resolve) => { const wait = setTimeout(resolve, retryDelay(failures, Math.random())); signal.addEventListener("abort", () => { clearTimeout(wait); resolve(); }); });
  }
}

export interface LogViewProps {
  path: string;
  containers: string[];
  filter: string;
}

export function LogView({ path, containers, filter }: LogViewProps) {
  const [container, setContainer] = useState(containers[0] ?? "");
  const [previous, setPrevious] = useState(false);
  const [range, setRange] = useState("tail 500");
  const [times, setTimes] = useState(false);
  const [paused, setPaused] = useState<Followed>();
  const [live, setLive] = useState<Followed>({ lines: [], dropped: 0, state: "" });
  const [unit, amount] = range.split(" ");
  useEffect(() => {
    const ending = new AbortController();
    setPaused(undefined);
    setLive({ lines: [], dropped: 0, state: "" });
    const choice = { container, previous, tail: unit === "tail" ? Number(amount) : 0, since: unit === "since" ? Number(amount) : 0 };
    void follow(path, choice, ending.signal, setLive);
    return () => ending.abort();
  }, [path, container, previous, range]);
  const shown = paused ?? live;
  const lines = useMemo(() => {
    const matches = matcher(filter);
    return filter ? shown.lines.filter((line) => matches(line.text.toLowerCase())) : shown.lines;
  }, [shown, filter]);
  return (
    <section class="logs" aria-label="Log">
      <div class="actions">
        <label>Container <select value={container} onChange={(event) => setContainer(event.currentTarget.value)}>{containers.map((each) => <option key={each}>{each}</option>)}</select></label>
        <label>Show <select value={range} onChange={(event) => setRange(event.currentTarget.value)}>
          <option value="tail 500">last 500 lines</option><option value="tail 5000">last 5,000 lines</option><option value="since 300">last 5 minutes</option><option value="since 3600">last hour</option>
        </select></label>
        <label><input type="checkbox" checked={previous} onChange={(event) => setPrevious(event.currentTarget.checked)} /> Previous container</label>
        <label><input type="checkbox" checked={times} onChange={(event) => setTimes(event.currentTarget.checked)} /> Times</label>
        <button type="button" aria-pressed={Boolean(paused)} onClick={() => setPaused(paused ? undefined : live)}>{paused ? "Continue" : "Pause"}</button>
        <button type="button" onClick={() => void navigator.clipboard?.writeText(lines.map((line) => (times ? `${line.at} ` : "") + line.text).join("\n"))}>Copy</button>
        <span class="hint" role="status">{paused ? "paused" : shown.state}{filter ? `, ${lines.length} of ${shown.lines.length} lines` : `, ${lines.length} lines`}{shown.dropped ? `, ${shown.dropped} older ones left out` : ""}</span>
      </div>
      <LogLines lines={lines} times={times} still={Boolean(paused)} />
    </section>
  );
}

/** The visible lines. The view stays at the end until it is scrolled up. */
function LogLines({ lines, times, still }: { lines: LogLine[]; times: boolean; still: boolean }) {
  const box = useRef<HTMLDivElement>(null);
  const atEnd = useRef(true);
  const [top, setTop] = useState(0);
  const height = box.current?.clientHeight ?? 600;
  useEffect(() => {
    if (atEnd.current && !still) box.current!.scrollTop = box.current!.scrollHeight;
  }, [lines, still]);
  const onScroll = () => {
    const element = box.current!;
    atEnd.current = element.scrollTop + element.clientHeight >= element.scrollHeight - LINE_PX * 2;
    setTop(element.scrollTop);
  };
  const first = Math.max(0, Math.floor(top / LINE_PX) - SPARE_LINES);
  const last = Math.min(lines.length, Math.ceil((top + height) / LINE_PX) + SPARE_LINES);
  return (
    <div class="loglines" ref={box} tabIndex={0} role="region" aria-label="Lines of the log" onScroll={onScroll}>
      <div class="body" style={{ height: `${lines.length * LINE_PX}px` }}>
        <pre style={{ transform: `translateY(${first * LINE_PX}px)` }}>{lines.slice(first, last).map((line, n) => <div key={first + n}>{times && <time>{line.at.slice(11, 23)} </time>}{line.text || " "}</div>)}</pre>
      </div>
    </div>
  );
}

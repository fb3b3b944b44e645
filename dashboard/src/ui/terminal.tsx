/**
 * A terminal for exec. xterm.js without its renderer keeps the screen; the rows are drawn here, since xterm's own renderers insert style
 * elements, which the page's security policy forbids.
 */
import { Terminal, type IBufferCell } from "@xterm/headless/lib-headless/xterm-headless.mjs";
import { useEffect, useRef, useState } from "preact/hooks";
import { socket } from "../api/client";
import { CHANNEL, endOf, frame, keyBytes } from "../core/keys";

const SCROLLBACK_LINES = 2000;
/** A paste is sent in pieces: a message of the protocol is at most 32 KiB at some servers. */
const PASTE_CHARS = 8192;
/** Bytes that wait in the browser; beyond it the input is dropped, and the terminal says so. */
const WAITING_BYTES_MAX = 1 << 20;

interface Run {
  text: string;
  style: string;
  color?: string;
  background?: string;
}

/** The 16 named colors are classes; the rest of the palette is the cube and the greys of xterm. */
function colorOf(number: number, palette: boolean, rgb: boolean): string | undefined {
  if (rgb) return `#${number.toString(16).padStart(6, "0")}`;
  if (!palette) return undefined;
  if (number < 16) return `var(--ansi-${number})`;
  if (number >= 232) return `rgb(${Array(3).fill(8 + (number - 232) * 10).join()})`;
  const level = (n: number) => (n === 0 ? 0 : 55 + n * 40);
  const cube = number - 16;
  return `rgb(${[Math.floor(cube / 36), Math.floor(cube / 6) % 6, cube % 6].map(level).join()})`;
}

function styleOf(cell: IBufferCell, cursor: boolean): Omit<Run, "text"> {
  let color = colorOf(cell.getFgColor(), cell.isFgPalette(), cell.isFgRGB());
  let background = colorOf(cell.getBgColor(), cell.isBgPalette(), cell.isBgRGB());
  if (cell.isInverse()) [color, background] = [background ?? "var(--terminal)", color ?? "var(--terminal-ink)"];
  const words = [cell.isBold() && "bold", cell.isDim() && "dim", cell.isItalic() && "italic", cell.isUnderline() && "underline", cursor && "cursor"];
  return { style: words.filter(Boolean).join(" "), color, background };
}

/** One row of the screen as runs of one style. */
function rowOf(terminal: Terminal, y: number, cursorX: number): Run[] {
  const line = terminal.buffer.active.getLine(y);
  const runs: Run[] = [];
  const cell = terminal.buffer.active.getNullCell();
  for (let x = 0; line && x < terminal.cols; x += 1) {
    line.getCell(x, cell);
    if (cell.getWidth() === 0) continue;
    const look = styleOf(cell, x === cursorX);
    const text = cell.getChars() || " ";
    const last = runs.at(-1);
    if (last && last.style === look.style && last.color === look.color && last.background === look.background) last.text += text;
    else runs.push({ text, ...look });
  }
  return runs;
}

export interface TerminalProps {
  /** The path of `exec`. */
  path: string;
  onEnd: (message: string) => void;
}

export function TerminalView({ path, onEnd }: TerminalProps) {
  const host = useRef<HTMLDivElement>(null);
  const input = useRef<HTMLTextAreaElement>(null);
  const [rows, setRows] = useState<Run[][]>([]);
  const send = useRef<(text: string) => void>(() => undefined);
  const terminalRef = useRef<Terminal | undefined>(undefined);

  useEffect(() => {
    const terminal = new Terminal({ cols: 80, rows: 24, scrollback: SCROLLBACK_LINES, allowProposedApi: true });
    terminalRef.current = terminal;
    const connection = socket(path, "v5.channel.k8s.io");
    let ended = false;
    let frameRequest = 0;
    const draw = () => {
      frameRequest = 0;
      const buffer = terminal.buffer.active;
      const all = Array.from({ length: terminal.rows }, (_, n) => {
        const y = buffer.viewportY + n;
        return rowOf(terminal, y, y === buffer.baseY + buffer.cursorY && !ended ? buffer.cursorX : -1);
      });
      setRows(all);
    };
    const schedule = () => { frameRequest ||= requestAnimationFrame(draw); };
    const end = (message: string) => {
      if (ended) return;
      ended = true;
      schedule();
      onEnd(message);
    };
    const post = (channel: number, text: string) => {
      if (connection.readyState !== WebSocket.OPEN) return;
      if (connection.bufferedAmount > WAITING_BYTES_MAX) terminal.write("\r\n[input dropped: the connection is too slow]\r\n");
      else connection.send(frame(channel, text));
    };
    send.current = (text) => {
      terminal.scrollToBottom();
      for (let at = 0; at < text.length; at += PASTE_CHARS) post(CHANNEL.stdin, text.slice(at, at + PASTE_CHARS));
    };
    const fit = () => {
      const probe = host.current?.querySelector(".probe")?.getBoundingClientRect();
      const space = host.current?.querySelector(".screen");
      if (!probe?.width || !space) return;
      const [cols, lines] = [Math.max(20, Math.floor(space.clientWidth / (probe.width / 10))), Math.max(5, Math.floor(space.clientHeight / probe.height))];
      if (cols !== terminal.cols || lines !== terminal.rows) terminal.resize(cols, lines);
      post(CHANNEL.resize, JSON.stringify({ Width: cols, Height: lines }));
      schedule();
    };
    const resized = new ResizeObserver(fit);
    const written = terminal.onWriteParsed(schedule);
    const scrolled = terminal.onScroll(schedule);
    // Answers to queries of the program, such as the cursor's position.
    const answered = terminal.onData((data) => post(CHANNEL.stdin, data));
    connection.onopen = () => { fit(); input.current?.focus(); };
    connection.onmessage = (message: MessageEvent<ArrayBuffer>) => {
      const bytes = new Uint8Array(message.data);
      if (bytes[0] === CHANNEL.error) end(endOf(new TextDecoder().decode(bytes.subarray(1))));
      else if (bytes.length > 1) terminal.write(bytes.subarray(1));
    };
    connection.onclose = (event) => end(event.wasClean ? "The session has ended." : "The connection was cut off, or the API server refused it.");
    resized.observe(host.current!);
    return () => {
      ended = true;
      cancelAnimationFrame(frameRequest);
      resized.disconnect();
      [written, scrolled, answered].forEach((each) => each.dispose());
      connection.close();
      terminal.dispose();
    };
  }, [path]);

  const onKeyDown = (event: KeyboardEvent) => {
    if (event.isComposing || event.metaKey) return;
    const bytes = keyBytes({ key: event.key, ctrl: event.ctrlKey, alt: event.altKey, shift: event.shiftKey }, terminalRef.current!.modes.applicationCursorKeysMode);
    if (bytes === undefined) return;
    event.preventDefault();
    if (event.shiftKey && event.key.startsWith("Page")) terminalRef.current!.scrollPages(event.key === "PageUp" ? -1 : 1);
    else send.current(bytes);
  };
  const onInput = (event: Event) => {
    const area = event.currentTarget as HTMLTextAreaElement;
    if ((event as InputEvent).isComposing) return;
    send.current(area.value);
    area.value = "";
  };
  const onPaste = (event: ClipboardEvent) => {
    event.preventDefault();
    const text = (event.clipboardData?.getData("text") ?? "").replace(/\r?\n/g, "\r");
    send.current(terminalRef.current!.modes.bracketedPasteMode ? `\x1b[200~${text.replaceAll("\x1b", "")}\x1b[201~` : text);
  };
  const focus = () => { if (!getSelection()?.toString()) input.current?.focus(); };
  return (
    <div class="terminal" ref={host} data-keys onMouseUp={focus} onWheel={(event) => terminalRef.current?.scrollLines(Math.sign(event.deltaY) * 3)}>
      <span class="probe" aria-hidden="true">MMMMMMMMMM</span>
      <div class="screen">
        {rows.map((runs, y) => <div key={y} class="line">{runs.map((run, n) => <span key={n} class={run.style} style={{ color: run.color, backgroundColor: run.background }}>{run.text}</span>)}</div>)}
      </div>
      <textarea ref={input} aria-label="Terminal. Shift+Tab leaves it." autocapitalize="off" autoComplete="off" spellcheck={false} rows={1}
        onKeyDown={onKeyDown} onInput={onInput} onCompositionEnd={onInput} onPaste={onPaste} />
    </div>
  );
}

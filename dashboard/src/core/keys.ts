/** Keys of the terminal as the bytes that a VT100 and xterm send. */

export interface Key {
  key: string;
  ctrl: boolean;
  alt: boolean;
  shift: boolean;
}

const CURSOR: Record<string, string> = { ArrowUp: "A", ArrowDown: "B", ArrowRight: "C", ArrowLeft: "D", Home: "H", End: "F" };
const NUMBERED: Record<string, number> = { Insert: 2, Delete: 3, PageUp: 5, PageDown: 6, F5: 15, F6: 17, F7: 18, F8: 19, F9: 20, F10: 21, F11: 23, F12: 24 };
const FUNCTION: Record<string, string> = { F1: "P", F2: "Q", F3: "R", F4: "S" };
const PLAIN: Record<string, string> = { Enter: "\r", Backspace: "\x7f", Tab: "\t", Escape: "\x1b" };

/** The bytes of a key that is no text; undefined for text, and for keys that are the browser's. `application` is the mode of the cursor keys. */
export function keyBytes({ key, ctrl, alt, shift }: Key, application: boolean): string | undefined {
  // Shift+Tab leaves the terminal: the keyboard must not be caught in it.
  if (key === "Tab" && shift) return undefined;
  const modifier = 1 + (shift ? 1 : 0) + (alt ? 2 : 0) + (ctrl ? 4 : 0);
  const cursor = CURSOR[key];
  if (cursor) return modifier > 1 ? `\x1b[1;${modifier}${cursor}` : `\x1b${application ? "O" : "["}${cursor}`;
  const numbered = NUMBERED[key];
  if (numbered) return modifier > 1 ? `\x1b[${numbered};${modifier}~` : `\x1b[${numbered}~`;
  if (FUNCTION[key]) return `\x1bO${FUNCTION[key]}`;
  if (PLAIN[key]) return (alt ? "\x1b" : "") + (key === "Backspace" && ctrl ? "\b" : PLAIN[key]);
  if (key.length !== 1) return undefined;
  // Ctrl+Shift is for copy and paste.
  if (ctrl && !shift) return control(key, alt);
  return alt && !ctrl ? `\x1b${key}` : undefined;
}

function control(key: string, alt: boolean): string | undefined {
  const code = key.toUpperCase().charCodeAt(0);
  const byte = key === " " ? 0 : code >= 64 && code <= 95 ? code - 64 : undefined;
  return byte === undefined ? undefined : (alt ? "\x1b" : "") + String.fromCharCode(byte);
}

/** Channels of `v5.channel.k8s.io`: the first byte of each message. */
export const CHANNEL = { stdin: 0, stdout: 1, stderr: 2, error: 3, resize: 4 } as const;

export function frame(channel: number, text: string): Uint8Array<ArrayBuffer> {
  const bytes = new TextEncoder().encode(text);
  const message = new Uint8Array(bytes.length + 1);
  message[0] = channel;
  message.set(bytes, 1);
  return message;
}

/** How a session ended, from the status on the error channel. */
export function endOf(text: string): string {
  try {
    const status = JSON.parse(text);
    if (status.status === "Success") return "The session has ended.";
    const code = (status.details?.causes ?? []).find((cause: { reason?: string }) => cause.reason === "ExitCode")?.message;
    return code ? `The session has ended with exit code ${code}.` : `The session has ended: ${status.message}`;
  } catch {
    return "The session has ended.";
  }
}

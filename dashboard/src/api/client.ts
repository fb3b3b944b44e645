/** Requests to the API: same origin, with the token of the tab, each with a timeout. */
import type { Open } from "../core/kube";
import { connection, rejected, reportProblem, reportSeen, token } from "./session";

const TIMEOUT_MS = 10_000;
/** Polls at once: a browser opens six connections over HTTP/1.1, of which watches hold some. */
const BACKGROUND_REQUESTS_MAX = 2;

export class ApiError extends Error {
  constructor(
    /** The HTTP status; 0 if no answer came. */
    readonly status: number,
    message: string,
    readonly reason = "",
  ) {
    super(message);
  }
}

export interface Options {
  method?: string;
  body?: unknown;
  contentType?: string;
  accept?: string;
  headers?: Record<string, string>;
  timeoutMs?: number;
  signal?: AbortSignal;
  /** A poll: it waits until few others run. */
  background?: boolean;
  /** The whole response is wanted, whatever its status. */
  raw?: boolean;
}

let backgroundRequests = 0;
const queue: (() => void)[] = [];

async function inBackground<T>(run: () => Promise<T>): Promise<T> {
  if (backgroundRequests >= BACKGROUND_REQUESTS_MAX) await new Promise<void>((resolve) => queue.push(resolve));
  else backgroundRequests += 1;
  try {
    return await run();
  } finally {
    // The place passes to the next one in the queue.
    const next = queue.shift();
    if (next) next();
    else backgroundRequests -= 1;
  }
}

/** The response's head. Its body is the caller's. `signal` and the timeout end both. */
export async function open(path: string, options: Options = {}): Promise<Response> {
  const timeout = new AbortController();
  const timer = options.timeoutMs === Infinity ? undefined : setTimeout(() => timeout.abort(), options.timeoutMs ?? TIMEOUT_MS);
  const headers: Record<string, string> = { accept: options.accept ?? "application/json", ...options.headers };
  if (token.get()) headers.authorization = `Bearer ${token.get()}`;
  if (options.body !== undefined) headers["content-type"] = options.contentType ?? "application/json";
  try {
    const response = await fetch(path, {
      method: options.method ?? "GET", headers, cache: "no-store", credentials: "same-origin", redirect: "error",
      body: options.body === undefined ? undefined : typeof options.body === "string" ? options.body : JSON.stringify(options.body),
      signal: options.signal ? AbortSignal.any([options.signal, timeout.signal]) : timeout.signal,
    });
    // 502 to 504 of a proxy before the API are no answer of the API.
    if (isGateway(response)) throw new ApiError(0, `the API server is not reachable (${response.status})`);
    reportSeen();
    if (response.status === 401) rejected.set(true);
    if (!response.ok && !options.raw) {
      const error = await errorOf(response);
      // A request without credentials is rejected as one of this user, where the server allows such requests at all.
      if (error.status === 403 && !token.get() && error.message.includes('"system:anonymous"')) rejected.set(true);
      throw error;
    }
    return response;
  } catch (error) {
    if (options.signal?.aborted || (error instanceof ApiError && error.status)) throw error;
    const message = error instanceof ApiError ? error.message : timeout.signal.aborted ? "no answer in time" : "the connection failed";
    if (!options.raw) reportProblem(message);
    throw new ApiError(0, message);
  } finally {
    clearTimeout(timer);
  }
}

/** Statuses of a gateway, without the body that Kubernetes' API and pods' servers send. */
function isGateway(response: Response): boolean {
  if (response.status < 502 || response.status > 504) return false;
  return !response.headers.has("audit-id") && !response.headers.has("coracle-reason") && !/json/.test(response.headers.get("content-type") ?? "");
}

async function errorOf(response: Response): Promise<ApiError> {
  const text = await response.text().catch(() => "");
  try {
    const status = JSON.parse(text);
    return new ApiError(response.status, status.message || response.statusText, status.reason);
  } catch {
    return new ApiError(response.status, text.slice(0, 300).trim() || response.statusText);
  }
}

export async function request(path: string, options: Options = {}): Promise<Open> {
  const run = async () => {
    // The body is under the same timeout as the head.
    const limit = new AbortController();
    const timer = setTimeout(() => limit.abort(), options.timeoutMs ?? TIMEOUT_MS);
    const signal = options.signal ? AbortSignal.any([options.signal, limit.signal]) : limit.signal;
    try {
      const response = await open(path, { ...options, timeoutMs: Infinity, signal });
      return await response.json();
    } catch (error) {
      if (error instanceof ApiError || options.signal?.aborted) throw error;
      const message = limit.signal.aborted ? "no answer in time" : "the answer was cut off";
      reportProblem(message);
      throw new ApiError(0, message);
    } finally {
      clearTimeout(timer);
    }
  };
  return options.background ? inBackground(run) : run();
}

const HEARTBEAT_MS = 5000;
const HEARTBEAT_TIMEOUT_MS = 4000;

/** Asks for the version now and then: a page whose watches are quiet still notices a lost API. */
export function startHeartbeat(): void {
  const beat = async () => {
    const quiet = Date.now() - connection.get().seen >= HEARTBEAT_MS / 2 || connection.get().problem !== "";
    if (!document.hidden && quiet && !rejected.get()) await request("/version", { timeoutMs: HEARTBEAT_TIMEOUT_MS }).catch(() => undefined);
    setTimeout(() => void beat(), HEARTBEAT_MS);
  };
  void beat();
}

const base64url = (text: string): string =>
  btoa(String.fromCharCode(...new TextEncoder().encode(text))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");

/** A WebSocket to the API. Browsers can't set its headers: upstream takes the token as a subprotocol. */
export function socket(path: string, protocol: string): WebSocket {
  const url = new URL(path, location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  const protocols = token.get() ? [`base64url.bearer.authorization.k8s.io.${base64url(token.get())}`, protocol] : [protocol];
  const opened = new WebSocket(url, protocols);
  opened.binaryType = "arraybuffer";
  return opened;
}

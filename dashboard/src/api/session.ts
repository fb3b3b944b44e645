/** The page's token, if it has one, and the state of the connection to the API. */
import { takeToken } from "../core/route";
import { Observable } from "./observable";

const TOKEN_KEY = "coracle-token";

/** Takes a token out of the address, so that it is in no history entry and no screenshot, and keeps it for this tab. */
function initialToken(): string {
  const taken = takeToken(location.hash);
  if (taken) {
    sessionStorage.setItem(TOKEN_KEY, taken.token);
    history.replaceState(null, "", location.pathname + location.search + taken.rest);
  }
  return sessionStorage.getItem(TOKEN_KEY) ?? "";
}

export const token = new Observable<string>(initialToken());

export function setToken(value: string): void {
  if (value) sessionStorage.setItem(TOKEN_KEY, value);
  else sessionStorage.removeItem(TOKEN_KEY);
  rejected.set(false);
  token.set(value);
}

/** Whether the API answered 401: the page then shows a form for a token. */
export const rejected = new Observable(false);

export interface Connection {
  /** When the API last answered, in milliseconds; 0 before the first answer. */
  seen: number;
  /** Why it doesn't answer now; empty if it does. */
  problem: string;
}

export const connection = new Observable<Connection>({ seen: 0, problem: "" });
/** Counts recoveries: open watches are then opened again, since the old connections may be dead. */
export const recoveries = new Observable(0);

const SEEN_GRAIN_MS = 1000;

export function reportSeen(): void {
  const before = connection.get();
  const now = Date.now();
  if (before.problem) {
    connection.set({ seen: now, problem: "" });
    if (before.seen) recoveries.set(recoveries.get() + 1);
  } else if (now - before.seen >= SEEN_GRAIN_MS) {
    connection.set({ seen: now, problem: "" });
  }
}

export function reportProblem(problem: string): void {
  connection.set({ ...connection.get(), problem });
}

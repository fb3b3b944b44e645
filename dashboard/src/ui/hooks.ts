/** Hooks that several pages use. */
import { useEffect, useReducer, useState } from "preact/hooks";
import { formatRoute, parseRoute, type Route } from "../core/route";

export function useRoute(): Route {
  const [route, set] = useState(() => parseRoute(location.hash));
  useEffect(() => {
    const changed = () => set(parseRoute(location.hash));
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return route;
}

export function go(path: string[], namespace = currentNamespace()): void {
  location.hash = formatRoute(path, namespace);
}

/** Changes a part of the address without an entry in the history. */
export function replaceRoute(change: Partial<Route>): void {
  const route = { ...parseRoute(location.hash), ...change };
  history.replaceState(null, "", formatRoute(route.path, route.namespace, route.filter));
  dispatchEvent(new HashChangeEvent("hashchange"));
}

export const currentNamespace = (): string => parseRoute(location.hash).namespace;

/** The address of a page, in the namespace that is chosen. */
export const link = (...path: string[]): string => formatRoute(path, currentNamespace());

/** The time, again each `ms`. */
export function useNow(ms = 1000): number {
  const [, render] = useReducer((n: number) => n + 1, 0);
  useEffect(() => {
    const timer = setInterval(() => render(undefined as never), ms);
    return () => clearInterval(timer);
  }, [ms]);
  return Date.now();
}

export function useTitle(title: string): void {
  useEffect(() => void (document.title = `${title} · Coracle`), [title]);
}

/** Addresses of the page's parts: `#/pods/NAMESPACE/NAME?ns=…&q=…`. */

export interface Route {
  /** The segments, decoded; the first one names the page. */
  path: string[];
  /** The namespace that lists show; empty for all. */
  namespace: string;
  filter: string;
}

const decode = (text: string): string => {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
};

export function parseRoute(hash: string): Route {
  const [path = "", query = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  const parameters = new URLSearchParams(query);
  const segments = path.split("/").filter(Boolean).map(decode);
  return { path: segments.length ? segments : ["overview"], namespace: parameters.get("ns") ?? "", filter: parameters.get("q") ?? "" };
}

export function formatRoute(path: string[], namespace = "", filter = ""): string {
  const parameters = new URLSearchParams();
  if (namespace) parameters.set("ns", namespace);
  if (filter) parameters.set("q", filter);
  const query = parameters.toString();
  return `#/${path.map(encodeURIComponent).join("/")}${query ? `?${query}` : ""}`;
}

/** A token in the address's fragment, and the fragment without it. */
export function takeToken(hash: string): { token: string; rest: string } | undefined {
  const found = /[#?&]token=([^&]*)/.exec(hash);
  if (!found?.[1]) return undefined;
  const rest = (hash.slice(0, found.index + 1) + hash.slice(found.index + found[0].length)).replace("?&", "?").replace("#&", "#").replace(/[?&]$/, "");
  return { token: decode(found[1]), rest: rest === "#" ? "" : rest };
}

/** Each word of the filter must be in the text, which is in lower case. */
export function matcher(filter: string): (text: string) => boolean {
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  return (text) => words.every((word) => text.includes(word));
}

/** A layered drawing of a directed graph: callers left, callees right. Deterministic: the same graph has the same picture. */

export interface LayoutEdge {
  from: string;
  to: string;
}

export interface Point {
  x: number;
  y: number;
}

export interface Layout {
  /** The upper left corners. */
  nodes: Map<string, Point>;
  /** The points of each edge, in the order of the given edges: out of a node's right side and into another's left side. */
  edges: Point[][];
  width: number;
  height: number;
}

export interface Sizes {
  nodeWidth: number;
  nodeHeight: number;
  layerGap: number;
  rowGap: number;
}

const SWEEPS = 8;

/** Edges that close a cycle, found by depth-first search from the nodes that nothing calls. They are drawn against the direction. */
function backEdges(ids: string[], edges: LayoutEdge[]): Set<LayoutEdge> {
  const out = new Map<string, LayoutEdge[]>(ids.map((id) => [id, []]));
  const called = new Set<string>();
  for (const edge of edges) {
    out.get(edge.from)!.push(edge);
    if (edge.from !== edge.to) called.add(edge.to);
  }
  const back = new Set<LayoutEdge>();
  const state = new Map<string, "open" | "done">();
  for (const root of [...ids.filter((id) => !called.has(id)), ...ids]) {
    if (state.has(root)) continue;
    // A stack of its own: a chain of calls may be longer than the engine's.
    const stack: { id: string; next: number }[] = [{ id: root, next: 0 }];
    state.set(root, "open");
    while (stack.length) {
      const top = stack.at(-1)!;
      const edge = out.get(top.id)![top.next];
      top.next += 1;
      if (!edge) {
        state.set(top.id, "done");
        stack.pop();
      } else if (state.get(edge.to) === "open") back.add(edge);
      else if (!state.has(edge.to)) {
        state.set(edge.to, "open");
        stack.push({ id: edge.to, next: 0 });
      }
    }
  }
  return back;
}

/** The layer of each node: one behind its furthest caller. */
function layersOf(ids: string[], edges: LayoutEdge[]): Map<string, number> {
  const layer = new Map(ids.map((id) => [id, 0]));
  const waiting = new Map(ids.map((id) => [id, 0]));
  for (const edge of edges) waiting.set(edge.to, waiting.get(edge.to)! + 1);
  const ready = ids.filter((id) => waiting.get(id) === 0);
  for (let n = 0; n < ready.length; n += 1) {
    for (const edge of edges.filter((each) => each.from === ready[n])) {
      layer.set(edge.to, Math.max(layer.get(edge.to)!, layer.get(edge.from)! + 1));
      waiting.set(edge.to, waiting.get(edge.to)! - 1);
      if (waiting.get(edge.to) === 0) ready.push(edge.to);
    }
  }
  return layer;
}

/** Orders each layer by the mean place of the neighbours, forth and back, so that few lines cross. */
function order(layers: string[][], links: [string, string][]): void {
  const neighbours = new Map<string, { before: string[]; after: string[] }>();
  const of = (id: string) => neighbours.get(id) ?? neighbours.set(id, { before: [], after: [] }).get(id)!;
  for (const [from, to] of links) {
    of(from).after.push(to);
    of(to).before.push(from);
  }
  for (let sweep = 0; sweep < SWEEPS; sweep += 1) {
    const forth = sweep % 2 === 0;
    const side = forth ? "before" : "after";
    const sequence = forth ? layers.slice(1) : layers.slice(0, -1).reverse();
    const place = new Map(layers.flatMap((each) => each.map((id, n) => [id, (n + 0.5) / each.length] as const)));
    for (const layer of sequence) {
      const mean = new Map(layer.map((id) => {
        const near = of(id)[side];
        return [id, near.length ? near.reduce((sum, each) => sum + place.get(each)!, 0) / near.length : place.get(id)!];
      }));
      layer.sort((a, b) => mean.get(a)! - mean.get(b)! || (a < b ? -1 : 1));
      for (const [n, id] of layer.entries()) place.set(id, (n + 0.5) / layer.length);
    }
  }
}

export function layout(ids: string[], edges: LayoutEdge[], sizes: Sizes): Layout {
  const known = new Set(ids);
  const drawn = edges.filter((edge) => known.has(edge.from) && known.has(edge.to));
  const back = backEdges(ids, drawn);
  const forward = drawn.map((edge) => (back.has(edge) ? { from: edge.to, to: edge.from } : edge)).filter((edge) => edge.from !== edge.to);
  const layer = layersOf(ids, forward);
  const depth = Math.max(0, ...layer.values()) + 1;
  const layers: string[][] = Array.from({ length: ids.length ? depth : 0 }, () => []);
  for (const id of ids) layers[layer.get(id)!]!.push(id);
  // An edge over several layers gets a place in each, so that it passes beside the nodes there.
  const links: [string, string][] = [];
  const bends = new Map<LayoutEdge, string[]>();
  for (const [n, edge] of drawn.entries()) {
    const [from, to] = back.has(edge) ? [edge.to, edge.from] : [edge.from, edge.to];
    const through: string[] = [];
    for (let at = layer.get(from)! + 1; at < layer.get(to)!; at += 1) {
      const bend = `\u0000${n} ${at}`;
      layers[at]!.push(bend);
      through.push(bend);
    }
    const chain = [from, ...through, to];
    for (let at = 1; at < chain.length; at += 1) if (chain[at - 1] !== chain[at]) links.push([chain[at - 1]!, chain[at]!]);
    bends.set(edge, back.has(edge) ? through.reverse() : through);
  }
  order(layers, links);
  return place(layers, edges, bends, back, known, sizes);
}

function place(layers: string[][], edges: LayoutEdge[], bends: Map<LayoutEdge, string[]>, back: Set<LayoutEdge>, known: Set<string>, sizes: Sizes): Layout {
  const { nodeWidth, nodeHeight, layerGap, rowGap } = sizes;
  const isBend = (id: string) => id.startsWith("\u0000");
  const heightOf = (id: string) => (isBend(id) ? nodeHeight / 3 : nodeHeight);
  const heights = layers.map((layer) => layer.reduce((sum, id) => sum + heightOf(id) + rowGap, 0) - rowGap);
  const height = Math.max(nodeHeight, ...heights);
  const at = new Map<string, Point>();
  for (const [n, layer] of layers.entries()) {
    let y = (height - heights[n]!) / 2;
    for (const id of layer) {
      at.set(id, { x: n * (nodeWidth + layerGap), y });
      y += heightOf(id) + rowGap;
    }
  }
  const middle = (id: string): number => at.get(id)!.y + heightOf(id) / 2;
  const right = (id: string): Point => ({ x: at.get(id)!.x + nodeWidth, y: middle(id) });
  const left = (id: string): Point => ({ x: at.get(id)!.x, y: middle(id) });
  const points = edges.map((edge) => {
    if (!known.has(edge.from) || !known.has(edge.to)) return [];
    const through = bends.get(edge)!;
    // A straight piece through a layer.
    const passes = through.flatMap((id) => (back.has(edge) ? [right(id), left(id)] : [left(id), right(id)]));
    return [right(edge.from), ...passes, left(edge.to)];
  });
  const nodes = new Map([...at].filter(([id]) => !isBend(id)));
  return { nodes, edges: points, width: Math.max(0, layers.length * (nodeWidth + layerGap) - layerGap), height: layers.length ? height : 0 };
}

/** The point at a share of the way of one piece of `curve`. */
export function onCurve(from: Point, to: Point, share: number): Point {
  const reach = to.x > from.x ? (to.x - from.x) / 2 : 60;
  const [a, b, c, d] = [(1 - share) ** 3, 3 * share * (1 - share) ** 2, 3 * share ** 2 * (1 - share), share ** 3];
  return { x: a * from.x + b * (from.x + reach) + c * (to.x - reach) + d * to.x, y: (a + b) * from.y + (c + d) * to.y };
}

/** A smooth line through points, as an SVG path. Between two points it leaves and arrives horizontally. */
export function curve(points: Point[]): string {
  const [first, ...rest] = points;
  if (!first) return "";
  let path = `M${first.x} ${first.y}`;
  let from = first;
  for (const to of rest) {
    const reach = to.x > from.x ? (to.x - from.x) / 2 : 60;
    path += to.y === from.y && to.x > from.x ? `L${to.x} ${to.y}` : `C${from.x + reach} ${from.y} ${to.x - reach} ${to.y} ${to.x} ${to.y}`;
    from = to;
  }
  return path;
}

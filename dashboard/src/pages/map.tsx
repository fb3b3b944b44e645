/** Which Service calls which: a picture, and a table with the same content. */
import { SERVICES, useObjects, usePods } from "../api/kinds";
import { NAMESPACES_MAX, useCalls, useTraffic } from "../api/metrics";
import { graph, type Graph, type GraphEdge, type GraphNode } from "../core/graph";
import { curve, layout, onCurve, type Point, type Sizes } from "../core/layout";
import { duration, percent, rate } from "../core/quantity";
import { matcher, type Route } from "../core/route";
import { link, useTitle } from "../ui/hooks";
import { Missing, NoMetrics, Panel } from "../ui/parts";
import { Rows } from "../ui/table";
import { largestNamespaces } from "./pods";

const SIZES: Sizes = { nodeWidth: 176, nodeHeight: 62, layerGap: 150, rowGap: 34 };
const MARGIN = 24;
/** Above this share of failed calls a line is red. */
const ERROR_SHARE = 0.01;

const failing = (edge: { rate?: number; errors?: number }): boolean => Boolean(edge.errors && edge.rate && edge.errors / edge.rate > ERROR_SHARE);
/** From 1.5 to 7 pixels: a line for a thousand times the calls is some four times as wide. */
const widthOf = (calls: number): number => Math.min(7, 1.5 + Math.log10(1 + calls) * 1.8);

/** Nearer to the callee: lines to several callees have parted there. */
const LABEL_SHARE = 0.6;

function labelOf(points: Point[]): Point {
  const at = Math.floor((points.length - 1) / 2);
  return onCurve(points[at]!, points[at + 1]!, LABEL_SHARE);
}

const edgeText = (edge: GraphEdge): string => `${rate(edge.rate)}/s${edge.p50 === undefined ? "" : ` · ${duration(edge.p50)}`}`;
const LABEL_CHAR_PX = 6.2;

const edgeClass = (edge: GraphEdge): string => `edge ${failing(edge) ? "bad" : ""} ${edge.rate > 0 ? "" : "still"}`;

function Label({ edge, points }: { edge: GraphEdge; points: Point[] }) {
  const label = labelOf(points);
  const errors = failing(edge) ? `${percent(edge.errors, edge.rate)} errors` : "";
  const width = Math.max(edgeText(edge).length, errors.length) * LABEL_CHAR_PX + 12;
  const height = errors ? 32 : 18;
  return (
    <g class={edgeClass(edge)}>
      <rect x={label.x - width / 2} y={label.y - height / 2} width={width} height={height} rx="5" />
      <text x={label.x} y={label.y + (errors ? -3 : 4)} text-anchor="middle">{edgeText(edge)}</text>
      {errors && <text class="bad" x={label.x} y={label.y + 11} text-anchor="middle">{errors}</text>}
    </g>
  );
}

const TITLE_CHARS_MAX = 21;
const shortened = (text: string, max: number): string => (text.length > max ? `${text.slice(0, max - 1)}…` : text);

function Node({ node, at, withNamespace }: { node: GraphNode; at: Point; withNamespace: boolean }) {
  const { nodeWidth, nodeHeight } = SIZES;
  const words = node.kind === "outside" ? "callers outside of pods" : node.rate === undefined ? (node.kind === "service" ? "no data" : "calls only") : `${rate(node.rate)}/s${node.p50 === undefined ? "" : ` · p50 ${duration(node.p50)}`}`;
  const where = node.kind === "outside" ? "" : withNamespace ? `${node.namespace}${node.kind === "workload" ? ", workload" : ""}` : node.kind === "workload" ? "workload" : "";
  const box = (
    <g class={`node ${node.kind} ${failing(node) ? "bad" : ""}`} transform={`translate(${at.x} ${at.y})`}>
      <title>{node.namespace ? `${node.namespace}/${node.title}` : node.title}</title>
      <rect width={nodeWidth} height={nodeHeight} rx="10" />
      <text class="title" x="14" y={where ? 22 : 27}>{shortened(node.title, TITLE_CHARS_MAX)}</text>
      <text x="14" y={where ? 38 : 46}>{words}</text>
      {where && <text class="where" x="14" y="53">{shortened(where, 26)}</text>}
    </g>
  );
  return node.page ? <a href={link(...node.page)} aria-label={`${node.kind} ${node.title}`}>{box}</a> : box;
}

function Picture({ found, withNamespace }: { found: Graph; withNamespace: boolean }) {
  const drawn = layout(found.nodes.map((node) => node.id), found.edges, SIZES);
  const [width, height] = [drawn.width + 2 * MARGIN, drawn.height + 2 * MARGIN];
  return (
    <div class="picture">
      <svg width={width} height={height} viewBox={`${-MARGIN} ${-MARGIN} ${width} ${height}`} role="group" aria-label="Which Service calls which. The table below has the same content.">
        <defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" markerHeight="9" markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0 8 4 0 8z" /></marker></defs>
        {found.edges.map((edge, n) => <g key={`${edge.from} ${edge.to}`} class={edgeClass(edge)}><path d={curve(drawn.edges[n]!)} stroke-width={widthOf(edge.rate)} marker-end="url(#arrow)" /></g>)}
        {found.edges.map((edge, n) => <Label key={`${edge.from} ${edge.to}`} edge={edge} points={drawn.edges[n]!} />)}
        {found.nodes.map((node) => <Node key={node.id} node={node} at={drawn.nodes.get(node.id)!} withNamespace={withNamespace} />)}
      </svg>
    </div>
  );
}

function Calls({ found }: { found: Graph }) {
  const byId = new Map(found.nodes.map((node) => [node.id, node]));
  const name = (id: string) => { const node = byId.get(id)!; const text = node.namespace ? `${node.namespace}/${node.title}` : node.title; return node.page ? <a href={link(...node.page)}>{text}</a> : text; };
  return (
    <Panel title="Calls">
      <Rows label="Calls" rows={found.edges} keyOf={(edge) => `${edge.from} ${edge.to}`} columns={[
        { name: "Caller", width: "", cell: (edge) => name(edge.from) },
        { name: "Service", width: "", cell: (edge) => name(edge.to) },
        { name: "Calls/s", width: "", number: true, cell: (edge) => rate(edge.rate) },
        { name: "Errors/s", width: "", number: true, cell: (edge) => <span class={failing(edge) ? "bad-text" : ""}>{rate(edge.errors)}</span> },
        { name: "Failed", width: "", number: true, cell: (edge) => (edge.errors === undefined ? "–" : percent(edge.errors, edge.rate)) },
        { name: "p50", width: "", number: true, cell: (edge) => duration(edge.p50) },
      ]} />
    </Panel>
  );
}

export function MapPage({ route }: { route: Route }) {
  useTitle("Map");
  const pods = usePods(route.namespace);
  const services = useObjects(SERVICES, route.namespace);
  const namespaces = largestNamespaces(services.rows.map((each) => ({ namespace: each.metadata.namespace ?? "" })), route.namespace);
  const calls = useCalls(namespaces);
  const traffic = useTraffic("services", namespaces);
  const matches = matcher(route.filter);
  const all = graph(calls.value ?? [], pods.rows, services.rows, traffic.value);
  const kept = new Set(all.edges.filter((edge) => matches(`${edge.from} ${edge.to}`.toLowerCase())).flatMap((edge) => [edge.from, edge.to]));
  const found = route.filter ? { ...all, nodes: all.nodes.filter((node) => kept.has(node.id)), edges: all.edges.filter((edge) => matches(`${edge.from} ${edge.to}`.toLowerCase())) } : all;
  const quiet = all.quiet.filter((node) => matches(node.id));
  return (
    <div class="page">
      <h1>Map <span class="counted">who calls which Service, now{route.namespace ? "" : `, of ${Math.min(namespaces.length, NAMESPACES_MAX)} namespaces`}</span></h1>
      <Missing view={services} what={route.namespace ? `services in ${route.namespace}` : "services in all namespaces"} />
      {calls.error ? <p class="alert info" role="note"><strong>No data.</strong><NoMetrics error={calls.error} /> The map needs the custom metric <code>http_calls_per_second</code> of Services.</p>
        : !calls.value && services.loaded && <p class="missing waiting" role="status">Waiting for the calls…</p>}
      {calls.value && found.edges.length === 0 && <p class="missing">No Service was called in the last minutes.</p>}
      {found.edges.length > 0 && <><Picture found={found} withNamespace={!route.namespace} /><Calls found={found} /></>}
      {all.left > 0 && <p class="missing">{all.left} more with fewer calls are not drawn. Choose a namespace, or filter.</p>}
      {quiet.length > 0 && (
        <Panel title="Services without calls">
          <p class="content labels">{quiet.map((node) => <a key={node.id} class="chip" href={link(...node.page!)}>{route.namespace ? node.title : `${node.namespace}/${node.title}`}{node.rate === undefined ? "" : ` ${rate(node.rate)}/s`}</a>)}</p>
        </Panel>
      )}
    </div>
  );
}

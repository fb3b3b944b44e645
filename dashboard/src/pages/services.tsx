/** Services, and one Service: ports, endpoints, address, traffic. */
import { pathOf, SERVICES, SLICES, useObject, useObjects, usePods } from "../api/kinds";
import { recorded, useTraffic } from "../api/metrics";
import type { Obj, Open } from "../core/kube";
import type { Traffic } from "../core/metrics";
import { count, duration, rate } from "../core/quantity";
import { matcher, type Route } from "../core/route";
import { endpointsOf, serviceRow, type ServiceRow } from "../core/service";
import { request } from "../api/client";
import { Action, useOutcome } from "../ui/action";
import { ageColumn } from "../ui/columns";
import { EventsOf } from "../ui/events";
import { link, useTitle } from "../ui/hooks";
import { Age, Fact, Facts, Figure, Labels, Missing, NoMetrics, Panel, Spark, State } from "../ui/parts";
import { Grid, Rows } from "../ui/table";
import { largestNamespaces } from "./pods";

export function ServicesPage({ route }: { route: Route }) {
  const [, namespace, name] = route.path;
  return namespace && name ? <ServicePage key={`${namespace}/${name}`} namespace={namespace} name={name} /> : <ServiceList route={route} />;
}

function ServiceList({ route }: { route: Route }) {
  useTitle("Services");
  const view = useObjects(SERVICES, route.namespace);
  const slices = useObjects(SLICES, route.namespace);
  const all = view.rows.map((each) => serviceRow(each, slices.rows));
  const traffic = useTraffic("services", largestNamespaces(all, route.namespace));
  const matches = matcher(route.filter);
  const rows = all.filter((row) => matches(row.search));
  const flow = (row: ServiceRow): Traffic | undefined => traffic.value?.get(row.key);
  return (
    <div class="page fill">
      <h1>Services <span class="counted">{rows.length === all.length ? count(rows.length) : `${count(rows.length)} of ${count(all.length)}`}</span><NoMetrics error={traffic.error} /></h1>
      <Missing view={view} what={route.namespace ? `services in ${route.namespace}` : "services in all namespaces"} />
      {all.length > 0 && <Grid label="Services" rows={rows} keyOf={(row) => row.uid} href={(row) => link("services", row.namespace, row.name)} initial={{ column: 0, descending: false }} columns={[
        { name: "Name", width: "minmax(10rem, 1.2fr)", cell: (row) => row.name, sort: (row) => `${row.name} ${row.namespace}` },
        ...(route.namespace ? [] : [{ name: "Namespace", width: "minmax(6rem, 0.7fr)", cell: (row: ServiceRow) => row.namespace, sort: (row: ServiceRow) => `${row.namespace} ${row.name}` }]),
        { name: "State", width: "minmax(9rem, 1fr)", cell: (row) => <State tone={row.tone}>{row.state}</State>, sort: (row) => row.state },
        { name: "Type", width: "minmax(6.5rem, 0.6fr)", cell: (row) => row.type, sort: (row) => row.type },
        { name: "Address", width: "minmax(9rem, 1fr)", cell: (row) => <span title={row.addresses.join(", ")}>{row.addresses.join(", ") || "–"}</span> },
        { name: "Ports", width: "minmax(7rem, 0.8fr)", cell: (row) => <span title={row.ports.join(", ")}>{row.ports.join(", ") || "–"}</span> },
        { name: "Req/s", width: "minmax(9rem, 0.6fr)", number: true, cell: (row) => <>{flow(row) && <Spark values={recorded(`service ${row.key}`, traffic.at, flow(row)?.requests)} />}<span class="figures">{rate(flow(row)?.requests)}</span></>, sort: (row) => flow(row)?.requests ?? -1 },
        { name: "Err/s", width: "4.5rem", number: true, cell: (row) => rate(flow(row)?.errors), sort: (row) => flow(row)?.errors ?? -1 },
        { name: "p50", width: "5rem", number: true, cell: (row) => duration(flow(row)?.p50), sort: (row) => flow(row)?.p50 ?? -1 },
        ageColumn(),
      ]} />}
    </div>
  );
}

function ServicePage({ namespace, name }: { namespace: string; name: string }) {
  useTitle(name);
  const view = useObject(SERVICES, namespace, name);
  const slices = useObjects(SLICES, namespace, `labelSelector=${encodeURIComponent(`kubernetes.io/service-name=${name}`)}`);
  const [outcome, report] = useOutcome();
  const service = view.rows[0];
  const row = service && serviceRow(service, slices.rows);
  return (
    <div class="page">
      <p class="crumbs"><a href={link("services")}>Services</a> / {namespace}</p>
      <h1>{name} {row && <span class="counted"><State tone={row.tone}>{row.state}</State></span>}
        {row && <span class="actions right"><Action label="Delete" danger right={{ verb: "delete", group: "", resource: "services", namespace }} done="The Service is being deleted." onDone={report}
          confirm={<p>The Service <strong>{name}</strong> is deleted. Its pods stay, but its address and its name are gone.</p>} run={() => request(pathOf(SERVICES, namespace, name), { method: "DELETE" })} /></span>}
      </h1>
      {outcome}
      <Missing view={view} what={`the Service ${name}`} empty="This Service does not exist (any more)." />
      {service && row && <ServiceBody service={service} row={row} slices={slices.rows} />}
    </div>
  );
}

function ServiceBody({ service, row, slices }: { service: Obj; row: ServiceRow; slices: Obj[] }) {
  const traffic = useTraffic("services", [row.namespace]);
  const perPod = useTraffic("pods", [row.namespace]);
  const pods = new Map(usePods(row.namespace).rows.map((pod) => [pod.name, pod]));
  const flow = traffic.value?.get(row.key);
  const series = (what: string, value: number | undefined) => recorded(`${what} service ${row.key}`, traffic.at, value);
  const endpoints = endpointsOf(slices);
  const ports: Open[] = service.spec?.ports ?? [];
  return (
    <>
      <div class="figures-row">
        <Figure label="Requests/s" value={rate(flow?.requests)} note={<NoMetrics error={traffic.error} />} spark={series("requests", flow?.requests)} />
        <Figure label="Errors/s" value={rate(flow?.errors)} tone={flow?.errors ? "bad" : undefined} note={flow?.errors === undefined ? "no data" : "status 500 and above"} spark={series("errors", flow?.errors)} />
        <Figure label="Latency p50" value={duration(flow?.p50)} note={flow?.p99 === undefined ? "no data" : `p99 ${duration(flow.p99)}`} spark={series("p50", flow?.p50)} />
        <Figure label="Endpoints" value={`${row.ready} ready`} tone={row.tone === "bad" ? "bad" : undefined} note={`of ${endpoints.length}`} />
      </div>
      <Panel title="Endpoints">
        {endpoints.length === 0 ? <p class="missing">{service.spec?.selector ? "No pod has the labels of the selector." : "The Service has no selector and no endpoints."}</p> : (
          <Rows label="Endpoints" rows={endpoints} keyOf={(each) => `${each.address} ${each.pod}`} max={50} columns={[
            { name: "Pod", width: "", cell: (each) => (each.pod ? <a href={link("pods", row.namespace, each.pod)}>{each.pod}</a> : "–") },
            { name: "State", width: "", cell: (each) => <State tone={each.ready ? "good" : "busy"}>{each.ready ? "Ready" : each.terminating ? "Ending" : "Not ready"}</State> },
            { name: "Address", width: "", cell: (each) => <code>{each.address}</code> },
            { name: "Node", width: "", cell: (each) => each.node || "–" },
            { name: "Status", width: "", cell: (each) => pods.get(each.pod)?.status ?? "–" },
            { name: "Req/s", width: "", number: true, cell: (each) => rate(perPod.value?.get(`${row.namespace}/${each.pod}`)?.requests) },
            { name: "p50", width: "", number: true, cell: (each) => duration(perPod.value?.get(`${row.namespace}/${each.pod}`)?.p50) },
          ]} />
        )}
      </Panel>
      <Panel title="Service" aside={<a href={link("plugins", row.namespace, row.name)}>Call its functions</a>}>
        <Facts>
          <Fact name="Type">{row.type}</Fact>
          <Fact name="Name in the cluster"><code>{row.name}.{row.namespace}.svc</code></Fact>
          <Fact name="Addresses">{row.addresses.map((each) => <div key={each}><code>{each}</code></div>)}</Fact>
          <Fact name="Ports">{ports.map((port) => <div key={port.port}>{port.name ? `${port.name}: ` : ""}{port.port} → {port.targetPort}{port.nodePort ? `, node port ${port.nodePort}` : ""} <span class="hint">{port.protocol ?? "TCP"}</span></div>)}</Fact>
          {service.spec?.selector && <Fact name="Selector"><Labels labels={service.spec.selector} /></Fact>}
          <Fact name="Session affinity">{service.spec?.sessionAffinity ?? "None"}</Fact>
          <Fact name="Created"><Age at={row.created} /> ago</Fact>
        </Facts>
      </Panel>
      <EventsOf kind="Service" namespace={row.namespace} name={row.name} />
    </>
  );
}

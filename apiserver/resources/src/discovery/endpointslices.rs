//! EndpointSlices: the endpoints of a Service. The data plane connects to them, so addresses of the host are
//! rejected: anybody who may write a slice could otherwise reach the host.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::Ipv4Net;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cells::{AGE, NAME, age, column, name};
use crate::choices::choice;
use crate::core::addresses::{canonical_ip_warning, endpoint_ip};
use crate::core::pods::update::semantically_equal;
use crate::field::{ErrorList, Path};
use crate::metadata::labels;
use crate::read::{default_to, get, has, int, is_zero, items, items_mut, object_mut, put, text, texts};
use crate::{Column, Context, MetadataChecks, Row, Storage, Strategy, rules};

pub(crate) static ROW: Row = Row {
    group: "discovery.k8s.io",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    schema: "io.k8s.api.discovery.v1.EndpointSlice",
    storage: Storage::Stored("endpointslices"),
    indexes_labels: true,
    strategy: &EndpointSlice,
    example: r#"apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: example, labels: {kubernetes.io/service-name: example}}
addressType: IPv4
endpoints: [{addresses: [10.1.2.3], conditions: {ready: true}}]
ports: [{name: http, port: 80}]
"#,
    ..Row::NAMESPACED
};

struct EndpointSlice;

const COLUMNS: &[Column] =
    &[NAME, column("AddressType", "string"), column("Ports", "string"), column("Endpoints", "string"), AGE];
const TYPES: &[&str] = &["FQDN", "IPv4", "IPv6"];
const ENDPOINTS_MAX: usize = 1000;
const ADDRESSES_MAX: usize = 100;
const PORTS_MAX: usize = 20000;
const TOPOLOGY_MAX: usize = 16;
const HINTS_MAX: usize = 8;
/// Maximum number of ports or addresses in a cell.
const SHOWN: usize = 3;
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

fn ports(errors: &mut ErrorList, ports: &[Value]) {
    let list_at = Path::root("ports");
    if ports.len() > PORTS_MAX {
        return errors.too_many(&list_at, ports.len(), PORTS_MAX);
    }
    let mut names = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let at = list_at.index(i);
        let name = text(port, "name");
        if !name.is_empty() {
            errors.invalid_each(&at.child("name"), name, rules::dns_label(name));
        }
        if !names.insert(name) {
            errors.duplicate(&at.child("name"), name);
        }
        choice(errors, port, "protocol", &["SCTP", "TCP", "UDP"], &at);
        if has(port, "appProtocol") {
            let protocol = text(port, "appProtocol");
            errors.invalid_each(&at.child("appProtocol"), protocol, rules::label_key(protocol));
        }
    }
}

fn fqdn(errors: &mut ErrorList, name: &str, path: &Path<'_>) {
    if name.is_empty() {
        return errors.required(path, "");
    }
    let bare = name.strip_suffix('.').unwrap_or(name);
    let wrong = rules::dns_subdomain(bare);
    if !wrong.is_empty() {
        errors.invalid(path, bare, &wrong.join(","));
    } else if !bare.contains('.') {
        errors.invalid(path, bare, "should be a domain with at least two segments separated by dots");
    } else if let Some((label, wrong)) =
        bare.split('.').map(|l| (l, rules::dns_label(l))).find(|(_, wrong)| !wrong.is_empty())
    {
        errors.invalid(path, label, &wrong.join(","));
    }
}

fn addresses(errors: &mut ErrorList, endpoint: &Value, kind: &str, loopback: &[Ipv4Net], path: &Path<'_>) {
    let given = items(endpoint, "addresses").len();
    if given == 0 {
        errors.required(path, "must contain at least 1 address");
    } else if given > ADDRESSES_MAX {
        errors.too_many(path, given, ADDRESSES_MAX);
    }
    for (i, address) in texts(endpoint, "addresses").enumerate() {
        let at = path.index(i);
        let (wrong, right_family) = match kind {
            "IPv4" => (rules::ip_in_old_field(address, true), IpAddr::is_ipv4 as fn(&IpAddr) -> bool),
            "IPv6" => (rules::ip_strictly(address), IpAddr::is_ipv6 as fn(&IpAddr) -> bool),
            "FQDN" => {
                fqdn(errors, address, &at);
                continue;
            }
            _ => continue,
        };
        if wrong.is_empty() {
            if !rules::parse_ip_leniently(address).is_some_and(|ip| right_family(&ip)) {
                errors.invalid(path, address, &format!("must be an {kind} address"));
            }
            endpoint_ip(errors, address, loopback, &at);
        } else {
            errors.invalid_each(&at, address, wrong);
        }
    }
}

fn hints(errors: &mut ErrorList, hints: &Value, path: &Path<'_>) {
    type Rule = fn(&str) -> Vec<String>;
    for (key, rule) in [("forZones", rules::label_value as Rule), ("forNodes", rules::dns_subdomain as Rule)] {
        let list_at = path.child(key);
        let list = items(hints, key);
        if list.len() > HINTS_MAX {
            return errors.too_many(&list_at, list.len(), HINTS_MAX);
        }
        let mut names = BTreeSet::new();
        for (i, hint) in list.iter().enumerate() {
            let at = list_at.index(i);
            let at = at.child("name");
            let name = text(hint, "name");
            if !names.insert(name) {
                errors.duplicate(&at, name);
            }
            errors.invalid_each(&at, name, rule(name));
        }
    }
}

fn endpoints(errors: &mut ErrorList, object: &Value, loopback: &[Ipv4Net]) {
    let list_at = Path::root("endpoints");
    let list = items(object, "endpoints");
    if list.len() > ENDPOINTS_MAX {
        return errors.too_many(&list_at, list.len(), ENDPOINTS_MAX);
    }
    let kind = text(object, "addressType");
    for (i, endpoint) in list.iter().enumerate() {
        let at = list_at.index(i);
        addresses(errors, endpoint, kind, loopback, &at.child("addresses"));
        if has(endpoint, "nodeName") {
            let node = text(endpoint, "nodeName");
            errors.invalid_each(&at.child("nodeName"), node, rules::dns_subdomain(node));
        }
        let topology = get(endpoint, "deprecatedTopology");
        let topology_at = at.child("deprecatedTopology");
        let count = topology.as_object().map_or(0, serde_json::Map::len);
        if count > TOPOLOGY_MAX {
            errors.too_many(&topology_at, count, TOPOLOGY_MAX);
        }
        labels(errors, topology, &topology_at);
        if has(endpoint, "hostname") {
            let host = text(endpoint, "hostname");
            errors.invalid_each(&at.child("hostname"), host, rules::dns_label(host));
        }
        hints(errors, get(endpoint, "hints"), &at.child("hints"));
    }
}

fn validate(errors: &mut ErrorList, context: &Context<'_>, object: &Value, old: Option<&Value>) {
    match text(object, "addressType") {
        "" => errors.required(&Path::root("addressType"), ""),
        kind if TYPES.contains(&kind) => {}
        other => errors.not_supported(&Path::root("addressType"), other, TYPES),
    }
    ports(errors, items(object, "ports"));
    let mut found = ErrorList::new();
    endpoints(&mut found, object, context.loopback);
    // Unchanged endpoints are exempt from newer rules.
    if old.is_none_or(|old| !semantically_equal(get(old, "endpoints"), get(object, "endpoints"))) {
        errors.append(found);
    }
}

/// Drops the topology of v1beta1, which v1 ignores.
fn drop_topology(object: &mut Value) {
    for endpoint in items_mut(object, "endpoints") {
        put(endpoint, "deprecatedTopology", Value::Null);
    }
}

fn listed(all: &[String]) -> String {
    let shown = all.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(",");
    match all.len() {
        count if count > SHOWN => format!("{shown} + {} more...", count - SHOWN),
        _ if shown.is_empty() => "<unset>".into(),
        _ => shown,
    }
}

impl Strategy for EndpointSlice {
    fn default(&self, object: &mut Value) {
        for port in items_mut(object, "ports") {
            default_to(port, "name", "");
            default_to(port, "protocol", "TCP");
        }
        for endpoint in items_mut(object, "endpoints") {
            object_mut(endpoint, "conditions");
            default_to(endpoint, "addresses", Value::Null);
        }
        // Go's encoder writes both lists, empty ones as null.
        for key in ["endpoints", "ports"] {
            if is_zero(get(object, key))
                && let Some(map) = object.as_object_mut()
            {
                map.insert(key.into(), Value::Null);
            }
        }
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        drop_topology(object);
    }

    fn prepare_update(&self, _: &Context<'_>, new: &mut Value, old: &Value) {
        if !semantically_equal(get(new, "endpoints"), get(old, "endpoints")) {
            // A dropped field still counts as a change.
            let generation = int(get(old, "metadata"), "generation").unwrap_or(0) + 1;
            put(object_mut(new, "metadata"), "generation", json!(generation));
            drop_topology(new);
        }
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn generation_changes(&self, new: &Value, old: &Value) -> bool {
        let labels = |of: &Value| get(get(of, "metadata"), "labels").clone();
        ["addressType", "endpoints", "ports"].iter().any(|key| !semantically_equal(get(new, key), get(old, key)))
            || !semantically_equal(&labels(new), &labels(old))
    }

    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::Whole
    }

    fn validate(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        validate(errors, context, object, old);
        if let Some(old) = old {
            let key = "addressType";
            errors.immutable(&Path::root(key), get(object, key), get(old, key));
        }
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut found = Vec::new();
        if old.is_none() && text(object, "addressType") == "FQDN" {
            found.push("spec.addressType: FQDN endpoints are deprecated".into());
        }
        let manager = text(get(get(object, "metadata"), "labels"), MANAGED_BY);
        if ["endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io"].contains(&manager) {
            return found;
        }
        let list_at = Path::root("endpoints");
        for (i, endpoint) in items(object, "endpoints").iter().enumerate() {
            let at = list_at.index(i);
            let at = at.child("addresses");
            found.extend(
                texts(endpoint, "addresses").enumerate().filter_map(|(j, ip)| canonical_ip_warning(&at.index(j), ip)),
            );
        }
        found
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let ports: Vec<String> = items(object, "ports")
            .iter()
            .map(|port| match int(port, "port") {
                Some(number) => number.to_string(),
                None if has(port, "name") => text(port, "name").to_owned(),
                None => "*".into(),
            })
            .collect();
        let addresses: Vec<String> =
            items(object, "endpoints").iter().flat_map(|e| texts(e, "addresses")).map(str::to_owned).collect();
        vec![
            name(object),
            json!(text(object, "addressType")),
            json!(listed(&ports)),
            json!(listed(&addresses)),
            age(object, now),
        ]
    }
}

//! Endpoints: the deprecated predecessor of EndpointSlices, still written by hand for Services without a selector.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::addresses::{canonical_ip_warning, endpoint_ip};
use crate::cells::{AGE, NAME, age, column, name};
use crate::choices::required_choice;
use crate::core::pods::update::semantically_equal;
use crate::field::{ErrorList, Path};
use crate::read::{default_zero_to, get, has, int, items, items_mut, text};
use crate::rules;
use crate::{Column, Context, MetadataChecks, Row, Storage, Strategy};

pub(crate) static ROW: Row = Row {
    kind: "Endpoints",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    schema: "io.k8s.api.core.v1.Endpoints",
    storage: Storage::Stored("services/endpoints"),
    deprecated: Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
    strategy: &Endpoints,
    example: r#"apiVersion: v1
kind: Endpoints
metadata: {name: example}
subsets:
- addresses: [{ip: 192.0.2.1}]
  ports: [{port: 8080}]
"#,
    ..Row::NAMESPACED
};

struct Endpoints;

const COLUMNS: &[Column] = &[NAME, column("Endpoints", "string"), AGE];
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
/// Maximum number of addresses in a cell.
const SHOWN_MAX: usize = 3;

fn address(errors: &mut ErrorList, address: &Value, context: &Context<'_>, at: &Path<'_>) {
    let ip = text(address, "ip");
    errors.invalid_each(&at.child("ip"), ip, rules::ip_in_old_field(ip, true));
    let host = text(address, "hostname");
    if !host.is_empty() {
        errors.invalid_each(&at.child("hostname"), host, rules::dns_label(host));
    }
    if has(address, "nodeName") {
        let node = text(address, "nodeName");
        errors.invalid_each(&at.child("nodeName"), node, rules::dns_subdomain(node));
    }
    endpoint_ip(errors, ip, context.loopback, &at.child("ip"));
}

fn port(errors: &mut ErrorList, port: &Value, named: bool, at: &Path<'_>) {
    const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
    let name = text(port, "name");
    if name.is_empty() {
        if named {
            errors.required(&at.child("name"), "");
        }
    } else {
        errors.invalid_each(&at.child("name"), name, rules::dns_label(name));
    }
    let number = int(port, "port").unwrap_or(0);
    for message in rules::port_number(number) {
        errors.invalid(&at.child("port"), number, &message);
    }
    required_choice(errors, port, "protocol", PROTOCOLS, at);
    if has(port, "appProtocol") {
        let protocol = text(port, "appProtocol");
        errors.invalid_each(&at.child("appProtocol"), protocol, rules::label_key(protocol));
    }
}

fn subsets(errors: &mut ErrorList, object: &Value, context: &Context<'_>) {
    let at = Path::root("subsets");
    for (i, subset) in items(object, "subsets").iter().enumerate() {
        let at = at.index(i);
        if items(subset, "addresses").is_empty() && items(subset, "notReadyAddresses").is_empty() {
            errors.required(&at, "must specify `addresses` or `notReadyAddresses`");
        }
        for list in ["addresses", "notReadyAddresses"] {
            let list_at = at.child(list);
            for (j, one) in items(subset, list).iter().enumerate() {
                address(errors, one, context, &list_at.index(j));
            }
        }
        let (ports, ports_at) = (items(subset, "ports"), at.child("ports"));
        for (j, one) in ports.iter().enumerate() {
            port(errors, one, ports.len() > 1, &ports_at.index(j));
        }
    }
}

/// The first addresses, and the number of further ones.
fn format_addresses(object: &Value) -> String {
    let subsets = items(object, "subsets");
    if subsets.is_empty() {
        return "<none>".into();
    }
    let (mut list, mut count) = (Vec::new(), 0);
    for subset in subsets {
        let addresses = items(subset, "addresses");
        let ports: Vec<Option<i64>> = match items(subset, "ports") {
            [] => vec![None],
            ports => ports.iter().map(|port| int(port, "port")).collect(),
        };
        for port in ports {
            count += addresses.len();
            for address in addresses.iter().take(SHOWN_MAX.saturating_sub(list.len())) {
                let ip = text(address, "ip");
                list.push(match port {
                    None => ip.to_owned(),
                    Some(port) if ip.contains(':') => format!("[{ip}]:{port}"),
                    Some(port) => format!("{ip}:{port}"),
                });
            }
        }
    }
    let all = list.join(",");
    if count > SHOWN_MAX { format!("{all} + {} more...", count - SHOWN_MAX) } else { all }
}

impl Strategy for Endpoints {
    fn default(&self, object: &mut Value) {
        for subset in items_mut(object, "subsets") {
            for port in items_mut(subset, "ports") {
                default_zero_to(port, "protocol", "TCP");
            }
        }
    }

    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::ChangeThenWhole
    }

    fn validate(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        let mut found = ErrorList::new();
        subsets(&mut found, object, context);
        // Unchanged subsets are exempt.
        let exempt = |old| semantically_equal(get(object, "subsets"), get(old, "subsets"));
        if !found.is_empty() && !old.is_some_and(exempt) {
            errors.append(found);
        }
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        if text(get(get(object, "metadata"), "labels"), MANAGED_BY) == "endpoint-controller" {
            return Vec::new();
        }
        let at = Path::root("subsets");
        let mut found = Vec::new();
        for (i, subset) in items(object, "subsets").iter().enumerate() {
            let at = at.index(i);
            for list in ["addresses", "notReadyAddresses"] {
                let list_at = at.child(list);
                for (j, address) in items(subset, list).iter().enumerate() {
                    found.extend(canonical_ip_warning(&list_at.index(j).child("ip"), text(address, "ip")));
                }
            }
        }
        found
    }

    fn create_on_update(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![name(object), json!(format_addresses(object)), age(object, now)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_ports_are_checked_and_shown() {
        let context = Context::of_server(Timestamp::UNIX_EPOCH);
        let errors_of = |subsets: Value| -> Vec<String> {
            let mut errors = ErrorList::new();
            Endpoints.validate(&context, &json!({"subsets": subsets}), None, &mut errors);
            errors.shown().iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
        };
        assert_eq!(
            errors_of(json!([{}])),
            ["subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`"]
        );
        let ports = json!([{"port": 0, "protocol": "TCP", "name": "a"}, {"port": 1, "protocol": "X"}]);
        assert_eq!(
            errors_of(json!([{"addresses": [{"ip": "127.0.0.1"}], "ports": ports}])),
            [
                "subsets[0].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
                "subsets[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "subsets[0].ports[1].name: Required value",
                "subsets[0].ports[1].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            ]
        );
        let old = json!({"subsets": [{}]});
        let mut errors = ErrorList::new();
        Endpoints.validate(&context, &old, Some(&old), &mut errors);
        assert!(errors.is_empty(), "unchanged subsets are exempt");
        let many = json!([{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}]);
        let object = json!({"subsets": [{"addresses": many, "ports": [{"port": 80}, {"port": 81}]}]});
        assert_eq!(format_addresses(&object), "192.0.2.1:80,[2001:db8::1]:80,192.0.2.1:81 + 1 more...");
        assert_eq!(format_addresses(&json!({})), "<none>");
    }
}

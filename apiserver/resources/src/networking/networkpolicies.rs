//! NetworkPolicies: allowed traffic between pods.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cells::{AGE, NAME, age, column, name, selector};
use crate::choices::optional_choice;
use crate::field::{ErrorList, Path};
use crate::metadata::label_selector;
use crate::read::{default_to, get, has, int, items, items_mut, put, spec_of, text, texts};
use crate::{Column, Context, Row, Storage, Strategy, rules};

pub(crate) static ROW: Row = Row {
    group: "networking.k8s.io",
    kind: "NetworkPolicy",
    plural: "networkpolicies",
    singular: "networkpolicy",
    short_names: &["netpol"],
    schema: "io.k8s.api.networking.v1.NetworkPolicy",
    storage: Storage::Stored("networkpolicies"),
    inert: Some("nothing enforces NetworkPolicies here yet: all connections stay allowed"),
    strategy: &NetworkPolicy,
    example: r#"apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: example}
spec: {podSelector: {}}
"#,
    ..Row::NAMESPACED
};

struct NetworkPolicy;

const COLUMNS: &[Column] = &[NAME, column("Pod-Selector", "string"), AGE];
const SPEC: Path<'static> = Path::root("spec");
/// Directions, with the field of the peers.
const DIRECTIONS: [(&str, &str); 2] = [("ingress", "from"), ("egress", "to")];
const TYPES: &[&str] = &["Ingress", "Egress"];

fn port(errors: &mut ErrorList, port: &Value, path: &Path<'_>) {
    optional_choice(errors, port, "protocol", &["TCP", "UDP", "SCTP"], path);
    let (port_at, end_at) = (path.child("port"), path.child("endPort"));
    let end = int(port, "endPort");
    match get(port, "port") {
        Value::Null => {
            if let Some(end) = end {
                errors.invalid(&end_at, end, "may not be specified when `port` is not specified");
            }
        }
        Value::String(named) => {
            if let Some(end) = end {
                errors.invalid(&end_at, end, "may not be specified when `port` is non-numeric");
            }
            errors.invalid_each(&port_at, named, rules::port_name(named));
        }
        number => {
            let number = number.as_i64().unwrap_or(0);
            for why in rules::port_number(number) {
                errors.invalid(&port_at, number, &why);
            }
            if let Some(end) = end {
                if end < number {
                    // Upstream shows the port here instead of its end.
                    errors.invalid(&end_at, number, "must be greater than or equal to `port`");
                }
                for why in rules::port_number(end) {
                    errors.invalid(&end_at, end, &why);
                }
            }
        }
    }
}

/// Validates a block; unchanged ones are exempt.
fn ip_block(errors: &mut ErrorList, block: &Value, had: &BTreeSet<&str>, path: &Path<'_>) {
    let cidr = text(block, "cidr");
    let cidr_at = path.child("cidr");
    if cidr.is_empty() {
        return errors.required(&cidr_at, "");
    }
    if !had.contains(cidr) {
        errors.invalid_each(&cidr_at, cidr, rules::cidr_in_old_field(cidr));
    }
    let Some(whole) = rules::cidr_block(cidr) else { return };
    let except_at = path.child("except");
    for (i, except) in texts(block, "except").enumerate() {
        let at = except_at.index(i);
        if !had.contains(except) {
            errors.invalid_each(&at, except, rules::cidr_in_old_field(except));
        }
        let Some(part) = rules::cidr_block(except) else { continue };
        if !whole.contains(&part.network()) || whole.prefix_len() >= part.prefix_len() {
            errors.invalid(&at, except, "must be a strict subset of `cidr`");
        }
    }
}

fn peer(errors: &mut ErrorList, peer: &Value, had: &BTreeSet<&str>, path: &Path<'_>) {
    for key in ["podSelector", "namespaceSelector"] {
        label_selector(errors, get(peer, key), &path.child(key));
    }
    let block = get(peer, "ipBlock");
    let selects = has(peer, "podSelector") || has(peer, "namespaceSelector");
    if !block.is_null() {
        ip_block(errors, block, had, &path.child("ipBlock"));
        if selects {
            errors.forbidden(path, "may not specify both ipBlock and another peer");
        }
    } else if !selects {
        errors.required(path, "must specify a peer");
    }
}

fn validate(errors: &mut ErrorList, spec: &Value, old: Option<&Value>) {
    let had: BTreeSet<&str> = old.map(|old| blocks(old).map(|(_, cidr)| cidr).collect()).unwrap_or_default();
    label_selector(errors, get(spec, "podSelector"), &SPEC.child("podSelector"));
    for (direction, other_side) in DIRECTIONS {
        let list_at = SPEC.child(direction);
        for (i, rule) in items(spec, direction).iter().enumerate() {
            let at = list_at.index(i);
            let (ports_at, peers_at) = (at.child("ports"), at.child(other_side));
            for (j, given) in items(rule, "ports").iter().enumerate() {
                port(errors, given, &ports_at.index(j));
            }
            for (j, given) in items(rule, other_side).iter().enumerate() {
                peer(errors, given, &had, &peers_at.index(j));
            }
        }
    }
    let types_at = SPEC.child("policyTypes");
    let types = items(spec, "policyTypes");
    if types.len() > TYPES.len() {
        return errors.invalid(
            &types_at,
            get(spec, "policyTypes").clone(),
            "may not specify more than two policyTypes",
        );
    }
    for (i, given) in texts(spec, "policyTypes").enumerate() {
        if !TYPES.contains(&given) {
            errors.not_supported(&types_at.index(i), given, TYPES);
        }
    }
}

/// All address blocks of a policy, with their paths.
fn blocks(spec: &Value) -> impl Iterator<Item = (String, &str)> {
    DIRECTIONS.iter().flat_map(move |(direction, other_side)| {
        let rules = items(spec, direction).iter().enumerate();
        rules.flat_map(move |(i, rule)| {
            let peers = items(rule, other_side).iter().enumerate();
            peers.filter(|(_, peer)| has(peer, "ipBlock")).flat_map(move |(j, peer)| {
                let block = get(peer, "ipBlock");
                let at = format!("spec.{direction}[{i}].{other_side}[{j}].ipBlock");
                let except_at = at.clone();
                let except = texts(block, "except").enumerate();
                std::iter::once((format!("{at}.cidr"), text(block, "cidr")))
                    .chain(except.map(move |(k, cidr)| (format!("{except_at}.except[{k}]"), cidr)))
            })
        })
    })
}

impl Strategy for NetworkPolicy {
    fn default(&self, object: &mut Value) {
        let spec = spec_of(object);
        default_to(spec, "podSelector", json!({}));
        for (direction, _) in DIRECTIONS {
            for rule in items_mut(spec, direction) {
                for port in items_mut(rule, "ports") {
                    default_to(port, "protocol", "TCP");
                }
            }
        }
        if items(spec, "policyTypes").is_empty() {
            let egress = !items(spec, "egress").is_empty();
            put(spec, "policyTypes", if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
        }
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn generation_counts_empty(&self) -> bool {
        true
    }

    fn validate(&self, _: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        validate(errors, get(object, "spec"), old.map(|old| get(old, "spec")));
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        let odd = |(at, cidr): (String, &str)| {
            let found = rules::canonical_cidr_warning(cidr).into_iter();
            found.map(|why| format!("{at}: {why}")).collect::<Vec<_>>()
        };
        blocks(get(object, "spec")).flat_map(odd).collect()
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![name(object), json!(selector(get(get(object, "spec"), "podSelector"))), age(object, now)]
    }
}

//! Ingresses: rules by host and path, and the Services or objects behind them.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::typed_reference;
use crate::cells::{AGE, NAME, age, column, name};
use crate::core::addresses::canonical_ip_warning;
use crate::field::{ErrorList, Path};
use crate::read::{at, fields, get, has, int, items, text, texts};
use crate::{Column, Context, MetadataChecks, Row, STATUS, Storage, Strategy, rules};

pub(crate) static ROW: Row = Row {
    group: "networking.k8s.io",
    kind: "Ingress",
    plural: "ingresses",
    singular: "ingress",
    short_names: &["ing"],
    schema: "io.k8s.api.networking.v1.Ingress",
    subresources: &[STATUS],
    storage: Storage::Stored("ingress"),
    shows_empty: true,
    inert: Some("nothing serves Ingresses here yet: traffic is not routed"),
    strategy: &Ingress,
    example: r#"apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: example}
spec: {defaultBackend: {service: {name: example, port: {number: 80}}}}
"#,
    ..Row::NAMESPACED
};

struct Ingress;

const COLUMNS: &[Column] = &[
    NAME,
    column("Class", "string"),
    column("Hosts", "string"),
    column("Address", "string"),
    column("Ports", "string"),
    AGE,
];
const SPEC: Path<'static> = Path::root("spec");
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const PATH_TYPES: &[&str] = &["Exact", "ImplementationSpecific", "Prefix"];
const NOT_AN_IP: &str = "must be a DNS name, not an IP address";
/// Maximum number of hosts in a cell.
const HOSTS_SHOWN: usize = 3;

/// Invalid values that an update may leave unchanged.
#[derive(Clone, Copy, Default)]
struct ExemptFields {
    secret_names: bool,
    wildcard_rules: bool,
}

impl ExemptFields {
    fn of(old: &Value) -> Self {
        let spec = get(old, "spec");
        let bad_secret = |tls: &Value| !secret_name(text(tls, "secretName")).is_empty();
        let bad_rule = |rule: &Value| {
            let mut errors = ErrorList::new();
            rule_value(&mut errors, rule, &SPEC);
            text(rule, "host").contains('*') && !errors.is_empty()
        };
        Self {
            secret_names: items(spec, "tls").iter().any(bad_secret),
            wildcard_rules: items(spec, "rules").iter().any(bad_rule),
        }
    }
}

fn secret_name(name: &str) -> Vec<String> {
    if name.is_empty() { Vec::new() } else { rules::dns_subdomain(name) }
}

fn backend(errors: &mut ErrorList, backend: &Value, path: &Path<'_>) {
    match (has(backend, "resource"), has(backend, "service")) {
        (true, true) => return errors.invalid(path, "", "cannot set both resource and service backends"),
        (true, false) => return typed_reference(errors, get(backend, "resource"), &path.child("resource")),
        (false, true) => {}
        (false, false) => return errors.invalid(path, "", "resource or service backend is required"),
    }
    let (service, service_at) = (get(backend, "service"), path.child("service"));
    let (name, name_at) = (text(service, "name"), service_at.child("name"));
    if name.is_empty() {
        errors.required(&name_at, "");
    } else {
        errors.invalid_each(&name_at, name, rules::dns_label(name));
    }
    let (port, port_at) = (get(service, "port"), service_at.child("port"));
    let (port_name, number) = (text(port, "name"), int(port, "number").unwrap_or(0));
    match (port_name.is_empty(), number) {
        (true, 0) => errors.required(path, "port name or number is required"),
        (false, 0) => errors.invalid_each(&port_at.child("name"), port_name, rules::port_name(port_name)),
        (true, number) => {
            for why in rules::port_number(number) {
                errors.invalid(&port_at.child("number"), number, &why);
            }
        }
        (false, _) => errors.invalid(path, "", "cannot set both port name & port number"),
    }
}

fn http_path(errors: &mut ErrorList, entry: &Value, path: &Path<'_>) {
    if !has(entry, "pathType") {
        return errors.required(&path.child("pathType"), "pathType must be specified");
    }
    let (wanted, at) = (text(entry, "path"), path.child("path"));
    let absolute = wanted.starts_with('/');
    match text(entry, "pathType") {
        "Exact" | "Prefix" => {
            if !absolute {
                errors.invalid(&at, wanted, "must be an absolute path");
            }
            for part in ["//", "/./", "/../", "%2f", "%2F"].iter().filter(|part| wanted.contains(**part)) {
                errors.invalid(&at, wanted, &format!("must not contain '{part}'"));
            }
            for end in ["/..", "/."].iter().filter(|end| wanted.ends_with(**end)) {
                errors.invalid(&at, wanted, &format!("cannot end with '{end}'"));
            }
        }
        "ImplementationSpecific" => {
            if !wanted.is_empty() && !absolute {
                errors.invalid(&at, wanted, "must be an absolute path");
            }
        }
        other => errors.not_supported(&path.child("pathType"), other, PATH_TYPES),
    }
    backend(errors, get(entry, "backend"), &path.child("backend"));
}

fn rule_value(errors: &mut ErrorList, rule: &Value, path: &Path<'_>) {
    let http = get(rule, "http");
    if http.is_null() {
        return;
    }
    let http_at = path.child("http");
    let paths_at = http_at.child("paths");
    let paths = items(http, "paths");
    if paths.is_empty() {
        errors.required(&paths_at, "");
    }
    for (i, entry) in paths.iter().enumerate() {
        http_path(errors, entry, &paths_at.index(i));
    }
}

fn host_name(host: &str) -> Vec<String> {
    if host.contains('*') { rules::wildcard_subdomain(host) } else { rules::dns_subdomain(host) }
}

fn validate_spec(errors: &mut ErrorList, spec: &Value, kept: ExemptFields) {
    let rules_given = items(spec, "rules");
    let default = get(spec, "defaultBackend");
    if rules_given.is_empty() && default.is_null() {
        let why = "either `defaultBackend` or `rules` must be specified";
        errors.invalid(&SPEC, get(spec, "rules").clone(), why);
    }
    if !default.is_null() {
        backend(errors, default, &SPEC.child("defaultBackend"));
    }
    let rules_at = SPEC.child("rules");
    for (i, rule) in rules_given.iter().enumerate() {
        let (at, host) = (rules_at.index(i), text(rule, "host"));
        if !host.is_empty() {
            if rules::parse_ip_leniently(host).is_some() {
                errors.invalid(&at.child("host"), host, NOT_AN_IP);
            }
            errors.invalid_each(&at.child("host"), host, host_name(host));
        }
        if !(kept.wildcard_rules && host.contains('*')) {
            rule_value(errors, rule, &at);
        }
    }
    let tls_at = SPEC.child("tls");
    for (i, tls) in items(spec, "tls").iter().enumerate() {
        let at = tls_at.index(i);
        let hosts_at = at.child("hosts");
        for (j, host) in texts(tls, "hosts").enumerate() {
            errors.invalid_each(&hosts_at.index(j), host, host_name(host));
        }
        let secret = text(tls, "secretName");
        if !kept.secret_names {
            errors.invalid_each(&at.child("secretName"), secret, secret_name(secret));
        }
    }
    if has(spec, "ingressClassName") {
        let class = text(spec, "ingressClassName");
        errors.invalid_each(&SPEC.child("ingressClassName"), class, rules::dns_subdomain(class));
    }
}

fn validate_status(errors: &mut ErrorList, new: &Value, old: &Value) {
    const INGRESS: Path<'static> = Path::root("status.loadBalancer.ingress");
    let list = |object| items(at(object, &["status", "loadBalancer"]), "ingress");
    let had: BTreeSet<&str> = list(old).iter().map(|point| text(point, "ip")).collect();
    for (i, point) in list(new).iter().enumerate() {
        let at = INGRESS.index(i);
        let (ip, host) = (text(point, "ip"), text(point, "hostname"));
        if !ip.is_empty() && !had.contains(ip) {
            errors.invalid_each(&at.child("ip"), ip, rules::ip_in_old_field(ip, true));
        }
        if !host.is_empty() {
            errors.invalid_each(&at.child("hostname"), host, rules::dns_subdomain(host));
            if rules::parse_ip_leniently(host).is_some() {
                errors.invalid(&at.child("hostname"), host, NOT_AN_IP);
            }
        }
    }
}

fn class_annotation(object: &Value) -> Option<&str> {
    get(at(object, &["metadata", "annotations"]), CLASS_ANNOTATION).as_str()
}

fn format_hosts(rules: &[Value]) -> String {
    let hosts: Vec<&str> = rules.iter().map(|rule| text(rule, "host")).collect();
    let named: Vec<&str> = hosts.iter().copied().filter(|host| !host.is_empty()).take(HOSTS_SHOWN).collect();
    if named.is_empty() {
        return "*".into();
    }
    // Upstream counts rules after the last shown one, whether or not they have a host.
    let third = hosts.iter().enumerate().filter(|(_, host)| !host.is_empty()).nth(HOSTS_SHOWN - 1);
    let list = named.join(",");
    match third {
        Some((last, _)) if last + 1 < hosts.len() => format!("{list} + {} more...", hosts.len() - HOSTS_SHOWN),
        _ => list,
    }
}

fn format_addresses(object: &Value) -> String {
    let points = items(at(object, &["status", "loadBalancer"]), "ingress");
    let address = |point| if text(point, "ip").is_empty() { text(point, "hostname") } else { text(point, "ip") };
    let all: BTreeSet<&str> = points.iter().map(address).filter(|address| !address.is_empty()).collect();
    all.into_iter().collect::<Vec<_>>().join(",")
}

fn validate_class_annotation(errors: &mut ErrorList, object: &Value) {
    let spec = get(object, "spec");
    if let Some(class) = class_annotation(object)
        && has(spec, "ingressClassName")
        && class != text(spec, "ingressClassName")
    {
        let at = Path::root("annotations");
        let why = "must match `ingressClassName` when both are specified";
        errors.invalid(&at.child(CLASS_ANNOTATION), class, why);
    }
}

impl Strategy for Ingress {
    fn default(&self, object: &mut Value) {
        // Go's encoder always writes both.
        crate::read::object_mut(crate::read::object_mut(object, "status"), "loadBalancer");
        fields(object).entry("spec").or_insert_with(|| json!({}));
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        fields(object).insert("status".into(), json!({"loadBalancer": {}}));
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::ChangeThenWhole
    }

    fn validate(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        match old {
            Some(old) if !context.subresource.is_empty() => validate_status(errors, object, old),
            Some(old) => validate_spec(errors, get(object, "spec"), ExemptFields::of(old)),
            None => {
                validate_spec(errors, get(object, "spec"), ExemptFields::default());
                validate_class_annotation(errors, object);
            }
        }
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        if old.is_none() {
            let old_way = class_annotation(object).is_some() && !has(get(object, "spec"), "ingressClassName");
            let why = "is deprecated, please use 'spec.ingressClassName' instead";
            return old_way.then(|| format!("annotation \"{CLASS_ANNOTATION}\" {why}")).into_iter().collect();
        }
        let list_at = Path::root("status.loadBalancer.ingress");
        let points = items(at(object, &["status", "loadBalancer"]), "ingress").iter().enumerate();
        let changed = old.is_some_and(|old| get(old, "status") != get(object, "status"));
        points
            .filter(|_| changed)
            .filter_map(|(i, point)| canonical_ip_warning(&list_at.index(i), text(point, "ip")))
            .collect()
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = get(object, "spec");
        let class = if has(spec, "ingressClassName") { text(spec, "ingressClassName") } else { "<none>" };
        let ports = if items(spec, "tls").is_empty() { "80" } else { "80, 443" };
        vec![
            name(object),
            json!(class),
            json!(format_hosts(items(spec, "rules"))),
            json!(format_addresses(object)),
            json!(ports),
            age(object, now),
        ]
    }
}

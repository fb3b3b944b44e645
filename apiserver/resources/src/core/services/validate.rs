//! Validation of a Service's spec and load balancer status.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{externally_accessible, families, is_headless, is_load_balancer, needs_health_check};
use crate::Context;
use crate::choices::{choice, optional_choice, required_choice};
use crate::core::addresses::endpoint_ip;
use crate::core::pods::port;
use crate::field::{ErrorList, FieldError, Path, go_struct};
use crate::metadata::labels;
use crate::read::{get, has, int, items, text, texts};
use crate::rules;

const SPEC: Path<'static> = Path::root("spec");
const AFFINITY_SECONDS_MAX: i64 = 86400;
const ONLY_BALANCED: &str = "may only be used when `type` is 'LoadBalancer'";
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const OLD_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";

/// Validates a Service.
pub(super) fn service(errors: &mut ErrorList, context: &Context<'_>, object: &Value, old: Option<&Value>) {
    let spec = get(object, "spec");
    let notes = get(get(object, "metadata"), "annotations");
    let (hints, mode) = (notes.get(OLD_HINTS), notes.get(TOPOLOGY_MODE));
    if let (Some(hints), Some(mode)) = (hints, mode)
        && hints != mode
    {
        let why = format!("must match annotations[{OLD_HINTS}] when both are specified");
        errors.invalid(&Path::root("metadata.annotations").key(TOPOLOGY_MODE), mode.clone(), &why);
    }
    let kind = text(spec, "type");
    if items(spec, "ports").is_empty() && !is_headless(spec) && kind != "ExternalName" {
        errors.required(&SPEC.child("ports"), "");
    }
    match kind {
        "LoadBalancer" | "NodePort" if is_headless(spec) => {
            let why = format!("may not be set to 'None' for {kind} services");
            errors.invalid(&SPEC.child("clusterIPs").index(0), "None", &why);
        }
        "ExternalName" => external_name(errors, spec),
        _ => {}
    }
    ports(errors, spec);
    labels(errors, get(spec, "selector"), &SPEC.child("selector"));
    affinity(errors, spec);
    families::validate_consistency(errors, spec, old.map(|old| get(old, "spec")));
    let ips_at = SPEC.child("externalIPs");
    let known: BTreeSet<&str> = old.into_iter().flat_map(|old| texts(get(old, "spec"), "externalIPs")).collect();
    for (i, ip) in texts(spec, "externalIPs").enumerate() {
        let at = ips_at.index(i);
        let wrong = if known.contains(ip) { Vec::new() } else { rules::ip_in_old_field(ip, true) };
        if wrong.is_empty() {
            endpoint_ip(errors, ip, context.loopback, &at);
        } else {
            errors.invalid_each(&at, ip, wrong);
        }
    }
    required_choice(errors, spec, "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"], &SPEC);
    port_numbers(errors, spec);
    source_ranges(errors, object, old);
    if has(spec, "allocateLoadBalancerNodePorts") && !is_load_balancer(spec) {
        errors.forbidden(&SPEC.child("allocateLoadBalancerNodePorts"), ONLY_BALANCED);
    }
    load_balancer_class(errors, spec, None);
    policies(errors, spec);
}

/// Duplicate node ports of a new Service, which upstream's allocator reports before validation.
pub(super) fn duplicate_node_port(errors: &mut ErrorList, spec: &Value) {
    if !super::has_node_ports(spec) {
        return;
    }
    let ports_at = SPEC.child("ports");
    let (mut given, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for (i, port) in items(spec, "ports").iter().enumerate() {
        let (number, node) = (int(port, "port").unwrap_or(0), int(port, "nodePort").unwrap_or(0));
        if node == 0 || given.contains(&(number, node)) {
            continue;
        }
        if !taken.insert(node) {
            let at = ports_at.index(i);
            return errors.invalid(&at.child("nodePort"), node, "provided port is already allocated");
        }
        given.insert((number, node));
    }
}

fn external_name(errors: &mut ErrorList, spec: &Value) {
    for key in ["clusterIPs", "ipFamilies"] {
        if !items(spec, key).is_empty() {
            errors.forbidden(&SPEC.child(key), "may not be set for ExternalName services");
        }
    }
    if has(spec, "ipFamilyPolicy") {
        errors.forbidden(&SPEC.child("ipFamilyPolicy"), "may not be set for ExternalName services");
    }
    let name = text(spec, "externalName");
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        errors.required(&SPEC.child("externalName"), "");
    } else {
        errors.invalid_each(&SPEC.child("externalName"), name, rules::dns_subdomain(name));
    }
}

fn ports(errors: &mut ErrorList, spec: &Value) {
    let list_at = SPEC.child("ports");
    let list = items(spec, "ports");
    let mut names = BTreeSet::new();
    for (i, given) in list.iter().enumerate() {
        let at = list_at.index(i);
        let name = text(given, "name");
        if !name.is_empty() {
            errors.invalid_each(&at.child("name"), name, rules::dns_label(name));
            if !names.insert(name) {
                errors.duplicate(&at.child("name"), name);
            }
        } else if list.len() > 1 {
            errors.required(&at.child("name"), "");
        }
        let number = int(given, "port").unwrap_or(0);
        for message in rules::port_number(number) {
            errors.invalid(&at.child("port"), number, &message);
        }
        required_choice(errors, given, "protocol", &["SCTP", "TCP", "UDP"], &at);
        port(errors, get(given, "targetPort"), &at.child("targetPort"));
        if has(given, "appProtocol") {
            let protocol = text(given, "appProtocol");
            errors.invalid_each(&at.child("appProtocol"), protocol, rules::label_key(protocol));
        }
    }
}

fn port_numbers(errors: &mut ErrorList, spec: &Value) {
    const ORDER: &[&str] = &["Name", "Protocol", "AppProtocol", "Port", "TargetPort", "NodePort"];
    let list_at = SPEC.child("ports");
    let list = items(spec, "ports");
    let node = |port: &Value| int(port, "nodePort").unwrap_or(0);
    if text(spec, "type") == "ClusterIP" {
        for (i, port) in list.iter().enumerate() {
            if node(port) != 0 {
                let why = "may not be used when `type` is 'ClusterIP'";
                errors.forbidden(&list_at.index(i).child("nodePort"), why);
            }
        }
    }
    let mut seen = BTreeSet::new();
    for (i, port) in list.iter().enumerate() {
        if node(port) != 0 && !seen.insert((text(port, "protocol"), node(port))) {
            errors.duplicate(&list_at.index(i).child("nodePort"), node(port));
        }
    }
    let mut seen = BTreeSet::new();
    for (i, port) in list.iter().enumerate() {
        let (protocol, number) = (text(port, "protocol"), int(port, "port").unwrap_or(0));
        if !seen.insert((protocol, number)) {
            let inner = json!({"Name": "", "Protocol": protocol, "AppProtocol": null, "Port": number,
                "TargetPort": 0, "NodePort": 0});
            errors.add(|| {
                FieldError::new(
                    "FieldValueDuplicate",
                    &list_at.index(i),
                    format!("Duplicate value: {}", go_struct(&inner, ORDER)),
                )
            });
        }
    }
}

fn affinity(errors: &mut ErrorList, spec: &Value) {
    let (at, config_at) = (SPEC.child("sessionAffinity"), SPEC.child("sessionAffinityConfig"));
    let config = get(spec, "sessionAffinityConfig");
    match text(spec, "sessionAffinity") {
        "" => errors.required(&at, ""),
        "None" => {
            if !config.is_null() {
                errors.forbidden(&config_at, "must not be set when session affinity is None");
            }
        }
        "ClientIP" => {
            let seconds = int(get(config, "clientIP"), "timeoutSeconds");
            let seconds_at = config_at.child("clientIP.timeoutSeconds");
            match seconds {
                None => errors.required(&seconds_at, "when session affinity type is ClientIP"),
                Some(seconds) if seconds <= 0 || seconds > AFFINITY_SECONDS_MAX => {
                    let why = format!("must be greater than 0 and less than {AFFINITY_SECONDS_MAX}");
                    errors.invalid(&seconds_at, seconds, &why);
                }
                Some(_) => {}
            }
        }
        other => errors.not_supported(&at, other, &["ClientIP", "None"]),
    }
}

fn source_ranges(errors: &mut ErrorList, object: &Value, old: Option<&Value>) {
    let spec = get(object, "spec");
    let at = SPEC.child("LoadBalancerSourceRanges");
    let ranges: Vec<&str> = texts(spec, "loadBalancerSourceRanges").map(str::trim).collect();
    if !ranges.is_empty() {
        if !is_load_balancer(spec) {
            errors.forbidden(&at, ONLY_BALANCED);
        }
        let known: BTreeSet<&str> = old
            .into_iter()
            .flat_map(|old| texts(get(old, "spec"), "loadBalancerSourceRanges"))
            .map(str::trim)
            .collect();
        for (i, range) in ranges.iter().enumerate() {
            if !known.contains(range) {
                errors.invalid_each(&at.index(i), range, rules::cidr_in_old_field(range));
            }
        }
        return;
    }
    let note = |object: &Value| get(get(get(object, "metadata"), "annotations"), SOURCE_RANGES).clone();
    let given = note(object);
    let Some(list) = given.as_str() else { return };
    let at = Path::root("metadata.annotations");
    let at = at.key(SOURCE_RANGES);
    if !is_load_balancer(spec) {
        errors.forbidden(&at, ONLY_BALANCED);
    }
    if old.is_none_or(|old| note(old) != given) && !list.trim().is_empty() {
        for range in list.trim().split(',').map(str::trim) {
            errors.invalid_each(&at, range, rules::cidr_in_old_field(range));
        }
    }
}

/// `loadBalancerClass`, which is set once, and only for load balancers.
pub(super) fn load_balancer_class(errors: &mut ErrorList, spec: &Value, old: Option<&Value>) {
    let at = SPEC.child("loadBalancerClass");
    let class = get(spec, "loadBalancerClass");
    if let Some(old) = old
        && is_load_balancer(old)
        && is_load_balancer(spec)
        && get(old, "loadBalancerClass") != class
    {
        errors.invalid(&at, class.clone(), "may not change once set");
    }
    if class.is_null() {
        return;
    }
    if is_load_balancer(spec) {
        let class = class.as_str().unwrap_or("");
        errors.invalid_each(&at, class, rules::label_key(class));
    } else {
        errors.forbidden(&at, ONLY_BALANCED);
    }
}

fn policies(errors: &mut ErrorList, spec: &Value) {
    let at = SPEC.child("externalTrafficPolicy");
    let policy = text(spec, "externalTrafficPolicy");
    if !externally_accessible(spec) {
        if !policy.is_empty() {
            errors.invalid(&at, policy, "may only be set for externally-accessible services");
        }
    } else if policy.is_empty() {
        errors.required(&at, "");
    } else if !["Cluster", "Local"].contains(&policy) {
        errors.not_supported(&at, policy, &["Cluster", "Local"]);
    }
    let at = SPEC.child("healthCheckNodePort");
    // A missing port is allocated after validation.
    let health = int(spec, "healthCheckNodePort").unwrap_or(0);
    if health != 0 && !needs_health_check(spec) {
        let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.invalid(&at, health, why);
    } else if health != 0 {
        for message in rules::port_number(health) {
            errors.invalid(&at, health, &message);
        }
    }
    let at = SPEC.child("internalTrafficPolicy");
    if has(spec, "internalTrafficPolicy") {
        choice(errors, spec, "internalTrafficPolicy", &["Cluster", "Local"], &SPEC);
    } else if ["ClusterIP", "NodePort", "LoadBalancer"].contains(&text(spec, "type")) {
        errors.required(&at, "");
    }
    const DISTRIBUTIONS: &[&str] = &["PreferClose", "PreferSameZone", "PreferSameNode"];
    optional_choice(errors, spec, "trafficDistribution", DISTRIBUTIONS, &SPEC);
}

/// Validates an update of the load balancer status.
pub(super) fn balancer(errors: &mut ErrorList, new: &Value, old: &Value) {
    let at = Path::root("status.loadBalancer.ingress");
    let ingress = |of: &'_ Value| items(get(get(of, "status"), "loadBalancer"), "ingress").to_vec();
    let (given, was) = (ingress(new), ingress(old));
    if !is_load_balancer(get(new, "spec")) && !given.is_empty() {
        errors.forbidden(&at, "may only be used when `spec.type` is 'LoadBalancer'");
        return;
    }
    let known: BTreeSet<&str> = was.iter().map(|i| text(i, "ip")).collect();
    for (i, entry) in given.iter().enumerate() {
        let at = at.index(i);
        let (ip, host) = (text(entry, "ip"), text(entry, "hostname"));
        if !ip.is_empty() && !known.contains(ip) {
            errors.invalid_each(&at.child("ip"), ip, rules::ip_in_old_field(ip, true));
        }
        let mode_at = at.child("ipMode");
        match (has(entry, "ipMode"), ip.is_empty()) {
            (false, false) => errors.required(&mode_at, "must be specified when `ip` is set"),
            (true, true) => errors.forbidden(&mode_at, "may not be specified when `ip` is not set"),
            (true, false) if !["Proxy", "VIP"].contains(&text(entry, "ipMode")) => {
                errors.not_supported(&mode_at, text(entry, "ipMode"), &["Proxy", "VIP"]);
            }
            _ => {}
        }
        if !host.is_empty() {
            errors.invalid_each(&at.child("hostname"), host, rules::dns_subdomain(host));
            if rules::parse_ip_leniently(host).is_some() {
                errors.invalid(&at.child("hostname"), host, "must be a DNS name, not an IP address");
            }
        }
    }
}

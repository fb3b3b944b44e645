//! Services. Their addresses and ports are allocated in [`allocate`] after validation.

use std::collections::{BTreeMap, BTreeSet};

use apiserver_schema::types::Text;
use jiff::Timestamp;
use machinery_api::ApiError;
use serde_json::{Value, json};

use crate::cells::{AGE, NAME, age, column, labels, name, wide};
use crate::core::addresses::canonical_ip_warning;
use crate::field::{ErrorList, Path};
use crate::read::{
    default_to, default_zero_to, get, has, int, is_zero, items, items_mut, object_mut, put, spec_of, text, texts,
};
use crate::rules::NameRule;
use crate::{
    Allocation, Claim, Column, Context, ProxyBackend, Row, STATUS, Storage, Strategy, prepare_update_by_default, proxy,
};

pub mod allocate;
mod families;
mod validate;

pub(crate) static ROW: Row = Row {
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    schema: "io.k8s.api.core.v1.Service",
    subresources: &[proxy(ProxyBackend::Service, "ServiceProxyOptions"), STATUS],
    storage: Storage::Stored("services/specs"),
    strategy: &Service,
    example: r#"apiVersion: v1
kind: Service
metadata: {name: example}
spec:
  selector: {app: example}
  ports: [{port: 80}]
"#,
    ..Row::NAMESPACED
};

struct Service;

const COLUMNS: &[Column] = &[
    NAME,
    column("Type", "string"),
    column("Cluster-IP", "string"),
    column("External-IP", "string"),
    column("Port(s)", "string"),
    AGE,
    wide("Selector", "string"),
];
const AFFINITY_SECONDS: i64 = 10800;

pub(crate) fn needs_cluster_ip(spec: &Value) -> bool {
    text(spec, "type") != "ExternalName"
}

pub(crate) fn is_load_balancer(spec: &Value) -> bool {
    text(spec, "type") == "LoadBalancer"
}

/// Whether the type has node ports.
pub(crate) fn has_node_ports(spec: &Value) -> bool {
    ["NodePort", "LoadBalancer"].contains(&text(spec, "type"))
}

/// Whether external load balancers check nodes on a health check port.
pub(crate) fn needs_health_check(spec: &Value) -> bool {
    is_load_balancer(spec) && text(spec, "externalTrafficPolicy") == "Local"
}

/// Whether the Service is headless.
pub(crate) fn is_headless(spec: &Value) -> bool {
    let ips = items(spec, "clusterIPs");
    ips.len() == 1 && ips[0] == "None"
}

fn externally_accessible(spec: &Value) -> bool {
    has_node_ports(spec) || (text(spec, "type") == "ClusterIP" && !items(spec, "externalIPs").is_empty())
}

/// Keeps allocated values that the client omits, since its copy may predate the allocation.
fn patch_allocated(spec: &mut Value, old: &Value) {
    if needs_cluster_ip(old) && needs_cluster_ip(spec) {
        default_zero_to(spec, "clusterIP", get(old, "clusterIP").clone());
        if items(spec, "clusterIPs").is_empty() && !items(old, "clusterIPs").is_empty() {
            put(spec, "clusterIPs", get(old, "clusterIPs").clone());
        }
    }
    let by_node = |spec: &Value| {
        text(spec, "type") == "NodePort"
            || (is_load_balancer(spec) && get(spec, "allocateLoadBalancerNodePorts") != &json!(false))
    };
    if by_node(old) && by_node(spec) {
        let port = |p: &Value| int(p, "nodePort").unwrap_or(0);
        let given: BTreeSet<i64> = items(spec, "ports").iter().map(port).collect();
        // For duplicate port names the last one wins.
        let before: BTreeMap<&str, i64> = items(old, "ports").iter().map(|p| (text(p, "name"), port(p))).collect();
        for new in items_mut(spec, "ports") {
            if port(new) != 0 {
                continue;
            }
            let was = before.get(text(new, "name")).copied().unwrap_or(0);
            if was != 0 && !given.contains(&was) {
                put(new, "nodePort", json!(was));
            }
        }
    }
    if needs_health_check(old) && needs_health_check(spec) && int(spec, "healthCheckNodePort").unwrap_or(0) == 0 {
        put(spec, "healthCheckNodePort", get(old, "healthCheckNodePort").clone());
    }
}

/// Aligns `clusterIP` and `clusterIPs`; the changed one wins.
fn normalize_cluster_ips(spec: &mut Value, old: Option<&Value>) {
    let ip = text(spec, "clusterIP").to_owned();
    let Some(old) = old else {
        if !ip.is_empty() && items(spec, "clusterIPs").is_empty() {
            put(spec, "clusterIPs", json!([ip]));
        }
        return;
    };
    let (was, ips_were) = (text(old, "clusterIP"), get(old, "clusterIPs"));
    if items(spec, "clusterIPs").is_empty() && was == ip && !is_zero(ips_were) {
        put(spec, "clusterIPs", ips_were.clone());
    }
    if was != ip && items(spec, "clusterIPs") == items(old, "clusterIPs") {
        if !was.is_empty() && ip.is_empty() {
            put(spec, "clusterIPs", Value::Null);
        } else {
            put(spec, "clusterIPs", json!([ip]));
        }
    }
}

/// Drops fields that the new type doesn't use, unless the client changed them.
fn drop_by_type(new: &mut Value, old: &Value) {
    let old = get(old, "spec");
    let Some(spec) = new.get_mut("spec") else { return };
    let same = |spec: &Value, key: &str| {
        let (a, b) = (get(spec, key), get(old, key));
        a == b || (is_zero(a) && is_zero(b))
    };
    if needs_cluster_ip(old) && !needs_cluster_ip(spec) {
        if same(spec, "clusterIP") && same(spec, "clusterIPs") {
            put(spec, "clusterIP", Value::Null);
            put(spec, "clusterIPs", Value::Null);
        }
        for key in ["ipFamilies", "ipFamilyPolicy"] {
            if same(spec, key) {
                put(spec, key, Value::Null);
            }
        }
    }
    if has_node_ports(old) && !has_node_ports(spec) {
        let port = |p: &Value| int(p, "nodePort").unwrap_or(0);
        let before: BTreeSet<i64> = items(old, "ports").iter().map(port).collect();
        let kept = items(spec, "ports").iter().all(|p| port(p) == 0 || before.contains(&port(p)));
        if kept {
            for port in items_mut(spec, "ports") {
                put(port, "nodePort", Value::Null);
            }
        }
    }
    if needs_health_check(old) && !needs_health_check(spec) && same(spec, "healthCheckNodePort") {
        put(spec, "healthCheckNodePort", Value::Null);
    }
    if is_load_balancer(old) && !is_load_balancer(spec) {
        for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if same(spec, key) {
                put(spec, key, Value::Null);
            }
        }
    }
    if externally_accessible(old) && !externally_accessible(spec) && same(spec, "externalTrafficPolicy") {
        put(spec, "externalTrafficPolicy", Value::Null);
    }
    drop_internal_policy(spec);
    if !is_load_balancer(spec) {
        put(object_mut(new, "status"), "loadBalancer", json!({}));
    }
}

/// Drops a valid policy from an ExternalName Service; validation rejects an invalid one.
fn drop_internal_policy(spec: &mut Value) {
    if text(spec, "type") == "ExternalName" && ["Cluster", "Local"].contains(&text(spec, "internalTrafficPolicy")) {
        put(spec, "internalTrafficPolicy", Value::Null);
    }
}

const SELECTABLE: &[Text] = &[Text::Borrowed("spec.clusterIP"), Text::Borrowed("spec.type")];

fn validate_change(errors: &mut ErrorList, spec: &Value, old: &Value) {
    families::validate_changes(errors, spec, old);
    validate::load_balancer_class(errors, spec, Some(old));
    if needs_health_check(spec)
        && needs_health_check(old)
        && int(spec, "healthCheckNodePort") != int(old, "healthCheckNodePort")
    {
        errors.forbidden(&Path::root("spec").child("healthCheckNodePort"), "field is immutable");
    }
}

impl Strategy for Service {
    fn default(&self, object: &mut Value) {
        let spec = spec_of(object);
        default_zero_to(spec, "sessionAffinity", "None");
        match text(spec, "sessionAffinity") {
            "None" => put(spec, "sessionAffinityConfig", Value::Null),
            "ClientIP" if !has(get(get(spec, "sessionAffinityConfig"), "clientIP"), "timeoutSeconds") => {
                put(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": AFFINITY_SECONDS}}));
            }
            _ => {}
        }
        default_zero_to(spec, "type", "ClusterIP");
        for port in items_mut(spec, "ports") {
            default_zero_to(port, "protocol", "TCP");
            let number = get(port, "port").clone();
            default_zero_to(port, "targetPort", if number.is_null() { json!(0) } else { number });
        }
        if externally_accessible(spec) {
            default_zero_to(spec, "externalTrafficPolicy", "Cluster");
        }
        if ["ClusterIP", "NodePort", "LoadBalancer"].contains(&text(spec, "type")) {
            default_to(spec, "internalTrafficPolicy", "Cluster");
        }
        let balanced = is_load_balancer(spec);
        if balanced {
            default_to(spec, "allocateLoadBalancerNodePorts", true);
        }
        let balancer = object_mut(object_mut(object, "status"), "loadBalancer");
        for ingress in items_mut(balancer, "ingress") {
            if balanced && !text(ingress, "ip").is_empty() {
                default_to(ingress, "ipMode", "VIP");
            }
        }
    }

    fn prepare_create(&self, context: &Context<'_>, object: &mut Value) {
        put(object, "status", json!({"loadBalancer": {}}));
        let spec = spec_of(object);
        if context.subresource == "status" {
            // As in upstream, a PUT of a status creates a Service without allocation, which here can't claim values.
            for key in ["clusterIP", "clusterIPs", "healthCheckNodePort"] {
                put(spec, key, Value::Null);
            }
            for port in items_mut(spec, "ports") {
                put(port, "nodePort", Value::Null);
            }
            return;
        }
        normalize_cluster_ips(spec, None);
        families::fill(spec, None);
        drop_internal_policy(spec);
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        prepare_update_by_default(context, new, old);
        if context.subresource == "status" {
            return;
        }
        let old_spec = get(old, "spec");
        let spec = spec_of(new);
        patch_allocated(spec, old_spec);
        normalize_cluster_ips(spec, Some(old_spec));
        families::fill(spec, Some(old_spec));
        drop_by_type(new, old);
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Label
    }

    fn validate_first(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        if context.subresource == "status" {
            return;
        }
        families::validate(errors, get(object, "spec"), old.map(|old| get(old, "spec")));
        if errors.is_empty() && old.is_none() {
            validate::duplicate_node_port(errors, get(object, "spec"));
        }
    }

    fn allocate(&self, allocation: &Allocation<'_>, new: &mut Value, old: Option<&Value>) -> Result<(), ApiError> {
        if !allocation.subresource.is_empty() {
            return Ok(());
        }
        allocation.services.allocate(allocation.objects, new, old, allocation.dry_run)
    }

    fn claim_prefixes(&self) -> &'static [&'static str] {
        &allocate::RESERVATIONS
    }

    fn claims(&self, object: &Value) -> Vec<Claim> {
        allocate::claims(object)
    }

    fn validate(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        match old {
            Some(old) if context.subresource == "status" => return validate::balancer(errors, object, old),
            Some(old) => validate_change(errors, get(object, "spec"), get(old, "spec")),
            None => {}
        }
        validate::service(errors, context, object, old);
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        warnings(object)
    }

    fn create_on_update(&self) -> bool {
        true
    }

    fn delete_answers_object(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = get(object, "spec");
        let ports: Vec<String> = items(spec, "ports")
            .iter()
            .map(|port| {
                let (number, protocol) = (int(port, "port").unwrap_or(0), text(port, "protocol"));
                match int(port, "nodePort").unwrap_or(0) {
                    node if node > 0 => format!("{number}:{node}/{protocol}"),
                    _ => format!("{number}/{protocol}"),
                }
            })
            .collect();
        let ip = texts(spec, "clusterIPs").next().unwrap_or("<none>");
        vec![
            name(object),
            json!(text(spec, "type")),
            json!(ip),
            json!(external(object)),
            json!(if ports.is_empty() { "<none>".into() } else { ports.join(",") }),
            age(object, now),
            json!(labels(get(spec, "selector"), "<none>")),
        ]
    }

    fn selectable(&self, object: &Value) -> Vec<String> {
        let spec = get(object, "spec");
        vec![text(spec, "clusterIP").into(), text(spec, "type").into()]
    }

    fn selectable_labels(&self) -> &[Text] {
        SELECTABLE
    }
}

fn external(object: &Value) -> String {
    let spec = get(object, "spec");
    let own: Vec<&str> = texts(spec, "externalIPs").collect();
    match text(spec, "type") {
        "ClusterIP" | "NodePort" if own.is_empty() => "<none>".into(),
        "ClusterIP" | "NodePort" => own.join(","),
        "LoadBalancer" => {
            let ingress = items(get(get(object, "status"), "loadBalancer"), "ingress");
            let mut all: Vec<&str> = ingress
                .iter()
                .map(|i| if text(i, "ip").is_empty() { text(i, "hostname") } else { text(i, "ip") })
                .filter(|a| !a.is_empty())
                .collect();
            all.sort_unstable();
            all.dedup();
            all.extend(own);
            if all.is_empty() { "<pending>".into() } else { all.join(",") }
        }
        "ExternalName" => text(spec, "externalName").into(),
        _ => "<unknown>".into(),
    }
}

fn warnings(object: &Value) -> Vec<String> {
    const OLD_HINTS: &str = "service.kubernetes.io/topology-aware-hints";
    let spec = get(object, "spec");
    let at = Path::root("spec");
    let mut found = Vec::new();
    if has(get(get(object, "metadata"), "annotations"), OLD_HINTS) {
        found.push(format!(
            "annotation {OLD_HINTS} is deprecated, please use service.kubernetes.io/topology-mode instead"
        ));
    }
    let ip = text(spec, "clusterIP");
    let ips_at = at.child("clusterIPs");
    if !ip.is_empty() && ip != "None" {
        found.extend(
            texts(spec, "clusterIPs").enumerate().filter_map(|(i, ip)| canonical_ip_warning(&ips_at.index(i), ip)),
        );
    }
    let headless = text(spec, "type") == "ClusterIP" && ip == "None";
    let (balancer, externals) = (text(spec, "loadBalancerIP"), items(spec, "externalIPs"));
    let outside = text(spec, "type") == "ExternalName";
    if headless {
        if !balancer.is_empty() {
            found.push("spec.loadBalancerIP is ignored for headless services".into());
        }
        if !externals.is_empty() {
            found.push("spec.externalIPs is ignored for headless services".into());
        }
        if text(spec, "sessionAffinity") != "None" {
            found.push("spec.SessionAffinity is ignored for headless services".into());
        }
    }
    let externals_at = at.child("externalIPs");
    found.extend(
        texts(spec, "externalIPs").enumerate().filter_map(|(i, ip)| canonical_ip_warning(&externals_at.index(i), ip)),
    );
    if !externals.is_empty() && !headless && !outside {
        found.push("spec.externalIPs is deprecated and may no longer be implemented in some clusters".into());
    }
    found.extend(canonical_ip_warning(&at.child("loadBalancerIP"), balancer));
    let ranges_at = at.child("loadBalancerSourceRanges");
    found.extend(
        texts(spec, "loadBalancerSourceRanges")
            .enumerate()
            .flat_map(|(i, range)| crate::rules::canonical_cidr_warning(range).into_iter().map(move |why| (i, why)))
            .map(|(i, why)| format!("{}: {why}", ranges_at.index(i))),
    );
    if outside && !externals.is_empty() {
        found.push("spec.externalIPs is ignored when spec.type is \"ExternalName\"".into());
    }
    if !outside && !text(spec, "externalName").is_empty() {
        found.push("spec.externalName is ignored when spec.type is not \"ExternalName\"".into());
    }
    if text(spec, "trafficDistribution") == "PreferClose" {
        found.push("spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"".into());
    }
    found
}

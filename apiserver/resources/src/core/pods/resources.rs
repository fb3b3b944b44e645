//! Resource requests and limits: names, quantities, pod level, quality of service.

use std::collections::{BTreeMap, BTreeSet};

use machinery_api::quantity::Quantity;
use serde_json::{Value, json};

use crate::field::{ErrorList, FieldError, NOT_NEGATIVE, Path};
use crate::metadata::quantity;
use crate::read::{entries, get, has, is_zero, items, object_mut, text};
use crate::rules;

/// Names without a domain.
pub(crate) const STANDARD: &[&str] = &[
    "configmaps",
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
    "storage",
];
const COUNTED: &[&str] = &[
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];

fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

pub(crate) fn is_extended(name: &str) -> bool {
    !is_native(name) && !name.starts_with("requests.") && rules::label_key(&format!("requests.{name}")).is_empty()
}

/// Whether requests may be lower than limits.
pub(crate) fn may_overcommit(name: &str) -> bool {
    is_native(name) && !is_huge_page(name)
}

fn is_standard(name: &str) -> bool {
    STANDARD.contains(&name) || is_huge_page(name) || name.starts_with("requests.hugepages-")
}

/// Validates an amount: not negative, and an integer for countable resources.
pub(crate) fn amount(errors: &mut ErrorList, name: &str, value: &Value, path: &Path<'_>) {
    let Some(amount) = quantity(value) else { return };
    if amount.sign() < 0 {
        errors.invalid(path, amount.to_string(), NOT_NEGATIVE);
    }
    if (COUNTED.contains(&name) || is_extended(name)) && !amount.is_whole_at_milli() {
        errors.invalid(path, amount.to_string(), "must be an integer");
    }
}

/// Validates a resource's name; false if it is invalid.
pub(crate) fn resource_name(errors: &mut ErrorList, name: &str, path: &Path<'_>) -> bool {
    let wrong = rules::label_key(name);
    if !wrong.is_empty() {
        errors.invalid_each(path, name, wrong);
        return false;
    }
    if !name.contains('/') && !is_standard(name) {
        errors.invalid(path, name, "must be a standard resource type or fully qualified");
        return false;
    }
    true
}

/// Validates a resource's name in a container.
pub(crate) fn container_resource_name(errors: &mut ErrorList, name: &str, path: &Path<'_>) {
    resource_name(errors, name, path);
    if name.split('/').count() == 1 {
        if !["cpu", "memory", "ephemeral-storage"].contains(&name) && !is_huge_page(name) {
            errors.invalid(path, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.invalid(path, name, "doesn't follow extended resource name standard");
    }
}

fn pod_resource_name(errors: &mut ErrorList, name: &str, path: &Path<'_>) {
    if resource_name(errors, name, path) && !is_pod_level(name) {
        errors.not_supported(path, name, &["cpu", "hugepages-", "memory"]);
    }
}

fn is_pod_level(name: &str) -> bool {
    name == "cpu" || name == "memory" || is_huge_page(name)
}

/// Requests and limits of a container (or, with `pod_level`, of the pod).
pub(crate) fn requirements(
    errors: &mut ErrorList,
    resources: &Value,
    claims: &BTreeSet<&str>,
    path: &Path<'_>,
    pod_level: bool,
) {
    let named = if pod_level { pod_resource_name } else { container_resource_name };
    let (limits_at, requests_at) = (path.child("limits"), path.child("requests"));
    let limits = get(resources, "limits");
    let (mut compute, mut huge) = (false, false);
    for (name, value) in limits.as_object().into_iter().flatten() {
        let at = limits_at.key(name);
        named(errors, name, &at);
        amount(errors, name, value, &at);
        huge_page_amount(errors, name, value, &at, &mut huge);
        compute |= name == "cpu" || name == "memory";
    }
    for (name, value) in entries(resources, "requests") {
        let at = requests_at.key(name);
        named(errors, name, &at);
        amount(errors, name, value, &at);
        let request = quantity(value).unwrap_or_else(Quantity::zero);
        match limits.get(name).and_then(quantity) {
            Some(limit) => {
                if request != limit && !may_overcommit(name) {
                    let why = format!("must be equal to {name} limit of {limit}");
                    errors.invalid(&requests_at, request.to_string(), &why);
                } else if request > limit {
                    let why = format!("must be less than or equal to {name} limit of {limit}");
                    errors.invalid(&requests_at, request.to_string(), &why);
                }
            }
            None if !may_overcommit(name) => {
                errors.required(&limits_at, "Limit must be set for non overcommitable resources");
            }
            None => {}
        }
        huge_page_amount(errors, name, value, &at, &mut huge);
        compute |= name == "cpu" || name == "memory";
    }
    if huge && !compute {
        errors.forbidden(path, "HugePages require cpu or memory");
    }
    claim_names(errors, items(resources, "claims"), claims, &path.child("claims"));
}

fn huge_page_amount(errors: &mut ErrorList, name: &str, value: &Value, path: &Path<'_>, huge: &mut bool) {
    let Some(size) = name.strip_prefix("hugepages-") else { return };
    *huge = true;
    let Some(amount) = quantity(value) else { return };
    let page = Quantity::parse(size).ok().filter(|p| p.sign() > 0 && p.is_whole_at_milli()).map(|p| p.value());
    if !page.is_some_and(|page| page > 0 && amount.value() % page == 0) {
        errors.invalid(path, amount.to_string(), &format!("{amount} is not positive integer multiple of {name}"));
    }
}

fn claim_names(errors: &mut ErrorList, claims: &[Value], known: &BTreeSet<&str>, path: &Path<'_>) {
    let mut names: BTreeSet<String> = BTreeSet::new();
    // Number of requests per claim so far.
    let mut requests: BTreeMap<String, usize> = BTreeMap::new();
    for (i, claim) in claims.iter().enumerate() {
        let at = path.index(i);
        let name = text(claim, "name");
        if name.is_empty() {
            errors.required(&at, "");
            continue;
        }
        if names.contains(name) {
            errors.duplicate(&at, name);
        } else {
            let request = text(claim, "request");
            let mut key = name.to_owned();
            if !request.is_empty() {
                errors.invalid_each(&at.child("request"), request, rules::dns_label(request));
                key = format!("{name}/{request}");
            }
            if names.contains(&key) {
                errors.duplicate(&at, key.as_str());
            } else if request.is_empty() {
                for _ in 0..requests.get(name).copied().unwrap_or(0) {
                    errors.duplicate(&at, name);
                }
            }
            if names.insert(key.clone())
                && let Some((of, _)) = key.split_once('/')
            {
                *requests.entry(of.to_owned()).or_default() += 1;
            }
        }
        if !known.contains(name) {
            errors.add(|| {
                let mut error = FieldError::not_found(&at, name);
                error.message.push_str(": must be one of the names in pod.spec.resourceClaims");
                error.message.push_str(&if known.is_empty() {
                    " which is empty".to_owned()
                } else {
                    format!(": {}", known.iter().copied().collect::<Vec<_>>().join(", "))
                });
                error
            });
        }
    }
}

type Amounts = BTreeMap<String, Quantity>;

fn amounts(container: &Value, key: &str) -> Amounts {
    entries(get(container, "resources"), key).filter_map(|(k, v)| Some((k.clone(), quantity(v)?))).collect()
}

fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let now = sum.get(name).map_or_else(|| amount.clone(), |held| held.add(amount));
        sum.insert(name.clone(), now);
    }
}

fn raise(top: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        if top.get(name).is_none_or(|held| held < amount) {
            top.insert(name.clone(), amount.clone());
        }
    }
}

/// The sum of the containers' amounts: sidecars run beside all others, other init containers one after another.
fn aggregate(spec: &Value, key: &str) -> Amounts {
    let mut sum = Amounts::new();
    for container in items(spec, "containers") {
        add(&mut sum, &amounts(container, key));
    }
    let (mut sidecars, mut init) = (Amounts::new(), Amounts::new());
    for container in items(spec, "initContainers") {
        let mut own = amounts(container, key);
        if text(container, "restartPolicy") == "Always" {
            add(&mut sum, &own);
            add(&mut sidecars, &own);
            own = sidecars.clone();
        } else {
            add(&mut own, &sidecars);
        }
        raise(&mut init, &own);
    }
    raise(&mut sum, &init);
    sum
}

/// Defaults pod-level requests from the containers' requests and the pod-level limits.
pub(super) fn default_pod_level(spec: &mut Value) {
    if !has(spec, "resources") {
        return;
    }
    let (limits, requests) = (aggregate(spec, "limits"), aggregate(spec, "requests"));
    let Some(resources) = spec.get_mut("resources") else { return };
    if is_zero(get(resources, "limits")) && is_zero(get(resources, "requests")) {
        return;
    }
    for (name, amount) in limits {
        if is_huge_page(&name) && !has(get(resources, "requests"), &name) && !has(get(resources, "limits"), &name) {
            crate::read::put(object_mut(resources, "limits"), &name, json!(amount.to_string()));
        }
    }
    let Some(pod_limits) = get(resources, "limits").as_object().filter(|l| !l.is_empty()).cloned() else { return };
    let mut filled: Vec<(String, Value)> = Vec::new();
    for (name, amount) in requests {
        if is_pod_level(&name) && may_overcommit(&name) {
            filled.push((name, json!(amount.to_string())));
        }
    }
    filled.extend(pod_limits.into_iter().filter(|(name, _)| is_pod_level(name)));
    for (name, amount) in filled {
        crate::read::default_to(object_mut(resources, "requests"), &name, amount);
    }
}

/// Pod-level requests and limits.
pub(super) fn pod_level(errors: &mut ErrorList, spec: &Value, claims: &BTreeSet<&str>, path: &Path<'_>) {
    let resources = get(spec, "resources");
    if resources.is_null() {
        return;
    }
    let at = path.child("resources");
    if text(get(spec, "os"), "name") == "windows" {
        errors.forbidden(&at, "may not be set for a windows pod");
        return;
    }
    if has(resources, "claims") {
        errors.forbidden(&at.child("claims"), "claims may not be set for Resources at pod-level");
    }
    requirements(errors, resources, claims, &at, true);
    let requests_at = at.child("requests");
    for (name, sum) in aggregate(spec, "requests") {
        let Some(held) = get(resources, "requests").get(&name).and_then(quantity) else { continue };
        if sum > held {
            let why = format!("must be greater than or equal to aggregate container requests of {sum}");
            errors.invalid(&requests_at.key(&name), held.to_string(), &why);
        }
    }
    let limits_at = at.child("limits");
    for (name, sum) in aggregate(spec, "limits") {
        let Some(held) = get(resources, "limits").get(&name).and_then(quantity) else { continue };
        if is_huge_page(&name) && sum > held {
            let why = format!("must be greater than or equal to aggregate container limits of {sum}");
            errors.invalid(&limits_at.key(&name), held.to_string(), &why);
        }
    }
    let containers_at = at.child("containers");
    for (i, container) in items(spec, "containers").iter().enumerate() {
        for (name, limit) in amounts(container, "limits") {
            let Some(held) = get(resources, "limits").get(&name).and_then(quantity) else { continue };
            if limit > held {
                let why = format!("must be less than or equal to pod limits of {held}");
                let one = containers_at.index(i);
                let one = one.key(&name);
                errors.invalid(&one.child("limits"), limit.to_string(), &why);
            }
        }
    }
}

/// The pod's quality of service class.
pub(crate) fn qos_class(spec: &Value) -> &'static str {
    let (mut requests, mut limits) = (Amounts::new(), Amounts::new());
    let mut guaranteed = true;
    let compute = |container: &Value, key: &str| -> Amounts {
        amounts(container, key)
            .into_iter()
            .filter(|(name, amount)| (name == "cpu" || name == "memory") && amount.sign() > 0)
            .collect()
    };
    if has(spec, "resources") {
        requests = compute(spec, "requests");
        limits = compute(spec, "limits");
        guaranteed = limits.contains_key("cpu") && limits.contains_key("memory");
    } else {
        for list in ["containers", "initContainers"] {
            for container in items(spec, list) {
                add(&mut requests, &compute(container, "requests"));
                let own = compute(container, "limits");
                guaranteed &= own.contains_key("cpu") && own.contains_key("memory");
                add(&mut limits, &own);
            }
        }
    }
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    if guaranteed && requests.len() == limits.len() && requests.iter().all(|(name, a)| limits.get(name) == Some(a)) {
        return "Guaranteed";
    }
    "Burstable"
}

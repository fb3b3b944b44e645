//! LimitRanger: fills missing container resources from the namespace's LimitRanges, and rejects objects outside their
//! bounds.

use std::collections::BTreeMap;

use machinery_api::error::ApiResult;
use machinery_api::quantity::Quantity;
use machinery_rules::quota;
use serde_json::{Value, json};

use super::{Context, Immediate, Operation};

pub(super) const PLUGIN: Immediate = Immediate { name: "LimitRanger", mutate: Some(mutate), validate: Some(validate) };

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// Whether LimitRanges apply to the request.
fn applies(context: &Context<'_>) -> bool {
    let request = context.request;
    let is_limited = match (request.resource, request.subresource) {
        ("pods", "") => request.operation == Operation::Create,
        ("pods", "resize") => request.operation == Operation::Update,
        ("persistentvolumeclaims", "") => matches!(request.operation, Operation::Create | Operation::Update),
        _ => false,
    };
    let ending = || context.old.is_some_and(|old| old["metadata"]["deletionTimestamp"].is_string());
    request.group.is_empty() && is_limited && !ending()
}

fn mutate(context: &Context<'_>, object: &mut Value) -> ApiResult<()> {
    if applies(context) && context.request.resource == "pods" {
        for range in context.objects.list("", "limitranges", Some(context.request.namespace)) {
            fill(&range, object);
        }
    }
    Ok(())
}

fn validate(context: &Context<'_>, object: &Value) -> ApiResult<()> {
    if !applies(context) {
        return Ok(());
    }
    for range in context.objects.list("", "limitranges", Some(context.request.namespace)) {
        let mut found = match context.request.resource {
            "pods" => check_pod(&range, object),
            _ => check_claim(&range, object),
        };
        let mut seen = std::collections::BTreeSet::new();
        found.retain(|error| seen.insert(error.clone()));
        match found.as_slice() {
            [] => {}
            [one] => return Err(context.request.forbidden(object, one)),
            all => return Err(context.request.forbidden(object, format!("[{}]", all.join(", ")))),
        }
    }
    Ok(())
}

fn items<'a>(range: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    range["spec"]["limits"].as_array().into_iter().flatten().filter(move |item| item["type"] == kind)
}

/// Fills missing requests and limits of the containers, and records the fields in an annotation.
fn fill(range: &Value, pod: &mut Value) {
    let mut defaults: [(&str, &str, BTreeMap<String, Value>); 2] =
        [("requests", "request", BTreeMap::new()), ("limits", "limit", BTreeMap::new())];
    for item in items(range, "Container") {
        for (list, (_, _, amounts)) in ["defaultRequest", "default"].iter().zip(&mut defaults) {
            amounts.extend(item[*list].as_object().into_iter().flatten().map(|(name, v)| (name.clone(), v.clone())));
        }
    }
    if defaults.iter().all(|(_, _, amounts)| amounts.is_empty()) {
        return;
    }
    let mut records = Vec::new();
    for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
        let containers = pod.get_mut("spec").and_then(|spec| spec.get_mut(list)).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            for (field, word, amounts) in &defaults {
                let set = fill_one(container, field, amounts);
                if !set.is_empty() {
                    records.push(format!("{} {word} for {what} {name}", set.join(", ")));
                }
            }
        }
    }
    if !records.is_empty() {
        let record = format!("LimitRanger plugin set: {}", records.join("; "));
        let Some(metadata) = pod.get_mut("metadata").and_then(Value::as_object_mut) else { return };
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        if !annotations.is_object() {
            *annotations = json!({});
        }
        annotations[ANNOTATION] = json!(record);
    }
}

/// Returns the names of the resources that were set.
fn fill_one(container: &mut Value, field: &str, amounts: &BTreeMap<String, Value>) -> Vec<String> {
    let missing = |name: &&String| container["resources"][field].get(name.as_str()).is_none_or(Value::is_null);
    let set: Vec<String> = amounts.keys().filter(missing).cloned().collect();
    let Some(container) = container.as_object_mut().filter(|_| !set.is_empty()) else { return set };
    let mut at = container.entry("resources").or_insert_with(|| json!({}));
    if !at.is_object() {
        *at = json!({});
    }
    at = &mut at[field];
    if !at.is_object() {
        *at = json!({});
    }
    for name in &set {
        at[name.as_str()] = amounts[name].clone();
    }
    set
}

type Amounts = BTreeMap<String, Quantity>;

fn amounts(list: &Value) -> Amounts {
    let quantity = |value: &Value| match value {
        Value::String(text) => Quantity::parse(text).ok(),
        other => Quantity::parse(&other.to_string()).ok(),
    };
    list.as_object().into_iter().flatten().filter_map(|(name, v)| Some((name.clone(), quantity(v)?))).collect()
}

fn check_pod(range: &Value, pod: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for item in items(range, "Container") {
        for list in ["containers", "initContainers"] {
            for container in pod["spec"][list].as_array().into_iter().flatten() {
                let resources = &container["resources"];
                check_bounds(
                    item,
                    "Container",
                    &amounts(&resources["requests"]),
                    &amounts(&resources["limits"]),
                    &mut found,
                );
            }
        }
    }
    for item in items(range, "Pod") {
        check_bounds(item, "Pod", &quota::requests(pod), &quota::limits(pod), &mut found);
    }
    found
}

fn check_claim(range: &Value, claim: &Value) -> Vec<String> {
    const KIND: &str = "PersistentVolumeClaim";
    let requests = amounts(&claim["spec"]["resources"]["requests"]);
    let mut found = Vec::new();
    for item in items(range, KIND) {
        for (name, bound) in amounts(&item["min"]) {
            found.extend(ResourceBound { kind: KIND, name: &name, bound: &bound }.min(requests.get(&name), None));
        }
        for (name, bound) in amounts(&item["max"]) {
            let bound = ResourceBound { kind: KIND, name: &name, bound: &bound };
            found.extend(match requests.get(&name) {
                None => Some(format!("{}.  No request is specified", bound.head("maximum"))),
                Some(request) => bound.above(request, "request"),
            });
        }
    }
    found
}

fn check_bounds(item: &Value, kind: &str, requests: &Amounts, limits: &Amounts, found: &mut Vec<String>) {
    for (name, bound) in amounts(&item["min"]) {
        let bound = ResourceBound { kind, name: &name, bound: &bound };
        found.extend(bound.min(requests.get(&name), limits.get(&name)));
    }
    for (name, bound) in amounts(&item["max"]) {
        let bound = ResourceBound { kind, name: &name, bound: &bound };
        found.extend(bound.max(requests.get(&name), limits.get(&name)));
    }
    for (name, bound) in amounts(&item["maxLimitRequestRatio"]) {
        let bound = ResourceBound { kind, name: &name, bound: &bound };
        found.extend(bound.ratio(requests.get(&name), limits.get(&name)));
    }
}

/// One bound of one resource.
struct ResourceBound<'a> {
    kind: &'a str,
    name: &'a str,
    bound: &'a Quantity,
}

impl ResourceBound<'_> {
    fn head(&self, which: &str) -> String {
        format!("{which} {} usage per {} is {}", self.name, self.kind, self.bound)
    }

    fn above(&self, amount: &Quantity, what: &str) -> Option<String> {
        (amount > self.bound).then(|| format!("{}, but {what} is {amount}", self.head("maximum")))
    }

    fn min(&self, request: Option<&Quantity>, limit: Option<&Quantity>) -> Option<String> {
        let Some(request) = request else {
            return Some(format!("{}.  No request is specified", self.head("minimum")));
        };
        let below = |amount: &Quantity, what: &str| {
            (amount < self.bound).then(|| format!("{}, but {what} is {amount}", self.head("minimum")))
        };
        below(request, "request").or_else(|| below(limit?, "limit"))
    }

    fn max(&self, request: Option<&Quantity>, limit: Option<&Quantity>) -> Option<String> {
        let Some(limit) = limit else {
            return Some(format!("{}.  No limit is specified", self.head("maximum")));
        };
        self.above(limit, "limit").or_else(|| self.above(request?, "request"))
    }

    fn ratio(&self, request: Option<&Quantity>, limit: Option<&Quantity>) -> Option<String> {
        let head = format!("{} max limit to request ratio per {} is {}", self.name, self.kind, self.bound);
        let is_set = |amount: Option<&Quantity>| amount.is_some_and(|amount| !amount.is_zero());
        let (Some(request), true) = (request, is_set(request)) else {
            return Some(format!("{head}, but no request is specified or request is 0"));
        };
        let (Some(limit), true) = (limit, is_set(limit)) else {
            return Some(format!("{head}, but no limit is specified or limit is 0"));
        };
        const FINE_MAX: i64 = i64::MAX / 1000;
        let fine = request.value() <= FINE_MAX && limit.value() <= FINE_MAX;
        let value = |amount: &Quantity| (if fine { amount.milli() } else { amount.value() }) as f64;
        let ratio = value(limit) / value(request);
        let most = self.bound.milli() as f64 / 1000.0;
        (ratio > most).then(|| format!("{head}, but provided ratio is {ratio:.6}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(item: Value) -> Value {
        json!({"spec": {"limits": [item]}})
    }

    fn pod(resources: Value) -> Value {
        json!({"metadata": {}, "spec": {"containers": [{"name": "c", "resources": resources}]}})
    }

    #[test]
    fn missing_limits_are_filled_and_annotated() {
        let range = range(
            json!({"type": "Container", "default": {"cpu": "200m", "memory": "64Mi"}, "defaultRequest": {"cpu": "100m"}}),
        );
        let mut filled = pod(json!({"requests": {"cpu": "50m"}}));
        filled["spec"]["initContainers"] = json!([{"name": "i"}]);
        fill(&range, &mut filled);
        let resources = &filled["spec"]["containers"][0]["resources"];
        assert_eq!(*resources, json!({"requests": {"cpu": "50m"}, "limits": {"cpu": "200m", "memory": "64Mi"}}));
        assert_eq!(
            filled["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu, memory limit for container c; cpu request for init container i; cpu, memory limit \
             for init container i"
        );
        let before = filled.clone();
        fill(&range, &mut filled);
        assert_eq!(filled, before, "twice is once");
    }

    #[test]
    fn bounds_are_kept() {
        let violations = |item: Value, resources: Value| check_pod(&range(item), &pod(resources));
        assert_eq!(
            violations(json!({"type": "Pod", "max": {"cpu": "1"}}), json!({})),
            ["maximum cpu usage per Pod is 1.  No limit is specified"]
        );
        assert_eq!(
            violations(
                json!({"type": "Container", "max": {"cpu": "1"}, "min": {"cpu": "100m"}}),
                json!({"requests": {"cpu": "50m"}, "limits": {"cpu": "2"}})
            ),
            [
                "minimum cpu usage per Container is 100m, but request is 50m",
                "maximum cpu usage per Container is 1, but limit is 2"
            ]
        );
        let ratio = json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}});
        assert_eq!(
            violations(ratio.clone(), json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "300m"}})),
            ["cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000"]
        );
        assert_eq!(
            violations(ratio, json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "200m"}})),
            Vec::<String>::new()
        );
        let claims =
            range(json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}}));
        let claim = |size: &str| json!({"spec": {"resources": {"requests": {"storage": size}}}});
        assert_eq!(
            check_claim(&claims, &claim("3Gi")),
            ["maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"]
        );
        assert_eq!(check_claim(&claims, &claim("1Gi")), Vec::<String>::new());
    }
}

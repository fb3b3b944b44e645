//! A pod's requests and limits, by the same rule as the scheduler's. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;
use machinery_api::quantity::Quantity;
use machinery_rules::requests::{Share, pod_total};

/// An amount in thousandths of cores for `cpu`, else in whole units.
#[must_use]
pub fn amount_of(amount: &Wire, name: &str) -> i64 {
    Quantity::parse(&amount.0).map_or(0, |quantity| if name == "cpu" { quantity.milli() } else { quantity.value() })
}

/// A pod's request of a resource, in thousandths of cores or whole units.
#[must_use]
pub fn requested(pod: &Pod, name: &str) -> i64 {
    if name == "pods" {
        return 1;
    }
    let overhead = pod.spec.as_ref().and_then(|spec| spec.overhead.as_ref()?.get(name));
    let request = total(pod, name, |resources| resources.requests.as_ref()).unwrap_or(0);
    request.saturating_add(overhead.map_or(0, |amount| amount_of(amount, name)))
}

/// The limit of a resource for all containers of a pod; `None` if no limit is set.
#[must_use]
pub fn limit(pod: &Pod, name: &str) -> Option<i64> {
    total(pod, name, |resources| resources.limits.as_ref())
}

/// The limit of the pod as a whole (`spec.resources`), in thousandths of cores or whole units.
#[must_use]
pub fn pod_limit(pod: &Pod, name: &str) -> Option<u64> {
    let amount = pod.spec.as_ref()?.resources.as_ref()?.limits.as_ref()?.get(name)?;
    u64::try_from(amount_of(amount, name)).ok().filter(|amount| *amount > 0)
}

/// The CPU request of a container without one, in thousandths of a core: its share of the pod-level request beyond the
/// other containers' requests.
#[must_use]
pub fn default_cpu_request(pod: &Pod) -> u64 {
    let Some(spec) = &pod.spec else { return 0 };
    let amount = |resources: &Option<ResourceRequirements>| {
        Some(amount_of(resources.as_ref()?.requests.as_ref()?.get("cpu")?, "cpu"))
    };
    let Some(whole) = amount(&spec.resources) else { return 0 };
    let own: Vec<Option<i64>> = spec.containers.iter().map(|container| amount(&container.resources)).collect();
    let silent = i64::try_from(own.iter().filter(|own| own.is_none()).count()).unwrap_or(i64::MAX).max(1);
    let named = own.iter().flatten().fold(0, |sum: i64, own| sum.saturating_add(*own));
    u64::try_from(whole.saturating_sub(named) / silent).unwrap_or(0)
}

/// The memory limit of all containers of a pod; `None` if the pod and one of its containers have no limit (upstream's
/// rule for a pod's cgroup).
#[must_use]
pub fn memory_bound(pod: &Pod) -> Option<u64> {
    let spec = pod.spec.as_ref()?;
    let has = |resources: &Option<ResourceRequirements>| {
        resources.as_ref().and_then(|resources| resources.limits.as_ref()?.get("memory")).is_some()
    };
    let all = || spec.containers.iter().chain(spec.init_containers.iter().flatten()).all(|of| has(&of.resources));
    if !has(&spec.resources) && !all() {
        return None;
    }
    let overhead = spec.overhead.as_ref().and_then(|overhead| overhead.get("memory"));
    let bytes = limit(pod, "memory")?.saturating_add(overhead.map_or(0, |amount| amount_of(amount, "memory")));
    u64::try_from(bytes).ok()
}

type Amounts = BTreeMap<String, Wire>;

fn total(pod: &Pod, name: &str, of: impl Fn(&ResourceRequirements) -> Option<&Amounts>) -> Option<i64> {
    let spec = pod.spec.as_ref()?;
    let amount = |resources: &Option<ResourceRequirements>| Some(amount_of(of(resources.as_ref()?)?.get(name)?, name));
    // As upstream: pod-level amounts exist for these only.
    if matches!(name, "cpu" | "memory")
        && let Some(pod) = amount(&spec.resources)
    {
        return Some(pod);
    }
    let own = spec.containers.iter().map(|container| (Share::Own, amount(&container.resources)));
    let init = spec.init_containers.iter().flatten();
    let init = init.map(|of| (Share::of_init(of.restart_policy.as_deref()), amount(&of.resources)));
    let all: Vec<_> = own.chain(init).collect();
    all.iter()
        .any(|(_, amount)| amount.is_some())
        .then(|| pod_total(all.into_iter().map(|(share, amount)| (share, amount.unwrap_or(0)))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_request_of_a_pod_is_its_maximum_at_any_time() {
        let several: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "overhead": {"cpu": "1m"},
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "i", "resources": {"requests": {"cpu": "600m"}, "limits": {"ephemeral-storage": "5"}}},
            ],
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "200m"}}},
                {"name": "b", "resources": {"requests": {"cpu": "300m"}}}],
        }}))
        .unwrap();
        assert_eq!((requested(&several, "cpu"), requested(&several, "memory")), (701, 0));
        assert_eq!((limit(&several, "ephemeral-storage"), limit(&several, "memory")), (Some(5), None));
    }

    #[test]
    fn a_pod_may_name_its_own_amounts() {
        let pod = |resources: serde_json::Value, containers: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"metadata": {}, "spec": {"resources": resources, "containers": containers}}))
                .unwrap()
        };
        let whole = json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2", "memory": "1Mi"}});
        let containers =
            json!([{"name": "a", "resources": {"requests": {"cpu": "400m"}}}, {"name": "b"}, {"name": "c"}]);
        let named = pod(whole, containers.clone());
        assert_eq!((requested(&named, "cpu"), default_cpu_request(&named)), (1000, 300));
        assert_eq!((pod_limit(&named, "cpu"), memory_bound(&named)), (Some(2000), Some(1 << 20)));
        let silent = pod(json!(null), containers);
        assert_eq!((default_cpu_request(&silent), pod_limit(&silent, "cpu"), memory_bound(&silent)), (0, None, None));
        let limited = json!([{"name": "a", "resources": {"limits": {"memory": "2Mi"}}}]);
        assert_eq!(memory_bound(&pod(json!(null), limited)), Some(2 << 20));
    }
}

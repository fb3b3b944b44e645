//! PodResizeValidator: rejects resizes that exceed the node's allocatable resources.

use machinery_api::error::ApiResult;
use machinery_api::quantity::Quantity;
use machinery_api::selector::go_quoted;
use machinery_rules::requests::{Share, pod_total};
use serde_json::Value;

use super::{Context, Immediate, Operation};

pub(super) const PLUGIN: Immediate = Immediate { name: "PodResizeValidator", mutate: None, validate: Some(validate) };

fn validate(context: &Context<'_>, pod: &Value) -> ApiResult<()> {
    let request = context.request;
    let is_resize = request.group.is_empty() && request.resource == "pods" && request.subresource == "resize";
    if !is_resize || request.operation != Operation::Update {
        return Ok(());
    }
    let unchanged = context.old.is_some_and(|old| old["metadata"]["generation"] == pod["metadata"]["generation"]);
    let Some(name) = pod["spec"]["nodeName"].as_str().filter(|name| !name.is_empty() && !unchanged) else {
        return Ok(());
    };
    let Some(node) = context.objects.get("", "nodes", "", name) else {
        return Err(request.forbidden(pod, format!("node {} not found", go_quoted(name))));
    };
    if let Some(os) = node["metadata"]["labels"]["kubernetes.io/os"].as_str().filter(|os| *os != "linux") {
        let why = format!("pod resize is only supported on linux nodes, node {} is {}", go_quoted(name), go_quoted(os));
        return Err(request.forbidden(pod, why));
    }
    let over: Vec<String> = ["cpu", "memory"]
        .into_iter()
        .filter_map(|resource| {
            let allocatable = amount(&node["status"]["allocatable"], resource).unwrap_or(0);
            let requested = requested(&pod["spec"], resource);
            let comparison = format!("{resource}, requested: {requested}, allocatable: {allocatable}");
            (requested > allocatable).then_some(comparison)
        })
        .collect();
    if over.is_empty() {
        return Ok(());
    }
    let why = format!("node didn't have enough allocatable resources: {}", over.join("; "));
    Err(request.forbidden(pod, why))
}

/// Returns millicores or bytes.
fn amount(amounts: &Value, resource: &str) -> Option<i64> {
    let amount = Quantity::parse(amounts[resource].as_str()?).ok()?;
    Some(if resource == "cpu" { amount.milli() } else { amount.value() })
}

/// The total request of a pod, as the scheduler counts it.
fn requested(spec: &Value, resource: &str) -> i64 {
    let of = |container: &Value| amount(&container["resources"]["requests"], resource);
    let list = |name: &str| spec[name].as_array().map(Vec::as_slice).unwrap_or_default();
    let own = list("containers").iter().map(|container| (Share::Own, of(container).unwrap_or(0)));
    let init = list("initContainers");
    let init = init.iter().map(|init| (Share::of_init(init["restartPolicy"].as_str()), of(init).unwrap_or(0)));
    let total = of(spec).unwrap_or_else(|| pod_total(own.chain(init)));
    total.saturating_add(amount(&spec["overhead"], resource).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_request_of_a_pod_is_its_own_or_that_of_its_containers() {
        let mut spec = json!({
            "containers": [{"resources": {"requests": {"cpu": "1"}}}, {"resources": {"requests": {"cpu": "500m"}}}],
            "overhead": {"cpu": "10m"},
        });
        assert_eq!((requested(&spec, "cpu"), requested(&spec, "memory")), (1510, 0));
        spec["resources"] = json!({"requests": {"cpu": "2"}});
        assert_eq!(requested(&spec, "cpu"), 2010);
    }
}

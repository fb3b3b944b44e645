//! PodTopologyLabels: copies the zone and region labels of the node to the pod.

use machinery_api::error::ApiResult;
use serde_json::{Map, Value, json};

use super::{Context, Immediate, Operation};

pub(super) const PLUGIN: Immediate = Immediate { name: "PodTopologyLabels", mutate: Some(mutate), validate: None };

const LABELS: &[&str] = &["topology.kubernetes.io/region", "topology.kubernetes.io/zone"];

fn mutate(context: &Context<'_>, object: &mut Value) -> ApiResult<()> {
    let request = context.request;
    if !request.group.is_empty() || request.resource != "pods" {
        return Ok(());
    }
    let node = match (request.subresource, request.operation) {
        ("", Operation::Create) => object["spec"]["nodeName"].as_str(),
        ("binding", Operation::Create) if object["target"]["kind"] == "Node" => object["target"]["name"].as_str(),
        _ => None,
    };
    let Some(name) = node.filter(|name| !name.is_empty()) else { return Ok(()) };
    let Some(node) = context.objects.get("", "nodes", "", name) else { return Ok(()) };
    let of_node = &node["metadata"]["labels"];
    let copied: Map<String, Value> =
        LABELS.iter().filter_map(|label| Some(((*label).to_owned(), of_node.get(*label)?.clone()))).collect();
    let Some(object) = object.as_object_mut().filter(|_| !copied.is_empty()) else { return Ok(()) };
    let labels = object.entry("metadata").or_insert_with(|| json!({}));
    let Some(metadata) = labels.as_object_mut() else { return Ok(()) };
    let labels = metadata.entry("labels").or_insert_with(|| json!({}));
    match labels.as_object_mut() {
        Some(labels) => labels.extend(copied),
        None => *labels = copied.into(),
    }
    Ok(())
}

//! `cloud-node-lifecycle-controller`: deletes an unready node whose machine is gone, and taints one whose machine is
//! shut down.

use k8s_openapi::api::core::v1::{Node, Taint};
use machinery_api::ObjectKey;
use machinery_client::{Action, BackOff, Context, Controller, EventRecord, Input, ObjectCache, Plan};
use serde_json::json;

use super::{Instances, SHUTDOWN, all_of_new, instance_of, taints};
use crate::Settings;

const SOURCE: &str = "cloud-node-lifecycle-controller";
/// The maximum number of nodes changed in one pass over all nodes.
const AT_ONCE: usize = 32;

/// The only key stands for all nodes.
pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "cloud-node-lifecycle-controller",
    account: "node-controller",
    workers: 1,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<Node>(all_of_new)],
    reconcile,
};

fn reconcile(view: &ObjectCache, _: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let Some(instances) = context.settings.instances.as_deref() else { return Plan::nothing() };
    let period = context.settings.options.node_lifecycle.monitor_period;
    // A new node may not have reported its status yet.
    let is_new = |node: &Node| {
        let made = node.metadata.creation_timestamp.as_ref().map(|time| time.0);
        made.is_some_and(|made| context.now.duration_since(made).unsigned_abs() < period)
    };
    let there = view.all::<Node>().filter(|node| node.metadata.deletion_timestamp.is_none() && !is_new(node));
    let actions = there.map(|node| sync_node(instances, node)).filter(|actions| !actions.is_empty());
    let mut plan = Plan::from(actions.take(AT_ONCE).flatten().collect::<Vec<Action>>());
    if view.all::<Node>().next().is_some() {
        plan.requeue_after(context.now, period);
    }
    plan
}

fn is_ready(node: &Node) -> bool {
    let mut conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn sync_node(instances: &dyn Instances, node: &Node) -> Vec<Action> {
    let is_off = |taint: &Taint| taint.key == SHUTDOWN && taint.effect == "NoSchedule";
    let marked = taints(node).iter().any(is_off);
    if is_ready(node) {
        let left: Vec<&Taint> = taints(node).iter().filter(|taint| !is_off(taint)).collect();
        return marked.then(|| with_taints(node, &left)).into_iter().collect();
    }
    match instance_of(instances, node) {
        Ok(None) => {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let message = format!("Deleting node {name} because it does not exist in the cloud provider");
            let event = EventRecord::normal(node, "DeletingNode", message).from(SOURCE);
            let failed = format!("Failed deleting node {name}: {{error}}");
            let failed = EventRecord::warning(node, "DeletingNodeFailed", failed).from(SOURCE);
            let mut delete = Action::delete(node).noted(None, Some(failed));
            // The node may have become ready meanwhile.
            if let Action::Delete { resource_version, .. } = &mut delete {
                resource_version.clone_from(&node.metadata.resource_version);
            }
            vec![Action::Event(event), delete]
        }
        Ok(Some(instance)) if instance.shutdown && !marked => {
            let off =
                Taint { key: SHUTDOWN.to_owned(), value: None, effect: "NoSchedule".to_owned(), time_added: None };
            vec![with_taints(node, &taints(node).iter().chain([&off]).collect::<Vec<_>>())]
        }
        Ok(Some(_)) | Err(_) => Vec::new(),
    }
}

fn with_taints(node: &Node, taints: &[&Taint]) -> Action {
    let version = &node.metadata.resource_version;
    Action::patch(node, json!({"metadata": {"resourceVersion": version}, "spec": {"taints": taints}}))
}

//! `node-ipam-controller`: allocates a pod network to every node from the cluster's networks.
//!
//! One key stands for all nodes: passes run one after the other, each with the allocations of the previous one.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use machinery_api::ObjectKey;
use machinery_client::{Action, BackOff, Change, Context, Controller, EventRecord, Input, ObjectCache, Plan};
use serde_json::json;

use crate::Settings;

/// The retry interval when the networks are exhausted.
const RETRY: Duration = Duration::from_secs(60);

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "node-ipam-controller",
    account: "node-controller",
    workers: 1,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<Node>(all_nodes)],
    reconcile,
};

/// Only when a node is added, removed or gets its network; heartbeats are ignored.
fn all_nodes(_: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let networks = |node: Option<&Node>| node.map(|n| given(n).map(str::to_owned).collect::<Vec<_>>());
    let same = networks(change.before()) == networks(change.after());
    if same { Vec::new() } else { vec![ObjectKey::cluster("nodes")] }
}

fn given(node: &Node) -> impl Iterator<Item = &str> {
    let spec = node.spec.as_ref();
    let several = spec.and_then(|s| s.pod_cidrs.as_deref()).unwrap_or_default();
    let one = spec.and_then(|s| s.pod_cidr.as_deref()).filter(|c| !c.is_empty() && several.is_empty());
    several.iter().map(String::as_str).chain(one)
}

fn reconcile(view: &ObjectCache, _: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let mut plan = Plan::nothing();
    if context.settings.cluster_cidrs.is_empty() {
        return plan;
    }
    let mut used: BTreeSet<IpNet> = view.all::<Node>().flat_map(given).filter_map(|c| c.parse().ok()).collect();
    let waiting = |node: &&Node| node.metadata.deletion_timestamp.is_none() && given(node).next().is_none();
    let mut patches = Vec::new();
    for node in view.all::<Node>().filter(waiting) {
        let Some(networks) = allocate(&context.settings.cluster_cidrs, &used) else {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let message = format!("Node {name} status is now: CIDRNotAvailable");
            plan.push(Action::Event(EventRecord::normal(node, "CIDRNotAvailable", message).from("cidrAllocator")));
            plan.requeue_after(context.now, RETRY);
            continue;
        };
        let texts: Vec<String> = networks.iter().map(IpNet::to_string).collect();
        used.extend(networks);
        let patch =
            json!({"metadata": {"uid": node.metadata.uid}, "spec": {"podCIDR": texts.first(), "podCIDRs": texts}});
        patches.push(Action::patch(node, patch));
    }
    if !patches.is_empty() {
        plan.push(Action::Concurrent(patches));
    }
    plan
}

/// The lowest free network of each cluster network.
fn allocate(cluster: &[(IpNet, u8)], used: &BTreeSet<IpNet>) -> Option<Vec<IpNet>> {
    let overlaps = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
    cluster
        .iter()
        .map(|(whole, prefix)| {
            // Networks of another prefix length are rare: only those are compared one by one.
            let odd: Vec<&IpNet> = used.iter().filter(|net| net.prefix_len() != *prefix).collect();
            let mut parts = whole.subnets(*prefix).ok()?;
            parts.find(|part| !used.contains(part) && !odd.iter().any(|net| overlaps(net, part)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_given_once_and_run_out() {
        let cluster = [("10.0.0.0/22".parse().unwrap(), 24)];
        let mut used = BTreeSet::from(["10.0.1.0/25".parse().unwrap(), "10.0.2.0/24".parse().unwrap()]);
        let mut next = || {
            let got = allocate(&cluster, &used)?;
            used.extend(got.clone());
            Some(got[0].to_string())
        };
        assert_eq!(next().as_deref(), Some("10.0.0.0/24"));
        assert_eq!(next().as_deref(), Some("10.0.3.0/24"));
        assert_eq!(next(), None);
    }
}

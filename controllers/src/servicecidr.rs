//! `service-cidr-controller`: a ServiceCIDR is ready at once, and is kept while Services have addresses of it that no
//! other ServiceCIDR contains. IPAddresses need no repair: each is written and removed in its Service's own
//! transactions.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use machinery_api::ObjectKey;
use machinery_client::driver::own_key;
use machinery_client::request::PatchType;
use machinery_client::{Action, BackOff, Change, Context, Controller, Input, ObjectCache, Plan, key_of, value_of};
use serde_json::{Value, json};

use crate::Settings;
use crate::pods;

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const MANAGER: &str = "ipallocator.k8s.io";
/// The minimum time that a terminating ServiceCIDR is kept: allocators may not have seen its deletion yet (upstream's).
const GRACE: Duration = Duration::from_secs(10);

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "service-cidr-controller",
    account: "service-cidrs-controller",
    workers: 5,
    back_off: BackOff::DEFAULT,
    inputs: &[
        Input::of::<ServiceCIDR>(own_key),
        Input::of::<ServiceCIDR>(overlapping),
        Input::of::<IPAddress>(of_address),
    ],
    reconcile,
};

fn blocks(of: &ServiceCIDR) -> impl Iterator<Item = IpNet> {
    of.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten()).filter_map(|cidr| cidr.parse().ok())
}

fn is_terminating(of: &ServiceCIDR) -> bool {
    of.metadata.deletion_timestamp.is_some()
}

/// Terminating ServiceCIDRs that wait for another one to contain their addresses.
fn overlapping(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let Some(new) = change.after::<ServiceCIDR>().filter(|_| change.old.is_none()) else { return Vec::new() };
    let overlaps = |other: &ServiceCIDR| {
        blocks(other).any(|a| blocks(new).any(|b| a.contains(&b.network()) || b.contains(&a.network())))
    };
    let waiting = view.all::<ServiceCIDR>().filter(|other| is_terminating(other) && overlaps(other));
    waiting.map(|other| key_of(&other.metadata)).collect()
}

/// Terminating ServiceCIDRs that wait for the release of an address.
fn of_address(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let Ok(address) = change.key.name.parse::<IpAddr>() else { return Vec::new() };
    let waiting = view.all::<ServiceCIDR>().filter(|cidr| is_terminating(cidr) && holds(cidr, address));
    waiting.map(|cidr| key_of(&cidr.metadata)).collect()
}

/// Whether the address is allocatable there: not a block's network or broadcast address.
fn holds(cidr: &ServiceCIDR, address: IpAddr) -> bool {
    blocks(cidr).any(|block| {
        let special = address == block.network() || (address.is_ipv4() && address == block.broadcast());
        block.contains(&address) && !special
    })
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let Some(cidr) = view.get::<ServiceCIDR>(key) else { return Plan::nothing() };
    let finalizers = cidr.metadata.finalizers.as_deref().unwrap_or_default();
    let protected = finalizers.iter().any(|name| name == FINALIZER);
    let mut plan = Plan::nothing();
    if !is_terminating(cidr) {
        if !protected {
            let finalizers: Vec<&str> = finalizers.iter().map(String::as_str).chain([FINALIZER]).collect();
            plan.push(finalized(cidr, &finalizers));
        }
        plan.actions.extend(condition(cidr, "True", "", "Kubernetes Service CIDR is ready", context.now));
        return plan;
    }
    if !may_go(view, cidr) {
        let message =
            "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";
        plan.actions.extend(condition(cidr, "False", "Terminating", message, context.now));
        return plan;
    }
    let deleted_at = cidr.metadata.deletion_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let due = deleted_at.saturating_add(GRACE).unwrap_or(Timestamp::MAX);
    if due > context.now {
        plan.revisit(due);
    } else if protected {
        let left: Vec<&str> = finalizers.iter().map(String::as_str).filter(|name| *name != FINALIZER).collect();
        plan.push(finalized(cidr, &left));
    }
    plan
}

fn finalized(cidr: &ServiceCIDR, finalizers: &[&str]) -> Action {
    let metadata = &cidr.metadata;
    let patch = json!({"metadata": {
        "uid": metadata.uid, "resourceVersion": metadata.resource_version, "finalizers": finalizers}});
    Action::patch(cidr, patch)
}

/// Whether another ServiceCIDR contains every allocated address.
fn may_go(view: &ObjectCache, cidr: &ServiceCIDR) -> bool {
    let others = || view.all::<ServiceCIDR>().filter(|other| other.metadata.name != cidr.metadata.name);
    let contained = |block: IpNet| others().any(|other| blocks(other).any(|outer| outer.contains(&block)));
    if blocks(cidr).all(contained) {
        return true;
    }
    let of_services = view.all::<IPAddress>().filter(|address| {
        let labels = address.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|by| by == MANAGER)
    });
    let mut addresses = of_services.filter_map(|address| address.metadata.name.as_deref()?.parse::<IpAddr>().ok());
    !addresses.any(|address| holds(cidr, address) && !others().any(|other| holds(other, address)))
}

/// Sets the condition Ready if it differs.
fn condition(cidr: &ServiceCIDR, status: &str, reason: &str, message: &str, now: Timestamp) -> Option<Action> {
    let known = cidr.status.as_ref().and_then(|status| status.conditions.as_ref());
    let known = known.into_iter().flatten().find(|condition| condition.type_ == "Ready");
    if known.is_some_and(|known| known.status == status && known.reason == reason && known.message == message) {
        return None;
    }
    let condition = Condition {
        type_: "Ready".into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: pods::stamp(now),
        observed_generation: None,
    };
    let conditions: Value = vec![value_of(&condition)].into();
    let patch = json!({"metadata": {"uid": cidr.metadata.uid}, "status": {"conditions": conditions}});
    Some(Action::patch_as(cidr, PatchType::Strategic, patch).on("status"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table_tests::{decide, start};

    fn cidr(name: &str, blocks: &[&str], going: Option<&str>) -> Value {
        let mut cidr = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": name, "finalizers": ["example.com/x"]}, "spec": {"cidrs": blocks}});
        if let Some(at) = going {
            cidr["metadata"]["deletionTimestamp"] = json!(at);
            cidr["metadata"]["finalizers"] = json!(["example.com/x", FINALIZER]);
        }
        cidr
    }

    fn address(ip: &str) -> Value {
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
            "metadata": {"name": ip, "labels": {MANAGED_BY: MANAGER}},
            "spec": {"parentRef": {"resource": "services", "name": "s", "namespace": "a"}}})
    }

    /// The condition's status, the number of finalizers at the end, and the requeue time.
    fn judged(objects: Vec<Value>) -> (Option<String>, usize, Option<String>) {
        let mut simulation = crate::simulation(start(), objects);
        let key = ObjectKey::cluster("c");
        let plan = decide("service-cidr-controller", &simulation, &key);
        let again = plan.requeue_at.map(|at| at.to_string());
        assert_eq!(simulation.apply(plan), Vec::<String>::new());
        assert_eq!(decide("service-cidr-controller", &simulation, &key).actions, []);
        let cidr = simulation.view.get::<ServiceCIDR>(&key).unwrap();
        let conditions = cidr.status.as_ref().and_then(|status| status.conditions.as_ref());
        let status = conditions.map(|conditions| conditions[0].status.clone());
        (status, cidr.metadata.finalizers.as_ref().map_or(0, Vec::len), again)
    }

    #[test]
    fn it_goes_when_no_address_is_in_it_alone() {
        let (yes, no) = (Some("True".to_owned()), Some("False".to_owned()));
        let gone = "2025-12-31T23:59:00Z";
        let (block, wider, other) = (&["10.1.0.0/24"][..], &["10.1.0.0/16"][..], &["10.1.0.0/30"][..]);
        for (objects, wanted) in [
            (vec![cidr("c", block, None)], (yes, 2, None)),
            (vec![cidr("c", block, Some(gone))], (None, 1, None)),
            (vec![cidr("c", block, Some(gone)), address("10.1.0.7")], (no.clone(), 2, None)),
            (vec![cidr("c", block, Some(gone)), address("10.2.0.7")], (None, 1, None)),
            (vec![cidr("c", block, Some(gone)), address("10.1.0.7"), cidr("d", wider, None)], (None, 1, None)),
            (vec![cidr("c", block, Some(gone)), address("10.1.0.2"), cidr("d", other, None)], (None, 1, None)),
            (vec![cidr("c", block, Some(gone)), address("10.1.0.3"), cidr("d", other, None)], (no, 2, None)),
            (vec![cidr("c", block, Some("2025-12-31T23:59:55Z"))], (None, 2, Some("2026-01-01T00:00:05Z".to_owned()))),
        ] {
            assert_eq!(judged(objects.clone()), wanted, "{objects:?}");
        }
    }
}

//! The quota usage of a volume claim and of a device claim, by upstream's resource names. Pure.

use std::collections::BTreeSet;

use serde_json::Value;

use super::amounts::{Amounts, add, raise, read};
use super::{Scope, whole};
use machinery_api::quantity::{Format, Quantity};

const COUNT: &str = "count/persistentvolumeclaims";
const CLASS: &str = ".storageclass.storage.k8s.io/";
const NAMES: [&str; 2] = ["persistentvolumeclaims", "requests.storage"];
const DEVICES: &str = ".deviceclass.resource.k8s.io/devices";
const DEVICE_COUNT: &str = "count/resourceclaims.resource.k8s.io";
/// The count of a claim for all devices: the maximum that one claim may get.
const ALL_DEVICES: i64 = 32;

pub(super) fn counts(name: &str) -> bool {
    let by_class = |resource: &&str| name.strip_suffix(*resource).is_some_and(|class| class.ends_with(CLASS));
    name == COUNT || NAMES.contains(&name) || NAMES.iter().any(by_class)
}

/// The requested class, or empty.
fn class(claim: &Value) -> &str {
    let annotation = claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"].as_str();
    annotation.or_else(|| claim["spec"]["storageClassName"].as_str()).unwrap_or_default()
}

/// Rounds to a whole number of bytes.
fn rounded(amount: &Quantity) -> Quantity {
    if amount.is_whole() { amount.clone() } else { Quantity::from_int(amount.value(), Format::DecimalSi) }
}

pub(super) fn usage(claim: &Value) -> Amounts {
    let mut usage = Amounts::from([(NAMES[0].to_owned(), whole(1)), (COUNT.to_owned(), whole(1))]);
    let mut storage = read(&claim["spec"]["resources"]["requests"]).remove("storage");
    if let Some(wanted) = &mut storage
        && let Some(allocated) = read(&claim["status"]["allocatedResources"]).remove("storage")
        && allocated > *wanted
    {
        *wanted = allocated;
    }
    let storage = storage.as_ref().map(rounded);
    let class = class(claim);
    if !class.is_empty() {
        usage.insert(format!("{class}{CLASS}{}", NAMES[0]), whole(1));
    }
    if let Some(storage) = storage {
        if !class.is_empty() {
            usage.insert(format!("{class}{CLASS}{}", NAMES[1]), storage.clone());
        }
        usage.insert(NAMES[1].to_owned(), storage);
    }
    usage
}

fn attribute_classes(claim: &Value) -> BTreeSet<&str> {
    let status = &claim["status"];
    let names = [
        &claim["spec"]["volumeAttributesClassName"],
        &status["currentVolumeAttributesClassName"],
        &status["modifyVolumeStatus"]["targetVolumeAttributesClassName"],
    ];
    names.iter().filter_map(|name| name.as_str()).filter(|name| !name.is_empty()).collect()
}

pub(super) fn in_scope(scope: Scope<'_>, claim: &Value) -> bool {
    if scope.name != "VolumeAttributesClass" {
        return false;
    }
    let classes = attribute_classes(claim);
    if classes.is_empty() { scope.selects(None) } else { classes.iter().any(|class| scope.selects(Some(class))) }
}

/// Whether a new status changes its usage.
pub(super) fn replenishes(new: &Value, old: &Value) -> bool {
    let allocated = |claim: &Value| claim["status"]["allocatedResources"]["storage"].clone();
    allocated(new) != allocated(old) || attribute_classes(new) != attribute_classes(old)
}

pub(super) fn counts_devices(name: &str) -> bool {
    name == DEVICE_COUNT || name.ends_with(DEVICES)
}

fn requested(request: &Value) -> Amounts {
    let Some(class) = request["deviceClassName"].as_str() else { return Amounts::new() };
    let count = match request["allocationMode"].as_str() {
        Some("ExactCount") => request["count"].as_i64().unwrap_or(0),
        Some("All") => ALL_DEVICES,
        _ => 0,
    };
    Amounts::from([(format!("{class}{DEVICES}"), whole(count))])
}

pub(super) fn devices(claim: &Value) -> Amounts {
    let mut usage = Amounts::from([(DEVICE_COUNT.to_owned(), whole(1))]);
    for request in claim["spec"]["devices"]["requests"].as_array().into_iter().flatten() {
        let mut most = Amounts::new();
        for alternative in request["firstAvailable"].as_array().into_iter().flatten() {
            raise(&mut most, &requested(alternative));
        }
        raise(&mut most, &requested(&request["exactly"]));
        add(&mut usage, &most);
    }
    usage
}

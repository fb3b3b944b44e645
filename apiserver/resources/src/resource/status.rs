//! A claim's status: allocation, consumers, and device statuses of the drivers.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{CONFIG_MAX, binding_conditions, bounded, claim, device_key, label, pool_name, raw_object, unique, uuid};
use crate::choices::required_choice;
use crate::core::pods::placement::node_selector;
use crate::core::pods::update::semantically_equal;
use crate::field::{ErrorList, IMMUTABLE, Path};
use crate::read::{get, has, items, put, text, texts};

const STATUS: Path<'static> = Path::root("status");
const RESERVED_MAX: usize = 256;
const RESULTS_MAX: usize = 32;
const CONDITIONS_MAX: usize = 8;
const DATA_BYTES_MAX: usize = 10 << 10;
const IPS_MAX: usize = 16;
const INTERFACE_BYTES_MAX: usize = 256;
const HARDWARE_BYTES_MAX: usize = 128;
const SOURCES: &[&str] = &["FromClaim", "FromClass"];

fn results(object: &Value) -> &[Value] {
    items(crate::read::at(object, &["status", "allocation", "devices"]), "results")
}

/// Drops the status of devices that are no longer allocated.
pub(super) fn drop_deallocated_statuses(new: &mut Value, old: &Value) {
    let kept: BTreeSet<String> = results(new).iter().map(device_key).collect();
    let gone: BTreeSet<String> = results(old).iter().map(device_key).filter(|key| !kept.contains(key)).collect();
    let Some(status) = new.get_mut("status") else { return };
    let left: Vec<Value> =
        items(status, "devices").iter().filter(|device| !gone.contains(&device_key(device))).cloned().collect();
    put(status, "devices", if left.is_empty() { Value::Null } else { Value::Array(left) });
}

pub(super) fn validate(errors: &mut ErrorList, new: &Value, old: &Value) {
    let (status, had) = (get(new, "status"), get(old, "status"));
    let reserved_at = STATUS.child("reservedFor");
    let reserved = bounded(errors, status, "reservedFor", RESERVED_MAX, &reserved_at);
    for (i, consumer) in reserved.iter().enumerate() {
        let at = reserved_at.index(i);
        for key in ["resource", "name", "uid"] {
            if text(consumer, key).is_empty() {
                errors.required(&at.child(key), "");
            }
        }
    }
    unique(errors, reserved.iter().map(|consumer| text(consumer, "uid").to_owned()), &reserved_at);
    let allocated: BTreeSet<String> = results(new).iter().map(device_key).collect();
    let devices_at = STATUS.child("devices");
    let devices = items(status, "devices");
    for (i, device) in devices.iter().enumerate() {
        device_status(errors, device, &allocated, &devices_at.index(i));
    }
    unique(errors, devices.iter().map(device_key), &devices_at);
    if !items(status, "reservedFor").is_empty() {
        let going = has(get(new, "metadata"), "deletionTimestamp");
        let knew = items(had, "reservedFor");
        if !has(status, "allocation") {
            errors.forbidden(&reserved_at, "may not be specified when `allocated` is not set");
        } else if going && items(status, "reservedFor").iter().any(|consumer| !knew.contains(consumer)) {
            let why = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
            errors.forbidden(&reserved_at, why);
        }
    }
    let (allocation, allocation_at) = (get(status, "allocation"), STATUS.child("allocation"));
    if allocation.is_null() {
        return;
    }
    if !has(had, "allocation") {
        return allocate(errors, allocation, &claim::request_names(get(new, "spec")), &allocation_at);
    }
    if !semantically_equal(allocation, get(had, "allocation")) {
        errors.invalid(&allocation_at, allocation.clone(), IMMUTABLE);
    }
}

fn allocate(errors: &mut ErrorList, allocation: &Value, names: &claim::RequestNames<'_>, path: &Path<'_>) {
    let (devices, devices_at) = (get(allocation, "devices"), path.child("devices"));
    let results_at = devices_at.child("results");
    for (i, result) in bounded(errors, devices, "results", RESULTS_MAX, &results_at).iter().enumerate() {
        let at = results_at.index(i);
        claim::reference(errors, text(result, "request"), names, &at.child("request"));
        device(errors, result, &at);
        binding_conditions(errors, result, &at);
        if has(result, "shareID") {
            uuid(errors, text(result, "shareID"), &at.child("shareID"));
        }
    }
    let config_at = devices_at.child("config");
    for (i, config) in bounded(errors, devices, "config", 2 * CONFIG_MAX, &config_at).iter().enumerate() {
        let at = config_at.index(i);

        required_choice(errors, config, "source", SOURCES, &at);
        claim::references(errors, config, names, &at);
        claim::configuration(errors, config, &at);
    }
    if has(allocation, "nodeSelector") {
        node_selector(errors, get(allocation, "nodeSelector"), &path.child("nodeSelector"));
    }
}

/// A device by its driver, pool and name.
fn device(errors: &mut ErrorList, of: &Value, path: &Path<'_>) {
    crate::storage::driver_name(errors, text(of, "driver"), &path.child("driver"));
    pool_name(errors, text(of, "pool"), &path.child("pool"));
    label(errors, text(of, "device"), &path.child("device"));
}

fn device_status(errors: &mut ErrorList, of: &Value, allocated: &BTreeSet<String>, path: &Path<'_>) {
    device(errors, of, path);
    if has(of, "shareID") {
        uuid(errors, text(of, "shareID"), &path.child("shareID"));
    }
    let key = device_key(of);
    if !allocated.contains(&key) {
        errors.invalid(path, key, "must be an allocated device in the claim");
    }
    let conditions_at = path.child("conditions");
    let count = items(of, "conditions").len();
    if count > CONDITIONS_MAX {
        errors.too_many(&conditions_at, count, CONDITIONS_MAX);
    }
    crate::conditions::validate(errors, of, &conditions_at);
    if has(of, "data") {
        raw_object(errors, get(of, "data"), DATA_BYTES_MAX, &path.child("data"));
    }
    let (network, network_at) = (get(of, "networkData"), path.child("networkData"));
    for (key, most) in [("interfaceName", INTERFACE_BYTES_MAX), ("hardwareAddress", HARDWARE_BYTES_MAX)] {
        if text(network, key).len() > most {
            errors.too_long(&network_at.child(key), most);
        }
    }
    let ips_at = network_at.child("ips");
    let ips = bounded(errors, network, "ips", IPS_MAX, &ips_at);
    for (i, address) in ips.iter().enumerate() {
        let address = address.as_str().unwrap_or("");
        errors.invalid_each(&ips_at.index(i), address, crate::rules::interface_address(address));
    }
    if !ips.is_empty() {
        unique(errors, texts(network, "ips").map(str::to_owned), &ips_at);
    }
}

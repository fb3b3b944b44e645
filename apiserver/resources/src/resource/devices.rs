//! Devices of a slice: attributes, capacity, taints and counters.

use std::cmp::Ordering;
use std::sync::LazyLock;

use machinery_api::quantity::Quantity;
use regex::Regex;
use serde_json::{Value, json};

use super::resourceslices::counters;
use super::{binding_conditions, bounded, claim, label, qualified_name, unique};
use crate::core::pods::placement::node_selector;
use crate::core::pods::update::semantically_equal;
use crate::field::{ErrorList, Path};
use crate::go_structs;
use crate::metadata::{label_name, quantity};
use crate::read::{entries, flag, get, has, items, text, texts};
use crate::rules;

const ATTRIBUTES_AND_CAPACITIES_MAX: usize = 32;
const ATTRIBUTE_VALUES_MAX: usize = 48;
const VALUE_BYTES_MAX: usize = 64;
const TAINTS_MAX: usize = 16;
const CONSUMED_SETS_MAX: usize = 2;
const OPTIONS_MAX: usize = 10;
/// A domain, a slash and a name.
const KEY_BYTES_MAX: usize = 63 + 1 + 32;
static SEMVER: LazyLock<Regex> = LazyLock::new(|| {
    let (number, build) = (r"(0|[1-9]\d*)", "[0-9a-zA-Z-]+");
    let before = r"(0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)";
    let pattern = format!(r"^{number}\.{number}\.{number}(-{before}(\.{before})*)?(\+{build}(\.{build})*)?$");
    Regex::new(&pattern).expect("the pattern is a constant")
});

/// Validates a device; `old` is the stored device with the same name.
pub(super) fn validate(
    errors: &mut ErrorList,
    device: &Value,
    old: Option<&Value>,
    chooses_nodes: bool,
    path: &Path<'_>,
) {
    label(errors, text(device, "name"), &path.child("name"));
    let count = entries(device, "attributes").count() + entries(device, "capacity").count();
    if count > ATTRIBUTES_AND_CAPACITIES_MAX {
        let most = ATTRIBUTES_AND_CAPACITIES_MAX;
        let why = format!("the total number of attributes and capacities must not exceed {most}");
        errors.invalid(path, json!(count), &why);
    }
    let values: usize = entries(device, "attributes").map(|(_, attribute)| values(attribute)).sum();
    if values > ATTRIBUTE_VALUES_MAX {
        let why = format!("the total number of attribute values must not exceed {ATTRIBUTE_VALUES_MAX}");
        errors.invalid(path, json!(values), &why);
    }
    let attributes_at = path.child("attributes");
    for (key, given) in entries(device, "attributes") {
        qualified_name(errors, key, &attributes_at);
        attribute(errors, given, &attributes_at.key(&shortened(key)));
    }
    let capacity_at = path.child("capacity");
    for (key, given) in entries(device, "capacity") {
        qualified_name(errors, key, &capacity_at);
        let shown = shortened(key);
        let at = capacity_at.key(&shown);
        capacity(errors, given, flag(device, "allowMultipleAllocations"), &at);
    }
    if !old.is_some_and(|old| semantically_equal(get(old, "taints"), get(device, "taints"))) {
        let taints_at = path.child("taints");
        for (i, given) in bounded(errors, device, "taints", TAINTS_MAX, &taints_at).iter().enumerate() {
            taint(errors, given, &taints_at.index(i));
        }
    }
    let consumed_at = path.child("consumesCounters");
    let consumed = bounded(errors, device, "consumesCounters", CONSUMED_SETS_MAX, &consumed_at);
    for (i, set) in consumed.iter().enumerate() {
        counters(errors, set, "counterSet", &consumed_at.index(i));
    }
    unique(errors, consumed.iter().map(|set| text(set, "counterSet").to_owned()), &consumed_at);
    nodes(errors, device, chooses_nodes, path);
    binding_conditions(errors, device, path);
}

/// The beginning and end of a long key.
fn shortened(key: &str) -> String {
    if key.len() <= KEY_BYTES_MAX {
        return key.to_owned();
    }
    let rest = KEY_BYTES_MAX - 3;
    let (head, tail) = (key.floor_char_boundary(rest.div_ceil(2)), key.ceil_char_boundary(key.len() - rest / 2));
    format!("{}...{}", &key[..head], &key[tail..])
}

fn values(attribute: &Value) -> usize {
    let many: usize = ["bools", "ints", "strings", "versions"].iter().map(|key| items(attribute, key).len()).sum();
    many.max(1)
}

fn attribute(errors: &mut ErrorList, attribute: &Value, path: &Path<'_>) {
    if has(attribute, "string") {
        short(errors, text(attribute, "string"), &path.child("string"));
    }
    if has(attribute, "version") {
        version(errors, text(attribute, "version"), &path.child("version"));
    }
    for key in ["bools", "ints", "strings", "versions"].into_iter().filter(|key| has(attribute, key)) {
        let at = path.child(key);
        if items(attribute, key).is_empty() {
            errors.invalid(&at, get(attribute, key).clone(), "must not be empty if specified");
        }
        for (i, value) in texts(attribute, key).enumerate() {
            match key {
                "strings" => short(errors, value, &at.index(i)),
                "versions" => version(errors, value, &at.index(i)),
                _ => {}
            }
        }
    }
    let kinds = ["bool", "int", "string", "version", "bools", "ints", "strings", "versions"];
    match kinds.iter().filter(|key| has(attribute, key)).count() {
        0 => errors.invalid(path, "", "exactly one value must be specified"),
        1 => {}
        _ => go_structs::invalid(errors, path, attribute, "DeviceAttribute", "exactly one value must be specified"),
    }
}

fn short(errors: &mut ErrorList, value: &str, path: &Path<'_>) {
    if value.len() > VALUE_BYTES_MAX {
        errors.too_long(path, VALUE_BYTES_MAX);
    }
}

fn version(errors: &mut ErrorList, value: &str, path: &Path<'_>) {
    if !SEMVER.is_match(value) {
        errors.invalid(path, value, "must be a string compatible with semver.org spec 2.0.0");
    }
    short(errors, value, path);
}

fn taint(errors: &mut ErrorList, taint: &Value, path: &Path<'_>) {
    label_name(errors, text(taint, "key"), &path.child("key"));
    let value = text(taint, "value");
    errors.invalid_each(&path.child("value"), value, rules::label_value(value));
    claim::effect(errors, text(taint, "effect"), true, &path.child("effect"));
}

fn capacity(errors: &mut ErrorList, capacity: &Value, shared: bool, path: &Path<'_>) {
    let (policy, policy_at) = (get(capacity, "requestPolicy"), path.child("requestPolicy"));
    if policy.is_null() {
        return;
    }
    if !shared {
        return errors.forbidden(&policy_at, "allowMultipleAllocations must be true");
    }
    let whole = quantity(get(capacity, "value")).unwrap_or_else(Quantity::zero);
    let default = quantity(get(policy, "default"));
    let (values, range) = (items(policy, "validValues"), get(policy, "validRange"));
    match (values.is_empty(), range.is_null(), default) {
        (false, false, _) => {
            let why = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the same time";
            errors.forbidden(&policy_at, why);
        }
        (false, true, None) => {
            errors.required(&policy_at.child("default"), "required when validValues is defined");
        }
        (true, false, None) => errors.required(&policy_at.child("default"), "required when validRange is defined"),
        (false, true, Some(default)) => options(errors, policy, &default, &whole, &policy_at.child("validValues")),
        (true, false, Some(default)) => in_range(errors, range, &default, &whole, &policy_at.child("validRange")),
        (true, true, _) => {}
    }
}

fn options(errors: &mut ErrorList, policy: &Value, default: &Quantity, whole: &Quantity, path: &Path<'_>) {
    let amounts = |list: &[Value]| -> Vec<Quantity> {
        list.iter().map(|value| quantity(value).unwrap_or_else(Quantity::zero)).collect()
    };
    let given = amounts(&items(policy, "validValues")[..items(policy, "validValues").len().min(OPTIONS_MAX + 1)]);
    for (i, pair) in given.windows(2).enumerate() {
        if pair[0].cmp(&pair[1]) == Ordering::Greater {
            errors.invalid(&path.index(i + 1), pair[1].to_string(), "values must be sorted in ascending order");
        }
    }
    let list = amounts(bounded(errors, policy, "validValues", OPTIONS_MAX, path));
    for (i, option) in list.iter().enumerate().filter(|(_, option)| *option > whole) {
        let why = format!("option is larger than capacity value: {whole}");
        errors.invalid(&path.index(i), option.to_string(), &why);
    }
    unique(errors, list.iter().map(|option| option.value().to_string()), path);
    if !list.iter().any(|option| option.cmp(default) == Ordering::Equal) {
        errors.invalid(path, default.to_string(), "default value is not valid according to the requestPolicy");
    }
}

fn in_range(errors: &mut ErrorList, range: &Value, default: &Quantity, whole: &Quantity, path: &Path<'_>) {
    let (min_at, max_at, step_at) = (path.child("min"), path.child("max"), path.child("step"));
    let Some(min) = quantity(get(range, "min")) else {
        return errors.required(&min_at, "required when validRange is defined");
    };
    if min > *whole {
        errors.invalid(&min_at, min.to_string(), &format!("min is larger than capacity value: {whole}"));
    }
    if *default < min {
        errors.invalid(&min_at, default.to_string(), &format!("default is less than min: {min}"));
    }
    let max = quantity(get(range, "max"));
    if let Some(max) = &max {
        if min > *max {
            errors.invalid(&max_at, min.to_string(), &format!("min is larger than max: {max}"));
        }
        if max > whole {
            errors.invalid(&max_at, max.to_string(), &format!("max is larger than capacity value: {whole}"));
        }
        if default > max {
            errors.invalid(&max_at, default.to_string(), &format!("default is more than max: {max}"));
        }
    }
    if let Some(step) = quantity(get(range, "step")) {
        let added = min.add(&step);
        if added > *whole {
            let why = format!("one step {added} is larger than capacity value: {whole}");
            errors.invalid(&step_at, step.to_string(), &why);
        }
        for value in std::iter::once(default).chain(&max) {
            // Upstream divides by a zero step and fails.
            let distance = value.value().saturating_sub(min.value());
            if distance.checked_rem(step.value()).unwrap_or(distance) != 0 {
                let why = format!("value is not a multiple of a given step ({step}) from ({min})");
                errors.invalid(&step_at, value.to_string(), &why);
            }
        }
    }
}

/// The device's nodes, if the slice leaves node selection to its devices.
fn nodes(errors: &mut ErrorList, device: &Value, chooses: bool, path: &Path<'_>) {
    const KEYS: [&str; 3] = ["nodeName", "nodeSelector", "allNodes"];
    if !chooses {
        if KEYS.iter().any(|key| has(device, key)) {
            let why = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
            errors.invalid(path, Value::Null, why);
        }
        return;
    }
    let mut set = Vec::new();
    let (node, node_at) = (text(device, "nodeName"), path.child("nodeName"));
    if !node.is_empty() {
        set.push("`nodeName`");
        errors.invalid_each(&node_at, node, rules::dns_subdomain(node));
    } else if has(device, "nodeName") {
        errors.invalid(&node_at, "", "must not be empty");
    }
    if has(device, "nodeSelector") {
        set.push("`nodeSelector`");
        node_selector(errors, get(device, "nodeSelector"), &path.child("nodeSelector"));
    }
    if flag(device, "allNodes") {
        set.push("`allNodes`");
    } else if has(device, "allNodes") {
        errors.invalid(&path.child("allNodes"), false, "must be either unset or set to true");
    }
    let why = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
    match set.len() {
        0 => errors.required(path, why),
        1 => {}
        _ => errors.invalid(path, format!("{{{}}}", set.join(", ")), why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors_of(device: &Value) -> Vec<String> {
        let mut errors = ErrorList::new();
        validate(&mut errors, device, None, false, &Path::root("d"));
        errors.shown().iter().map(|error| format!("{}: {}", error.field, error.message)).collect()
    }

    #[test]
    fn capacity_is_shared_by_its_policy() {
        let with = |policy: Value| {
            errors_of(&json!({"name": "a", "allowMultipleAllocations": true,
                "capacity": {"memory": {"value": "10Gi", "requestPolicy": policy}}}))
        };
        assert_eq!(with(json!({"default": "1Gi", "validValues": ["1Gi", "2Gi"]})), Vec::<String>::new());
        assert_eq!(with(json!({"default": "1Gi", "validRange": {"min": "1Gi", "step": "1Gi"}})), Vec::<String>::new());
        for (policy, why) in [
            (json!({"default": "3Gi", "validValues": ["1Gi", "2Gi"]}), "default value is not valid"),
            (json!({"default": "2Gi", "validValues": ["2Gi", "1Gi"]}), "sorted in ascending order"),
            (json!({"validValues": ["1Gi"]}), "required when validValues is defined"),
            (json!({"default": "1Gi", "validRange": {}}), "required when validRange is defined"),
            (json!({"default": "1Gi", "validRange": {"min": "1Gi", "step": "0"}}), ""),
            (json!({"default": "11Gi", "validRange": {"min": "1Gi", "max": "2Gi"}}), "default is more than max: 2Gi"),
            (json!({"default": "2Gi", "validRange": {"min": "1Gi", "step": "3Gi"}}), "is not a multiple"),
        ] {
            let message = with(policy.clone());
            assert!(why.is_empty() || message.iter().any(|message| message.contains(why)), "{policy}: {message:?}");
        }
        let alone = json!({"name": "a", "capacity": {"memory": {"value": "1", "requestPolicy": {}}}});
        assert!(errors_of(&alone)[0].contains("allowMultipleAllocations must be true"));
    }

    #[test]
    fn attributes_have_one_value() {
        let with = |attribute: Value| errors_of(&json!({"name": "a", "attributes": {"x": attribute}}));
        assert_eq!(with(json!({"version": "1.2.3-rc.1+b"})), Vec::<String>::new());
        assert!(with(json!({"version": "1.2"}))[0].contains("semver.org"));
        assert!(with(json!({}))[0].contains("exactly one value"));
        assert!(with(json!({"int": 1, "bool": true}))[0].contains("exactly one value"));
        assert_eq!(shortened(&"x".repeat(200)).len(), KEY_BYTES_MAX);
    }
}

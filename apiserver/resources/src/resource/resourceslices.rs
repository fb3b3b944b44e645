//! ResourceSlices: devices that a driver offers, on one node or on several.

use apiserver_schema::types::Text;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{bounded, devices, label, pool_name, unique};
use crate::cells::{AGE, NAME, age, column, name};
use crate::core::pods::placement::node_selector;
use crate::core::pods::update::semantically_equal;
use crate::field::{ErrorList, Path};
use crate::read::{entries, flag, get, has, int, items, items_mut, object_mut, put, remove, spec_of, text};
use crate::{Column, Context, Row, Storage, Strategy, rules};

pub(crate) static ROW: Row = Row {
    group: "resource.k8s.io",
    kind: "ResourceSlice",
    plural: "resourceslices",
    singular: "resourceslice",
    schema: "io.k8s.api.resource.v1.ResourceSlice",
    storage: Storage::Stored("resourceslices"),
    indexed_fields: &["spec.nodeName"],
    inert: Some("nothing allocates devices here"),
    shows_empty: true,
    strategy: &ResourceSlice,
    example: r#"apiVersion: resource.k8s.io/v1
kind: ResourceSlice
metadata: {name: example}
spec:
  driver: devices.example.com
  pool: {name: example, generation: 1, resourceSliceCount: 1}
  nodeName: example
  devices: [{name: one}]
"#,
    ..Row::CLUSTER
};

struct ResourceSlice;

const COLUMNS: &[Column] = &[NAME, column("Node", "string"), column("Driver", "string"), column("Pool", "string"), AGE];
const LABELS: &[Text] = &[Text::Borrowed("spec.driver"), Text::Borrowed("spec.nodeName")];
const SPEC: Path<'static> = Path::root("spec");
const DEVICES_MAX: usize = 128;
const ADVANCED_DEVICES_MAX: usize = 64;
const COUNTER_SETS_MAX: usize = 8;
const COUNTERS_MAX: usize = 32;
/// List attributes and mappings to allocatable node resources: disabled features.
const LISTS: [&str; 4] = ["bools", "ints", "strings", "versions"];
const MAPPINGS: &str = "nodeAllocatableResourceMappings";

fn list_attributes(device: &Value) -> bool {
    entries(device, "attributes").any(|(_, attribute)| LISTS.iter().any(|key| has(attribute, key)))
}

fn drop_disabled(new: &mut Value, old: Option<&Value>) {
    let had =
        |test: &dyn Fn(&Value) -> bool| old.is_some_and(|old| items(get(old, "spec"), "devices").iter().any(test));
    let (lists_kept, mappings_kept) = (had(&list_attributes), had(&|device| has(device, MAPPINGS)));
    for device in items_mut(spec_of(new), "devices") {
        if !mappings_kept {
            remove(device, MAPPINGS);
        }
        let attributes = device.get_mut("attributes").and_then(Value::as_object_mut);
        for attribute in attributes.into_iter().flatten().map(|(_, attribute)| attribute).filter(|_| !lists_kept) {
            for key in LISTS {
                remove(attribute, key);
            }
        }
    }
}

/// Sets the missing time of taints to now.
fn stamp_taints(new: &mut Value, now: Timestamp) {
    for device in items_mut(spec_of(new), "devices") {
        for taint in items_mut(device, "taints").iter_mut().filter(|taint| !has(taint, "timeAdded")) {
            put(taint, "timeAdded", json!(now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()));
        }
    }
}

/// The nodes of the devices, specified in exactly one way.
fn nodes(errors: &mut ErrorList, spec: &Value) {
    const ONE: &str = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    let mut set = Vec::new();
    let (node, node_at) = (text(spec, "nodeName"), SPEC.child("nodeName"));
    if !node.is_empty() {
        set.push("`nodeName`");
        errors.invalid_each(&node_at, node, rules::dns_subdomain(node));
    } else if has(spec, "nodeName") {
        errors.invalid(&node_at, "", "must be either unset or set to a non-empty string");
    }
    if has(spec, "nodeSelector") {
        set.push("`nodeSelector`");
        let (selector, selector_at) = (get(spec, "nodeSelector"), SPEC.child("nodeSelector"));
        node_selector(errors, selector, &selector_at);
        if items(selector, "nodeSelectorTerms").len() != 1 {
            let given = get(selector, "nodeSelectorTerms").clone();
            errors.invalid(&selector_at.child("nodeSelectorTerms"), given, "must have exactly one node selector term");
        }
    }
    for (key, shown) in [("allNodes", "`allNodes`"), ("perDeviceNodeSelection", "`perDeviceNodeSelection`")] {
        if flag(spec, key) {
            set.push(shown);
        } else if has(spec, key) {
            errors.invalid(&SPEC.child(key), false, "must be either unset or set to true");
        }
    }
    match set.len() {
        0 => errors.required(&SPEC, ONE),
        1 => {}
        _ => {
            let why = format!("{ONE}, but multiple fields are set");
            errors.invalid(&SPEC, format!("{{{}}}", set.join(", ")), &why);
        }
    }
}

fn validate(errors: &mut ErrorList, spec: &Value, old: Option<&Value>) {
    crate::storage::driver_name(errors, text(spec, "driver"), &SPEC.child("driver"));
    let (pool, pool_at) = (get(spec, "pool"), SPEC.child("pool"));
    pool_name(errors, text(pool, "name"), &pool_at.child("name"));
    let count = int(pool, "resourceSliceCount").unwrap_or(0);
    if count <= 0 {
        errors.invalid(&pool_at.child("resourceSliceCount"), count, "must be greater than zero");
    }
    let generation = int(pool, "generation").unwrap_or(0);
    if generation < 0 {
        errors.invalid(&pool_at.child("generation"), generation, "must be greater than or equal to zero");
    }
    if let Some(old) = old {
        errors.immutable(&pool_at.child("name"), get(pool, "name"), get(get(old, "pool"), "name"));
        for key in ["driver", "nodeName"] {
            errors.immutable(&SPEC.child(key), get(spec, key), get(old, key));
        }
    }
    nodes(errors, spec);
    let offered = items(spec, "devices");
    if has(spec, "sharedCounters") && has(spec, "devices") {
        errors.invalid(&SPEC, "", "only one of `sharedCounters` or `devices` is allowed");
    }
    let advanced = |device: &Value| {
        !items(device, "taints").is_empty() || !items(device, "consumesCounters").is_empty() || list_attributes(device)
    };
    let most = if offered.iter().any(advanced) { ADVANCED_DEVICES_MAX } else { DEVICES_MAX };
    let devices_at = SPEC.child("devices");
    let known = old.map_or(&[] as &[Value], |old| items(old, "devices"));
    let offered = bounded(errors, spec, "devices", most, &devices_at);
    for (i, device) in offered.iter().enumerate() {
        let old = known.iter().find(|old| text(old, "name") == text(device, "name"));
        devices::validate(errors, device, old, flag(spec, "perDeviceNodeSelection"), &devices_at.index(i));
    }
    unique(errors, offered.iter().map(|device| text(device, "name").to_owned()), &devices_at);
    let sets_at = SPEC.child("sharedCounters");
    let sets = bounded(errors, spec, "sharedCounters", COUNTER_SETS_MAX, &sets_at);
    for (i, set) in sets.iter().enumerate() {
        counters(errors, set, "name", &sets_at.index(i));
    }
    unique(errors, sets.iter().map(|set| text(set, "name").to_owned()), &sets_at);
}

/// A named set of counters, offered or consumed.
pub(super) fn counters(errors: &mut ErrorList, set: &Value, name_key: &str, path: &Path<'_>) {
    let (named, name_at) = (text(set, name_key), path.child(name_key));
    if named.is_empty() {
        errors.required(&name_at, "");
    } else {
        label(errors, named, &name_at);
    }
    let at = path.child("counters");
    match entries(set, "counters").count() {
        0 => errors.required(&at, ""),
        count if count > COUNTERS_MAX => errors.too_many(&at, count, COUNTERS_MAX),
        _ => {
            for (key, _) in entries(set, "counters") {
                label(errors, key, &at);
            }
        }
    }
}

impl Strategy for ResourceSlice {
    fn prepare_create(&self, context: &Context<'_>, object: &mut Value) {
        drop_disabled(object, None);
        stamp_taints(object, context.now);
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        // Upstream compares before it drops fields of disabled features.
        if !semantically_equal(get(new, "spec"), get(old, "spec")) {
            let generation = int(get(old, "metadata"), "generation").unwrap_or(0) + 1;
            put(object_mut(new, "metadata"), "generation", json!(generation));
        }
        drop_disabled(new, Some(old));
        stamp_taints(new, context.now);
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn generation_changes(&self, _: &Value, _: &Value) -> bool {
        false
    }

    fn delete_answers_object(&self) -> bool {
        true
    }

    fn validate(&self, _: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        validate(errors, get(object, "spec"), old.map(|old| get(old, "spec")));
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        let driver = text(get(object, "spec"), "driver");
        let capital = driver != driver.to_lowercase();
        let shown = crate::field::quoted(driver);
        let why = || format!("spec.driver: driver names should be lowercase; {shown} contains uppercase characters");
        capital.then(why).into_iter().collect()
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = get(object, "spec");
        vec![
            name(object),
            json!(text(spec, "nodeName")),
            json!(text(spec, "driver")),
            json!(text(get(spec, "pool"), "name")),
            age(object, now),
        ]
    }

    fn selectable(&self, object: &Value) -> Vec<String> {
        let spec = get(object, "spec");
        vec![text(spec, "driver").to_owned(), text(spec, "nodeName").to_owned()]
    }

    fn selectable_labels(&self) -> &[Text] {
        LABELS
    }
}

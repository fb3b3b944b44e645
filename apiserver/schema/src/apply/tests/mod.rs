//! Properties of sets, of apply and of managers over built-in kinds.

mod fuzz;
mod upstream;

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::compare::{Form, compare};
use super::config::fields_of;
use super::created::created;
use super::managers::Managers;
use super::path::PathElement;
use super::rules::{Ignored, Versions, Writer, update};
use super::set::Set;
use super::{Failure, apply, fields, pool};
use crate::{FieldValidation, Media, Target, TypeRef, built_in, decode, default, normalise};
use machinery_api::order::total_order_fault;

/// A kind with one served version.
pub(super) struct One(pub(super) TypeRef<'static>, pub(super) Ignored);

impl Versions for One {
    fn schema(&self, api_version: &str) -> Option<TypeRef<'_>> {
        matches!(api_version, "v1" | "apps/v1").then_some(self.0)
    }
    fn convert(&self, object: &Value, from: &str, to: &str) -> Option<Value> {
        (from == to).then(|| object.clone())
    }
    fn ignored(&self, _: &str) -> Ignored {
        self.1.clone()
    }
}

pub(super) fn kind(name: &str) -> One {
    One(built_in().by_name(name).unwrap(), Ignored::Nothing)
}

const POD: &str = "io.k8s.api.core.v1.Pod";
const CONFIG_MAP: &str = "io.k8s.api.core.v1.ConfigMap";
const SERVICE: &str = "io.k8s.api.core.v1.Service";

fn writer<'a>(versions: &'a One, manager: &'a str) -> Writer<'a> {
    Writer { manager, api_version: "v1", subresource: "", now: 1, versions }
}

/// The fields of each manager in print format.
pub(super) fn owned(managers: &Managers) -> Vec<(String, Vec<String>)> {
    managers.entries().iter().map(|e| (e.who.manager.to_string(), e.fields.set().printed())).collect()
}

fn zero(versions: &One) -> Value {
    let mut object = json!({});
    normalise(versions.0, &mut object).unwrap();
    object
}

/// Applies to the live object, and normalises the result.
fn applied(
    versions: &One,
    state: &(Value, Managers),
    manager: &str,
    config: &Value,
    force: bool,
) -> Result<(Value, Managers), Failure> {
    let done = apply(&state.1, writer(versions, manager), &state.0, config, force)?;
    let mut object = done.object.unwrap_or_else(|| state.0.clone());
    normalise(versions.0, &mut object).unwrap();
    Ok((object, done.managers))
}

fn any_element() -> impl Strategy<Value = PathElement> {
    let scalar = || {
        prop_oneof![
            "[a-c<&\"\\\\]{0,2}".prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            (-2i64..3).prop_map(Value::from),
        ]
    };
    prop_oneof![
        4 => "[a-d\"\\\\ ]{0,2}".prop_map(|name| PathElement::field(&name)),
        2 => proptest::collection::btree_map("[a-c]", scalar(), 1..3)
            .prop_map(|keys| PathElement::key(keys.into_iter().map(|(k, v)| (k.into(), v)).collect())),
        1 => scalar().prop_map(|value| PathElement::Value(Arc::new(value))),
        1 => (0i64..3).prop_map(PathElement::Index),
    ]
}

/// Numbers that are equal after rounding, zeros of both signs, and values of all other kinds.
fn any_value() -> impl Strategy<Value = Value> {
    const LARGE: i64 = 1 << 53;
    let float = |value: i64| value as f64;
    let number = prop_oneof![
        (-2i64..3).prop_map(Value::from),
        (-2i64..3).prop_map(move |value| Value::from(float(value) / 2.0)),
        Just(Value::from(-0.0)),
        (LARGE - 2..LARGE + 3).prop_map(Value::from),
        (LARGE - 2..LARGE + 3).prop_map(move |value| Value::from(float(value))),
        (i64::MAX - 1..=i64::MAX).prop_map(Value::from),
        (i64::MIN..i64::MIN + 2).prop_map(Value::from),
        Just(Value::from(u64::MAX)),
        Just(Value::from(float(i64::MAX))),
        Just(Value::from(float(i64::MIN))),
    ];
    let other = prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), "[ab]{0,2}".prop_map(Value::from)];
    prop_oneof![4 => number, 1 => other].prop_recursive(2, 6, 2, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::btree_map("[ab]", inner, 0..3).prop_map(Value::from_iter),
        ]
    })
}

proptest! {
    #[test]
    fn values_have_a_total_order(values in proptest::collection::vec(any_value(), 3..6)) {
        prop_assert_eq!(total_order_fault(&values, super::path::compare_values), None);
    }

    #[test]
    fn path_elements_have_a_total_order(
        mut elements in proptest::collection::vec(any_element(), 3),
        values in proptest::collection::vec(any_value(), 2),
    ) {
        elements.extend(values.into_iter().map(|value| PathElement::Value(Arc::new(value))));
        prop_assert_eq!(total_order_fault(&elements, Ord::cmp), None);
    }
}

fn any_set() -> impl Strategy<Value = Set> {
    proptest::collection::vec(proptest::collection::vec(any_element(), 1..4), 0..8).prop_map(|paths| {
        let mut set = Set::default();
        paths.iter().for_each(|path| set.insert(path));
        set
    })
}

fn members(set: &Set) -> Vec<Vec<PathElement>> {
    let mut all = Vec::new();
    set.each(|path| all.push(path.to_vec()));
    all
}

/// Pods with few distinct fields, so that they have many in common.
fn any_pod() -> impl Strategy<Value = Value> {
    let text = || prop::sample::select(vec!["a", "b", "1"]);
    let container = (text(), proptest::option::of(text()), proptest::option::of(0i64..3), any::<bool>()).prop_map(
        |(name, image, port, resources)| {
            let mut container = json!({"name": name});
            if let Some(image) = image {
                container["image"] = json!(image);
            }
            if let Some(port) = port {
                container["ports"] = json!([{"containerPort": port}, {"containerPort": port + 1, "protocol": "UDP"}]);
            }
            if resources {
                container["resources"] = json!({"limits": {"cpu": "1", "memory": "1024Mi"}});
            }
            container
        },
    );
    let labels = proptest::option::of(proptest::collection::btree_map(text(), text(), 0..3));
    let volumes = proptest::option::of(text());
    (proptest::collection::vec(container, 0..4), labels, volumes, any::<bool>()).prop_map(
        |(mut list, labels, volume, tolerations)| {
            let mut seen = Vec::new();
            list.retain(|c| {
                !seen.contains(&c["name"]) && {
                    seen.push(c["name"].clone());
                    true
                }
            });
            let mut pod =
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": list}});
            if let Some(labels) = labels {
                pod["metadata"]["labels"] = json!(labels);
            }
            if let Some(volume) = volume {
                pod["spec"]["volumes"] = json!([{"name": volume, "emptyDir": {}}]);
            }
            if tolerations {
                pod["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
            }
            pod
        },
    )
}

fn decoded(object: &Value) -> Value {
    let target = Target::kind("", "v1", "Pod").unwrap();
    let text = object.to_string();
    let mut object = decode::body(text.as_bytes(), Media::Json, &target, FieldValidation::Strict).unwrap().object;
    default(target.schema, &mut object);
    object
}

fn stored(object: &Value) -> Value {
    let mut object = decoded(object);
    normalise(built_in().by_name(POD).unwrap(), &mut object).unwrap();
    object
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn sets_equal_their_text(set in any_set(), other in any_set()) {
        let text = fields::encode(&set);
        prop_assert_eq!(fields::decode(&text), Ok(set.clone()));
        prop_assert_eq!(fields::decode_value(&serde_json::from_str(&text).unwrap()), Ok(set.clone()));
        prop_assert!(Arc::ptr_eq(&pool::of_set(&set), &pool::of_text(&text)) || Arc::strong_count(&pool::of_set(&set)) == 1);
        prop_assert_eq!(set == other, text == fields::encode(&other));
    }

    #[test]
    fn algebra_is_that_of_members(a in any_set(), b in any_set()) {
        let (own, other) = (members(&a), members(&b));
        prop_assert_eq!(own.len(), a.len());
        let check = |set: Set, is: &dyn Fn(&Vec<PathElement>) -> bool| {
            let mut wanted: Vec<_> = own.iter().chain(&other).filter(|path| is(path)).cloned().collect();
            let mut found = members(&set);
            wanted.sort();
            wanted.dedup();
            found.sort();
            assert_eq!(found, wanted);
            assert_eq!(fields::decode(&fields::encode(&set)), Ok(set), "no node is empty");
        };
        check(a.union(&b), &|_| true);
        check(a.intersection(&b), &|path| own.contains(path) && other.contains(path));
        check(a.difference(&b), &|path| own.contains(path) && !other.contains(path));
        let below = |path: &Vec<PathElement>| (1..=path.len()).any(|end| other.contains(&path[..end].to_vec()));
        check(a.without(&b), &|path| own.contains(path) && !below(path));
    }

    #[test]
    fn a_creates_fields_are_the_difference_from_nothing(pod in any_pod()) {
        // A given empty list that is always printed is stored as null: the next property.
        prop_assume!(pod["spec"]["containers"] != json!([]));
        let found = built_in().by_name(POD).unwrap();
        let (given, full) = (decoded(&pod), stored(&pod));
        let change = compare(found, None, &given, Form::Printed).unwrap();
        let text = created(found, &given, &Set::default());
        prop_assert_eq!(&fields::encode(&change.given()), &text);
        // With and without filled-in fields, and against the printed form of an empty object.
        prop_assert_eq!(&created(found, &full, &Set::default()), &text);
        let nothing = zero(&kind(POD));
        prop_assert_eq!(compare(found, Some(&nothing), &full, Form::Whole).unwrap().given(), change.given());
        let status = Set::of(&[&["status"], &["metadata", "name"], &["spec", "containers"]]);
        prop_assert_eq!(created(found, &given, &status), fields::encode(&change.given().without(&status)));
    }

    #[test]
    fn a_given_empty_list_that_is_always_printed_differs_from_null(pod in any_pod()) {
        let found = built_in().by_name(POD).unwrap();
        let mut empty = pod;
        empty["spec"] = json!({"containers": []});
        let containers = Set::of(&[&["spec", "containers"]]);
        let change = compare(found, Some(&stored(&empty)), &decoded(&empty), Form::Printed).unwrap();
        prop_assert_eq!(change.modified, containers.clone());
        prop_assert_eq!(created(found, &decoded(&empty), &Set::of(&[&["metadata"], &["apiVersion"], &["kind"]])), fields::encode(&containers));
    }

    #[test]
    fn forms_make_no_difference(a in any_pod(), b in any_pod()) {
        prop_assume!(b["spec"]["containers"] != json!([]));
        let found = built_in().by_name(POD).unwrap();
        let (old, new) = (stored(&a), stored(&b));
        let whole = compare(found, Some(&old), &new, Form::Whole).unwrap();
        prop_assert_eq!(&compare(found, Some(&old), &decoded(&b), Form::Printed).unwrap(), &whole);
        prop_assert_eq!(whole.is_same(), old == new);
        let back = compare(found, Some(&new), &old, Form::Whole).unwrap();
        prop_assert_eq!((back.added, back.removed, back.modified), (whole.removed, whole.added, whole.modified));
    }

    #[test]
    fn applied_twice_is_applied_once(a in any_pod(), b in any_pod()) {
        let versions = kind(POD);
        let state = applied(&versions, &(stored(&a), Managers::default()), "other", &a, true).unwrap();
        let once = applied(&versions, &state, "m", &b, true).unwrap();
        let twice = applied(&versions, &once, "m", &b, false).unwrap();
        prop_assert_eq!(&twice.0, &once.0);
        prop_assert!(twice.1.is_like(&once.1));
        // And an update without changes changes nothing.
        let updated = update(&once.1, writer(&versions, "u"), Some(&once.0), &once.0, Form::Printed);
        prop_assert_eq!(updated, once.1);
    }

    #[test]
    fn a_field_dropped_by_its_only_applier_is_removed(a in any_pod(), b in any_pod()) {
        let versions = kind(POD);
        let nothing = (zero(&versions), Managers::default());
        let first = applied(&versions, &nothing, "m", &a, false).unwrap();
        let second = applied(&versions, &first, "m", &b, false).unwrap();
        // As if the first apply had not happened, except for the order of common items.
        let direct = applied(&versions, &nothing, "m", &b, false).unwrap();
        let change = compare(versions.0, Some(&direct.0), &second.0, Form::Whole).unwrap();
        let emptied = |path: &String| second.0.pointer(&path.replace('.', "/")).is_some_and(|v| v.as_object().is_some_and(Map::is_empty));
        let left: Vec<String> = change.given().printed().into_iter().filter(|path| !emptied(path)).collect();
        prop_assert_eq!(left, Vec::<String>::new());
        prop_assert_eq!(change.removed.printed(), Vec::<String>::new());
        prop_assert_eq!(owned(&second.1), owned(&direct.1));
    }

    #[test]
    fn disjoint_appliers_commute(
        a in proptest::collection::btree_map("[a-c]", "[xy]", 1..3), b in proptest::collection::btree_map("[d-f]", "[xy]", 1..3),
        base in proptest::collection::btree_map("[a-h]", "[xy]", 1..4),
    ) {
        let versions = kind(CONFIG_MAP);
        let config = |data: &dyn erased::Data| json!({"apiVersion": "v1", "kind": "ConfigMap", "data": data.value()});
        let (a, b, base) = (config(&a), config(&b), config(&base));
        let start = applied(&versions, &(zero(&versions), Managers::default()), "base", &base, false).unwrap();
        let both = |first: (&str, &Value), second: (&str, &Value)| {
            let state = applied(&versions, &start, first.0, first.1, true).unwrap();
            applied(&versions, &state, second.0, second.1, true).unwrap()
        };
        let (one, other) = (both(("a", &a), ("b", &b)), both(("b", &b), ("a", &a)));
        prop_assert_eq!(&one.0, &other.0);
        prop_assert!(one.1.is_like(&other.1));
    }

    #[test]
    fn records_keep_managers(sets in proptest::collection::vec((any_set(), "[a-c]{0,2}", any::<bool>(), proptest::option::of(0i64..99)), 0..5), cut in any::<proptest::sample::Index>()) {
        let entries = sets.iter().enumerate().map(|(i, (set, manager, apply, at))| {
            let operation = if *apply { super::Operation::Apply } else { super::Operation::Update };
            let who = super::Identity::new(&format!("{manager}{i}"), operation, "v1", if i % 2 == 0 { "" } else { "status" });
            super::Entry { who, at: *at, fields: pool::of_set(set) }
        });
        let managers = Managers::new(entries.collect());
        let mut bytes = Vec::new();
        managers.write_to(&mut bytes);
        prop_assert_eq!(bytes.len(), managers.written_len());
        prop_assert_eq!(Managers::decode(&bytes), Some(managers.clone()));
        if !bytes.is_empty() {
            let cut = cut.index(bytes.len());
            prop_assert!(Managers::decode(&bytes[..cut]).is_none_or(|part| part.entries().len() < managers.entries().len()));
        }
        let shown = managers.to_value();
        prop_assert_eq!(shown.is_none(), managers.is_empty());
        if let Some(shown) = shown {
            prop_assert_eq!(Managers::of_value(&shown), Ok(managers));
        }
    }
}

/// Maps of strings as values.
mod erased {
    use super::*;

    pub(super) trait Data {
        fn value(&self) -> Value;
    }

    impl Data for std::collections::BTreeMap<String, String> {
        fn value(&self) -> Value {
            json!(self)
        }
    }
}

#[test]
fn paths_print_as_upstream_prints_them() {
    let set = fields::decode(
        r#"{"f:spec":{"f:ports":{".":{},"k:{\"port\":80,\"protocol\":\"TCP\"}":{".":{},"f:port":{}}}},"f:x":{"v:\"a\"":{},"v:true":{},"i:3":{}},"z:new":{}}"#,
    )
    .unwrap();
    assert_eq!(
        set.printed(),
        [
            ".spec.ports",
            ".spec.ports[port=80,protocol=\"TCP\"]",
            ".spec.ports[port=80,protocol=\"TCP\"].port",
            ".x[=\"a\"]",
            ".x[=true]",
            ".x[3]",
        ]
    );
    for wrong in
        ["[]", "1", r#"{"f":{}}"#, r#"{"fx":{}}"#, r#"{"f:a":1}"#, r#"{"k:1":{}}"#, r#"{"i:x":{}}"#, r#"{"v:{":{}}"#]
    {
        assert!(fields::decode(wrong).is_err(), "{wrong}");
    }
    let deep = format!("{}{}", "{\"f:a\":".repeat(500), "{}".to_owned() + &"}".repeat(500));
    assert!(fields::decode(&deep).is_err());
}

#[test]
fn owned_fields_of_a_service() {
    let versions = kind(SERVICE);
    let config = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x", "labels": {}},
        "spec": {"selector": {"a": "1"}, "ports": [{"port": 80}, {"port": 80, "protocol": "UDP", "name": null}]}});
    let paths = [
        ".apiVersion",
        ".kind",
        ".metadata.labels",
        ".metadata.name",
        ".spec.selector",
        ".spec.ports[port=80,protocol=\"TCP\"]",
        ".spec.ports[port=80,protocol=\"UDP\"]",
        ".spec.ports[port=80,protocol=\"TCP\"].port",
        ".spec.ports[port=80,protocol=\"UDP\"].name",
        ".spec.ports[port=80,protocol=\"UDP\"].port",
        ".spec.ports[port=80,protocol=\"UDP\"].protocol",
    ];
    assert_eq!(fields_of(versions.0, &config).printed(), paths);
}

//! Properties: for any schema and any object there is an answer without a panic, and pruning and defaulting are
//! idempotent.

use bolero::{Driver, ValueGenerator, check};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{check as values, compile, drop_nulls, embedded, fill, lists, prune, rules};
use crate::Context;
use crate::apiextensions::custom;
use crate::apiextensions::definitions::ROW;
use crate::field::ErrorList;

const DEPTH: usize = 4;
const NAMES: [&str; 6] = ["a", "b", "spec", "metadata", "kind", "items"];
const TYPES: [&str; 7] = ["object", "object", "array", "string", "integer", "number", "boolean"];
const PATTERNS: [&str; 4] = ["^a+$", "(a|b){2,9}", "[", "\\d"];
const FORMATS: [&str; 4] = ["int32", "date-time", "byte", "ipv4"];
const RULES: [&str; 6] =
    ["self.a == oldSelf.a", "size(self) < 3", "self.all(x, x != 1)", "has(self.b)", "1 / 0 == 1", "self."];

fn one<D: Driver, T: Copy>(of: &[T], driver: &mut D) -> Option<T> {
    of.get((0..of.len()).generate(driver)?).copied()
}

/// A random value, whose type often fits.
fn value<D: Driver>(driver: &mut D, depth: usize) -> Option<Value> {
    let kinds = if depth == 0 { 6 } else { 9 };
    Some(match (0..kinds).generate(driver)? {
        0 => Value::Null,
        1 => (0..2).generate(driver)?.eq(&0).into(),
        2 => (-3_i64..4).generate(driver)?.into(),
        3 => json!(1.5),
        4 => one(&["", "a", "ab", "1", "2026-01-02T03:04:05Z"], driver)?.into(),
        5 => json!({}),
        6 => {
            let count = (0..4).generate(driver)?;
            (0..count).map(|_| value(driver, depth - 1)).collect::<Option<Vec<_>>>()?.into()
        }
        _ => {
            let mut map = Map::new();
            for _ in 0..(0..4).generate(driver)? {
                map.insert(one(&NAMES, driver)?.into(), value(driver, depth - 1)?);
            }
            map.into()
        }
    })
}

/// A random schema, mostly structural, with an occasional keyword that isn't.
fn schema<D: Driver>(driver: &mut D, depth: usize) -> Option<Value> {
    let kind = one(&TYPES, driver)?;
    let mut map = Map::new();
    if (0..8).generate(driver)? > 0 {
        map.insert("type".into(), kind.into());
    }
    if depth > 0 && kind == "object" {
        let mut properties = Map::new();
        for _ in 0..(0..4).generate(driver)? {
            properties.insert(one(&NAMES, driver)?.into(), schema(driver, depth - 1)?);
        }
        let additional = (0..4).generate(driver)? == 0;
        map.insert(
            if additional { "additionalProperties" } else { "properties" }.into(),
            match additional {
                true => schema(driver, depth - 1)?,
                false => properties.into(),
            },
        );
    }
    if depth > 0 && kind == "array" {
        map.insert("items".into(), schema(driver, depth - 1)?);
    }
    for _ in 0..(0..3).generate(driver)? {
        let (key, value) = keyword(driver, depth)?;
        map.insert(key.into(), value);
    }
    Some(map.into())
}

fn keyword<D: Driver>(driver: &mut D, depth: usize) -> Option<(&'static str, Value)> {
    let below = depth.saturating_sub(1);
    Some(match (0..20).generate(driver)? {
        0 => ("default", value(driver, 2)?),
        1 => ("nullable", true.into()),
        2 => ("enum", json!([value(driver, 1)?, value(driver, 1)?])),
        3 => ("pattern", one(&PATTERNS, driver)?.into()),
        4 => ("format", one(&FORMATS, driver)?.into()),
        5 => ("maxLength", (-1_i64..3).generate(driver)?.into()),
        6 => ("maxItems", (0_i64..3).generate(driver)?.into()),
        7 => ("maxProperties", (0_i64..3).generate(driver)?.into()),
        8 => ("minimum", (-2_i64..3).generate(driver)?.into()),
        9 => ("multipleOf", (0_i64..3).generate(driver)?.into()),
        10 => ("required", json!([one(&NAMES, driver)?])),
        11 => ("x-kubernetes-preserve-unknown-fields", true.into()),
        12 => ("x-kubernetes-embedded-resource", true.into()),
        13 => ("x-kubernetes-int-or-string", true.into()),
        14 => ("x-kubernetes-list-type", one(&["set", "map", "atomic", "x"], driver)?.into()),
        15 => ("x-kubernetes-list-map-keys", json!([one(&NAMES, driver)?])),
        16 => ("x-kubernetes-validations", json!([{"rule": one(&RULES, driver)?, "message": "no"}])),
        17 => (one(&["allOf", "anyOf", "oneOf"], driver)?, json!([schema(driver, below)?, schema(driver, below)?])),
        18 => ("not", schema(driver, below)?),
        _ => ("x-kubernetes-map-type", "atomic".into()),
    })
}

struct Read;

impl ValueGenerator for Read {
    type Output = (Value, Value, Value);

    fn generate<D: Driver>(&self, driver: &mut D) -> Option<Self::Output> {
        let mut root = schema(driver, DEPTH)?;
        root["type"] = "object".into();
        Some((root, value(driver, DEPTH)?, value(driver, DEPTH)?))
    }
}

fn definition(schema: &Value) -> Value {
    let version = json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}});
    let names = json!({"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"}, "status": {"acceptedNames": names, "storedVersions": ["v1"]},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": names, "versions": [version],
            "conversion": {"strategy": "None"}}})
}

#[test]
fn any_schema_and_any_object_are_answered() {
    check!().with_generator(Read).with_iterations(2000).for_each(|(schema, new, old)| {
        let context = Context::of_server(Timestamp::UNIX_EPOCH);
        let definition = definition(schema);
        let mut errors = ErrorList::new();
        ROW.strategy.validate(&context, &definition, None, &mut errors);
        let refused = !errors.is_empty();
        let Ok(compiled) = compile(schema) else {
            assert!(refused, "a schema that can't be used is refused: {schema}");
            return;
        };
        let _ = custom::resources(&definition, false, &std::sync::Arc::default());
        let mut objects = [new.clone(), old.clone()];
        for object in &mut objects {
            if !object.is_object() {
                *object = json!({"a": object.take()});
            }
            prune(object, &compiled);
            assert!(prune(object, &compiled).is_empty(), "pruning is idempotent: {schema} {object}");
            drop_nulls(object, Some(&compiled));
            let _ = embedded::coerce(object, &compiled, true);
            fill(object, &compiled);
            let once = object.clone();
            fill(object, &compiled);
            // A default that violates its own schema is rejected with the definition.
            assert!(refused || *object == once, "defaults settle: {schema} {once} {object}");
        }
        let [new, old] = &objects;
        let _ = values::check(new, &compiled, "", None);
        let _ = lists::duplicates(new, &compiled);
        let mut errors = ErrorList::new();
        embedded::validate(new, &compiled, None, &mut errors);
        if !refused {
            let _ = rules::check(new, &compiled, Some(old), || false);
        }
        let unchanged = crate::apiextensions::correlate::Correlated::new(old, old, &compiled);
        assert!(values::check(old, &compiled, "", Some(&unchanged)).is_empty(), "unchanged values are exempt");
    });
}

//! Normalises an object in place to the stored and printed form: one pass that changes what differs and copies nothing
//! else.
//!
//! Invariant (a property test): the result equals that of [`convert`](super::typed::convert) in [`Form::Full`].

use serde_json::{Map, Value};

use super::budget::Budget;
use super::raw::Raw;
use super::typed::{Converter, Form, JSON_SCHEMA, holds_schemas, prints_absent};
use super::types::{Kind, Type, TypeRef, Types};

/// Normalises an object to the form that upstream stores and prints. Call it after defaulting, and again before storing
/// if fields were removed or added since. Idempotent. The error names the first value of a wrong type; such values are
/// left unchanged.
pub fn normalise(found: TypeRef<'_>, object: &mut Value) -> Result<(), String> {
    if let Some(schema) = &found.of.unstructured {
        return super::unstructured::normalise(schema, object);
    }
    let mut budget = Budget::unlimited();
    let mut walk = Converter::new(found.types, Form::Full, false, &mut budget);
    if !walk.object_in_place(found.of, object) {
        *object = Value::Object(Map::new());
    }
    walk.failed().map_or(Ok(()), Err)
}

/// Normalises a value of a kind. A value of another type is left unchanged.
pub(crate) fn normalise_kind(types: &Types, kind: &Kind, value: &mut Value) {
    let mut budget = Budget::unlimited();
    let mut walk = Converter::new(types, Form::Full, false, &mut budget);
    if !walk.in_place(kind, value) && !walk.has_failed() {
        *value = walk.zero(kind, true);
    }
}

impl<'a> Converter<'a> {
    /// Normalises an embedded struct of an unstructured object.
    pub(super) fn typed_in_place(&mut self, found: &'a Type, value: &mut Value) {
        if !self.object_in_place(found, value) {
            *value = Value::Object(Map::new());
        }
    }

    /// Returns false for nil or zero, which Go doesn't distinguish here.
    fn object_in_place(&mut self, found: &'a Type, value: &mut Value) -> bool {
        if let Some(kind) = &found.scalar {
            return self.in_place(kind, value);
        }
        let Value::Object(map) = value else { return self.leaf_in_place(found.name.as_ref(), value) };
        map.retain(|key, value| {
            let Some(field) = found.field(key) else { return found.preserves_unknown };
            self.enter(&field.name);
            let kept = match (&field.kind, field.go) {
                (Kind::Any, Some(go)) if holds_schemas(go) => self.schemas_in_place(value),
                (kind, _) => self.in_place(kind, value),
            };
            self.leave();
            kept && self.settle_there(field, value)
        });
        for field in found.fields.iter().filter(|field| prints_absent(field, Form::Full)) {
            if !map.contains_key(&*field.name) {
                self.settle_absent(field, map);
            }
        }
        true
    }

    /// A value of another type where a struct is expected.
    fn leaf_in_place(&mut self, type_name: &str, value: &Value) -> bool {
        if value.is_null() {
            return false;
        }
        let short = type_name.rsplit('.').next().unwrap_or_default();
        self.mismatch(Raw::kind_of(value), short);
        true
    }

    /// The schema, or the schemas, in a value of a Go type that decodes itself.
    fn schemas_in_place(&mut self, value: &mut Value) -> bool {
        let Some(schema) = self.types.by_name(JSON_SCHEMA) else { return true };
        match value {
            Value::Null => return false,
            Value::Object(_) => drop(self.object_in_place(schema.of, value)),
            Value::Array(items) => {
                for item in items.iter_mut().filter(|item| item.is_object()) {
                    self.object_in_place(schema.of, item);
                }
            }
            _ => {}
        }
        true
    }

    fn in_place(&mut self, kind: &Kind, value: &mut Value) -> bool {
        match (kind, &mut *value) {
            (_, Value::Null) => false,
            (Kind::Object(id), value) => self.object_in_place(self.types.get(*id), value),
            (Kind::List(inner), Value::Array(items)) => {
                for item in items {
                    if !self.in_place(inner, item) {
                        *item = self.zero(inner, true);
                    }
                }
                true
            }
            (Kind::Map(inner), Value::Object(map)) => {
                for item in map.values_mut() {
                    if !self.in_place(inner, item) {
                        *item = self.zero(inner, true);
                    }
                }
                true
            }
            // Already normal.
            (Kind::Any, _)
            | (Kind::String | Kind::IntOrString, Value::String(_))
            | (Kind::Bool, Value::Bool(_))
            | (Kind::Double, Value::Number(_)) => true,
            (Kind::Int64, Value::Number(n)) if n.is_i64() => true,
            (Kind::Int32 | Kind::IntOrString, Value::Number(n))
                if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) =>
            {
                true
            }
            (kind, _) => {
                let before = value.clone();
                match self.value(kind, None, Raw::from(value.take())) {
                    Some(converted) => *value = converted,
                    None if self.has_failed() => *value = before,
                    None => return false,
                }
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::built_in;
    use super::super::raw::parse;
    use super::super::typed::convert;
    use super::*;

    const POD: &str = "io.k8s.api.core.v1.Pod";
    const TYPES: [&str; 4] =
        [POD, "io.k8s.api.apps.v1.Deployment", "io.k8s.api.core.v1.Event", "io.k8s.api.core.v1.Secret"];

    fn named(type_name: &str) -> TypeRef<'static> {
        built_in().by_name(type_name).unwrap()
    }

    /// Normalises through [`convert`].
    fn converted(type_name: &str, value: Value) -> Result<Value, String> {
        convert(named(type_name), Raw::from(value), Form::Full, &mut Budget::unlimited())
            .map(|converted| converted.object)
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let key = prop::sample::select(vec![
            "metadata",
            "spec",
            "status",
            "containers",
            "name",
            "labels",
            "resources",
            "limits",
            "cpu",
            "memory",
            "data",
            "stringData",
            "ports",
            "containerPort",
            "targetPort",
            "replicas",
            "template",
            "selector",
            "matchLabels",
            "env",
            "creationTimestamp",
            "lastTimestamp",
            "eventTime",
            "count",
            "volumes",
            "emptyDir",
            "sizeLimit",
            "nope",
        ]);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            prop::sample::select(vec![0i64, 1, -1, 3_000_000_000]).prop_map(Value::from),
            prop::sample::select(vec![0.5, 1e300]).prop_map(Value::from),
            prop::sample::select(vec![
                "",
                "a",
                "1",
                "500m",
                "0.5",
                "1e3",
                "1500u",
                "YWI=\n",
                "YW\r\nI=",
                "2026-01-02T03:04:05.5+01:00",
                "x"
            ])
            .prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 48, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map(key.clone(), inner, 0..6)
                    .prop_map(|map| map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>())
                    .prop_map(Value::from),
            ]
        })
    }

    #[test]
    fn invalid_values_are_kept_and_reported() {
        let mut pod = json!({"spec": {"containers": [{"name": 1, "resources": {"limits": {"cpu": "x"}}}], "nope": 1}});
        let error = normalise(named(POD), &mut pod).unwrap_err();
        assert!(error.contains("quantities must match"), "{error}");
        assert_eq!(pod["spec"]["containers"][0]["name"], 1);
        assert_eq!(pod["spec"]["containers"][0]["resources"]["limits"]["cpu"], "x");
        assert_eq!(pod["spec"].get("nope"), None);
        assert!(normalise(named(POD), &mut json!({"spec": 7})).unwrap_err().contains("number"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn in_place_comes_to_the_same_as_converting(value in any_value(), of in 0..TYPES.len()) {
            let mut object = value.clone();
            let done = normalise(named(TYPES[of]), &mut object);
            match converted(TYPES[of], value.clone()) {
                Ok(wanted) => {
                    prop_assert_eq!(done, Ok(()));
                    prop_assert_eq!(&object, &wanted);
                    if !value.is_null() {
                        normalise(named(TYPES[of]), &mut object).unwrap();
                        prop_assert_eq!(object, wanted, "it settles");
                    }
                }
                Err(_) => prop_assert!(done.is_err()),
            }
        }

        #[test]
        fn normalization_of_printed_values(text in "\\{(\"(spec|metadata|name|containers|labels|status)\": ?(\\{\\}|\\[\\]|null|\"x\"|1|\\{\"(name|containers|labels|template)\": ?(null|1|\"a\"|\\[\\{\\}\\])\\}),? ?){0,4}\\}") {
            let Ok(raw) = parse(text.as_bytes()) else { return Ok(()) };
            let Some(value) = raw.into_value(&mut Budget::unlimited()) else { return Ok(()) };
            let mut object = value.clone();
            let done = normalise(named(POD), &mut object);
            match converted(POD, value) {
                Ok(wanted) => prop_assert!(done.is_ok() && object == wanted),
                Err(_) => prop_assert!(done.is_err()),
            }
        }
    }
}

//! Builds the types of a resource from its structural OpenAPI schema (of a CustomResourceDefinition): a set over the
//! built-in one. Validation beyond types (patterns, bounds, required fields) is not part of a type.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::types::{Field, Kind, KindFact, ListType, SharedType, Text, Type, TypeId, Types};
use super::unstructured::Unstructured;
use machinery_api::key::GroupVersionKind;

/// Maximum nesting of a schema, far beyond readable ones.
const DEPTH_MAX: usize = 64;
/// Maximum declared fields of a schema: the largest ones in use have some thousands.
const FIELDS_MAX: usize = 20_000;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

/// Builds the types of a kind and of its list from its OpenAPI schema, over a set with the metadata types. The error
/// has the fault and its location.
pub fn structural(base: &Arc<Types>, of: GroupVersionKind<'_>, schema: &Value) -> Result<SharedType, String> {
    custom(base, of, &format!("{}List", of.kind), schema, None)
}

/// Upstream's type name of such a kind: with the group's domain reversed.
#[must_use]
pub fn custom_name(of: GroupVersionKind<'_>) -> String {
    format!("{}{}.{}", domain(of.group), of.version, of.kind)
}

fn domain(group: &str) -> String {
    group.rsplit('.').filter(|part| !part.is_empty()).fold(String::new(), |all, part| all + part + ".")
}

/// As [`structural`], for a kind decoded by `unstructured`, whose list kind has a name of its own. Its types omit
/// documentation (descriptions, enumerations), which readers take from the schema itself.
pub fn custom(
    base: &Arc<Types>,
    of: GroupVersionKind<'_>,
    list_kind: &str,
    schema: &Value,
    unstructured: Option<Arc<dyn Unstructured>>,
) -> Result<SharedType, String> {
    let mut maker = StructuralSchemaCompiler {
        shows: unstructured.is_none(),
        types: Types { base: Some(base.clone()), first: base.first + count(base), ..Types::default() },
        path: of.kind.to_owned(),
        fields: 0,
    };
    let name = custom_name(of);
    let root = object(schema).ok_or("the schema is not an object")?;
    if text(root, "type") != Some("object") {
        return Err(format!("{}: the root's type must be object", maker.path));
    }
    let id = maker.of_object(root, &name, true, 0)?;
    maker.types.own[(id.0 - maker.types.first) as usize].unstructured = unstructured;
    let list = format!("{}{}.{list_kind}", domain(of.group), of.version);
    let items = Field { required: true, ..Field::new("items".into(), Kind::List(Box::new(Kind::Object(id)))) };
    let mut fields = maker.of_every_kind(LIST_META)?;
    fields.push(items);
    let list = maker.add(&list, Type::object(&list, fields))?;
    for (kind, id) in [(of.kind.to_owned(), id), (list_kind.to_owned(), list)] {
        let [group, version, kind] = [of.group.to_owned(), of.version.to_owned(), kind].map(Text::Owned);
        maker.types.kinds.push(KindFact { group, version, kind, id });
    }
    SharedType::named(&Arc::new(maker.types), &name).ok_or_else(|| format!("{name} is lost"))
}

fn count(types: &Types) -> u32 {
    types.own.len() as u32
}

fn object(value: &Value) -> Option<&Map<String, Value>> {
    value.as_object()
}

fn text<'a>(schema: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    schema.get(key).and_then(Value::as_str)
}

fn says(schema: &Map<String, Value>, key: &str) -> bool {
    schema.get(key) == Some(&Value::Bool(true))
}

struct StructuralSchemaCompiler {
    types: Types,
    /// Whether the types carry the documentation, because the schema isn't available otherwise.
    shows: bool,
    /// The location in the schema, for errors.
    path: String,
    fields: usize,
}

impl StructuralSchemaCompiler {
    fn wrong<T>(&self, what: &str) -> Result<T, String> {
        Err(format!("{}: {what}", self.path))
    }

    fn shown(&self, schema: &Map<String, Value>) -> Option<Box<str>> {
        text(schema, "description").filter(|_| self.shows).map(Into::into)
    }

    /// Adds a type under its name.
    fn add(&mut self, name: &str, made: Type) -> Result<TypeId, String> {
        if self.types.id(name).is_some() {
            return self.wrong("two types have one name");
        }
        let id = TypeId(self.types.first + count(&self.types));
        self.types.by_name.insert(name.into(), id);
        self.types.own.push(made);
        Ok(id)
    }

    /// The fields of every top-level object.
    fn of_every_kind(&self, metadata: &str) -> Result<Vec<Field>, String> {
        let Some(metadata) = self.types.id(metadata) else { return self.wrong("there is no type of its metadata") };
        let plain = |name: &'static str, kind| Field { omit_empty: true, ..Field::new(name.into(), kind) };
        Ok(vec![
            plain("apiVersion", Kind::String),
            plain("kind", Kind::String),
            plain("metadata", Kind::Object(metadata)),
        ])
    }

    /// The type of an object with declared fields; `whole`: a top-level one with kind and metadata.
    fn of_object(
        &mut self,
        schema: &Map<String, Value>,
        name: &str,
        whole: bool,
        depth: usize,
    ) -> Result<TypeId, String> {
        let mut fields = if whole { self.of_every_kind(OBJECT_META)? } else { Vec::new() };
        // An embedded resource may lack metadata; the object itself always has them.
        fields.iter_mut().filter(|field| depth > 0 && field.name == "metadata").for_each(|field| field.pointer = true);
        let required: Vec<&str> =
            schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let length = self.path.len();
        for (property, schema) in schema.get("properties").and_then(object).into_iter().flatten() {
            if whole && fields.iter().take(3).any(|field| field.name == *property) {
                continue;
            }
            self.path.push('.');
            self.path.push_str(property);
            self.fields += 1;
            if self.fields > FIELDS_MAX {
                return self.wrong("the schema declares too many fields");
            }
            let below = format!("{name}_{property}");
            let field = self.field(property, schema, &below, depth + 1)?;
            fields.push(Field { required: required.contains(&property.as_str()), ..field });
            self.path.truncate(length);
        }
        let mut made = Type::object(name, fields);
        made.preserves_unknown = says(schema, "x-kubernetes-preserve-unknown-fields");
        made.atomic = text(schema, "x-kubernetes-map-type") == Some("atomic");
        made.description = self.shown(schema);
        self.add(name, made)
    }

    fn field(&mut self, property: &str, schema: &Value, below: &str, depth: usize) -> Result<Field, String> {
        let kind = self.kind(schema, below, depth)?;
        let Some(schema) = object(schema) else { return self.wrong("the schema is not an object") };
        let keys = || schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array).into_iter().flatten();
        let list = match text(schema, "x-kubernetes-list-type") {
            None => ListType::Unsaid,
            Some(_) if !matches!(kind, Kind::List(_)) => return self.wrong("only an array has a list type"),
            Some("atomic") => ListType::Atomic,
            Some("set") => ListType::Set,
            Some("map") if keys().next().is_some() && keys().all(Value::is_string) => {
                ListType::Map(keys().filter_map(Value::as_str).map(|key| Text::Owned(key.to_owned())).collect())
            }
            Some("map") => return self.wrong("a list of type map needs keys"),
            Some(_) => return self.wrong("the list type must be atomic, set or map"),
        };
        let strategies = text(schema, "x-kubernetes-patch-strategy").unwrap_or("");
        let allowed = schema.get("enum").and_then(Value::as_array).filter(|_| self.shows);
        let does = |strategy: &str| strategies.split(',').any(|one| one == strategy);
        Ok(Field {
            // Absent, null, empty and zero differ, since there is no Go struct.
            pointer: true,
            omit_empty: true,
            default: schema.get("default").cloned(),
            list,
            atomic: text(schema, "x-kubernetes-map-type") == Some("atomic"),
            merge_key: text(schema, "x-kubernetes-patch-merge-key").map(|key| Text::Owned(key.to_owned())),
            merges: does("merge"),
            replaces: does("replace"),
            retains_keys: does("retainKeys"),
            enumeration: allowed.cloned().unwrap_or_default(),
            description: self.shown(schema),
            ..Field::new(Text::Owned(property.to_owned()), kind)
        })
    }

    fn kind(&mut self, schema: &Value, name: &str, depth: usize) -> Result<Kind, String> {
        if depth > DEPTH_MAX {
            return self.wrong("the schema nests too deep");
        }
        let Some(schema) = object(schema) else { return self.wrong("the schema is not an object") };
        if says(schema, "x-kubernetes-int-or-string") {
            return Ok(Kind::IntOrString);
        }
        Ok(match (text(schema, "type"), text(schema, "format")) {
            (Some("string"), _) => Kind::String,
            (Some("boolean"), _) => Kind::Bool,
            (Some("integer"), Some("int32")) => Kind::Int32,
            (Some("integer"), _) => Kind::Int64,
            (Some("number"), _) => Kind::Double,
            (Some("array"), _) => match schema.get("items") {
                Some(items) => Kind::List(Box::new(self.kind(items, name, depth + 1)?)),
                None => return self.wrong("an array needs items"),
            },
            (Some("object"), _) => match schema.get("additionalProperties") {
                Some(Value::Bool(true)) => Kind::Map(Box::new(Kind::Any)),
                Some(values @ Value::Object(_)) => Kind::Map(Box::new(self.kind(values, name, depth + 1)?)),
                _ => {
                    let whole = says(schema, "x-kubernetes-embedded-resource");
                    Kind::Object(self.of_object(schema, name, whole, depth)?)
                }
            },
            (None, _) if says(schema, "x-kubernetes-preserve-unknown-fields") => Kind::Any,
            _ => return self.wrong("the type must be object, array, string, integer, number or boolean"),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{FieldValidation, Media, Target, built_in, decode, default, normalise};
    use super::*;
    use crate::patch::{self, PatchKind};

    const WIDGET: GroupVersionKind<'_> = GroupVersionKind { group: "x.example.com", version: "v1", kind: "Widget" };

    fn schema() -> Value {
        json!({"type": "object", "description": "A widget.", "required": ["spec"], "properties": {"spec": {"type": "object",
        "properties": {
            "size": {"type": "integer", "format": "int32", "default": 3},
            "share": {"x-kubernetes-int-or-string": true},
            "color": {"type": "string", "enum": ["red", "blue"], "description": "What it looks like."},
            "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "x-kubernetes-patch-merge-key": "name", "x-kubernetes-patch-strategy": "merge",
                "items": {"type": "object", "required": ["name"], "properties": {
                    "name": {"type": "string"}, "weight": {"type": "number", "default": 0.5}}}},
            "notes": {"type": "object", "additionalProperties": {"type": "string"}},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                "properties": {"known": {"type": "boolean"}}},
            "any": {"x-kubernetes-preserve-unknown-fields": true},
            "inner": {"type": "object", "default": {}, "properties": {"deep": {"type": "string", "default": "x"}}},
            "template": {"type": "object", "x-kubernetes-embedded-resource": true},
        }}}})
    }

    fn widgets() -> SharedType {
        structural(built_in(), WIDGET, &schema()).unwrap()
    }

    fn target(types: &SharedType) -> Target<'_> {
        Target { group: WIDGET.group, version: WIDGET.version, kind: WIDGET.kind, schema: types.get() }
    }

    fn read(types: &SharedType, object: &Value, validation: FieldValidation) -> Result<(Value, Vec<String>), String> {
        let decoded = decode::body(object.to_string().as_bytes(), Media::Json, &target(types), validation);
        decoded.map(|decoded| (decoded.object, decoded.warnings)).map_err(|error| error.status().message)
    }

    #[test]
    fn objects_are_decoded_defaulted_and_normalised_by_a_schema() {
        let types = widgets();
        let given = json!({"apiVersion": "x.example.com/v1", "kind": "Widget", "metadata": {"name": "w", "nope": 1},
            "spec": {"share": "10%", "parts": [{"name": "a"}, {"name": "b", "weight": 2}], "notes": {"n": "1"}, "color": null,
                "free": {"known": true, "other": {"deep": [1, null]}}, "any": [{}], "inner": {},
                "template": {"apiVersion": "v1", "metadata": {"name": "t"}, "nope": 1}, "nope": 2}});
        let (mut object, warnings) = read(&types, &given, FieldValidation::Warn).unwrap();
        let nope = |path: &str| format!("unknown field \"{path}\"");
        assert_eq!(warnings, ["metadata.nope", "spec.nope", "spec.template.nope"].map(nope));
        default(types.get(), &mut object);
        let spec = json!({"size": 3, "share": "10%", "parts": [{"name": "a", "weight": 0.5}, {"name": "b", "weight": 2}],
            "notes": {"n": "1"}, "free": {"known": true, "other": {"deep": [1, null]}}, "any": [{}], "inner": {"deep": "x"},
            "template": {"apiVersion": "v1", "metadata": {"name": "t"}}});
        assert_eq!(object["spec"], spec);
        let before = object.clone();
        normalise(types.get(), &mut object).unwrap();
        default(types.get(), &mut object);
        assert_eq!(object, before, "it settles");
        let strict = read(&types, &given, FieldValidation::Strict).unwrap_err();
        assert!(
            strict.ends_with("unknown field \"spec.template.nope\"") && strict.contains("\"spec.nope\""),
            "{strict}"
        );
        let wrong = read(&types, &json!({"spec": {"parts": [{"name": 1}]}}), FieldValidation::Warn).unwrap_err();
        assert!(
            wrong.contains("number into Go struct field") && wrong.contains("spec.parts.name of type string"),
            "{wrong}"
        );
        let yaml = "spec:\n  share: 5\n  notes: {a: b}\n";
        let decoded = decode::body(yaml.as_bytes(), Media::Yaml, &target(&types), FieldValidation::Strict).unwrap();
        assert_eq!(decoded.object["spec"], json!({"share": 5, "notes": {"a": "b"}}));
        let refused = decode::body(b"k8s\0", Media::Protobuf, &target(&types), FieldValidation::Strict).unwrap_err();
        assert_eq!(refused.status().code, 415, "its fields have no numbers");
    }

    #[test]
    fn patches_merge_by_a_schemas_keys() {
        let types = widgets();
        let current = json!({"apiVersion": "x.example.com/v1", "kind": "Widget", "metadata": {"name": "w"},
            "spec": {"parts": [{"name": "a", "weight": 1}], "free": {"x": {"y": 1}, "list": [1]}}});
        let patched = |kind, patch: Value| {
            patch::apply(kind, patch.to_string().as_bytes(), &current, &target(&types), FieldValidation::Strict)
                .map(|decoded| decoded.object["spec"].clone())
                .map_err(|error| error.status().message)
        };
        let patch = json!({"spec": {"parts": [{"name": "b"}, {"name": "a", "weight": 2}],
            "free": {"x": {"z": 2}, "list": [2]}}});
        let merged = patched(PatchKind::Strategic, patch.clone()).unwrap();
        assert_eq!(merged["parts"], json!([{"name": "b"}, {"name": "a", "weight": 2}]));
        assert_eq!(merged["free"], json!({"x": {"y": 1, "z": 2}, "list": [2]}));
        assert_eq!(patched(PatchKind::Merge, patch.clone()).unwrap()["parts"], patch["spec"]["parts"]);
        let strict = patched(PatchKind::Merge, json!({"spec": {"nope": 1}})).unwrap_err();
        assert!(strict.ends_with("strict decoding error: unknown field \"spec.nope\""), "{strict}");
        assert!(patched(PatchKind::Strategic, json!({"nope": {"a": 1}})).is_err());
    }

    #[test]
    fn a_type_set_lists_its_kinds_and_is_dropped_with_its_owner() {
        let types = widgets();
        let found = types.get();
        assert_eq!(&*found.of.name, "com.example.x.v1.Widget");
        assert_eq!(found.of.description.as_deref(), Some("A widget."));
        assert!(found.types.of_kind("x.example.com", "v1", "Widget") == Some(found));
        assert!(found.types.of_kind("x.example.com", "v1", "WidgetList").is_some());
        assert!(found.types.of_kind("", "v1", "Pod").is_some() && built_in().by_name(types.name()).is_none());
        // A set over a set: its ids continue those below.
        let set = Arc::new(Types { base: Some(built_in().clone()), first: count(built_in()), ..Types::default() });
        let above = structural(&set, WIDGET, &schema()).unwrap();
        assert_eq!(read(&above, &json!({"metadata": {"name": "w"}}), FieldValidation::Strict).unwrap().1, [""; 0]);
    }

    #[test]
    fn schemas_that_are_none_are_refused_with_their_place() {
        let refused = |spec: Value| {
            structural(built_in(), WIDGET, &json!({"type": "object", "properties": {"spec": spec}})).unwrap_err()
        };
        assert_eq!(refused(json!({"type": "array"})), "Widget.spec: an array needs items");
        assert_eq!(refused(json!(1)), "Widget.spec: the schema is not an object");
        assert!(refused(json!({})).starts_with("Widget.spec: the type must be"));
        let list = |more: &str| json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": more});
        assert_eq!(refused(list("map")), "Widget.spec: a list of type map needs keys");
        assert_eq!(refused(list("bag")), "Widget.spec: the list type must be atomic, set or map");
        let mut deep = json!({"type": "string"});
        for _ in 0..100 {
            deep = json!({"type": "array", "items": deep});
        }
        assert_eq!(refused(deep), "Widget.spec: the schema nests too deep");
        let many: Map<String, Value> = (0..=FIELDS_MAX).map(|i| (format!("f{i}"), json!({"type": "string"}))).collect();
        assert!(refused(json!({"type": "object", "properties": many})).ends_with("declares too many fields"));
        assert!(structural(built_in(), WIDGET, &json!({"type": "string"})).is_err());
        assert!(structural(built_in(), WIDGET, &json!([])).is_err());
    }
}

//! The strategy of a custom resource, derived from its definition.

use std::sync::Arc;

use apiserver_schema::types::Text;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::compiled::SchemaSource;
use super::correlate::Correlated;
use super::custom::ScalePaths;
use super::schema::path::{JsonPath, printed};
use super::schema::{Schema, check, embedded, lists, rules};
use crate::cells::{self, NAME, name};
use crate::field::{ErrorList, FieldError, Path, quoted};
use crate::read::{get, int, items, text, texts};
use crate::{Column, Context, MetadataChecks, ResetFields, Strategy};

/// A column of the definition.
struct CustomColumn {
    path: Option<JsonPath>,
    kind: Box<str>,
}

/// The strategy of one version.
pub(super) struct CustomStrategy {
    schema: Arc<SchemaSource>,
    has_status: bool,
    scale: Option<ScalePaths>,
    scale_names: [Box<str>; 3],
    columns: Vec<Column>,
    cells: Vec<CustomColumn>,
    fields: Vec<Text>,
    field_paths: Vec<JsonPath>,
}

impl CustomStrategy {
    pub(super) fn new(
        schema: Arc<SchemaSource>,
        version: &Value,
        has_status: bool,
        scale: Option<ScalePaths>,
        scale_spec: &Value,
        spec: &Value,
    ) -> Self {
        let mut columns = vec![Column { description: Text::Borrowed(NAME_DESCRIPTION), ..NAME }];
        let mut cells = Vec::new();
        let age = json!([{"name": "Age", "type": "date", "description": AGE_DESCRIPTION, "jsonPath": ".metadata.creationTimestamp"}]);
        let given = items(version, "additionalPrinterColumns");
        let given = if given.is_empty() { age.as_array().map_or(given, Vec::as_slice) } else { given };
        for column in given {
            let path = text(column, "jsonPath");
            let about = match text(column, "description") {
                "" => format!("Custom resource definition column (in JSONPath format): {path}"),
                about => about.to_owned(),
            };
            columns.push(Column {
                name: Text::Owned(text(column, "name").to_owned()),
                kind: Text::Owned(text(column, "type").to_owned()),
                format: Text::Owned(text(column, "format").to_owned()),
                description: Text::Owned(about),
                priority: int(column, "priority").and_then(|n| i32::try_from(n).ok()).unwrap_or(0),
            });
            cells.push(CustomColumn { path: JsonPath::parse(path), kind: text(column, "type").into() });
        }
        // Upstream drops all columns after one with an unsupported path.
        if let Some(at) = cells.iter().position(|cell| cell.path.is_none()) {
            cells.truncate(at);
            columns.truncate(at + 1);
        }
        // The fields of all versions, since a selector of one version applies to objects stored in another.
        let mut fields: Vec<Text> = Vec::new();
        for version in items(spec, "versions") {
            for field in items(version, "selectableFields") {
                let name = text(field, "jsonPath").trim_start_matches('.').to_owned();
                if !fields.iter().any(|known| *known == name) && JsonPath::parse(&format!(".{name}")).is_some() {
                    fields.push(Text::Owned(name));
                }
            }
        }
        let field_paths = fields.iter().filter_map(|name| JsonPath::parse(&format!(".{name}"))).collect();
        let named = |key: &str| text(scale_spec, key).into();
        Self {
            schema,
            has_status,
            scale,
            scale_names: [named("specReplicasPath"), named("statusReplicasPath"), named("labelSelectorPath")],
            columns,
            cells,
            fields,
            field_paths,
        }
    }

    fn replicas(&self, errors: &mut ErrorList, object: &Value, pointer: &str, named: &str) {
        let at = Path::root(named);
        let Some(found) = object.pointer(pointer) else { return };
        match found.as_i64() {
            None => {
                let kind = go_kind(found);
                let why = format!("{named} accessor error: {found} is of the type {kind}, expected int64");
                errors.invalid(&at, 0, &why);
            }
            Some(count) if count < 0 => errors.invalid(&at, count, "should be a non-negative integer"),
            Some(count) if count > i64::from(i32::MAX) => {
                errors.invalid(&at, count, &format!("should be less than or equal to {}", i32::MAX));
            }
            Some(_) => {}
        }
    }

    fn scale_status(&self, errors: &mut ErrorList, object: &Value) {
        let Some(scale) = &self.scale else { return };
        self.replicas(errors, object, &scale.status, &self.scale_names[1]);
        if !scale.selector.is_empty()
            && let Some(found) = object.pointer(&scale.selector).filter(|found| !found.is_string())
        {
            let named = &self.scale_names[2];
            let why = format!("{named} accessor error: {found} is of the type {}, expected string", go_kind(found));
            errors.invalid(&Path::root(named), "", &why);
        }
    }

    fn values(errors: &mut ErrorList, schema: &Schema, (new, old): (&Value, Option<&Value>), status: bool) {
        let whole = old.map(|old| Correlated::new(new, old, schema));
        if !status {
            errors.append(check::check(new, schema, "", whole.as_ref()));
        } else if let (Some(value), Some(of_status)) = (new.get("status"), schema.properties.get("status")) {
            let below = whole.as_ref().and_then(|whole| whole.key("status", value));
            errors.append(check::check(value, of_status, "status", below.as_ref()));
        }
    }

    /// The errors of a schema that can't be compiled, of the schema's values, and of its rules.
    fn checked(&self, context: &Context<'_>, new: &Value, old: Option<&Value>) -> ErrorList {
        let status = context.subresource == "status";
        let mut errors = ErrorList::new();
        let made = self.schema.compiled();
        if let Some(wrong) = &made.wrong {
            errors.add(|| FieldError::internal(&Path::root("<nil>"), &format!("the schema can't be used: {wrong}")));
        }
        if let Some(schema) = made.schema() {
            Self::values(&mut errors, schema, (new, old), status);
        }
        if let (false, Some(scale)) = (status, &self.scale) {
            self.replicas(&mut errors, new, &scale.spec, &self.scale_names[0]);
        }
        self.scale_status(&mut errors, new);
        if let Some(schema) = made.schema() {
            if !status {
                embedded::validate(new, schema, None, &mut errors);
            }
            let twice = lists::duplicates(new, schema);
            if !twice.is_empty() && old.is_none_or(|old| lists::duplicates(old, schema).is_empty()) {
                errors.append(twice);
            }
            if schema.has.rules {
                if errors.shown().iter().any(|error| BLOCKING.contains(&error.reason)) {
                    let why = "some validation rules were not checked because the object was invalid; correct the existing \
                               errors to complete validation";
                    errors.invalid(&Path::root("<nil>"), Value::Null, why);
                } else {
                    errors.append(rules::check(new, schema, old, context.interrupt));
                }
            }
        }
        errors
    }
}

/// Errors after which rules are not evaluated, since values have unexpected types.
const BLOCKING: &[&str] = &[
    "FieldValueNotSupported",
    "FieldValueRequired",
    "FieldValueTooLong",
    "FieldValueTooMany",
    "FieldValueTypeInvalid",
];

const NAME_DESCRIPTION: &str = "The object's name, which no other of its kind has in its namespace.";
const AGE_DESCRIPTION: &str = "When the object was created.";

fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_i64() => "int64",
        Value::Number(_) => "float64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

fn without_metadata(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object.as_object().into_iter().flatten().filter(|(key, _)| *key != "metadata")
}

impl Strategy for CustomStrategy {
    fn reset_fields(&self, subresource: &str) -> ResetFields {
        match subresource {
            "status" => ResetFields::METADATA_TOO,
            _ if self.has_status => ResetFields::Below(&[&["status"]]),
            _ => ResetFields::Below(&[]),
        }
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        if self.has_status
            && let Some(map) = object.as_object_mut()
        {
            map.remove("status");
        }
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        let status = if context.subresource == "status" { new.get("status") } else { old.get("status") };
        let status = status.cloned();
        if context.subresource == "status" {
            let version = get(get(new, "metadata"), "resourceVersion").clone();
            *new = old.clone();
            if !version.is_null() {
                new["metadata"]["resourceVersion"] = version;
            }
        } else if !self.has_status {
            return;
        }
        let Some(map) = new.as_object_mut() else { return };
        match status {
            Some(status) => drop(map.insert("status".into(), status)),
            None => drop(map.remove("status")),
        }
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn generation_changes(&self, new: &Value, old: &Value) -> bool {
        !without_metadata(new).eq(without_metadata(old))
    }

    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::Change
    }

    fn checks_finalizers(&self) -> bool {
        false
    }

    fn validate(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        // A list of its own, since errors in the metadata don't prevent the evaluation of rules.
        errors.append(self.checked(context, object, old));
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let finalizers = |object: Option<&Value>| -> Vec<String> {
            let metadata = object.map_or(&Value::Null, |object| get(object, "metadata"));
            let mut all: Vec<String> = texts(metadata, "finalizers").map(Into::into).collect();
            all.sort();
            all.dedup();
            all
        };
        let before = finalizers(old);
        finalizers(Some(object))
            .iter()
            .filter(|new| !before.contains(new))
            .flat_map(|new| finalizer_warnings(new))
            .collect()
    }

    fn unconditional_update(&self) -> bool {
        false
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let more = self.cells.iter().map(|cell| {
            let Some(path) = &cell.path else { return Value::Null };
            path.find(object).first().map_or(Value::Null, |found| format_cell(found, &cell.kind, now))
        });
        std::iter::once(name(object)).chain(more).collect()
    }

    fn selectable(&self, object: &Value) -> Vec<String> {
        let value = |path: &JsonPath| match path.find(object).as_slice() {
            [Value::Null] | [] => String::new(),
            [found, ..] => printed(found),
        };
        self.field_paths.iter().map(value).collect()
    }

    fn selectable_labels(&self) -> &[Text] {
        &self.fields
    }

    fn unknown_label(&self, label: &str) -> String {
        format!("field label not supported: {label}")
    }
}

/// Warns about a finalizer without a domain.
fn finalizer_warnings(finalizer: &str) -> Vec<String> {
    let at = format!("metadata.finalizers: {}: ", quoted(finalizer));
    let mut warnings: Vec<String> =
        crate::rules::label_key(finalizer).into_iter().map(|why| format!("{at}{why}")).collect();
    let standard = matches!(finalizer, "orphan" | "foregroundDeletion" | "kubernetes");
    if !finalizer.contains('/') && !standard {
        let path = if finalizer.contains('.') { " including a path (/)" } else { "" };
        warnings.push(format!(
            "{at}prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with other finalizer writers"
        ));
    }
    warnings
}

/// A value as a cell of a column's type.
fn format_cell(value: &Value, kind: &str, now: Timestamp) -> Value {
    match (kind, value) {
        ("string", value) => printed(value).into(),
        ("integer", Value::Number(n)) => n.as_i64().or_else(|| n.as_f64().map(|n| n as i64)).into(),
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.clone(),
        ("date", Value::String(text)) => match text.parse::<Timestamp>() {
            Ok(then) => cells::since(Some(then), now).into(),
            Err(_) => "<invalid>".into(),
        },
        _ => Value::Null,
    }
}

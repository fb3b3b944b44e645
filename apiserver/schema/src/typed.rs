//! Converts JSON as written to the object as upstream would store and print it.
//!
//! Upstream decodes into Go structs, stores protobuf and prints structs again. The effects on an object are visible on
//! the wire (nulls, empty lists, zero numbers, `resources: {}`, canonical quantities), as are its ordered findings.
//! Here the table marks pointers and omitempty fields, and one walk has the same effects.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use machinery_api::quantity::Quantity;
use machinery_api::selector::go_quoted;
use machinery_api::time::{self, Precision};
use serde_json::{Map, Value};

use super::budget::{Budget, ENTRY_BYTES, ITEM_BYTES, OBJECT_BYTES};
use super::raw::Raw;
use super::types::{Field, Kind, Type, TypeRef, Types};

/// Maximum strict findings, as upstream.
pub(crate) const FINDINGS_MAX: usize = 100;

/// Go types that decode themselves: of JSON schemas in definitions of custom resources, and a struct without fields.
const OPEN_TYPES: [&str; 4] = [SCHEMA_OR_BOOL, SCHEMA_OR_SCHEMAS, SCHEMA_OR_STRINGS, EMPTY_STRUCT];
const SCHEMA_OR_BOOL: &str = "v1.JSONSchemaPropsOrBool";
const SCHEMA_OR_SCHEMAS: &str = "v1.JSONSchemaPropsOrArray";
const SCHEMA_OR_STRINGS: &str = "v1.JSONSchemaPropsOrStringArray";
const SCHEMA_DEPENDENCIES: &str = "v1.JSONSchemaDependencies";
const EMPTY_STRUCT: &str = "v1.CustomResourceSubresourceStatus";
pub(super) const JSON_SCHEMA: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// Whether a Go type that decodes itself holds JSON schemas.
pub(super) fn holds_schemas(go: &str) -> bool {
    matches!(go, SCHEMA_OR_BOOL | SCHEMA_OR_SCHEMAS)
}

/// Maximum initial capacity for a list's items; a longer one grows as it is counted.
const LIST_FIRST: usize = 1024;

/// Whether fields that a struct always prints are filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Unset fields stay absent, except non-pointer objects (`spec: {}`): the form for defaulting.
    Sparse,
    /// As stored and printed: `status: {}`, `name: ""`, `rules: null`.
    Full,
}

/// An object with its strict findings (`unknown field "spec.x"`).
pub(crate) struct Converted {
    pub(crate) object: Value,
    pub(crate) findings: Vec<String>,
}

/// Converts a value of a known type; the error is Go's message.
pub(crate) fn convert(found: TypeRef<'_>, raw: Raw, form: Form, budget: &mut Budget) -> Result<Converted, String> {
    run(found, raw, form, false, budget)
}

/// As upstream converts the result of a strategic patch: from maps instead of JSON, with other messages.
pub(crate) fn convert_map(found: TypeRef<'_>, raw: Raw, form: Form, budget: &mut Budget) -> Result<Converted, String> {
    run(found, raw, form, true, budget)
}

fn run(found: TypeRef<'_>, raw: Raw, form: Form, of_map: bool, budget: &mut Budget) -> Result<Converted, String> {
    let mut walk = Converter::new(found.types, form, of_map, budget);
    let object = walk.object(found.of, raw).unwrap_or_else(|| Value::Object(Map::new()));
    let findings = std::mem::take(&mut walk.findings);
    walk.failed().map_or(Ok(Converted { object, findings }), Err)
}

/// Strict findings in untyped JSON (patches): duplicate keys only.
pub(crate) fn doubled_keys(raw: &Raw) -> Vec<String> {
    fn walk(raw: &Raw, path: &mut String, findings: &mut Vec<String>) {
        let length = path.len();
        match raw {
            Raw::Map(entries) => {
                let mut seen = BTreeSet::new();
                for (key, value) in entries {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(key);
                    if !seen.insert(key.as_str()) {
                        let finding = format!("duplicate field {}", go_quoted(path));
                        if findings.len() < FINDINGS_MAX && !findings.contains(&finding) {
                            findings.push(finding);
                        }
                    }
                    walk(value, path, findings);
                    path.truncate(length);
                }
            }
            Raw::List(items) => {
                for (at, item) in items.iter().enumerate() {
                    path.push_str(&format!("[{at}]"));
                    walk(item, path, findings);
                    path.truncate(length);
                }
            }
            _ => {}
        }
    }
    let mut findings = Vec::new();
    walk(raw, &mut String::new(), &mut findings);
    findings
}

/// Whether Go's encoder prints an absent field: few of a type are.
pub(super) fn prints_absent(field: &Field, form: Form) -> bool {
    if form != Form::Full {
        return !field.pointer && !field.omit_zero && matches!(field.kind, Kind::Object(_));
    }
    let printed_always = || {
        matches!(
            field.kind,
            Kind::Object(_) | Kind::Quantity | Kind::Time | Kind::MicroTime | Kind::IntOrString | Kind::Any
        )
    };
    match field.pointer {
        true => !field.omit_empty,
        false => !field.omit_zero && (!field.omit_empty || printed_always()),
    }
}

pub(super) struct Converter<'a> {
    pub(super) types: &'a Types,
    form: Form,
    path: String,
    findings: Vec<String>,
    seen: BTreeSet<String>,
    error: Option<String>,
    /// The error at which Go stops; it continues after other errors.
    fatal: Option<String>,
    /// The entered fields, and the type of the innermost: the context in Go's errors.
    go: Vec<&'a str>,
    go_struct: &'a str,
    /// Whether errors are those of Go's reflection.
    of_map: bool,
    budget: &'a mut Budget,
}

impl<'a> Converter<'a> {
    pub(super) fn new(types: &'a Types, form: Form, of_map: bool, budget: &'a mut Budget) -> Self {
        Self {
            types,
            form,
            path: String::new(),
            findings: Vec::new(),
            seen: BTreeSet::new(),
            error: None,
            fatal: None,
            go: Vec::new(),
            go_struct: "",
            of_map,
            budget,
        }
    }

    /// The error at which Go stops, or the first type mismatch.
    pub(super) fn failed(self) -> Option<String> {
        self.fatal.or(self.error)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.fatal.is_some() || self.error.is_some()
    }

    pub(super) fn enter(&mut self, field: &'a str) {
        self.go.push(field);
    }

    pub(super) fn leave(&mut self) {
        self.go.pop();
    }

    fn find(&mut self, what: &str, key: &str) {
        if self.findings.len() >= FINDINGS_MAX {
            return;
        }
        let place = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        let finding = format!("{what} field {}", go_quoted(&place));
        if self.seen.insert(finding.clone()) {
            self.findings.push(finding);
        }
    }

    fn fail(&mut self, message: impl FnOnce() -> String) {
        if self.error.is_none() {
            self.error = Some(message());
        }
    }

    fn give_up(&mut self, message: String) {
        self.fatal.get_or_insert(message);
    }

    pub(super) fn mismatch(&mut self, value: &str, go_type: &str) {
        if self.error.is_none() {
            self.error = Some(self.mismatched(value, go_type));
        }
    }

    /// A type mismatch, with reflection's message in that mode.
    fn misfit(&mut self, raw: &Raw, wanted: &str, go_type: &str) {
        if !self.of_map {
            return self.mismatch(raw.go_name(), go_type);
        }
        let have = match raw {
            Raw::String(_) => "string",
            Raw::Bool(_) => "bool",
            Raw::Int(_) => "int64",
            Raw::Number(_) => "float64",
            Raw::List(_) => "slice",
            _ => "map",
        };
        self.fail(|| match (wanted, have) {
            ("string", "int64") | ("int32" | "int64", "float64") => format!("cannot convert {have} to {go_type}"),
            ("slice" | "map", _) => format!("cannot restore {wanted} from {have}"),
            ("struct", _) => format!("cannot restore struct from: {have}"),
            _ => format!("unrecognized type: {wanted}"),
        });
    }

    fn mismatched(&self, value: &str, go_type: &str) -> String {
        let (place, inner) = (self.go.join("."), self.go_struct);
        if place.is_empty() || self.of_map {
            format!("json: cannot unmarshal {value} into Go value of type {go_type}")
        } else {
            format!("json: cannot unmarshal {value} into Go struct field {inner}.{place} of type {go_type}")
        }
    }

    /// `None` for nil or zero, which Go doesn't distinguish here.
    fn object(&mut self, found: &'a Type, raw: Raw) -> Option<Value> {
        if let Some(kind) = &found.scalar {
            return self.value(kind, None, raw);
        }
        let entries = match raw {
            Raw::Null => return None,
            Raw::Map(entries) => entries,
            Raw::TooDeep => {
                self.fail(|| "exceeded max depth".into());
                return None;
            }
            other => {
                let name = found.name.rsplit('.').take(2).collect::<Vec<_>>();
                self.misfit(&other, "struct", &format!("{}.{}", name.get(1).unwrap_or(&""), name[0]));
                return None;
            }
        };
        let mut out = Map::new();
        let mut seen = vec![false; found.fields.len()];
        let (path_length, outer) = (self.path.len(), self.go_struct);
        for (key, raw) in entries {
            if !self.budget.take(ENTRY_BYTES) {
                break;
            }
            let Some(at) = found.position(&key) else {
                self.undeclared(found, key, raw, &mut out);
                continue;
            };
            if std::mem::replace(&mut seen[at], true) {
                self.find("duplicate", &key);
            }
            let field = &found.fields[at];
            if path_length > 0 {
                self.path.push('.');
            }
            self.path.push_str(&field.name);
            let entered = self.go.len();
            self.go.extend(field.embedded);
            self.go.push(&field.name);
            self.go_struct = found.short();
            let value = self.value(&field.kind, field.go, raw);
            self.go.truncate(entered);
            self.path.truncate(path_length);
            match (value, out.get_mut(&*field.name)) {
                (Some(value), Some(before)) => join(before, value),
                (Some(value), None) => drop(out.insert(key, value)),
                (None, _) if field.pointer || matches!(field.kind, Kind::List(_) | Kind::Map(_) | Kind::Bytes) => {
                    out.remove(&*field.name);
                }
                (None, _) => {}
            }
        }
        self.go_struct = outer;
        for (field, seen) in found.fields.iter().zip(seen) {
            if seen {
                self.settle(field, &mut out);
            } else {
                self.settle_absent(field, &mut out);
            }
        }
        Some(Value::Object(out))
    }

    /// An undeclared field: preserved, or reported as a finding.
    fn undeclared(&mut self, found: &Type, key: String, raw: Raw, out: &mut Map<String, Value>) {
        if !found.preserves_unknown {
            return self.find("unknown", &key);
        }
        if out.contains_key(&key) {
            self.find("duplicate", &key);
        }
        match raw.into_value(self.budget) {
            Some(value) => drop(out.insert(key, value)),
            None => self.fail(|| "exceeded max depth".into()),
        }
    }

    /// Prints or omits a field as Go's encoder.
    fn settle(&mut self, field: &Field, out: &mut Map<String, Value>) {
        match out.get_mut(&*field.name) {
            Some(value) => {
                if !self.settle_there(field, value) {
                    out.remove(&*field.name);
                }
            }
            None => self.settle_absent(field, out),
        }
    }

    /// For a present field: whether it stays.
    pub(super) fn settle_there(&self, field: &Field, value: &mut Value) -> bool {
        if field.pointer {
            return true;
        }
        let fill = self.form == Form::Full;
        let empty = match (&field.kind, &*value) {
            (Kind::String | Kind::Bytes, Value::String(text)) => text.is_empty(),
            (Kind::Bool, Value::Bool(b)) => !*b,
            (Kind::Int32 | Kind::Int64 | Kind::Double, Value::Number(n)) => n.as_f64() == Some(0.0),
            (Kind::List(_), Value::Array(items)) => items.is_empty(),
            (Kind::Map(_), Value::Object(map)) => map.is_empty(),
            _ => false,
        };
        // Before storing, an empty list or map differs from an absent one: for defaults and findings.
        let kept = !fill && matches!(field.kind, Kind::List(_) | Kind::Map(_));
        if empty && field.omit_empty && !kept {
            return false;
        }
        if empty && fill && matches!(field.kind, Kind::List(_) | Kind::Map(_)) {
            *value = Value::Null; // stored as protobuf, which knows no empty list
        }
        true
    }

    /// For an absent field.
    pub(super) fn settle_absent(&mut self, field: &Field, out: &mut Map<String, Value>) {
        if prints_absent(field, self.form) {
            let zero = if field.pointer { Value::Null } else { self.zero(&field.kind, false) };
            out.insert(field.name.as_ref().into(), zero);
        }
    }

    /// Go's printed zero of a kind; `element`: of a list or a map, where protobuf leaves no nil.
    pub(super) fn zero(&mut self, kind: &Kind, element: bool) -> Value {
        match kind {
            Kind::String => "".into(),
            Kind::Bytes if element => "".into(),
            Kind::List(_) if element => Value::Array(Vec::new()),
            Kind::Bool => false.into(),
            Kind::Int32 | Kind::Int64 | Kind::Double | Kind::IntOrString => 0.into(),
            Kind::Quantity | Kind::Amount => "0".into(),
            Kind::Bytes | Kind::Time | Kind::MicroTime | Kind::Any | Kind::List(_) | Kind::Map(_) => Value::Null,
            Kind::Object(id) => self.object(self.types.get(*id), Raw::Map(Vec::new())).unwrap_or(Value::Null),
        }
    }

    pub(super) fn value(&mut self, kind: &Kind, go: Option<&str>, raw: Raw) -> Option<Value> {
        let types = self.types;
        let go_type = || go.map_or_else(|| types.go_name(kind), str::to_owned);
        match (kind, raw) {
            (Kind::Any, Raw::Null) => None,
            (Kind::Any, raw) if go.is_some_and(|go| OPEN_TYPES.contains(&go)) => self.open_type(&go_type(), raw),
            (Kind::Any, raw) => {
                let value = raw.into_value(self.budget);
                if value.is_none() {
                    self.fail(|| "exceeded max depth".into());
                }
                value
            }
            (_, Raw::Null) => None,
            (Kind::Object(id), raw) => match self.budget.take(OBJECT_BYTES) {
                true => self.object(self.types.get(*id), raw),
                false => None,
            },
            (Kind::List(inner), Raw::List(items)) => {
                Some(Value::Array(self.list(inner, go.and_then(|g| g.strip_prefix("[]")), items)))
            }
            (Kind::Map(inner), Raw::Map(entries)) => {
                let of_values = |go: &'_ str| match go {
                    SCHEMA_DEPENDENCIES => Some(SCHEMA_OR_STRINGS.to_owned()),
                    go => go.strip_prefix("map[")?.split_once(']').map(|(_, go)| go.to_owned()),
                };
                Some(Value::Object(self.map(inner, go.and_then(of_values).as_deref(), entries)))
            }
            (Kind::String, Raw::String(text)) => {
                // Only the values that follow can be rejected, not this one.
                let _ = self.budget.take(text.len());
                Some(Value::String(text))
            }
            (Kind::Bool, Raw::Bool(b)) => Some(Value::Bool(b)),
            (Kind::Int64, Raw::Int(n)) => Some(n.into()),
            (Kind::Int32, Raw::Int(n)) if i32::try_from(n).is_ok() => Some(n.into()),
            (Kind::Int32 | Kind::Int64, Raw::Number(text)) if &*text == "-0" => Some(0.into()),
            (Kind::Int32 | Kind::Int64, Raw::Number(text)) if self.of_map => {
                let whole = text.parse::<f64>().ok().filter(|n| n.fract() == 0.0 && n.abs() <= f64::from(i32::MAX));
                if whole.is_none() {
                    self.fail(|| format!("cannot convert float64 to {}", go_type()));
                }
                #[expect(clippy::cast_possible_truncation, reason = "whole and within 32 bits")]
                whole.map(|n| Value::from(n as i64))
            }
            (Kind::Int32, Raw::Int(n)) => {
                self.mismatch(&format!("number {n}"), &go_type());
                None
            }
            (Kind::Int32 | Kind::Int64, Raw::Number(text)) => {
                self.mismatch(&format!("number {text}"), &go_type());
                None
            }
            (Kind::Double, Raw::Int(n)) => Some(n.into()),
            (Kind::Double, Raw::Number(text)) => Some(super::raw::number(&text)),
            (Kind::Bytes, Raw::String(text)) => self.bytes(&text),
            (Kind::Bytes, Raw::List(items)) => self.byte_list(&items),
            (Kind::Quantity, raw) => self.quantity(&raw),
            (Kind::Amount, raw) => self.quantity(&raw).map(whole_thousandths),
            (Kind::Time, Raw::String(text)) => self.time(&text, Precision::Seconds),
            (Kind::MicroTime, Raw::String(text)) => self.time(&text, Precision::Micros),
            (Kind::Time | Kind::MicroTime, raw) => {
                self.give_up(self.mismatched(raw.go_name(), "string"));
                None
            }
            (Kind::IntOrString, Raw::String(text)) => Some(Value::String(text)),
            (Kind::IntOrString, Raw::Int(n)) if i32::try_from(n).is_ok() => Some(n.into()),
            (Kind::IntOrString, raw) => {
                let shown = match &raw {
                    Raw::Int(n) => format!("number {n}"),
                    Raw::Number(text) => format!("number {text}"),
                    other => other.go_name().to_owned(),
                };
                self.give_up(self.mismatched(&shown, "int32"));
                None
            }
            (kind, raw) => {
                let wanted = match kind {
                    Kind::String => "string",
                    Kind::Bool => "bool",
                    Kind::Int32 => "int32",
                    Kind::Int64 => "int64",
                    Kind::Double => "float64",
                    Kind::Map(_) => "map",
                    _ => "slice",
                };
                self.misfit(&raw, wanted, &go_type());
                None
            }
        }
    }

    /// A value of a Go type that decodes itself.
    fn open_type(&mut self, go: &str, raw: Raw) -> Option<Value> {
        match (go, raw) {
            (EMPTY_STRUCT, Raw::Map(entries)) => {
                entries.iter().for_each(|(key, _)| self.find("unknown", key));
                Some(Value::Object(Map::new()))
            }
            (EMPTY_STRUCT, raw) => {
                self.misfit(&raw, "struct", go);
                None
            }
            (_, raw @ Raw::Map(_)) => self.nested_schema(raw),
            (SCHEMA_OR_BOOL, Raw::Bool(allows)) => Some(Value::Bool(allows)),
            (SCHEMA_OR_BOOL, _) => {
                self.give_up("boolean or JSON schema expected".into());
                None
            }
            (SCHEMA_OR_SCHEMAS, Raw::List(items)) => {
                let empty = || Value::Object(Map::new());
                Some(items.into_iter().map(|item| self.nested_schema(item).unwrap_or_else(empty)).collect())
            }
            (SCHEMA_OR_STRINGS, raw @ Raw::List(_)) => self.value(&Kind::List(Box::new(Kind::String)), None, raw),
            // Go's decoder ignores other values.
            _ => None,
        }
    }

    /// A JSON schema in a value that decodes itself: its unknown fields are not found.
    fn nested_schema(&mut self, raw: Raw) -> Option<Value> {
        let found = self.types.by_name(JSON_SCHEMA)?.of;
        let (findings, seen) = (std::mem::take(&mut self.findings), std::mem::take(&mut self.seen));
        let value = match self.budget.take(OBJECT_BYTES) {
            true => self.object(found, raw),
            false => None,
        };
        (self.findings, self.seen) = (findings, seen);
        value
    }

    fn list(&mut self, inner: &Kind, go: Option<&str>, items: Vec<Raw>) -> Vec<Value> {
        let length = self.path.len();
        let mut out = Vec::with_capacity(items.len().min(LIST_FIRST));
        for (at, item) in items.into_iter().enumerate() {
            if !self.budget.take(ITEM_BYTES) {
                break;
            }
            self.path.push_str(&format!("[{at}]"));
            let value = self.value(inner, go, item);
            self.path.truncate(length);
            out.push(value.unwrap_or_else(|| self.zero(inner, true)));
        }
        out
    }

    fn map(&mut self, inner: &Kind, go: Option<&str>, entries: Vec<(String, Raw)>) -> Map<String, Value> {
        let length = self.path.len();
        let mut out = Map::new();
        for (key, item) in entries {
            if !self.budget.take(ENTRY_BYTES + key.len()) {
                break;
            }
            if out.contains_key(&key) {
                self.find("duplicate", &key);
            }
            if length > 0 {
                self.path.push('.');
            }
            self.path.push_str(&key);
            let value = self.value(inner, go, item);
            self.path.truncate(length);
            let value = value.unwrap_or_else(|| self.zero(inner, true));
            out.insert(key, value);
        }
        out
    }

    fn bytes(&mut self, text: &str) -> Option<Value> {
        let joined: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
        match STANDARD.decode(&joined) {
            Ok(_) => Some(Value::String(joined)),
            Err(error) => {
                let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=');
                let at = joined.find(|c| !known(c)).unwrap_or(match error {
                    base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                    // Go reports where the last, incomplete group begins.
                    _ => joined.len() / 4 * 4,
                });
                // Go accepts stray bits in the last symbol; encoding drops them.
                if let Ok(bytes) = LOOSE.decode(&joined) {
                    return Some(Value::String(STANDARD.encode(bytes)));
                }
                self.fail(|| format!("illegal base64 data at input byte {at}"));
                None
            }
        }
    }

    /// Go also decodes bytes from a list of numbers.
    fn byte_list(&mut self, items: &[Raw]) -> Option<Value> {
        let mut bytes = Vec::with_capacity(items.len());
        for item in items {
            match item {
                Raw::Null => bytes.push(0),
                Raw::Int(n) if u8::try_from(*n).is_ok() => bytes.push(*n as u8),
                Raw::Int(n) => self.mismatch(&format!("number {n}"), "uint8"),
                Raw::Number(text) => self.mismatch(&format!("number {text}"), "uint8"),
                other => self.mismatch(other.go_name(), "uint8"),
            }
        }
        Some(Value::String(STANDARD.encode(bytes)))
    }

    fn quantity(&mut self, raw: &Raw) -> Option<Value> {
        let parsed = match raw {
            Raw::String(text) => Quantity::parse(text.trim()),
            Raw::Int(n) => Quantity::parse(&n.to_string()),
            Raw::Number(text) => Quantity::parse(text),
            _ => Quantity::parse(""),
        };
        match parsed {
            Ok(quantity) => Some(quantity.to_string().into()),
            Err(error) => {
                self.give_up(error.to_string());
                None
            }
        }
    }

    fn time(&mut self, text: &str, precision: Precision) -> Option<Value> {
        match time::normalise(text, precision) {
            Ok(normal) => normal.map(Value::String),
            Err(error) => {
                self.give_up(error.to_string());
                None
            }
        }
    }
}

const LOOSE: base64::engine::GeneralPurpose = base64::engine::GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    base64::engine::GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// Amounts in a resource list are rounded up to thousandths.
fn whole_thousandths(amount: Value) -> Value {
    // Only these canonical forms can be finer.
    let finer = |text: &str| text.ends_with(['n', 'u']) || text.contains("e-");
    match amount.as_str().filter(|text| finer(text)).map(Quantity::parse) {
        Some(Ok(fine)) => Quantity::from_milli(fine.milli(), fine.format()).to_string().into(),
        _ => amount,
    }
}

/// A duplicate field: Go decodes the second over the first's result.
fn join(before: &mut Value, value: Value) {
    match (before, value) {
        (Value::Object(before), Value::Object(value)) => {
            for (key, value) in value {
                match before.get_mut(&key) {
                    Some(slot) => join(slot, value),
                    None => drop(before.insert(key, value)),
                }
            }
        }
        (before, value) => *before = value,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{built_in, raw::parse};
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const POD: &str = "io.k8s.api.core.v1.Pod";
    const DEPLOYMENT: &str = "io.k8s.api.apps.v1.Deployment";

    fn named(type_name: &str) -> TypeRef<'static> {
        built_in().by_name(type_name).unwrap()
    }

    fn normalise(type_name: &str, object: &mut Value) -> Result<(), String> {
        super::super::normalise(named(type_name), object)
    }

    fn read(type_name: &str, text: &str, form: Form) -> Result<(Value, Vec<String>), String> {
        convert(named(type_name), parse(text.as_bytes()).unwrap(), form, &mut Budget::unlimited())
            .map(|c| (c.object, c.findings))
    }

    #[test]
    fn findings_come_in_the_order_written() {
        let (_, findings) = read(
            POD,
            r#"{"nope": 1, "metadata": {"labels": {"a": "1", "a": "2"}}, "spec": {"nope": {"deep": 1}, "containers": [{"nope": 1, "ports": [{"nope": 2}]}, {"Image": "x"}], "restartPolicy": "Never", "restartPolicy": "Always"}}"#,
            Form::Sparse,
        )
        .unwrap();
        assert_eq!(
            findings,
            [
                r#"unknown field "nope""#,
                r#"duplicate field "metadata.labels.a""#,
                r#"unknown field "spec.nope""#,
                r#"unknown field "spec.containers[0].nope""#,
                r#"unknown field "spec.containers[0].ports[0].nope""#,
                r#"unknown field "spec.containers[1].Image""#,
                r#"duplicate field "spec.restartPolicy""#,
            ]
        );
    }

    #[test]
    fn wrong_types_have_gos_messages() {
        for (text, message) in [
            (
                r#"{"spec": {"replicas": "0"}}"#,
                "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                r#"{"spec": {"replicas": 1.5}}"#,
                "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                r#"{"spec": {"replicas": 3000000000}}"#,
                "json: cannot unmarshal number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                r#"{"metadata": []}"#,
                "json: cannot unmarshal array into Go struct field Deployment.metadata of type v1.ObjectMeta",
            ),
            (
                r#"{"metadata": {"labels": {"a": 1}}}"#,
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (
                r#"{"spec": {"template": {"spec": {"containers": {}}}}}"#,
                "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
            ),
            (
                r#"{"spec": {"template": {"spec": {"containers": [{"resources": {"limits": {"cpu": "x"}}}]}}}}"#,
                "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
            ),
        ] {
            assert_eq!(read(DEPLOYMENT, text, Form::Sparse).unwrap_err(), message);
        }
    }

    #[test]
    fn schemas_of_definitions_are_decoded_where_their_types_decode_themselves() {
        const DEFINITION: &str =
            "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionVersion";
        let read = |property: &str| {
            let text = format!(r#"{{"schema": {{"openAPIV3Schema": {{"properties": {{"f": {property}}}}}}}}}"#);
            read(DEFINITION, &text, Form::Sparse)
                .map(|(object, findings)| (object["schema"]["openAPIV3Schema"]["properties"]["f"].clone(), findings))
        };
        for wrong in [r#""x""#, "5", "[]"] {
            for key in ["additionalProperties", "additionalItems"] {
                let refused = read(&format!(r#"{{"{key}": {wrong}}}"#)).unwrap_err();
                assert_eq!(refused, "boolean or JSON schema expected");
            }
        }
        let nested = read(r#"{"items": {"additionalProperties": {"type": ["object"]}}}"#).unwrap_err();
        assert_eq!(
            nested,
            "json: cannot unmarshal array into Go struct field \
             JSONSchemaProps.schema.openAPIV3Schema.properties.items.additionalProperties.type of type string"
        );
        assert!(read(r#"{"dependencies": {"a": {"type": 5}}}"#).is_err());
        let (taken, findings) = read(
            r#"{"items": "x", "additionalProperties": true, "dependencies": {"a": ["b"]},
                "additionalItems": {"type": "string", "typ": 1}}"#,
        )
        .unwrap();
        let wanted =
            json!({"additionalProperties": true, "dependencies": {"a": ["b"]}, "additionalItems": {"type": "string"}});
        assert_eq!((taken, findings), (wanted, Vec::new()), "unknown fields below are no findings");
        let refused = super::tests::read(DEFINITION, r#"{"subresources": {"status": "x"}}"#, Form::Sparse).unwrap_err();
        assert!(refused.ends_with("subresources.status of type v1.CustomResourceSubresourceStatus"), "{refused}");
    }

    #[test]
    fn printed_fields_are_added_and_empty_ones_omitted() {
        let text = r#"{"metadata": {"labels": {}, "creationTimestamp": null}, "spec": {"nodeName": "", "containers": [{"name": "c", "resources": {"limits": {"memory": "1024Mi", "cpu": 0.5}}, "env": [], "volumeMounts": null}],
            "volumes": [{"name": "v", "emptyDir": {}}], "terminationGracePeriodSeconds": 0, "tolerations": []}}"#;
        let (sparse, _) = read(POD, text, Form::Sparse).unwrap();
        let mut container = json!({"name": "c", "resources": {"limits": {"memory": "1Gi", "cpu": "500m"}}, "env": []});
        let mut spec = json!({"containers": [container], "volumes": [{"name": "v", "emptyDir": {}}], "terminationGracePeriodSeconds": 0});
        spec["tolerations"] = json!([]);
        assert_eq!(sparse, json!({"metadata": {"labels": {}}, "spec": spec, "status": {}}));
        let mut stored = sparse;
        normalise(POD, &mut stored).unwrap();
        for (of, absent) in [(&mut container, "env"), (&mut spec, "tolerations")] {
            of.as_object_mut().unwrap().remove(absent);
        }
        spec["containers"] = json!([container]);
        assert_eq!(stored, json!({"metadata": {}, "spec": spec, "status": {}}), "empty is absent where it is stored");
        let mut full = json!({"spec": {"containers": [{}]}});
        normalise(POD, &mut full).unwrap();
        assert_eq!(
            full,
            json!({"metadata": {}, "spec": {"containers": [{"name": "", "resources": {}}]}, "status": {}})
        );
    }

    #[test]
    fn a_field_given_twice_is_decoded_over_the_first() {
        let (object, findings) =
            read("io.k8s.api.core.v1.ConfigMap", r#"{"data": {"a": "1", "b": "2"}, "data": {"b": "3"}}"#, Form::Sparse)
                .unwrap();
        assert_eq!(object["data"], json!({"a": "1", "b": "3"}));
        assert_eq!(findings, [r#"duplicate field "data""#]);
    }

    #[test]
    fn times_secrets_and_events() {
        let mut event = json!({"metadata": {}, "involvedObject": {}, "lastTimestamp": "2026-01-02T03:04:05.5+01:00"});
        normalise("io.k8s.api.core.v1.Event", &mut event).unwrap();
        assert_eq!(
            (&event["firstTimestamp"], &event["lastTimestamp"], &event["eventTime"]),
            (&Value::Null, &json!("2026-01-02T02:04:05Z"), &Value::Null)
        );
        let (secret, _) =
            read("io.k8s.api.core.v1.Secret", "{\"data\": {\"a\": null, \"b\": \"YWI=\\n\"}}", Form::Sparse).unwrap();
        assert_eq!(secret["data"], json!({"a": "", "b": "YWI="}));
    }

    proptest! {
        #[test]
        fn any_json_is_taken_or_refused_and_normal_forms_settle(text in "\\{(\"(spec|metadata|name|containers|labels|status)\": ?(\\{\\}|\\[\\]|null|\"x\"|1|\\{\"(name|containers|labels|template)\": ?(null|1|\"a\"|\\[\\{\\}\\])\\}),? ?){0,4}\\}") {
            let Ok(raw) = parse(text.as_bytes()) else { return Ok(()) };
            for type_name in [POD, DEPLOYMENT] {
                if let Ok(converted) = convert(named(type_name), raw.clone(), Form::Full, &mut Budget::unlimited()) {
                    let mut again = converted.object.clone();
                    normalise(type_name, &mut again).unwrap();
                    prop_assert_eq!(again, converted.object);
                }
            }
        }
    }
}

//! Validates a value against a schema, in upstream's order and words (kube-openapi's `validate`). Unchanged values of
//! an update are exempt.
//!
//! The work is bounded: a schema with many alternatives over a large object would take minutes.

use std::fmt::Write as _;

use machinery_api::selector::go_quoted;
use serde_json::{Map, Value};

use super::compile::{Additional, Checks, Schema, Type};
use crate::apiextensions::correlate::Correlated;
use crate::field::{ErrorList, FieldError, Path};

/// Maximum number of comparisons of a schema with a value, for one object.
const STEPS_MAX: u64 = 4_000_000;

/// A validation error.
#[derive(Debug, Clone)]
enum SchemaViolation {
    /// An error of the value at a path.
    At(String, ViolationKind),
    /// An error without a path, as a sentence.
    Sentence(String),
}

#[derive(Debug, Clone)]
enum ViolationKind {
    Required,
    NotSupported(Value, Vec<String>),
    TooLong(i64),
    TooMany(usize, i64),
    Type(Value, String),
    Invalid(Value, String),
}

/// The result of a comparison.
#[derive(Debug, Default)]
struct CheckOutcome {
    wrong: Vec<SchemaViolation>,
    /// The number of matching keywords, by which the best alternative is chosen.
    matches: u64,
}

impl CheckOutcome {
    fn is_valid(&self) -> bool {
        self.wrong.is_empty()
    }

    fn merge(&mut self, other: Self) {
        self.wrong.extend(other.wrong);
        self.matches += other.matches;
    }

    fn at(&mut self, path: &str, kind: ViolationKind) {
        self.wrong.push(SchemaViolation::At(path.to_owned(), kind));
    }

    fn add_sentence(&mut self, sentence: String) {
        self.wrong.push(SchemaViolation::Sentence(sentence));
    }
}

struct Checker {
    path: String,
    steps: u64,
    /// Upstream's structural schemas, which check defaults, don't know the type of `x-kubernetes-int-or-string`.
    of_default: bool,
}

/// Validates the value at the path `under` (`status`, or empty for the whole object); `old` is its previous value.
pub(crate) fn check(value: &Value, schema: &Schema, under: &str, old: Option<&Correlated<'_>>) -> ErrorList {
    run(Checker { path: String::new(), steps: STEPS_MAX, of_default: false }, value, schema, under, old)
}

/// Validates a schema's default, at the path `under`.
pub(crate) fn check_default(value: &Value, schema: &Schema, under: &str) -> ErrorList {
    run(Checker { path: String::new(), steps: STEPS_MAX, of_default: true }, value, schema, under, None)
}

fn run(mut checker: Checker, value: &Value, schema: &Schema, under: &str, old: Option<&Correlated<'_>>) -> ErrorList {
    let outcome = checker.schema(value, schema, old);
    let mut errors = ErrorList::new();
    if checker.steps == 0 {
        errors.add(|| {
            let why = "the schema has too many alternatives to compare this object with all of them";
            FieldError::invalid(&Path::root(if under.is_empty() { "<nil>" } else { under }), "", why)
        });
    }
    for wrong in outcome.wrong {
        errors.add(|| error(wrong, under));
    }
    errors
}

fn error(wrong: SchemaViolation, under: &str) -> FieldError {
    let (path, kind) = match wrong {
        SchemaViolation::At(path, kind) => (path, kind),
        SchemaViolation::Sentence(sentence) => {
            let at = if under.is_empty() { "<nil>" } else { under };
            return FieldError::invalid(&Path::root(at), "", &sentence);
        }
    };
    let below = path.strip_prefix('.').unwrap_or(&path);
    let whole = match (under, below) {
        ("", "") => "<nil>".to_owned(),
        ("", below) => below.to_owned(),
        (under, "") => under.to_owned(),
        (under, below) => format!("{under}.{below}"),
    };
    let at = Path::root(&whole);
    match kind {
        ViolationKind::Required => FieldError::required(&at, ""),
        ViolationKind::NotSupported(value, values) => {
            FieldError::not_supported(&at, value, &values.iter().map(String::as_str).collect::<Vec<_>>())
        }
        ViolationKind::TooLong(most) => FieldError::too_long(&at, usize::try_from(most).unwrap_or(0)),
        ViolationKind::TooMany(items, most) => FieldError::too_many(&at, items, usize::try_from(most).unwrap_or(0)),
        ViolationKind::Type(value, sentence) => FieldError::type_invalid(&at, value, &sentence),
        ViolationKind::Invalid(value, sentence) => FieldError::invalid(&at, value, &sentence),
    }
}

/// The type of a value in Go's validation, and its number format.
fn go_type(value: &Value) -> (&'static str, &'static str) {
    match value {
        Value::Null => ("null", ""),
        Value::Bool(_) => ("boolean", ""),
        Value::Number(n) if n.is_i64() => ("integer", "int64"),
        Value::Number(_) => ("number", "float64"),
        Value::String(_) => ("string", ""),
        Value::Array(_) => ("array", ""),
        Value::Object(_) => ("object", ""),
    }
}

/// Whether a float is integral (Go's swag, with its epsilon).
fn is_whole(n: f64) -> bool {
    const MAX: f64 = 9_007_199_254_740_991.0;
    n.is_finite() && n.abs() <= MAX && (n.fract() == 0.0 || (n - n.round()).abs() / (n.abs() * 2.0) < 1e-9)
}

/// A number in Go's `%v` format.
pub(crate) fn go_float(n: f64) -> String {
    let exponent = if n == 0.0 { 0 } else { n.abs().log10().floor() as i32 };
    if (-4..21).contains(&exponent) {
        return format!("{n}");
    }
    let text = format!("{n:e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, digits) = match exponent.strip_prefix('-') {
        Some(digits) => ('-', digits),
        None => ('+', exponent),
    };
    format!("{mantissa}e{sign}{digits:0>2}")
}

impl Checker {
    /// Counts a step; false if the bound is exceeded.
    fn count_step(&mut self) -> bool {
        self.steps = self.steps.saturating_sub(1);
        self.steps > 0
    }

    fn schema(&mut self, value: &Value, schema: &Schema, old: Option<&Correlated<'_>>) -> CheckOutcome {
        let mut outcome = CheckOutcome::default();
        if !self.count_step() {
            return outcome;
        }
        self.compare(value, schema, old, &mut outcome);
        if !outcome.is_valid() && old.is_some_and(Correlated::is_unchanged) {
            return CheckOutcome { wrong: Vec::new(), matches: outcome.matches };
        }
        outcome
    }

    fn compare(&mut self, value: &Value, schema: &Schema, old: Option<&Correlated<'_>>, outcome: &mut CheckOutcome) {
        let checks = schema.checks();
        if value.is_null() {
            if schema.kind != Type::Any && !schema.nullable {
                let kind = ViolationKind::Type("null".into(), self.must_be(schema.kind.as_str(), "null"));
                outcome.at(&self.path, kind);
            }
            self.enumeration(value, checks, outcome);
            return;
        }
        let typed = schema.kind != Type::Any && !(self.of_default && schema.kind == Type::IntOrString);
        if typed || checks.format.is_some() {
            self.kind(value, schema, outcome);
        }
        self.combinations(value, checks, old, outcome);
        match value {
            Value::String(text) => self.text(text, checks, outcome),
            Value::Number(number) => {
                let before = outcome.wrong.len();
                self.number(number, schema, outcome);
                outcome.matches += u64::from(outcome.wrong.len() == before);
            }
            Value::Array(items) => self.list(items, schema, old, outcome),
            _ => {}
        }
        self.enumeration(value, checks, outcome);
        if let Value::Object(map) = value {
            self.object(map, schema, old, outcome);
        }
        outcome.matches += 1;
    }

    fn must_be(&self, kind: &str, is: &str) -> String {
        format!("{} in body must be of type {kind}: {}", self.path, go_quoted(is))
    }

    fn kind(&self, value: &Value, schema: &Schema, outcome: &mut CheckOutcome) {
        let (name, number_format) = go_type(value);
        let fits = match schema.kind {
            Type::Any => false,
            Type::IntOrString => matches!(name, "integer" | "string") || whole(value),
            Type::Integer => name == "integer" || whole(value),
            Type::Number => matches!(name, "integer" | "number"),
            other => other.as_str() == name,
        };
        let of_text = matches!(value, Value::String(_) | Value::Array(_));
        if let Some(format) = schema.checks().format
            && !of_text
            && !fits
        {
            let kind = ViolationKind::Type(number_format.into(), self.must_be(format.name, number_format));
            return outcome.at(&self.path, kind);
        }
        let numeric = matches!(schema.kind, Type::Integer | Type::Number | Type::IntOrString);
        if !numeric && schema.checks().format.is_some() && of_text {
            outcome.matches += 1;
            return;
        }
        if fits {
            outcome.matches += 1;
        } else {
            let wanted = schema.checks().unknown_type.as_ref().map_or(schema.kind.as_str(), |name| name.as_str());
            let kind = ViolationKind::Type(name.into(), self.must_be(wanted, name));
            outcome.at(&self.path, kind);
        }
    }

    /// anyOf, oneOf, allOf, not.
    fn combinations(
        &mut self,
        value: &Value,
        checks: &Checks,
        old: Option<&Correlated<'_>>,
        outcome: &mut CheckOutcome,
    ) {
        let quoted = |checker: &Self| go_quoted(&checker.path);
        if !checks.any_of.is_empty() {
            let (fitting, best) = self.best_alternative(value, &checks.any_of, old, true);
            if fitting == 0 {
                outcome.add_sentence(format!("{} must validate at least one schema (anyOf)", quoted(self)));
            }
            outcome.merge(best);
        }
        if !checks.one_of.is_empty() {
            let (fitting, best) = self.best_alternative(value, &checks.one_of, old, false);
            if fitting != 1 {
                let how = match fitting {
                    0 => "Found none valid".to_owned(),
                    several => format!("Found {several} valid alternatives"),
                };
                outcome.add_sentence(format!("{} must validate one and only one schema (oneOf). {how}", quoted(self)));
            }
            if fitting < 2 {
                outcome.merge(best);
            }
        }
        if !checks.all_of.is_empty() {
            let mut fitting = 0;
            for schema in &checks.all_of {
                let one = self.alternative(value, schema, old);
                fitting += usize::from(one.is_valid());
                outcome.merge(one);
            }
            if fitting != checks.all_of.len() {
                let none = if fitting == 0 { ". None validated" } else { "" };
                outcome.add_sentence(format!("{} must validate all the schemas (allOf){none}", quoted(self)));
            }
        }
        if let Some(not) = &checks.not
            && self.alternative(value, not, old).is_valid()
        {
            outcome.add_sentence(format!("{} must not validate the schema (not)", quoted(self)));
        }
        outcome.matches += 1;
    }

    /// Checks an alternative. Ratcheting applies to the parts below it, not to the value itself.
    fn alternative(&mut self, value: &Value, schema: &Schema, old: Option<&Correlated<'_>>) -> CheckOutcome {
        let mut outcome = CheckOutcome::default();
        if self.count_step() {
            self.compare(value, schema, old, &mut outcome);
        }
        outcome
    }

    /// The number of matching alternatives, and the result of the first match or of the closest one.
    fn best_alternative(
        &mut self,
        value: &Value,
        schemas: &[Schema],
        old: Option<&Correlated<'_>>,
        one_is_enough: bool,
    ) -> (usize, CheckOutcome) {
        let (mut fitting, mut first, mut failed) = (0, None, None::<CheckOutcome>);
        for schema in schemas {
            let one = self.alternative(value, schema, old);
            if one.is_valid() {
                fitting += 1;
                first.get_or_insert(one);
                if one_is_enough {
                    break;
                }
            } else if fitting == 0 && failed.as_ref().is_none_or(|best| one.matches > best.matches) {
                failed = Some(one);
            }
        }
        (fitting, first.or(failed).unwrap_or_default())
    }

    fn text(&self, text: &str, checks: &Checks, outcome: &mut CheckOutcome) {
        let path = &self.path;
        let letters = || i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
        if let Some(most) = checks.max_length.filter(|most| letters() > *most) {
            outcome.at(path, ViolationKind::TooLong(most));
        } else if let Some(least) = checks.min_length.filter(|least| letters() < *least) {
            let why = format!("{path} in body should be at least {least} chars long");
            outcome.at(path, ViolationKind::Invalid(text.into(), why));
        } else if let Some(pattern) = checks.pattern.as_ref().filter(|pattern| !pattern.is_match(text)) {
            let why = format!("{path} in body should match '{}'", pattern.text);
            outcome.at(path, ViolationKind::Invalid(text.into(), why));
        } else {
            outcome.matches += 1;
        }
        if let Some(format) = checks.format.filter(|format| format.is_text_format()) {
            if format.accepts_text(text) {
                outcome.matches += 1;
            } else {
                outcome.at(path, ViolationKind::Type(text.into(), self.must_be(format.name, text)));
            }
        }
    }

    fn number(&self, number: &serde_json::Number, schema: &Schema, outcome: &mut CheckOutcome) {
        let (path, checks) = (&self.path, schema.checks());
        let shown = || Value::Number(number.clone());
        let float = number.as_f64().unwrap_or(f64::NAN);
        let format = checks.format.map_or("", |format| format.name);
        let in_range = |n: f64, whole: Option<i64>| match (schema.kind, format) {
            (Type::Integer, "int32") => whole
                .map_or(n.fract() == 0.0 && n.abs() < 1e15 && i32::try_from(n as i64).is_ok(), |n| {
                    i32::try_from(n).is_ok()
                }),
            (Type::Integer, _) => whole.is_some() || (n.fract() == 0.0 && n.abs() < 9.3e18),
            (Type::Number, "float") => n.is_nan() || n.abs() <= f64::from(f32::MAX),
            _ => true,
        };
        let out_of_range = |what: &str| match format {
            "" => format!("{what} value must be of type {} (default format) in {path}", schema.kind.as_str()),
            format => format!("{what} value must be of type {} with format {format} in {path}", schema.kind.as_str()),
        };
        if !in_range(float, number.as_i64()) {
            outcome.add_sentence(out_of_range("Checked"));
        }
        let whole = number.as_i64();
        let bound =
            |limit: f64| if whole.is_some() && is_whole(limit) { format!("{limit:.0}") } else { go_float(limit) };
        if let Some(factor) = checks.multiple_of {
            if !in_range(factor, None) {
                outcome.add_sentence(out_of_range("MultipleOf"));
            }
            self.multiple(number, factor, outcome);
        }
        if let Some(limit) = checks.minimum {
            if !in_range(limit, None) {
                outcome.add_sentence(out_of_range("Minimum boundary"));
            }
            let below = if checks.exclusive_minimum { float <= limit } else { float < limit };
            if below {
                let words = if checks.exclusive_minimum { "greater than" } else { "greater than or equal to" };
                let why = format!("{path} in body should be {words} {}", bound(limit));
                outcome.at(path, ViolationKind::Invalid(shown(), why));
            }
        }
        if let Some(limit) = checks.maximum {
            if !in_range(limit, None) {
                outcome.add_sentence(out_of_range("Maximum boundary"));
            }
            let above = if checks.exclusive_maximum { float >= limit } else { float > limit };
            if above {
                let words = if checks.exclusive_maximum { "less than" } else { "less than or equal to" };
                let why = format!("{path} in body should be {words} {}", bound(limit));
                outcome.at(path, ViolationKind::Invalid(shown(), why));
            }
        }
    }

    fn multiple(&self, number: &serde_json::Number, factor: f64, outcome: &mut CheckOutcome) {
        let path = &self.path;
        // Integers are compared as such, with the factor truncated.
        let (positive, fits) = match number.as_i64() {
            Some(whole) => {
                let factor = factor as i64;
                (factor > 0, factor > 0 && whole % factor == 0)
            }
            None => {
                let n = number.as_f64().unwrap_or(f64::NAN);
                let times = if factor < 1.0 { 1.0 / factor * n } else { n / factor };
                (factor > 0.0, is_whole(times))
            }
        };
        if !positive {
            let why = format!("factor MultipleOf declared for {path} must be positive: {}", go_float(factor));
            outcome.at(path, ViolationKind::Invalid(serde_json::json!(factor), why));
        } else if !fits {
            let why = format!("{path} in body should be a multiple of {}", go_float(factor));
            outcome.at(path, ViolationKind::Invalid(Value::Number(number.clone()), why));
        }
    }

    fn list(&mut self, items: &[Value], schema: &Schema, old: Option<&Correlated<'_>>, outcome: &mut CheckOutcome) {
        let length = self.path.len();
        if let Some(of_items) = &schema.items {
            for (at, item) in items.iter().enumerate() {
                let below = old.and_then(|old| old.index(at, item));
                // Writing to a String is infallible.
                let _ = write!(self.path, "[{at}]");
                outcome.merge(self.schema(item, of_items, below.as_ref()));
                self.path.truncate(length);
                if self.steps == 0 {
                    return;
                }
            }
        }
        let count = i64::try_from(items.len()).unwrap_or(i64::MAX);
        if let Some(least) = schema.checks().min_items.filter(|least| count < *least) {
            let why = format!("{} in body should have at least {least} items", self.path);
            outcome.at(&self.path, ViolationKind::Invalid(count.into(), why));
        }
        if let Some(most) = schema.checks().max_items.filter(|most| count > *most) {
            outcome.at(&self.path, ViolationKind::TooMany(items.len(), most));
        }
        outcome.matches += 1;
    }

    fn enumeration(&self, value: &Value, checks: &Checks, outcome: &mut CheckOutcome) {
        if checks.enumeration.is_empty() {
            return;
        }
        let same = |allowed: &Value| match (allowed, value) {
            (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
            (allowed, value) => !allowed.is_null() && allowed == value,
        };
        if checks.enumeration.iter().any(same) {
            return;
        }
        let shown = checks.enumeration.iter().map(|allowed| match allowed {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        });
        outcome.at(&self.path, ViolationKind::NotSupported(value.clone(), shown.collect()));
    }

    fn object(
        &mut self,
        map: &Map<String, Value>,
        schema: &Schema,
        old: Option<&Correlated<'_>>,
        outcome: &mut CheckOutcome,
    ) {
        let checks = schema.checks();
        let count = i64::try_from(map.len()).unwrap_or(i64::MAX);
        if let Some(least) = checks.min_properties.filter(|least| count < *least) {
            let why = format!("{} in body should have at least {least} properties", self.path);
            outcome.at(&self.path, ViolationKind::Invalid(count.into(), why));
        }
        if let Some(most) = checks.max_properties.filter(|most| count > *most) {
            outcome.at(&self.path, ViolationKind::TooMany(map.len(), most));
        }
        let length = self.path.len();
        match &schema.additional {
            Additional::Allowed(false) => {
                for key in map.keys().filter(|key| !schema.properties.contains_key(key.as_str())) {
                    let why = format!("{}.{key} in body is a forbidden property", self.path);
                    outcome.at(&self.path, ViolationKind::Invalid(key.as_str().into(), why));
                }
            }
            Additional::Schema(additional) => {
                for (key, value) in map.iter().filter(|(key, _)| !schema.properties.contains_key(key.as_str())) {
                    self.path.push('.');
                    self.path.push_str(key);
                    let below = old.and_then(|old| old.key(key, value));
                    outcome.merge(self.schema(value, additional, below.as_ref()));
                    self.path.truncate(length);
                    if self.steps == 0 {
                        return;
                    }
                }
            }
            Additional::Unspecified | Additional::Allowed(true) => {}
        }
        for (name, property) in schema.properties.iter() {
            let Some(value) = map.get(name) else { continue };
            // `apiVersion` and `kind` never count as unchanged: both objects were converted.
            let named = length == 0 && matches!(name, "kind" | "apiVersion");
            let below = old.filter(|_| !named).and_then(|old| old.key(name, value));
            if length > 0 {
                self.path.push('.');
            }
            self.path.push_str(name);
            outcome.merge(self.schema(value, property, below.as_ref()));
            self.path.truncate(length);
        }
        for name in checks.required.iter().filter(|name| !map.contains_key(&***name)) {
            outcome.at(&format!("{}.{name}", self.path), ViolationKind::Required);
        }
        outcome.matches += 1;
    }
}

fn whole(value: &Value) -> bool {
    matches!(value, Value::Number(n) if n.as_f64().is_some_and(is_whole))
}

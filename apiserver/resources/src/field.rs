//! Field errors: a path and a cause, printed with upstream's messages. Validation collects them in order.

use std::fmt;

use machinery_api::Cause;
pub use machinery_api::selector::go_quoted as quoted;
use serde_json::Value;

/// One validation error (k8s.io/apimachinery `validation/field.Error`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// `FieldValueRequired`, …
    pub reason: &'static str,
    /// `spec.containers[0].name`
    pub field: String,
    /// Upstream's whole message, such as `Required value` or `Invalid value: "x": must be …`.
    pub message: String,
}

/// Maximum number of errors shown for one object. Upstream shows all. More are of no use, and each costs the server
/// and the client more than the bytes of the body that caused it.
pub const ERRORS_MAX: usize = 256;
/// Bytes of messages after which errors are only counted: a message may show a large part of the object.
const ERRORS_BYTES_MAX: usize = 256 << 10;

impl From<FieldError> for Cause {
    fn from(error: FieldError) -> Self {
        Self { reason: error.reason.into(), message: error.message, field: error.field }
    }
}

/// A value in upstream's format: quoted text, otherwise JSON with Go's escapes for HTML.
fn format_value(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        Value::Null => "null".into(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        other => go_json(other),
    }
}

fn with_detail(head: &str, detail: &str) -> String {
    if detail.is_empty() { head.to_owned() } else { format!("{head}: {detail}") }
}

impl FieldError {
    /// An error with a complete message.
    #[must_use]
    pub fn new(reason: &'static str, field: &Path<'_>, message: String) -> Self {
        Self { reason, field: field.to_string(), message }
    }

    /// A required value is missing.
    #[must_use]
    pub fn required(field: &Path<'_>, detail: &str) -> Self {
        Self::new("FieldValueRequired", field, with_detail("Required value", detail))
    }

    /// The value is malformed.
    #[must_use]
    pub fn invalid(field: &Path<'_>, value: impl Into<Value>, detail: &str) -> Self {
        let head = format!("Invalid value: {}", format_value(&value.into()));
        Self::new("FieldValueInvalid", field, with_detail(&head, detail))
    }

    /// The value is malformed, and `format_value` is its text in upstream's format.
    #[must_use]
    pub fn invalid_shown(field: &Path<'_>, shown: &str, detail: &str) -> Self {
        Self::new("FieldValueInvalid", field, with_detail(&format!("Invalid value: {shown}"), detail))
    }

    /// The value has the wrong type.
    #[must_use]
    pub fn type_invalid(field: &Path<'_>, value: impl Into<Value>, detail: &str) -> Self {
        let head = format!("Invalid value: {}", format_value(&value.into()));
        Self::new("FieldValueTypeInvalid", field, with_detail(&head, detail))
    }

    /// The value is not supported; `supported` is listed in the given order (upstream sorts most of its lists).
    #[must_use]
    pub fn not_supported(field: &Path<'_>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let head = format!("Unsupported value: {}", format_value(&value.into()));
        let list: Vec<String> = supported.iter().map(|s| quoted(s)).collect();
        let detail = if list.is_empty() { String::new() } else { format!("supported values: {}", list.join(", ")) };
        Self::new("FieldValueNotSupported", field, with_detail(&head, &detail))
    }

    /// The value is a duplicate.
    #[must_use]
    pub fn duplicate(field: &Path<'_>, value: impl Into<Value>) -> Self {
        Self::new("FieldValueDuplicate", field, format!("Duplicate value: {}", format_value(&value.into())))
    }

    /// The referenced object doesn't exist.
    #[must_use]
    pub fn not_found(field: &Path<'_>, value: impl Into<Value>) -> Self {
        Self::new("FieldValueNotFound", field, format!("Not found: {}", format_value(&value.into())))
    }

    /// The value is forbidden here.
    #[must_use]
    pub fn forbidden(field: &Path<'_>, detail: &str) -> Self {
        Self::new("FieldValueForbidden", field, with_detail("Forbidden", detail))
    }

    /// The value has too many bytes.
    #[must_use]
    pub fn too_long(field: &Path<'_>, bytes_max: usize) -> Self {
        let unit = if bytes_max == 1 { "byte" } else { "bytes" };
        Self::new("FieldValueTooLong", field, format!("Too long: may not be more than {bytes_max} {unit}"))
    }

    /// The list has too many items.
    #[must_use]
    pub fn too_many(field: &Path<'_>, items: usize, items_max: usize) -> Self {
        let unit = if items_max == 1 { "item" } else { "items" };
        let message = format!("Too many: {items}: must have at most {items_max} {unit}");
        Self::new("FieldValueTooMany", field, message)
    }

    /// An internal error, unrelated to the value.
    #[must_use]
    pub fn internal(field: &Path<'_>, detail: &str) -> Self {
        Self::new("InternalError", field, with_detail("Internal error", detail))
    }
}

/// A struct in the format of Go's encoder: fields in the order of their declaration, not of their names.
#[must_use]
pub fn go_struct(value: &Value, order: &[&str]) -> String {
    let parts: Vec<String> =
        order.iter().filter_map(|key| Some(format!("\"{key}\":{}", go_json(value.get(key)?)))).collect();
    format!("{{{}}}", parts.join(","))
}

/// JSON in the format of Go's encoder, escaped for HTML and JavaScript.
#[must_use]
pub fn go_json(value: &Value) -> String {
    let mut out = value.to_string();
    for (plain, escaped) in
        [("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u{2028}", "\\u2028"), ("\u{2029}", "\\u2029")]
    {
        if out.contains(plain) {
            out = out.replace(plain, escaped);
        }
    }
    out
}

/// Collects errors. Those beyond [`ERRORS_MAX`] are counted and not formatted, so that an object with a hundred
/// thousand errors costs little more than a valid one.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ErrorList {
    /// Failures that don't fail the request: upstream returns them as `Warning` headers.
    pub warnings: Vec<String>,
    shown: Vec<FieldError>,
    bytes: usize,
    omitted: usize,
}

impl ErrorList {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// See [`FieldError::required`].
    pub fn required(&mut self, field: &Path<'_>, detail: &str) {
        self.add(|| FieldError::required(field, detail));
    }

    /// See [`FieldError::invalid`].
    pub fn invalid(&mut self, field: &Path<'_>, value: impl Into<Value>, detail: &str) {
        self.add(|| FieldError::invalid(field, value, detail));
    }

    /// Adds one [`FieldError::invalid`] for each message of a rule.
    pub fn invalid_each(&mut self, field: &Path<'_>, value: &str, messages: Vec<String>) {
        for message in messages {
            self.add(|| FieldError::invalid(field, value, &message));
        }
    }

    /// Adds an error, which is built only if it is shown.
    pub fn add(&mut self, error: impl FnOnce() -> FieldError) {
        if self.shown.len() >= ERRORS_MAX || self.bytes > ERRORS_BYTES_MAX {
            self.omitted += 1;
            return;
        }
        let error = error();
        self.bytes += error.field.len() + error.message.len();
        self.shown.push(error);
    }

    /// Adds the errors of another part of the object.
    pub fn append(&mut self, mut other: Self) {
        self.warnings.append(&mut other.warnings);
        self.omitted += other.omitted;
        for error in other.shown {
            self.add(|| error);
        }
    }

    /// The number of errors, including omitted ones.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shown.len() + self.omitted
    }

    /// The shown errors.
    #[must_use]
    pub fn shown(&self) -> &[FieldError] {
        &self.shown
    }

    /// The errors as causes of a response: the shown ones, and the number of omitted ones.
    #[must_use]
    pub fn into_causes(self) -> Vec<Cause> {
        let mut causes: Vec<Cause> = self.shown.into_iter().map(Cause::from).collect();
        if self.omitted > 0 {
            let message = format!("{} more errors are not shown", self.omitted);
            causes.push(Cause { message, ..Cause::default() });
        }
        causes
    }

    /// Sorts the shown errors by field and message.
    pub fn sort(&mut self) {
        self.shown.sort_by_cached_key(|error| format!("{}: {}", error.field, error.message));
    }

    /// See [`FieldError::not_supported`].
    pub fn not_supported(&mut self, field: &Path<'_>, value: impl Into<Value>, supported: &[&str]) {
        self.add(|| FieldError::not_supported(field, value, supported));
    }

    /// See [`FieldError::duplicate`].
    pub fn duplicate(&mut self, field: &Path<'_>, value: impl Into<Value>) {
        self.add(|| FieldError::duplicate(field, value));
    }

    /// See [`FieldError::not_found`].
    pub fn not_found(&mut self, field: &Path<'_>, value: impl Into<Value>) {
        self.add(|| FieldError::not_found(field, value));
    }

    /// See [`FieldError::forbidden`].
    pub fn forbidden(&mut self, field: &Path<'_>, detail: &str) {
        self.add(|| FieldError::forbidden(field, detail));
    }

    /// See [`FieldError::too_long`].
    pub fn too_long(&mut self, field: &Path<'_>, bytes_max: usize) {
        self.add(|| FieldError::too_long(field, bytes_max));
    }

    /// See [`FieldError::too_many`].
    pub fn too_many(&mut self, field: &Path<'_>, items: usize, items_max: usize) {
        self.add(|| FieldError::too_many(field, items, items_max));
    }

    /// Rejects a negative number.
    pub fn non_negative(&mut self, field: &Path<'_>, value: Option<i64>) {
        if let Some(value) = value.filter(|v| *v < 0) {
            self.invalid(field, value, NOT_NEGATIVE);
        }
    }

    /// Rejects a change of an immutable value.
    pub fn immutable(&mut self, field: &Path<'_>, new: &Value, old: &Value) {
        if new != old {
            self.invalid(field, new.clone(), IMMUTABLE);
        }
    }

    /// Whether there are no errors.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shown.is_empty()
    }
}

/// Upstream's message for a negative number.
pub const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
/// Upstream's message for a change of an immutable value.
pub const IMMUTABLE: &str = "field is immutable";

#[derive(Clone, Copy)]
enum PathElement<'a> {
    Name(&'a str),
    Index(usize),
    Key(&'a str),
}

/// A path within an object: a chain of borrowed steps on the stack, formatted only for an error.
#[derive(Clone, Copy)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: PathElement<'a>,
}

impl<'a> Path<'a> {
    /// A top-level field, or several joined with dots.
    #[must_use]
    pub const fn root(name: &'a str) -> Self {
        Self { parent: None, step: PathElement::Name(name) }
    }

    /// A child field.
    #[must_use]
    pub const fn child<'b>(&'b self, name: &'b str) -> Path<'b>
    where
        'a: 'b,
    {
        Path { parent: Some(self), step: PathElement::Name(name) }
    }

    /// An item of the list.
    #[must_use]
    pub const fn index(&self, at: usize) -> Path<'_> {
        Path { parent: Some(self), step: PathElement::Index(at) }
    }

    /// An entry of the map.
    #[must_use]
    pub const fn key<'b>(&'b self, key: &'b str) -> Path<'b>
    where
        'a: 'b,
    {
        Path { parent: Some(self), step: PathElement::Key(key) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            fmt::Display::fmt(parent, f)?;
        }
        match self.step {
            PathElement::Name(name) => {
                if name.is_empty() {
                    // Upstream's path of the object itself.
                    return f.write_str("[]");
                }
                if self.parent.is_some() {
                    f.write_str(".")?;
                }
                f.write_str(name)
            }
            PathElement::Index(at) => write!(f, "[{at}]"),
            PathElement::Key(key) => write!(f, "[{key}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn errors_are_cut_and_counted() {
        let field = Path::root("spec");
        let mut errors = ErrorList::new();
        for n in 0..1000 {
            errors.invalid(&field, n, "no");
        }
        assert_eq!(errors.count(), 1000);
        (0..10).for_each(|_| errors.required(&field, ""));
        let shown = errors.into_causes();
        assert_eq!(shown.len(), ERRORS_MAX + 1);
        assert_eq!(shown[ERRORS_MAX].message, "754 more errors are not shown");
        // Messages count by their length; the first is always shown.
        let mut errors = ErrorList::new();
        for _ in 0..10 {
            errors.invalid(&field, "x".repeat(300 << 10), "no");
        }
        let shown = errors.into_causes();
        assert_eq!((shown.len(), shown[0].message.len() > 300 << 10), (2, true));
        assert_eq!(shown[1].message, "9 more errors are not shown");
        assert!(ErrorList::new().into_causes().is_empty());
    }

    #[test]
    fn paths_and_sentences() {
        let spec = Path::root("spec");
        let containers = spec.child("containers");
        let at = containers.index(2);
        let key = at.child("limits");
        assert_eq!(key.key("cpu").to_string(), "spec.containers[2].limits[cpu]");
        assert_eq!(FieldError::required(&spec, "").message, "Required value");
        assert_eq!(FieldError::invalid(&spec, "a\"b", "no").message, "Invalid value: \"a\\\"b\": no");
        assert_eq!(
            FieldError::invalid(&spec, json!({"a": "<"}), "no").message,
            "Invalid value: {\"a\":\"\\u003c\"}: no"
        );
        assert_eq!(
            FieldError::not_supported(&spec, "x", &["A", "B"]).message,
            "Unsupported value: \"x\": supported values: \"A\", \"B\""
        );
        assert_eq!(FieldError::too_many(&spec, 5, 1).message, "Too many: 5: must have at most 1 item");
        assert_eq!(FieldError::too_long(&spec, 64).message, "Too long: may not be more than 64 bytes");
    }
}

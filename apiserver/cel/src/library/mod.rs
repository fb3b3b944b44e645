//! The function library: declarations for the checker, and the table from an overload to its implementation.

mod authorizer;
mod convert;
mod format;
mod lists;
mod names;
mod net;
mod operators;
mod optional;
mod pattern;
mod quantities;
mod strings;
mod template;
mod time;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

pub use authorizer::{AuthorizationDecision, AuthorizationRequest, Authorizer};
pub(crate) use names::regex_size;
pub(crate) use operators::{add, is_zero};
pub use pattern::{compile as compile_pattern, translate as translate_pattern};
pub(crate) use template::{Piece, format_type_error, pieces};

use crate::budget::Meter;
use crate::error::EvalError;
use crate::types::{Type, shift};
use crate::value::{Res, Value};

/// The arguments and context of a function call.
pub(crate) struct Call<'c, 'd, 'i> {
    pub(crate) function: &'c str,
    pub(crate) args: &'c [Value<'d>],
    pub(crate) meter: &'c mut Meter<'i>,
    pub(crate) authorizer: Option<&'c dyn Authorizer>,
    /// The second argument, compiled, if it is a constant pattern.
    pub(crate) pattern: Option<&'c regex::Regex>,
}

impl<'c, 'd> Call<'c, 'd, '_> {
    fn arg(&self, at: usize) -> Res<&'c Value<'d>> {
        self.args.get(at).ok_or_else(EvalError::no_such_overload)
    }

    fn text(&self, at: usize) -> Res<&'c str> {
        self.arg(at)?.as_str().ok_or_else(EvalError::no_such_overload)
    }

    fn int(&self, at: usize) -> Res<i64> {
        match self.arg(at)? {
            Value::Int(value) => Ok(*value),
            _ => Err(EvalError::no_such_overload()),
        }
    }

    /// A new text, whose memory is counted.
    fn new_text(&mut self, text: String) -> Res<Value<'d>> {
        self.meter.allocate(text.len())?;
        Ok(Value::text(text))
    }

    fn new_list(&mut self, items: Vec<Value<'d>>) -> Res<Value<'d>> {
        self.meter.allocate(items.len() * std::mem::size_of::<Value<'_>>())?;
        self.meter.step(items.len())?;
        Ok(Value::list(items))
    }
}

pub(crate) type Implementation = for<'c, 'd, 'i, 'x> fn(&'x mut Call<'c, 'd, 'i>) -> Res<Value<'d>>;

#[derive(Clone)]
pub(crate) struct Overload {
    pub(crate) id: Arc<str>,
    pub(crate) member: bool,
    pub(crate) args: Vec<Type>,
    pub(crate) result: Type,
    /// The number of type parameters.
    pub(crate) params: u32,
    pub(crate) run: Option<Implementation>,
}

impl Overload {
    /// Arguments and result with type parameters numbered from `first`.
    pub(crate) fn instance(&self, first: u32) -> (Vec<Type>, Type) {
        if self.params == 0 {
            return (self.args.clone(), self.result.clone());
        }
        (self.args.iter().map(|arg| shift(arg, first)).collect(), shift(&self.result, first))
    }

    /// Whether the outermost types of the values fit the arguments.
    pub(crate) fn accepts(&self, values: &[Value<'_>]) -> bool {
        values.len() == self.args.len() && self.args.iter().zip(values).all(|(arg, value)| may_be(arg, value))
    }
}

fn may_be(ty: &Type, value: &Value<'_>) -> bool {
    match (ty, value) {
        (Type::Dyn | Type::Param(_) | Type::Error, _) => true,
        (Type::Null, Value::Null) | (Type::Bool, Value::Bool(_)) | (Type::Int, Value::Int(_)) => true,
        (Type::Uint, Value::Uint(_)) | (Type::Double, Value::Double(_)) | (Type::String, Value::String(_)) => true,
        (Type::Bytes, Value::Bytes(_)) | (Type::Duration, Value::Duration(_)) => true,
        (Type::Timestamp, Value::Timestamp(_)) | (Type::List(_), Value::List(_)) => true,
        (Type::Map(_), Value::Map(_) | Value::Variables) | (Type::Type(_), Value::Type(_)) => true,
        (Type::Optional(_), Value::Optional(_)) => true,
        (Type::Opaque(name) | Type::Struct(name), value) => &**name == value.type_name(),
        _ => false,
    }
}

/// Functions by name, with their overloads in order.
pub(crate) static FUNCTIONS: LazyLock<HashMap<Arc<str>, Vec<Overload>>> = LazyLock::new(functions);

/// Types that lists can be sorted by.
const COMPARABLE: &[&str] = &["int", "uint", "double", "bool", "duration", "timestamp", "string", "bytes"];
const COMPARISONS: &[(&str, &str)] =
    &[("_<_", "less"), ("_<=_", "less_equals"), ("_>_", "greater"), ("_>=_", "greater_equals")];

/// Declarations generated from upstream's templates, one a line.
fn generated_declarations() -> String {
    let mut lines = String::new();
    let mut add = |line: String| {
        lines.push_str(&line);
        lines.push('\n');
    };
    for (function, id) in COMPARISONS {
        for (name, ty) in [("bool", "bool"), ("int64", "int"), ("uint64", "uint"), ("double", "double")] {
            add(format!("{function} {id}_{name} ({ty},{ty}) bool"));
        }
        for (a, b) in [("int64", "double"), ("int64", "uint64"), ("uint64", "double"), ("uint64", "int64")] {
            add(format!("{function} {id}_{a}_{b} ({},{}) bool", a.trim_end_matches("64"), b.trim_end_matches("64")));
        }
        for b in ["int64", "uint64"] {
            add(format!("{function} {id}_double_{b} (double,{}) bool", b.trim_end_matches("64")));
        }
        for ty in ["string", "bytes", "timestamp", "duration"] {
            add(format!("{function} {id}_{ty} ({ty},{ty}) bool"));
        }
    }
    for ty in COMPARABLE {
        let name = match *ty {
            "duration" => "google.protobuf.Duration",
            "timestamp" => "google.protobuf.Timestamp",
            ty => ty,
        };
        add(format!("isSorted .list_{ty}_is_sorted_bool (list({ty})) bool"));
        add(format!("min .list_{ty}_min_{ty} (list({ty})) {ty}"));
        add(format!("max .list_{ty}_max_{ty} (list({ty})) {ty}"));
        add(format!("sort .list_{name}_sort (list({ty})) list({ty})"));
        add(format!("@sortByAssociatedKeys .list_{name}_sortByAssociatedKeys (list(A),list({ty})) list(A)"));
    }
    for ty in ["int", "uint", "double", "duration"] {
        add(format!("sum .list_{ty}_sum_{ty} (list({ty})) {ty}"));
    }
    for name in names::NAMES {
        add(format!("format.{name} format.{name} () kubernetes.NamedFormat"));
    }
    lines
}

fn functions() -> HashMap<Arc<str>, Vec<Overload>> {
    let mut found: HashMap<Arc<str>, Vec<Overload>> = HashMap::new();
    let generated = generated_declarations();
    for line in include_str!("decls.txt").lines().chain(generated.lines()).filter(|line| !line.starts_with('#')) {
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap_or_default();
        let (function, id, args, result) = (word(), word(), word(), word());
        let args = args.trim_start_matches('(').strip_suffix(')').unwrap_or_default();
        let args: Vec<Type> = split(args).into_iter().map(parse_type).collect();
        let member = id.starts_with('.');
        let id = id.trim_start_matches('.');
        let params = if line.contains('B') && uses(&args, 1) { 2 } else { 1 };
        let run = implementation(function, id);
        let overload = Overload { id: id.into(), member, args, result: parse_type(result), params, run };
        found.entry(function.into()).or_default().push(overload);
    }
    found
}

fn uses(args: &[Type], param: u32) -> bool {
    args.iter().any(|arg| match arg {
        Type::Param(number) => *number == param,
        Type::List(inner) | Type::Optional(inner) => uses(std::slice::from_ref(inner), param),
        Type::Map(entry) => uses(&[entry.0.clone(), entry.1.clone()], param),
        _ => false,
    })
}

/// Splits at commas outside of parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if start < text.len() {
        parts.push(&text[start..]);
    }
    parts
}

fn parse_type(text: &str) -> Type {
    if let Some((outer, inner)) = text.split_once('(') {
        let inner = split(inner.strip_suffix(')').unwrap_or(inner));
        let mut inner = inner.into_iter().map(parse_type);
        let first = inner.next().unwrap_or(Type::Dyn);
        return match outer {
            "list" => Type::list(first),
            "optional" => Type::optional(first),
            "type" => Type::Type(Some(Arc::new(first))),
            _ => Type::map(first, inner.next().unwrap_or(Type::Dyn)),
        };
    }
    match text {
        "A" => Type::Param(0),
        "B" => Type::Param(1),
        name => named(name).unwrap_or_else(|| match name {
            "net.IP" | "net.CIDR" => Type::Opaque(name.into()),
            _ => Type::object(name),
        }),
    }
}

/// Types that an expression can refer to by name.
pub(crate) fn named(name: &str) -> Option<Type> {
    Some(match name {
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "dyn" => Type::Dyn,
        "null_type" => Type::Null,
        "duration" | "google.protobuf.Duration" => Type::Duration,
        "timestamp" | "google.protobuf.Timestamp" => Type::Timestamp,
        "list" => Type::list(Type::Dyn),
        "map" => Type::map(Type::Dyn, Type::Dyn),
        "type" => Type::Type(None),
        "optional_type" => Type::optional(Type::Dyn),
        "net.IP" | "net.CIDR" => Type::Opaque(name.into()),
        _ => return None,
    })
}

fn implementation(function: &str, id: &str) -> Option<Implementation> {
    operators::find(function)
        .or_else(|| convert::find(function, id))
        .or_else(|| time::find(function, id))
        .or_else(|| optional::find(function))
        .or_else(|| net::find(function, id))
        .or_else(|| quantities::find(function, id))
        .or_else(|| names::find(function))
        .or_else(|| authorizer::find(function))
        .or_else(|| lists::find(function, id))
        .or_else(|| strings::find(function, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_is_there() {
        // The evaluator implements these.
        let own = ["_?_:_", "_&&_", "_||_", "_==_", "_!=_", "_[_]", "_[?_]", "or", "orValue", "@not_strictly_false"];
        for (name, overloads) in FUNCTIONS.iter().filter(|(name, _)| !own.contains(&&***name)) {
            for overload in overloads {
                assert!(overload.run.is_some(), "{name} {}", overload.id);
            }
        }
    }
}

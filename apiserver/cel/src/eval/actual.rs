//! Runtime cost of calls, as cel-go and Kubernetes' libraries count it.

use crate::library::regex_size;
use crate::value::{Opaque, Value};

pub(super) const LIST: u64 = 10;
pub(super) const MAP: u64 = 30;
pub(super) const OBJECT: u64 = 40;
pub(super) const CALL: u64 = 1;
/// Cost per traversed character of a text.
const TRAVERSAL: f64 = 0.1;
/// Cost per character of a pattern.
const PATTERN: f64 = 0.25;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum CostRule {
    Fixed(u64),
    /// A share of an argument's size.
    Size {
        arg: usize,
        factor: f64,
    },
    Smaller,
    Sum,
    Pattern,
    Product,
    Selector,
    Traverse,
    Result(f64),
    InList,
    Contains {
        text: bool,
        cidr: bool,
    },
    Format,
    OutputSize,
    Flatten,
    /// Pairwise comparison of a list's items.
    SelfCompare(usize),
    Sets(u64),
}

impl CostRule {
    /// The rule of a function. `overload` is empty unless exactly one overload is possible.
    pub(super) fn of(function: &str, overload: &str) -> Self {
        let size = |arg, times: f64| Self::Size { arg, factor: TRAVERSAL * times };
        match (function, overload) {
            (_, "list_slice" | "lists_range" | "list_reverse") => Self::OutputSize,
            (_, "list_flatten" | "list_flatten_int") => Self::Flatten,
            (_, "list_distinct") => Self::SelfCompare(0),
            ("sort", id) if !id.is_empty() => Self::SelfCompare(0),
            ("@sortByAssociatedKeys", id) if !id.is_empty() => Self::SelfCompare(1),
            (_, "list_sets_contains_list" | "list_sets_intersects_list") => Self::Sets(1),
            (_, "list_sets_equivalent_list") => Self::Sets(2),
            ("check", _) => Self::Fixed(350_000),
            ("fieldSelector" | "labelSelector", _) => Self::Selector,
            ("isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf", _) => Self::Traverse,
            ("url" | "lowerAscii" | "upperAscii" | "substring" | "trim" | "jsonpatch.escapeKey", _) => size(0, 1.0),
            ("replace" | "split", _) => size(0, 2.0),
            ("join", _) => Self::Result(2.0 * TRAVERSAL),
            ("find" | "findAll", _) | (_, "matches_string") => Self::Pattern,
            (_, "cidr_ip") => Self::Fixed(1),
            ("cidr" | "isIP" | "isCIDR" | "ip" | "quantity" | "isQuantity" | "semver" | "isSemver", _) => size(0, 1.0),
            ("ip.isCanonical", _) => size(0, 2.0),
            ("containsIP", id) => Self::Contains { text: id == "cidr_contains_ip_string", cidr: false },
            ("containsCIDR", id) => Self::Contains { text: id == "cidr_contains_cidr_string", cidr: true },
            ("validate", _) => Self::Format,
            (_, "starts_with_string" | "ends_with_string" | "string_to_bytes" | "bytes_to_string") => size(0, 1.0),
            (_, "strings_quote" | "string_format") => size(0, 1.0),
            (_, "in_list") => Self::InList,
            (_, "add_string" | "add_bytes") => Self::Sum,
            (_, "contains_string") => Self::Product,
            (_, id) if is_text_order(id) => Self::Smaller,
            _ => Self::Fixed(CALL),
        }
    }

    pub(super) fn charge(self, args: &[Value<'_>], result: Option<&Value<'_>>) -> u64 {
        let size = |at: usize| args.get(at).map_or(1, Value::size);
        let part = |size: u64, factor: f64| (size as f64 * factor).ceil() as u64;
        match self {
            Self::Fixed(cost) => cost,
            Self::Size { arg, factor } => part(size(arg), factor),
            Self::Smaller => part(size(0).min(size(1)), TRAVERSAL),
            Self::Sum => part(size(0).saturating_add(size(1)), TRAVERSAL),
            Self::Pattern => part(size(0) + 1, TRAVERSAL).saturating_mul(part(size(1), PATTERN)),
            Self::Product => part(size(0), TRAVERSAL).saturating_mul(part(size(1), TRAVERSAL)),
            // A list, and one requirement (a list and a struct) per two characters.
            Self::Selector => LIST + part(size(1), TRAVERSAL) + part(part(size(1), 0.5), (LIST + OBJECT) as f64),
            Self::Traverse => args.first().map_or(0, |value| traversal(value, 0)),
            Self::Result(factor) => part(result.map_or(1, Value::size), factor),
            Self::InList => size(1),
            Self::Contains { text, cidr } => {
                let mut cost = part(size(0) * 2, TRAVERSAL);
                if cidr {
                    cost += part(size(0), TRAVERSAL) + 1;
                }
                if text { cost + part(size(1), TRAVERSAL) } else { cost }
            }
            Self::Format => {
                let pattern = match args.first() {
                    Some(Value::Opaque(opaque)) => match &**opaque {
                        Opaque::Format(name) => regex_size(name),
                        _ => 0,
                    },
                    _ => 0,
                };
                part(size(1) + 1, TRAVERSAL).saturating_mul(part(pattern, PATTERN))
            }
            Self::OutputSize => CALL + LIST + result.map_or(1, Value::size),
            Self::Flatten => {
                let depth = match args.get(1) {
                    Some(Value::Int(depth)) => *depth as f64,
                    _ => 1.0,
                };
                (CALL + LIST).saturating_add_signed((size(0) as f64 * depth) as i64)
            }
            Self::SelfCompare(arg) => CALL + LIST + compared(args.get(arg)),
            Self::Sets(factor) => CALL + size(0).saturating_mul(size(1)).saturating_mul(factor),
        }
    }
}

fn compared(list: Option<&Value<'_>>) -> u64 {
    let Some(Value::List(list)) = list else { return 0 };
    let text = matches!(list.get(0), Some(Ok(Value::String(_) | Value::Bytes(_))));
    let size = list.len() as f64;
    (size * size * if text { 2.0 + TRAVERSAL } else { 2.0 }) as u64
}

fn is_text_order(id: &str) -> bool {
    let order = ["less_", "greater_"].iter().any(|order| id.starts_with(order));
    order && (id.ends_with("_string") || id.ends_with("_bytes"))
}

/// The cost of `==` and `!=`.
pub(super) fn equality(a: &Value<'_>, b: &Value<'_>, not: bool) -> u64 {
    if !not && matches!(a, Value::Opaque(_)) {
        return CALL;
    }
    (a.size().min(b.size()) as f64 * TRAVERSAL).ceil() as u64
}

/// The cost of traversing a whole value.
fn traversal(value: &Value<'_>, depth: usize) -> u64 {
    if depth > crate::limits::VALUE_DEPTH {
        return u64::MAX;
    }
    match value {
        Value::String(text) => (text.len() as f64 * TRAVERSAL) as u64,
        Value::Bytes(bytes) => (bytes.len() as f64 * TRAVERSAL) as u64,
        Value::List(list) => {
            list.iter().flatten().fold(0u64, |cost, item| cost.saturating_add(traversal(&item, depth + 1)))
        }
        Value::Map(map) => map.keys().iter().fold(0u64, |cost, key| {
            let value = map.get(key).ok().flatten();
            let value = value.map_or(0, |value| traversal(&value, depth + 1));
            cost.saturating_add(traversal(key, depth + 1)).saturating_add(value)
        }),
        _ => 1,
    }
}

//! Worst-case cost of calls, and the size of their results.

use std::sync::Arc;

use super::range::{CostEstimate, Size};
use super::{Coster, step};
use crate::check::Reference;
use crate::syntax::{Id, Kind, Literal};
use crate::types::Type;

const TRAVERSAL: f64 = 0.1;
const PATTERN: f64 = 0.25;

/// A call's own cost, and the size of its result if it has one.
#[derive(Clone, Copy, Debug)]
struct Estimate {
    cost: CostEstimate,
    size: Option<Size>,
    /// Whether the cost already includes that of the arguments.
    whole: bool,
}

impl Estimate {
    fn of(cost: CostEstimate) -> Self {
        Self { cost, size: None, whole: false }
    }

    fn sized(cost: CostEstimate, size: Size) -> Self {
        Self { cost, size: Some(size), whole: false }
    }

    fn one() -> Self {
        Self::of(CostEstimate::fixed(1))
    }
}

/// One call and one overload of it.
struct CallSite<'a> {
    id: Id,
    function: &'a str,
    overload: &'a str,
    target: Option<Id>,
    args: &'a [Id],
    costs: &'a [CostEstimate],
}

impl Coster<'_> {
    pub(super) fn call(&mut self, id: Id, function: &Arc<str>, target: Option<Id>, args: &[Id]) -> CostEstimate {
        let checked = self.checked;
        if &**function == "_?._" {
            // Upstream counts the selection as a call with cost 1.
            return self.cost(args[0]).add(CostEstimate::fixed(1));
        }
        let Reference::Function { name, target: is_target, .. } = checked.reference(id) else {
            return CostEstimate::default();
        };
        if &**name == "dyn" {
            let cost = self.cost(args[0]).add(CostEstimate::fixed(1));
            self.copy_sizes(id, args[0]);
            return cost;
        }
        let costs: Vec<CostEstimate> = args.iter().map(|arg| self.cost(*arg)).collect();
        let target = target.filter(|_| *is_target);
        let own = target.map_or_else(CostEstimate::default, |target| self.cost(target));
        let mut cost = CostEstimate { min: u64::MAX, max: 0 };
        let mut size: Option<Size> = None;
        for overload in checked.overloads(id) {
            let called = CallSite { id, function: name, overload: &overload.id, target, args, costs: &costs };
            let estimate = self.estimate_call(&called);
            let whole = costs.iter().fold(estimate.cost, |cost, arg| cost.add(*arg));
            cost = cost.union(if estimate.whole { estimate.cost } else { whole });
            if let Some(found) = estimate.size {
                size = Some(size.map_or(found, |size| size.union(found)));
            }
            let items = match &*overload.id {
                "index_list" => Some("@items"),
                "index_map" => Some("@values"),
                _ => None,
            };
            if let Some(items) = items {
                size = self.entry_size(args[0]).map(|entries| entries.value);
                let path = step(&self.path(args[0]), items);
                self.paths.insert(id, path);
            }
            size = size.or_else(|| self.size(id));
        }
        if let Some(size) = size {
            self.sizes.insert(id, size);
        }
        own.add(cost)
    }

    fn estimate_call(&mut self, call: &CallSite<'_>) -> Estimate {
        self.of_lists(call)
            .or_else(|| self.of_kubernetes(call))
            .or_else(|| self.of_strings(call))
            .unwrap_or_else(|| self.of_language(call))
    }

    fn arg(&mut self, call: &CallSite<'_>, at: usize) -> Size {
        call.args.get(at).map_or(Size::UNKNOWN, |id| self.size_or_unknown(*id))
    }

    fn target(&mut self, call: &CallSite<'_>) -> Option<Size> {
        call.target.map(|id| self.size_or_unknown(id))
    }

    /// The size and type of a list's items; `None` if the node is no list.
    fn item(&mut self, list: Id) -> Option<(Size, Type)> {
        let checked = self.checked;
        let Type::List(item) = checked.ty(list) else { return None };
        let path = self.path(list);
        let size = path.is_some().then(|| self.declared_size(&step(&path, "@items"))).flatten();
        Some((size.unwrap_or(Size::UNKNOWN), (**item).clone()))
    }

    fn int(&self, call: &CallSite<'_>, at: usize, otherwise: u64) -> u64 {
        match call.args.get(at).map(|id| &self.checked.tree.get(*id).kind) {
            Some(Kind::Literal(Literal::Int(value))) => u64::try_from(*value).unwrap_or(0),
            _ => otherwise,
        }
    }

    /// The extended list and set libraries.
    fn of_lists(&mut self, call: &CallSite<'_>) -> Option<Estimate> {
        let made =
            |factor: f64, size: Size| Some(Estimate::sized(size.factor(factor).add(CostEstimate::fixed(11)), size));
        let compare = |size: Size, ty: &Type| {
            let text = matches!(ty, Type::String | Type::Bytes);
            made(if text { 2.0 + TRAVERSAL } else { 2.0 }, size.multiply(size))
        };
        match call.overload {
            "list_slice" => {
                let most = self.target(call)?.max;
                let (start, end) = (self.int(call, 0, 0), self.int(call, 1, most));
                made(1.0, Size::fixed(end.wrapping_sub(start)))
            }
            "lists_range" => made(1.0, Size::fixed(self.int(call, 0, u64::MAX))),
            "list_reverse" => made(1.0, self.target(call)?),
            "list_flatten" | "list_flatten_int" => {
                let depth = if call.args.is_empty() { 1 } else { self.int(call, 0, u64::MAX) };
                made(depth as f64, self.target(call)?)
            }
            "list_distinct" => compare(self.target(call)?, &Type::Int),
            id if id.ends_with("_sort") || id.ends_with("_sortByAssociatedKeys") => {
                let list = call.args.first().copied().or(call.target)?;
                let size = self.size_or_unknown(list);
                let text = id.starts_with("list_string_") || id.starts_with("list_bytes_");
                compare(size, if text { &Type::String } else { &Type::Int })
            }
            "list_sets_contains_list" | "list_sets_intersects_list" | "list_sets_equivalent_list" => {
                let times = if call.overload.contains("equivalent") { 2.0 } else { 1.0 };
                let pairs = self.arg(call, 0).multiply(self.arg(call, 1));
                Some(Estimate::of(pairs.factor(times).add(CostEstimate::fixed(1))))
            }
            _ => None,
        }
    }

    /// Kubernetes' libraries.
    fn of_kubernetes(&mut self, call: &CallSite<'_>) -> Option<Estimate> {
        let walk = |size: Size, times: f64| Some(Estimate::of(size.factor(times * TRAVERSAL)));
        match call.function {
            "check" => Some(Estimate::of(CostEstimate::fixed(350_000))),
            "serviceAccount"
            | "path"
            | "group"
            | "resource"
            | "subresource"
            | "namespace"
            | "name"
            | "allowed"
            | "reason"
            | "error"
            | "errored"
            | "masked"
            | "prefixLength"
            | "family"
            | "isUnspecified"
            | "isLoopback"
            | "isLinkLocalMulticast"
            | "isLinkLocalUnicast"
            | "isGlobalUnicast"
            | "format.named"
            | "sign"
            | "asInteger"
            | "isInteger"
            | "asApproximateFloat"
            | "isGreaterThan"
            | "isLessThan"
            | "compareTo"
            | "add"
            | "sub"
            | "major"
            | "minor"
            | "patch"
            | "getScheme"
            | "getHostname"
            | "getHost"
            | "getPort"
            | "getEscapedPath"
            | "getQuery" => Some(Estimate::one()),
            "fieldSelector" | "labelSelector" => {
                let length = self.arg(call, 0);
                let requirements = length.factor(0.5).factor(50.0);
                Some(Estimate::of(CostEstimate::fixed(10).add(length.factor(TRAVERSAL)).add(requirements)))
            }
            "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => self.of_traversal(call),
            "cidr" | "isIP" | "isCIDR" | "quantity" | "isQuantity" | "semver" | "isSemver" => {
                walk(self.arg(call, 0), 1.0)
            }
            "ip" if call.overload == "cidr_ip" => Some(Estimate::one()),
            "ip" => walk(self.arg(call, 0), 1.0),
            "ip.isCanonical" => walk(self.arg(call, 0), 2.0),
            "containsIP" | "containsCIDR" => Some(self.of_containment(call)),
            "validate" => {
                let size = self.arg(call, 0);
                Some(Estimate::of(size.factor(TRAVERSAL).factor(128.0 * PATTERN)))
            }
            "_==_" => self.of_equality(call),
            _ => None,
        }
    }

    fn of_traversal(&mut self, call: &CallSite<'_>) -> Option<Estimate> {
        let target = call.target?;
        let size = self.size_or_unknown(target);
        let Some((item, ty)) = self.item(target) else { return Some(Estimate::of(size.factor(TRAVERSAL))) };
        let mut each = CostEstimate::fixed(1);
        if matches!(ty, Type::String | Type::Bytes) {
            each = each.add(item.factor(TRAVERSAL));
        }
        Some(Estimate::of(size.times(each)))
    }

    fn of_containment(&mut self, call: &CallSite<'_>) -> Estimate {
        // An address has 4 or 16 bytes.
        let address = Size { min: 4, max: 16 };
        let mut cost = address.add(address).factor(TRAVERSAL);
        if call.function == "containsCIDR" {
            cost = cost.add(address.factor(TRAVERSAL)).add(CostEstimate::fixed(1));
        }
        if call.overload.ends_with("_string") {
            cost = cost.add(self.arg(call, 0).factor(TRAVERSAL));
        }
        Estimate::of(cost)
    }

    fn of_equality(&mut self, call: &CallSite<'_>) -> Option<Estimate> {
        let (a, b) = (self.checked.ty(call.args[0]), self.checked.ty(call.args[1]));
        if a != b {
            return None;
        }
        let name = match a {
            Type::Opaque(name) | Type::Struct(name) => name,
            _ => return None,
        };
        match &**name {
            "net.IP" | "net.CIDR" | "kubernetes.Quantity" | "kubernetes.Semver" => Some(Estimate::one()),
            name if name.starts_with("kubernetes.authorization.") => Some(Estimate::one()),
            "kubernetes.NamedFormat" => Some(Estimate::of(Size { min: 1, max: 64 }.factor(TRAVERSAL))),
            "kubernetes.URL" => {
                let size = self.size(call.args[1]).unwrap_or(Size::fixed(1));
                Some(Estimate::of(Size { min: 1, max: size.max }.factor(TRAVERSAL)))
            }
            _ => None,
        }
    }

    /// The extended library of strings, as Kubernetes counts it.
    fn of_strings(&mut self, call: &CallSite<'_>) -> Option<Estimate> {
        match call.function {
            "url" | "jsonpatch.escapeKey" => {
                let size = self.arg(call, 0);
                Some(Estimate::sized(size.factor(TRAVERSAL), size))
            }
            "lowerAscii" | "upperAscii" | "substring" | "trim" => {
                let size = self.target(call)?;
                Some(Estimate::sized(size.factor(TRAVERSAL), size))
            }
            "replace" => {
                let size = self.target(call)?;
                let (old, new) = (self.arg(call, 0), self.arg(call, 1));
                let (most, kept_most) = replacements(size.max, old.min, new.max <= old.min);
                let (least, kept_least) = replacements(size.min, old.max, old.max <= new.min);
                let count = Size { min: least, max: most };
                let result = count.multiply(new).add(Size { min: kept_least, max: kept_most });
                Some(Estimate::sized(size.factor(2.0 * TRAVERSAL), result))
            }
            "split" => {
                let size = self.target(call)?;
                let max = self.int(call, 1, size.max);
                Some(Estimate::sized(size.factor(2.0 * TRAVERSAL), Size { min: 0, max }))
            }
            "join" => {
                let target = call.target?;
                let count = self.size_or_unknown(target);
                let mut size = self.item(target).map_or(Size::fixed(0), |(item, _)| count.multiply(item));
                if !call.args.is_empty() {
                    let between = Size { min: count.min.saturating_sub(1), max: count.max.saturating_sub(1) };
                    size = size.add(self.arg(call, 0).multiply(between));
                }
                Some(Estimate::sized(size.factor(TRAVERSAL), size))
            }
            "find" | "findAll" => {
                let size = self.target(call)?;
                let text = size.add(Size::fixed(1)).factor(TRAVERSAL);
                let cost = text.multiply(self.arg(call, 0).factor(PATTERN));
                Some(Estimate::sized(cost, Size { min: 0, max: size.max }))
            }
            _ => None,
        }
    }

    /// The language's own functions.
    fn of_language(&mut self, call: &CallSite<'_>) -> Estimate {
        match call.overload {
            "string_format" => {
                let size = self.target(call).unwrap_or(Size::UNKNOWN);
                Estimate::of(size.factor(TRAVERSAL))
            }
            "string_to_bytes" | "bytes_to_string" | "strings_quote" => {
                let size = self.arg(call, 0);
                let result = match call.overload {
                    "string_to_bytes" => Size { min: size.min, max: size.max.saturating_mul(4) },
                    "bytes_to_string" => Size { min: size.min / 4, max: size.max },
                    _ => size.add(size).add(Size::fixed(2)),
                };
                let result =
                    if call.overload == "strings_quote" { Size { min: size.min + 2, ..result } } else { result };
                Estimate::sized(size.factor(TRAVERSAL), result)
            }
            "starts_with_string" | "ends_with_string" => Estimate::of(self.arg(call, 0).factor(TRAVERSAL)),
            "in_list" => Estimate::of(self.arg(call, 1).factor(1.0)),
            "matches_string" => {
                let text = self.target(call).unwrap_or(Size::UNKNOWN).add(Size::fixed(1)).factor(TRAVERSAL);
                Estimate::of(text.multiply(self.arg(call, 0).factor(PATTERN)))
            }
            "contains_string" => {
                let text = self.target(call).unwrap_or(Size::UNKNOWN).factor(TRAVERSAL);
                Estimate::of(text.multiply(self.arg(call, 0).factor(TRAVERSAL)))
            }
            "logical_or" | "logical_and" => {
                let (a, b) = (call.costs[0], call.costs[1]);
                let cost = CostEstimate { min: a.min, max: a.add(b).max };
                Estimate { cost, size: None, whole: true }
            }
            "conditional" => self.of_conditional(call),
            "add_string" | "add_bytes" | "add_list" => self.of_addition(call),
            id if matches!(id, "equals" | "not_equals") || is_text_order(id) => {
                let most = self.arg(call, 0).max.min(self.arg(call, 1).max);
                let size = Size { min: u64::from(most > 0), max: most };
                Estimate::of(size.factor(TRAVERSAL))
            }
            _ => Estimate::one(),
        }
    }

    fn of_conditional(&mut self, call: &CallSite<'_>) -> Estimate {
        let size = self.arg(call, 1).union(self.arg(call, 2));
        self.join_entries(call.id, call.args[1], call.args[2]);
        let cost = call.costs[0].add(call.costs[1].union(call.costs[2]));
        Estimate { cost, size: Some(size), whole: true }
    }

    fn of_addition(&mut self, call: &CallSite<'_>) -> Estimate {
        let size = self.arg(call, 0).add(self.arg(call, 1));
        self.join_entries(call.id, call.args[0], call.args[1]);
        match call.overload {
            "add_list" => Estimate::sized(CostEstimate::fixed(1), size),
            _ => Estimate::sized(size.factor(TRAVERSAL), size),
        }
    }

    /// Records the union of two collections' entry sizes.
    fn join_entries(&mut self, id: Id, a: Id, b: Id) {
        if let (Some(a), Some(b)) = (self.entry_size(a), self.entry_size(b)) {
            let joined = super::EntrySize { list: a.list, key: a.key.union(b.key), value: a.value.union(b.value) };
            self.entries.insert(id, joined);
        }
    }
}

fn is_text_order(id: &str) -> bool {
    let order = ["less_", "greater_"].iter().any(|order| id.starts_with(order));
    order && (id.ends_with("_string") || id.ends_with("_bytes"))
}

/// The number of replacements, and how much of the original text remains.
fn replacements(size: u64, old: u64, stays: bool) -> (u64, u64) {
    if old == 0 {
        (size.saturating_add(1), size)
    } else if stays {
        (0, size)
    } else {
        ((size as f64 / old as f64).ceil() as u64, 0)
    }
}

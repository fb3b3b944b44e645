//! Parses `(ARG, …)` by the function's types. `wasm-wave` parses the text into nodes, within its own bound on nesting;
//! this module converts them to values, with the same errors as for JSON.

use std::str::FromStr;

use wasm_wave::ast::Node;
use wasm_wave::untyped::UntypedFuncCall;
use wasmtime::component::Val;

use super::super::budget::{Budget, TooMuch};
use super::super::error_path::{ErrorPath, PathSegment, shortened};
use super::super::maps;
use super::super::types::{Description, Function, Labels, Shape, TypeId};

/// Parses the arguments of a call; an empty body has none, and trailing options may be left out.
///
/// # Errors
/// A sentence for the client that names the argument and its type.
pub(crate) fn arguments(
    description: &Description,
    function: &Function,
    body: &[u8],
    budget: &Budget,
) -> Result<Vec<Val>, String> {
    let text = std::str::from_utf8(body).map_err(|error| format!("the body is not UTF-8: {error}"))?.trim();
    if !text.is_empty() && !text.starts_with('(') {
        return Err("the body is not WAVE: wanted the arguments in parentheses, such as (\"a\", 1)".into());
    }
    // The parser requires a function's name and doesn't accept all of WIT's (`[method]cart.add`).
    let call = format!("f{}", if text.is_empty() { "()" } else { text });
    let call = UntypedFuncCall::parse(&call).map_err(|error| format!("the body is not WAVE: {error}"))?;
    let reader = Reader { description, budget, source: call.source(), place: ErrorPath::default() };
    let nodes: Vec<&Node> = match call.params_node() {
        Some(node) => node.as_tuple().map_err(|error| format!("the body is not WAVE: {error}"))?.collect(),
        None => Vec::new(),
    };
    let names = function.parameters.names();
    if nodes.len() > names.len() {
        let s = if names.len() == 1 { "" } else { "s" };
        return Err(format!("{} has {} argument{s}, not {}", function.name, names.len(), nodes.len()));
    }
    budget.values(names.len()).map_err(|error| error.to_string())?;
    let read = names.iter().zip(&function.parameter_types).enumerate().map(|(at, (name, ty))| {
        let value = match nodes.get(at) {
            Some(node) => reader.value(node, *ty),
            None if matches!(description.shape(*ty), Shape::Option(_)) => Ok(Val::Option(None)),
            None => Err(format!("it is missing, wanted {}", description.name(*ty))),
        };
        value.inspect_err(|_| reader.place.within(PathSegment::Argument(name.clone())))
    });
    read.collect::<Result<_, String>>().map_err(|why| reader.place.message(&why))
}

struct Reader<'a> {
    description: &'a Description,
    budget: &'a Budget,
    source: &'a str,
    place: ErrorPath,
}

impl Reader<'_> {
    fn value(&self, node: &Node, ty: TypeId) -> Result<Val, String> {
        Ok(match self.description.shape(ty) {
            Shape::Bool => Val::Bool(node.as_bool().map_err(|_| self.type_mismatch(node, ty))?),
            Shape::S8 => Val::S8(self.number(node, ty)?),
            Shape::U8 => Val::U8(self.number(node, ty)?),
            Shape::S16 => Val::S16(self.number(node, ty)?),
            Shape::U16 => Val::U16(self.number(node, ty)?),
            Shape::S32 => Val::S32(self.number(node, ty)?),
            Shape::U32 => Val::U32(self.number(node, ty)?),
            Shape::S64 => Val::S64(self.number(node, ty)?),
            Shape::U64 => Val::U64(self.number(node, ty)?),
            Shape::F32 => Val::Float32(self.finite(node, ty, f32::is_infinite)?),
            Shape::F64 => Val::Float64(self.finite(node, ty, f64::is_infinite)?),
            Shape::Char => Val::Char(node.as_char(self.source).map_err(|_| self.type_mismatch(node, ty))?),
            Shape::String | Shape::Own(_) | Shape::Borrow(_) => {
                let text = node.as_str(self.source).map_err(|_| self.type_mismatch(node, ty))?;
                Val::String(self.text(&text)?)
            }
            Shape::List(of) => {
                let nodes = node.as_list().map_err(|_| self.type_mismatch(node, ty))?;
                self.budget.values(nodes.len()).map_err(over_budget)?;
                let each = nodes.enumerate().map(|(at, node)| self.within(PathSegment::Index(at), node, *of));
                Val::List(each.collect::<Result<_, String>>()?)
            }
            Shape::Map(key, value) => self.map(node, ty, (*key, *value))?,
            Shape::Tuple(of) => {
                let nodes = node.as_tuple().map_err(|_| self.type_mismatch(node, ty))?;
                if nodes.len() != of.len() {
                    return Err(self.type_mismatch(node, ty));
                }
                self.budget.values(of.len()).map_err(over_budget)?;
                let each =
                    nodes.zip(of).enumerate().map(|(at, (node, ty))| self.within(PathSegment::Index(at), node, *ty));
                Val::Tuple(each.collect::<Result<_, String>>()?)
            }
            Shape::Record(labels, types) => self.record(node, ty, labels, types)?,
            Shape::Variant(labels, types) => {
                let (name, payload) = node.as_variant(self.source).map_err(|_| self.type_mismatch(node, ty))?;
                let at = self.label(labels, name, ty)?;
                let payload = self.payload(name, payload, types[at])?;
                Val::Variant(self.text(name)?, payload)
            }
            Shape::Enum(labels) => {
                let name = node.as_enum(self.source).map_err(|_| self.type_mismatch(node, ty))?;
                self.label(labels, name, ty)?;
                Val::Enum(self.text(name)?)
            }
            Shape::Option(of) => self.option(node, ty, *of)?,
            Shape::Result(ok, err) => self.result(node, ty, *ok, *err)?,
            Shape::Flags(labels) => self.flags(node, ty, labels)?,
        })
    }

    /// WAVE has no form for maps: a list of pairs.
    fn map(&self, node: &Node, ty: TypeId, (key, value): (TypeId, TypeId)) -> Result<Val, String> {
        let nodes = node.as_list().map_err(|_| self.type_mismatch(node, ty))?;
        self.budget.values(nodes.len().saturating_mul(2)).map_err(over_budget)?;
        let pair = |node: &Node| {
            let mut parts = node.as_tuple().map_err(|_| self.type_mismatch(node, ty))?;
            match (parts.next(), parts.next(), parts.next()) {
                (Some(first), Some(second), None) => {
                    let key = self.value(first, key)?;
                    let value = self.value(second, value);
                    let value = value.inspect_err(|_| self.place.within(PathSegment::Key(maps::display_key(&key))))?;
                    Ok((key, value))
                }
                _ => Err(self.type_mismatch(node, ty)),
            }
        };
        let pairs: Vec<(Val, Val)> = nodes.map(pair).collect::<Result<_, String>>()?;
        match maps::first_duplicate(&pairs) {
            Some(key) => Err(format!("the key {:?} is given twice", shortened(&maps::display_key(key)))),
            None => Ok(Val::Map(pairs)),
        }
    }

    fn within(&self, step: PathSegment, node: &Node, ty: TypeId) -> Result<Val, String> {
        self.value(node, ty).inspect_err(|_| self.place.within(step))
    }

    fn text(&self, text: &str) -> Result<String, String> {
        self.budget.text(text).map_err(over_budget)?;
        Ok(text.to_owned())
    }

    fn type_mismatch(&self, node: &Node, ty: TypeId) -> String {
        let found = self.source.get(node.span()).unwrap_or_default();
        format!("wanted {}, found {}", self.description.name(ty), shortened(found))
    }

    fn number<T: FromStr>(&self, node: &Node, ty: TypeId) -> Result<T, String> {
        node.as_number(self.source).map_err(|_| self.type_mismatch(node, ty))
    }

    /// A number that doesn't overflow to infinity.
    fn finite<T: FromStr + Copy>(&self, node: &Node, ty: TypeId, is_infinite: fn(T) -> bool) -> Result<T, String> {
        let value = self.number(node, ty)?;
        let digits = self.source.get(node.span()).is_some_and(|text| text.contains(|c: char| c.is_ascii_digit()));
        if digits && is_infinite(value) {
            let range = self.description.shape(ty).word();
            return Err(format!("{} is out of the range of {range}", shortened(&self.source[node.span()])));
        }
        Ok(value)
    }

    fn label(&self, labels: &Labels, name: &str, ty: TypeId) -> Result<usize, String> {
        let wanted = || self.description.name(ty);
        let unknown = || format!("{} has no {:?}; it has {}", wanted(), shortened(name), labels.listed());
        labels.find(name).ok_or_else(unknown)
    }

    fn payload(&self, name: &str, node: Option<&Node>, ty: Option<TypeId>) -> Result<Option<Box<Val>>, String> {
        match (node, ty) {
            (Some(node), Some(ty)) => {
                self.budget.values(1).map_err(over_budget)?;
                Ok(Some(Box::new(self.within(PathSegment::Label(name.to_owned()), node, ty)?)))
            }
            (None, None) => Ok(None),
            (Some(_), None) => Err(format!("{name} has no payload")),
            (None, Some(ty)) => Err(format!("{name} has a payload, wanted {}", self.description.name(ty))),
        }
    }

    fn record(&self, node: &Node, ty: TypeId, labels: &Labels, types: &[TypeId]) -> Result<Val, String> {
        let given = node.as_record(self.source).map_err(|_| self.type_mismatch(node, ty))?;
        self.budget.values(2 * labels.names().len()).map_err(over_budget)?;
        let mut nodes: Vec<Option<&Node>> = vec![None; labels.names().len()];
        for (name, node) in given {
            // The parser rejects duplicate fields.
            nodes[self.label(labels, name, ty)?] = Some(node);
        }
        let fields = labels.names().iter().zip(types).zip(nodes).map(|((name, ty), node)| {
            let value = match node {
                Some(node) => self.within(PathSegment::Label(name.clone()), node, *ty)?,
                None if matches!(self.description.shape(*ty), Shape::Option(_)) => Val::Option(None),
                None => {
                    self.place.within(PathSegment::Label(name.clone()));
                    return Err(format!("it is missing, wanted {}", self.description.name(*ty)));
                }
            };
            Ok((self.text(name)?, value))
        });
        Ok(Val::Record(fields.collect::<Result<_, String>>()?))
    }

    fn option(&self, node: &Node, ty: TypeId, of: TypeId) -> Result<Val, String> {
        let value = match node.as_option() {
            Ok(Some(node)) => Some(node),
            Ok(None) => None,
            // `some` may be left out where it is unambiguous.
            Err(_) if !matches!(self.description.shape(of), Shape::Option(_) | Shape::Result(..)) => Some(node),
            Err(_) => return Err(self.type_mismatch(node, ty)),
        };
        let Some(node) = value else { return Ok(Val::Option(None)) };
        self.budget.values(1).map_err(over_budget)?;
        Ok(Val::Option(Some(Box::new(self.value(node, of)?))))
    }

    fn result(&self, node: &Node, ty: TypeId, ok: Option<TypeId>, err: Option<TypeId>) -> Result<Val, String> {
        match (node.as_result(), ok) {
            (Ok(Ok(node)), _) => Ok(Val::Result(Ok(self.payload("ok", node, ok)?))),
            (Ok(Err(node)), _) => Ok(Val::Result(Err(self.payload("err", node, err)?))),
            (Err(_), Some(of)) if !matches!(self.description.shape(of), Shape::Option(_) | Shape::Result(..)) => {
                Ok(Val::Result(Ok(self.payload("ok", Some(node), ok)?)))
            }
            (Err(_), _) => Err(self.type_mismatch(node, ty)),
        }
    }

    fn flags(&self, node: &Node, ty: TypeId, labels: &Labels) -> Result<Val, String> {
        let mut set = vec![false; labels.names().len()];
        for name in node.as_flags(self.source).map_err(|_| self.type_mismatch(node, ty))? {
            // The parser rejects duplicate flags.
            set[self.label(labels, name.trim_start_matches('%'), ty)?] = true;
        }
        let names = labels.names().iter().zip(set).filter(|(_, set)| *set);
        let kept = names.map(|(name, _)| {
            self.budget.values(1).map_err(over_budget)?;
            self.text(name)
        });
        Ok(Val::Flags(kept.collect::<Result<_, String>>()?))
    }
}

fn over_budget(error: TooMuch) -> String {
    error.to_string()
}

//! Checks constants at compile time: literal arguments, homogeneous literals and `format` templates.

use super::{CheckedTree, Reference};
use crate::library::{Piece, compile_pattern, format_type_error, pieces};
use crate::syntax::{Id, Issues, Kind, Literal, Source};
use crate::types::Type;
use crate::value::{Timestamp, parse_duration, parse_timestamp};

pub(super) fn validate(checked: &CheckedTree, source: &Source, issues: &mut Issues) {
    let exempt = format_arguments(checked);
    for id in 0..checked.tree.nodes.len() as Id {
        let node = checked.tree.get(id);
        match &node.kind {
            Kind::Call { .. } => {
                literal_argument(checked, id, source, issues);
                template(checked, id, source, issues);
            }
            Kind::List { items, optional } if !exempt[id as usize] => {
                let types = items.iter().zip(optional).map(|(id, optional)| (*id, element(checked, *id, *optional)));
                homogeneous(checked, types, true, source, issues);
            }
            Kind::Map(entries) if !exempt[id as usize] => {
                let keys = entries.iter().map(|entry| (entry.key, checked.ty(entry.key)));
                homogeneous(checked, keys, false, source, issues);
                let values = entries.iter().map(|e| (e.value, element(checked, e.value, e.optional)));
                homogeneous(checked, values, false, source, issues);
            }
            _ => {}
        }
    }
}

fn element(checked: &CheckedTree, id: Id, optional: bool) -> &Type {
    match checked.ty(id) {
        Type::Optional(inner) if optional => inner,
        ty => ty,
    }
}

/// Marks literals within the arguments of `format`, which may be heterogeneous.
fn format_arguments(checked: &CheckedTree) -> Vec<bool> {
    let count = checked.tree.nodes.len();
    let mut exempt = vec![false; count];
    // Parents come after their children.
    for id in (0..count as Id).rev() {
        let formats = matches!(checked.reference(id), Reference::Function { name, .. } if &**name == "format");
        if formats || exempt[id as usize] {
            checked.tree.get(id).kind.children(|child| exempt[child as usize] = true);
        }
    }
    exempt
}

fn homogeneous<'c>(
    checked: &CheckedTree,
    types: impl Iterator<Item = (Id, &'c Type)>,
    once: bool,
    source: &Source,
    issues: &mut Issues,
) {
    let mut first: Option<&Type> = None;
    for (id, ty) in types {
        match first {
            None => first = Some(ty),
            Some(first) if equivalent(first, ty) => {}
            Some(first) => {
                let message = format!("expected type '{first}' but found '{ty}'");
                issues.report(source, checked.tree.get(id).at, message);
                if once {
                    return;
                }
            }
        }
    }
}

fn equivalent(a: &Type, b: &Type) -> bool {
    match (a, b) {
        (Type::List(a), Type::List(b)) | (Type::Optional(a), Type::Optional(b)) => equivalent(a, b),
        (Type::Map(a), Type::Map(b)) => equivalent(&a.0, &b.0) && equivalent(&a.1, &b.1),
        (Type::Type(_), Type::Type(_)) => true,
        (a, b) => a == b,
    }
}

fn literal_argument(checked: &CheckedTree, id: Id, source: &Source, issues: &mut Issues) {
    let Reference::Function { name, .. } = checked.reference(id) else { return };
    let Kind::Call { args, .. } = &checked.tree.get(id).kind else { return };
    let Some((arg, Kind::Literal(literal))) = args.first().map(|arg| (*arg, &checked.tree.get(*arg).kind)) else {
        return;
    };
    let valid = match (&**name, literal) {
        ("duration", Literal::String(text)) => parse_duration(text).is_some(),
        ("timestamp", Literal::String(text)) => parse_timestamp(text).is_some(),
        ("timestamp", Literal::Int(seconds)) => Timestamp::new(*seconds, 0).is_some(),
        ("matches", Literal::String(pattern)) => compile_pattern(pattern).is_ok(),
        _ => true,
    };
    if !valid {
        issues.report(source, checked.tree.get(arg).at, format!("invalid {name} argument"));
    }
}

/// Checks a literal `format` template against a literal argument list.
fn template(checked: &CheckedTree, id: Id, source: &Source, issues: &mut Issues) {
    let Kind::Call { function, target: Some(target), args } = &checked.tree.get(id).kind else { return };
    let (Kind::Literal(Literal::String(text)), [list]) = (&checked.tree.get(*target).kind, &**args) else { return };
    let Kind::List { items, .. } = &checked.tree.get(*list).kind else { return };
    if &**function != "format" {
        return;
    }
    let mut report = |id: Id, message: String| issues.report(source, checked.tree.get(id).at, message);
    let mut used = 0;
    for piece in pieces(text) {
        let Piece::Argument(clause) = piece else { continue };
        let (clause, item) = match (clause, items.get(used)) {
            (Ok(clause), Some(item)) => (clause, *item),
            (Err(what), Some(_)) => return report(id, what),
            // Upstream checks for the end of the template before the argument's presence.
            (Err(what), None) if what.starts_with("unexpected end") => return report(id, what),
            (_, None) => return report(id, format!("index {used} out of range")),
        };
        used += 1;
        if let Some(wrong) = find_unformattable(checked, clause.verb, item) {
            return report(wrong, format_type_error(clause.verb, &type_name(checked.ty(wrong))));
        }
    }
    if items.len() > used {
        let what = format!("too many arguments supplied to string.format (expected {used}, got {})", items.len());
        report(id, what);
    }
}

/// The first part of an argument that the clause doesn't accept.
fn find_unformattable(checked: &CheckedTree, verb: char, id: Id) -> Option<Id> {
    let ty = checked.ty(id);
    let fits = match (verb, ty) {
        (_, Type::Dyn) | ('d' | 'o' | 'b' | 'x' | 'X', Type::Int | Type::Uint) => true,
        ('f' | 'e', Type::Double | Type::String) | ('b', Type::Bool) | ('x' | 'X', Type::String | Type::Bytes) => true,
        ('s', ty) => {
            !matches!(ty, Type::Optional(_) | Type::Opaque(_) | Type::Struct(_) | Type::Error | Type::Param(_))
        }
        _ => false,
    };
    if !fits {
        return Some(id);
    }
    match &checked.tree.get(id).kind {
        Kind::List { items, .. } if verb == 's' => {
            items.iter().find_map(|item| find_unformattable(checked, verb, *item))
        }
        Kind::Map(entries) if verb == 's' => entries.iter().find_map(|entry| {
            find_unformattable(checked, verb, entry.key).or_else(|| find_unformattable(checked, verb, entry.value))
        }),
        _ => None,
    }
}

/// A type's name without its parameters.
fn type_name(ty: &Type) -> String {
    match ty {
        Type::Null => "null_type".into(),
        Type::Duration => "google.protobuf.Duration".into(),
        Type::Timestamp => "google.protobuf.Timestamp".into(),
        Type::List(_) => "list".into(),
        Type::Map(_) => "map".into(),
        Type::Optional(_) => "optional_type".into(),
        Type::Type(_) => "type".into(),
        other => other.to_string(),
    }
}

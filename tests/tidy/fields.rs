//! Fields of objects are read and written by name in `apiserver/resources`. Each quoted name is a field of a Kubernetes
//! type (`apiserver/schema/src/types.txt`), so that a misspelt one fails here and isn't read as an absent field.

use std::collections::{BTreeMap, BTreeSet};

use super::lexer::{TokenKind, tokens};
use super::shipped::shipped_files;
use super::{check, read};

const FOLDER: &str = "apiserver/resources/src/";
const TYPES: &str = "apiserver/schema/src/types.txt";

/// Functions of `apiserver/resources/src/read.rs` whose second argument names a field.
const FUNCTIONS: &[&str] = &[
    "at",
    "default_to",
    "default_zero_to",
    "entries",
    "flag",
    "get",
    "has",
    "int",
    "items",
    "items_mut",
    "object_mut",
    "put",
    "remove",
    "text",
    "texts",
];

/// Functions of `apiserver/resources/src/choices.rs`: the third argument names a field, the fourth lists its values.
const CHOICES: &[&str] = &["choice", "optional_choice", "present_choice", "required_choice"];

/// Methods of maps and of error paths whose first argument names a field.
const METHODS: &[&str] = &["child", "contains_key", "get", "get_mut", "remove"];

/// Names that are no field of a served type: the file, the name, and what it is.
const OTHERS: &[(&str, &str, &str)] = &[
    ("apiextensions/validate/mod.rs", "validation", "a field of v1beta1 in upstream's error"),
    ("apiextensions/validate/parts.rs", "JSONPath", "upstream's spelling in an error"),
    ("apiextensions/validate/parts.rs", "webhookClientConfig", "a field of v1beta1 in upstream's error"),
    ("apps/statefulsets.rs", "Spec", "upstream's spelling in an error"),
    ("autoscaling/conversion.rs", "metricName", "a field of autoscaling/v2beta1"),
    ("autoscaling/conversion.rs", "targetAverageUtilization", "a field of autoscaling/v2beta1"),
    ("autoscaling/conversion.rs", "targetValue", "a field of autoscaling/v2beta1"),
    ("core/persistentvolumes.rs", "persistentvolumesource", "upstream's path in an error"),
    ("core/persistentvolumes.rs", "targetportal", "upstream's path in an error"),
    ("core/pods/disks.rs", "initiatorname", "upstream's spelling in an error"),
    ("core/pods/resources.rs", "cpu", "a resource's name"),
    ("core/pods/resources.rs", "memory", "a resource's name"),
    ("core/pods/update.rs", "Type", "upstream's spelling in an error"),
    ("core/services/validate.rs", "LoadBalancerSourceRanges", "upstream's spelling in an error"),
    ("metadata.rs", "annotation", "upstream's path in an error"),
    ("options.rs", "force", "a parameter of the query"),
];

/// The fewest names that are found: a scan that finds none proves nothing.
const FOUND_MIN: usize = 3000;

/// The call around an offset: its name, whether it is a method, and the index of the argument.
fn enclosing_call(before: &str) -> Option<(&str, bool, usize)> {
    let (mut depth, mut argument, mut in_list) = (0usize, 0, false);
    for (at, c) in before.char_indices().rev() {
        match c {
            ')' | ']' | '}' => depth += 1,
            '(' | '[' | '{' if depth > 0 => depth -= 1,
            '[' if before[..at].ends_with('&') && !in_list => (in_list, argument) = (true, 0),
            '(' => {
                let head = &before[..at];
                let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let name = &head[head.trim_end_matches(word).len()..];
                return Some((name, head[..head.len() - name.len()].ends_with('.'), argument));
            }
            '[' | '{' | ';' => return None,
            ',' if depth == 0 => argument += 1,
            _ => {}
        }
    }
    None
}

/// Whether the literal after this text names a field.
fn names_a_field(before: &str) -> bool {
    let trimmed = before.trim_end();
    let indexable = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ')' | ']');
    if trimmed.strip_suffix('[').is_some_and(|indexed| indexed.ends_with(indexable)) {
        return true;
    }
    match enclosing_call(trimmed) {
        Some((name, true, 0)) => METHODS.contains(&name),
        Some((name, false, 1)) => FUNCTIONS.contains(&name),
        Some((name, false, 2)) => CHOICES.contains(&name),
        _ => false,
    }
}

#[test]
fn quoted_fields_exist() {
    let types = read(TYPES);
    let fields: BTreeSet<&str> =
        types.lines().filter_map(|line| line.strip_prefix("F\t")?.split('\t').next()).collect();
    let (mut problems, mut found, mut used) = (Vec::new(), 0, BTreeSet::new());
    for (path, text) in shipped_files() {
        let Some(file) = path.strip_prefix(FOLDER) else { continue };
        for token in tokens(text).into_iter().filter(|token| token.kind == TokenKind::Literal) {
            let literal = token.text;
            let is_name = !literal.is_empty() && literal.chars().all(|c| c.is_ascii_alphanumeric() || c == '.');
            if !is_name || !names_a_field(&text[..token.begin]) {
                continue;
            }
            found += 1;
            for name in literal.split('.').filter(|name| !fields.contains(name)) {
                match OTHERS.iter().find(|(in_file, other, _)| (*in_file, *other) == (file, name)) {
                    Some(other) => drop(used.insert(other)),
                    None => problems.push(format!("{path}: {name:?} is no field of a type in {TYPES}")),
                }
            }
        }
    }
    problems.extend(OTHERS.iter().filter(|other| !used.contains(other)).map(|other| format!("unused: {other:?}")));
    assert!(found >= FOUND_MIN, "{found} names are found");
    check(&problems);
}

/// The values that a field of each name has in a type, for those that list them (column `E`).
fn values_by_field(types: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut values: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in types.lines().filter_map(|line| line.strip_prefix("F\t")) {
        let mut columns = line.split('\t');
        let Some(name) = columns.next() else { continue };
        if let Some(listed) = columns.find_map(|column| column.strip_prefix('E')) {
            values.entry(name).or_default().extend(listed.split('|'));
        }
    }
    values
}

/// The quoted values of each quoted field that a file checks by a function of `choices.rs`.
fn listed_values(text: &str) -> Vec<(&str, &str)> {
    let (mut found, mut field) = (Vec::new(), "");
    for token in tokens(text).into_iter().filter(|token| token.kind == TokenKind::Literal) {
        match enclosing_call(text[..token.begin].trim_end()) {
            Some((name, false, 2)) if CHOICES.contains(&name) => field = token.text,
            Some((name, false, 3)) if CHOICES.contains(&name) && !field.is_empty() => found.push((field, token.text)),
            _ => field = "",
        }
    }
    found
}

/// Fields whose type lists no values, while a field of that name does in another type.
const UNLISTED: &[(&str, &str)] = &[("autoscaling/validate.rs", "type"), ("core/pods/containers.rs", "action")];

/// The fewest values that are compared.
const VALUES_MIN: usize = 40;

#[test]
fn quoted_values_are_those_of_their_field() {
    let types = read(TYPES);
    let values = values_by_field(&types);
    let (mut problems, mut compared) = (Vec::new(), 0);
    for (path, text) in shipped_files().iter().filter(|(path, _)| path.starts_with(FOLDER)) {
        for (field, value) in listed_values(text) {
            let Some(known) = values.get(field) else { continue };
            if UNLISTED.contains(&(&path[FOLDER.len()..], field)) {
                continue;
            }
            compared += 1;
            if !known.contains(value) {
                problems.push(format!("{path}: {value:?} is no value of {field:?} in {TYPES}"));
            }
        }
    }
    assert!(compared >= VALUES_MIN, "{compared} values are compared");
    check(&problems);
}

#[test]
fn values_of_a_field_are_recognized() {
    let text = r#"choice(errors, get(spec, "a"), "type", &["A", "B"], &at.child("c")); text(spec, "d");
        optional_choice(errors, spec, key, &["C"], path); required_choice(errors, spec, "e", LIST, path);"#;
    assert_eq!(listed_values(text), [("type", "A"), ("type", "B")]);
    assert!(names_a_field("required_choice(errors, spec(pod), ") && !names_a_field("choice(errors, "));
    let types = "F\ttype\ts\t1\tr\tEA|B\nF\tname\ts\nF\ttype\ts\tEC\n";
    assert_eq!(values_by_field(types), BTreeMap::from([("type", BTreeSet::from(["A", "B", "C"]))]));
}

#[test]
fn names_of_fields_are_recognized() {
    for before in
        ["pod[", "spec(pod)[", "get(pod, ", "text(get(a, b), ", "path.child(", "at(pod, &[", "at(pod, &[\"a\", "]
    {
        assert!(names_a_field(before) || before.ends_with("\"a\", "), "{before}");
    }
    for before in ["let a = [", "get(", "default_to(pod, \"a\", ", "format!(", "names.push(", "&["] {
        assert!(!names_a_field(before), "{before}");
    }
}

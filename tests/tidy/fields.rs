//! Fields of objects are read and written by name in `apiserver/resources`. Each quoted name is a field of a Kubernetes
//! type (`machinery/api/src/schema/types.txt`), so that a misspelt one fails here and isn't read as an absent field.

use std::collections::BTreeSet;

use super::{all_rust_files, check, code, read};

const FOLDER: &str = "apiserver/resources/src/";
const TYPES: &str = "machinery/api/src/schema/types.txt";

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

/// The string literals of a text without raw strings: the offset of the quote, and the content.
fn literals(text: &str) -> Vec<(usize, &str)> {
    let mut all = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            // A character, not a lifetime.
            b'\'' if bytes.get(at + 1) == Some(&b'\\') => at += 4,
            b'\'' if bytes.get(at + 2) == Some(&b'\'') => at += 3,
            b'r' if text[at..].starts_with("r#\"") => {
                at += text[at..].find("\"#").map_or(text.len(), |length| length + 2);
            }
            b'"' => {
                let begin = at + 1;
                at = begin;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                all.push((begin - 1, text.get(begin..at).unwrap_or_default()));
                at += 1;
            }
            _ => at += 1,
        }
    }
    all
}

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
        _ => false,
    }
}

#[test]
fn quoted_fields_exist() {
    let types = read(TYPES);
    let fields: BTreeSet<&str> =
        types.lines().filter_map(|line| line.strip_prefix("F\t")?.split('\t').next()).collect();
    let (mut problems, mut found, mut used) = (Vec::new(), 0, BTreeSet::new());
    for (path, text) in all_rust_files() {
        let Some(file) = path.strip_prefix(FOLDER).filter(|file| !file.contains("tests") && !file.contains("fuzz"))
        else {
            continue;
        };
        let production = text.split("#[cfg(test)]").next().unwrap_or_default();
        let production = code(production).collect::<Vec<_>>().join("\n");
        for (at, literal) in literals(&production) {
            let is_name = !literal.is_empty() && literal.chars().all(|c| c.is_ascii_alphanumeric() || c == '.');
            if !is_name || !names_a_field(&production[..at]) {
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
    assert_eq!(literals(r#"a('"', "b\"c", '\'', "d")"#).len(), 2);
}

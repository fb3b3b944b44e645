//! Descriptions of types and fields in OpenAPI, from this project's `descriptions.txt`: by type, or by field name if
//! the meaning is the same everywhere.

use std::collections::HashMap;
use std::sync::LazyLock;

use apiserver_schema::{Field, Type};

/// The text of the file.
pub(super) const SOURCE: &str = include_str!("descriptions.txt");

/// Abbreviations of package prefixes in the file.
const SHORT: [(&str, &str); 3] = [
    ("~", "io.k8s.api."),
    ("^", "io.k8s.apimachinery.pkg.apis.meta.v1."),
    ("%", "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1."),
];

/// The parsed file; all texts borrow from the binary.
struct Descriptions {
    /// Descriptions of fields that are the same in every type.
    general: HashMap<&'static str, &'static str>,
    /// By abbreviated type name: the type's description, and the lines of its fields.
    types: HashMap<&'static str, (&'static str, &'static str)>,
}

static DESCRIPTIONS: LazyLock<Descriptions> = LazyLock::new(|| {
    let mut parts = SOURCE.split("\n@");
    let general = rows(parts.next().unwrap_or_default()).collect();
    let mut types = HashMap::new();
    for part in parts {
        let (head, fields) = part.split_once('\n').unwrap_or((part, ""));
        let (names, sentence) = head.split_once('\t').unwrap_or((head, ""));
        types.extend(names.split(' ').map(|name| (name, (sentence, fields))));
    }
    Descriptions { general, types }
});

/// Names and their descriptions.
fn rows(lines: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    lines.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('\t'))
}

fn find(found: &Type) -> Option<(&'static str, &'static str)> {
    let short = SHORT.iter().find_map(|(mark, root)| found.name.strip_prefix(root).map(|rest| format!("{mark}{rest}")));
    DESCRIPTIONS.types.get(short.as_deref().unwrap_or(&found.name)).copied()
}

/// The description of a type.
pub(super) fn of_type(found: &Type) -> String {
    if let Some(text) = &found.description {
        return text.to_string();
    }
    if let Some((sentence, _)) = find(found) {
        return sentence.to_owned();
    }
    match found.short().strip_suffix("List") {
        Some(of) if found.field("items").is_some() => format!("A list of {of} objects."),
        _ => String::new(),
    }
}

/// The description of a field.
pub(super) fn of_field<'a>(found: &Type, field: &'a Field) -> &'a str {
    if let Some(text) = &field.description {
        return text;
    }
    let own = find(found).and_then(|(_, fields)| rows(fields).find(|(name, _)| *name == field.name));
    let general = || DESCRIPTIONS.general.get(&*field.name).copied();
    // Custom types describe their own fields, except for those that every object has.
    let is_known = || {
        find(found).is_some()
            || found.field("items").is_some()
            || ["apiVersion", "kind", "metadata"].contains(&&*field.name)
    };
    own.map(|(_, sentence)| sentence).or_else(|| general().filter(|_| is_known())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use apiserver_schema::built_in;

    #[test]
    fn every_type_and_field_is_described() {
        let mut missing = Vec::new();
        for found in built_in().own() {
            if of_type(found).is_empty() {
                missing.push(found.name.to_string());
            }
            let nameless = found.fields.iter().filter(|field| of_field(found, field).is_empty());
            missing.extend(nameless.map(|field| format!("{} {}", found.name, field.name)));
        }
        assert!(missing.is_empty(), "add to descriptions.txt: {missing:#?}");
    }

    #[test]
    fn sentences_are_whole_short_and_each_of_something() {
        let mut used = HashSet::new();
        for found in built_in().own() {
            let own: Vec<_> = find(found).map(|(_, fields)| rows(fields).collect()).unwrap_or_default();
            for (name, sentence) in &own {
                assert!(found.field(name).is_some(), "{} has no field {name}", found.name);
                assert_ne!(DESCRIPTIONS.general.get(name), Some(sentence), "{} {name}: said in general", found.name);
            }
            let rest = found.fields.iter().filter(|field| !own.iter().any(|(name, _)| *name == field.name));
            used.extend(rest.map(|field| field.name.to_string()));
            let others = found.fields.iter().map(|field| (&*field.name, of_field(found, field).to_owned()));
            for (name, sentence) in others.chain([(found.short(), of_type(found))]) {
                let letters: String = sentence.chars().filter(char::is_ascii_alphanumeric).collect();
                assert!(sentence.ends_with('.') && sentence.len() <= 160, "{} {name}: {sentence}", found.name);
                assert!(
                    letters.len() >= 10 && !letters.eq_ignore_ascii_case(name),
                    "{} {name}: {sentence}",
                    found.name
                );
                assert!(!sentence.contains("  ") && sentence.is_ascii(), "{} {name}: {sentence}", found.name);
            }
        }
        for (name, sentence) in &DESCRIPTIONS.general {
            assert!(used.contains(*name), "no field {name} needs: {sentence}");
        }
        for name in DESCRIPTIONS.types.keys() {
            let long =
                SHORT.iter().find_map(|(mark, root)| name.strip_prefix(mark).map(|rest| format!("{root}{rest}")));
            assert!(built_in().by_name(long.as_deref().unwrap_or(name)).is_some(), "no type {name}");
        }
    }

    #[test]
    fn fields_of_one_type_are_distinguished() {
        for found in built_in().own() {
            let mut seen = HashSet::new();
            for field in &found.fields {
                let sentence = of_field(found, field);
                assert!(
                    sentence.starts_with("Not allowed") || seen.insert(sentence),
                    "{} {}: {sentence}",
                    found.name,
                    field.name
                );
            }
        }
    }
}

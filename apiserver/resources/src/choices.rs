//! Fields with a closed set of values. The functions differ in what an unset value is, as upstream's checks do; the
//! errors list `known` in the given order. `path` is the path of the object, `key` its field.

use serde_json::Value;

use crate::field::{ErrorList, Path};
use crate::read::{has, text};

/// An unset or empty value is unsupported.
pub(crate) fn choice(errors: &mut ErrorList, of: &Value, key: &str, known: &[&str], path: &Path<'_>) {
    let given = text(of, key);
    if !known.contains(&given) {
        errors.not_supported(&path.child(key), given, known);
    }
}

/// An unset value is allowed, an empty one unsupported.
pub(crate) fn optional_choice(errors: &mut ErrorList, of: &Value, key: &str, known: &[&str], path: &Path<'_>) {
    if has(of, key) {
        choice(errors, of, key, known, path);
    }
}

/// An unset or empty value is missing.
pub(crate) fn required_choice(errors: &mut ErrorList, of: &Value, key: &str, known: &[&str], path: &Path<'_>) {
    match text(of, key) {
        "" => errors.required(&path.child(key), ""),
        _ => choice(errors, of, key, known, path),
    }
}

/// An unset value is missing, an empty one unsupported.
pub(crate) fn present_choice(errors: &mut ErrorList, of: &Value, key: &str, known: &[&str], path: &Path<'_>) {
    match has(of, key) {
        true => choice(errors, of, key, known, path),
        false => errors.required(&path.child(key), ""),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    type Check = fn(&mut ErrorList, &Value, &str, &[&str], &Path<'_>);

    #[test]
    fn unset_and_empty_values_are_missing_or_unsupported() {
        let (missing, empty) = ("Required value", "Unsupported value: \"\": supported values: \"B\", \"A\"");
        let rows: [(Check, &str, &str); 4] = [
            (choice, empty, empty),
            (optional_choice, "", empty),
            (required_choice, missing, missing),
            (present_choice, missing, empty),
        ];
        for (check, of_unset, of_empty) in rows {
            let other = "Unsupported value: \"C\": supported values: \"B\", \"A\"";
            let objects = [json!({}), json!({"type": ""}), json!({"type": "C"}), json!({"type": "A"})];
            for (object, expected) in objects.iter().zip([of_unset, of_empty, other, ""]) {
                let mut errors = ErrorList::new();
                check(&mut errors, object, "type", &["B", "A"], &Path::root("spec"));
                let found: Vec<String> =
                    errors.shown().iter().map(|error| format!("{}: {}", error.field, error.message)).collect();
                let expected: Vec<String> =
                    Some(expected).filter(|e| !e.is_empty()).map(|e| format!("spec.type: {e}")).into_iter().collect();
                assert_eq!(found, expected, "{object}");
            }
        }
    }
}

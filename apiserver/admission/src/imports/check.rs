//! Checks the imports of containers against a namespace's rules, as pure functions.

use machinery_api::imports::ImportRules;
use machinery_api::names::{IMPORTS, IMPORTS_OF_IMAGE};

use super::containers::Container;
use super::{ImageImports, KnownImages};

/// The maximum number of imports listed per container, and of containers listed.
const LISTED_MAX: usize = 8;
/// The maximum length of a namespace's rules in a message, in characters.
const RULES_CHARS_MAX: usize = 200;

/// The imports that an image declares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeclaredImports {
    /// In the order of the module.
    pub(super) imports: ImageImports,
    /// Rules that allow exactly these imports.
    pub(super) exactly: ImportRules,
}

impl DeclaredImports {
    /// Converts the declared imports into the rules that are written on a pod.
    ///
    /// # Errors
    /// Returns the reason why the imports cannot be written.
    pub(super) fn new(imports: ImageImports) -> Result<Self, String> {
        let exactly = ImportRules::exactly(imports.iter().map(String::as_str));
        let exactly = exactly.ok_or("it imports what no node offers: names that no list can hold, or too many")?;
        Ok(Self { imports, exactly })
    }
}

/// Describes the violations, one sentence per container. `None` means that there are none.
pub(super) fn findings(rules: &ImportRules, containers: &[Container<'_>], known: &KnownImages) -> Option<String> {
    let (mut found, mut unknown, mut more) = (Vec::new(), false, 0);
    for container in containers {
        let (name, image) = (container.name, container.image);
        let sentence = match known.get(image) {
            Some(Ok(declared)) => {
                let denied = declared.imports.iter().filter(|import| !rules.allows(import));
                let denied: Vec<&str> = denied.map(String::as_str).collect();
                if denied.is_empty() {
                    continue;
                }
                format!("container {name:?} (image {image:?}) imports {}", list(&denied))
            }
            other => {
                unknown = true;
                let why =
                    other.and_then(|known| known.as_ref().err()).map_or("no registry was queried", String::as_str);
                format!("what container {name:?} (image {image:?}) imports is not known: {why}")
            }
        };
        if found.len() < LISTED_MAX {
            found.push(sentence);
        } else {
            more += 1;
        }
    }
    if found.is_empty() {
        return None;
    }
    if more > 0 {
        found.push(format!("and {more} more containers"));
    }
    let mut text = found.join("; ");
    if unknown {
        text.push_str(&format!(
            " (push it with `coracle push` or another tool that writes component.imports in its config, or give its \
             manifest the annotation {IMPORTS_OF_IMAGE})"
        ));
    }
    Some(text)
}

/// Formats the message of a rejection or warning.
pub(super) fn sentence(verb: &str, mode: &str, rules: &ImportRules, findings: &str) -> String {
    let shown: String = rules.as_str().chars().take(RULES_CHARS_MAX).collect();
    format!("{verb} the namespace's {IMPORTS}{mode} {shown:?}: {findings}")
}

fn list(names: &[&str]) -> String {
    let shown = names.iter().take(LISTED_MAX).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(LISTED_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::containers::containers;
    use super::*;
    use serde_json::json;

    fn declared(imports: &[&str]) -> Result<DeclaredImports, String> {
        DeclaredImports::new(imports.iter().map(|import| (*import).to_owned()).collect())
    }

    #[test]
    fn each_container_is_reported_with_its_imports() {
        let spec = json!({"containers": [
            {"name": "a", "image": "net"}, {"name": "b", "image": "pure"}, {"name": "c", "image": "gone"}, {"name": "d", "image": "never"}]});
        let all: Vec<Container<'_>> = containers(&spec).collect();
        let known: KnownImages = [
            ("net".to_owned(), declared(&["wasi:io/poll@0.2.0", "wasi:sockets/tcp@0.2.0", "wasi:sockets/udp@0.2.0"])),
            ("pure".to_owned(), declared(&[])),
            ("gone".to_owned(), Err("not found".to_owned())),
        ]
        .into();
        let rules = ImportRules::parse("*,-wasi:sockets").unwrap();
        let text = findings(&rules, &all[..2], &known).unwrap();
        assert_eq!(text, "container \"a\" (image \"net\") imports wasi:sockets/tcp@0.2.0, wasi:sockets/udp@0.2.0");
        let text = sentence("violates", "enforce", &rules, &text);
        assert!(
            text.starts_with("violates the namespace's imports.coracle.dev/enforce \"*,-wasi:sockets\": cont"),
            "{text}"
        );
        let text = findings(&rules, &all[1..], &known).unwrap();
        assert!(text.starts_with("what container \"c\" (image \"gone\") imports is not known: not found; "), "{text}");
        assert!(text.contains("no registry was queried (push it with `coracle push`"), "{text}");
        assert_eq!(findings(&rules, &all[1..2], &known), None);
        assert_eq!(
            findings(&ImportRules::default(), &all[1..2], &known),
            None,
            "what imports nothing may run anywhere"
        );
    }

    #[test]
    fn messages_are_bounded_and_odd_names_are_unknown() {
        let names: Vec<String> = (0..30).map(|n| format!("a:b/c{n}")).collect();
        let one = declared(&names.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        let spec =
            json!({"containers": (0..50).map(|n| json!({"name": format!("c{n}"), "image": "i"})).collect::<Vec<_>>()});
        let all: Vec<Container<'_>> = containers(&spec).collect();
        let text = findings(&ImportRules::default(), &all, &[("i".to_owned(), Ok(one))].into()).unwrap();
        assert!(
            text.contains("and 22 more; ") && text.ends_with("and 42 more containers") && text.len() < 2000,
            "{text}"
        );
        assert!(declared(&["a,b"]).unwrap_err().contains("no list can hold"));
    }
}

//! The name of a project, and the names made of it for each language. Pure.

use crate::rust_keywords::RUST_KEYWORDS;

/// Maximum length of a DNS label (RFC 1123).
const LABEL_CHARS_MAX: usize = 63;
/// Names beside the keywords that Rust's tools reject for a package or a crate: crates of the standard library, folders of cargo,
/// and the templates' dependencies.
const RUST_RESERVED: &[&str] = &[
    "alloc",
    "build",
    "core",
    "deps",
    "examples",
    "incremental",
    "proc-macro",
    "serde",
    "serde-json",
    "std",
    "test",
    "wasip2",
    "wit-bindgen",
];
/// Device names of Windows, where a file can't have them.
const DEVICES: &[&str] = &["aux", "con", "nul", "prn"];

/// A DNS label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProjectName(String);

impl ProjectName {
    /// Checks a name.
    ///
    /// # Errors
    /// A sentence with the rule that the name breaks.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let broken = if text.is_empty() {
            "it is empty"
        } else if text.len() > LABEL_CHARS_MAX {
            "it has more than 63 characters"
        } else if !text.chars().all(is_plain) {
            "it has other characters"
        } else if text.starts_with('-') || text.ends_with('-') {
            "it begins or ends with a dash"
        } else {
            return Ok(Self(text.to_owned()));
        };
        let shown: String = text.chars().take(LABEL_CHARS_MAX).collect();
        Err(format!("the name {shown:?} is not of lower-case letters, digits and dashes, as my-app: {broken}"))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of the Rust package: it begins with a letter, and is no word that cargo or rustc reserve.
    pub(super) fn rust_package(&self) -> String {
        let name = self.0.as_str();
        let is_reserved = RUST_KEYWORDS.contains(&name) || RUST_RESERVED.contains(&name) || self.is_device();
        if is_reserved || self.starts_with_digit() { format!("app-{}", self.0) } else { self.0.clone() }
    }

    /// The file name of the Rust library: a crate's name has no dashes.
    pub(super) fn rust_library(&self) -> String {
        self.rust_package().replace('-', "_")
    }

    /// The name of the WIT package: words of letters and digits, each beginning with a letter. The prefix `%` marks a keyword.
    pub(super) fn wit_package(&self) -> String {
        let mut words: Vec<String> = Vec::new();
        for word in self.0.split('-').filter(|word| !word.is_empty()) {
            match words.last_mut() {
                Some(before) if word.starts_with(|c: char| c.is_ascii_digit()) => before.push_str(word),
                None if word.starts_with(|c: char| c.is_ascii_digit()) => words.push(format!("app{word}")),
                _ => words.push(word.to_owned()),
            }
        }
        // The prefix is allowed for words that are no keywords too.
        format!("%{}", words.join("-"))
    }

    fn starts_with_digit(&self) -> bool {
        self.0.starts_with(|c: char| c.is_ascii_digit())
    }

    fn is_device(&self) -> bool {
        let numbered = ["com", "lpt"].iter().filter_map(|device| self.0.strip_prefix(device));
        let numbered = numbered.into_iter().any(|rest| rest.len() == 1 && rest.chars().all(|c| c.is_ascii_digit()));
        DEVICES.contains(&self.0.as_str()) || numbered
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dns_labels_are_names() {
        for good in ["my-app", "class", "9x", "a", "a--b", &"a".repeat(63)] {
            assert_eq!(ProjectName::parse(good).unwrap().as_str(), good);
        }
        let long = "a".repeat(64);
        for bad in ["", "../x", "/x", "a/b", "a.b", "My", "a_b", "-a", "a-", "ä", "a b", "a\n", ".", "..", "\0", &long]
        {
            let why = ProjectName::parse(bad).unwrap_err();
            assert!(why.contains("lower-case letters") && !why.contains('\n'), "{bad}: {why}");
        }
    }

    #[test]
    fn names_are_escaped_by_language() {
        for (name, package, library, wit) in [
            ("my-app", "my-app", "my_app", "%my-app"),
            ("class", "class", "class", "%class"),
            ("match", "app-match", "app_match", "%match"),
            ("test", "app-test", "app_test", "%test"),
            ("wasip2", "app-wasip2", "app_wasip2", "%wasip2"),
            ("com1", "app-com1", "app_com1", "%com1"),
            ("9x", "app-9x", "app_9x", "%app9x"),
            ("9-9", "app-9-9", "app_9_9", "%app99"),
            ("a--b", "a--b", "a__b", "%a-b"),
            ("v-2", "v-2", "v_2", "%v2"),
        ] {
            let name = ProjectName::parse(name).unwrap();
            assert_eq!((name.rust_package().as_str(), name.rust_library().as_str()), (package, library));
            assert_eq!(name.wit_package(), wit);
        }
    }
}

//! Names of WIT in the forms of other languages, unique within a scope. Pure.

use std::collections::BTreeSet;

fn words(name: &str) -> impl Iterator<Item = String> {
    name.split('-').filter(|word| !word.is_empty()).map(str::to_lowercase)
}

/// `guest_book`.
pub(super) fn snake(name: &str) -> String {
    words(name).collect::<Vec<_>>().join("_")
}

/// `GUEST_BOOK`.
pub(super) fn upper(name: &str) -> String {
    snake(name).to_uppercase()
}

/// `GuestBook`.
pub(super) fn pascal(name: &str) -> String {
    let capital = |word: String| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_uppercase().collect::<String>() + letters.as_str()).unwrap_or_default()
    };
    words(name).map(capital).collect()
}

/// `guestBook`.
pub(super) fn camel(name: &str) -> String {
    let pascal = pascal(name);
    let mut letters = pascal.chars();
    letters.next().map(|first| first.to_lowercase().collect::<String>() + letters.as_str()).unwrap_or_default()
}

/// The names of one scope. A name that is taken or reserved gets an underscore, then a number.
#[derive(Debug, Clone)]
pub(super) struct Scope(BTreeSet<String>);

impl Scope {
    pub(super) fn new(reserved: &[&str]) -> Self {
        Self(reserved.iter().map(|word| (*word).to_owned()).collect())
    }

    /// The first free form of these names.
    pub(super) fn add(&mut self, wanted: &[String]) -> String {
        let last = wanted.last().cloned().unwrap_or_default();
        let numbered = (2..).map(|number| format!("{last}_{number}"));
        let mut forms = wanted.iter().cloned().chain([format!("{last}_")]).chain(numbered);
        let free = forms.find(|form| !self.0.contains(form)).unwrap_or(last);
        self.0.insert(free.clone());
        free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_form_of_the_language() {
        let forms = |name| (snake(name), upper(name), pascal(name), camel(name));
        let expected = ("dns_error2", "DNS_ERROR2", "DnsError2", "dnsError2");
        assert_eq!(forms("DNS-error2"), (expected.0.into(), expected.1.into(), expected.2.into(), expected.3.into()));
    }

    #[test]
    fn taken_names_get_a_suffix() {
        let mut scope = Scope::new(&["class"]);
        assert_eq!(scope.add(&["class".into()]), "class_");
        assert_eq!(scope.add(&["class".into()]), "class_2");
        assert_eq!(scope.add(&["class".into(), "AClass".into()]), "AClass");
        assert_eq!(scope.add(&["a".into()]), "a");
    }
}

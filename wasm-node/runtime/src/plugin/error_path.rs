//! The path of an error within a call's arguments, collected while the error propagates. Free without an error.

use std::cell::RefCell;
use std::fmt::Write as _;

/// Maximum characters of a name in a message.
const NAME_CHARS_MAX: usize = 80;

/// One step from an argument to a value within it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PathSegment {
    Argument(String),
    /// A field, a case, `ok`, `err` or `some`.
    Label(String),
    Index(usize),
    /// Of a map.
    Key(String),
}

/// Collects path segments while an error propagates, innermost first; costs nothing without an error.
#[derive(Debug, Default)]
pub(crate) struct ErrorPath(RefCell<Vec<PathSegment>>);

impl ErrorPath {
    /// Adds the segment that an error passed.
    pub(crate) fn within(&self, step: PathSegment) {
        self.0.borrow_mut().push(step);
    }

    /// `argument "shape".points[3]: WHY`.
    pub(crate) fn message(&self, why: &str) -> String {
        let mut text = String::new();
        for step in self.0.borrow().iter().rev() {
            let _ = match step {
                PathSegment::Argument(name) => write!(text, "argument {:?}", shortened(name)),
                PathSegment::Label(name) => write!(text, ".{}", shortened(name)),
                PathSegment::Index(index) => write!(text, "[{index}]"),
                PathSegment::Key(key) => write!(text, "[{:?}]", shortened(key)),
            };
        }
        if text.is_empty() { why.to_owned() } else { format!("{text}: {why}") }
    }
}

/// A client's text, truncated for a message.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(NAME_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

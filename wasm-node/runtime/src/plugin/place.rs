//! Where in the arguments something is wrong.

use std::cell::RefCell;
use std::fmt::Write as _;

/// What a name may take of a message.
const NAME_CHARS_MAX: usize = 80;

/// One step from an argument to a value within it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Argument(String),
    /// A field, a case, `ok`, `err` or `some`.
    Label(String),
    Index(usize),
    /// Of a map.
    Key(String),
}

/// Collects steps on the way back from what is wrong, innermost first; costs nothing where all is well.
#[derive(Debug, Default)]
pub(crate) struct Place(RefCell<Vec<Step>>);

impl Place {
    /// The error came from within this step.
    pub(crate) fn within(&self, step: Step) {
        self.0.borrow_mut().push(step);
    }

    /// `argument "shape".points[3]: WHY`.
    pub(crate) fn message(&self, why: &str) -> String {
        let mut text = String::new();
        for step in self.0.borrow().iter().rev() {
            let _ = match step {
                Step::Argument(name) => write!(text, "argument {:?}", shortened(name)),
                Step::Label(name) => write!(text, ".{}", shortened(name)),
                Step::Index(index) => write!(text, "[{index}]"),
                Step::Key(key) => write!(text, "[{:?}]", shortened(key)),
            };
        }
        if text.is_empty() { why.to_owned() } else { format!("{text}: {why}") }
    }
}

/// A client's own words, as far as a message repeats them.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(NAME_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

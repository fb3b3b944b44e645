//! The text of an error with its causes.

use std::error::Error;

/// An error with its causes in one line, each once: only the last cause explains a failed connection.
#[must_use]
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_named_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("{text}")]
        struct Link {
            text: &'static str,
            source: Option<Box<Link>>,
        }
        let link = |text, source| Link { text, source };
        let last = link("refused", None);
        let middle = link("connect", Some(Box::new(last)));
        let error = link("request: connect", Some(Box::new(middle)));
        assert_eq!(with_causes(&error), "request: connect: refused");
        assert_eq!(with_causes(&link("alone", None)), "alone");
    }
}

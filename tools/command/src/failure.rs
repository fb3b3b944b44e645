//! How a verb fails, and its exit code.

use machinery_options::OptionError;

/// Failure of a verb, by exit code.
#[derive(Debug)]
pub enum Failure {
    /// Exit code 2: wrong usage.
    Usage(String),
    /// Exit code 1.
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error: anyhow::Error = error.into();
        match error.chain().find_map(|cause| cause.downcast_ref::<OptionError>()) {
            Some(wrong) => Self::Usage(wrong.to_string()),
            None => Self::Failed(error),
        }
    }
}

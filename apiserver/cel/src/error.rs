//! The errors of an evaluation, with their class: only errors of class `Value` are absorbed by `&&` and `||`; an
//! exceeded budget ends the evaluation.

use std::borrow::Cow;
use std::fmt;

/// Classes of errors. `&&` and `||` absorb only those of class `Value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    Value,
    CostLimit,
    Interrupted,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvalError {
    pub kind: ErrorKind,
    message: Cow<'static, str>,
}

impl EvalError {
    pub fn new(message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind: ErrorKind::Value, message: message.into() }
    }

    pub(crate) fn cost_limit() -> Self {
        Self { kind: ErrorKind::CostLimit, message: "operation cancelled: actual cost limit exceeded".into() }
    }

    pub(crate) fn interrupted() -> Self {
        Self { kind: ErrorKind::Interrupted, message: "operation interrupted".into() }
    }

    pub(crate) fn no_such_overload() -> Self {
        Self::new("no such overload")
    }

    pub(crate) fn no_such_key(key: &impl fmt::Display) -> Self {
        Self::new(format!("no such key: {key}"))
    }

    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for EvalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for EvalError {}

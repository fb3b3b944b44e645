//! Errors of commands, in Redis' words: clients compare them.
use alloc::borrow::Cow;

/// The text of an error reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure(pub Cow<'static, str>);

impl From<&'static str> for Failure {
    fn from(text: &'static str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

impl From<alloc::string::String> for Failure {
    fn from(text: alloc::string::String) -> Self {
        Self(Cow::Owned(text))
    }
}

impl Failure {
    pub const WRONG_TYPE: Self =
        Self(Cow::Borrowed("WRONGTYPE Operation against a key holding the wrong kind of value"));
    pub const NOT_INTEGER: Self = Self(Cow::Borrowed("ERR value is not an integer or out of range"));
    pub const SYNTAX: Self = Self(Cow::Borrowed("ERR syntax error"));
}

//! Why there is no result, told by whose doing it is.

use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;

/// A call without a result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// No address of a plugin.
    #[error("{0:?} is no address: wanted http://HOST[:PORT][/PATH]")]
    Address(String),
    /// The arguments don't fit the function, which was not called: the text names the argument and the type wanted.
    #[error("{0}")]
    Arguments(String),
    /// There is no such function.
    #[error("{0}")]
    NoFunction(String),
    /// The plugin, or its limits, ended the call; it may have done a part of its work.
    #[error("the call failed ({status}): {reason}")]
    Failed {
        /// 502, 503 or 504.
        status: StatusCode,
        /// Which.
        reason: Reason,
    },
    /// Another answer than a plugin's.
    #[error("the answer is none of a plugin: {status} {text}")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// What it begins with.
        text: String,
    },
    /// Nobody answered: the plugin was not reached, or its connection ended before an answer.
    #[error("no answer: {0}")]
    NoAnswer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The answer broke off, or is longer than any result.
    #[error("the answer broke off: {0}")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It took longer than this client waits.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The result is not what the caller takes it for.
    #[error("the result is another one than wanted: {0}")]
    Answer(String),
}

/// What ended a call, as the header `coracle-reason` says it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The plugin trapped; the backtrace is in its log.
    Trap,
    /// `limits.memory`.
    Memory,
    /// `fuel.coracle.dev/<container>`.
    Fuel,
    /// `timeout.coracle.dev/<container>`.
    Timeout,
    /// The plugin exited.
    NoResponse,
    /// A result is larger than one may be.
    ResultTooLarge,
    /// There is no room for one more session.
    Sessions,
    /// Too many calls wait already.
    Overload,
    /// Another one, or none was said.
    Other(String),
}

impl From<&str> for Reason {
    fn from(name: &str) -> Self {
        match name {
            "trap" => Self::Trap,
            "memory" => Self::Memory,
            "fuel" => Self::Fuel,
            "timeout" => Self::Timeout,
            "no-response" => Self::NoResponse,
            "result-too-large" => Self::ResultTooLarge,
            "sessions" => Self::Sessions,
            "overload" => Self::Overload,
            other => Self::Other(other.to_owned()),
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Trap => "it trapped",
            Self::Memory => "its memory was used up",
            Self::Fuel => "its fuel was used up",
            Self::Timeout => "its time was used up",
            Self::NoResponse => "it exited",
            Self::ResultTooLarge => "its result is too large",
            Self::Sessions => "no room for one more session",
            Self::Overload => "too many calls wait",
            Self::Other(reason) => reason,
        })
    }
}

/// The body of an error of the caller's.
#[derive(Deserialize)]
struct Told {
    error: String,
}

impl CallError {
    pub(crate) fn transport(error: hyper_util::client::legacy::Error) -> Self {
        Self::NoAnswer(error.into())
    }

    pub(crate) fn of(status: StatusCode, reason: Option<&str>, body: &[u8]) -> Self {
        let told = serde_json::from_slice::<Told>(body).ok().map(|told| told.error);
        match (status, told) {
            (StatusCode::NOT_FOUND, Some(text)) => Self::NoFunction(text),
            (StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE, Some(text)) => Self::Arguments(text),
            (StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT, _) => {
                Self::Failed { status, reason: reason.unwrap_or_default().into() }
            }
            (status, told) => {
                let text = told.unwrap_or_else(|| String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned());
                Self::Refused { status, text }
            }
        }
    }
}

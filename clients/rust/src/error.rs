//! Errors of calls, classified by who caused them: the caller, the plugin or the connection.

use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;

/// Why a call returned no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The address is no plugin's.
    #[error("{0:?} is not a valid address: expected http://HOST[:PORT][/PATH]")]
    Address(String),
    /// The arguments don't fit the function, which was not called: the text names the argument and its type.
    #[error("{0}")]
    Arguments(String),
    /// The function doesn't exist.
    #[error("{0}")]
    NoFunction(String),
    /// The plugin, or one of its limits, ended the call; a part of the work may be done.
    #[error("the call failed ({status}): {reason}")]
    Failed {
        /// 502, 503 or 504.
        status: StatusCode,
        /// The cause.
        reason: Reason,
    },
    /// A response that isn't a plugin's.
    #[error("the response is not from a plugin: {status} {text}")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// The beginning of its body.
        text: String,
    },
    /// No response: the plugin was not reached, or its connection ended before a response.
    #[error("no response: {0}")]
    NoAnswer(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The response was truncated, or is longer than any result.
    #[error("the response was truncated: {0}")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The call took longer than this client's timeout.
    #[error("no response within {0:?}")]
    Timeout(Duration),
    /// The result has another type than the caller expects.
    #[error("the result has an unexpected type: {0}")]
    Answer(String),
}

/// The cause of a failed call, from the header `coracle-reason`.
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
    /// The result exceeds the maximum size.
    ResultTooLarge,
    /// The maximum number of sessions is reached.
    Sessions,
    /// Too many calls are queued.
    Overload,
    /// An unknown reason, or none.
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

/// The body of an error caused by the caller.
#[derive(Deserialize)]
struct ErrorBody {
    error: String,
}

impl CallError {
    pub(crate) fn transport(error: hyper_util::client::legacy::Error) -> Self {
        Self::NoAnswer(error.into())
    }

    pub(crate) fn of(status: StatusCode, reason: Option<&str>, body: &[u8]) -> Self {
        let error_text = serde_json::from_slice::<ErrorBody>(body).ok().map(|error_text| error_text.error);
        match (status, error_text) {
            (StatusCode::NOT_FOUND, Some(text)) => Self::NoFunction(text),
            (StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE, Some(text)) => Self::Arguments(text),
            (StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT, _) => {
                Self::Failed { status, reason: reason.unwrap_or_default().into() }
            }
            (status, error_text) => {
                let text =
                    error_text.unwrap_or_else(|| String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned());
                Self::Refused { status, text }
            }
        }
    }
}

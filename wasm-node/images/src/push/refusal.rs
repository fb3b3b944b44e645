//! Errors of push requests, and the possible reactions. Pure: responses are parsed as the distribution specification's
//! errors. A registry's text is shown only as one line of bounded length without control characters.

use http::StatusCode;
use serde::Deserialize;

use crate::session::RemoteError;

/// Maximum characters shown of a registry's message.
const MESSAGE_CHARS_MAX: usize = 512;
/// Maximum characters shown of an error code.
const CODE_CHARS_MAX: usize = 64;

/// Texts for the distribution specification's codes, for responses without a message.
const CODES: &[(&str, &str)] = &[
    ("BLOB_UNKNOWN", "blob unknown to registry"),
    ("BLOB_UPLOAD_INVALID", "blob upload invalid"),
    ("BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry"),
    ("DENIED", "requested access to the resource is denied"),
    ("DIGEST_INVALID", "provided digest did not match uploaded content"),
    ("MANIFEST_BLOB_UNKNOWN", "manifest references a manifest or blob unknown to registry"),
    ("MANIFEST_INVALID", "manifest invalid"),
    ("MANIFEST_UNKNOWN", "manifest unknown to registry"),
    ("NAME_INVALID", "invalid repository name"),
    ("NAME_UNKNOWN", "repository name not known to registry"),
    ("SIZE_INVALID", "provided length did not match content length"),
    ("TOOMANYREQUESTS", "too many requests"),
    ("UNAUTHORIZED", "authentication required"),
    ("UNSUPPORTED", "the operation is unsupported"),
];

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum TransferError {
    /// The registry rejected the request.
    #[error("{0}")]
    Refused(Refusal),
    /// No response: the registry may or may not have processed the request.
    #[error("{0}")]
    NoAnswer(String),
    /// The registry violates the protocol or redirects to a forbidden host, or the content can't be read.
    #[error("{0}")]
    Failed(String),
    /// No supported way to authenticate.
    #[error("access denied: {0}")]
    Denied(String),
}

impl From<RemoteError> for TransferError {
    fn from(error: RemoteError) -> Self {
        match error {
            RemoteError::Unavailable(why) => Self::NoAnswer(why),
            RemoteError::Denied(why) => Self::Denied(why),
            RemoteError::NotFound | RemoteError::Failed(_) => Self::Failed(error.to_string()),
        }
    }
}

impl TransferError {
    /// Returns whether a retry may succeed.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::NoAnswer(_) => true,
            Self::Refused(refusal) => refusal.is_transient(),
            Self::Failed(_) | Self::Denied(_) => false,
        }
    }

    /// Returns whether the request certainly had no effect.
    pub(super) fn had_no_effect(&self) -> bool {
        match self {
            Self::Refused(refusal) => {
                matches!(refusal.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
            }
            Self::NoAnswer(_) | Self::Failed(_) | Self::Denied(_) => false,
        }
    }

    /// Returns the response if there was one.
    pub(super) fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            Self::NoAnswer(_) | Self::Failed(_) | Self::Denied(_) => None,
        }
    }
}

/// An error response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    status: StatusCode,
    code: Option<String>,
    message: Option<String>,
}

#[derive(Deserialize)]
struct Envelope {
    errors: Vec<ErrorEntry>,
}

#[derive(Deserialize)]
struct ErrorEntry {
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

impl Refusal {
    /// Parses a response's body; a body in another format is ignored.
    pub(super) fn read(status: StatusCode, body: &[u8]) -> Self {
        let envelope: Option<Envelope> = serde_json::from_slice(body).ok();
        let entry = envelope.and_then(|envelope| envelope.errors.into_iter().next());
        let line = |text: String, chars_max: usize| -> Option<String> {
            let text: String = text.chars().filter(|c| !c.is_control()).take(chars_max).collect();
            (!text.is_empty()).then_some(text)
        };
        let (code, message) = entry.map_or((None, None), |entry| (entry.code, entry.message));
        let code = code.and_then(|code| line(code, CODE_CHARS_MAX));
        Self { status, code, message: message.and_then(|message| line(message, MESSAGE_CHARS_MAX)) }
    }

    /// Returns whether a chunk's start isn't the upload's end.
    pub(super) fn is_out_of_order(&self) -> bool {
        self.status == StatusCode::RANGE_NOT_SATISFIABLE
    }

    fn is_transient(&self) -> bool {
        matches!(
            self.status,
            StatusCode::REQUEST_TIMEOUT
                | StatusCode::TOO_MANY_REQUESTS
                | StatusCode::INTERNAL_SERVER_ERROR
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT
        )
    }

    /// Returns whether the other kind of upload may succeed: the registry rejected the form, not the content or the
    /// user.
    pub(super) fn is_format_rejected(&self) -> bool {
        let says_content = matches!(
            self.code.as_deref(),
            Some(
                "DENIED"
                    | "DIGEST_INVALID"
                    | "NAME_INVALID"
                    | "NAME_UNKNOWN"
                    | "SIZE_INVALID"
                    | "TOOMANYREQUESTS"
                    | "UNAUTHORIZED"
            )
        );
        let is_form = matches!(
            self.status,
            StatusCode::BAD_REQUEST
                | StatusCode::NOT_FOUND
                | StatusCode::METHOD_NOT_ALLOWED
                | StatusCode::LENGTH_REQUIRED
                | StatusCode::PAYLOAD_TOO_LARGE
                | StatusCode::UNSUPPORTED_MEDIA_TYPE
                | StatusCode::RANGE_NOT_SATISFIABLE
                | StatusCode::NOT_IMPLEMENTED
        );
        is_form && !says_content
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let known = |code: &str| CODES.iter().find(|(known, _)| *known == code).map(|(_, words)| *words);
        match (&self.message, &self.code) {
            (Some(message), Some(code)) => write!(f, "{message} ({code})"),
            (Some(message), None) => write!(f, "{message} (status {})", self.status),
            (None, Some(code)) => match known(code) {
                Some(words) => write!(f, "{words} ({code})"),
                None => write!(f, "the registry answers {}: {code}", self.status),
            },
            (None, None) => write!(f, "the registry answers {}", self.status),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(status: u16, body: &str) -> Refusal {
        Refusal::read(StatusCode::from_u16(status).unwrap(), body.as_bytes())
    }

    #[test]
    fn errors_of_the_specification_become_a_sentence() {
        for (status, body, says) in [
            (403, r#"{"errors":[{"code":"DENIED","message":"not yours","detail":[1]}]}"#, "not yours (DENIED)"),
            (401, r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#, "authentication required (UNAUTHORIZED)"),
            (400, r#"{"errors":[{"code":"OWN_CODE","message":""}]}"#, "the registry answers 400 Bad Request: OWN_CODE"),
            (413, r#"{"errors":[{"message":"too\nlarge"}]}"#, "toolarge (status 413 Payload Too Large)"),
            (502, "<html>bad gateway</html>", "the registry answers 502 Bad Gateway"),
            (404, r#"{"errors":[]}"#, "the registry answers 404 Not Found"),
            (404, "", "the registry answers 404 Not Found"),
        ] {
            assert_eq!(read(status, body).to_string(), says);
        }
    }

    #[test]
    fn refusals_are_retried_by_kind() {
        let error = |status: u16, body: &str| TransferError::Refused(read(status, body));
        for status in [408, 429, 500, 502, 503, 504] {
            assert!(error(status, "").is_transient(), "{status}");
        }
        for status in [400, 401, 403, 404, 405, 413, 416, 501, 507] {
            assert!(!error(status, "").is_transient(), "{status}");
        }
        for (status, nothing) in [(429, true), (503, true), (500, false), (502, false), (504, false), (408, false)] {
            assert_eq!(error(status, "").had_no_effect(), nothing, "{status}");
        }
        assert!(TransferError::NoAnswer(String::new()).is_transient());
        assert!(!TransferError::NoAnswer(String::new()).had_no_effect());
        for (status, body, form) in [
            (405, "", true),
            (400, r#"{"errors":[{"code":"BLOB_UPLOAD_INVALID"}]}"#, true),
            (400, r#"{"errors":[{"code":"DIGEST_INVALID"}]}"#, false),
            (403, "", false),
            (507, "", false),
        ] {
            assert_eq!(read(status, body).is_format_rejected(), form, "{status} {body}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_a_short_line(status in 100_u16..1000, body in "\\PC{0,40}", message in "(?s).{0,700}", code in "(?s).{0,90}") {
            let envelope = serde_json::json!({"errors": [{"code": code, "message": message}]}).to_string();
            for body in [body, envelope] {
                let text = read(status, &body).to_string();
                prop_assert!(text.chars().count() <= MESSAGE_CHARS_MAX + CODE_CHARS_MAX + 80);
                prop_assert!(!text.chars().any(char::is_control) && !text.is_empty());
            }
        }
    }
}

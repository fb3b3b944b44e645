//! Formats of a plugin call's body: JSON, or WAVE where the client declares it.

use http::{HeaderMap, header};

use crate::bounds::limits::{CALL_BODY_BYTES_MAX, CALL_WAVE_BYTES_MAX};

pub(super) const JSON: &str = "application/json";
const WAVE: &str = "application/x-wave";

/// Body format.
#[derive(Clone, Copy)]
pub(super) enum Format {
    Json,
    Wave,
}

impl Format {
    /// WAVE where the client declares it; any other body is parsed as JSON.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if kind.eq_ignore_ascii_case(WAVE) { Self::Wave } else { Self::Json }
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Json => JSON,
            Self::Wave => WAVE,
        }
    }

    pub(super) fn body_max(self) -> usize {
        match self {
            Self::Json => CALL_BODY_BYTES_MAX,
            Self::Wave => CALL_WAVE_BYTES_MAX,
        }
    }
}

//! Continue tokens: the end of a page and the revision of its list, in upstream's format (k8s.io/apiserver
//! `storage/continue.go`).

use apiserver_schema as schema;
use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD, URL_SAFE_NO_PAD};
use machinery_api::ApiError;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

const VERSION: &str = "meta.k8s.io/v1";
/// As Go's decoder, ignores trailing bits.
const LENIENT: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, NO_PAD.with_decode_allow_trailing_bits(true));

/// The position of a paged list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continue {
    /// The revision of the list; `None` is the newest (an "inconsistent" token, given with a 410).
    pub revision: Option<u64>,
    /// The first key of the next page, relative to the list's prefix, without a leading slash.
    pub start: String,
    /// The number of remaining items, if it was counted.
    pub left: Option<u64>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct Wire {
    v: String,
    rv: i64,
    start: String,
    /// An extension: clients return tokens unchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    left: Option<u64>,
}

impl Continue {
    /// The position after a key.
    #[must_use]
    pub fn after(key: &str, revision: Option<u64>) -> Self {
        Self { revision, start: format!("{key}\0"), left: None }
    }

    /// The token for clients.
    #[must_use]
    pub fn encode(&self) -> String {
        let rv = self.revision.map_or(-1, |r| i64::try_from(r).unwrap_or(i64::MAX));
        let wire = Wire { v: VERSION.into(), rv, start: format!("/{}", self.start), left: self.left };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&wire).unwrap_or_default())
    }

    /// Parses a client's token.
    pub fn decode(token: &str) -> Result<Self, ApiError> {
        let bad =
            |why: String| ApiError::BadRequest(format!("invalid continue token: continue key is not valid: {why}"));
        // Go's decoder skips line ends.
        let token = token.replace(['\r', '\n'], "");
        let bytes = LENIENT.decode(&token).map_err(|e| {
            let at = match e {
                base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                // Go reports the start of the last, incomplete group, and counts no padding.
                _ => token.find('=').unwrap_or(token.len() / 4 * 4),
            };
            bad(format!("illegal base64 data at input byte {at}"))
        })?;
        let wire: Option<Wire> = serde_json::from_slice::<Value>(&bytes)
            .ok()
            .map(|value| if value.is_null() { json!({}) } else { value })
            .filter(Value::is_object)
            .and_then(|value| serde_json::from_value(value).ok());
        let wire = wire.ok_or_else(|| bad(go_json_error(&bytes)))?;
        if wire.v != VERSION {
            return Err(bad(format!("server does not recognize this encoded version {}", wire.v)));
        }
        if wire.rv == 0 {
            return Err(bad(format!("incorrect encoded start resourceVersion (version {VERSION})")));
        }
        if wire.start.is_empty() {
            return Err(bad(format!("encoded start key empty (version {VERSION})")));
        }
        let start = wire.start.strip_prefix('/').unwrap_or(&wire.start).to_owned();
        // As upstream, the key must be a clean path, so that it stays below the list's prefix.
        let odd = |segment: &str| matches!(segment.trim_end_matches('\0'), "." | "..") || segment.is_empty();
        if !start.is_empty() && start.split('/').any(odd) {
            return Err(bad(wire.start));
        }
        Ok(Self { revision: u64::try_from(wire.rv).ok(), start, left: wire.left })
    }
}

/// The message of Go's decoder for an invalid token.
fn go_json_error(bytes: &[u8]) -> String {
    let named = |value: &Value| match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let wrong = |value: &Value, field: &str, kind: &str| {
        format!("json: cannot unmarshal {} into Go struct field continueToken.{field} of type {kind}", named(value))
    };
    match serde_json::from_slice::<Value>(bytes) {
        Ok(Value::Object(map)) => {
            let text = |field: &str| map.get(field).filter(|v| !v.is_string()).map(|v| wrong(v, field, "string"));
            let number = map.get("rv").filter(|v| v.as_i64().is_none()).map(|v| wrong(v, "rv", "int64"));
            text("v").or(number).or_else(|| text("start")).unwrap_or_default()
        }
        Ok(other) => {
            format!("json: cannot unmarshal {} into Go value of type storage.continueToken", named(&other))
        }
        Err(error) => schema::json_fault(bytes).unwrap_or_else(|| error.to_string()),
    }
}

/// 410 for a token of a compacted revision, with a token that continues at the newest state.
#[must_use]
pub fn expired(start: &str) -> ApiError {
    let token = Continue { revision: None, start: start.to_owned(), left: None }.encode();
    ApiError::ExpiredPage(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let token = Continue::after("a", Some(240));
        assert_eq!(token.encode(), "eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MjQwLCJzdGFydCI6Ii9hXHUwMDAwIn0");
        assert_eq!(Continue::decode(&token.encode()).unwrap(), token);
        assert_eq!(Continue::decode(&Continue::after("n/a", None).encode()).unwrap().revision, None);
        for bad in ["abc", "!", "eyJ2IjoibWV0YS5rOHMuaW8vdjEifQ", "eyJ2Ijoibm9wZSIsInJ2IjoxLCJzdGFydCI6ImEifQ"] {
            assert_eq!(Continue::decode(bad).unwrap_err().status().code, 400, "{bad}");
        }
        for (bad, why) in [
            ("a", "illegal base64 data at input byte 0"),
            ("!!!", "illegal base64 data at input byte 0"),
            ("W10=", "illegal base64 data at input byte 3"),
            ("eA==", "illegal base64 data at input byte 2"),
            ("W10", "json: cannot unmarshal array into Go value of type storage.continueToken"),
            ("eyJydiI6ICJ4In0", "json: cannot unmarshal string into Go struct field continueToken.rv of type int64"),
            ("bnVsbA", "server does not recognize this encoded version "),
            ("ab", "invalid character 'i' looking for beginning of value"),
            ("a\nb", "invalid character 'i' looking for beginning of value"),
            ("AgI", "invalid character '\\x02' looking for beginning of value"),
            ("Igki", "invalid character '\\t' in string literal"),
        ] {
            let message = Continue::decode(bad).unwrap_err().status().message;
            assert_eq!(message, format!("invalid continue token: continue key is not valid: {why}"), "{bad}");
        }
        let ask = |start: &str| {
            let token = json!({"v": VERSION, "rv": -1, "start": start}).to_string();
            Continue::decode(&URL_SAFE_NO_PAD.encode(token)).map(|read| read.start).map_err(|e| e.status().message)
        };
        for start in ["//a", "a/", "a//b", "./a", "../a", "a/..", "a/../b", "//"] {
            let message = format!("invalid continue token: continue key is not valid: {start}");
            assert_eq!(ask(start), Err(message));
        }
        for (start, read) in [("/a", "a"), ("a", "a"), ("/", ""), ("/n/a\0", "n/a\0")] {
            assert_eq!(ask(start).as_deref(), Ok(read));
        }
    }
}

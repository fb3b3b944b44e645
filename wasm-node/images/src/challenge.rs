//! The challenge of a registry's 401 response: `WWW-Authenticate` (RFC 9110 §11.6.1), for the distribution project's
//! token protocol or a plain password. Pure.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;
use http_auth::parser::ChallengeParser;

/// Maximum length of a header.
const HEADER_BYTES_MAX: usize = 16 << 10;

/// The requested authentication. A token is preferred if both are offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A token from `realm`.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
    /// User and password.
    Basic,
}

/// Parses the challenge; `None` if no supported scheme is offered.
pub(crate) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let mut found = None;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Some(text) = value.to_str().ok().filter(|text| text.len() <= HEADER_BYTES_MAX) else { continue };
        for challenge in ChallengeParser::new(text) {
            // The part of a truncated header before the defect counts.
            let Ok(challenge) = challenge else { break };
            let parameter = |wanted: &str| {
                let pair = challenge.params.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
                pair.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                if let Some(realm) = parameter("realm") {
                    return Some(Challenge::Bearer { realm, service: parameter("service"), scope: parameter("scope") });
                }
            } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                found = Some(Challenge::Basic);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(values: &[&str]) -> Option<Challenge> {
        let values = values.iter().filter_map(|value| http::HeaderValue::from_str(value).ok());
        challenge(&values.map(|value| (WWW_AUTHENTICATE, value)).collect())
    }

    #[test]
    fn tokens_are_preferred() {
        let bearer = Challenge::Bearer {
            realm: "https://a.io/t?x=1,2".into(),
            service: Some("a \"b\"".into()),
            scope: Some("repository:x:pull".into()),
        };
        let text =
            r#"Basic realm="x", bearer realm="https://a.io/t?x=1,2",service="a \"b\"",scope="repository:x:pull""#;
        assert_eq!(read(&[text]), Some(bearer));
        assert_eq!(read(&["BASIC realm=x"]), Some(Challenge::Basic));
        assert_eq!(read(&["Bearer service=x", "Basic realm=\"y\""]), Some(Challenge::Basic));
        assert_eq!(read(&["Negotiate abc=="]), None);
        assert_eq!(read(&[]), None);
    }

    proptest! {
        #[test]
        fn any_header_is_read(text in "[ -~]{0,80}") {
            let _ = read(&[&text]);
        }
    }
}

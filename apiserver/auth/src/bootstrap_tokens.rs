//! Authenticates bootstrap tokens `ID.SECRET`, which the Secret `bootstrap-token-ID` in `kube-system` defines. New
//! nodes and administrators request a certificate with one.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::Value;

use super::UserInfo;
use apiserver_resources::objects::ObjectReader;

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const GROUP: &str = "system:bootstrappers";
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 16;
const GROUP_BYTES_MAX: usize = 256;

/// A syntactically valid token.
#[derive(Clone, Copy)]
struct Token<'a> {
    id: &'a str,
    secret: &'a str,
}

impl<'a> Token<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let plain = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let (id, secret) = text.split_once('.')?;
        let whole = id.len() == ID_BYTES && secret.len() == SECRET_BYTES && plain(id) && plain(secret);
        whole.then_some(Self { id, secret })
    }
}

/// Returns the user of a bootstrap token; `None` if the token is another kind or invalid.
pub(super) fn authenticate(objects: &dyn ObjectReader, now: Timestamp, text: &str) -> Option<UserInfo> {
    let token = Token::parse(text)?;
    let secret = objects.get("", "secrets", NAMESPACE, &format!("bootstrap-token-{}", token.id))?;
    user(&secret, now, token)
}

fn user(secret: &Value, now: Timestamp, token: Token<'_>) -> Option<UserInfo> {
    let data = |key: &str| {
        let text = STANDARD.decode(secret["data"][key].as_str().unwrap_or_default()).unwrap_or_default();
        String::from_utf8(text).unwrap_or_default()
    };
    let terminating = secret["metadata"]["deletionTimestamp"].is_string();
    if terminating
        || secret["type"] != TYPE
        || !same(&data("token-secret"), token.secret)
        || data("token-id") != token.id
    {
        return None;
    }
    let until = data("expiration");
    let in_time = until.is_empty() || until.parse::<Timestamp>().is_ok_and(|until| now < until);
    if !in_time || data("usage-bootstrap-authentication") != "true" {
        return None;
    }
    let mut groups = BTreeSet::from([GROUP.to_owned()]);
    let more = data("auth-extra-groups");
    if !more.is_empty() {
        for group in more.split(',') {
            if !is_extra_group(group) {
                return None;
            }
            groups.insert(group.to_owned());
        }
    }
    Some(UserInfo {
        name: format!("system:bootstrap:{}", token.id),
        groups: groups.into_iter().collect(),
        ..UserInfo::default()
    })
}

fn is_extra_group(group: &str) -> bool {
    let Some(rest) = group.strip_prefix("system:bootstrappers:") else { return false };
    let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let last = rest.bytes().last().is_some_and(letter);
    last && rest.len() <= GROUP_BYTES_MAX && rest.bytes().all(|b| letter(b) || b == b':' || b == b'-')
}

/// Compares digests, so that the duration does not depend on the secret.
fn same(a: &str, b: &str) -> bool {
    let digest = |text: &str| ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest(a).as_ref() == digest(b).as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use apiserver_resources::objects::memory::MemoryObjects;
    use serde_json::json;

    const TOKEN: &str = "abcdef.0123456789abcdef";

    fn authenticate_changed(change: impl Fn(&mut Value), token: &str) -> Option<UserInfo> {
        let text = |text: &str| STANDARD.encode(text);
        let mut secret = json!({
            "metadata": {"namespace": "kube-system", "name": "bootstrap-token-abcdef"},
            "type": "bootstrap.kubernetes.io/token",
            "data": {
                "token-id": text("abcdef"), "token-secret": text("0123456789abcdef"),
                "expiration": text("2026-01-02T00:00:00Z"), "usage-bootstrap-authentication": text("true"),
                "auth-extra-groups": text("system:bootstrappers:team:a,system:bootstrappers:b"),
            },
        });
        change(&mut secret);
        let map = MemoryObjects::default();
        map.put("", "secrets", secret);
        authenticate(&map, "2026-01-01T00:00:00Z".parse().unwrap(), token)
    }

    #[test]
    fn a_token_is_valid_for_the_usages_of_its_secret() {
        let user = authenticate_changed(|_| {}, TOKEN).unwrap();
        assert_eq!(user.name, "system:bootstrap:abcdef");
        let groups = ["system:bootstrappers", "system:bootstrappers:b", "system:bootstrappers:team:a"];
        assert_eq!(user.groups, groups);
        for token in ["abcdef.0123456789abcdeg", "abcdeg.0123456789abcdef", "abcdef", "ABCDEF.0123456789abcdef", "."] {
            assert_eq!(authenticate_changed(|_| {}, token), None, "{token}");
        }
        let set = |key: &'static str, value: &'static str| {
            move |secret: &mut Value| secret["data"][key] = json!(STANDARD.encode(value))
        };
        assert!(authenticate_changed(set("expiration", ""), TOKEN).is_some(), "for ever");
        for (key, value) in [
            ("expiration", "2026-01-01T00:00:00Z"),
            ("expiration", "soon"),
            ("usage-bootstrap-authentication", "yes"),
            ("token-id", "abcdeg"),
            ("auth-extra-groups", "system:masters"),
            ("auth-extra-groups", "system:bootstrappers:"),
        ] {
            assert_eq!(authenticate_changed(set(key, value), TOKEN), None, "{key} {value}");
        }
        assert_eq!(authenticate_changed(|secret| secret["type"] = json!("Opaque"), TOKEN), None);
        let terminating = |secret: &mut Value| secret["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(authenticate_changed(terminating, TOKEN), None);
    }
}

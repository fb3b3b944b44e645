//! Requests to credential providers, their responses, and the cache of responses. Pure; passwords never appear in
//! output.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use machinery_api::duration;
use serde::Deserialize;
use serde_json::json;

use super::super::keyring::Credential;
use super::super::keyring::split_path;
use super::token::{AccountKey, AccountRequest};

/// Maximum cached responses of a provider.
const ENTRIES_MAX: usize = 1000;
/// Maximum bytes of a provider's cached responses together.
const BYTES_MAX: usize = 8 << 20;

/// Credentials by their location.
pub(super) type Auth = Arc<[(String, Credential)]>;

/// Why a response can't be used. The error contains none of its credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ResponseError {
    /// Not a JSON object.
    #[error("error reading GVK from response")]
    Json,
    /// Another API version than the request's. The version in the response is not shown: it may contain anything.
    #[error("apiVersion from credential plugin response did not match expected apiVersion:{0}")]
    Version(String),
    /// The response has another structure.
    #[error("error decoding credential provider plugin response from stdout")]
    Form,
    /// The password is the ServiceAccount token of the request, and the response would be cached for other tokens.
    #[error(
        "credential provider plugin returned the service account token as the password which is not allowed when service account cache \
         type is not set to 'Token'"
    )]
    Echo,
    /// The `cacheKeyType` is missing or unknown.
    #[error("credential provider plugin did not return a valid cacheKeyType")]
    KeyType,
}

/// The images that a response is valid for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyType {
    Image,
    Registry,
    Global,
}

/// A cache key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum CacheKey {
    Image(String),
    Registry(String),
    Global,
}

impl KeyType {
    fn of(self, repository: &str) -> CacheKey {
        match self {
            Self::Image => CacheKey::Image(repository.to_owned()),
            Self::Registry => CacheKey::Registry(split_path(repository).0.to_owned()),
            Self::Global => CacheKey::Global,
        }
    }
}

/// A provider's response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProviderResponse {
    key_type: KeyType,
    /// How long it is cached; none = the configuration's default.
    duration: Option<Duration>,
    pub(super) auth: Auth,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    api_version: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawResponse {
    kind: Option<String>,
    #[serde(rename = "apiVersion")]
    _api_version: Option<String>,
    cache_key_type: Option<String>,
    cache_duration: Option<String>,
    auth: Option<BTreeMap<String, Option<User>>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct User {
    username: Option<String>,
    password: Option<String>,
}

/// Builds the request that a provider reads on stdin.
pub(super) fn request(api_version: &str, repository: &str, request_account: Option<&AccountRequest>) -> Vec<u8> {
    let mut request = json!({"kind": "CredentialProviderRequest", "apiVersion": api_version, "image": repository});
    if let Some(request_account) = request_account {
        request["serviceAccountToken"] = json!(request_account.token);
        if !request_account.annotations.is_empty() {
            request["serviceAccountAnnotations"] = json!(request_account.annotations);
        }
    }
    format!("{request}\n").into_bytes()
}

/// Parses a provider's stdout.
pub(super) fn parse(bytes: &[u8], api_version: &str) -> Result<ProviderResponse, ResponseError> {
    let version: Version = serde_json::from_slice(bytes).map_err(|_| ResponseError::Json)?;
    if version.api_version.as_deref() != Some(api_version) {
        return Err(ResponseError::Version(api_version.to_owned()));
    }
    let response: RawResponse = serde_json::from_slice(bytes).map_err(|_| ResponseError::Form)?;
    if response.kind.as_deref() != Some("CredentialProviderResponse") {
        return Err(ResponseError::Form);
    }
    let key_type = match response.cache_key_type.as_deref() {
        Some("Image") => KeyType::Image,
        Some("Registry") => KeyType::Registry,
        Some("Global") => KeyType::Global,
        _ => return Err(ResponseError::KeyType),
    };
    // A negative duration counts as expired.
    let read = |text: String| match duration::parse_nanos(&text).map(u64::try_from) {
        Ok(nanos) => Ok(nanos.map_or(Duration::ZERO, Duration::from_nanos)),
        Err(_) => Err(ResponseError::Form),
    };
    let ttl = response.cache_duration.map(read).transpose()?;
    let users = response.auth.unwrap_or_default().into_iter().map(|(location, user)| {
        let User { username, password } = user.unwrap_or_default();
        let (username, password) = (username.unwrap_or_default(), password.unwrap_or_default());
        (location, Credential { username, password })
    });
    Ok(ProviderResponse { key_type, duration: ttl, auth: users.collect() })
}

struct CacheEntry {
    auth: Auth,
    bytes: usize,
    expires_at: Duration,
}

/// The cached responses of a provider.
#[derive(Default)]
pub(super) struct Cache {
    by_key: BTreeMap<(CacheKey, Option<AccountKey>), CacheEntry>,
    bytes: usize,
}

impl Cache {
    /// Returns the most specific cached response for a repository and a ServiceAccount.
    pub(super) fn get(&self, repository: &str, account_key: Option<&AccountKey>, now: Duration) -> Option<Auth> {
        let keys = [KeyType::Image, KeyType::Registry, KeyType::Global];
        let keys = keys.map(|kind| (kind.of(repository), account_key.cloned()));
        let found = keys.iter().filter_map(|key| self.by_key.get(key)).find(|entry| now <= entry.expires_at);
        found.map(|entry| entry.auth.clone())
    }

    /// Caches a response for its own duration or the configuration's. A full cache evicts the entries that expire
    /// first.
    pub(super) fn put(
        &mut self,
        (repository, account_key): (&str, Option<AccountKey>),
        answer: &ProviderResponse,
        default: Duration,
        now: Duration,
    ) {
        let ttl = answer.duration.unwrap_or(default);
        if ttl.is_zero() {
            return;
        }
        let of = |(location, user): &(String, Credential)| location.len() + user.username.len() + user.password.len();
        let named = account_key.as_ref().map_or(0, AccountKey::bytes);
        let key = (answer.key_type.of(repository), account_key);
        self.remove(&key);
        let bytes = repository.len() + named + answer.auth.iter().map(of).sum::<usize>();
        self.bytes += bytes;
        self.by_key.insert(key, CacheEntry { auth: answer.auth.clone(), bytes, expires_at: now.saturating_add(ttl) });
        let over: Vec<(CacheKey, Option<AccountKey>)> =
            self.by_key.iter().filter(|(_, entry)| entry.expires_at < now).map(|(key, _)| key.clone()).collect();
        over.iter().for_each(|key| self.remove(key));
        while self.by_key.len() > ENTRIES_MAX || self.bytes > BYTES_MAX {
            let first = self.by_key.iter().min_by_key(|(_, entry)| entry.expires_at).map(|(key, _)| key.clone());
            let Some(first) = first else { return };
            self.remove(&first);
        }
    }

    fn remove(&mut self, key: &(CacheKey, Option<AccountKey>)) {
        if let Some(entry) = self.by_key.remove(key) {
            self.bytes -= entry.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "credentialprovider.kubelet.k8s.io/v1";
    const MINUTE: Duration = Duration::from_secs(60);

    fn response_text(more: &str) -> Vec<u8> {
        format!(r#"{{"kind":"CredentialProviderResponse","apiVersion":"{V1}"{more}}}"#).into_bytes()
    }

    fn answer(key_type: &str, duration: &str, password: &str) -> ProviderResponse {
        let auth = format!(r#""auth":{{"a.io":{{"username":"u","password":"{password}"}}}}"#);
        parse(&response_text(&format!(r#","cacheKeyType":"{key_type}"{duration},{auth}"#)), V1).unwrap()
    }

    fn held(cache: &Cache, repository: &str, now: Duration) -> Option<String> {
        cache.get(repository, None, now).map(|auth| auth[0].1.password.clone())
    }

    #[test]
    fn responses_are_parsed_strictly_and_not_logged() {
        for (bytes, error) in [
            (&b""[..], ResponseError::Json),
            (b"hidden", ResponseError::Json),
            (br#"{"apiVersion":"hidden"}"#, ResponseError::Version(V1.into())),
            (&response_text(r#","cacheKeyType":"hidden""#), ResponseError::KeyType),
            (&response_text(""), ResponseError::KeyType),
            (&response_text(r#","cacheKeyType":"Image","hidden":1"#), ResponseError::Form),
            (&response_text(r#","cacheKeyType":"Image","cacheDuration":"hidden""#), ResponseError::Form),
            (&response_text(r#","cacheKeyType":"Image","auth":{"a.io":"hidden"}"#), ResponseError::Form),
            (&response_text(r#","kind":"Pod""#), ResponseError::Form),
        ] {
            let got = parse(bytes, V1).unwrap_err();
            assert!(!got.to_string().contains("hidden"), "{got}");
            assert_eq!(got, error, "{}", String::from_utf8_lossy(bytes));
        }
        let beta = String::from_utf8(response_text(r#","cacheKeyType":"Global","auth":null"#)).unwrap();
        let beta = beta.replace("io/v1", "io/v1beta1");
        assert!(parse(beta.as_bytes(), "credentialprovider.kubelet.k8s.io/v1beta1").unwrap().auth.is_empty());
        assert!(!format!("{:?}", answer("Image", "", "hidden")).contains("hidden"));
        let request: serde_json::Value = serde_json::from_slice(&request(V1, "a.io/x", None)).unwrap();
        assert_eq!(request["image"], "a.io/x");
    }

    #[test]
    fn responses_are_valid_for_their_scope_and_duration() {
        let mut cache = Cache::default();
        let end = |seconds| Duration::from_secs(seconds);
        for never in [r#","cacheDuration":"0s""#, r#","cacheDuration":"-1h""#] {
            cache.put(("a.io/x", None), &answer("Global", never, "p"), MINUTE, end(0));
        }
        cache.put(("a.io/x", None), &answer("Global", "", "p"), Duration::ZERO, end(0));
        assert_eq!(held(&cache, "a.io/x", end(0)), None, "what says 0 is not kept");
        cache.put(("a.io/x", None), &answer("Global", r#","cacheDuration":"2m""#, "global"), MINUTE, end(0));
        cache.put(("a.io/x", None), &answer("Registry", "", "registry"), MINUTE, end(0));
        cache.put(("a.io/x", None), &answer("Image", r#","cacheDuration":"30s""#, "image"), MINUTE, end(0));
        for (repository, now, wanted) in [
            ("a.io/x", 30, Some("image")),
            ("a.io/x", 31, Some("registry")),
            ("a.io/y", 60, Some("registry")),
            ("a.io:1/x", 0, Some("global")),
            ("a.io/x", 61, Some("global")),
            ("b.io/x", 121, None),
        ] {
            assert_eq!(held(&cache, repository, end(now)).as_deref(), wanted, "{repository} {now}");
        }
    }

    #[test]
    fn the_cache_of_responses_is_bounded() {
        let (mut cache, small) = (Cache::default(), answer("Image", "", "p"));
        for n in 0..2 * ENTRIES_MAX {
            cache.put((&format!("a.io/{n}"), None), &small, MINUTE, Duration::from_secs(n as u64 / 100));
        }
        assert_eq!(cache.by_key.len(), ENTRIES_MAX);
        assert!(
            held(&cache, "a.io/0", Duration::ZERO).is_none() && held(&cache, "a.io/1999", Duration::ZERO).is_some()
        );
        let large = answer("Image", "", &"p".repeat(1 << 20));
        for n in 0..20 {
            cache.put((&format!("b.io/{n}"), None), &large, 2 * MINUTE, Duration::from_secs(30 + n));
        }
        assert!(cache.bytes <= BYTES_MAX && held(&cache, "b.io/19", Duration::ZERO).is_some());
        assert_eq!(cache.bytes, cache.by_key.values().map(|entry| entry.bytes).sum::<usize>());
        cache.put(("c.io/x", None), &small, MINUTE, Duration::from_secs(3600));
        assert_eq!(cache.by_key.len(), 1, "what is over goes");
    }
}

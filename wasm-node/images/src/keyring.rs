//! A pod's credentials for an image: docker configs of pull secrets, matched to a repository by upstream's rules
//! (`pkg/credentialprovider`): host by labels with wildcards, port and path literally. Pure; passwords never appear in
//! output.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::account::{AccountIdentity, PodAccount};

/// Docker Hub's name in docker configs.
const DEFAULT_REGISTRY_KEY: &str = "index.docker.io";
/// Maximum entries of all configs of a pod together: a Secret holds at most 1 MiB.
const ENTRIES_MAX: usize = 10_000;

/// A user of a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// The user's name.
    pub username: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(…)")
    }
}

/// The identity of a Secret by KEP-2535.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SecretIdentity {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid: a Secret that is recreated under the same name has another uid.
    pub uid: String,
}

/// A credential and its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackedCredential {
    /// Name and password.
    pub credential: Credential,
    /// The Secret that contains it.
    pub secret: Option<SecretIdentity>,
    /// The ServiceAccount for which a provider returned it. Neither = the node's own credential, which every pod of the
    /// node may use.
    pub account: Option<AccountIdentity>,
}

impl TrackedCredential {
    /// Returns a hash that identifies the credential without revealing it.
    pub(crate) fn hash(&self) -> String {
        let Credential { username, password } = &self.credential;
        let mut hasher = Sha256::new();
        // Lengths first, so that no two pairs hash the same bytes.
        hasher.update((username.len() as u64).to_le_bytes());
        hasher.update(username);
        hasher.update(password);
        hex::encode(hasher.finalize())
    }
}

/// The format of a docker config.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfigForm {
    /// `kubernetes.io/dockerconfigjson`: the entries under `auths`.
    Json,
    /// `kubernetes.io/dockercfg`: the entries alone.
    Legacy,
}

/// The Secret types with registry credentials, the data key of each, and its format.
pub const PULL_SECRET_TYPES: [(&str, &str, ConfigForm); 2] = [
    ("kubernetes.io/dockerconfigjson", ".dockerconfigjson", ConfigForm::Json),
    ("kubernetes.io/dockercfg", ".dockercfg", ConfigForm::Legacy),
];

/// A docker config that can't be parsed. The error contains nothing of its content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// Not JSON of that format.
    #[error("error occurred while trying to unmarshal json")]
    Json,
    /// An `auth` that isn't base64 of `user:password`.
    #[error("unable to parse auth field, must be formatted as base64(username:password)")]
    Auth,
    /// Too many entries.
    #[error("more than {ENTRIES_MAX} registries")]
    TooMany,
}

#[derive(Deserialize)]
struct ConfigJson {
    #[serde(default)]
    auths: Option<BTreeMap<String, Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    auth: Option<String>,
}

impl Entry {
    fn credential(self) -> Result<Credential, KeyringError> {
        let given =
            Credential { username: self.username.unwrap_or_default(), password: self.password.unwrap_or_default() };
        let Some(auth) = self.auth.filter(|auth| !auth.is_empty()) else { return Ok(given) };
        // Line breaks are skipped, like in Go's decoder.
        let text: String = auth.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
        let padded = text.trim().ends_with('=');
        let decoded = if padded { STANDARD.decode(&text) } else { STANDARD_NO_PAD.decode(&text) };
        let decoded = decoded.map_err(|_| KeyringError::Auth)?;
        let decoded = String::from_utf8(decoded).map_err(|_| KeyringError::Auth)?;
        let (username, password) = decoded.split_once(':').ok_or(KeyringError::Auth)?;
        Ok(Credential { username: username.to_owned(), password: password.to_owned() })
    }
}

/// The credentials that a pod may use.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    /// Credentials by registry and path, without a scheme.
    by_location: BTreeMap<String, Vec<TrackedCredential>>,
    entries: usize,
    /// Credentials from the node's providers, for the image that is pulled.
    provided: Vec<TrackedCredential>,
    account: Option<Arc<dyn PodAccount>>,
    identity: Option<AccountIdentity>,
}

impl Keyring {
    /// Adds the entries of a docker config.
    ///
    /// # Errors
    /// See [`KeyringError`].
    pub fn add(&mut self, secret: &SecretIdentity, form: ConfigForm, bytes: &[u8]) -> Result<(), KeyringError> {
        let entries = match form {
            ConfigForm::Json => serde_json::from_slice::<ConfigJson>(bytes).map(|config| config.auths),
            ConfigForm::Legacy => serde_json::from_slice(bytes),
        };
        for (location, entry) in entries.map_err(|_| KeyringError::Json)?.unwrap_or_default() {
            let credential = entry.credential()?;
            self.entries += 1;
            if self.entries > ENTRIES_MAX {
                return Err(KeyringError::TooMany);
            }
            let Some(key) = location_key(&location) else { continue };
            let tracked = TrackedCredential { credential, secret: Some(secret.clone()), account: None };
            self.by_location.entry(key).or_default().push(tracked);
        }
        Ok(())
    }

    /// Adds a provider's credential: for a ServiceAccount, or for the node.
    pub(super) fn add_provided(&mut self, location: &str, credential: Credential, account: Option<AccountIdentity>) {
        let Some(key) = location_key(location) else { return };
        self.by_location.entry(key).or_default().push(TrackedCredential { credential, secret: None, account });
    }

    /// Sets the ServiceAccount of the pod, whose tokens providers may need.
    #[must_use]
    pub fn with_account(self, account: Arc<dyn PodAccount>) -> Self {
        Self { account: Some(account), ..self }
    }

    /// Returns the ServiceAccount of the pod.
    #[must_use]
    pub fn account(&self) -> Option<&dyn PodAccount> {
        self.account.as_deref()
    }

    /// Sets the identity of the ServiceAccount: credentials that providers returned for it may be used.
    #[must_use]
    pub fn with_identity(&self, identity: AccountIdentity) -> Self {
        Self { identity: Some(identity), ..self.clone() }
    }

    pub(super) fn identity(&self) -> Option<&AccountIdentity> {
        self.identity.as_ref()
    }

    /// Returns the keyring with the providers' credentials for the image that is pulled.
    pub(super) fn with_provided(&self, provided: Vec<TrackedCredential>) -> Self {
        Self { provided, ..self.clone() }
    }

    /// Returns the providers' credentials.
    pub(super) fn provided(&self) -> &[TrackedCredential] {
        &self.provided
    }

    /// Returns the credentials for a repository (`docker.io/library/nginx`), the most specific ones first.
    #[must_use]
    pub fn lookup(&self, repository: &str) -> Vec<TrackedCredential> {
        let matching = self.by_location.iter().rev().filter(|(key, _)| matches(key, repository));
        let found: Vec<TrackedCredential> = matching.flat_map(|(_, credentials)| credentials.iter().cloned()).collect();
        if found.is_empty() && is_default_registry(repository) {
            return self.by_location.get(DEFAULT_REGISTRY_KEY).cloned().unwrap_or_default();
        }
        found
    }
}

/// Normalizes a config's location for matching: no scheme; `/v1/` and `/v2/` stand for the whole registry.
fn location_key(location: &str) -> Option<String> {
    let rest = location.strip_prefix("https://").or_else(|| location.strip_prefix("http://")).unwrap_or(location);
    let end = rest.find(['?', '#']).unwrap_or(rest.len());
    let (host, path) = split_path(&rest[..end]);
    if host.chars().any(|c| c.is_control() || c == ' ') {
        return None;
    }
    let host = host.rsplit('@').next().unwrap_or_default();
    let path = if path.starts_with("/v2/") || path.starts_with("/v1/") { &path[3..] } else { path };
    Some(if path == "/" { host.to_owned() } else { format!("{host}{path}") })
}

pub(super) fn split_path(text: &str) -> (&str, &str) {
    text.split_at(text.find('/').unwrap_or(text.len()))
}

fn split_port(host: &str) -> (&str, &str) {
    match host.rsplit_once(':') {
        // An IPv6 address without brackets has no port.
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => (name, port),
        _ => (host, ""),
    }
}

/// Returns whether a location's credentials are for a repository.
pub(super) fn matches(key: &str, repository: &str) -> bool {
    let ((key_host, key_path), (host, path)) = (split_path(key), split_path(repository));
    let ((key_name, key_port), (name, port)) = (split_port(key_host), split_port(host));
    let (key_labels, labels) = (key_name.split('.'), name.split('.'));
    key_port == port
        && key_labels.clone().count() == labels.clone().count()
        && path.starts_with(key_path)
        && key_labels.zip(labels).all(|(pattern, label)| glob(pattern.as_bytes(), label.as_bytes()))
}

/// Matches `*`, `?`, `[…]` and `\` like Go's `filepath.Match`. A malformed pattern matches nothing.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    // The position to resume at after the last star. Each star takes as little as it can, so no earlier star is
    // retried.
    let (mut at, mut in_text, mut star) = (0, 0, None);
    loop {
        let step = match pattern.get(at) {
            Some(b'*') => {
                star = Some((at + 1, in_text));
                at += 1;
                continue;
            }
            None if in_text == text.len() => return true,
            None => None,
            Some(_) => text.get(in_text).and_then(|byte| one(&pattern[at..], *byte)),
        };
        match (step, star) {
            (Some(taken), _) => {
                at += taken;
                in_text += 1;
            }
            (None, Some((after, from))) if from < text.len() => {
                star = Some((after, from + 1));
                at = after;
                in_text = from + 1;
            }
            _ => return false,
        }
    }
}

/// Returns how many bytes of the pattern match one byte of the text.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern.first()? {
        b'?' => Some(1),
        b'\\' => (*pattern.get(1)? == byte).then_some(2),
        b'[' => {
            let negated = pattern.get(1) == Some(&b'^');
            let mut at = if negated { 2 } else { 1 };
            let (mut found, first) = (false, at);
            while at == first || *pattern.get(at)? != b']' {
                let literal = |at: &mut usize| {
                    if pattern.get(*at) == Some(&b'\\') {
                        *at += 1;
                    }
                    let byte = *pattern.get(*at)?;
                    *at += 1;
                    Some(byte)
                };
                let low = literal(&mut at)?;
                let high = if pattern.get(at) == Some(&b'-') {
                    at += 1;
                    literal(&mut at)?
                } else {
                    low
                };
                found |= (low..=high).contains(&byte);
            }
            (found != negated).then_some(at + 1)
        }
        literal => (*literal == byte).then_some(1),
    }
}

/// Returns whether an image is of Docker Hub.
fn is_default_registry(image: &str) -> bool {
    match image.split_once('/') {
        None => !image.is_empty(),
        Some((first, _)) => {
            first == "docker.io" || first == DEFAULT_REGISTRY_KEY || !first.is_empty() && !first.contains(['.', ':'])
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn secret(name: &str) -> SecretIdentity {
        SecretIdentity { namespace: "default".into(), name: name.into(), uid: "u".into() }
    }

    fn keyring(locations: &[&str]) -> Keyring {
        let auths: serde_json::Map<_, _> =
            locations.iter().map(|at| ((*at).to_owned(), json!({"username": at, "password": "p"}))).collect();
        let mut keyring = Keyring::default();
        keyring.add(&secret("s"), ConfigForm::Json, json!({"auths": auths}).to_string().as_bytes()).unwrap();
        keyring
    }

    fn found(keyring: &Keyring, repository: &str) -> Vec<String> {
        keyring.lookup(repository).into_iter().map(|tracked| tracked.credential.username).collect()
    }

    /// The cases of upstream's `TestURLsMatch` and `TestDockerKeyring…`.
    #[test]
    fn locations_match_as_upstreams() {
        for (location, repository, matches) in [
            ("*.kubernetes.io", "prefix.kubernetes.io", true),
            ("prefix.*.io", "prefix.kubernetes.io", true),
            ("prefix.kubernetes.*", "prefix.kubernetes.io", true),
            ("*-good.kubernetes.io", "prefix-good.kubernetes.io", true),
            ("*.kubernetes.io/blah", "prefix.kubernetes.io/blah", true),
            ("prefix.*.io/foo", "prefix.kubernetes.io/foo/bar", true),
            ("*.kubernetes.io:1111/blah", "prefix.kubernetes.io:1111/blah", true),
            ("prefix.*.io:1111/foo", "prefix.kubernetes.io:1111/foo/bar", true),
            ("*.kubernetes.io", "kubernetes.io", false),
            ("*.*.kubernetes.io", "prefix.kubernetes.io", false),
            ("*.kubernetes.io", "prefix.suffix.kubernetes.io", false),
            ("*kubernetes.io", "a.kubernetes.io", false),
            ("*.kubernetes.io:6443", "kubernetes.io:6443", false),
            ("prefix.kubernetes.io:1111", "prefix.kubernetes.io", false),
            ("kubernetes.io/foo", "kubernetes.io/bar", false),
            ("kubernetes.io", "kubernetes.io/x", true),
            ("https://kubernetes.io/v1/", "kubernetes.io/x", true),
            ("http://kubernetes.io/v2/foo", "kubernetes.io/foo", true),
            ("k[a-u]bernetes.io", "kubernetes.io/x", true),
            ("k[^u]bernetes.io", "kubernetes.io/x", false),
            ("[::1]:5000", "[::1]:5000/x", false),
            ("https://index.docker.io/v1/", "docker.io/library/nginx", true),
            ("index.docker.io", "docker.io/team/x", true),
            ("docker.io", "docker.io/team/x", true),
            ("index.docker.io", "quay.io/team/x", false),
        ] {
            let found = found(&keyring(&[location]), repository);
            // The matcher reads a bracketed host as a class of one byte, like upstream.
            assert_eq!(!found.is_empty(), matches, "{location} {repository}");
        }
    }

    #[test]
    fn the_most_specific_comes_first() {
        let keyring = keyring(&["a.io", "a.io/team", "a.io/team/x", "a.io/other", "*.io"]);
        assert_eq!(found(&keyring, "a.io/team/x"), ["a.io/team/x", "a.io/team", "a.io", "*.io"]);
    }

    #[test]
    fn both_forms_and_all_ways_to_write_a_user() {
        for auth in ["dTpwOnE=", "dTpwOnE", "dTpw\nOnE="] {
            let mut keyring = Keyring::default();
            let entries = json!({"a.io": {"auth": auth, "email": "e"}});
            keyring.add(&secret("s"), ConfigForm::Legacy, entries.to_string().as_bytes()).unwrap();
            let tracked = &keyring.lookup("a.io/x")[0];
            assert_eq!((tracked.credential.username.as_str(), tracked.credential.password.as_str()), ("u", "p:q"));
            assert!(!format!("{keyring:?}").contains("p:q"), "never shown");
        }
        let mut keyring = Keyring::default();
        for (bytes, error) in [
            (&b"{"[..], KeyringError::Json),
            (b"\"x\"", KeyringError::Json),
            (br#"{"auths": {"a.io": {"auth": "bm9jb2xvbg=="}}}"#, KeyringError::Auth),
            (br#"{"auths": {"a.io": {"auth": "%"}}}"#, KeyringError::Auth),
        ] {
            assert_eq!(keyring.add(&secret("s"), ConfigForm::Json, bytes), Err(error));
        }
        keyring.add(&secret("s"), ConfigForm::Json, b"{}").unwrap();
        let one = |username: &str, password: &str| {
            let credential = Credential { username: username.into(), password: password.into() };
            TrackedCredential { credential, secret: None, account: None }.hash()
        };
        assert_ne!(one("ab", "c"), one("a", "bc"));
    }

    proptest! {
        #[test]
        fn any_bytes_and_names_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..200), location in "\\PC{0,40}", repository in "\\PC{0,40}") {
            let _ = Keyring::default().add(&secret("s"), ConfigForm::Json, &bytes);
            let _ = found(&keyring(&[&location]), &repository);
        }

        #[test]
        fn stars_match_any_text(before in "[a-z]{0,4}", middle in "[a-z]{0,9}", after in "[a-z]{0,4}") {
            let (pattern, text) = (format!("{before}*{after}"), format!("{before}{middle}{after}"));
            prop_assert!(glob(pattern.as_bytes(), text.as_bytes()));
            let missing = format!("{pattern}0");
            prop_assert!(!glob(missing.as_bytes(), text.as_bytes()));
        }
    }
}

//! The pod's ServiceAccount in a request to a credential provider: `tokenAttributes` (KEP-4412), by upstream's rules.
//! Pure except for requests to the API server.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use machinery_api::selector::{go_quoted, label_key_problems};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::super::account::{AccountIdentity, PodAccount};
use super::config::CALL_VERSIONS;

/// What a response to a request with a token is cached for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CacheType {
    /// The ServiceAccount.
    ServiceAccount,
    /// The token.
    Token,
}

/// The ServiceAccount data that a provider receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TokenAttributes {
    audience: String,
    pub(super) cache_type: CacheType,
    is_required: bool,
    required: Vec<String>,
    optional: Vec<String>,
}

/// The same in the configuration file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Wire {
    service_account_token_audience: Option<String>,
    cache_type: Option<String>,
    require_service_account: Option<bool>,
    required_service_account_annotation_keys: Option<Vec<String>>,
    optional_service_account_annotation_keys: Option<Vec<String>>,
}

/// Validates the attributes and appends errors to `errors` in upstream's order.
pub(super) fn attributes(wire: Wire, api_version: &str, errors: &mut Vec<String>) -> TokenAttributes {
    const FIELD: &str = "providers.tokenAttributes";
    let audience = wire.service_account_token_audience.unwrap_or_default();
    if audience.is_empty() {
        errors.push(format!("{FIELD}.serviceAccountTokenAudience: Required value"));
    }
    if wire.require_service_account.is_none() {
        errors.push(format!("{FIELD}.requireServiceAccount: Required value"));
    }
    let v1 = CALL_VERSIONS[0];
    if api_version != v1 {
        errors.push(format!("{FIELD}: Forbidden: tokenAttributes is only supported for {v1} API version"));
    }
    let required = wire.required_service_account_annotation_keys.unwrap_or_default();
    let optional = wire.optional_service_account_annotation_keys.unwrap_or_default();
    if wire.require_service_account == Some(false) && !required.is_empty() {
        errors.push(format!(
            "{FIELD}.requiredServiceAccountAnnotationKeys: Forbidden: requireServiceAccount cannot be false when \
             requiredServiceAccountAnnotationKeys is set"
        ));
    }
    for (name, keys) in [("required", &required), ("optional", &optional)] {
        let (field, mut seen) = (format!("{FIELD}.{name}ServiceAccountAnnotationKeys"), BTreeSet::new());
        for key in keys {
            // The rule for label keys, ignoring case.
            let problems = label_key_problems(&key.to_lowercase());
            errors.extend(problems.iter().map(|why| format!("{field}: Invalid value: {}: {why}", go_quoted(key))));
            if !seen.insert(key) {
                errors.push(format!("{field}: Duplicate value: {}", go_quoted(key)));
            }
        }
    }
    let both: BTreeSet<&String> = required.iter().filter(|key| optional.contains(key)).collect();
    if !both.is_empty() {
        let both = serde_json::json!(both);
        errors.push(format!("{FIELD}: Invalid value: {both}: annotation keys cannot be both required and optional"));
    }
    let cache_type = match wire.cache_type.as_deref().unwrap_or_default() {
        "ServiceAccount" => CacheType::ServiceAccount,
        "Token" => CacheType::Token,
        "" => {
            errors.push(format!(
                "{FIELD}.cacheType: Required value: cacheType is required to be set when tokenAttributes is specified. Supported \
                 values are: ServiceAccount, Token"
            ));
            CacheType::Token
        }
        other => {
            let other = go_quoted(other);
            errors.push(format!(
                "{FIELD}.cacheType: Unsupported value: {other}: supported values: \"ServiceAccount\", \"Token\""
            ));
            CacheType::Token
        }
    };
    let is_required = wire.require_service_account.unwrap_or(true);
    TokenAttributes { audience, cache_type, is_required, required, optional }
}

/// The ServiceAccount in a request.
#[derive(Clone)]
pub(super) struct AccountRequest {
    pub(super) identity: AccountIdentity,
    /// The annotations that the provider requires or accepts.
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) token: String,
    cache_type: CacheType,
}

impl fmt::Debug for AccountRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccountRequest").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// The ServiceAccount part of a cache key: other ServiceAccounts never get the response.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct AccountKey {
    namespace: String,
    name: String,
    uid: String,
    annotations: BTreeMap<String, String>,
    /// The token's hash; none = valid for all tokens of the ServiceAccount.
    token: Option<String>,
}

impl AccountKey {
    /// Returns its size in bytes for the cache's limit.
    pub(super) fn bytes(&self) -> usize {
        let annotations = self.annotations.iter().map(|(key, value)| key.len() + value.len());
        let own = [&self.namespace, &self.name, &self.uid].map(String::len);
        own.iter().sum::<usize>() + annotations.sum::<usize>() + self.token.as_ref().map_or(0, String::len)
    }
}

impl AccountRequest {
    /// Returns the cache key of a response.
    pub(super) fn cache_key(&self) -> AccountKey {
        let account_key = self.call_key();
        if self.cache_type == CacheType::Token { account_key } else { AccountKey { token: None, ..account_key } }
    }

    /// Returns the key of shared calls. It includes the token, because the provider receives the token.
    pub(super) fn call_key(&self) -> AccountKey {
        let AccountIdentity { namespace, name, uid } = self.identity.clone();
        let token = Some(hex::encode(Sha256::digest(&self.token)));
        AccountKey { namespace, name, uid, annotations: self.annotations.clone(), token }
    }

    /// Returns whether a response that is cached for other tokens, too, contains the token itself as a password.
    pub(super) fn echoes_token<'a>(&self, mut passwords: impl Iterator<Item = &'a str>) -> bool {
        self.cache_type != CacheType::Token && passwords.any(|password| password == self.token)
    }
}

/// How a provider is called for a pod.
pub(super) enum CallMode {
    /// Not at all.
    Skip,
    /// Without a ServiceAccount.
    WithoutAccount,
    /// With a ServiceAccount.
    WithAccount(Box<AccountRequest>),
}

impl TokenAttributes {
    /// Returns how the provider is called for a pod; the error is the reason why that can't be determined.
    pub(super) async fn call_mode(&self, pod: Option<&dyn PodAccount>) -> Result<CallMode, String> {
        let Some(pod) = pod else {
            return Ok(if self.is_required { CallMode::Skip } else { CallMode::WithoutAccount });
        };
        let account = pod.account().await.map_err(|why| format!("failed to get service account: {why}"))?;
        // A pod without a required annotation has not opted in.
        let has_all = self.required.iter().all(|key| account.annotations.contains_key(key));
        if !has_all {
            return Ok(CallMode::Skip);
        }
        let wanted = self.required.iter().chain(&self.optional);
        let annotations = wanted.filter_map(|key| account.annotations.get_key_value(key));
        let annotations = annotations.map(|(key, value)| (key.clone(), value.clone())).collect();
        let token = pod.token(&self.audience, &account.identity).await;
        let token = token.map_err(|why| format!("failed to get service account token: {why}"))?;
        let (identity, cache_type) = (account.identity, self.cache_type);
        Ok(CallMode::WithAccount(Box::new(AccountRequest { identity, annotations, token, cache_type })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, version: &str) -> Vec<String> {
        let mut errors = Vec::new();
        let _ = attributes(serde_json::from_str(text).unwrap(), version, &mut errors);
        errors
    }

    #[test]
    fn errors_are_upstreams() {
        let good = r#"{"serviceAccountTokenAudience": "a", "cacheType": "Token", "requireServiceAccount": true"#;
        assert!(read(&format!("{good}}}"), CALL_VERSIONS[0]).is_empty());
        assert!(
            read(&format!("{good}, \"requiredServiceAccountAnnotationKeys\": [\"A.io/X\"]}}"), CALL_VERSIONS[0])
                .is_empty()
        );
        let of = |why: &str| format!("providers.tokenAttributes{why}");
        for (from, to, wanted) in [
            ("\"a\"", "\"\"", ".serviceAccountTokenAudience: Required value"),
            ("true", "null", ".requireServiceAccount: Required value"),
            (
                "\"Token\"",
                "null",
                ".cacheType: Required value: cacheType is required to be set when tokenAttributes is specified. Supported values are: ServiceAccount, Token",
            ),
            (
                "\"Token\"",
                "\"Pod\"",
                ".cacheType: Unsupported value: \"Pod\": supported values: \"ServiceAccount\", \"Token\"",
            ),
            (
                "true",
                "false, \"requiredServiceAccountAnnotationKeys\": [\"x\"]",
                ".requiredServiceAccountAnnotationKeys: Forbidden: requireServiceAccount cannot be false when requiredServiceAccountAnnotationKeys is set",
            ),
            (
                "true",
                "true, \"optionalServiceAccountAnnotationKeys\": [\"x\", \"x\"]",
                ".optionalServiceAccountAnnotationKeys: Duplicate value: \"x\"",
            ),
            (
                "true",
                "true, \"optionalServiceAccountAnnotationKeys\": [\"x\"], \"requiredServiceAccountAnnotationKeys\": [\"x\"]",
                ": Invalid value: [\"x\"]: annotation keys cannot be both required and optional",
            ),
        ] {
            assert_eq!(read(&format!("{}}}", good.replace(from, to)), CALL_VERSIONS[0]), [of(wanted)], "{to}");
        }
        let bad = read(&format!("{good}, \"optionalServiceAccountAnnotationKeys\": [\"a b\"]}}"), CALL_VERSIONS[0]);
        assert!(bad[0].starts_with(&of(".optionalServiceAccountAnnotationKeys: Invalid value: \"a b\": ")), "{bad:?}");
        let wanted =
            ": Forbidden: tokenAttributes is only supported for credentialprovider.kubelet.k8s.io/v1 API version";
        assert_eq!(read(&format!("{good}}}"), CALL_VERSIONS[2]), [of(wanted)]);
    }
}

//! What a credential provider is told of a pod's ServiceAccount: `tokenAttributes` (KEP-4412), by upstream's rules. Pure but for
//! asking.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use machinery_api::selector::{go_quoted, label_key_problems};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::super::account::{AccountIdentity, PodAccount};
use super::config::CALL_VERSIONS;

/// What an answer that came with a token holds for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CacheType {
    /// For the ServiceAccount.
    ServiceAccount,
    /// For the token.
    Token,
}

/// What a provider wants to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TokenAttributes {
    audience: String,
    pub(super) cache_type: CacheType,
    is_required: bool,
    required: Vec<String>,
    optional: Vec<String>,
}

/// The same as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Wire {
    service_account_token_audience: Option<String>,
    cache_type: Option<String>,
    require_service_account: Option<bool>,
    required_service_account_annotation_keys: Option<Vec<String>>,
    optional_service_account_annotation_keys: Option<Vec<String>>,
}

/// Reads what is written; what is wrong with it goes to `errors`, in upstream's order.
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
            // The rule of a label's key, whatever the case.
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

/// On whose behalf a provider is asked.
#[derive(Clone)]
pub(super) struct Asker {
    pub(super) identity: AccountIdentity,
    /// Those that the provider wants.
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) token: String,
    cache_type: CacheType,
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asker").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// Whose an answer is: nobody else's ServiceAccount finds it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Whose {
    namespace: String,
    name: String,
    uid: String,
    annotations: BTreeMap<String, String>,
    /// None where it holds for all tokens of the ServiceAccount.
    token: Option<String>,
}

impl Whose {
    /// What it takes where it is kept.
    pub(super) fn bytes(&self) -> usize {
        let annotations = self.annotations.iter().map(|(key, value)| key.len() + value.len());
        let own = [&self.namespace, &self.name, &self.uid].map(String::len);
        own.iter().sum::<usize>() + annotations.sum::<usize>() + self.token.as_ref().map_or(0, String::len)
    }
}

impl Asker {
    /// What an answer is kept under.
    pub(super) fn kept_for(&self) -> Whose {
        let whose = self.of_token();
        if self.cache_type == CacheType::Token { whose } else { Whose { token: None, ..whose } }
    }

    /// What a call is shared under: its token is told to the provider.
    pub(super) fn of_token(&self) -> Whose {
        let AccountIdentity { namespace, name, uid } = self.identity.clone();
        let token = Some(hex::encode(Sha256::digest(&self.token)));
        Whose { namespace, name, uid, annotations: self.annotations.clone(), token }
    }

    /// Whether an answer that is kept for other tokens, too, is the token itself.
    pub(super) fn is_echoed<'a>(&self, mut passwords: impl Iterator<Item = &'a str>) -> bool {
        self.cache_type != CacheType::Token && passwords.any(|password| password == self.token)
    }
}

/// Whether and how a provider is asked.
pub(super) enum Asking {
    /// Not for this pod.
    Not,
    /// Without a ServiceAccount.
    Plain,
    /// With one.
    As(Box<Asker>),
}

impl TokenAttributes {
    /// What a provider is told for a pod; an error is why it can't be.
    pub(super) async fn asking(&self, pod: Option<&dyn PodAccount>) -> Result<Asking, String> {
        let Some(pod) = pod else { return Ok(if self.is_required { Asking::Not } else { Asking::Plain }) };
        let account = pod.account().await.map_err(|why| format!("failed to get service account: {why}"))?;
        // A key that is missing is a workload that didn't opt in.
        let has_all = self.required.iter().all(|key| account.annotations.contains_key(key));
        if !has_all {
            return Ok(Asking::Not);
        }
        let wanted = self.required.iter().chain(&self.optional);
        let annotations = wanted.filter_map(|key| account.annotations.get_key_value(key));
        let annotations = annotations.map(|(key, value)| (key.clone(), value.clone())).collect();
        let token = pod.token(&self.audience, &account.identity).await;
        let token = token.map_err(|why| format!("failed to get service account token: {why}"))?;
        let (identity, cache_type) = (account.identity, self.cache_type);
        Ok(Asking::As(Box::new(Asker { identity, annotations, token, cache_type })))
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
    fn what_is_wrong_is_told_as_upstream_does() {
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

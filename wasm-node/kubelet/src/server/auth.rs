//! Authentication and authorization of requests to a node: TokenReviews and SubjectAccessReviews, with a cache.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::http::{Method, StatusCode};
use http::Request;
use http::header::CONTENT_TYPE;
use kube::Client;
use machinery_env::Env;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// How long results are cached (upstream's): a token's user, an allowed and a denied access.
const TOKEN_TTL: Duration = Duration::from_secs(120);
const ALLOWED_TTL: Duration = Duration::from_secs(300);
const DENIED_TTL: Duration = Duration::from_secs(30);
/// Maximum entries of a cache; a full cache is cleared.
const CACHE_ENTRIES_MAX: usize = 1024;

/// A user, from a certificate of the cluster's CA or a token.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    user: String,
    groups: Vec<String>,
}

impl Identity {
    /// Returns the subject of a verified certificate. Of several common names the last one counts, as in Go.
    pub(crate) fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let subject = certificate.subject();
        let user = subject.iter_common_name().last()?.as_str().ok()?.to_owned();
        let groups =
            subject.iter_organization().filter_map(|group| group.as_str().ok().map(ToOwned::to_owned)).collect();
        Some(Self { user, groups })
    }
}

/// Cached results with their expiry.
type ReviewCache<K, V> = Mutex<HashMap<K, (V, Duration)>>;

type AccessKey = (Identity, &'static str, &'static str);

/// Sends reviews to the API server.
pub(crate) struct Authority {
    client: Client,
    env: Env,
    node: String,
    /// Users by the token's digest; none = the token is invalid.
    tokens: ReviewCache<[u8; 32], Option<Identity>>,
    accesses: ReviewCache<AccessKey, bool>,
}

/// Maps a path like upstream's kubelet: access to one of these subresources of `nodes` is required.
fn subresources(path: &str) -> &'static [&'static str] {
    let under = |root: &str| path == root || path.strip_prefix(root).is_some_and(|rest| rest.starts_with('/'));
    if under("/stats") {
        &["stats"]
    } else if under("/metrics") {
        &["metrics"]
    } else if under("/logs") {
        &["log"]
    } else if under("/healthz") {
        &["healthz", "proxy"]
    } else if under("/pods") {
        &["pods", "proxy"]
    } else {
        &["proxy"]
    }
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

impl Authority {
    pub(crate) fn new(client: Client, env: Env, node: String) -> Self {
        Self { client, env, node, tokens: Mutex::default(), accesses: Mutex::default() }
    }

    /// Authenticates and authorizes a request.
    pub(crate) async fn check(
        &self,
        certificate: Option<Identity>,
        token: Option<String>,
        method: &Method,
        path: &str,
    ) -> Result<(), (StatusCode, String)> {
        let identity = match (certificate, token) {
            (Some(identity), _) => Some(identity),
            (None, Some(token)) => self.token_user(&token).await?,
            (None, None) => None,
        };
        let Some(identity) = identity else { return Err((StatusCode::UNAUTHORIZED, "Unauthorized".into())) };
        let (verb, wanted) = (verb(method), subresources(path));
        for subresource in wanted {
            if self.is_allowed(&identity, verb, subresource).await? {
                return Ok(());
            }
        }
        let message =
            format!("Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)={wanted:?})\n", identity.user);
        Err((StatusCode::FORBIDDEN, message))
    }

    async fn review(&self, path: &str, body: &Value) -> Result<Value, (StatusCode, String)> {
        let unreachable = |error: &dyn std::fmt::Display| {
            tracing::debug!(path, %error, "a review by the API server failed");
            (StatusCode::SERVICE_UNAVAILABLE, "the API server cannot be reached to authorize the request\n".to_owned())
        };
        let request = Request::post(path)
            .header(CONTENT_TYPE, "application/json")
            .body(body.to_string().into_bytes())
            .map_err(|error| unreachable(&error))?;
        self.client.request(request).await.map_err(|error| unreachable(&error))
    }

    async fn token_user(&self, token: &str) -> Result<Option<Identity>, (StatusCode, String)> {
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let now = self.env.elapsed();
        if let Some((known, until)) = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(&key)
            && *until > now
        {
            return Ok(known.clone());
        }
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
        let answer = self.review("/apis/authentication.k8s.io/v1/tokenreviews", &body).await?;
        let status = &answer["status"];
        let identity = (status["authenticated"] == true).then(|| Identity {
            user: status["user"]["username"].as_str().unwrap_or_default().to_owned(),
            groups: strings(&status["user"]["groups"]),
        });
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= CACHE_ENTRIES_MAX {
            tokens.clear();
        }
        tokens.insert(key, (identity.clone(), now + TOKEN_TTL));
        Ok(identity)
    }

    async fn is_allowed(
        &self,
        identity: &Identity,
        verb: &'static str,
        subresource: &'static str,
    ) -> Result<bool, (StatusCode, String)> {
        let key: AccessKey = (identity.clone(), verb, subresource);
        let now = self.env.elapsed();
        if let Some((known, until)) = self.accesses.lock().unwrap_or_else(PoisonError::into_inner).get(&key)
            && *until > now
        {
            return Ok(*known);
        }
        let body = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": identity.user, "groups": identity.groups,
                "resourceAttributes": {
                    "verb": verb, "version": "v1", "resource": "nodes", "subresource": subresource, "name": self.node,
                },
            },
        });
        let answer = self.review("/apis/authorization.k8s.io/v1/subjectaccessreviews", &body).await?;
        let allowed = answer["status"]["allowed"] == true;
        let until = now + if allowed { ALLOWED_TTL } else { DENIED_TTL };
        let mut accesses = self.accesses.lock().unwrap_or_else(PoisonError::into_inner);
        if accesses.len() >= CACHE_ENTRIES_MAX {
            accesses.clear();
        }
        accesses.insert(key, (allowed, until));
        Ok(allowed)
    }
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(ToOwned::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_mapped_as_upstream_does() {
        for (path, want) in [
            ("/stats/summary", &["stats"][..]),
            ("/metrics/resource", &["metrics"]),
            ("/metricsx", &["proxy"]),
            ("/pods", &["pods", "proxy"]),
            ("/healthz", &["healthz", "proxy"]),
            ("/containerLogs/a/b/c", &["proxy"]),
        ] {
            assert_eq!(subresources(path), want, "{path}");
        }
    }
}

//! Who asks a node, and whether the API server lets them: reviews of tokens and of access, kept for a while.

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

/// How long an answer holds (upstream's): a token's user, an allowed and a refused access.
const TOKEN_TTL: Duration = Duration::from_secs(120);
const ALLOWED_TTL: Duration = Duration::from_secs(300);
const REFUSED_TTL: Duration = Duration::from_secs(30);
/// Answers that are kept; over it they are forgotten and asked for again.
const KEPT_MAX: usize = 1024;

/// A user, from a certificate of the cluster's CA or a token.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    user: String,
    groups: Vec<String>,
}

impl Identity {
    /// The subject of a certificate that was verified.
    pub(crate) fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let subject = certificate.subject();
        let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups =
            subject.iter_organization().filter_map(|group| group.as_str().ok().map(ToOwned::to_owned)).collect();
        Some(Self { user, groups })
    }
}

/// Answers, and until when they hold.
type Kept<K, V> = Mutex<HashMap<K, (V, Duration)>>;

type Access = (Identity, &'static str, &'static str);

/// Asks the API server.
pub(crate) struct Authority {
    client: Client,
    env: Env,
    node: String,
    /// By the token's digest; none = it is no token.
    tokens: Kept<[u8; 32], Option<Identity>>,
    accesses: Kept<Access, bool>,
}

/// What a request is about, as upstream's kubelet maps it: the subresources of `nodes` of which one must be allowed.
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

    /// Whether the request may be answered.
    pub(crate) async fn check(
        &self,
        certificate: Option<Identity>,
        token: Option<String>,
        method: &Method,
        path: &str,
    ) -> Result<(), (StatusCode, String)> {
        let identity = match (certificate, token) {
            (Some(identity), _) => Some(identity),
            (None, Some(token)) => self.of_token(&token).await?,
            (None, None) => None,
        };
        let Some(identity) = identity else { return Err((StatusCode::UNAUTHORIZED, "Unauthorized".into())) };
        let (verb, wanted) = (verb(method), subresources(path));
        for subresource in wanted {
            if self.may(&identity, verb, subresource).await? {
                return Ok(());
            }
        }
        let message =
            format!("Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)={wanted:?})\n", identity.user);
        Err((StatusCode::FORBIDDEN, message))
    }

    async fn review(&self, path: &str, body: &Value) -> Result<Value, (StatusCode, String)> {
        let unreachable = |error: &dyn std::fmt::Display| {
            tracing::debug!(path, %error, "the API server cannot be asked");
            (StatusCode::SERVICE_UNAVAILABLE, "the API server cannot be asked whether this is allowed\n".to_owned())
        };
        let request = Request::post(path)
            .header(CONTENT_TYPE, "application/json")
            .body(body.to_string().into_bytes())
            .map_err(|error| unreachable(&error))?;
        self.client.request(request).await.map_err(|error| unreachable(&error))
    }

    async fn of_token(&self, token: &str) -> Result<Option<Identity>, (StatusCode, String)> {
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
        if tokens.len() >= KEPT_MAX {
            tokens.clear();
        }
        tokens.insert(key, (identity.clone(), now + TOKEN_TTL));
        Ok(identity)
    }

    async fn may(
        &self,
        identity: &Identity,
        verb: &'static str,
        subresource: &'static str,
    ) -> Result<bool, (StatusCode, String)> {
        let key: Access = (identity.clone(), verb, subresource);
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
        let until = now + if allowed { ALLOWED_TTL } else { REFUSED_TTL };
        let mut accesses = self.accesses.lock().unwrap_or_else(PoisonError::into_inner);
        if accesses.len() >= KEPT_MAX {
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

//! Authenticates a request by in-process identity, client certificate or bearer token; a request without credentials is
//! anonymous.

use std::sync::Arc;

use jiff::Timestamp;
use machinery_api::error::{ApiError, ApiResult};
use machinery_env::Env;

use super::jwt::SigningKey;
use super::tls::PeerCertificate;
use super::token_cache::TokenCache;
use super::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, UserInfo, bootstrap_tokens, tokens};
use crate::maybe_ready::MaybeReady;
use crate::websocket_token::WebSocketToken;
use apiserver_resources::objects::ObjectReader;

/// The credentials of a request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Credentials<'a> {
    /// Set in the request's extensions by code of this process.
    pub in_process: Option<&'a UserInfo>,
    /// The client certificate's state from the TLS listener.
    pub certificate: Option<&'a PeerCertificate>,
    /// The `Authorization` header.
    pub authorization: Option<&'a [u8]>,
    /// The token among the subprotocols of a WebSocket request, used if `authorization` has none.
    pub websocket: Option<&'a WebSocketToken>,
}

impl<'a> Credentials<'a> {
    /// The bearer token. Other schemes count as no credentials, as upstream.
    fn token(&self) -> Option<&'a str> {
        let text = std::str::from_utf8(self.authorization?).ok()?;
        let mut parts = text.trim().splitn(3, ' ');
        let (scheme, token) = (parts.next()?, parts.next()?);
        (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
    }
}

/// An additional token authenticator for tokens that the server did not issue. It may wait.
pub trait AuthenticateToken: Send + Sync {
    /// Returns the user of a token and the audiences that it is valid for; `None` if the token is unknown.
    fn authenticate<'a>(
        &'a self,
        token: &'a str,
        audiences: &'a [String],
    ) -> MaybeReady<'a, Result<Option<tokens::AuthenticatedToken>, String>>;
}

/// Authenticates users by certificate and token.
#[derive(Clone)]
pub struct Authenticator {
    more: Vec<Arc<dyn AuthenticateToken>>,
    key: Arc<SigningKey>,
    token_cache: Arc<TokenCache>,
    env: Env,
}

impl Authenticator {
    /// Accepts tokens signed with `key`.
    #[must_use]
    pub fn new(env: &Env, key: Arc<SigningKey>) -> Self {
        Self { key, token_cache: Arc::default(), env: env.clone(), more: Vec::new() }
    }

    /// Adds authenticators for tokens that the server did not issue, in this order.
    #[must_use]
    pub fn with_authenticators(mut self, more: Vec<Arc<dyn AuthenticateToken>>) -> Self {
        self.more = more;
        self
    }

    /// Returns the user, [`ANONYMOUS`] for a request without credentials, or 401 for invalid credentials.
    pub async fn authenticate(&self, objects: &dyn ObjectReader, credentials: &Credentials<'_>) -> ApiResult<UserInfo> {
        if let Some(user) = credentials.in_process {
            return Ok(with_group(user.clone()));
        }
        let now = self.env.now();
        if let Some(user) = credentials.certificate.and_then(|certificate| certificate.user_at(now)) {
            return Ok(with_group(UserInfo::clone(user)));
        }
        let offered = match credentials.websocket {
            Some(WebSocketToken::Valid(token)) => Some(token.as_str()),
            Some(WebSocketToken::Malformed) if credentials.token().is_none() => return Err(ApiError::Unauthorized),
            _ => None,
        };
        if let Some(token) = credentials.token().or(offered) {
            let audience = [machinery_api::names::TOKEN_ISSUER.to_owned()];
            return match self.authenticate_token(objects, now, token, &audience).await {
                Ok(authenticated) => Ok(with_group(authenticated.user)),
                Err(error) => {
                    tracing::debug!(%error, "bearer token rejected");
                    Err(ApiError::Unauthorized)
                }
            };
        }
        if matches!(credentials.certificate, Some(PeerCertificate::Invalid | PeerCertificate::Verified(..))) {
            return Err(ApiError::Unauthorized);
        }
        Ok(UserInfo { name: ANONYMOUS.into(), groups: vec![UNAUTHENTICATED.into()], ..UserInfo::default() })
    }

    /// Authenticates a token for one of the audiences, or returns the reason of the rejection.
    pub(super) async fn authenticate_token(
        &self,
        objects: &dyn ObjectReader,
        now: Timestamp,
        token: &str,
        audiences: &[String],
    ) -> Result<tokens::AuthenticatedToken, String> {
        let for_this_server = audiences.iter().any(|audience| audience == machinery_api::names::TOKEN_ISSUER);
        if for_this_server && let Some(user) = bootstrap_tokens::authenticate(objects, now, token) {
            let audiences = vec![machinery_api::names::TOKEN_ISSUER.to_owned()];
            return Ok(tokens::AuthenticatedToken { user, audiences });
        }
        let claims = self.token_cache.verify(&self.key, self.env.elapsed(), token);
        let authenticate_claims = || tokens::authenticate(claims.as_deref(), objects, now, token, audiences);
        let mut result = authenticate_claims();
        // The object that the token is bound to may exist but not be in the cache yet.
        if claims.is_some()
            && result.is_err()
            && let Some(newest) = objects.newest()
        {
            result = newest.await.and_then(|()| authenticate_claims());
        }
        for authenticator in &self.more {
            if result.is_ok() {
                break;
            }
            match authenticator.authenticate(token, audiences).get().await {
                Ok(Some(authenticated)) => result = Ok(authenticated),
                Ok(None) => {}
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// The key that signs and verifies tokens.
    #[must_use]
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// The current time of the authenticator's clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.env.now()
    }

    /// The clock and source of randomness.
    #[must_use]
    pub fn env(&self) -> &Env {
        &self.env
    }
}

/// Adds `system:authenticated` to every authenticated user.
pub(super) fn with_group(mut user: UserInfo) -> UserInfo {
    if user.name != ANONYMOUS && !user.is_in(AUTHENTICATED) && !user.is_in(UNAUTHENTICATED) {
        user.groups.push(AUTHENTICATED.to_owned());
    }
    user
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use serde_json::json;

    use super::*;
    use crate::own_certificates::Validity;
    use apiserver_resources::objects::memory::MemoryObjects;

    #[test]
    fn each_kind_of_credentials() {
        let (env, clock) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
        let key = SigningKey::from_pem(&rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let authenticator = Authenticator::new(&env, Arc::new(key));
        let map = MemoryObjects::default();
        let ask = |credentials: Credentials<'_>| {
            authenticator.authenticate(&map, &credentials).now_or_never().expect("no link waits").map(|u| u.name)
        };

        assert_eq!(ask(Credentials::default()), Ok(ANONYMOUS.into()));
        let basic = Credentials { authorization: Some(b"Basic abc"), ..Credentials::default() };
        assert_eq!(ask(basic), Ok(ANONYMOUS.into()));
        let bearer = Credentials { authorization: Some(b"Bearer nonsense"), ..Credentials::default() };
        assert_eq!(ask(bearer), Err(ApiError::Unauthorized));
        let (unknown, malformed) = (WebSocketToken::Valid("nonsense".into()), WebSocketToken::Malformed);
        for token in [&unknown, &malformed] {
            let offered = Credentials { websocket: Some(token), ..Credentials::default() };
            assert_eq!(ask(offered), Err(ApiError::Unauthorized));
        }
        let user = UserInfo { name: "jo".into(), ..UserInfo::default() };
        let in_seconds = |seconds: u64| env.now().saturating_add(std::time::Duration::from_secs(seconds)).unwrap();
        let verified = |start: u64, end: u64| {
            let valid = Validity { not_before: in_seconds(start), not_after: in_seconds(end) };
            PeerCertificate::Verified(Arc::new(user.clone()), valid)
        };
        // The clock was set back after the handshake.
        let later = verified(30, 60);
        let by_later = Credentials { certificate: Some(&later), ..Credentials::default() };
        assert_eq!(ask(by_later), Err(ApiError::Unauthorized));
        let certificate = verified(0, 60);
        let by_certificate = Credentials { certificate: Some(&certificate), ..bearer };
        assert_eq!(ask(by_certificate), Ok("jo".into()));
        clock.advance(std::time::Duration::from_secs(61));
        assert_eq!(ask(Credentials { authorization: None, ..by_certificate }), Err(ApiError::Unauthorized));
        let refused = Credentials { certificate: Some(&PeerCertificate::Invalid), ..Credentials::default() };
        assert_eq!(ask(refused), Err(ApiError::Unauthorized));
        let inside = Credentials { in_process: Some(&user), ..refused };
        let user = authenticator.authenticate(&map, &inside).now_or_never().expect("no link waits");
        assert_eq!(user.unwrap().groups, [AUTHENTICATED]);
    }

    #[test]
    fn a_cached_token_ends_with_its_bound_object() {
        let (env, _) = Env::seeded(1, "2026-01-01T00:00:00Z".parse().unwrap());
        let key = Arc::new(SigningKey::from_pem(&rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap());
        let authenticator = Authenticator::new(&env, key.clone());
        let map = MemoryObjects::default();
        let object = |name: &str, uid: &str| json!({"metadata": {"namespace": "ns", "name": name, "uid": uid}});
        map.put("", "serviceaccounts", object("robot", "u1"));
        let mut pod = object("p", "u2");
        pod["spec"] = json!({"serviceAccountName": "robot"});
        map.put("", "pods", pod.clone());
        let bound = json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p"}}});
        let issued = tokens::issue(&key, &env, &map, "ns", "robot", &bound).unwrap();
        let header = format!("Bearer {}", issued["status"]["token"].as_str().unwrap());
        let ask = || {
            let bearer = Credentials { authorization: Some(header.as_bytes()), ..Credentials::default() };
            authenticator.authenticate(&map, &bearer).now_or_never().expect("no link waits").map(|user| user.name)
        };
        assert_eq!(ask(), Ok("system:serviceaccount:ns:robot".into()));
        let offered = WebSocketToken::Valid(issued["status"]["token"].as_str().unwrap().to_owned());
        let by_websocket = Credentials { websocket: Some(&offered), ..Credentials::default() };
        let user = authenticator.authenticate(&map, &by_websocket).now_or_never().expect("no link waits");
        assert_eq!(user.map(|user| user.name), Ok("system:serviceaccount:ns:robot".into()));
        pod["metadata"]["deletionTimestamp"] = "2025-12-31T23:58:00Z".into();
        map.put("", "pods", pod.clone());
        assert_eq!(ask(), Err(ApiError::Unauthorized), "the pod is being deleted");
        pod["metadata"] = object("p", "u3")["metadata"].clone();
        map.put("", "pods", pod);
        assert_eq!(ask(), Err(ApiError::Unauthorized), "another pod of the name");
    }
}

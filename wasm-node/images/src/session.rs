//! A session of one pull or push with one endpoint of a registry (OCI distribution specification): authentication,
//! redirects, manifests, blobs. Responses are bounded in size and time, and errors of a pull never contain secrets sent
//! to the registry. Uploads are in `push/client.rs`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, HeaderValue, LOCATION};
use http::{HeaderMap, Method, StatusCode};
use machinery_env::Env;
use reqwest::{Response, Url};
use serde::Deserialize;

use super::challenge::{Challenge, challenge};
use super::keyring::Credential;
use super::manifest::{ACCEPTED, OCI_INDEX};
use super::push::{Part, Progress};
use super::registries::Endpoint;
use super::remote::{HostError, RegistryClients, describe_error};
use oci_registry::blobs::digest;

/// Maximum bytes of a manifest or config.
pub(super) const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Maximum bytes of a token response.
const TOKEN_BYTES_MAX: u64 = 1 << 20;
/// Maximum bytes read of an error response.
pub(super) const ERROR_BYTES_MAX: u64 = 16 << 10;
/// Maximum characters shown of an error response.
const ERROR_CHARS_MAX: usize = 256;
/// Shorter passwords are not searched for: they occur in any text.
const SECRET_BYTES_MIN: usize = 4;
/// Maximum redirects. Blob stores are one or two away from their registry.
const REDIRECTS_MAX: usize = 5;
/// Maximum time until a response's headers.
pub(super) const HEAD_TIME_MAX: Duration = Duration::from_secs(30);
/// Maximum time of a small body.
const BODY_TIME_MAX: Duration = Duration::from_secs(30);
/// Waits before the repetitions of a request that failed transiently.
pub(super) const RETRY_WAITS: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(1)];

/// Why a request to an endpoint failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RemoteError {
    /// The repository or blob is unknown there.
    #[error("not found")]
    NotFound,
    /// Authorization failed.
    #[error("pull access denied, the repository does not exist or may require authorization: {0}")]
    Denied(String),
    /// The endpoint is unreachable or temporarily failing.
    #[error("{0}")]
    Unavailable(String),
    /// The endpoint violates the protocol, or redirects to a forbidden host.
    #[error("{0}")]
    Failed(String),
}

impl RemoteError {
    /// Returns whether a retry may succeed.
    fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    pub(super) fn of(error: &reqwest::Error) -> Self {
        let text = describe_error(error);
        // An address rejected before the connection appears as a connection error.
        if text == HostError::Reserved.to_string() { Self::Failed(text) } else { Self::Unavailable(text) }
    }
}

impl From<HostError> for RemoteError {
    fn from(error: HostError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// A repeatable request: it is sent again after a challenge or a redirect.
pub(super) struct RegistryRequest<'c> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// The request's body.
    pub(super) body: Option<Part<'c>>,
    /// The deadline of the response, from the last progress of the body on.
    pub(super) timeout: Duration,
}

/// The access that a session requests to its repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AccessScope {
    Pull,
    Push,
}

/// One repository at one endpoint, as one user.
pub(crate) struct Session {
    remote: Arc<RegistryClients>,
    base: Url,
    /// The registry that a mirror stands for.
    stands_for: Option<String>,
    repository: String,
    access: AccessScope,
    credential: Option<Credential>,
    authorization: Mutex<Option<HeaderValue>>,
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

impl Session {
    pub(crate) fn new(
        remote: &Arc<RegistryClients>,
        endpoint: &Endpoint,
        (registry, repository): (&str, &str),
        credential: Option<Credential>,
    ) -> Result<Self, RemoteError> {
        let scheme = if endpoint.https { "https" } else { "http" };
        let base = format!("{scheme}://{}{}/{repository}/", endpoint.authority, endpoint.path);
        let base = Url::parse(&base).map_err(|_| HostError::Form)?;
        let stands_for = endpoint.is_mirror.then(|| registry.to_owned());
        let (remote, repository, authorization) = (remote.clone(), repository.to_owned(), Mutex::default());
        Ok(Self { remote, base, stands_for, repository, access: AccessScope::Pull, credential, authorization })
    }

    /// The clock of its timeouts and retries.
    pub(super) fn env(&self) -> &Env {
        &self.remote.env
    }

    /// Returns the session with push access in its token requests.
    pub(super) fn with_push_scope(self) -> Self {
        Self { access: AccessScope::Push, ..self }
    }

    /// Returns whether the registry required authentication and accepted the credential.
    pub(crate) fn used_credential(&self) -> bool {
        self.credential.is_some() && self.authorization().is_some()
    }

    /// Returns whether a text contains a secret that was sent to the registry.
    pub(super) fn contains_secret(&self, text: &str) -> bool {
        let holds = |secret: &str| secret.len() >= SECRET_BYTES_MIN && text.contains(secret);
        let value = self.authorization().clone();
        let parts = value.as_ref().and_then(|value| value.to_str().ok()?.split_once(' '));
        parts.is_some_and(|(_, secret)| holds(secret))
            || self.credential.as_ref().is_some_and(|credential| holds(&credential.password))
    }

    /// Returns a manifest and its digest, which is verified if `name` is a digest.
    pub(crate) async fn manifest(&self, name: &str) -> Result<(Vec<u8>, String), RemoteError> {
        let url = self.url("manifests", name)?;
        let response = self.get(url, &ACCEPTED.join(", ")).await?;
        let announced = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        let wanted = if name.contains(':') { Some(name.to_owned()) } else { announced.map(str::to_owned) };
        let bytes = body(self.env(), response, MANIFEST_BYTES_MAX, "its manifest").await?;
        let actual = digest(&bytes);
        match wanted.filter(|wanted| wanted.starts_with("sha256:") && *wanted != actual) {
            Some(_) => {
                Err(RemoteError::Failed(format!("its manifest has the digest {actual}, not the one that it names")))
            }
            None => Ok((bytes, actual)),
        }
    }

    /// Requests a blob from its beginning.
    pub(crate) async fn blob(&self, digest: &str) -> Result<Response, RemoteError> {
        let url = self.url("blobs", digest)?;
        self.get(url, "*/*").await
    }

    /// Returns the index of a manifest's referrers of one type (OCI distribution specification 1.1).
    pub(crate) async fn referrers(&self, digest: &str, artifact_type: &str) -> Result<Vec<u8>, RemoteError> {
        let mut url = self.url("referrers", digest)?;
        url.query_pairs_mut().append_pair("artifactType", artifact_type);
        let response = self.get(url, OCI_INDEX).await?;
        body(self.env(), response, MANIFEST_BYTES_MAX, "its list of referrers").await
    }

    /// Returns a whole small blob, verified against its digest.
    pub(crate) async fn small_blob(&self, name: &str, max_bytes: u64, what: &str) -> Result<Vec<u8>, RemoteError> {
        let bytes = body(self.env(), self.blob(name).await?, max_bytes, what).await?;
        if digest(&bytes) != name {
            return Err(RemoteError::Failed(format!("{what} is another blob than its manifest names")));
        }
        Ok(bytes)
    }

    /// Returns the URL of a manifest, a blob or the uploads.
    pub(super) fn url(&self, what: &str, name: &str) -> Result<Url, RemoteError> {
        let mut url = self.base.join(&format!("{what}/{name}")).map_err(|_| HostError::Form)?;
        if let Some(registry) = &self.stands_for {
            url.query_pairs_mut().append_pair("ns", registry);
        }
        Ok(url)
    }

    fn authorization(&self) -> std::sync::MutexGuard<'_, Option<HeaderValue>> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a GET request, with retries after transient errors.
    async fn get(&self, url: Url, accept: &str) -> Result<Response, RemoteError> {
        for wait in RETRY_WAITS {
            match self.get_once(url.clone(), accept).await {
                Err(error) if error.is_transient() => self.env().sleep(wait).await,
                done => return done,
            }
        }
        self.get_once(url, accept).await
    }

    async fn get_once(&self, url: Url, accept: &str) -> Result<Response, RemoteError> {
        let accept = HeaderValue::from_str(accept).map_err(|_| HostError::Form)?;
        let headers = HeaderMap::from_iter([(ACCEPT, accept)]);
        let call = RegistryRequest { method: Method::GET, url, headers, body: None, timeout: HEAD_TIME_MAX };
        let response = self.exchange(&call).await?;
        if response.status() == StatusCode::OK { Ok(response) } else { Err(self.response_error(response).await) }
    }

    /// Sends a request, authenticates as the registry requires, and follows redirects. Returns any other response.
    pub(super) async fn exchange(&self, call: &RegistryRequest<'_>) -> Result<Response, RemoteError> {
        let (mut url, mut redirects, mut is_authorized) = (call.url.clone(), 0, false);
        loop {
            let own = is_same_origin(&url, &self.base);
            let request = self.remote.client_for(&url)?.request(call.method.clone(), url.clone());
            let mut request = request.headers(call.headers.clone());
            if let Some(value) = self.authorization().clone().filter(|_| own) {
                request = request.header(AUTHORIZATION, value);
            }
            let response = send(self.env(), request, call.body.as_ref(), call.timeout).await?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && own && !is_authorized {
                is_authorized = true;
                let challenge = challenge(response.headers());
                self.authorize(challenge).await?;
            } else if is_redirect(&call.method, status) && redirects < REDIRECTS_MAX {
                redirects += 1;
                url = self.resolve_location(&url, response.headers(), "it redirects")?;
            } else {
                return Ok(response);
            }
        }
    }

    /// Resolves a response's `Location`; a change from https to http is an error. `it` begins the error's sentence.
    pub(super) fn resolve_location(&self, from: &Url, headers: &HeaderMap, it: &str) -> Result<Url, RemoteError> {
        let location = headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let to = location.and_then(|location| from.join(location).ok());
        let mut to = to.ok_or_else(|| RemoteError::Failed(format!("{it} to nowhere")))?;
        if from.scheme() == "https" && to.scheme() != "https" {
            return Err(RemoteError::Failed(format!("{it} to an address without TLS")));
        }
        to.set_fragment(None);
        self.remote.client_for(&to).map_err(|error| RemoteError::Failed(format!("{it}: {error}")))?;
        Ok(to)
    }

    /// Authenticates as the challenge requires.
    async fn authorize(&self, challenge: Option<Challenge>) -> Result<(), RemoteError> {
        let denied = |why: &str| RemoteError::Denied(why.to_owned());
        let value = match (challenge, &self.credential) {
            (Some(Challenge::Bearer { realm, service, scope }), _) => {
                self.token(&realm, service.as_deref(), scope.as_deref()).await?
            }
            (Some(Challenge::Basic), Some(_)) => self.basic()?,
            (Some(Challenge::Basic), None) => return Err(denied("no credentials for it")),
            (None, _) => return Err(denied("it asks for what is neither a token nor a password")),
        };
        *self.authorization() = Some(value);
        Ok(())
    }

    fn basic(&self) -> Result<HeaderValue, RemoteError> {
        use base64::Engine as _;
        let Some(Credential { username, password }) = &self.credential else {
            return Err(RemoteError::Denied("no credentials for it".into()));
        };
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
        let mut value = HeaderValue::from_str(&format!("Basic {pair}"))
            .map_err(|_| RemoteError::Denied("its credentials are no text".into()))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Requests a token from the registry's realm, which may be any external host, as with Docker Hub. This gives a
    /// registry nothing new: it could request the password itself.
    async fn token(&self, realm: &str, service: Option<&str>, scope: Option<&str>) -> Result<HeaderValue, RemoteError> {
        let failed = |why: &str| RemoteError::Failed(format!("its token realm {why}"));
        let mut url = Url::parse(realm).map_err(|_| failed("is not a URL"))?;
        if self.base.scheme() == "https" && url.scheme() != "https" {
            return Err(failed("has no TLS"));
        }
        let service = service.map(|service| ("service", service.to_owned()));
        let scopes = scopes(self.access, &self.repository, scope).into_iter().map(|scope| ("scope", scope));
        url.query_pairs_mut().extend_pairs(service.into_iter().chain(scopes));
        let client = self.remote.client_for(&url).map_err(|error| failed(&format!("is refused: {error}")))?;
        let mut request = client.get(url);
        if self.credential.is_some() {
            request = request.header(AUTHORIZATION, self.basic()?);
        }
        let response = send(self.env(), request, None, HEAD_TIME_MAX).await?;
        if response.status() != StatusCode::OK {
            return Err(self.response_error(response).await);
        }
        let bytes = body(self.env(), response, TOKEN_BYTES_MAX, "its token").await?;
        // The parser's error may contain the token.
        let token: Token = serde_json::from_slice(&bytes).map_err(|_| failed("sent no token"))?;
        let token = token.token.filter(|token| !token.is_empty()).or(token.access_token);
        let token = token.ok_or_else(|| failed("sent no token"))?;
        let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| failed("sent no token"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Maps an unexpected response to an error.
    async fn response_error(&self, response: Response) -> RemoteError {
        let status = response.status();
        let mut text = status.to_string();
        // A registry that received a password could repeat it in a public message.
        if self.credential.is_none()
            && let Ok(bytes) = body(self.env(), response, ERROR_BYTES_MAX, "an error").await
            && let Some(message) = registry_message(&bytes)
        {
            text = format!("{text}: {message}");
        }
        match status {
            StatusCode::NOT_FOUND => RemoteError::NotFound,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RemoteError::Denied(text),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => RemoteError::Unavailable(text),
            status if status.is_server_error() => RemoteError::Unavailable(text),
            status if status.is_redirection() => {
                RemoteError::Failed(format!("it redirects more than {REDIRECTS_MAX} times"))
            }
            _ => RemoteError::Failed(text),
        }
    }
}

fn is_same_origin(one: &Url, other: &Url) -> bool {
    one.origin() == other.origin()
}

/// Returns whether a response redirects the request. A request with side effects is repeated only if the status
/// preserves the method.
fn is_redirect(method: &Method, status: StatusCode) -> bool {
    let keeps_method = matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
    status.is_redirection() && (method.is_safe() || keeps_method)
}

/// Returns the scopes of a token request. A push adds its own scope to each, so that a token obtained for reading a
/// blob can upload it, too.
fn scopes(access: AccessScope, repository: &str, requested: Option<&str>) -> Vec<String> {
    match access {
        AccessScope::Pull => vec![requested.map_or_else(|| format!("repository:{repository}:pull"), str::to_owned)],
        AccessScope::Push => {
            let own = format!("repository:{repository}:pull,push");
            let narrower = [format!("repository:{repository}:pull"), format!("repository:{repository}:push,pull")];
            let others = requested.into_iter().flat_map(str::split_ascii_whitespace);
            let others: Vec<String> = others
                .filter(|scope| *scope != own && !narrower.iter().any(|known| known == scope))
                .map(str::to_owned)
                .collect();
            std::iter::once(own).chain(others).collect()
        }
    }
}

/// Sends a request without reading the response's body. The deadline counts from the last progress of the request's
/// body.
async fn send(
    env: &Env,
    mut request: reqwest::RequestBuilder,
    body: Option<&Part<'_>>,
    timeout: Duration,
) -> Result<Response, RemoteError> {
    let progress = Arc::new(Progress::default());
    if let Some(part) = body {
        request = request.body(part.body(&progress));
    }
    let done = progress.within(env, timeout, request.send()).await;
    match (done, progress.failure()) {
        (Some(Ok(response)), _) => Ok(response),
        (_, Some(why)) => Err(RemoteError::Failed(why)),
        (Some(Err(error)), None) => Err(RemoteError::of(&error)),
        (None, None) => Err(RemoteError::Unavailable(format!("no answer within {} s", timeout.as_secs()))),
    }
}

/// Reads a whole small body.
pub(super) async fn body(
    env: &Env,
    mut response: Response,
    max_bytes: u64,
    what: &str,
) -> Result<Vec<u8>, RemoteError> {
    let read = async {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| RemoteError::of(&error))? {
            if (bytes.len() + chunk.len()) as u64 > max_bytes {
                return Err(RemoteError::Failed(format!("{what} has more than {max_bytes} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    };
    let late = || RemoteError::Unavailable(format!("{what} takes more than {} s", BODY_TIME_MAX.as_secs()));
    env.timeout(BODY_TIME_MAX, read).await.unwrap_or_else(|_| Err(late()))
}

/// Returns the registry's own error message, if it has the specification's format.
fn registry_message(bytes: &[u8]) -> Option<String> {
    let envelope: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let message = envelope["errors"][0]["message"].as_str().filter(|message| !message.is_empty())?;
    Some(message.chars().filter(|c| !c.is_control()).take(ERROR_CHARS_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registries::Registries;

    fn session(https: bool) -> Session {
        let remote = Arc::new(RegistryClients::new(&Env::real(), Registries::default(), Vec::new()));
        let endpoint = Endpoint::built_in("a.test:5000".into(), https);
        let credential = Credential { username: "u".into(), password: "hush-hush".into() };
        Session::new(&remote, &endpoint, ("a.test:5000", "app"), Some(credential)).unwrap()
    }

    #[test]
    fn no_redirect_leads_from_tls_to_plain_http() {
        let to = |https: bool, location: &str| {
            let headers = HeaderMap::from_iter([(LOCATION, HeaderValue::from_str(location).unwrap())]);
            let session = session(https);
            session
                .resolve_location(&session.base, &headers, "it leads")
                .map(|url| url.to_string())
                .map_err(|error| error.to_string())
        };
        assert_eq!(to(true, "/v2/x?a=b#c"), Ok("https://a.test:5000/v2/x?a=b".into()));
        assert_eq!(to(true, "//b.test/x"), Ok("https://b.test/x".into()));
        assert_eq!(to(false, "https://b.test/x"), Ok("https://b.test/x".into()));
        assert_eq!(to(true, "http://a.test:5000/x"), Err("it leads to an address without TLS".into()));
        assert!(to(true, "https://127.0.0.1/x").unwrap_err().starts_with("it leads: addresses of this machine"));
        assert!(to(true, "https://[").unwrap_err().contains("to nowhere"));
    }

    #[test]
    fn a_push_requests_its_own_scope_and_that_of_the_registry() {
        let pull = |scope| scopes(AccessScope::Pull, "app", scope);
        let push = |scope| scopes(AccessScope::Push, "app", scope);
        assert_eq!(pull(None), ["repository:app:pull"]);
        assert_eq!(pull(Some("any thing")), ["any thing"]);
        for scope in [None, Some("repository:app:pull"), Some("repository:app:push,pull repository:app:pull,push")] {
            assert_eq!(push(scope), ["repository:app:pull,push"], "{scope:?}");
        }
        let scope = "repository:other:pull repository:app:delete";
        assert_eq!(push(Some(scope)), ["repository:app:pull,push", "repository:other:pull", "repository:app:delete"]);
    }

    #[test]
    fn secrets_in_messages_are_recognized() {
        let session = session(true);
        assert!(session.contains_secret("u:hush-hush") && !session.contains_secret("dTpodXNoLWh1c2g="));
        *session.authorization() = Some(session.basic().unwrap());
        assert!(session.contains_secret("you said dTpodXNoLWh1c2g=") && !session.contains_secret("Basic"));
    }
}

//! One pull's or push's session with one endpoint of a registry (OCI distribution specification): authentication, redirects,
//! manifests, blobs. Answers are bounded in size and time, and an error of a pull never holds what a registry was told in
//! confidence. What a push sends is in `push/client.rs`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, HeaderValue, LOCATION};
use http::{HeaderMap, Method, StatusCode};
use reqwest::{Response, Url};
use serde::Deserialize;

use super::challenge::{Challenge, challenge};
use super::keyring::Credential;
use super::manifest::{ACCEPTED, OCI_INDEX};
use super::push::{Part, Progress};
use super::registries::Endpoint;
use super::remote::{HostError, Remote, told};
use oci_registry::blobs::digest;

/// A manifest or config.
pub(super) const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// A token with what surrounds it.
const TOKEN_BYTES_MAX: u64 = 1 << 20;
/// What is read of an error.
pub(super) const ERROR_BYTES_MAX: u64 = 16 << 10;
/// What is shown of it.
const ERROR_CHARS_MAX: usize = 256;
/// A shorter password is a part of any text.
const SECRET_BYTES_MIN: usize = 4;
/// Blob stores are one or two away from their registry.
const REDIRECTS_MAX: usize = 5;
/// A request's answer, without its body.
pub(super) const HEAD_TIME_MAX: Duration = Duration::from_secs(30);
/// A small body.
const BODY_TIME_MAX: Duration = Duration::from_secs(30);
/// Before a request is tried again that failed for no fault of ours.
pub(super) const RETRY_WAITS: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(1)];

/// Why an endpoint gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RemoteError {
    /// It doesn't know it.
    #[error("not found")]
    NotFound,
    /// We may not.
    #[error("pull access denied, the repository does not exist or may require authorization: {0}")]
    Denied(String),
    /// It doesn't answer, or says that it can't.
    #[error("{0}")]
    Unavailable(String),
    /// It breaks its protocol, or leads to where we don't go.
    #[error("{0}")]
    Failed(String),
}

impl RemoteError {
    /// Whether another try may end otherwise.
    fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    pub(super) fn of(error: &reqwest::Error) -> Self {
        let text = told(error);
        // What was refused before a connection was made comes back as the connection's error.
        if text == HostError::Reserved.to_string() { Self::Failed(text) } else { Self::Unavailable(text) }
    }
}

impl From<HostError> for RemoteError {
    fn from(error: HostError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// A request that can be sent again, after a challenge or to where it is redirected.
pub(super) struct Call<'c> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// What it sends.
    pub(super) body: Option<Part<'c>>,
    /// The deadline of the answer, from the last progress of the body on.
    pub(super) patience: Duration,
}

/// What a session may do with its repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Pull,
    Push,
}

/// One repository at one endpoint, as one user.
pub(crate) struct Session {
    remote: Arc<Remote>,
    base: Url,
    /// Whom a mirror stands for.
    stands_for: Option<String>,
    repository: String,
    access: Access,
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
        remote: &Arc<Remote>,
        endpoint: &Endpoint,
        (registry, repository): (&str, &str),
        credential: Option<Credential>,
    ) -> Result<Self, RemoteError> {
        let scheme = if endpoint.https { "https" } else { "http" };
        let base = format!("{scheme}://{}{}/{repository}/", endpoint.authority, endpoint.path);
        let base = Url::parse(&base).map_err(|_| HostError::Form)?;
        let stands_for = endpoint.is_mirror.then(|| registry.to_owned());
        let (remote, repository, authorization) = (remote.clone(), repository.to_owned(), Mutex::default());
        Ok(Self { remote, base, stands_for, repository, access: Access::Pull, credential, authorization })
    }

    /// The same, asking for tokens that may push, too.
    pub(super) fn that_pushes(self) -> Self {
        Self { access: Access::Push, ..self }
    }

    /// Whether it was asked who we are, and took the credential.
    pub(crate) fn used_credential(&self) -> bool {
        self.credential.is_some() && self.authorization().is_some()
    }

    /// Whether a text holds what the registry was told in confidence.
    pub(super) fn reveals(&self, text: &str) -> bool {
        let holds = |secret: &str| secret.len() >= SECRET_BYTES_MIN && text.contains(secret);
        let value = self.authorization().clone();
        let told = value.as_ref().and_then(|value| value.to_str().ok()?.split_once(' '));
        told.is_some_and(|(_, secret)| holds(secret))
            || self.credential.as_ref().is_some_and(|credential| holds(&credential.password))
    }

    /// A manifest and its digest, which is checked where `name` is one.
    pub(crate) async fn manifest(&self, name: &str) -> Result<(Vec<u8>, String), RemoteError> {
        let url = self.url("manifests", name)?;
        let response = self.get(url, &ACCEPTED.join(", ")).await?;
        let announced = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
        let wanted = if name.contains(':') { Some(name.to_owned()) } else { announced.map(str::to_owned) };
        let bytes = body(response, MANIFEST_BYTES_MAX, "its manifest").await?;
        let actual = digest(&bytes);
        match wanted.filter(|wanted| wanted.starts_with("sha256:") && *wanted != actual) {
            Some(_) => {
                Err(RemoteError::Failed(format!("its manifest has the digest {actual}, not the one that it names")))
            }
            None => Ok((bytes, actual)),
        }
    }

    /// A blob, from its beginning.
    pub(crate) async fn blob(&self, digest: &str) -> Result<Response, RemoteError> {
        let url = self.url("blobs", digest)?;
        self.get(url, "*/*").await
    }

    /// The index of what refers to a manifest, of one type (OCI distribution specification 1.1).
    pub(crate) async fn referrers(&self, digest: &str, artifact_type: &str) -> Result<Vec<u8>, RemoteError> {
        let mut url = self.url("referrers", digest)?;
        url.query_pairs_mut().append_pair("artifactType", artifact_type);
        body(self.get(url, OCI_INDEX).await?, MANIFEST_BYTES_MAX, "its list of referrers").await
    }

    /// A small blob, whole and as its digest has it.
    pub(crate) async fn small_blob(&self, name: &str, max_bytes: u64, what: &str) -> Result<Vec<u8>, RemoteError> {
        let bytes = body(self.blob(name).await?, max_bytes, what).await?;
        if digest(&bytes) != name {
            return Err(RemoteError::Failed(format!("{what} is another blob than its manifest names")));
        }
        Ok(bytes)
    }

    /// The address of a manifest, a blob or the uploads.
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

    /// Asks, and again where that may help.
    async fn get(&self, url: Url, accept: &str) -> Result<Response, RemoteError> {
        for wait in RETRY_WAITS {
            match self.get_once(url.clone(), accept).await {
                Err(error) if error.is_transient() => tokio::time::sleep(wait).await,
                done => return done,
            }
        }
        self.get_once(url, accept).await
    }

    async fn get_once(&self, url: Url, accept: &str) -> Result<Response, RemoteError> {
        let accept = HeaderValue::from_str(accept).map_err(|_| HostError::Form)?;
        let headers = HeaderMap::from_iter([(ACCEPT, accept)]);
        let call = Call { method: Method::GET, url, headers, body: None, patience: HEAD_TIME_MAX };
        let response = self.exchange(&call).await?;
        if response.status() == StatusCode::OK { Ok(response) } else { Err(self.refusal(response).await) }
    }

    /// Sends a call, with the authorization that the registry asks for, to where it is redirected; returns any other answer.
    pub(super) async fn exchange(&self, call: &Call<'_>) -> Result<Response, RemoteError> {
        let (mut url, mut redirects, mut asked) = (call.url.clone(), 0, false);
        loop {
            let own = is_same_origin(&url, &self.base);
            let request = self.remote.client_for(&url)?.request(call.method.clone(), url.clone());
            let mut request = request.headers(call.headers.clone());
            if let Some(value) = self.authorization().clone().filter(|_| own) {
                request = request.header(AUTHORIZATION, value);
            }
            let response = send(request, call.body.as_ref(), call.patience).await?;
            let status = response.status();
            if status == StatusCode::UNAUTHORIZED && own && !asked {
                asked = true;
                let challenge = challenge(response.headers());
                self.authorize(challenge).await?;
            } else if is_redirect(&call.method, status) && redirects < REDIRECTS_MAX {
                redirects += 1;
                url = self.led(&url, response.headers(), "it redirects")?;
            } else {
                return Ok(response);
            }
        }
    }

    /// Where an answer's `Location` leads: never from TLS to none. `it` is the beginning of an error's sentence.
    pub(super) fn led(&self, from: &Url, headers: &HeaderMap, it: &str) -> Result<Url, RemoteError> {
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

    /// Does what the registry asks for, to be let in.
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

    /// A token of the registry's realm. That may be any host on the outside, as Docker Hub's is: a registry could ask for the
    /// password itself, so that it learns nothing new by naming who else shall have it.
    async fn token(&self, realm: &str, service: Option<&str>, scope: Option<&str>) -> Result<HeaderValue, RemoteError> {
        let failed = |why: &str| RemoteError::Failed(format!("its token realm {why}"));
        let mut url = Url::parse(realm).map_err(|_| failed("is no address"))?;
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
        let response = send(request, None, HEAD_TIME_MAX).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response).await);
        }
        let bytes = body(response, TOKEN_BYTES_MAX, "its token").await?;
        // What the error says may hold the token.
        let token: Token = serde_json::from_slice(&bytes).map_err(|_| failed("sent no token"))?;
        let token = token.token.filter(|token| !token.is_empty()).or(token.access_token);
        let token = token.ok_or_else(|| failed("sent no token"))?;
        let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| failed("sent no token"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// What an answer that isn't the wanted one means.
    async fn refusal(&self, response: Response) -> RemoteError {
        let status = response.status();
        let mut text = status.to_string();
        // Who was told a password could say it again, for all to read.
        if self.credential.is_none()
            && let Ok(bytes) = body(response, ERROR_BYTES_MAX, "an error").await
            && let Some(said) = said(&bytes)
        {
            text = format!("{text}: {said}");
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

/// Whether an answer sends the same request elsewhere: what changes something is repeated only where the method has to stay.
fn is_redirect(method: &Method, status: StatusCode) -> bool {
    let keeps_method = matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
    status.is_redirection() && (method.is_safe() || keeps_method)
}

/// The scopes that a token is asked for. A push names its own in each, so that a token that it got for a look at a blob uploads it, too.
fn scopes(access: Access, repository: &str, asked: Option<&str>) -> Vec<String> {
    match access {
        Access::Pull => vec![asked.map_or_else(|| format!("repository:{repository}:pull"), str::to_owned)],
        Access::Push => {
            let own = format!("repository:{repository}:pull,push");
            let narrower = [format!("repository:{repository}:pull"), format!("repository:{repository}:push,pull")];
            let others = asked.into_iter().flat_map(str::split_ascii_whitespace);
            let others: Vec<String> = others
                .filter(|scope| *scope != own && !narrower.iter().any(|known| known == scope))
                .map(str::to_owned)
                .collect();
            std::iter::once(own).chain(others).collect()
        }
    }
}

/// Sends a request; none of its answer's body is read yet. The deadline counts from the last progress of what is sent.
async fn send(
    mut request: reqwest::RequestBuilder,
    body: Option<&Part<'_>>,
    patience: Duration,
) -> Result<Response, RemoteError> {
    let progress = Arc::new(Progress::default());
    if let Some(part) = body {
        request = request.body(part.body(&progress));
    }
    let done = progress.within(patience, request.send()).await;
    match (done, progress.failure()) {
        (Some(Ok(response)), _) => Ok(response),
        (_, Some(why)) => Err(RemoteError::Failed(why)),
        (Some(Err(error)), None) => Err(RemoteError::of(&error)),
        (None, None) => Err(RemoteError::Unavailable(format!("no answer within {} s", patience.as_secs()))),
    }
}

/// A small body, whole.
pub(super) async fn body(mut response: Response, max_bytes: u64, what: &str) -> Result<Vec<u8>, RemoteError> {
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
    tokio::time::timeout(BODY_TIME_MAX, read).await.unwrap_or_else(|_| Err(late()))
}

/// The registry's own words, where it sent some in the specification's form.
fn said(bytes: &[u8]) -> Option<String> {
    let envelope: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let message = envelope["errors"][0]["message"].as_str().filter(|message| !message.is_empty())?;
    Some(message.chars().filter(|c| !c.is_control()).take(ERROR_CHARS_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::registries::Registries;

    fn session(https: bool) -> Session {
        let remote = Arc::new(Remote::new(Registries::default(), None));
        let endpoint = Endpoint::built_in("a.test:5000".into(), https);
        let credential = Credential { username: "u".into(), password: "hush-hush".into() };
        Session::new(&remote, &endpoint, ("a.test:5000", "app"), Some(credential)).unwrap()
    }

    #[test]
    fn nobody_is_led_from_tls_to_none() {
        let to = |https: bool, location: &str| {
            let headers = HeaderMap::from_iter([(LOCATION, HeaderValue::from_str(location).unwrap())]);
            let session = session(https);
            session
                .led(&session.base, &headers, "it leads")
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
    fn a_push_asks_for_its_own_scope_and_the_registrys() {
        let pull = |asked| scopes(Access::Pull, "app", asked);
        let push = |asked| scopes(Access::Push, "app", asked);
        assert_eq!(pull(None), ["repository:app:pull"]);
        assert_eq!(pull(Some("any thing")), ["any thing"]);
        for asked in [None, Some("repository:app:pull"), Some("repository:app:push,pull repository:app:pull,push")] {
            assert_eq!(push(asked), ["repository:app:pull,push"], "{asked:?}");
        }
        let asked = "repository:other:pull repository:app:delete";
        assert_eq!(push(Some(asked)), ["repository:app:pull,push", "repository:other:pull", "repository:app:delete"]);
    }

    #[test]
    fn what_was_told_in_confidence_is_recognized() {
        let session = session(true);
        assert!(session.reveals("u:hush-hush") && !session.reveals("dTpodXNoLWh1c2g="));
        *session.authorization() = Some(session.basic().unwrap());
        assert!(session.reveals("you said dTpodXNoLWh1c2g=") && !session.reveals("Basic"));
    }
}

//! Requests for objects of any kind: paths, content types and errors, for controllers, recorders and elections.

use std::time::Duration;

use http::{Method, Request, header::CONTENT_TYPE};
use kube::Client;
use serde::Serialize;
use serde_json::Value;

use crate::Kind;
use crate::wire::ReadWire;
use machinery_api::ObjectKey;
use machinery_env::Env;

const JSON: &str = "application/json";

/// The type of a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 7386: lists are replaced whole.
    Merge,
    /// Kubernetes' strategic merge: lists with merge keys are merged by element.
    Strategic,
    /// RFC 6902: a list of operations, with tests.
    Json,
}

impl PatchType {
    /// Its content type.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
            Self::Json => "application/json-patch+json",
        }
    }
}

/// Sends requests for objects of any kind.
#[derive(Clone)]
pub struct ApiClient {
    client: Client,
}

impl std::fmt::Debug for ApiClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiClient").finish_non_exhaustive()
    }
}

impl From<Client> for ApiClient {
    fn from(client: Client) -> Self {
        Self { client }
    }
}

/// The path of an object or of its subresource.
fn path(kind: &Kind, key: &ObjectKey, subresource: Option<&str>) -> String {
    let object = kind.path(key);
    subresource.map_or(object.clone(), |subresource| format!("{object}/{subresource}"))
}

#[expect(clippy::missing_errors_doc, reason = "each fails where the server refuses or cannot be reached")]
impl ApiClient {
    /// GET of an object.
    pub async fn get<R: ReadWire>(&self, kind: &Kind, key: &ObjectKey) -> Result<R, kube::Error> {
        self.send(Method::GET, &path(kind, key, None), JSON, None::<&Value>).await
    }

    /// GET of a path with its query.
    pub async fn get_path<R: ReadWire>(&self, path: &str) -> Result<R, kube::Error> {
        self.send(Method::GET, path, JSON, None::<&Value>).await
    }

    /// PUT of an object to a path.
    pub async fn put_path<R: ReadWire>(&self, path: &str, object: &impl Serialize) -> Result<R, kube::Error> {
        self.send(Method::PUT, path, JSON, Some(object)).await
    }

    /// GET of a collection: of one namespace, or of all if it is empty.
    pub async fn list<R: ReadWire>(
        &self,
        kind: &Kind,
        namespace: &str,
        query: &[(&str, &str)],
    ) -> Result<R, kube::Error> {
        let path = format!("{}?{}", kind.collection_path(namespace), query_string(query));
        self.send(Method::GET, &path, JSON, None::<&Value>).await
    }

    /// POST of a new object.
    pub async fn create<R: ReadWire>(
        &self,
        kind: &Kind,
        namespace: &str,
        object: &impl Serialize,
    ) -> Result<R, kube::Error> {
        self.send(Method::POST, &kind.collection_path(namespace), JSON, Some(object)).await
    }

    /// POST to a subresource: a binding, a token, an eviction.
    pub async fn post<R: ReadWire>(
        &self,
        kind: &Kind,
        key: &ObjectKey,
        subresource: &str,
        body: &impl Serialize,
    ) -> Result<R, kube::Error> {
        self.send(Method::POST, &path(kind, key, Some(subresource)), JSON, Some(body)).await
    }

    /// PUT of an object or of its subresource.
    pub async fn update<R: ReadWire>(
        &self,
        kind: &Kind,
        key: &ObjectKey,
        subresource: Option<&str>,
        object: &impl Serialize,
    ) -> Result<R, kube::Error> {
        self.send(Method::PUT, &path(kind, key, subresource), JSON, Some(object)).await
    }

    /// PATCH of an object or of its subresource.
    pub async fn patch<R: ReadWire>(
        &self,
        kind: &Kind,
        key: &ObjectKey,
        subresource: Option<&str>,
        patch_type: PatchType,
        patch: &Value,
    ) -> Result<R, kube::Error> {
        self.send(Method::PATCH, &path(kind, key, subresource), patch_type.content_type(), Some(patch)).await
    }

    /// DELETE of an object, with `DeleteOptions`.
    pub async fn delete<R: ReadWire>(&self, kind: &Kind, key: &ObjectKey, options: &Value) -> Result<R, kube::Error> {
        self.send(Method::DELETE, &path(kind, key, None), JSON, Some(options)).await
    }

    /// DELETE of all objects of a kind in a namespace, with `DeleteOptions`.
    pub async fn delete_collection<R: ReadWire>(
        &self,
        kind: &Kind,
        namespace: &str,
        options: &Value,
    ) -> Result<R, kube::Error> {
        self.send(Method::DELETE, &kind.collection_path(namespace), JSON, Some(options)).await
    }

    async fn send<B: Serialize, R: ReadWire>(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: Option<&B>,
    ) -> Result<R, kube::Error> {
        let bytes = body.map(serde_json::to_vec).transpose().map_err(kube::Error::SerdeError)?.unwrap_or_default();
        let text = send(&self.client, method, path, content_type, bytes).await?;
        R::from_json(&text).map_err(kube::Error::SerdeError)
    }
}

/// Sends a request and returns the response's text. An empty media type stands for a request without a body.
///
/// # Errors
/// If the server rejects the request or is unreachable.
pub(crate) async fn send(
    client: &Client,
    method: Method,
    path: &str,
    media: &str,
    body: Vec<u8>,
) -> Result<String, kube::Error> {
    let mut request = Request::builder().method(method).uri(path);
    if !media.is_empty() {
        request = request.header(CONTENT_TYPE, media);
    }
    client.request_text(request.body(body).map_err(kube::Error::HttpError)?).await
}

/// The HTTP status of an error; 0 without a response.
#[must_use]
pub fn status_code(error: &kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        _ => 0,
    }
}

/// Whether a retry may succeed: the server was unreachable, is overloaded or failed.
#[must_use]
pub fn may_succeed_later(error: &kube::Error) -> bool {
    matches!(status_code(error), 0 | 429 | 500..)
}

/// A query string of these pairs.
#[must_use]
pub fn query_string(pairs: &[(&str, &str)]) -> String {
    let mut query = String::new();
    for (name, value) in pairs {
        if !query.is_empty() {
            query.push('&');
        }
        query.push_str(name);
        query.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => query.push(byte as char),
                _ => query.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    query
}

/// Exponential back-off: each wait is twice the last one, up to a limit, with up to 50% jitter, so that clients that
/// failed together don't retry together.
#[derive(Debug, Clone)]
pub struct BackOff {
    first: Duration,
    max: Duration,
    next: Duration,
}

impl BackOff {
    /// From `first` to `max`.
    #[must_use]
    pub fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, next: first }
    }

    /// The wait before the next try.
    pub fn next(&mut self, env: &Env) -> Duration {
        let wait = self.next;
        self.next = wait.saturating_mul(2).min(self.max);
        wait + Duration::from_millis(env.below(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX) / 2 + 1))
    }

    /// Resets the back-off after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_their_limit_with_up_to_half_at_random() {
        let (env, _) = Env::seeded(1, jiff::Timestamp::UNIX_EPOCH);
        let mut back_off = BackOff::new(Duration::from_millis(100), Duration::from_millis(400));
        for expected in [100, 200, 400, 400] {
            let wait = back_off.next(&env).as_millis();
            assert!((expected..=expected * 3 / 2).contains(&wait), "{wait} after {expected}");
        }
        back_off.reset();
        assert!(back_off.next(&env) <= Duration::from_millis(150));
    }

    #[test]
    fn values_are_escaped_in_queries() {
        let query = query_string(&[("labelSelector", "a in (b,ü)"), ("limit", "1")]);
        assert_eq!(query, "labelSelector=a%20in%20%28b%2C%C3%BC%29&limit=1");
    }
}

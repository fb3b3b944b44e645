//! Calls functions of plugins that run on Coracle: typed arguments and results over HTTP, sessions, and errors
//! classified by their cause.
//!
//! ```no_run
//! # async fn example() -> Result<(), coracle_client::CallError> {
//! use coracle_client::Plugin;
//! use serde_json::json;
//!
//! let greeter = Plugin::at("http://127.0.0.1:8080")?;
//! let text: String = greeter.call("coracle:samples/greeter/greet", &json!({"name": "ada"})).await?;
//! # Ok(())
//! # }
//! ```
//!
//! `docs/plugins.md` has the JSON form of each WIT type. A plugin's responses are bounded, and so are this crate's
//! reads.
//!
//! Absent on purpose: Kubernetes (the client only needs an address, e.g. of `kubectl port-forward` or a Service), TLS
//! (a Service has none), retries (a call may have side effects; only the caller can decide whether to repeat it).
#![warn(missing_docs)]

mod error;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use error::{CallError, Reason};

/// Maximum bytes of a response: a result has at most 8 MiB of text, and a list of functions with their schemas is
/// shorter.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Maximum time of a call, up to the last byte of the response: a plugin's own default is a minute.
const TIMEOUT: Duration = Duration::from_secs(70);
/// How long an idle connection is kept: shorter than servers and data planes keep it.
const IDLE: Duration = Duration::from_secs(10);
const SESSION: &str = "coracle-session";
const REASON: &str = "coracle-reason";
/// The characters of a function's name that a path must escape (`[method]guest-book.sign`).
const IN_PATH: &AsciiSet =
    &CONTROLS.add(b'[').add(b']').add(b'%').add(b'?').add(b'#').add(b' ').add(b'"').add(b'<').add(b'>');

/// A plugin at an address. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Plugin {
    client: Client<HttpConnector, Full<Bytes>>,
    base: Arc<str>,
    timeout: Duration,
}

/// A function of a plugin.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Function {
    /// `namespace:package/interface@version/function`, or the bare name of a function of the world itself.
    pub name: String,
    /// JSON Schema of the arguments object.
    pub parameters: serde_json::Value,
    /// JSON Schema of the result.
    pub result: serde_json::Value,
}

/// WIT's `result<T, E>`: both are values of a successful call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome<T, E> {
    /// `ok`.
    Ok(T),
    /// `err`.
    Err(E),
}

impl<T, E> From<Outcome<T, E>> for Result<T, E> {
    fn from(outcome: Outcome<T, E>) -> Self {
        match outcome {
            Outcome::Ok(value) => Ok(value),
            Outcome::Err(error) => Err(error),
        }
    }
}

#[derive(Deserialize)]
struct Functions {
    functions: Vec<Function>,
}

impl Plugin {
    /// Creates a client for the plugin at `http://HOST[:PORT][/PATH]`. The first call connects.
    ///
    /// # Errors
    /// The address has another form.
    pub fn at(url: &str) -> Result<Self, CallError> {
        let wrong = || CallError::Address(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        if uri.scheme_str() != Some("http") || uri.host().is_none() || uri.query().is_some() {
            return Err(wrong());
        }
        let client =
            Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE).build_http();
        Ok(Self { client, base: url.trim_end_matches('/').into(), timeout: TIMEOUT })
    }

    /// Sets the maximum time of a call; the default is 70 s.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Calls a function. `arguments` is an object of arguments by name, or `()` for none.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call<R: DeserializeOwned>(
        &self,
        function: &str,
        arguments: &(impl Serialize + ?Sized),
    ) -> Result<R, CallError> {
        Ok(self.call_in(None, function, arguments).await?.0)
    }

    /// Creates a session, which begins with its first call. One instance executes all its calls, one after the other,
    /// so its memory and its resources persist between calls. Behind a Service of several replicas this requires
    /// `sessionAffinity: ClientIP`.
    #[must_use]
    pub fn session(&self) -> Session {
        Session { plugin: self.clone(), name: Mutex::default() }
    }

    /// Lists the plugin's functions.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn functions(&self) -> Result<Vec<Function>, CallError> {
        let request = Request::get(format!("{}/", self.base)).body(Full::default());
        let (_, body) = self.send(request.map_err(|_| CallError::Address(self.base.to_string()))?).await?;
        Ok(read::<Functions>(&body)?.functions)
    }

    async fn call_in<R: DeserializeOwned>(
        &self,
        session: Option<&str>,
        function: &str,
        arguments: &(impl Serialize + ?Sized),
    ) -> Result<(R, HeaderMap), CallError> {
        let mut body = serde_json::to_vec(arguments).map_err(|error| CallError::Arguments(error.to_string()))?;
        if body == b"null" {
            body.clear();
        }
        let uri = format!("{}/{}", self.base, utf8_percent_encode(function, IN_PATH));
        let mut request =
            Request::builder().method(Method::POST).uri(uri).header(header::CONTENT_TYPE, "application/json");
        if let Some(session) = session {
            request = request.header(SESSION, session);
        }
        let request =
            request.body(Full::from(body)).map_err(|_| CallError::NoFunction(format!("{function:?} names none")))?;
        let (headers, body) = self.send(request).await?;
        Ok((read(&body)?, headers))
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a library for host applications, which have no Env of this workspace"
    )]
    async fn send(&self, request: Request<Full<Bytes>>) -> Result<(HeaderMap, Bytes), CallError> {
        let answered = async {
            let response = self.client.request(request).await.map_err(CallError::transport)?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(CallError::Broken)?;
            Ok((head, body.to_bytes()))
        };
        let answered: Result<_, CallError> =
            tokio::time::timeout(self.timeout, answered).await.map_err(|_| CallError::Timeout(self.timeout))?;
        let (head, body) = answered?;
        if head.status.is_success() {
            return Ok((head.headers, body));
        }
        let reason = head.headers.get(REASON).and_then(|reason| reason.to_str().ok());
        Err(CallError::of(head.status, reason, &body))
    }
}

/// Deserializes the response.
fn read<R: DeserializeOwned>(body: &[u8]) -> Result<R, CallError> {
    // A function without a result returns `null`, which deserializes as `()`.
    serde_json::from_slice(body).map_err(|error| CallError::Answer(error.to_string()))
}

/// Calls to one instance, one after the other; see [`Plugin::session`].
#[derive(Debug)]
pub struct Session {
    plugin: Plugin,
    /// The name from the plugin's first response with a resource.
    name: Mutex<Option<String>>,
}

impl Session {
    /// Sets a name chosen by the caller: the session begins with the first call, whatever that returns.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        Self { name: Mutex::new(Some(name.to_owned())), ..self }
    }

    /// Returns the session's name, if it has one yet.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        self.name.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Calls a function in this session. A failed call ends the session.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call<R: DeserializeOwned>(
        &self,
        function: &str,
        arguments: &(impl Serialize + ?Sized),
    ) -> Result<R, CallError> {
        let name = self.name();
        let (result, headers) = self.plugin.call_in(name.as_deref(), function, arguments).await?;
        if let (None, Some(session_name)) = (name, headers.get(SESSION).map(HeaderValue::to_str).and_then(Result::ok)) {
            *self.name.lock().unwrap_or_else(PoisonError::into_inner) = Some(session_name.to_owned());
        }
        Ok(result)
    }
}

//! Calls functions of plugins that run on Coracle: typed arguments and results over HTTP, sessions, and errors that say whose
//! doing they are.
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
//! What JSON a WIT type is stands in `docs/plugins.md`. A plugin's answers are bounded, and so is what this crate reads.
//!
//! Absent on purpose: Kubernetes (an address is all that it takes; `kubectl port-forward` or a Service give one), TLS (a Service
//! has none), retries (a call may have done something; who calls knows whether twice is as good as once).
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

/// An answer: a result has 8 MiB of text at most, and a list of functions with their schemas is shorter.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// A call, from its beginning to the last byte of the answer: a plugin's own default is a minute.
const TIMEOUT: Duration = Duration::from_secs(70);
/// How long an idle connection is kept. Shorter than what servers and data planes keep them.
const IDLE: Duration = Duration::from_secs(10);
const SESSION: &str = "coracle-session";
const REASON: &str = "coracle-reason";
/// What a function's name may have that a path may not (`[method]guest-book.sign`).
const IN_PATH: &AsciiSet =
    &CONTROLS.add(b'[').add(b']').add(b'%').add(b'?').add(b'#').add(b' ').add(b'"').add(b'<').add(b'>');

/// A plugin behind an address, cheap to clone; its connections are kept and shared.
#[derive(Debug, Clone)]
pub struct Plugin {
    client: Client<HttpConnector, Full<Bytes>>,
    base: Arc<str>,
    timeout: Duration,
}

/// A function as the plugin tells of it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Function {
    /// `namespace:package/interface@version/function`, or the bare name of a function of the world itself.
    pub name: String,
    /// JSON Schema of the object of arguments.
    pub parameters: serde_json::Value,
    /// JSON Schema of the result.
    pub result: serde_json::Value,
}

/// WIT's `result<T, E>`: both are values of a call that worked.
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
    /// The plugin at an address, `http://HOST[:PORT][/PATH]`. Connects when it is called.
    ///
    /// # Errors
    /// That is no such address.
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

    /// How long one call may take, instead of 70 s.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Calls a function. `arguments` is an object of arguments by name; `()` where there are none.
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

    /// A session of the plugin, which begins with its first call: one instance answers all of them, one after the other, so what it
    /// keeps in its memory and the resources that it hands out are there in the next call. Behind a Service of several
    /// replicas that takes `sessionAffinity: ClientIP`.
    #[must_use]
    pub fn session(&self) -> Session {
        Session { plugin: self.clone(), name: Mutex::default() }
    }

    /// What it offers.
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

/// The answer as what the caller wants of it.
fn read<R: DeserializeOwned>(body: &[u8]) -> Result<R, CallError> {
    // A function without a result answers `null`; one that is asked for `()` takes that.
    serde_json::from_slice(body).map_err(|error| CallError::Answer(error.to_string()))
}

/// Calls that one instance answers, one after the other; see [`Plugin::session`].
#[derive(Debug)]
pub struct Session {
    plugin: Plugin,
    /// As the plugin called it in its first answer with a resource.
    name: Mutex<Option<String>>,
}

impl Session {
    /// With a name of the caller's: it begins with the first call, whatever that answers.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        Self { name: Mutex::new(Some(name.to_owned())), ..self }
    }

    /// Its name, once it has one.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        self.name.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Calls a function in this session. A call that fails ends it.
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
        if let (None, Some(told)) = (name, headers.get(SESSION).map(HeaderValue::to_str).and_then(Result::ok)) {
            *self.name.lock().unwrap_or_else(PoisonError::into_inner) = Some(told.to_owned());
        }
        Ok(result)
    }
}

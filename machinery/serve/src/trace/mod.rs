//! Spans of requests. Off until the program installs a tracer: then each call here is one relaxed load.
//!
//! A span's parent is the caller's context in the request's headers ([`w3c`]), or the span within whose scope the calling
//! code runs. The tracer decides which spans are recorded; ids are made and passed on for the others, too.
//!
//! Absent on purpose: exporters, sampling and the environment, which belong to the program.

pub mod w3c;

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{self, Poll};
use std::time::SystemTime;

use http::{HeaderMap, Method, Request, Response, StatusCode};
use opentelemetry::global::BoxedTracer;
use opentelemetry::trace::{Link, SpanBuilder, Status, TraceContextExt as _, Tracer as _};
pub use opentelemetry::trace::{SpanContext, SpanKind};
use opentelemetry::{Context, ContextGuard, KeyValue, Value};
use pin_project_lite::pin_project;

/// Maximum bytes of an attribute's text, as callers choose paths and names.
const TEXT_BYTES_MAX: usize = 1024;

static ENABLED: AtomicBool = AtomicBool::new(false);
static TRACER: OnceLock<BoxedTracer> = OnceLock::new();

/// Installs the tracer of the process; the first one stays.
pub fn install(tracer: BoxedTracer) {
    let _ = TRACER.set(tracer);
    ENABLED.store(true, Ordering::Relaxed);
}

/// Whether a tracer is installed.
#[inline]
#[must_use]
pub fn is_enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}

/// Whether the code runs within the scope of a span.
#[inline]
#[must_use]
pub fn in_scope() -> bool {
    is_enabled() && Context::map_current(|context| context.span().span_context().is_valid())
}

/// What a new span belongs to.
#[derive(Debug)]
pub enum Parent<'a> {
    /// The caller's context in these headers; a new trace without a valid one.
    Headers(&'a HeaderMap),
    /// A new trace, which refers to the caller's context in these headers.
    Linked(&'a HeaderMap),
    /// The span within whose scope the code runs.
    Scope,
}

/// A span of one piece of work; it ends when it is dropped. Without a tracer it is empty, and all methods do nothing.
#[derive(Debug, Default)]
#[must_use]
pub struct Span(Option<Box<Context>>);

impl Span {
    /// The span of no work.
    pub const NONE: Self = Self(None);

    /// Starts a span if a tracer is installed.
    #[inline]
    pub fn start(kind: SpanKind, parent: Parent<'_>, name: impl FnOnce() -> Cow<'static, str>) -> Self {
        if is_enabled() { Self::start_at(kind, parent, name(), None) } else { Self::NONE }
    }

    /// Starts a child of the span within whose scope the code runs; none outside of all spans.
    #[inline]
    pub fn child(name: &'static str) -> Self {
        if !in_scope() {
            return Self::NONE;
        }
        Self::start_at(SpanKind::Internal, Parent::Scope, name.into(), None)
    }

    /// Starts a span with its name, and another start than now.
    pub fn start_at(kind: SpanKind, parent: Parent<'_>, name: Cow<'static, str>, at: Option<SystemTime>) -> Self {
        let Some(tracer) = TRACER.get() else { return Self::NONE };
        let mut builder = SpanBuilder::from_name(name).with_kind(kind);
        builder.start_time = at;
        let parent = match parent {
            Parent::Scope => Context::current(),
            Parent::Headers(headers) => match w3c::read(headers) {
                Some(caller) => Context::new().with_remote_span_context(caller),
                None => Context::new(),
            },
            Parent::Linked(headers) => {
                builder.links = w3c::read(headers).map(|caller| vec![Link::with_context(caller)]);
                Context::new()
            }
        };
        let span = tracer.build_with_context(builder, &parent);
        Self(Some(Box::new(Context::new().with_span(span))))
    }

    /// Whether attributes of the span are kept.
    #[must_use]
    pub fn is_recording(&self) -> bool {
        self.0.as_ref().is_some_and(|context| context.span().is_recording())
    }

    /// Sets an attribute; texts are cut to 1 KiB.
    pub fn set(&self, name: &'static str, value: impl Into<Value>) {
        if let Some(context) = &self.0 {
            context.span().set_attribute(KeyValue::new(name, bounded(value.into())));
        }
    }

    /// Sets a text that is only made for a span that is recorded.
    pub fn set_text(&self, name: &'static str, text: impl FnOnce() -> String) {
        if self.is_recording() {
            self.set(name, text());
        }
    }

    /// Marks the work as failed, with the reason.
    pub fn fail(&self, reason: impl Into<Cow<'static, str>>) {
        if let Some(context) = &self.0 {
            context.span().set_status(Status::error(reason));
        }
    }

    /// Sets method, path and protocol of a request.
    pub fn set_request<B>(&self, request: &Request<B>) {
        if !self.is_recording() {
            return;
        }
        let (method, uri) = (request.method(), request.uri());
        self.set("http.request.method", method_name(method));
        if method_name(method) == OTHER_METHOD {
            self.set("http.request.method_original", method.as_str().to_owned());
        }
        self.set("url.path", uri.path().to_owned());
        self.set("url.scheme", uri.scheme_str().unwrap_or("http").to_owned());
    }

    /// Sets the status of a response, as [`Self::set_status`].
    pub fn set_response<B>(&self, response: &Response<B>, failed_from: u16) {
        self.set_status(response.status(), failed_from);
    }

    /// Sets a status; from `failed_from` on it is a failure (servers: 500, clients: 400).
    pub fn set_status(&self, status: StatusCode, failed_from: u16) {
        if self.0.is_none() {
            return;
        }
        let status = status.as_u16();
        self.set("http.response.status_code", i64::from(status));
        if status >= failed_from {
            self.set("error.type", status.to_string());
            self.fail("");
        }
    }

    /// Replaces the trace context in headers with this span's. Without a tracer, headers stay as they are.
    pub fn inject(&self, headers: &mut HeaderMap) {
        if let Some(context) = &self.0 {
            w3c::write(headers, context.span().span_context());
        }
    }

    /// A handle for code that runs elsewhere; `None` without a tracer.
    #[must_use]
    pub fn scope(&self) -> Option<Scope> {
        self.0.as_ref().map(|context| Scope(Context::clone(context)))
    }

    /// Calls `log` within the span's scope, so that its lines have the span's ids.
    pub fn log(&self, log: impl FnOnce()) {
        let _scope = self.0.as_ref().map(|context| Context::clone(context).attach());
        log();
    }

    /// Runs `future` within the span's scope.
    pub fn within<F: Future>(&self, future: F) -> Scoped<F> {
        Scoped { future, scope: self.scope() }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(context) = &self.0 {
            context.span().end();
        }
    }
}

/// The scope of a span, for code that is polled on other threads.
#[derive(Debug, Clone)]
pub struct Scope(Context);

impl Scope {
    /// Enters the scope on this thread until the guard is dropped.
    #[must_use]
    pub fn enter(&self) -> ContextGuard {
        self.0.clone().attach()
    }
}

pin_project! {
    /// A future that is polled within a span's scope.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct Scoped<F> {
        #[pin]
        future: F,
        scope: Option<Scope>,
    }
}

impl<F: Future> Future for Scoped<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _scope = this.scope.as_ref().map(Scope::enter);
        this.future.poll(cx)
    }
}

/// Adds the context of the current scope's span to the headers of an outgoing request that has no valid one.
pub fn continue_in(headers: &mut HeaderMap) {
    if is_enabled() && w3c::read(headers).is_none() {
        Context::map_current(|context| w3c::write(headers, context.span().span_context()));
    }
}

/// Replaces the context in the headers of an outgoing request with that of the current scope's span, if there is one.
pub fn inject_scope(headers: &mut HeaderMap) {
    if is_enabled() {
        Context::map_current(|context| {
            let span = context.span();
            if span.span_context().is_valid() {
                w3c::write(headers, span.span_context());
            }
        });
    }
}

/// The span of the current scope, for log lines.
#[must_use]
pub fn current() -> Option<SpanContext> {
    if !is_enabled() {
        return None;
    }
    Context::map_current(|context| {
        let span = context.span();
        span.span_context().is_valid().then(|| span.span_context().clone())
    })
}

/// The method in names of spans for one that HTTP doesn't define.
const OTHER_METHOD: &str = "_OTHER";

/// A method of HTTP by name; `_OTHER` for any other, which a client may have made up.
#[must_use]
pub fn method_name(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or(OTHER_METHOD)
}

fn bounded(value: Value) -> Value {
    let Value::String(text) = &value else { return value };
    let text = text.as_str();
    if text.len() <= TEXT_BYTES_MAX {
        return value;
    }
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_tracer_nothing_changes() {
        let span = Span::start(SpanKind::Server, Parent::Scope, || unreachable!("no name is made"));
        span.set_text("a", || unreachable!("no text is made"));
        let mut headers = HeaderMap::from_iter([(w3c::TRACEPARENT, http::HeaderValue::from_static("anything"))]);
        let before = headers.clone();
        span.inject(&mut headers);
        continue_in(&mut headers);
        inject_scope(&mut headers);
        assert_eq!(headers, before);
        assert!(span.scope().is_none() && current().is_none() && !span.is_recording());
    }

    #[test]
    fn texts_are_cut_between_characters() {
        let cut = bounded("ü".repeat(TEXT_BYTES_MAX).into());
        assert_eq!(cut.as_str().len(), TEXT_BYTES_MAX);
        let odd = bounded(format!("a{}", "ü".repeat(TEXT_BYTES_MAX)).into());
        assert_eq!(odd.as_str().len(), TEXT_BYTES_MAX - 1);
        assert_eq!(bounded("short".into()), Value::from("short"));
    }

    #[test]
    fn made_up_methods_share_a_name() {
        assert_eq!(method_name(&Method::PATCH), "PATCH");
        assert_eq!(method_name(&Method::from_bytes(b"BREW").unwrap()), "_OTHER");
    }
}

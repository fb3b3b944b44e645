//! Spans with a tracer installed, in a process of its own: the tracer is the process's.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context as TaskContext, Waker};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, Response};
use machinery_serve::trace::w3c::{self, TRACEPARENT};
use machinery_serve::trace::{self, Parent, Span, SpanKind};
use opentelemetry::{Context, global};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanProcessor};

/// Keeps ended spans.
#[derive(Debug, Clone, Default)]
struct Ended(Arc<Mutex<Vec<SpanData>>>);

impl SpanProcessor for Ended {
    fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

static ENDED: LazyLock<Ended> = LazyLock::new(|| {
    let ended = Ended::default();
    global::set_tracer_provider(SdkTracerProvider::builder().with_span_processor(ended.clone()).build());
    trace::install(global::tracer("test"));
    ended
});

/// The ended span of this name.
fn ended(name: &str) -> SpanData {
    let spans = ENDED.0.lock().unwrap_or_else(PoisonError::into_inner);
    spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no span {name} has ended")).clone()
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn headers(flags: &str) -> HeaderMap {
    let parent = HeaderValue::try_from(format!("00-{TRACE}-00f067aa0ba902b7-{flags}")).expect("a header");
    HeaderMap::from_iter([(TRACEPARENT, parent), (w3c::TRACESTATE, HeaderValue::from_static("a=1"))])
}

fn start(kind: SpanKind, parent: Parent<'_>, name: &'static str) -> Span {
    LazyLock::force(&ENDED);
    Span::start(kind, parent, || name.into())
}

#[test]
fn a_callers_context_is_continued_and_replaced() {
    let mut headers = headers("01");
    let span = start(SpanKind::Server, Parent::Headers(&headers), "continued");
    span.set("text", "x".repeat(5_000));
    span.inject(&mut headers);
    let passed_on = w3c::read(&headers).unwrap();
    span.set_response(&Response::builder().status(503).body(()).unwrap(), 500);
    drop(span);
    let data = ended("continued");
    assert_eq!(data.span_context.trace_id().to_string(), TRACE);
    assert_eq!(data.parent_span_id.to_string(), "00f067aa0ba902b7");
    assert_eq!((passed_on.span_id(), passed_on.trace_state().header()), (data.span_context.span_id(), "a=1".into()));
    assert_eq!(data.status, opentelemetry::trace::Status::error(""));
    let text = data.attributes.iter().find(|attribute| attribute.key.as_str() == "text").unwrap();
    assert_eq!(text.value.as_str().len(), 1024);
}

#[test]
fn a_caller_that_does_not_sample_is_passed_on_and_not_recorded() {
    let mut headers = headers("00");
    let span = start(SpanKind::Server, Parent::Headers(&headers), "unsampled");
    span.set_text("text", || unreachable!("no text is made"));
    span.inject(&mut headers);
    let passed_on = w3c::read(&headers).unwrap();
    assert_eq!((passed_on.trace_id().to_string().as_str(), passed_on.is_sampled()), (TRACE, false));
    drop(span);
    assert!(ENDED.0.lock().unwrap().iter().all(|span| span.name != "unsampled"));
}

#[test]
fn an_untrusted_context_is_a_link() {
    drop(start(SpanKind::Server, Parent::Linked(&headers("01")), "linked"));
    let data = ended("linked");
    assert_ne!(data.span_context.trace_id().to_string(), TRACE);
    assert_eq!(data.links.iter().map(|link| link.span_context.trace_id().to_string()).collect::<Vec<_>>(), [TRACE]);
}

#[test]
fn code_within_a_scope_continues_its_span() {
    assert!(!trace::in_scope() && trace::current().is_none());
    let span = start(SpanKind::Server, Parent::Headers(&HeaderMap::new()), "parent");
    let context = w3c::read(&{
        let mut headers = HeaderMap::new();
        span.inject(&mut headers);
        headers
    })
    .unwrap();
    let work = async {
        drop(Span::child("below"));
        let (mut own, mut invalid, mut none) = (headers("01"), headers("zz"), HeaderMap::new());
        for sent in [&mut own, &mut invalid, &mut none] {
            trace::continue_in(sent);
        }
        let ids = |headers: &HeaderMap| w3c::read(headers).map(|context| context.trace_id().to_string());
        (ids(&own), ids(&invalid), ids(&none), trace::current().map(|current| current.span_id()))
    };
    let mut work = pin!(span.within(work));
    let done = work.as_mut().poll(&mut TaskContext::from_waker(Waker::noop()));
    let own_trace = Some(context.trace_id().to_string());
    let std::task::Poll::Ready((own, invalid, none, current)) = done else { panic!("it waits for nothing") };
    assert_eq!((own.as_deref(), &invalid, &none), (Some(TRACE), &own_trace, &own_trace));
    assert_eq!(current, Some(context.span_id()));
    assert_eq!(ended("below").parent_span_id, context.span_id());
    // Outside of the scope there is nothing to continue.
    assert!(!trace::in_scope());
    drop(Span::child("outside"));
    assert!(ENDED.0.lock().unwrap().iter().all(|span| span.name != "outside"));
    let mut sent = headers("zz");
    trace::continue_in(&mut sent);
    assert!(sent.is_empty());
}

#[test]
fn a_request_is_described_within_bounds() {
    let span = start(SpanKind::Client, Parent::Headers(&HeaderMap::new()), "described");
    let path = format!("/{}", "p".repeat(3_000));
    span.set_request(&Request::builder().method("BREW").uri(path).body(()).unwrap());
    drop(span);
    let data = ended("described");
    let of =
        |name: &str| data.attributes.iter().find(|attribute| attribute.key.as_str() == name).unwrap().value.to_string();
    assert_eq!((of("http.request.method"), of("http.request.method_original")), ("_OTHER".into(), "BREW".into()));
    assert_eq!(of("url.path").len(), 1024);
}

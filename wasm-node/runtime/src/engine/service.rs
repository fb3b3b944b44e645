//! A request of a WASI 0.3 server: `wasi:http/handler` returns its response early, and its tasks write the body.
//!
//! The call runs in the store's event loop until no task of the guest is left and its body has been read. The head is sent
//! once the guest waits for something, so that a short response is complete by then and has its length.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{Request, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::sync::oneshot;
use wasmtime::Store;
use wasmtime::component::Accessor;
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::p3;
use wasmtime_wasi_http::p3::bindings::Service;
use wasmtime_wasi_http::{Error, FieldMap, WasiBody, WasiHttpView as _};

use super::panics;
use super::request::ResponseHead;
use crate::host::state::ComponentState;

/// Maximum body frames of a finished guest gathered before the head is sent: the one that its channel holds, and trailers.
const GATHERED_FRAMES_MAX: usize = 4;

/// Calls the handler of an instance. The request has an authority or a `host` header.
pub(super) async fn handle(
    store: &mut Store<ComponentState>,
    service: &Service,
    request: Request<WasiBody>,
    head: oneshot::Sender<ResponseHead>,
) -> wasmtime::Result<()> {
    let unsent = UnsentHead::default();
    let (mut head, serving) = (Some(head), unsent.clone());
    let run = store.run_concurrent(async move |accessor| serve(accessor, service, request, &serving).await);
    let mut run = pin!(panics::as_errors(run));
    let ran = poll_fn(|cx| {
        let polled = run.as_mut().poll(cx);
        if let Some(response) = unsent.take()
            && let Some(head) = head.take()
        {
            // Without a receiver, the request is over.
            let _ = head.send(response);
        }
        polled
    });
    ran.await?
}

/// A head that is sent at the end of the current poll.
#[derive(Clone, Default)]
struct UnsentHead(Arc<Mutex<Option<ResponseHead>>>);

impl UnsentHead {
    fn put(&self, head: ResponseHead) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(head);
    }

    fn take(&self) -> Option<ResponseHead> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Gathers the body of a finished guest's head, if that is unsent. Returns whether it is complete.
    fn gather(&self, cx: &mut Context<'_>) -> bool {
        let mut head = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Ok(response)) = &mut *head else { return false };
        let mut body = std::mem::replace(response.body_mut(), empty());
        let mut gathered = GatheredBody::default();
        while gathered.frames.len() < GATHERED_FRAMES_MAX {
            match Pin::new(&mut body).poll_frame(cx) {
                Poll::Ready(Some(frame)) => gathered.frames.push_back(frame),
                Poll::Ready(None) => {
                    *response.body_mut() = gathered.boxed_unsync();
                    return true;
                }
                Poll::Pending => break,
            }
        }
        gathered.rest = Some(body);
        *response.body_mut() = gathered.boxed_unsync();
        false
    }
}

async fn serve(
    accessor: &Accessor<ComponentState>,
    service: &Service,
    request: Request<WasiBody>,
    unsent: &UnsentHead,
) -> wasmtime::Result<()> {
    let request = accessor.with(|mut access| incoming_request(access.data_mut(), request));
    let read = match service.handle(accessor, request).await? {
        Ok(response) => {
            let (sent, transmitted) = oneshot::channel();
            let (closed, read) = oneshot::channel();
            let transmission = async move {
                // Dropped with the body: its reader is gone.
                transmitted.await.map_err(|_| Error::ConnectionTerminated)
            };
            let response = accessor.with(|mut access| response.into_http(&mut access, transmission))?;
            let body = |inner| ServiceBody { inner, sent: Some(sent), _closed: closed }.boxed_unsync();
            unsent.put(Ok(response.map(body)));
            Some(read)
        }
        Err(code) => {
            unsent.put(Err(ErrorCode::InternalError(Some(format!("{code:?}")))));
            None
        }
    };
    poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
    let Some(mut read) = read else { return Ok(()) };
    poll_fn(|cx| {
        if unsent.gather(cx) {
            return Poll::Ready(());
        }
        // Resolves when the body is dropped.
        Pin::new(&mut read).poll(cx).map(drop)
    })
    .await;
    Ok(())
}

fn empty() -> WasiBody {
    http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// The guest's view of a request: its authority is the URI's, or that of its `host` header, which no guest sees.
fn incoming_request(state: &mut ComponentState, request: Request<WasiBody>) -> p3::Request {
    let (parts, body) = request.into_parts();
    let uri = parts.uri.into_parts();
    let host = || parts.headers.get(header::HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let authority = uri.authority.or_else(host);
    let headers = FieldMap::new_immutable(state.http().hooks, parts.headers.clone());
    let scheme = uri.scheme.unwrap_or(Scheme::HTTP);
    // The result of the guest's reading has no further receiver.
    let (request, _) = p3::Request::new(parts.method, Some(scheme), authority, uri.path_and_query, headers, None, body);
    request
}

/// A guest's body. Empty frames end here: a queue for a slow reader counts bytes, and would hold them without end
/// (GHSA-f8mm-ggr3-89wh).
struct ServiceBody {
    inner: WasiBody,
    /// Sent at the end of the body: the guest's result of the transmission.
    sent: Option<oneshot::Sender<()>>,
    /// Dropped with the body.
    _closed: oneshot::Sender<()>,
}

impl http_body::Body for ServiceBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        // The channel of the guest's writes yields by itself.
        loop {
            match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) if frame.data_ref().is_some_and(Bytes::is_empty) => {}
                Some(Ok(frame)) => {
                    if frame.is_trailers() {
                        self.sent.take().map(|sent| sent.send(()));
                    }
                    return Poll::Ready(Some(Ok(frame)));
                }
                None => {
                    self.sent.take().map(|sent| sent.send(()));
                    return Poll::Ready(None);
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The first frames of a body, then its rest.
#[derive(Default)]
struct GatheredBody {
    frames: VecDeque<Result<Frame<Bytes>, Error>>,
    /// `None`: the body is complete.
    rest: Option<WasiBody>,
}

impl http_body::Body for GatheredBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Some(frame) = self.frames.pop_front() {
            return Poll::Ready(Some(frame));
        }
        match &mut self.rest {
            Some(rest) => Pin::new(rest).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && self.rest.as_ref().is_none_or(|rest| rest.is_end_stream())
    }
}

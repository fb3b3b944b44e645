//! Read-ahead of a response that begins while its request is still being sent.
//!
//! A guest that writes its whole request before it reads the response of a server that echoes waits for the server, which
//! waits for the guest. Between sockets the system's buffers end that for bodies of some size. Between pods this buffer does: for
//! such exchanges alone, within a budget.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use machinery_serve::net::{Body, BoxError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use crate::egress::pod_limit::Pod;

/// The buffer of one exchange: the order of a connection's buffers in the system.
const EXCHANGE_BYTES: usize = 1 << 20;
/// Frames in it: guests may write small ones.
const EXCHANGE_FRAMES_MAX: usize = 1 << 10;
/// Buffers of all callers (64 MiB).
const EXCHANGES_MAX: usize = 64;
/// Buffers of one caller: eight pods can have as many. Further exchanges have none.
const EXCHANGES_PER_POD_MAX: usize = 8;

/// The buffers in use, by caller.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReadAheadBudget(Arc<Mutex<HashMap<Pod, usize>>>);

struct ReadAheadPermit {
    budget: ReadAheadBudget,
    pod: Pod,
}

impl ReadAheadBudget {
    fn take(&self, pod: Pod) -> Option<ReadAheadPermit> {
        let mut pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let own = pods.get(&pod).copied().unwrap_or(0);
        if own >= EXCHANGES_PER_POD_MAX || pods.values().sum::<usize>() >= EXCHANGES_MAX {
            return None;
        }
        pods.insert(pod.clone(), own + 1);
        drop(pods);
        Some(ReadAheadPermit { budget: self.clone(), pod })
    }
}

impl Drop for ReadAheadPermit {
    fn drop(&mut self) {
        let mut pods = self.budget.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = pods.get_mut(&self.pod) {
            *own -= 1;
            if *own == 0 {
                pods.remove(&self.pod);
            }
        }
    }
}

/// Whether a request is still being sent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sending(Option<Arc<AtomicBool>>);

/// Wraps a request's body to know when it has ended.
pub(crate) fn observed(body: Body) -> (Body, Sending) {
    if body.is_end_stream() {
        return (body, Sending::default());
    }
    let sending = Arc::new(AtomicBool::new(true));
    (ObservedBody { body, sending: sending.clone() }.boxed_unsync(), Sending(Some(sending)))
}

/// Reads `body` ahead for `pod`, if its request is still being sent and the budget allows it.
pub(crate) fn read_ahead(body: Body, sending: &Sending, budget: &ReadAheadBudget, pod: Pod) -> Body {
    let is_sending = sending.0.as_ref().is_some_and(|sending| sending.load(Ordering::Acquire));
    if !is_sending || body.is_end_stream() {
        return body;
    }
    let Some(permit) = budget.take(pod) else { return body };
    let (frames, receiver) = mpsc::channel(EXCHANGE_FRAMES_MAX);
    let left = body.size_hint().exact();
    let task = AbortOnDropHandle::new(tokio::spawn(fill(body, frames)));
    ReadAheadBody { frames: receiver, left, _task: task, _permit: permit }.boxed_unsync()
}

type Filled = (Result<Frame<Bytes>, BoxError>, Option<OwnedSemaphorePermit>);

async fn fill(mut body: Body, frames: mpsc::Sender<Filled>) {
    let space = Arc::new(Semaphore::new(EXCHANGE_BYTES));
    while let Some(frame) = body.frame().await {
        let bytes = frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
        // A frame above the whole buffer waits until that is empty.
        let bytes = u32::try_from(bytes.min(EXCHANGE_BYTES)).unwrap_or(u32::MAX);
        let Ok(taken) = space.clone().acquire_many_owned(bytes).await else { return };
        if frames.send((frame, Some(taken))).await.is_err() {
            return;
        }
    }
}

struct ReadAheadBody {
    frames: mpsc::Receiver<Filled>,
    /// The rest's size, where the response stated it.
    left: Option<u64>,
    _task: AbortOnDropHandle<()>,
    _permit: ReadAheadPermit,
}

impl http_body::Body for ReadAheadBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some((frame, _taken)) = ready!(self.frames.poll_recv(context)) else { return Poll::Ready(None) };
        let bytes = frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, Bytes::len);
        self.left = self.left.map(|left| left.saturating_sub(bytes as u64));
        Poll::Ready(Some(frame))
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

struct ObservedBody {
    body: Body,
    sending: Arc<AtomicBool>,
}

impl ObservedBody {
    fn end(&self) {
        self.sending.store(false, Ordering::Release);
    }
}

impl http_body::Body for ObservedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) || self.body.is_end_stream() {
            self.end();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ObservedBody {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;

    use super::*;

    fn pod(name: &str) -> Pod {
        ("shop".into(), name.into())
    }

    /// A body of the frames that its sender sends, one at a time.
    fn piped() -> (mpsc::Sender<Bytes>, Body) {
        let (sender, receiver) = mpsc::channel::<Bytes>(1);
        let frames = futures::stream::unfold(receiver, |mut receiver| async move {
            let bytes = receiver.recv().await?;
            Some((Ok::<_, BoxError>(Frame::data(bytes)), receiver))
        });
        (sender, StreamBody::new(Box::pin(frames)).boxed_unsync())
    }

    async fn send(body: &mpsc::Sender<Bytes>, bytes: usize) {
        for at in (0..bytes).step_by(1 << 14) {
            body.send(vec![7; (1 << 14).min(bytes - at)].into()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_client_that_sends_all_before_it_reads_gets_its_echo() {
        const BYTES: usize = 900 << 10;
        let (client, request) = piped();
        let (server, response) = piped();
        let (mut request, sending) = observed(request);
        let budget = ReadAheadBudget::default();
        let response = read_ahead(response, &sending, &budget, pod("a"));
        let echo = tokio::spawn(async move {
            while let Some(Ok(frame)) = request.frame().await {
                server.send(frame.into_data().unwrap()).await.unwrap();
            }
        });
        send(&client, BYTES).await;
        drop(client);
        echo.await.unwrap();
        assert_eq!(response.collect().await.unwrap().to_bytes().len(), BYTES);
        assert!(budget.0.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn the_buffer_is_bounded_and_ends_with_its_reader() {
        let (_client, request) = piped();
        let (_request, sending) = observed(request);
        let (server, response) = piped();
        let response = read_ahead(response, &sending, &ReadAheadBudget::default(), pod("a"));
        send(&server, EXCHANGE_BYTES).await;
        // One frame waits for space, one in the channel, and the next one for it.
        let mut more = std::pin::pin!(send(&server, 3 << 14));
        for _ in 0..100 {
            tokio::task::yield_now().await;
            assert!(futures::poll!(more.as_mut()).is_pending());
        }
        drop(response);
        server.closed().await;
    }

    #[tokio::test]
    async fn only_exchanges_in_both_directions_are_read_ahead_and_each_caller_has_a_part() {
        let budget = ReadAheadBudget::default();
        let is_read_ahead = |sending: &Sending, pod: Pod| {
            let before = budget.0.lock().unwrap().values().sum::<usize>();
            let body = read_ahead(piped().1, sending, &budget, pod);
            (budget.0.lock().unwrap().values().sum::<usize>() > before, body)
        };
        let (request, sent) = observed(piped().1);
        drop(request);
        assert!(!is_read_ahead(&sent, pod("a")).0, "nothing is sent any more");
        assert!(!is_read_ahead(&Sending::default(), pod("a")).0, "without a body");
        let (_request, sending) = observed(piped().1);
        let mut held: Vec<Body> = Vec::new();
        for caller in 0..12 {
            for exchange in 0..10 {
                let (ahead, body) = is_read_ahead(&sending, pod(&caller.to_string()));
                assert_eq!(ahead, exchange < EXCHANGES_PER_POD_MAX && caller < EXCHANGES_MAX / EXCHANGES_PER_POD_MAX);
                held.push(body);
            }
        }
        drop(held);
        assert!(budget.0.lock().unwrap().is_empty());
    }
}

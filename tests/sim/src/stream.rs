//! Watches in transit to their clients.
//!
//! One task reads the server's output of all watches, in the order in which they were opened: the server wakes watches
//! of the same kind in any order (tokio's `watch` channel draws one), and the order of clients must depend on the seed
//! only.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use tokio::time::{Instant, Sleep};
use tower::BoxError;

use crate::checkers::watches::Replay;
use crate::clock;
use crate::cluster::SCHEDULER;
use crate::log::log;
use crate::network::{Link, Piece, reset};
use crate::sabotage::Sabotage;
use crate::world::World;

/// Pieces in transit to one client.
#[derive(Default)]
struct DeliveryQueue {
    pieces: VecDeque<(Instant, Option<Piece>)>,
    /// Delivery time of the last piece: nothing overtakes it.
    last: Option<Instant>,
    waker: Option<Waker>,
}

/// The server's side of one watch.
pub(crate) struct Stream {
    /// The life of the server.
    pub(crate) life: u64,
    pub(crate) link: Arc<Link>,
    body: UnsyncBoxBody<Bytes, BoxError>,
    queue: Arc<Mutex<DeliveryQueue>>,
    checker: Replay,
    waker: Waker,
}

#[derive(Default)]
struct PumpState {
    streams: BTreeMap<u64, Stream>,
    ready: BTreeSet<u64>,
    waker: Option<Waker>,
    events_of_pods: u64,
}

/// Delivers the pieces of all watches.
pub(crate) struct Pump {
    world: Arc<World>,
    state: Mutex<PumpState>,
}

/// Marks one stream as ready and wakes the pump.
struct StreamWaker {
    id: u64,
    pump: std::sync::Weak<Pump>,
}

impl Wake for StreamWaker {
    fn wake(self: Arc<Self>) {
        let Some(pump) = self.pump.upgrade() else { return };
        let mut state = pump.state();
        state.ready.insert(self.id);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pump {
    pub(crate) fn start(world: Arc<World>) -> Arc<Self> {
        let pump = Arc::new(Self { world, state: Mutex::default() });
        let pumping = pump.clone();
        tokio::spawn(std::future::poll_fn(move |context| pumping.poll(context)));
        pump
    }

    fn state(&self) -> MutexGuard<'_, PumpState> {
        lock(&self.state)
    }

    /// Adds a watch of the server; returns the client's body.
    pub(crate) fn add(
        self: &Arc<Self>,
        id: u64,
        life: u64,
        link: Arc<Link>,
        body: UnsyncBoxBody<Bytes, BoxError>,
        checker: Replay,
    ) -> SimBody {
        let queue = Arc::new(Mutex::new(DeliveryQueue::default()));
        let ready = Arc::new(StreamWaker { id, pump: Arc::downgrade(self) });
        let waker = Waker::from(ready.clone());
        let stream = Stream { life, link: link.clone(), body, queue: queue.clone(), checker, waker };
        self.state().streams.insert(id, stream);
        ready.wake();
        SimBody { way: BodySource::Stream { queue, link, sleep: None, _end: StreamEnd { id, pump: self.clone() } } }
    }

    /// Breaks the connections of matching streams.
    pub(crate) fn break_all(&self, which: impl Fn(&Stream) -> bool) {
        let broken: Vec<(u64, Stream)> = {
            let mut state = self.state();
            let ids: Vec<u64> = state.streams.iter().filter(|(_, s)| which(s)).map(|(id, _)| *id).collect();
            ids.into_iter().filter_map(|id| Some((id, state.streams.remove(&id)?))).collect()
        };
        for (id, stream) in broken {
            log!(self.world, "{}: watch #{id} breaks", stream.link.name);
            self.push(&stream.queue, Some(Err(reset())));
        }
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let next = {
                let mut state = self.state();
                state.waker = Some(context.waker().clone());
                let Some(id) = state.ready.pop_first() else { return Poll::Pending };
                state.streams.remove(&id).map(|stream| (id, stream))
            };
            // Polled without the lock: the server may wake other streams meanwhile.
            if let Some((id, mut stream)) = next
                && self.drain(id, &mut stream)
            {
                self.state().streams.insert(id, stream);
            }
        }
    }

    /// Reads all available output of the server; returns false if the stream has ended.
    fn drain(&self, id: u64, stream: &mut Stream) -> bool {
        let waker = stream.waker.clone();
        let mut context = Context::from_waker(&waker);
        loop {
            match Pin::new(&mut stream.body).poll_frame(&mut context) {
                Poll::Pending => return true,
                Poll::Ready(None) => {
                    log!(self.world, "{}: watch #{id} ends", stream.link.name);
                    self.push(&stream.queue, None);
                    return false;
                }
                Poll::Ready(Some(Err(error))) => {
                    self.push(&stream.queue, Some(Err(error)));
                    return false;
                }
                Poll::Ready(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    let data = self.apply_sabotage(stream, data);
                    let what = stream.checker.piece(&self.world, id, &stream.link.name, &data);
                    log!(self.world, "{}: watch #{id} {what}", stream.link.name);
                    if self.world.random.chance(self.world.weather().cut) {
                        // Anywhere, including the middle of a line.
                        let whole = usize::try_from(self.world.random.between(0, data.len() as u64)).unwrap_or(0);
                        log!(self.world, "{}: watch #{id} breaks after {whole} bytes of these", stream.link.name);
                        self.push(&stream.queue, Some(Ok(data.slice(..whole))));
                        self.push(&stream.queue, Some(Err(reset())));
                        return false;
                    }
                    self.push(&stream.queue, Some(Ok(data)));
                }
            }
        }
    }

    fn push(&self, queue: &Mutex<DeliveryQueue>, piece: Option<Piece>) {
        let arrives = clock::now() + self.world.watch_delay();
        let mut queue = lock(queue);
        let arrives = queue.last.map_or(arrives, |last| last.max(arrives));
        queue.last = Some(arrives);
        queue.pieces.push_back((arrives, piece));
        if let Some(waker) = queue.waker.take() {
            waker.wake();
        }
    }

    /// Applies sabotage to a piece.
    fn apply_sabotage(&self, stream: &Stream, data: Bytes) -> Bytes {
        let sabotage = self.world.sabotage;
        let pods = stream.checker.prefix() == "/registry/pods/";
        let volumes = stream.checker.prefix() == "/registry/persistentvolumes/";
        let to_scheduler = stream.link.name == SCHEDULER;
        match sabotage {
            Sabotage::WatchDropsEvent | Sabotage::WatchDoublesEvent if pods => {
                let mut lines: Vec<&[u8]> = data.split_inclusive(|byte| *byte == b'\n').collect();
                let mut state = self.state();
                let modified = lines.iter().position(|line| line.starts_with(b"{\"type\":\"MODIFIED\""));
                let Some(at) = modified else { return data };
                state.events_of_pods += 1;
                if state.events_of_pods != 9 {
                    return data;
                }
                match sabotage {
                    Sabotage::WatchDropsEvent => drop(lines.remove(at)),
                    _ => lines.insert(at, lines[at]),
                }
                lines.concat().into()
            }
            Sabotage::SchedulerSeesNoRequests if pods && to_scheduler => {
                String::from_utf8_lossy(&data).replace("\"requests\":{", "\"unseen\":{").into()
            }
            Sabotage::SchedulerSeesNoPlaces if volumes && to_scheduler => {
                String::from_utf8_lossy(&data).replace("\"nodeAffinity\":{", "\"unseen\":{").into()
            }
            _ => data,
        }
    }
}

/// The client's side; dropping it ends the server's side.
struct StreamEnd {
    id: u64,
    pump: Arc<Pump>,
}

impl Drop for StreamEnd {
    fn drop(&mut self) {
        let stream = self.pump.state().streams.remove(&self.id);
        drop(stream);
    }
}

enum BodySource {
    Whole(Option<Bytes>),
    Stream { queue: Arc<Mutex<DeliveryQueue>>, link: Arc<Link>, sleep: Option<Pin<Box<Sleep>>>, _end: StreamEnd },
}

/// The body that a client reads.
pub(crate) struct SimBody {
    way: BodySource,
}

impl SimBody {
    pub(crate) fn whole(body: Bytes) -> Self {
        Self { way: BodySource::Whole(Some(body)) }
    }
}

impl Body for SimBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let (queue, link, sleep) = match &mut self.way {
            BodySource::Whole(body) => return Poll::Ready(body.take().map(|body| Ok(Frame::data(body)))),
            BodySource::Stream { queue, link, sleep, .. } => (queue, link, sleep),
        };
        loop {
            if let Some(waiting) = sleep {
                std::task::ready!(waiting.as_mut().poll(context));
                *sleep = None;
            }
            if link.dead.is_cancelled() || link.is_blocked(context.waker()) {
                return Poll::Pending;
            }
            let mut queue = lock(queue);
            match queue.pieces.front() {
                None => {
                    queue.waker = Some(context.waker().clone());
                    return Poll::Pending;
                }
                Some((arrives, _)) if *arrives > clock::now() => {
                    *sleep = Some(Box::pin(clock::sleep_until(*arrives)));
                }
                Some(_) => {
                    let piece = queue.pieces.pop_front().and_then(|(_, piece)| piece);
                    return Poll::Ready(piece.map(|piece| piece.map(Frame::data)));
                }
            }
        }
    }
}

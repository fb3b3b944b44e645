//! Connections to plain backends that are kept for the next request: one of HTTP/2 for each endpoint that speaks it,
//! some idle ones of HTTP/1.1 for each other endpoint.
//!
//! Only Services' endpoints are kept so: the outside that a guest names itself gets a connection for each request, so
//! that no two pods meet on one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use machinery_env::Env;
use machinery_serve::descriptors::{Class, Descriptors};
use machinery_serve::net::Body;

/// How long a connection is kept that nobody uses.
const IDLE: Duration = Duration::from_secs(90);
/// Idle connections to one endpoint: what a burst leaves behind need not all stay.
const IDLE_PER_ENDPOINT_MAX: usize = 8;
/// Idle connections of HTTP/1.1 and connections of HTTP/2 in all, within half of what connections to endpoints may hold.
const KEPT_MAX: usize = 128;
/// How often connections are looked at that nobody has used.
const SWEEP_INTERVAL: Duration = Duration::from_secs(15);

pub(crate) type Http1 = http1::SendRequest<Body>;
pub(crate) type Http2 = http2::SendRequest<Body>;

#[derive(Clone)]
pub(crate) struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    env: Env,
    kept: Mutex<Kept>,
    sweeping: AtomicBool,
    kept_max: usize,
}

#[derive(Default)]
struct Kept {
    http1: HashMap<SocketAddr, Vec<(Http1, Duration)>>,
    http2: HashMap<SocketAddr, (Http2, Duration)>,
}

impl Kept {
    fn count(&self) -> usize {
        self.http1.values().map(Vec::len).sum::<usize>() + self.http2.len()
    }

    fn sweep(&mut self, now: Duration) {
        let fresh = |since: Duration| now.saturating_sub(since) < IDLE;
        self.http1.retain(|_, idle| {
            idle.retain(|(sender, since)| !sender.is_closed() && fresh(*since));
            !idle.is_empty()
        });
        self.http2.retain(|_, (sender, since)| !sender.is_closed() && fresh(*since));
    }
}

impl Pool {
    pub(crate) fn new(env: Env) -> Self {
        let kept_max = KEPT_MAX.min(Descriptors::process().max(Class::Backends) / 2);
        let (kept, sweeping) = (Mutex::default(), AtomicBool::new(false));
        Self { inner: Arc::new(Inner { env, kept, sweeping, kept_max }) }
    }

    /// Closes the connections that carry no request, so that others can be made.
    pub(crate) fn close_idle(&self) {
        self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner).http1.clear();
    }

    /// An idle connection to an endpoint.
    pub(crate) fn take(&self, to: SocketAddr) -> Option<Http1> {
        let now = self.inner.env.elapsed();
        let mut kept = self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = kept.http1.get_mut(&to)?;
        // The one that was used last is the least likely to be closed by its peer.
        while let Some((sender, since)) = idle.pop() {
            if sender.is_ready() && now.saturating_sub(since) < IDLE {
                return Some(sender);
            }
        }
        None
    }

    /// The connection of HTTP/2 to an endpoint.
    pub(crate) fn share(&self, to: SocketAddr) -> Option<Http2> {
        let now = self.inner.env.elapsed();
        let mut kept = self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (sender, used) = kept.http2.get_mut(&to)?;
        if sender.is_closed() {
            kept.http2.remove(&to);
            return None;
        }
        *used = now;
        Some(sender.clone())
    }

    /// Keeps a connection on which a request has ended.
    pub(crate) fn keep(&self, to: SocketAddr, sender: Http1) {
        self.put(|kept, now| {
            let idle = kept.http1.entry(to).or_default();
            if idle.len() < IDLE_PER_ENDPOINT_MAX {
                idle.push((sender, now));
            }
        });
    }

    /// Keeps a connection for all requests to an endpoint.
    pub(crate) fn keep_shared(&self, to: SocketAddr, sender: Http2) {
        self.put(|kept, now| {
            kept.http2.insert(to, (sender, now));
        });
    }

    fn put(&self, put: impl FnOnce(&mut Kept, Duration)) {
        let now = self.inner.env.elapsed();
        let mut kept = self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.count() >= self.inner.kept_max {
            kept.sweep(now);
        }
        if kept.count() < self.inner.kept_max {
            put(&mut kept, now);
        }
        drop(kept);
        if !self.inner.sweeping.swap(true, Ordering::AcqRel) {
            tokio::spawn(sweep(Arc::downgrade(&self.inner)));
        }
    }

    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner).count()
    }
}

/// Closes what nobody uses, until there is nothing left.
async fn sweep(pool: std::sync::Weak<Inner>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let Some(inner) = pool.upgrade() else { return };
        let now = inner.env.elapsed();
        let mut kept = inner.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.sweep(now);
        if kept.count() == 0 {
            // Under the lock, so that what is put next starts another sweep.
            inner.sweeping.store(false, Ordering::Release);
            return;
        }
    }
}

//! Connection pool for plain backends: one HTTP/2 connection per h2c endpoint, a few idle HTTP/1.1 connections per
//! other endpoint.
//!
//! The pool holds Services' endpoints only. A destination outside the cluster gets a connection per request, so that no
//! two pods share one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::client::conn::http2;
use machinery_env::Env;
use machinery_serve::descriptors::{Class, Descriptors};
use machinery_serve::dial::idle::{IdleConnections, IdleLimits, WhenFull};
use machinery_serve::net::Body;

use crate::egress::http1::Http1;

/// Maximum time that an unused connection stays in the pool.
const IDLE_MAX: Duration = Duration::from_secs(90);
/// Maximum idle connections per endpoint: below the number of its clients, each further request would open one.
const IDLE_PER_ENDPOINT_MAX: usize = 64;
/// Maximum pooled connections, HTTP/1.1 and HTTP/2 together; at most half of the descriptors of class `Backends`.
const POOLED_MAX: usize = 512;
/// Interval between two sweeps for expired connections.
const SWEEP_INTERVAL: Duration = Duration::from_secs(15);

pub(crate) type Http2 = http2::SendRequest<Body>;

#[derive(Clone)]
pub(crate) struct Pool {
    inner: Arc<PoolInner>,
}

struct PoolInner {
    env: Env,
    pooled: Mutex<PooledConnections>,
    sweeping: AtomicBool,
    pooled_max: usize,
}

struct PooledConnections {
    http1: IdleConnections<SocketAddr, Http1>,
    http2: HashMap<SocketAddr, (Http2, Duration)>,
}

impl PooledConnections {
    fn count(&self) -> usize {
        self.http1.len() + self.http2.len()
    }

    fn sweep(&mut self, now: Duration) {
        self.http1.sweep(now);
        self.http2.retain(|_, (sender, since)| !sender.is_closed() && now.saturating_sub(*since) < IDLE_MAX);
    }
}

impl Pool {
    pub(crate) fn new(env: Env) -> Self {
        let pooled_max = POOLED_MAX.min(Descriptors::process().max(Class::Backends) / 2);
        let limits = IdleLimits {
            per_key_max: IDLE_PER_ENDPOINT_MAX,
            max: pooled_max,
            idle_max: IDLE_MAX,
            age_max: Duration::MAX,
            when_full: WhenFull::ClosesReturned,
        };
        let pooled = PooledConnections { http1: IdleConnections::new(limits), http2: HashMap::new() };
        let (pooled, sweeping) = (Mutex::new(pooled), AtomicBool::new(false));
        Self { inner: Arc::new(PoolInner { env, pooled, sweeping, pooled_max }) }
    }

    /// Closes idle connections to free their descriptors.
    pub(crate) fn close_idle(&self) {
        self.inner.pooled.lock().unwrap_or_else(PoisonError::into_inner).http1.clear();
    }

    /// Takes an idle connection to an endpoint out of the pool.
    pub(crate) fn take_http1(&self, to: SocketAddr) -> Option<Http1> {
        let now = self.inner.env.elapsed();
        let pop = || self.inner.pooled.lock().unwrap_or_else(PoisonError::into_inner).http1.pop(&to, now);
        // Reads the socket, without the lock.
        loop {
            let mut connection = pop()?;
            if connection.is_ready() {
                return Some(connection);
            }
        }
    }

    /// Returns the shared HTTP/2 connection to an endpoint.
    pub(crate) fn shared_http2(&self, to: SocketAddr) -> Option<Http2> {
        let now = self.inner.env.elapsed();
        let mut pooled = self.inner.pooled.lock().unwrap_or_else(PoisonError::into_inner);
        let (sender, used) = pooled.http2.get_mut(&to)?;
        if sender.is_closed() {
            pooled.http2.remove(&to);
            return None;
        }
        *used = now;
        Some(sender.clone())
    }

    /// Returns a connection to the pool after its request has ended.
    pub(crate) fn put_http1(&self, to: SocketAddr, connection: Http1) {
        self.put(|pooled, now| pooled.http1.keep(to, connection, now, now));
    }

    /// Pools a connection that all requests to an endpoint share.
    pub(crate) fn put_http2(&self, to: SocketAddr, sender: Http2) {
        self.put(|pooled, now| {
            pooled.http2.insert(to, (sender, now));
        });
    }

    fn put(&self, put: impl FnOnce(&mut PooledConnections, Duration)) {
        let now = self.inner.env.elapsed();
        let mut pooled = self.inner.pooled.lock().unwrap_or_else(PoisonError::into_inner);
        if pooled.count() >= self.inner.pooled_max {
            pooled.sweep(now);
        }
        if pooled.count() < self.inner.pooled_max {
            put(&mut pooled, now);
        }
        drop(pooled);
        if !self.inner.sweeping.swap(true, Ordering::AcqRel) {
            tokio::spawn(sweep(Arc::downgrade(&self.inner), self.inner.env.clone()));
        }
    }

    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.inner.pooled.lock().unwrap_or_else(PoisonError::into_inner).count()
    }
}

/// Closes expired connections until the pool is empty.
async fn sweep(pool: std::sync::Weak<PoolInner>, env: Env) {
    loop {
        env.sleep(SWEEP_INTERVAL).await;
        let Some(inner) = pool.upgrade() else { return };
        let now = env.elapsed();
        let mut pooled = inner.pooled.lock().unwrap_or_else(PoisonError::into_inner);
        pooled.sweep(now);
        if pooled.count() == 0 {
            // Reset under the lock, so that the next insertion starts another sweep.
            inner.sweeping.store(false, Ordering::Release);
            return;
        }
    }
}

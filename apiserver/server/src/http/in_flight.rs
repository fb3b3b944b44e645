//! The in-flight limits: running requests (upstream's max-requests-inflight), and bodies that are still being received.
//! A mutating request acquires its permit when its body has arrived, so that slow senders hold no permits.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::dispatch::BODY_BYTES_MAX;

/// The maximum number of read-only requests in flight (upstream's default); further ones get 429.
const READS_MAX: usize = 400;
/// The maximum number of mutating requests in flight (upstream's default).
const WRITES_MAX: usize = 200;
/// The maximum number of bodies being received: as many as connections.
const BODIES_MAX: usize = 8192;
/// The maximum number of bytes of bodies being received, in all.
const BODIES_BYTES_MAX: usize = 256 << 20;
/// One user's part of either, so that no user exhausts the limit: five times the mutating requests in flight, and
/// twenty of the largest bodies.
const USER_BODIES_MAX: usize = 1000;
const USER_BODIES_BYTES_MAX: usize = 20 * BODY_BYTES_MAX;

/// The in-flight limits of the server.
pub(super) struct InFlightLimits {
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
    bodies: Mutex<IncomingBodies>,
}

impl InFlightLimits {
    pub(super) fn new() -> Self {
        Self {
            reads: Arc::new(Semaphore::new(READS_MAX)),
            writes: Arc::new(Semaphore::new(WRITES_MAX)),
            bodies: Mutex::default(),
        }
    }

    /// Acquires a permit, if one is free.
    pub(super) fn try_acquire(&self, mutating: bool) -> Option<OwnedSemaphorePermit> {
        let semaphore = if mutating { &self.writes } else { &self.reads };
        semaphore.clone().try_acquire_owned().ok()
    }

    /// Begins to receive a body of `user`, if the limits allow it.
    pub(super) fn begin_body<'a>(&'a self, user: &'a str) -> Option<IncomingBody<'a>> {
        let admitted = self.bodies().begin(user);
        // Created only after admission: its drop is counted, too.
        admitted.then(|| IncomingBody { limits: self, user, bytes: 0 })
    }

    fn bodies(&self) -> std::sync::MutexGuard<'_, IncomingBodies> {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body that is being received, counted until it is dropped.
pub(super) struct IncomingBody<'a> {
    limits: &'a InFlightLimits,
    user: &'a str,
    bytes: usize,
}

impl IncomingBody<'_> {
    /// Counts further bytes of the body; returns false at a limit.
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let grown = self.limits.bodies().grow(self.user, bytes);
        self.bytes += if grown { bytes } else { 0 };
        grown
    }
}

impl Drop for IncomingBody<'_> {
    fn drop(&mut self) {
        self.limits.bodies().end(self.user, self.bytes);
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct BodyUsage {
    bodies: usize,
    bytes: usize,
}

/// The bodies being received. Pure.
#[derive(Debug, Default, PartialEq, Eq)]
struct IncomingBodies {
    all: BodyUsage,
    users: BTreeMap<String, BodyUsage>,
}

impl IncomingBodies {
    fn begin(&mut self, user: &str) -> bool {
        let own = self.users.get(user).copied().unwrap_or_default();
        if self.all.bodies >= BODIES_MAX || own.bodies >= USER_BODIES_MAX {
            return false;
        }
        self.all.bodies += 1;
        self.users.insert(user.to_owned(), BodyUsage { bodies: own.bodies + 1, ..own });
        true
    }

    fn grow(&mut self, user: &str, bytes: usize) -> bool {
        let Some(own) = self.users.get_mut(user) else { return false };
        if self.all.bytes + bytes > BODIES_BYTES_MAX || own.bytes + bytes > USER_BODIES_BYTES_MAX {
            return false;
        }
        self.all.bytes += bytes;
        own.bytes += bytes;
        true
    }

    fn end(&mut self, user: &str, bytes: usize) {
        self.all = BodyUsage { bodies: self.all.bodies - 1, bytes: self.all.bytes - bytes };
        if let Some(own) = self.users.get_mut(user) {
            *own = BodyUsage { bodies: own.bodies - 1, bytes: own.bytes - bytes };
            if own.bodies == 0 {
                self.users.remove(user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_takes_neither_all_bodies_nor_all_memory() {
        let limits = InFlightLimits::new();
        let slow: Vec<_> = std::iter::from_fn(|| limits.begin_body("slow")).collect();
        assert_eq!(slow.len(), USER_BODIES_MAX);
        let mut other = limits.begin_body("other").unwrap();
        assert!(other.grow(BODY_BYTES_MAX));
        drop(slow);
        let mut large: Vec<_> = (0..30).map(|_| limits.begin_body("large").unwrap()).collect();
        assert_eq!(large.iter_mut().filter_map(|body| body.grow(BODY_BYTES_MAX).then_some(())).count(), 20);
        assert!(other.grow(1));
        // Many users together are bounded, too.
        let names: Vec<String> = (0..20).map(|n| format!("user-{n}")).collect();
        let mut all: Vec<_> =
            std::iter::repeat_n(&names, 20).flatten().map(|name| limits.begin_body(name).unwrap()).collect();
        let taken = all.iter_mut().filter_map(|body| body.grow(BODY_BYTES_MAX).then_some(())).count();
        assert_eq!((taken + 21) * BODY_BYTES_MAX + 1, limits.bodies().all.bytes);
        assert!(limits.bodies().all.bytes <= BODIES_BYTES_MAX && taken < all.len());
        drop((other, large, all));
        assert_eq!(*limits.bodies(), IncomingBodies::default(), "ended bodies are not counted");
    }
}

//! What clients may hold of the server at once: seats of requests that run, and bodies that are still on their way. A writing
//! request takes its seat when its body is there, so that slow senders keep no seats from others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::dispatch::BODY_BYTES_MAX;

/// Reading requests at once (upstream's default); further ones get 429.
const READS_MAX: usize = 400;
/// Writing requests at once (upstream's default).
const WRITES_MAX: usize = 200;
/// Bodies on their way at once: as many as connections.
const BODIES_MAX: usize = 8192;
/// What has come of them: memory that is held for who may never finish.
const BODIES_BYTES_MAX: usize = 256 << 20;
/// One user's part of either, so that no user alone takes all of it: five times the writes that may run, and twenty of the
/// largest bodies.
const USER_BODIES_MAX: usize = 1000;
const USER_BODIES_BYTES_MAX: usize = 20 * BODY_BYTES_MAX;

/// All of them.
pub(super) struct Seats {
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
    bodies: Mutex<Bodies>,
}

impl Seats {
    pub(super) fn new() -> Self {
        Self {
            reads: Arc::new(Semaphore::new(READS_MAX)),
            writes: Arc::new(Semaphore::new(WRITES_MAX)),
            bodies: Mutex::default(),
        }
    }

    /// A seat, where there is one.
    pub(super) fn take(&self, mutating: bool) -> Option<OwnedSemaphorePermit> {
        let seats = if mutating { &self.writes } else { &self.reads };
        seats.clone().try_acquire_owned().ok()
    }

    /// Begins to read a body of `user`, where there is room for it.
    pub(super) fn body<'a>(&'a self, user: &'a str) -> Option<Arriving<'a>> {
        let admitted = self.bodies().begin(user);
        // Not before it is admitted: its end is counted, too.
        admitted.then(|| Arriving { seats: self, user, bytes: 0 })
    }

    fn bodies(&self) -> std::sync::MutexGuard<'_, Bodies> {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body on its way: counted until it is dropped.
pub(super) struct Arriving<'a> {
    seats: &'a Seats,
    user: &'a str,
    bytes: usize,
}

impl Arriving<'_> {
    /// Whether there is room for so much more of it.
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let grown = self.seats.bodies().grow(self.user, bytes);
        self.bytes += if grown { bytes } else { 0 };
        grown
    }
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        self.seats.bodies().end(self.user, self.bytes);
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    bodies: usize,
    bytes: usize,
}

/// The bodies on their way. Pure.
#[derive(Debug, Default, PartialEq, Eq)]
struct Bodies {
    all: Held,
    users: BTreeMap<String, Held>,
}

impl Bodies {
    fn begin(&mut self, user: &str) -> bool {
        let own = self.users.get(user).copied().unwrap_or_default();
        if self.all.bodies >= BODIES_MAX || own.bodies >= USER_BODIES_MAX {
            return false;
        }
        self.all.bodies += 1;
        self.users.insert(user.to_owned(), Held { bodies: own.bodies + 1, ..own });
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
        self.all = Held { bodies: self.all.bodies - 1, bytes: self.all.bytes - bytes };
        if let Some(own) = self.users.get_mut(user) {
            *own = Held { bodies: own.bodies - 1, bytes: own.bytes - bytes };
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
        let seats = Seats::new();
        let slow: Vec<_> = std::iter::from_fn(|| seats.body("slow")).collect();
        assert_eq!(slow.len(), USER_BODIES_MAX);
        let mut other = seats.body("other").unwrap();
        assert!(other.grow(BODY_BYTES_MAX));
        drop(slow);
        let mut large: Vec<_> = (0..30).map(|_| seats.body("large").unwrap()).collect();
        assert_eq!(large.iter_mut().filter_map(|body| body.grow(BODY_BYTES_MAX).then_some(())).count(), 20);
        assert!(other.grow(1));
        // Many users together are bounded, too.
        let names: Vec<String> = (0..20).map(|n| format!("user-{n}")).collect();
        let mut all: Vec<_> = std::iter::repeat_n(&names, 20).flatten().map(|name| seats.body(name).unwrap()).collect();
        let taken = all.iter_mut().filter_map(|body| body.grow(BODY_BYTES_MAX).then_some(())).count();
        assert_eq!((taken + 21) * BODY_BYTES_MAX + 1, seats.bodies().all.bytes);
        assert!(seats.bodies().all.bytes <= BODIES_BYTES_MAX && taken < all.len());
        drop((other, large, all));
        assert_eq!(*seats.bodies(), Bodies::default(), "nothing is left of those that ended");
    }
}

//! The in-flight limits: running requests (upstream's max-requests-inflight), and bodies that are still being received.
//!
//! [`InFlightLimits::admit`] returns a request's [`InFlightPermit`], whose methods are its only transitions; dropping it
//! releases it. A mutating request acquires its permit when its body has arrived, so that slow senders hold no permits.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use machinery_api::ApiError;
use tokio::sync::{Semaphore, SemaphorePermit};

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

/// How a request counts under the limit of running requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InFlightClass {
    /// Not limited: a long-running request, or one of `system:masters`.
    Exempt,
    /// Limited from its start.
    ReadOnly,
    /// Limited once its body has arrived.
    Mutating,
}

/// The in-flight limits of the server.
#[derive(Debug)]
pub(super) struct InFlightLimits {
    reads: Semaphore,
    writes: Semaphore,
    bodies: Mutex<IncomingBodies>,
}

impl InFlightLimits {
    pub(super) fn new() -> Self {
        Self { reads: Semaphore::new(READS_MAX), writes: Semaphore::new(WRITES_MAX), bodies: Mutex::default() }
    }

    /// Counts a request that arrived. A read-only request acquires its permit here.
    pub(super) fn admit(&self, class: InFlightClass) -> InFlightPermit<'_> {
        let stage = match class {
            InFlightClass::Exempt => PermitStage::Exempt,
            InFlightClass::Mutating => PermitStage::AwaitsBody,
            InFlightClass::ReadOnly => PermitStage::acquire(&self.reads),
        };
        InFlightPermit { limits: self, stage }
    }

    fn bodies(&self) -> std::sync::MutexGuard<'_, IncomingBodies> {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The free permits of read-only and mutating requests, and the number of incoming bodies.
    #[cfg(test)]
    pub(super) fn usage(&self) -> (usize, usize, usize) {
        (self.reads.available_permits(), self.writes.available_permits(), self.bodies().all.bodies)
    }
}

/// The permit of one request. Its owner is the request's context: the permit is released when that is dropped, whether
/// the request was answered, its client left or its handler panicked. A long-running request holds none.
#[derive(Debug)]
pub(super) struct InFlightPermit<'a> {
    limits: &'a InFlightLimits,
    stage: PermitStage<'a>,
}

#[derive(Debug)]
enum PermitStage<'a> {
    /// The limit does not apply.
    Exempt,
    /// The permit is acquired once the body has arrived.
    AwaitsBody,
    /// The permit is held.
    Acquired(#[expect(dead_code, reason = "held until the request is done")] SemaphorePermit<'a>),
    /// The limit was reached; the request is answered with 429.
    Rejected,
}

impl<'a> PermitStage<'a> {
    fn acquire(semaphore: &'a Semaphore) -> Self {
        semaphore.try_acquire().map_or(Self::Rejected, Self::Acquired)
    }
}

impl<'a> InFlightPermit<'a> {
    /// Whether the limit was reached.
    pub(super) fn is_rejected(&self) -> bool {
        matches!(self.stage, PermitStage::Rejected)
    }

    /// Begins to receive a body of `user`; `None` if bodies of the request are not limited.
    ///
    /// # Errors
    /// 429 if too many bodies are being received.
    pub(super) fn begin_body(&self, user: &'a str) -> Result<Option<IncomingBody<'a>>, ApiError> {
        if !matches!(self.stage, PermitStage::AwaitsBody) {
            return Ok(None);
        }
        let admitted = self.limits.bodies().begin(user);
        // Created only after admission: its drop is counted, too.
        let body = admitted.then(|| IncomingBody { limits: self.limits, user, bytes: 0 });
        body.map(Some).ok_or_else(too_many_bodies)
    }

    /// Ends the receipt of the body. A mutating request acquires its permit here.
    ///
    /// # Errors
    /// 429 if too many requests are in flight.
    pub(super) fn end_body(&mut self, body: Option<IncomingBody<'a>>) -> Result<(), ApiError> {
        drop(body);
        if matches!(self.stage, PermitStage::AwaitsBody) {
            self.stage = PermitStage::acquire(&self.limits.writes);
        }
        if self.is_rejected() { Err(too_many_bodies()) } else { Ok(()) }
    }
}

fn too_many_bodies() -> ApiError {
    ApiError::TooManyRequests("too many request bodies at once".into(), 1)
}

/// A body that is being received, counted until it is dropped.
#[derive(Debug)]
pub(super) struct IncomingBody<'a> {
    limits: &'a InFlightLimits,
    user: &'a str,
    bytes: usize,
}

impl IncomingBody<'_> {
    /// Counts further bytes of the body.
    ///
    /// # Errors
    /// 429 at a limit.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        if !self.limits.bodies().grow(self.user, bytes) {
            return Err(too_many_bodies());
        }
        self.bytes += bytes;
        Ok(())
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

    fn body<'a>(limits: &'a InFlightLimits, user: &'a str) -> Result<IncomingBody<'a>, ApiError> {
        limits.admit(InFlightClass::Mutating).begin_body(user).map(|body| body.expect("a limited body"))
    }

    #[test]
    fn one_user_exhausts_neither_bodies_nor_memory() {
        let limits = InFlightLimits::new();
        let slow: Vec<_> = std::iter::from_fn(|| body(&limits, "slow").ok()).collect();
        assert_eq!(slow.len(), USER_BODIES_MAX);
        let mut other = body(&limits, "other").unwrap();
        assert!(other.grow(BODY_BYTES_MAX).is_ok());
        drop(slow);
        let mut large: Vec<_> = (0..30).map(|_| body(&limits, "large").unwrap()).collect();
        assert_eq!(large.iter_mut().filter_map(|body| body.grow(BODY_BYTES_MAX).ok()).count(), 20);
        assert!(other.grow(1).is_ok());
        // Many users together are bounded, too.
        let names: Vec<String> = (0..20).map(|n| format!("user-{n}")).collect();
        let mut all: Vec<_> =
            std::iter::repeat_n(&names, 20).flatten().map(|name| body(&limits, name).unwrap()).collect();
        let taken = all.iter_mut().filter_map(|body| body.grow(BODY_BYTES_MAX).ok()).count();
        assert_eq!((taken + 21) * BODY_BYTES_MAX + 1, limits.bodies().all.bytes);
        assert!(limits.bodies().all.bytes <= BODIES_BYTES_MAX && taken < all.len());
        drop((other, large, all));
        assert_eq!(*limits.bodies(), IncomingBodies::default(), "ended bodies are not counted");
    }

    #[test]
    fn a_read_only_request_holds_its_permit_from_the_start() {
        let limits = InFlightLimits::new();
        let held: Vec<_> = (0..READS_MAX).map(|_| limits.admit(InFlightClass::ReadOnly)).collect();
        assert!(held.iter().all(|permit| !permit.is_rejected()));
        let mut rejected = limits.admit(InFlightClass::ReadOnly);
        assert!(rejected.is_rejected() && rejected.end_body(None).is_err());
        assert!(!limits.admit(InFlightClass::Mutating).is_rejected(), "the limits are separate");
        drop(held);
        assert!(rejected.is_rejected(), "a rejection is final");
        drop(rejected);
        assert_eq!(limits.usage(), (READS_MAX, WRITES_MAX, 0));
    }

    #[test]
    fn a_mutating_request_holds_its_permit_once_its_body_has_arrived() {
        let limits = InFlightLimits::new();
        let mut permit = limits.admit(InFlightClass::Mutating);
        let incoming = permit.begin_body("u").unwrap();
        assert_eq!((incoming.is_some(), limits.usage()), (true, (READS_MAX, WRITES_MAX, 1)));
        permit.end_body(incoming).unwrap();
        assert_eq!(limits.usage(), (READS_MAX, WRITES_MAX - 1, 0));
        // It keeps its one permit, whichever transitions follow.
        assert!(permit.begin_body("u").unwrap().is_none());
        permit.end_body(None).unwrap();
        assert_eq!(limits.usage(), (READS_MAX, WRITES_MAX - 1, 0));
        let mut others: Vec<_> = (0..WRITES_MAX).map(|_| limits.admit(InFlightClass::Mutating)).collect();
        let arrived = others.iter_mut().filter_map(|permit| permit.end_body(None).ok()).count();
        assert_eq!((arrived, others.iter().filter(|permit| permit.is_rejected()).count()), (WRITES_MAX - 1, 1));
        drop(others);
        drop(permit);
        assert_eq!(limits.usage(), (READS_MAX, WRITES_MAX, 0));
    }

    #[test]
    fn an_exempt_request_holds_no_permit() {
        let limits = InFlightLimits::new();
        let mut permit = limits.admit(InFlightClass::Exempt);
        assert!(permit.begin_body("u").unwrap().is_none());
        permit.end_body(None).unwrap();
        assert_eq!((permit.is_rejected(), limits.usage()), (false, (READS_MAX, WRITES_MAX, 0)));
    }
}

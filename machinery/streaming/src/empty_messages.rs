//! Messages without content (pings, pongs, empty pieces) of an upgraded connection: each costs some microseconds and passes
//! every limit that counts bytes, so their number is limited. Pure.

use std::time::Duration;

/// Messages of a client at once, and a second. Clients send one in some seconds.
pub(crate) const EMPTY_MESSAGES_MAX: u64 = 2000;
const EMPTY_MESSAGES_PER_SECOND: u64 = 100;

/// A client has sent too many messages without content.
#[derive(Debug, thiserror::Error)]
#[error("too many messages without content")]
pub(crate) struct TooMany;

/// The messages without content that a client may send. Pure.
#[derive(Debug)]
pub(crate) struct EmptyMessages {
    left: u64,
    /// Up to when the time's share was added.
    refilled_at: Duration,
}

impl EmptyMessages {
    pub(crate) fn new(now: Duration) -> Self {
        Self { left: EMPTY_MESSAGES_MAX, refilled_at: now }
    }

    /// Charges a message; false if the client has sent too many.
    pub(crate) fn charge(&mut self, now: impl FnOnce() -> Duration) -> bool {
        if self.left == 0 {
            let now = now();
            let passed = now.saturating_sub(self.refilled_at);
            let share = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX).saturating_mul(EMPTY_MESSAGES_PER_SECOND);
            self.left = (share / 1000).min(EMPTY_MESSAGES_MAX);
            self.refilled_at = self.refilled_at.max(now);
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_may_send_an_empty_message_now_and_then() {
        let mut empty = EmptyMessages::new(Duration::ZERO);
        assert!((0..EMPTY_MESSAGES_MAX).all(|_| empty.charge(|| Duration::ZERO)));
        assert!(!empty.charge(|| Duration::ZERO));
        assert!((1..10_000).all(|second| empty.charge(|| Duration::from_secs(second))));
    }
}

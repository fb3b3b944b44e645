//! What the endpoints of a Service port were last seen to understand. Lasts as long as the port, so that a client meets no
//! other protocol while a server starts again.

use std::sync::atomic::{AtomicU8, Ordering};

const HTTP: u8 = 1;
const BYTES: u8 = 2;

/// See the module. 0 while nothing is known.
#[derive(Debug, Default)]
pub struct LearnedProtocol(AtomicU8);

impl LearnedProtocol {
    /// Whether it was HTTP; `None` while nothing is known.
    #[must_use]
    pub fn is_http(&self) -> Option<bool> {
        match self.0.load(Ordering::Relaxed) {
            HTTP => Some(true),
            BYTES => Some(false),
            _ => None,
        }
    }

    /// Records what an endpoint understands.
    pub fn learn(&self, is_http: bool) {
        let seen = if is_http { HTTP } else { BYTES };
        if self.0.load(Ordering::Relaxed) != seen {
            self.0.store(seen, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_counts() {
        let learned = LearnedProtocol::default();
        assert_eq!(learned.is_http(), None);
        for is_http in [true, false, true] {
            learned.learn(is_http);
            assert_eq!(learned.is_http(), Some(is_http));
        }
    }
}

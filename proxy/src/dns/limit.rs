//! Bounds the amplification of answers over UDP, whose source addresses may be forged. Pure.
//!
//! An answer of up to three times its request is free, as in QUIC (RFC 9000 §8). What is larger is charged to the source
//! address; at the limit the client gets a truncated answer, and repeats its query over TCP, which proves its address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

/// Factor between request and answer that is free.
const FREE_FACTOR: usize = 3;
/// Bytes a second above it for one source address: some 1,000 large answers.
const BYTES_PER_SECOND: u64 = 1 << 20;
/// Bytes at once.
const BURST_BYTES: u64 = 1 << 20;
/// Maximum remembered sources. With more of them, those with a full budget are forgotten; others are sent to TCP.
const SOURCES_MAX: usize = 1_024;

/// The budgets of the source addresses.
#[derive(Debug, Default)]
pub(crate) struct AmplificationLimit {
    sources: HashMap<IpAddr, Budget>,
}

#[derive(Debug)]
struct Budget {
    left: u64,
    at: Duration,
}

impl AmplificationLimit {
    /// Whether a source may get an answer of this size at `now`, a time since the start.
    pub(crate) fn admits(&mut self, source: IpAddr, request: usize, answer: usize, now: Duration) -> bool {
        let excess = answer.saturating_sub(request.saturating_mul(FREE_FACTOR)) as u64;
        if excess == 0 {
            return true;
        }
        if self.sources.len() >= SOURCES_MAX && !self.sources.contains_key(&source) {
            self.sources.retain(|_, budget| budget.left_at(now) < BURST_BYTES);
            if self.sources.len() >= SOURCES_MAX {
                return false;
            }
        }
        let budget = self.sources.entry(source).or_insert(Budget { left: BURST_BYTES, at: now });
        let left = budget.left_at(now);
        let admitted = excess <= left;
        *budget = Budget { left: if admitted { left - excess } else { left }, at: now };
        admitted
    }
}

impl Budget {
    fn left_at(&self, now: Duration) -> u64 {
        let gained = now.saturating_sub(self.at).as_micros().saturating_mul(u128::from(BYTES_PER_SECOND)) / 1_000_000;
        u64::try_from(gained).unwrap_or(u64::MAX).saturating_add(self.left).min(BURST_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_answers_are_bounded_per_source_and_small_ones_are_free() {
        let mut limit = AmplificationLimit::default();
        let (one, other) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        let start = Duration::from_secs(9);
        let admitted = (0..5_000).filter(|_| limit.admits(one, 40, 1_120, start)).count();
        assert_eq!(admitted, 1_048, "1 MiB of 1,000 bytes each");
        assert!(limit.admits(one, 40, 120, start), "thrice the request");
        assert!(limit.admits(other, 40, 1_120, start));
        assert!(!limit.admits(one, 40, 1_120, start + Duration::from_micros(300)));
        let later = start + Duration::from_secs(1);
        assert_eq!((0..5_000).filter(|_| limit.admits(one, 40, 1_120, later)).count(), 1_048);
    }

    #[test]
    fn forged_sources_take_no_memory() {
        let mut limit = AmplificationLimit::default();
        let now = Duration::from_secs(1);
        let admitted = (0..10_000_u32).filter(|n| limit.admits(IpAddr::from(n.to_be_bytes()), 40, 1_120, now)).count();
        assert_eq!((admitted, limit.sources.len()), (SOURCES_MAX, SOURCES_MAX));
        assert!(
            limit.admits(IpAddr::from([9, 9, 9, 9]), 40, 1_120, now + Duration::from_secs(1)),
            "budgets are full again"
        );
    }
}

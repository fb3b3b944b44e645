//! The start latency of a pod: the time from its adoption to its first readiness. Pure; yields it once.

use std::time::Duration;

/// Measures one pod.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StartLatency {
    /// The monotonic time of the adoption; `None` once the latency was returned.
    adopted_at: Option<Duration>,
}

impl StartLatency {
    pub(crate) fn new(adopted_at: Duration) -> Self {
        Self { adopted_at: Some(adopted_at) }
    }

    /// The pod is ready at that monotonic time: returns its latency, the first time.
    pub(crate) fn record_ready(&mut self, elapsed: Duration) -> Option<Duration> {
        self.adopted_at.take().map(|adopted_at| elapsed.saturating_sub(adopted_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_readiness_counts() {
        let mut latency = StartLatency::new(Duration::from_secs(3));
        assert_eq!(latency.record_ready(Duration::from_secs(5)), Some(Duration::from_secs(2)));
        assert_eq!(latency.record_ready(Duration::from_secs(9)), None);
    }
}

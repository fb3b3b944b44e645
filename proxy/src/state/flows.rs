//! The table of UDP flows: which client talks to which endpoint, how long an idle flow is kept, and which one gives way to
//! a new one. Pure.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::time::Duration;

/// Maximum flows of all listeners; each has a socket or a pipe.
pub(crate) const FLOWS_MAX: usize = 4_096;
/// Time after the last datagram that ends a flow (Linux' `nf_conntrack_udp_timeout`, which kube-proxy leaves as it is).
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// The same for a flow with datagrams in both directions for longer than `STREAM_AFTER` (`nf_conntrack_udp_timeout_stream`).
const STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Age from which a flow in both directions counts as a stream: not a single question with its answer.
const STREAM_AFTER: Duration = Duration::from_secs(2);

/// Flows by key. `T` leads to the endpoint.
#[derive(Debug)]
pub(crate) struct FlowTable<K, T> {
    flows: HashMap<K, Flow<T>>,
    by_client: HashMap<IpAddr, usize>,
    next: u64,
    max: usize,
}

#[derive(Debug)]
struct Flow<T> {
    /// Distinguishes it from a later flow of the same key.
    number: u64,
    client: IpAddr,
    begun: Duration,
    seen: Duration,
    replied: bool,
    to: T,
}

impl<T> Flow<T> {
    fn ends_at(&self) -> Duration {
        let is_stream = self.replied && self.seen.saturating_sub(self.begun) > STREAM_AFTER;
        self.seen + if is_stream { STREAM_IDLE_TIMEOUT } else { IDLE_TIMEOUT }
    }
}

impl<K: Copy + Eq + Hash, T> FlowTable<K, T> {
    /// A table of at most `max` flows, half of them of one client address: the processes of the host share one.
    pub(crate) fn new(max: usize) -> Self {
        Self { flows: HashMap::new(), by_client: HashMap::new(), next: 0, max: max.max(2) }
    }

    /// The flow of a key, for a datagram of its client.
    pub(crate) fn client_sent(&mut self, key: K, now: Duration) -> Option<&T> {
        let flow = self.flows.get_mut(&key)?;
        flow.seen = now;
        Some(&flow.to)
    }

    /// Records a datagram of the endpoint.
    pub(crate) fn endpoint_sent(&mut self, key: K, number: u64, now: Duration) {
        if let Some(flow) = self.flows.get_mut(&key).filter(|flow| flow.number == number) {
            flow.seen = now;
            flow.replied = true;
        }
    }

    /// Adds a flow; returns its number, and the flow that gave way to it: the one of the same key, else the longest idle
    /// one of a client with too many, else of all.
    pub(crate) fn add(&mut self, key: K, client: IpAddr, now: Duration, to: T) -> (u64, Option<T>) {
        let replaced = self.remove_flow(key);
        let own = self.by_client.get(&client).copied().unwrap_or(0);
        let evicted = if own >= self.max / 2 {
            self.remove_longest_idle(|flow| flow.client == client)
        } else if self.flows.len() >= self.max {
            self.remove_longest_idle(|_| true)
        } else {
            None
        };
        let number = self.next;
        self.next += 1;
        self.flows.insert(key, Flow { number, client, begun: now, seen: now, replied: false, to });
        *self.by_client.entry(client).or_default() += 1;
        (number, replaced.or(evicted))
    }

    /// The time at which a flow ends if no datagram comes; `None` if it is gone.
    pub(crate) fn ends_at(&self, key: K, number: u64) -> Option<Duration> {
        self.flows.get(&key).filter(|flow| flow.number == number).map(Flow::ends_at)
    }

    /// Removes a flow.
    pub(crate) fn remove(&mut self, key: K, number: u64) {
        if self.flows.get(&key).is_some_and(|flow| flow.number == number) {
            self.remove_flow(key);
        }
    }

    /// The number of flows.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.flows.len()
    }

    fn remove_longest_idle(&mut self, of: impl Fn(&Flow<T>) -> bool) -> Option<T> {
        let candidates = self.flows.iter().filter(|(_, flow)| of(flow));
        let oldest = candidates.min_by_key(|(_, flow)| flow.seen).map(|(key, _)| *key)?;
        self.remove_flow(oldest)
    }

    fn remove_flow(&mut self, key: K) -> Option<T> {
        let flow = self.flows.remove(&key)?;
        if let Some(count) = self.by_client.get_mut(&flow.client) {
            *count -= 1;
            if *count == 0 {
                self.by_client.remove(&flow.client);
            }
        }
        Some(flow.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn client(n: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, n])
    }

    #[test]
    fn a_stream_is_kept_longer_than_a_question() {
        let mut flows = FlowTable::new(FLOWS_MAX);
        let (number, _) = flows.add(1, client(1), SECOND, "a");
        assert_eq!(flows.ends_at(1, number), Some(31 * SECOND));
        flows.endpoint_sent(1, number, 2 * SECOND);
        assert_eq!(flows.ends_at(1, number), Some(32 * SECOND), "a question with its answer");
        assert_eq!(flows.client_sent(1, 9 * SECOND), Some(&"a"));
        assert_eq!(flows.ends_at(1, number), Some(129 * SECOND));
        flows.remove(1, number + 1);
        assert_eq!(flows.ends_at(1, number + 1), None);
        flows.remove(1, number);
        assert!(flows.count() == 0 && flows.by_client.is_empty());
    }

    #[test]
    fn the_longest_idle_flow_gives_way() {
        let mut flows = FlowTable::new(FLOWS_MAX);
        let add = |flows: &mut FlowTable<usize, usize>, key: usize, n: u8| {
            flows.add(key, client(n), SECOND * u32::try_from(key).unwrap(), key).1
        };
        for key in 0..FLOWS_MAX / 2 {
            assert_eq!(add(&mut flows, key, 1), None);
        }
        flows.client_sent(0, SECOND * 9_999);
        assert_eq!(add(&mut flows, 5_000, 1), Some(1), "of its own");
        for key in 6_000..6_000 + FLOWS_MAX / 2 {
            assert_eq!(add(&mut flows, key, u8::try_from(key % 200 + 2).unwrap()), None);
        }
        assert_eq!(add(&mut flows, 20_000, 250), Some(2), "of all");
        assert_eq!(add(&mut flows, 20_000, 250), Some(20_000), "of the same key");
        assert_eq!(flows.count(), FLOWS_MAX);
    }
}

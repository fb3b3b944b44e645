//! A pool of idle connections to kubelets, so that logs, sessions and metrics do not pay a TLS handshake each. The pool
//! takes time and connection state as arguments: it has neither clock nor socket.

use std::time::Duration;

use super::kubelets::NodeAddress;

/// The maximum number of idle connections to one node: a burst need not keep all of its connections.
pub(super) const PER_NODE_MAX: usize = 4;
/// The maximum number of idle connections in all, if the process may have as many. Above it, the one idle for longest
/// is evicted.
pub(super) const IDLE_CONNECTIONS_MAX: usize = 64;
/// The maximum idle time: shorter than the kubelet's, so that the kubelet does not close a connection while a request
/// is sent.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(60);
/// The maximum age of a connection, after which the node's certificate is verified again.
pub(super) const AGE_MAX: Duration = Duration::from_secs(600);

/// An idle connection.
struct Idle<C> {
    to: NodeAddress,
    connection: C,
    created_at: Duration,
    idle_since: Duration,
}

/// The idle connections, least recently used first.
pub(super) struct Pool<C> {
    idle: Vec<Idle<C>>,
    max: usize,
}

impl<C> Pool<C> {
    /// Creates a pool of at most `max` connections.
    pub(super) const fn new(max: usize) -> Self {
        Self { idle: Vec::new(), max }
    }

    /// Takes a connection to a node, with its creation time. The most recently used one comes first, as it is the least
    /// likely to be closed. Closed and expired connections are dropped, and those to a former Node at the same address.
    pub(super) fn take(
        &mut self,
        to: &NodeAddress,
        now: Duration,
        is_open: impl Fn(&C) -> bool,
    ) -> Option<(C, Duration)> {
        self.sweep(now, is_open);
        self.idle.retain(|idle| idle.to == *to || !idle.to.has_address_of(to));
        let at = self.idle.iter().rposition(|idle| idle.to == *to)?;
        let Idle { connection, created_at, .. } = self.idle.remove(at);
        Some((connection, created_at))
    }

    /// Returns a connection to the pool, with its creation time.
    pub(super) fn keep(
        &mut self,
        to: NodeAddress,
        connection: C,
        created_at: Duration,
        now: Duration,
        is_open: impl Fn(&C) -> bool,
    ) {
        self.sweep(now, is_open);
        if self.max == 0 || now.saturating_sub(created_at) >= AGE_MAX {
            return;
        }
        let of_node = self.idle.iter().filter(|idle| idle.to == to).count();
        let longest = match of_node >= PER_NODE_MAX {
            true => self.idle.iter().position(|idle| idle.to == to),
            false => (self.idle.len() >= self.max).then_some(0),
        };
        if let Some(at) = longest {
            self.idle.remove(at);
        }
        self.idle.push(Idle { to, connection, created_at, idle_since: now });
    }

    fn sweep(&mut self, now: Duration, is_open: impl Fn(&C) -> bool) {
        let old = |idle: &Idle<C>| {
            now.saturating_sub(idle.idle_since) >= IDLE_MAX || now.saturating_sub(idle.created_at) >= AGE_MAX
        };
        self.idle.retain(|idle| !old(idle) && is_open(&idle.connection));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(uid: &str, port: u16) -> NodeAddress {
        let addresses = json!([{"type": "InternalIP", "address": "192.0.2.1"}]);
        let endpoints = json!({"kubeletEndpoint": {"Port": port}});
        let status = json!({"addresses": addresses, "daemonEndpoints": endpoints});
        NodeAddress::of(&json!({"metadata": {"uid": uid}, "status": status})).unwrap()
    }

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_last_one_used_is_taken_and_others_end_in_time() {
        let (mut pool, open) = (Pool::new(IDLE_CONNECTIONS_MAX), |_: &u32| true);
        pool.keep(node("a", 1), 1, at(0), at(0), open);
        pool.keep(node("a", 1), 2, at(0), at(1), open);
        assert_eq!(pool.take(&node("a", 2), at(1), open), None, "another port");
        assert_eq!(pool.take(&node("a", 1), at(2), open), Some((2, at(0))));
        assert_eq!(pool.take(&node("a", 1), IDLE_MAX, open), None, "idle for too long");
        pool.keep(node("a", 1), 3, at(0), AGE_MAX, open);
        assert_eq!(pool.take(&node("a", 1), AGE_MAX, open), None, "its certificate was seen long ago");
        pool.keep(node("a", 1), 4, at(0), at(0), open);
        assert_eq!(pool.take(&node("a", 1), at(1), |_| false), None, "closed");
        assert!(pool.idle.is_empty());
    }

    #[test]
    fn a_node_that_was_created_again_gets_no_connection_of_its_predecessor() {
        let (mut pool, open) = (Pool::new(IDLE_CONNECTIONS_MAX), |_: &u32| true);
        pool.keep(node("a", 1), 1, at(0), at(0), open);
        assert_eq!(pool.take(&node("b", 1), at(1), open), None);
        assert!(pool.idle.is_empty(), "the former node's connections are closed");
    }

    #[test]
    fn a_burst_leaves_few_and_no_node_takes_all_room() {
        let (mut pool, open) = (Pool::new(IDLE_CONNECTIONS_MAX), |_: &u32| true);
        for n in 0..100 {
            pool.keep(node("a", 1), n, at(0), at(0), open);
        }
        assert_eq!(pool.idle.iter().map(|idle| idle.connection).collect::<Vec<_>>(), [96, 97, 98, 99]);
        for n in 0..100 {
            pool.keep(node(&format!("n{n}"), 2 + n), u32::from(n), at(0), at(1), open);
        }
        assert_eq!(
            (pool.idle.len(), pool.idle[0].connection),
            (IDLE_CONNECTIONS_MAX, 100 - IDLE_CONNECTIONS_MAX as u32)
        );
    }
}

//! Connections to kubelets that wait for their next request: a handshake is made once, and not for each log, session or
//! figure that somebody asks a node for. Which are kept is decided without a clock and without a socket.

use std::time::Duration;

use super::kubelets::NodeAddress;

/// Idle connections to one node: what a burst leaves behind need not all stay.
pub(super) const PER_NODE_MAX: usize = 4;
/// Idle connections in all, where the process may have as many; the one that has waited longest makes room.
pub(super) const KEPT_MAX: usize = 64;
/// How long one waits: less than a kubelet lets it, so that none is closed as a request goes out on it.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(60);
/// After so long a node shows its certificate anew, and has to show one that is good then.
pub(super) const AGE_MAX: Duration = Duration::from_secs(600);

/// One that waits.
struct Idle<C> {
    to: NodeAddress,
    connection: C,
    made: Duration,
    since: Duration,
}

/// All that wait, those that were used last at the end.
pub(super) struct Pool<C> {
    idle: Vec<Idle<C>>,
    max: usize,
}

impl<C> Pool<C> {
    /// Keeps so many at most.
    pub(super) const fn new(max: usize) -> Self {
        Self { idle: Vec::new(), max }
    }

    /// One to a node, with the time when it was made: the one that was used last, as it is the least likely to be closed.
    /// Those that nobody may use any more are dropped: closed ones, old ones, and those to a node that is another one now.
    pub(super) fn take(
        &mut self,
        to: &NodeAddress,
        now: Duration,
        is_open: impl Fn(&C) -> bool,
    ) -> Option<(C, Duration)> {
        self.sweep(now, is_open);
        self.idle.retain(|idle| idle.to == *to || !idle.to.is_where(to));
        let at = self.idle.iter().rposition(|idle| idle.to == *to)?;
        let Idle { connection, made, .. } = self.idle.remove(at);
        Some((connection, made))
    }

    /// Keeps one that was made then and is free now.
    pub(super) fn keep(
        &mut self,
        to: NodeAddress,
        connection: C,
        made: Duration,
        now: Duration,
        is_open: impl Fn(&C) -> bool,
    ) {
        self.sweep(now, is_open);
        if self.max == 0 || now.saturating_sub(made) >= AGE_MAX {
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
        self.idle.push(Idle { to, connection, made, since: now });
    }

    fn sweep(&mut self, now: Duration, is_open: impl Fn(&C) -> bool) {
        let old =
            |idle: &Idle<C>| now.saturating_sub(idle.since) >= IDLE_MAX || now.saturating_sub(idle.made) >= AGE_MAX;
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
        let (mut pool, open) = (Pool::new(KEPT_MAX), |_: &u32| true);
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
    fn a_node_that_was_made_anew_gets_none_of_its_predecessors() {
        let (mut pool, open) = (Pool::new(KEPT_MAX), |_: &u32| true);
        pool.keep(node("a", 1), 1, at(0), at(0), open);
        assert_eq!(pool.take(&node("b", 1), at(1), open), None);
        assert!(pool.idle.is_empty(), "and they are closed");
    }

    #[test]
    fn a_burst_leaves_few_and_no_node_takes_all_room() {
        let (mut pool, open) = (Pool::new(KEPT_MAX), |_: &u32| true);
        for n in 0..100 {
            pool.keep(node("a", 1), n, at(0), at(0), open);
        }
        assert_eq!(pool.idle.iter().map(|idle| idle.connection).collect::<Vec<_>>(), [96, 97, 98, 99]);
        for n in 0..100 {
            pool.keep(node(&format!("n{n}"), 2 + n), u32::from(n), at(0), at(1), open);
        }
        assert_eq!((pool.idle.len(), pool.idle[0].connection), (KEPT_MAX, 100 - KEPT_MAX as u32));
    }
}

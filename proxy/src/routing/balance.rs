//! The endpoint picker: picks the less loaded of two random endpoints, or the endpoint of a sticky client
//! (`sessionAffinity: ClientIP`). Pure: candidates, time and randomness are arguments.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::routing::endpoint::Endpoint;

/// Maximum remembered clients per Service port; the oldest is evicted first. Bounds memory that strangers can claim.
const AFFINITY_CLIENTS_MAX: usize = 10_000;

/// Picks the less loaded of two random `candidates` to which there is a `way`, and returns the way; `random` returns a number
/// below its argument.
///
/// Two choices are enough to keep queues short and don't herd onto the endpoint that was last seen idle
/// (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing").
pub fn pick<'a, W>(
    candidates: &'a [Arc<Endpoint>],
    way: impl Fn(&Endpoint) -> Option<W>,
    mut random: impl FnMut(u64) -> u64,
) -> Option<(&'a Arc<Endpoint>, W)> {
    let with_way = |endpoint: &'a Arc<Endpoint>| Some((endpoint, way(endpoint)?));
    let count = candidates.len() as u64;
    if count < 2 {
        return candidates.first().and_then(with_way);
    }
    let first = random(count);
    // Skips the first choice.
    let second = (first + 1 + random(count - 1)) % count;
    let [first, second] = [first, second].map(|index| usize::try_from(index).unwrap_or(0));
    let (a, b) = (&candidates[first], &candidates[second]);
    match (with_way(a), with_way(b)) {
        (Some(by_a), Some(by_b)) => Some(if b.in_flight.count() < a.in_flight.count() { by_b } else { by_a }),
        (Some(by_a), None) => Some(by_a),
        (None, Some(by_b)) => Some(by_b),
        // Rare: the table is stale, or few endpoints pass the policy. Any endpoint with a way is taken.
        (None, None) => candidates[first..].iter().chain(&candidates[..first]).find_map(with_way),
    }
}

/// Clients' sticky endpoints.
#[derive(Debug, Default)]
pub struct Affinity {
    clients: HashMap<IpAddr, StickyEndpoint>,
    /// Clients by last use, for eviction of the oldest.
    seen: BTreeSet<(Duration, IpAddr)>,
}

#[derive(Debug, Clone, Copy)]
struct StickyEndpoint {
    seen: Duration,
    ip: IpAddr,
    port: u16,
}

impl Affinity {
    /// The endpoint that `client` used within `timeout`, if `endpoints` still contains it.
    #[must_use]
    pub fn find<'a>(
        &self,
        endpoints: &'a [Arc<Endpoint>],
        client: IpAddr,
        now: Duration,
        timeout: Duration,
    ) -> Option<&'a Arc<Endpoint>> {
        let choice = self.clients.get(&client)?;
        if now.saturating_sub(choice.seen) > timeout {
            return None;
        }
        endpoints.iter().find(|endpoint| endpoint.ip == choice.ip && endpoint.port == choice.port)
    }

    /// Records the endpoint of a client.
    pub fn remember(&mut self, client: IpAddr, endpoint: &Endpoint, now: Duration) {
        let choice = StickyEndpoint { seen: now, ip: endpoint.ip, port: endpoint.port };
        match self.clients.insert(client, choice) {
            Some(before) => {
                self.seen.remove(&(before.seen, client));
            }
            None if self.clients.len() > AFFINITY_CLIENTS_MAX => {
                if let Some((_, oldest)) = self.seen.pop_first() {
                    self.clients.remove(&oldest);
                }
            }
            None => {}
        }
        self.seen.insert((now, client));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::routing::table::tests::{endpoint, route};

    #[test]
    fn the_less_busy_of_two_is_taken() {
        let endpoints = vec![endpoint("10.0.0.1", 80), endpoint("10.0.0.2", 80)];
        let busy = endpoints[0].in_flight.start();
        for seed in 0..20 {
            let (chosen, ()) = pick(&endpoints, |_| Some(()), |bound| seed % bound).unwrap();
            assert_eq!(chosen.ip, endpoints[1].ip);
        }
        drop(busy);
        assert_eq!(endpoints[0].in_flight.count(), 0);
    }

    #[test]
    fn all_endpoints_get_their_share() {
        let endpoints: Vec<_> = (1..=5).map(|n| endpoint(&format!("10.0.0.{n}"), 80)).collect();
        let (env, _) = machinery_env::Env::seeded(1, jiff::Timestamp::UNIX_EPOCH);
        let mut hits = BTreeMap::new();
        for _ in 0..1000 {
            *hits.entry(pick(&endpoints, |_| Some(()), |bound| env.below(bound)).unwrap().0.ip).or_insert(0) += 1;
        }
        assert!(hits.len() == 5 && hits.values().all(|count| *count > 120), "{hits:?}");
    }

    #[test]
    fn a_client_sticks_until_it_has_been_away_too_long() {
        let route = route(&["10.0.0.1", "10.0.0.2"]);
        let mut affinity = Affinity::default();
        let client = "127.0.0.1".parse().unwrap();
        let hour = Duration::from_secs(3600);
        affinity.remember(client, &route.usable()[1], Duration::ZERO);
        assert_eq!(affinity.find(route.usable(), client, hour, hour).unwrap().ip, route.usable()[1].ip);
        assert!(affinity.find(route.usable(), client, hour * 2, hour).is_none());
    }

    #[test]
    fn the_oldest_client_is_forgotten_first() {
        let route = route(&["10.0.0.1"]);
        let mut affinity = Affinity::default();
        let client = |n: usize| IpAddr::from(u32::try_from(n).unwrap().to_be_bytes());
        let at = |n: usize| Duration::from_secs(n as u64);
        for n in 0..AFFINITY_CLIENTS_MAX {
            affinity.remember(client(n), &route.usable()[0], at(n));
        }
        affinity.remember(client(0), &route.usable()[0], at(AFFINITY_CLIENTS_MAX));
        affinity.remember(client(AFFINITY_CLIENTS_MAX), &route.usable()[0], at(AFFINITY_CLIENTS_MAX + 1));
        let day = Duration::from_secs(86_400);
        let knows = |n: usize| affinity.find(route.usable(), client(n), at(AFFINITY_CLIENTS_MAX + 1), day).is_some();
        assert!(knows(0) && !knows(1) && knows(2) && knows(AFFINITY_CLIENTS_MAX));
        assert_eq!((affinity.clients.len(), affinity.seen.len()), (AFFINITY_CLIENTS_MAX, AFFINITY_CLIENTS_MAX));
    }
}

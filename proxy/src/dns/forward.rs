//! Forwards queries for names outside the cluster to the host's name servers, with a cache. Equal queries wait for one
//! exchange, so that a flood of them is one (RFC 5452 §5), and a name server that forwards back here ends in a timeout.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Message, Query, ResponseCode};
use hickory_resolver::proto::rr::Record;
use hickory_resolver::{ResponseCache, TtlConfig};
use machinery_serve::descriptors::{Class, Descriptors};

use crate::dns::outside::{retain_answers, retain_outside};
use crate::egress::external::FORWARDS_MAX;
use crate::state::ProxyState;

/// Maximum cached answers (CoreDNS' default).
const CACHED_MAX: u64 = 10_000;
/// Maximum size of a cached answer in bytes: all of them together take some 60 MiB at most.
const CACHED_BYTES_MAX: usize = 2_048;
/// Maximum of one client address: half, as the processes of the host share one.
const FORWARDS_PER_CLIENT_MAX: usize = 128;
/// Timeout of a forwarded query: below the five seconds of a C library, so that a client sees SERVFAIL.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(4);

/// The answer of the host's name servers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Forwarded {
    pub(crate) code: ResponseCode,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
}

impl Forwarded {
    fn failure() -> Self {
        Self { code: ResponseCode::ServFail, answers: Vec::new(), authorities: Vec::new() }
    }
}

type Exchange = Shared<BoxFuture<'static, Arc<Forwarded>>>;
/// An exchange as long as a client waits for it.
type WeakExchange = WeakShared<BoxFuture<'static, Arc<Forwarded>>>;

/// Forwards queries; cheap to clone.
#[derive(Clone)]
pub(crate) struct Forwarder {
    state: Arc<ProxyState>,
    cache: ResponseCache,
    running: Arc<Mutex<HashMap<Query, WeakExchange>>>,
    shares: Arc<Mutex<Shares>>,
}

impl Forwarder {
    pub(crate) fn new(state: Arc<ProxyState>) -> Self {
        let cache = ResponseCache::new(CACHED_MAX, TtlConfig::default());
        Self { state, cache, running: Arc::default(), shares: Arc::default() }
    }

    /// The cached answer of a query.
    pub(crate) fn cached(&self, query: &Query) -> Option<Forwarded> {
        let found = self.cache.get(query, self.state.env.instant().into_std());
        let metrics = &self.state.metrics.dns;
        if found.is_some() {
            metrics.cache_hits.inc()
        } else {
            metrics.cache_misses.inc()
        };
        found.map(|found| forwarded(query, found, &self.state.config.cluster_cidrs))
    }

    /// A place for one forwarded query of a client; `None` if it or all together have no more.
    pub(crate) fn admit(&self, client: IpAddr) -> Option<ForwardPlace> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        shares.take(client).then(|| ForwardPlace { client, shares: self.shares.clone() })
    }

    /// Forwards a query of an absolute name.
    pub(crate) async fn forward(&self, query: &Query) -> Arc<Forwarded> {
        self.exchange(query).await
    }

    fn exchange(&self, query: &Query) -> Exchange {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(exchange) = running.get(query).and_then(WeakShared::upgrade) {
            return exchange;
        }
        let (this, own_query) = (self.clone(), query.clone());
        let exchange = async move { Arc::new(this.ask(&own_query).await) }.boxed().shared();
        // Exchanges that ended, or whose clients left.
        if running.len() >= 2 * FORWARDS_MAX {
            running.retain(|_, exchange| exchange.upgrade().is_some());
        }
        if let Some(weak) = exchange.downgrade() {
            running.insert(query.clone(), weak);
        }
        exchange
    }

    /// Asks the host's name servers.
    async fn ask(&self, query: &Query) -> Forwarded {
        let metrics = &self.state.metrics.dns;
        metrics.forwards.inc();
        let result = self.state.env.timeout(FORWARD_TIMEOUT, self.lookup(query)).await;
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(query);
        let answer = result.unwrap_or(Err(NetError::Timeout));
        if let Err(error) = &answer
            && !matches!(error, NetError::Dns(DnsError::NoRecordsFound(_)))
        {
            metrics.forward_failures.inc();
            tracing::debug!(name = %query.name(), %error, "the host's name servers gave no answer");
        }
        let is_small = match &answer {
            Ok(message) => message.to_vec().is_ok_and(|bytes| bytes.len() <= CACHED_BYTES_MAX),
            Err(_) => true,
        };
        if is_small {
            // Of the errors, the cache keeps those that prove a name's absence.
            self.cache.insert(query.clone(), answer.clone(), self.state.env.instant().into_std());
        }
        forwarded(query, answer, &self.state.config.cluster_cidrs)
    }

    async fn lookup(&self, query: &Query) -> Result<Message, NetError> {
        let _held = Descriptors::process().take(Class::Outbound).map_err(|_| NetError::Busy)?;
        let state = &self.state;
        let resolver = state.egress.names().forwarder(|ip| state.is_cluster(ip)).ok_or(NetError::NoConnections)?;
        Ok(resolver.lookup(query.name().clone(), query.query_type()).await?.message().clone())
    }
}

/// An answer in the form of the wire, without records of other names and without those that lead into the cluster. The
/// additional section is not passed on: a client would take its addresses for those of other names.
fn forwarded(query: &Query, answer: Result<Message, NetError>, cluster: &[ipnet::IpNet]) -> Forwarded {
    match answer {
        Ok(mut message) => {
            retain_answers(query.name(), &mut message.answers, cluster);
            retain_outside(&mut message.authorities, cluster);
            Forwarded {
                code: message.metadata.response_code,
                answers: message.answers,
                authorities: message.authorities,
            }
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
            let soa = none.soa.map(|soa| {
                let mut soa = (*soa).into_record_of_rdata();
                soa.ttl = none.negative_ttl.unwrap_or(soa.ttl);
                soa
            });
            Forwarded { code: none.response_code, answers: Vec::new(), authorities: soa.into_iter().collect() }
        }
        Err(_) => Forwarded::failure(),
    }
}

/// Places in use by client.
#[derive(Debug, Default)]
struct Shares {
    by_client: HashMap<IpAddr, usize>,
    used: usize,
}

impl Shares {
    fn take(&mut self, client: IpAddr) -> bool {
        let own = self.by_client.get(&client).copied().unwrap_or(0);
        if self.used >= FORWARDS_MAX || own >= FORWARDS_PER_CLIENT_MAX {
            return false;
        }
        self.used += 1;
        self.by_client.insert(client, own + 1);
        true
    }

    fn give(&mut self, client: IpAddr) {
        self.used = self.used.saturating_sub(1);
        if let Some(own) = self.by_client.get_mut(&client) {
            *own -= 1;
            if *own == 0 {
                self.by_client.remove(&client);
            }
        }
    }
}

/// The place of one forwarded query, released on drop.
pub(crate) struct ForwardPlace {
    client: IpAddr,
    shares: Arc<Mutex<Shares>>,
}

impl Drop for ForwardPlace {
    fn drop(&mut self) {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner).give(self.client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_resolver::proto::op::{MessageType, OpCode};
    use hickory_resolver::proto::rr::rdata::NS;
    use hickory_resolver::proto::rr::{Name, RData, RecordType};

    #[test]
    fn one_client_leaves_half_of_the_places() {
        let mut shares = Shares::default();
        let (greedy, other) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 66, 0, 2]));
        assert_eq!((0..500).filter(|_| shares.take(greedy)).count(), FORWARDS_PER_CLIENT_MAX);
        assert!(shares.take(other));
        (0..FORWARDS_PER_CLIENT_MAX).for_each(|_| shares.give(greedy));
        shares.give(other);
        assert_eq!((shares.used, shares.by_client.len()), (0, 0));
    }

    #[test]
    fn no_outside_name_leads_into_the_cluster() {
        let name = Name::from_ascii("evil.test.").unwrap();
        let mut message = Message::new(1, MessageType::Response, OpCode::Query);
        let query = Query::query(name.clone(), RecordType::A);
        message.add_query(query.clone());
        for ip in ["127.64.0.1", "192.0.2.1", "::ffff:127.64.0.1"] {
            message.add_answer(crate::dns::records::address(&name, ip.parse().unwrap()));
        }
        let server = |text: &str| Record::from_rdata(name.clone(), 60, RData::NS(NS(Name::from_ascii(text).unwrap())));
        message.authorities = vec![server("ns.test."), server("catalog.shop.svc.cluster.local.")];
        // The additional section is ignored.
        message.additionals = vec![crate::dns::records::address(&name, "127.64.0.1".parse().unwrap())];
        let cluster = ["127.64.0.0/16".parse().unwrap()];
        let Forwarded { answers, authorities, .. } = forwarded(&query, Ok(message), &cluster);
        assert_eq!(authorities, [server("ns.test.")]);
        assert_eq!(answers, [crate::dns::records::address(&name, "192.0.2.1".parse().unwrap())]);
        assert_eq!(forwarded(&query, Err(NetError::Timeout), &cluster).code, ResponseCode::ServFail);
    }
}

//! Resolves external names asynchronously: a name server that never answers holds memory and no thread. A limit per pod
//! keeps such a server from stalling other pods.
//!
//! Servers, search path and hosts are the host's (`/etc/resolv.conf`, `/etc/hosts`), reloaded when they change.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts, ServerOrderingStrategy};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use machinery_env::Env;
use machinery_rules::reserved_address::is_reserved;
use machinery_serve::net::{Caller, DialError, NamePolicy, PodNames};

use crate::egress::pod_limit::{self, PodLimit};

/// Maximum concurrent lookups of one pod; further ones wait for that pod's own permits.
const LOOKUPS_PER_POD_MAX: usize = 16;
/// Maximum concurrent lookups of all pods, each with its own socket: bounds file handles.
const LOOKUPS_MAX: usize = 512;
/// Timeout of a lookup, waiting for a permit included.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of checks for changed host settings (another network, a VPN).
const SETTINGS_INTERVAL: Duration = Duration::from_secs(5);
/// Maximum cached answers, each kept for its TTL.
const ANSWERS_MAX: u64 = 2_048;
/// Maximum cached resolvers with pod settings: pods of one Deployment share one.
const RESOLVERS_MAX: usize = 256;
/// The standard port of name servers.
pub(crate) const DNS_PORT: u16 = 53;
/// Maximum concurrent queries of the DNS server, each with its own socket: bounds file handles.
pub(crate) const FORWARDS_MAX: usize = 256;
/// Timeout of one name server for the DNS server's queries (CoreDNS' read timeout): leaves time for a second one.
const FORWARD_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// Files whose modification time triggers a reload.
const SETTINGS: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

pub(crate) struct ExternalResolver {
    env: Env,
    resolvers: Mutex<Resolvers>,
    lookups: Arc<PodLimit>,
    /// Port of pods' name servers.
    port: u16,
}

/// Servers and options of a resolver.
type Settings = (ResolverConfig, ResolverOpts);

struct Resolvers {
    /// Settings of the host.
    host: Settings,
    resolver: Option<TokioResolver>,
    /// The resolver of the DNS server, made at its first use.
    forwarder: Option<TokioResolver>,
    /// Resolvers of pods whose spec has DNS settings.
    of_pods: HashMap<PodResolverConfig, TokioResolver>,
    changed: [Option<SystemTime>; 2],
    checked: Duration,
    /// Set by tests: never reloaded.
    fixed: bool,
}

impl ExternalResolver {
    /// A resolver with the host's settings.
    pub(crate) fn of_host(env: Env) -> Self {
        let host = host_settings();
        let resolvers = Resolvers {
            resolver: resolver(host.clone(), ANSWERS_MAX),
            forwarder: None,
            host,
            of_pods: HashMap::new(),
            changed: modification_times(),
            checked: env.elapsed(),
            fixed: false,
        };
        Self::new(env, resolvers)
    }

    fn new(env: Env, resolvers: Resolvers) -> Self {
        Self {
            env,
            resolvers: Mutex::new(resolvers),
            lookups: PodLimit::new(LOOKUPS_PER_POD_MAX, LOOKUPS_MAX),
            port: DNS_PORT,
        }
    }

    /// The first name server of the host.
    pub(crate) fn first_server(&self) -> Option<IpAddr> {
        let resolvers = self.resolvers.lock().unwrap_or_else(PoisonError::into_inner);
        resolvers.host.0.name_servers().first().map(|server| server.ip)
    }

    /// The addresses of an external name, in the order of dialling.
    pub(crate) async fn lookup(&self, caller: &Caller, name: &str) -> Result<Vec<IpAddr>, DialError> {
        let looked_up = self.env.timeout(LOOKUP_TIMEOUT, self.query(caller, name)).await;
        looked_up.map_err(|_| DialError::Timeout(format!("the name server, asked for {name},")))?
    }

    async fn query(&self, caller: &Caller, name: &str) -> Result<Vec<IpAddr>, DialError> {
        let unknown = || DialError::NameNotFound(name.to_owned());
        let _permit = self.lookups.acquire(pod_limit::pod(caller)).await;
        let resolver = self.resolver(&caller.names).ok_or_else(unknown)?;
        let found = match resolver.lookup_ip(name).await {
            Ok(found) => found,
            Err(NetError::Timeout) => {
                return Err(DialError::Timeout(format!("the name server, asked for {name},")));
            }
            Err(error) => {
                tracing::debug!(name, %error, "lookup failed");
                return Err(unknown());
            }
        };
        let addresses = alternate(found.iter());
        if addresses.is_empty() { Err(unknown()) } else { Ok(addresses) }
    }

    /// The resolver of the DNS server: without a cache and a search path, and without name servers that are the DNS
    /// server itself (`is_own`), as a query would come back for ever. `None` without any other.
    pub(crate) fn forwarder(&self, is_own: impl Fn(IpAddr) -> bool) -> Option<TokioResolver> {
        let mut resolvers = self.resolvers.lock().unwrap_or_else(PoisonError::into_inner);
        resolvers.reload_if_changed(&self.env);
        if resolvers.forwarder.is_none() {
            let (config, mut options) = resolvers.host.clone();
            let (_, _, mut servers) = config.into_parts();
            servers.retain(|server| !is_own(server.ip));
            options.timeout = options.timeout.min(FORWARD_ATTEMPT_TIMEOUT);
            options.max_active_requests = FORWARDS_MAX;
            resolvers.forwarder = resolver((ResolverConfig::from_parts(None, Vec::new(), servers), options), 0);
        }
        resolvers.forwarder.clone()
    }

    /// The resolver for a pod's DNS settings.
    fn resolver(&self, names: &PodNames) -> Option<TokioResolver> {
        let mut resolvers = self.resolvers.lock().unwrap_or_else(PoisonError::into_inner);
        resolvers.reload_if_changed(&self.env);
        let config = PodResolverConfig::of(names);
        if config == PodResolverConfig::default() {
            return resolvers.resolver.clone();
        }
        if let Some(known) = resolvers.of_pods.get(&config) {
            return Some(known.clone());
        }
        let made = config.resolver(&resolvers.host, self.port)?;
        if resolvers.of_pods.len() >= RESOLVERS_MAX {
            resolvers.of_pods.clear();
        }
        resolvers.of_pods.insert(config, made.clone());
        Some(made)
    }
}

impl Resolvers {
    /// Reads the host's settings again if they have changed.
    fn reload_if_changed(&mut self, env: &Env) {
        let now = env.elapsed();
        if self.fixed || now.saturating_sub(self.checked) < SETTINGS_INTERVAL {
            return;
        }
        self.checked = now;
        let changed = modification_times();
        if changed != self.changed {
            self.changed = changed;
            self.host = host_settings();
            self.resolver = resolver(self.host.clone(), ANSWERS_MAX);
            self.forwarder = None;
            self.of_pods.clear();
        }
    }
}

/// A pod's DNS settings that differ from the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct PodResolverConfig {
    /// Whether the host's name servers are left out.
    alone: bool,
    /// Whether the host's hosts file is ignored.
    dns_only: bool,
    servers: Vec<IpAddr>,
    timeout: Option<Duration>,
    attempts: Option<usize>,
}

impl PodResolverConfig {
    fn of(names: &PodNames) -> Self {
        let servers = match names.policy {
            // The cluster's own server answers for all names.
            NamePolicy::Cluster => Vec::new(),
            NamePolicy::Host | NamePolicy::Own => names.servers.clone(),
        };
        let alone = names.policy == NamePolicy::Own;
        let PodNames { dns_only, timeout, attempts, .. } = *names;
        Self { alone, dns_only, servers, timeout, attempts }
    }

    /// Leaves out servers on the host's own loopback or link: no pod may reach those.
    fn resolver(&self, host: &Settings, port: u16) -> Option<TokioResolver> {
        let allowed = self.servers.iter().filter(|ip| port != DNS_PORT || !is_reserved(**ip));
        let own = allowed.map(|ip| {
            let mut server = NameServerConfig::udp_and_tcp(*ip);
            server.connections.iter_mut().for_each(|connection| connection.port = port);
            server
        });
        let (config, mut options) = host.clone();
        let (domain, search, mut servers) = if self.alone { Default::default() } else { config.into_parts() };
        servers.extend(own);
        if servers.is_empty() {
            return None;
        }
        if self.alone || self.dns_only {
            options.use_hosts_file = ResolveHosts::Never;
        }
        if self.alone {
            // In the order of the spec, as a C library queries them.
            options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
            options.num_concurrent_reqs = 1;
        }
        options.timeout = self.timeout.unwrap_or(options.timeout);
        options.attempts = self.attempts.unwrap_or(options.attempts);
        resolver((ResolverConfig::from_parts(domain, search, servers), options), ANSWERS_MAX)
    }
}

fn modification_times() -> [Option<SystemTime>; 2] {
    SETTINGS.map(|path| Path::new(path).metadata().and_then(|about| about.modified()).ok())
}

/// Falls back to the hosts file alone on a host without name servers.
fn host_settings() -> Settings {
    hickory_resolver::system_conf::read_system_conf().unwrap_or_else(|error| {
        tracing::warn!(%error, "the host has no name servers: guests cannot resolve external names");
        Default::default()
    })
}

fn resolver((config, mut options): Settings, cached_max: u64) -> Option<TokioResolver> {
    options.cache_size = cached_max;
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    builder.build().inspect_err(|error| tracing::warn!(%error, "cannot create a resolver for external names")).ok()
}

/// Alternates address families, starting with the first answer's, for the case that one has no route (RFC 8305 §4).
fn alternate(all: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let all: Vec<IpAddr> = all.collect();
    let first_is_v4 = all.first().is_some_and(IpAddr::is_ipv4);
    let (mut these, mut those): (Vec<_>, Vec<_>) = all.into_iter().partition(|ip| ip.is_ipv4() == first_is_v4);
    these.reverse();
    those.reverse();
    let mut turns = Vec::with_capacity(these.len() + those.len());
    while !these.is_empty() || !those.is_empty() {
        turns.extend(these.pop());
        turns.extend(those.pop());
    }
    turns
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use tokio::net::UdpSocket;

    /// A name server that answers `good…` with 192.0.2.1 (`goodbad…` with 127.64.0.20) and nothing else.
    pub(crate) async fn tarpit() -> ExternalResolver {
        let mut server = NameServerConfig::udp("127.0.0.1".parse().unwrap());
        let (_, port) = served().await;
        server.connections[0].port = port;
        let mut options = ResolverOpts::default();
        options.use_hosts_file = ResolveHosts::Never;
        options.edns0 = false;
        let host = (ResolverConfig::from_parts(None, Vec::new(), vec![server]), options);
        let resolver = resolver(host.clone(), ANSWERS_MAX);
        let env = Env::real();
        let checked = env.elapsed();
        ExternalResolver::new(
            env,
            Resolvers {
                host,
                resolver,
                forwarder: None,
                of_pods: HashMap::new(),
                changed: [None; 2],
                checked,
                fixed: true,
            },
        )
    }

    /// A running server and its port.
    async fn served() -> (tokio::task::JoinHandle<()>, u16) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let serves = tokio::spawn(async move {
            let mut query = [0_u8; 512];
            while let Ok((length, from)) = socket.recv_from(&mut query).await {
                let Some(answer) = answer(&query[..length]) else { continue };
                let _ = socket.send_to(&answer, from).await;
            }
        });
        (serves, port)
    }

    /// A header, the question, and one A record; no record for another type.
    fn answer(query: &[u8]) -> Option<Vec<u8>> {
        let first = query.get(12 + 1..12 + 5)?;
        if !first.eq_ignore_ascii_case(b"good") {
            return None;
        }
        let end = 12 + query[12..].iter().position(|byte| *byte == 0)? + 5;
        let is_a = query[end - 4..end - 2] == [0, 1];
        let ip = if query.get(17..20)?.eq_ignore_ascii_case(b"bad") { [127, 64, 0, 20] } else { [192, 0, 2, 1] };
        let mut answer = query[..2].to_vec();
        answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
        answer.extend(&query[12..end]);
        if is_a {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            answer.extend(ip);
        }
        Some(answer)
    }

    fn caller(pod: &str) -> Caller {
        Caller { node: "n".into(), namespace: "shop".into(), pod: pod.into(), ip: None, names: Arc::default() }
    }

    #[tokio::test]
    async fn a_silent_name_server_delays_only_its_clients() {
        let names = Arc::new(tarpit().await);
        let mut stuck = tokio::task::JoinSet::new();
        for n in 0..200 {
            let names = names.clone();
            stuck.spawn(async move { names.lookup(&caller("hostile"), &format!("slow{n}.test")).await });
        }
        // The hostile pod uses all of its permits; its other calls wait.
        while names.lookups.free() > LOOKUPS_MAX - LOOKUPS_PER_POD_MAX {
            tokio::task::yield_now().await;
        }
        let found = names.env.timeout(Duration::from_secs(5), names.lookup(&caller("victim"), "good.test")).await;
        assert_eq!(found.expect("an answer").unwrap(), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(names.lookups.free(), LOOKUPS_MAX - LOOKUPS_PER_POD_MAX);
        assert_eq!(names.lookups.pods(), 1, "who asks no more has no share");
        stuck.shutdown().await;
        assert!(names.lookups.pods() == 0 && names.lookups.free() == LOOKUPS_MAX);
    }

    #[tokio::test]
    async fn a_pod_queries_its_own_name_servers_only() {
        let (socket, port) = served().await;
        let mut names = tarpit().await;
        let of = |policy, server: &str| Caller {
            names: Arc::new(PodNames {
                policy,
                servers: vec![server.parse().unwrap()],
                timeout: Some(Duration::from_secs(1)),
                attempts: Some(1),
                ..PodNames::default()
            }),
            ..caller("a")
        };
        names.port = port;
        let own = of(NamePolicy::Own, "127.0.0.1");
        assert_eq!(names.lookup(&own, "good.own.").await.unwrap(), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(names.resolvers.lock().unwrap().of_pods.len(), 1);
        // On the standard port, the host's own servers are out of reach.
        names.port = DNS_PORT;
        names.resolvers.lock().unwrap().of_pods.clear();
        let refused = names.lookup(&own, "good.own.").await;
        assert!(matches!(refused, Err(DialError::NameNotFound(_))), "{refused:?}");
        socket.abort();
    }

    #[test]
    fn a_query_of_dns_alone_reads_no_hosts_file() {
        let server = NameServerConfig::udp("192.0.2.53".parse().unwrap());
        let host = (ResolverConfig::from_parts(None, Vec::new(), vec![server]), ResolverOpts::default());
        for policy in [NamePolicy::Cluster, NamePolicy::Host] {
            let names = PodNames { policy, dns_only: true, ..PodNames::default() };
            let resolver = PodResolverConfig::of(&names).resolver(&host, DNS_PORT).unwrap();
            assert_eq!(resolver.options().use_hosts_file, ResolveHosts::Never, "{policy:?}");
            assert_eq!(
                PodResolverConfig::of(&PodNames { policy, ..PodNames::default() }),
                PodResolverConfig::default(),
                "{policy:?}"
            );
        }
    }

    #[test]
    fn families_take_turns() {
        let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let mixed = ips(&["2001:db8::1", "2001:db8::2", "192.0.2.1"]);
        assert_eq!(alternate(mixed.into_iter()), ips(&["2001:db8::1", "192.0.2.1", "2001:db8::2"]));
        assert!(alternate(std::iter::empty()).is_empty());
    }
}

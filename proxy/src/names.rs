//! Looks up names of the outside: asynchronously, so that a name server that never answers holds memory and no thread,
//! and with a share for each pod, so that it stalls nobody but who asked.
//!
//! Servers, search path and hosts are the host's (`/etc/resolv.conf`, `/etc/hosts`), read again when they change.

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
use machinery_serve::net::{Caller, DialError, NamePolicy, PodNames};

use crate::shares::Shares;
use crate::special::is_special;

/// Look-ups of one pod at once; more of them wait for its own, not for others'.
const LOOKUPS_PER_POD_MAX: usize = 16;
/// Look-ups of all pods at once, each with a socket of its own: bounds file handles.
const LOOKUPS_MAX: usize = 512;
/// How long a name may take, waiting included.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is checked whether the host's settings have changed (another network, a VPN).
const SETTINGS_INTERVAL: Duration = Duration::from_secs(5);
/// Answers that are kept, for as long as their servers say.
const ANSWERS_MAX: u64 = 2_048;
/// Resolvers of pods that are kept: pods of one Deployment share one.
const RESOLVERS_MAX: usize = 256;
const DNS_PORT: u16 = 53;
/// Where the host's settings are, as far as changes are noticed.
const SETTINGS: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

pub(crate) struct Names {
    env: Env,
    loaded: Mutex<Loaded>,
    places: Arc<Shares>,
    /// Where name servers of pods are asked.
    port: u16,
}

/// Servers and options.
type Settings = (ResolverConfig, ResolverOpts);

struct Loaded {
    /// What the host says.
    host: Settings,
    resolver: Option<TokioResolver>,
    /// Those of pods whose spec says more of names.
    of_pods: HashMap<Wanted, TokioResolver>,
    changed: [Option<SystemTime>; 2],
    checked: Duration,
    /// Given by a test, and never read again.
    fixed: bool,
}

impl Names {
    /// Asks as the host does.
    pub(crate) fn of_host(env: Env) -> Self {
        let host = host_settings();
        let loaded = Loaded {
            resolver: resolver(host.clone()),
            host,
            of_pods: HashMap::new(),
            changed: changed(),
            checked: env.elapsed(),
            fixed: false,
        };
        Self::new(env, loaded)
    }

    fn new(env: Env, loaded: Loaded) -> Self {
        Self { env, loaded: Mutex::new(loaded), places: Shares::new(LOOKUPS_PER_POD_MAX, LOOKUPS_MAX), port: DNS_PORT }
    }

    /// The first name server of the host.
    pub(crate) fn first_server(&self) -> Option<IpAddr> {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.host.0.name_servers().first().map(|server| server.ip)
    }

    /// The addresses of a name of the outside, in the order in which they should be tried.
    pub(crate) async fn lookup(&self, caller: &Caller, name: &str) -> Result<Vec<IpAddr>, DialError> {
        let looked_up = tokio::time::timeout(LOOKUP_TIMEOUT, self.ask(caller, name)).await;
        looked_up.map_err(|_| DialError::Timeout(format!("the name server, asked for {name},")))?
    }

    async fn ask(&self, caller: &Caller, name: &str) -> Result<Vec<IpAddr>, DialError> {
        let unknown = || DialError::NameNotFound(name.to_owned());
        let _place = self.places.place(Some(caller)).await;
        let resolver = self.resolver(&caller.names).ok_or_else(unknown)?;
        let found = match resolver.lookup_ip(name).await {
            Ok(found) => found,
            Err(NetError::Timeout) => {
                return Err(DialError::Timeout(format!("the name server, asked for {name},")));
            }
            Err(error) => {
                tracing::debug!(name, %error, "a look-up failed");
                return Err(unknown());
            }
        };
        let addresses = alternate(found.iter());
        if addresses.is_empty() { Err(unknown()) } else { Ok(addresses) }
    }

    /// Asks whom a pod's names are asked of.
    fn resolver(&self, names: &PodNames) -> Option<TokioResolver> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.env.elapsed();
        if !loaded.fixed && now.saturating_sub(loaded.checked) >= SETTINGS_INTERVAL {
            loaded.checked = now;
            let changed = changed();
            if changed != loaded.changed {
                loaded.changed = changed;
                loaded.host = host_settings();
                loaded.resolver = resolver(loaded.host.clone());
                loaded.of_pods.clear();
            }
        }
        let wanted = Wanted::of(names);
        if wanted == Wanted::default() {
            return loaded.resolver.clone();
        }
        if let Some(known) = loaded.of_pods.get(&wanted) {
            return Some(known.clone());
        }
        let made = wanted.resolver(&loaded.host, self.port)?;
        if loaded.of_pods.len() >= RESOLVERS_MAX {
            loaded.of_pods.clear();
        }
        loaded.of_pods.insert(wanted, made.clone());
        Some(made)
    }
}

/// What of a pod's spec differs from what the host does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Wanted {
    /// The host's name servers are not asked.
    alone: bool,
    /// The host's hosts file is not read.
    dns_only: bool,
    servers: Vec<IpAddr>,
    timeout: Option<Duration>,
    attempts: Option<usize>,
}

impl Wanted {
    fn of(names: &PodNames) -> Self {
        let servers = match names.policy {
            // The cluster's own answers for all: nobody is asked after it.
            NamePolicy::Cluster => Vec::new(),
            NamePolicy::Host | NamePolicy::Own => names.servers.clone(),
        };
        let alone = names.policy == NamePolicy::Own;
        let PodNames { dns_only, timeout, attempts, .. } = *names;
        Self { alone, dns_only, servers, timeout, attempts }
    }

    /// Never asks a server of the host's own loopback or link: those are no pod's to reach.
    fn resolver(&self, host: &Settings, port: u16) -> Option<TokioResolver> {
        let allowed = self.servers.iter().filter(|ip| port != DNS_PORT || !is_special(**ip));
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
            // In the order of the spec, as a C library asks them.
            options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
            options.num_concurrent_reqs = 1;
        }
        options.timeout = self.timeout.unwrap_or(options.timeout);
        options.attempts = self.attempts.unwrap_or(options.attempts);
        resolver((ResolverConfig::from_parts(domain, search, servers), options))
    }
}

fn changed() -> [Option<SystemTime>; 2] {
    SETTINGS.map(|path| Path::new(path).metadata().and_then(|about| about.modified()).ok())
}

/// A host without name servers still has its hosts file.
fn host_settings() -> Settings {
    hickory_resolver::system_conf::read_system_conf().unwrap_or_else(|error| {
        tracing::warn!(%error, "the host has no name servers: names of the outside are unknown to guests");
        Default::default()
    })
}

fn resolver((config, mut options): Settings) -> Option<TokioResolver> {
    options.cache_size = ANSWERS_MAX;
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    builder.build().inspect_err(|error| tracing::warn!(%error, "names of the outside cannot be looked up")).ok()
}

/// Families by turns, the first answer's first: where one of them leads nowhere, the other one is tried next (RFC 8305 §4).
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

    /// A name server that knows `good…` (as 192.0.2.1) and keeps silent about everything else.
    pub(crate) async fn tarpit() -> Names {
        let mut server = NameServerConfig::udp("127.0.0.1".parse().unwrap());
        let (_, port) = served().await;
        server.connections[0].port = port;
        let mut options = ResolverOpts::default();
        options.use_hosts_file = ResolveHosts::Never;
        options.edns0 = false;
        let host = (ResolverConfig::from_parts(None, Vec::new(), vec![server]), options);
        let resolver = resolver(host.clone());
        let env = Env::real();
        let checked = env.elapsed();
        Names::new(env, Loaded { host, resolver, of_pods: HashMap::new(), changed: [None; 2], checked, fixed: true })
    }

    /// The server itself, and its port.
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

    /// A header, the question again, and one A record; none for another type.
    fn answer(query: &[u8]) -> Option<Vec<u8>> {
        let first = query.get(12 + 1..12 + 5)?;
        if !first.eq_ignore_ascii_case(b"good") {
            return None;
        }
        let end = 12 + query[12..].iter().position(|byte| *byte == 0)? + 5;
        let is_a = query[end - 4..end - 2] == [0, 1];
        let mut answer = query[..2].to_vec();
        answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
        answer.extend(&query[12..end]);
        if is_a {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
        }
        Some(answer)
    }

    fn caller(pod: &str) -> Caller {
        Caller { node: "n".into(), namespace: "shop".into(), pod: pod.into(), ip: None, names: Arc::default() }
    }

    #[tokio::test]
    async fn a_name_server_that_never_answers_stalls_nobody_else() {
        let names = Arc::new(tarpit().await);
        let mut stuck = tokio::task::JoinSet::new();
        for n in 0..200 {
            let names = names.clone();
            stuck.spawn(async move { names.lookup(&caller("hostile"), &format!("slow{n}.test")).await });
        }
        // All of the hostile pod's share is in use, and the rest of its calls wait.
        while names.places.free() > LOOKUPS_MAX - LOOKUPS_PER_POD_MAX {
            tokio::task::yield_now().await;
        }
        let found = tokio::time::timeout(Duration::from_secs(5), names.lookup(&caller("victim"), "good.test")).await;
        assert_eq!(found.expect("an answer").unwrap(), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(names.places.free(), LOOKUPS_MAX - LOOKUPS_PER_POD_MAX);
        assert_eq!(names.places.pods(), 1, "who asks no more has no share");
        stuck.shutdown().await;
        assert!(names.places.pods() == 0 && names.places.free() == LOOKUPS_MAX);
    }

    #[tokio::test]
    async fn a_pod_asks_its_own_name_servers_and_never_those_of_the_host() {
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
        assert_eq!(names.loaded.lock().unwrap().of_pods.len(), 1);
        // By the port that name servers have, the host's own are out of reach.
        names.port = DNS_PORT;
        names.loaded.lock().unwrap().of_pods.clear();
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
            let resolver = Wanted::of(&names).resolver(&host, DNS_PORT).unwrap();
            assert_eq!(resolver.options().use_hosts_file, ResolveHosts::Never, "{policy:?}");
            assert_eq!(Wanted::of(&PodNames { policy, ..PodNames::default() }), Wanted::default(), "{policy:?}");
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

//! What a pod's spec says of names: by what the data plane resolves those that the pod calls.

use std::net::IpAddr;
use std::time::Duration;

/// Who is asked for a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum NamePolicy {
    /// Cluster DNS, and for what it is not responsible for the host's name servers (`ClusterFirst`).
    #[default]
    Cluster,
    /// The host's name servers alone (`Default`).
    Host,
    /// The pod's own name servers alone (`None`).
    Own,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct PodNames {
    /// The pod's hosts file, line by line: lower-case names, each with an address. Nobody else is asked for them. Most pods have one.
    pub hosts: Box<[(Box<str>, IpAddr)]>,
    /// Name servers alone are asked: neither this hosts file nor the host's is read.
    pub dns_only: bool,
    /// `dnsPolicy`.
    pub policy: NamePolicy,
    /// `dnsConfig.nameservers`.
    pub servers: Vec<IpAddr>,
    /// `dnsConfig.searches`, besides those of the policy; lower-case, without the dot at their end.
    pub searches: Vec<String>,
    /// A name of fewer dots is looked for in the search path first.
    pub ndots: Option<usize>,
    /// How long a name server may take.
    pub timeout: Option<Duration>,
    /// How often it is asked.
    pub attempts: Option<usize>,
}

impl PodNames {
    /// The addresses that the pod's hosts file has for a name, in its order.
    pub fn hosts(&self, name: &str) -> impl Iterator<Item = IpAddr> {
        let hosts = self.hosts.iter().filter(|_| !self.dns_only);
        hosts.filter(move |(known, _)| **known == *name).map(|(_, ip)| *ip)
    }
}

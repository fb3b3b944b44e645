//! DNS settings of a pod, by which the data plane resolves the names that the pod calls.

use std::net::IpAddr;
use std::time::Duration;

/// The name servers of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum NamePolicy {
    /// Cluster DNS, else the host's name servers (`ClusterFirst`).
    #[default]
    Cluster,
    /// The host's name servers only (`Default`).
    Host,
    /// The pod's own name servers only (`None`).
    Own,
}

/// A pod's DNS settings.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct PodNames {
    /// The pod's hosts file, line by line: lower-case names with an address. A listed name is resolved by it alone.
    /// Most pods have one.
    pub hosts: Box<[(Box<str>, IpAddr)]>,
    /// Whether only name servers are used: neither this hosts file nor the host's is read.
    pub dns_only: bool,
    /// `dnsPolicy`.
    pub policy: NamePolicy,
    /// `dnsConfig.nameservers`.
    pub servers: Vec<IpAddr>,
    /// `dnsConfig.searches`, in addition to the policy's; lower-case, without a trailing dot.
    pub searches: Vec<String>,
    /// `ndots`: a name with fewer dots is completed by the search path first.
    pub ndots: Option<usize>,
    /// Timeout of a name server.
    pub timeout: Option<Duration>,
    /// Number of tries.
    pub attempts: Option<usize>,
}

impl PodNames {
    /// The addresses of a name in the pod's hosts file, in its order.
    pub fn hosts(&self, name: &str) -> impl Iterator<Item = IpAddr> {
        let hosts = self.hosts.iter().filter(|_| !self.dns_only);
        hosts.filter(move |(known, _)| **known == *name).map(|(_, ip)| *ip)
    }
}

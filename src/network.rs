//! The cluster's addresses: on Linux the first free block `127.(64+4k).0.0/14`, elsewhere upstream's usual ones
//! (docs/contract.md §3).

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use apiserver::bootstrap::cidr_migration::CidrMigration;
use apiserver_resources::allocate::ServiceNetwork;
use ipnet::Ipv4Net;
use machinery_rules::address_pool::AddressPool;
use machinery_serve::net::Protocol;
use machinery_serve::sockets::{SocketKey, SocketTable};

use tools_command::data_dir::write_atomically;

/// Blocks lie at 127.64.0.0, 127.68.0.0, … 127.248.0.0; the last /14 of 127.0.0.0/8 ends in the broadcast address.
const BLOCKS: u8 = 47;

/// Prefix length of a block.
const BLOCK_PREFIX: u8 = 14;

/// The port of the claiming socket at a block's last address: any fixed port works, as long as all clusters use the
/// same.
const CLAIM_PORT: u16 = 6442;

/// Index of cluster DNS in the Services' range.
const DNS_HOST: usize = 10;
/// Upstream's range of NodePorts.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// The cluster's addresses; missing ones are chosen at the start.
#[derive(Debug, Clone, Default)]
pub(crate) struct NetworkConfig {
    pub(crate) service_cidr: Option<Ipv4Net>,
    pub(crate) cluster_cidr: Option<Ipv4Net>,
    pub(crate) node_cidr_mask_size: Option<u8>,
}

/// The ranges of Services and pods.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) services: Ipv4Net,
    pub(crate) pods: Ipv4Net,
    pub(crate) node_mask: u8,
    /// The socket that claims the block for this process.
    claim: Option<Arc<TcpListener>>,
}

impl Network {
    /// Chooses the ranges of a cluster of one process: flags first, then the block in the file `remembered` if it is
    /// free, then a free block.
    ///
    /// # Errors
    /// If no block is free, or the flags contradict each other.
    pub(crate) fn choose(config: &NetworkConfig, remembered: &Path) -> anyhow::Result<Self> {
        match (config.service_cidr, config.cluster_cidr) {
            (services, pods) if cfg!(target_os = "linux") && (services.is_none() || pods.is_none()) => {
                let (block, claim) = claim_block(read_block(remembered))?;
                write_atomically(remembered, format!("{block}\n").as_bytes())?;
                Self::within(config, block, Some(claim)).check_blocks()
            }
            _ => Self::usual(config).check_blocks(),
        }
    }

    /// The ranges of a cluster whose store several processes may share: those of its ServiceCIDR `stored`, else as the
    /// flags say. `runs_pods`: this process has nodes, whose addresses are a block of this machine where it has any.
    ///
    /// # Errors
    /// If the flags contradict each other or the store, or no block is free.
    pub(crate) fn of_store(
        config: &NetworkConfig,
        remembered: &Path,
        stored: Option<Ipv4Net>,
        runs_pods: bool,
    ) -> anyhow::Result<Self> {
        let Some(stored) = stored else {
            return if runs_pods { Self::choose(config, remembered) } else { Self::usual(config).check_blocks() };
        };
        if let Some(given) = config.service_cidr.filter(|given| given.trunc() != stored) {
            anyhow::bail!("--service-cidr {given}: the cluster in this store has {stored}; leave the flag out");
        }
        let block = (0..BLOCKS).map(block).find(|block| services_of(*block) == stored);
        let network = match block {
            Some(block) if runs_pods && config.service_cidr.is_none() => {
                let (free, claim) = claim_block(Some(block))?;
                Self::within(config, free, Some(claim))
            }
            Some(block) => Self::within(config, block, None),
            None => Self { services: stored, ..Self::usual(config) },
        };
        network.check_blocks()
    }

    /// The ranges that [`Network::choose`] chooses if the block in the file `remembered` is free, without a claim. `None` if
    /// the file names no block.
    ///
    /// # Errors
    /// If the flags contradict each other.
    pub(crate) fn remembered(config: &NetworkConfig, remembered: &Path) -> anyhow::Result<Option<Self>> {
        let has_blocks = cfg!(target_os = "linux") && (config.service_cidr.is_none() || config.cluster_cidr.is_none());
        let network = match has_blocks {
            true => read_block(remembered).map(|block| Self::within(config, block, None)),
            false => Some(Self::usual(config)),
        };
        network.map(Self::check_blocks).transpose()
    }

    /// The flags, else the parts of a block.
    fn within(config: &NetworkConfig, block: Ipv4Net, claim: Option<Arc<TcpListener>>) -> Self {
        Self {
            services: config.service_cidr.unwrap_or_else(|| services_of(block)),
            pods: config.cluster_cidr.unwrap_or_else(|| pods_of(block)),
            node_mask: config.node_cidr_mask_size.unwrap_or(20),
            claim,
        }
    }

    /// The flags, else upstream's usual ranges.
    pub(crate) fn usual(config: &NetworkConfig) -> Self {
        Self {
            services: config.service_cidr.unwrap_or(Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 12)),
            pods: config.cluster_cidr.unwrap_or(Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16)),
            node_mask: config.node_cidr_mask_size.unwrap_or(24),
            claim: None,
        }
    }

    /// The address of cluster DNS: the tenth of the Services' range.
    pub(crate) fn dns(&self) -> Option<Ipv4Addr> {
        self.services.hosts().nth(DNS_HOST - 1)
    }

    /// The Services' network of the API server, and the allowed endpoint addresses.
    pub(crate) fn of_services(&self) -> ServiceNetwork {
        let loopback = [self.services, self.pods].into_iter().filter(|block| block.network().is_loopback()).collect();
        ServiceNetwork { cidr: self.services, node_ports: NODE_PORTS, loopback }
    }

    /// The address migrations, if the Service `kubernetes` has an address of another block: its block was taken at this
    /// start.
    pub(crate) fn migrations(&self, kubernetes: Option<Ipv4Addr>) -> Vec<CidrMigration> {
        let old = kubernetes.filter(|address| address.is_loopback() && !self.services.contains(address));
        let Some(old) = old.filter(|_| self.claim.is_some()) else { return Vec::new() };
        let old = Ipv4Net::new_assert(old, BLOCK_PREFIX).trunc();
        vec![
            CidrMigration { from: services_of(old), to: self.services },
            CidrMigration { from: pods_of(old), to: self.pods },
        ]
    }

    /// Returns the network if the LoadBalancer pool doesn't overlap it.
    ///
    /// # Errors
    /// If they overlap.
    pub(crate) fn check(self, pool: &AddressPool) -> anyhow::Result<Self> {
        for (flag, block) in [("--service-cidr", self.services), ("--cluster-cidr", self.pods)] {
            let same = pool.overlaps(block.network(), block.broadcast());
            anyhow::ensure!(!same, "--load-balancer-pool {pool} and {flag} {block} overlap: take other addresses");
        }
        Ok(self)
    }

    pub(crate) fn check_blocks(self) -> anyhow::Result<Self> {
        anyhow::ensure!(
            self.services.prefix_len() <= 28,
            "--service-cidr {} is too small: give one of at least 16 addresses",
            self.services
        );
        anyhow::ensure!(
            self.node_mask > self.pods.prefix_len(),
            "--node-cidr-mask-size {} gives no node a share of --cluster-cidr {}: give a longer prefix",
            self.node_mask,
            self.pods
        );
        anyhow::ensure!(
            !self.services.contains(&self.pods) && !self.pods.contains(&self.services),
            "--service-cidr {} and --cluster-cidr {} overlap",
            self.services,
            self.pods
        );
        Ok(self)
    }
}

/// The block of an earlier run.
fn read_block(remembered: &Path) -> Option<Ipv4Net> {
    std::fs::read_to_string(remembered).ok().and_then(|text| text.trim().parse().ok())
}

/// The claiming socket of each block.
pub(crate) fn block_claims() -> Vec<SocketAddrV4> {
    (0..BLOCKS).map(|k| claim_of(block(k))).collect()
}

/// The socket that claims a block.
fn claim_of(block: Ipv4Net) -> SocketAddrV4 {
    SocketAddrV4::new(block.broadcast(), CLAIM_PORT)
}

/// The first address of block `k`.
fn block(k: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(127, 64 + 4 * k, 0, 0), BLOCK_PREFIX)
}

fn services_of(block: Ipv4Net) -> Ipv4Net {
    Ipv4Net::new_assert(block.network(), 16)
}

fn pods_of(block: Ipv4Net) -> Ipv4Net {
    let [a, b, ..] = block.network().octets();
    Ipv4Net::new_assert(Ipv4Addr::new(a, b + 2, 0, 0), 15)
}

/// Binds the address that stands for a block. It passes to the next process as all sockets do.
fn claim_address(address: SocketAddr) -> std::io::Result<Arc<TcpListener>> {
    let table = SocketTable::process();
    let claim = Arc::new(table.bind_tcp("", address)?);
    table.register(SocketKey { protocol: Protocol::Tcp, address, name: String::new() }, &claim);
    Ok(claim)
}

/// Claims the block used before, else the first free one.
fn claim_block(before: Option<Ipv4Net>) -> anyhow::Result<(Ipv4Net, Arc<TcpListener>)> {
    (0..BLOCKS)
        .map(block)
        .filter(|candidate| Some(*candidate) == before)
        .chain((0..BLOCKS).map(block))
        .find_map(|candidate| {
            claim_address(claim_of(candidate).into()).ok().map(|claim| (candidate, claim))
        })
        .context("all 47 blocks 127.(64+4k).0.0/14 are in use by other clusters: stop one, or give --service-cidr and --cluster-cidr")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_split_as_in_the_contract() {
        assert_eq!(block(0).to_string(), "127.64.0.0/14");
        assert_eq!(services_of(block(1)).to_string(), "127.68.0.0/16");
        assert_eq!(pods_of(block(1)).to_string(), "127.70.0.0/15");
        assert_eq!(block(BLOCKS - 1).broadcast(), Ipv4Addr::new(127, 251, 255, 255));
    }

    #[test]
    fn processes_that_share_a_store_have_its_addresses() {
        let remembered = Path::new("/none/network");
        let of_store = |config: &NetworkConfig, stored: Option<&str>| {
            Network::of_store(config, remembered, stored.map(|stored| stored.parse().unwrap()), false)
        };
        let none = NetworkConfig::default();
        let ranges = |network: Network| (network.services.to_string(), network.pods.to_string(), network.node_mask);
        assert_eq!(ranges(of_store(&none, None).unwrap()), ("10.96.0.0/12".into(), "10.244.0.0/16".into(), 24));
        assert_eq!(
            ranges(of_store(&none, Some("127.72.0.0/16")).unwrap()),
            ("127.72.0.0/16".into(), "127.74.0.0/15".into(), 20),
            "the block of a cluster that `coracle up` began"
        );
        let given = NetworkConfig { service_cidr: Some("10.0.0.0/16".parse().unwrap()), ..none };
        assert_eq!(of_store(&given, Some("10.0.0.0/16")).unwrap().services.to_string(), "10.0.0.0/16");
        let refused = of_store(&given, Some("10.96.0.0/12")).unwrap_err().to_string();
        assert!(refused.contains("--service-cidr 10.0.0.0/16") && refused.contains("has 10.96.0.0/12"), "{refused}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_cluster_migrates_from_a_block_in_use() {
        let (block, claim) = claim_block(None).unwrap();
        let network = Network { services: services_of(block), pods: pods_of(block), node_mask: 20, claim: Some(claim) };
        assert_eq!(network.migrations(None), []);
        assert_eq!(network.migrations(network.services.hosts().next()), []);
        let migrations = network.migrations(Some(Ipv4Addr::new(127, 248, 0, 1)));
        assert_eq!(migrations[0], CidrMigration { from: "127.248.0.0/16".parse().unwrap(), to: network.services });
        assert_eq!(migrations[1].from.to_string(), "127.250.0.0/15");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn clusters_side_by_side_get_different_blocks_and_keep_theirs() {
        let (one, held) = claim_block(None).unwrap();
        let (two, _other) = claim_block(Some(one)).unwrap();
        assert_ne!(one, two);
        drop(held);
        assert_eq!(claim_block(Some(one)).unwrap().0, one);
    }
}

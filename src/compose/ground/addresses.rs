//! The addresses of a cluster: those of Services and pods, and the API server's.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Context as _;
use machinery_serve::accept::Listener;
use tools_command::data_dir::DataDir;

use super::store::ClusterStore;
use crate::compose::{Part, shared_store};
use crate::config::ClusterConfig;
use crate::network::Network;
use tools_command::machine_address::machine_address;

/// The claimed addresses.
pub(in crate::compose) struct Addresses {
    pub(in crate::compose) network: Network,
    /// The address of the API server as seen by clients.
    pub(in crate::compose) api: SocketAddr,
    /// The address of the Service `kubernetes`.
    pub(in crate::compose) service_ip: Ipv4Addr,
}

impl Addresses {
    /// Claims the addresses, and listens at the API server's.
    ///
    /// # Errors
    /// If they contradict the store or each other, or one is taken.
    pub(super) async fn claim(
        config: &ClusterConfig,
        store: &ClusterStore,
        up_to: Part,
        data: &DataDir,
    ) -> anyhow::Result<(Self, Listener)> {
        let network = match &store.embedded {
            Some(_) if up_to != Part::Control => Network::choose(&config.network, &data.network())?,
            _ => shared_store::network(&*store.store, &config.network, data, up_to).await?,
        };
        let network = network.check(config.controllers.balancers.pool())?;
        let listener = listen(config.api.options.bind, config.api.options.port)?;
        let api = SocketAddr::new(reachable(config.api.options.bind), listener.local_addr()?.port());
        let service_ip = network.services.hosts().next().context("--service-cidr has no address")?;
        Ok((Self { network, api, service_ip }, listener))
    }

    /// `https://ADDR:PORT`
    pub(in crate::compose) fn server_url(&self) -> String {
        format!("https://{}", self.api)
    }
}

/// The first address of the machine where `bind` is a wildcard (docs/contract.md §2). The flags are rejected without one.
pub(in crate::compose) fn reachable(bind: IpAddr) -> IpAddr {
    machine_address(bind).unwrap_or(bind)
}

fn listen(bind: IpAddr, port: u16) -> anyhow::Result<Listener> {
    Listener::bind_own("API server", SocketAddr::new(bind, port)).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!("port {port} of {bind} is taken: stop what listens there, or choose another with --port (0 picks a free one)"),
        _ => anyhow::anyhow!("cannot listen on {bind}:{port}: {error}; choose another address with --bind or --port"),
    })
}

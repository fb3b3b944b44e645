//! Cluster DNS for processes of the host: its addresses, and its server beside the data plane.

use std::net::Ipv4Addr;

use anyhow::Context as _;
use machinery_roles::Component;
use proxy::DataPlane;
use proxy::dns::{self, DnsSockets};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::ground::Ground;
use super::proxy::is_bindable;
use tools_command::data_dir::{DataDir, write_atomically};

/// Binds the local address, which is kept over restarts while it is free, and the cluster's DNS address where the
/// system allows it.
fn bind(data: &DataDir, cluster: Option<Ipv4Addr>) -> anyhow::Result<Vec<DnsSockets>> {
    let file = data.dns_address();
    let before = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
    let local = DnsSockets::bind_local(before).context("cluster DNS cannot listen on 127.0.0.1")?;
    let address = local.address()?;
    write_atomically(&file, format!("{address}\n").as_bytes())?;
    let mut sockets = vec![local];
    // Another range has addresses on this machine where a route leads there.
    if let Some(ip) = cluster.filter(|ip| ip.is_loopback() || is_bindable(*ip)) {
        match DnsSockets::bind_standard(ip.into()) {
            Ok(bound) => sockets.push(bound),
            Err(error) => tracing::info!(
                address = %ip, port = 53, %error, also = %address,
                "cluster DNS cannot listen on its address in the cluster; pods resolve names all the same, and processes of \
                 the host at the other address"
            ),
        }
    }
    Ok(sockets)
}

/// The DNS server of a data plane.
pub(super) struct DnsParts {
    pub(super) data: DataDir,
    /// Its address in the cluster.
    pub(super) cluster: Option<Ipv4Addr>,
    pub(super) plane: DataPlane,
    pub(super) stop: CancellationToken,
    /// The threads of the data plane.
    pub(super) threads: Option<Handle>,
}

impl DnsParts {
    /// That of a cluster.
    pub(super) fn of(ground: &Ground) -> Self {
        Self {
            data: ground.data.clone(),
            cluster: ground.addresses.network.dns(),
            plane: ground.pods.plane.clone(),
            stop: ground.stops.pods.clone(),
            threads: ground.plane_threads(),
        }
    }

    /// The server, at its sockets.
    ///
    /// # Errors
    /// If no local address is free, or its file can't be written.
    pub(super) fn build(self) -> anyhow::Result<Vec<Component>> {
        let Self { data, cluster, plane, stop, threads } = self;
        let sockets = bind(&data, cluster)?;
        let run = async move { dns::serve(&plane, sockets, &stop).await };
        Ok(vec![Component::new("cluster DNS", run).on(threads)])
    }
}

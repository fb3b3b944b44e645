//! Cluster DNS for processes of the host: its addresses, and its server beside the data plane.

use std::net::Ipv4Addr;

use anyhow::Context as _;
use proxy::DataPlane;
use proxy::dns::{self, DnsSockets};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::ground::Ground;
use super::proxy::is_bindable;
use super::role::Component;
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

pub(super) fn build(ground: &Ground) -> anyhow::Result<Vec<Component>> {
    let threads = ground.engine.as_ref().map(|engine| engine.guest_runtime().clone());
    let (plane, stop) = (ground.data_plane.clone(), ground.stop.pods.clone());
    Ok(vec![component(&ground.data, ground.network.dns(), plane, stop, threads)?])
}

/// The server for a data plane, on the cluster's address `cluster`.
///
/// # Errors
/// If no local address is free, or its file can't be written.
pub(super) fn component(
    data: &DataDir,
    cluster: Option<Ipv4Addr>,
    plane: DataPlane,
    stop: CancellationToken,
    threads: Option<Handle>,
) -> anyhow::Result<Component> {
    let sockets = bind(data, cluster)?;
    let run = async move {
        dns::serve(&plane, sockets, &stop).await?;
        Ok(())
    };
    Ok(Component::new("cluster DNS", run).of_pods().on(threads))
}

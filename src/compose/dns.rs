//! Cluster DNS for processes of the host: its addresses, and its server beside the data plane.

use anyhow::Context as _;
use proxy::dns::{self, DnsSockets};

use super::ground::Ground;
use super::role::Component;
use crate::data_dir::write_atomically;

/// Binds the local address, which is kept over restarts while it is free, and the cluster's DNS address where the
/// system allows it.
fn bind(ground: &Ground) -> anyhow::Result<Vec<DnsSockets>> {
    let file = ground.data.dns_address();
    let before = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
    let local = DnsSockets::bind_local(before).context("cluster DNS cannot listen on 127.0.0.1")?;
    let address = local.address()?;
    write_atomically(&file, format!("{address}\n").as_bytes())?;
    let mut sockets = vec![local];
    // A range that is no loopback of this machine has no address here.
    if let Some(ip) = ground.network.dns().filter(|ip| ip.is_loopback()) {
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
    let sockets = bind(ground)?;
    let (plane, stop) = (ground.data_plane.clone(), ground.stop.components.clone());
    let run = async move {
        dns::serve(&plane, sockets, &stop).await?;
        Ok(())
    };
    let threads = ground.engine.as_ref().map(|engine| engine.guest_runtime().clone());
    Ok(vec![Component::new("cluster DNS", run).on(threads)])
}

//! The data plane's role. It runs on the guests' threads: a request is handed to a guest without a change of thread.

use std::net::SocketAddr;

use anyhow::Context as _;
use apiserver_auth::pki::Pki;

use super::ground::Ground;
use super::identities::ComponentIdentity;
use super::nodes::node_names;
use super::role::Component;
use crate::config::ClusterConfig;
use crate::network::Network;

/// The data plane's configuration.
pub(super) fn config(config: &ClusterConfig, network: &Network, pki: &Pki, api_server: SocketAddr) -> proxy::Config {
    proxy::Config {
        bind: config.nodes.bind,
        cluster_ip_listeners: network.services.network().is_loopback(),
        cluster_cidrs: vec![network.services.into(), network.pods.into()],
        load_balancer_pool: config.controllers.balancer_pool.clone(),
        cluster_dns: network.dns().map(Into::into),
        cluster_ca_pem: Some(pki.ca_pem().to_owned()),
        api_server: Some(api_server),
        node: "coracle".into(),
        nodes: node_names(config.nodes.count).collect(),
    }
}

pub(super) fn build(ground: &Ground) -> anyhow::Result<Vec<Component>> {
    let plane = ground.data_plane.clone();
    ground.with_metrics(|registry| plane.metrics().register(registry));
    let client = ComponentIdentity::Proxy.client(&ground.env, &ground.service);
    let stop = ground.stop.components.clone();
    let (synced, routes_known) = tokio::sync::oneshot::channel();
    let synced = move || {
        // Without a receiver the cluster is stopping.
        let _ = synced.send(());
    };
    let run = async move {
        proxy::run(plane, client, stop, synced).await;
        Ok(())
    };
    let known = async move {
        routes_known.await.context("the data plane ended before it had the Services; see --log-level info")
    };
    let threads = ground.engine.as_ref().map(|engine| engine.guest_runtime().clone());
    Ok(vec![Component::new("data plane", run).on(threads).ready("waiting for the data plane", known)])
}

//! The tunnel of a node that other machines reach (docs/decisions/0107-tunnel.md).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use ipnet::IpNet;
use kube::Client;
use machinery_client::TlsIdentity;
use machinery_env::Env;
use machinery_roles::{Component, Stage};
use machinery_serve::accept::Listener;
use machinery_serve::net::PodNetwork;
use proxy::tunnel::{self, NodeCertificate, Tunnel};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What a tunnel is made of.
pub(super) struct TunnelParts {
    /// The address of this machine on which it listens; port 0 = a free one.
    pub(super) bind: SocketAddr,
    pub(super) env: Env,
    /// The node's name.
    pub(super) node: String,
    /// The node's client certificate.
    pub(super) certificate: watch::Receiver<Arc<TlsIdentity>>,
    pub(super) ca_pem: String,
    /// The cluster's addresses of pods.
    pub(super) pod_cidrs: Vec<IpNet>,
    pub(super) pods: PodNetwork,
    /// The peers of the last run.
    pub(super) peers: Option<PathBuf>,
    /// Reads Nodes.
    pub(super) client: Client,
    pub(super) stop: CancellationToken,
    /// The threads of the data plane.
    pub(super) threads: Option<Handle>,
}

/// A tunnel that listens.
pub(super) struct BoundTunnel {
    pub(super) tunnel: Arc<Tunnel>,
    pub(super) address: SocketAddr,
    pub(super) components: Vec<Component>,
}

/// Binds the tunnel's port on an address of this machine, and makes the pods of other nodes reachable.
///
/// # Errors
/// If the port is taken, or the certificate can't be used.
pub(super) fn bind(parts: TunnelParts) -> anyhow::Result<BoundTunnel> {
    let TunnelParts { bind, env, node, certificate, ca_pem, pod_cidrs, pods, peers, client, stop, threads } = parts;
    let listener = Listener::bind_own("tunnel", bind)
        .with_context(|| format!("the tunnel cannot listen on {bind}: choose another port with --tunnel-port"))?;
    let listener = listener.of_pods();
    let address = listener.local_addr()?;
    let (newest, followed) = follow(certificate)?;
    let config = tunnel::Config { node: node.into(), certificate: newest, ca_pem, pod_cidrs };
    let tunnel = Tunnel::new(env, config, pods.clone())?;
    pods.set_remote(tunnel.clone()).ok().context("the process has a tunnel already")?;
    let serving = {
        let (tunnel, stop) = (tunnel.clone(), stop.clone());
        Component::stopping("tunnel", async move { tunnel.serve(listener, &stop).await })
    };
    let following = {
        let (tunnel, stop) = (tunnel.clone(), stop.clone());
        Component::stopping("peers of the tunnel", tunnel::watch(tunnel, client, peers, stop))
    };
    let certificates = Component::until(&stop, "certificate of the tunnel", followed);
    let components = vec![serving.on(threads), following, certificates];
    Ok(BoundTunnel {
        tunnel,
        address,
        components: components.into_iter().map(|component| component.in_stage(Stage::Pods)).collect(),
    })
}

/// The newest certificate in the tunnel's form. One that can't be used is logged, and the last one stays.
fn follow(
    mut identities: watch::Receiver<Arc<TlsIdentity>>,
) -> anyhow::Result<(watch::Receiver<Arc<NodeCertificate>>, impl Future<Output = ()>)> {
    let read = |identity: &TlsIdentity| NodeCertificate::from_pem(&identity.cert_pem, &identity.key_pem).map(Arc::new);
    let first = read(&identities.borrow_and_update())?;
    let (sender, receiver) = watch::channel(first);
    let follow = async move {
        while identities.changed().await.is_ok() {
            let newest = identities.borrow_and_update().clone();
            match read(&newest) {
                Ok(newest) => drop(sender.send_replace(newest)),
                Err(error) => tracing::warn!(%error, "a new certificate is not used"),
            }
        }
        // A fixed certificate has no sender.
        std::future::pending::<()>().await;
    };
    Ok((receiver, follow))
}

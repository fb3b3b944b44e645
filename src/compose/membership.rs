//! The role of a node that has joined a cluster: its certificates, and what it has to know of its API servers.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use images::{Images, RegistryAccess};
use kube::Client;
use machinery_client::TlsIdentity;
use machinery_env::Env;
use machinery_roles::Component;
use oci_registry::endpoint::serves_tls;
use tokio_util::sync::CancellationToken;

use super::node_configuration::{self, NodeConfiguration};
use tools_joining::node::JoinedNode;

/// Interval of reading the cluster's registries: an API server that was added is pulled from after it.
const REGISTRIES_INTERVAL: Duration = Duration::from_secs(60);

/// A task without an end.
pub(super) type Renewal = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A node's membership.
pub(super) struct MembershipParts {
    pub(super) env: Env,
    pub(super) node: JoinedNode,
    /// What the node knows of its cluster.
    pub(super) cluster: NodeConfiguration,
    pub(super) images: Arc<Images>,
    /// Reads the list of API servers; `None` in a cluster that isn't Coracle's.
    pub(super) servers: Option<Client>,
    /// Of the client certificate, and of the serving one.
    pub(super) renewals: (Renewal, Renewal),
    pub(super) stop: CancellationToken,
}

impl MembershipParts {
    /// The tasks that keep it.
    pub(super) fn build(self) -> Vec<Component> {
        let Self { env, node, cluster, images, servers, renewals: (client, serving), stop } = self;
        let registries = follow_registries(env.clone(), node.clone(), cluster.registries, images);
        let mut components = vec![
            Component::until(&stop, "registries of the API servers", registries),
            Component::until(&stop, "client certificate", client),
            Component::until(&stop, "serving certificate", serving),
        ];
        components.extend(servers.map(|client| {
            let follow = async move { node.follow_servers(&env, &client).await };
            Component::until(&stop, "list of API servers", follow)
        }));
        components
    }
}

/// Follows the cluster's list of registries and the node's certificate.
async fn follow_registries(env: Env, mut node: JoinedNode, mut known: Vec<String>, images: Arc<Images>) {
    loop {
        env.sleep(REGISTRIES_INTERVAL).await;
        let renewed = node.certificate.has_changed().unwrap_or(false);
        match node_configuration::read(&node.client).await {
            // New clients are only made for a change.
            Ok(Some(cluster)) if renewed || cluster.registries != known => {
                node.certificate.mark_unchanged();
                images.configure_built_in(access(&cluster.registries, &node));
                known = cluster.registries;
            }
            Ok(_) => {}
            Err(error) => tracing::debug!("{error:#}"),
        }
    }
}

/// How a node pulls from the API servers' registries: its certificate authenticates it.
pub(super) fn access(registries: &[String], node: &JoinedNode) -> Vec<RegistryAccess> {
    let access = |address: &String| RegistryAccess {
        address: address.clone(),
        credentials: None,
        ca_pem: serves_tls(address).then(|| node.ca_pem.clone().into_bytes()),
        identity_pem: serves_tls(address).then(|| identity_pem(&node.certificate.borrow())),
    };
    registries.iter().map(access).collect()
}

fn identity_pem(identity: &TlsIdentity) -> Vec<u8> {
    format!("{}\n{}", identity.cert_pem, identity.key_pem).into_bytes()
}

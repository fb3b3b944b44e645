//! Over etcd, several API servers share a cluster: its addresses come from the store, and its keys must be the same.

use anyhow::Context as _;
use apiserver::bootstrap::joining::{self, ClusterKeys};
use apiserver_auth::pki::Pki;
use apiserver_auth::shared_keys::SharedKeys;
use apiserver_storage::store::Store;

use super::Part;
use crate::network::{Network, NetworkConfig};
use tools_command::data_dir::DataDir;

/// The cluster's addresses. Rejects a data folder without the keys of the cluster before new ones are made.
///
/// # Errors
/// If the flags contradict the store, the keys are missing, or the store fails.
pub(super) async fn network(
    store: &dyn Store,
    config: &NetworkConfig,
    data: &DataDir,
    up_to: Part,
) -> anyhow::Result<Network> {
    let stored = joining::stored_keys(store).await.context("the store can't be read")?;
    if stored.is_some() && !SharedKeys::are_in(&data.pki()) {
        anyhow::bail!(
            "there is a cluster in this store, and {pki} has no keys of it: make a token at one of its API servers \
             (`coracle token create --control-plane`) and give it to `coracle server`, or copy the folder pki of one of them to \
             {pki}",
            pki = data.pki().display()
        );
    }
    let cidr = joining::stored_service_cidr(store).await.context("the store can't be read")?;
    Network::of_store(config, &data.network(), cidr, up_to == Part::Nodes)
}

/// Records the keys in a new store, and rejects other keys than those of the store's cluster.
///
/// # Errors
/// If the keys are others, or the store fails.
pub(super) async fn check_keys(store: &dyn Store, pki: &Pki, data: &DataDir) -> anyhow::Result<()> {
    let keys = ClusterKeys { authority: pki.ca_hash(), service_account: pki.service_account().id().to_owned() };
    let other = joining::claim_keys(store, &keys).await.context("the store can't be read or written")?;
    let Some(other) = other else { return Ok(()) };
    anyhow::bail!(
        "the cluster in this store has another {other} than {pki}: copy the folder pki from the data folder of one of its \
         API servers, or give another --etcd-prefix for a new cluster. To change the keys of all API servers on purpose, \
         stop them and remove the key {} below --etcd-prefix with etcdctl",
        joining::keys_record(),
        pki = data.pki().display()
    )
}

//! The client of the cluster in `--data-dir`, for verbs that need more of it than an API.

use anyhow::Context as _;
use kube::Client;
use tools_command::data_dir::DataDir;
use tools_command::packaged;

use crate::kubeconfig::KubeconfigSource;

/// A client of the cluster's API server, and the server's host.
///
/// # Errors
/// If no cluster has run there, or its kubeconfig can't be used.
pub async fn client(data: &DataDir) -> anyhow::Result<(Client, String)> {
    let no_cluster = || packaged::no_cluster(data.path());
    let config = KubeconfigSource::Folder(data.kubeconfig()).read().await.with_context(no_cluster)?;
    let host = config.cluster_url.host().unwrap_or("127.0.0.1").to_owned();
    let client = Client::try_from(config).context("cannot make a client of the cluster")?;
    Ok((client, host))
}

//! Address and credentials of the cluster in `--data-dir`, for verbs that talk to it. Fails if no cluster has run
//! there.

use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use images::RegistryAccess;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use oci_registry::Credentials;

use crate::compose;
use tools_command::data_dir::DataDir;
use tools_command::packaged;

/// Address and credentials of the cluster's registry.
///
/// # Errors
/// If no cluster has run there.
pub(crate) fn registry(data: &DataDir) -> anyhow::Result<RegistryAccess> {
    let read = |path: PathBuf| match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Err(anyhow!(no_cluster(data))),
        read => read.with_context(|| format!("cannot read {}", path.display())),
    };
    let (address, password) = (read(data.registry_address())?, read(data.registry_password())?);
    let credentials = Credentials { user: compose::REGISTRY_USER.to_owned(), password: password.trim().to_owned() };
    let address = address.trim().to_owned();
    let ca_pem = compose::serves_tls(&address).then(|| std::fs::read(data.authority())).transpose();
    let ca_pem = ca_pem.with_context(|| format!("cannot read {}", data.authority().display()))?;
    Ok(RegistryAccess::with_account(address, credentials, ca_pem))
}

/// A client of the cluster's API server, and the server's host.
///
/// # Errors
/// If no cluster has run there, or its kubeconfig can't be used.
pub(crate) async fn client(data: &DataDir) -> anyhow::Result<(Client, String)> {
    let file = Kubeconfig::read_from(data.kubeconfig()).with_context(|| no_cluster(data))?;
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(file, &options).await.with_context(|| no_cluster(data))?;
    // The server is local: no proxy.
    config.proxy_url = None;
    let host = config.cluster_url.host().unwrap_or("127.0.0.1").to_owned();
    let client = Client::try_from(config).context("cannot make a client of the cluster")?;
    Ok((client, host))
}

fn no_cluster(data: &DataDir) -> String {
    packaged::no_cluster(data.path())
}

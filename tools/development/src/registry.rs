//! Address and credentials of the registry of the cluster in `--data-dir`.

use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use images::RegistryAccess;
use oci_registry::Credentials;
use oci_registry::endpoint::{USER, serves_tls};

use tools_command::data_dir::DataDir;
use tools_command::packaged;

/// Address and credentials of the cluster's registry.
///
/// # Errors
/// If no cluster has run there.
pub(crate) fn access(data: &DataDir) -> anyhow::Result<RegistryAccess> {
    let read = |path: PathBuf| match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Err(anyhow!(packaged::no_cluster(data.path()))),
        read => read.with_context(|| format!("cannot read {}", path.display())),
    };
    let (address, password) = (read(data.registry_address())?, read(data.registry_password())?);
    let credentials = Credentials { user: USER.to_owned(), password: password.trim().to_owned() };
    let address = address.trim().to_owned();
    let ca_pem = serves_tls(&address).then(|| std::fs::read(data.authority())).transpose();
    let ca_pem = ca_pem.with_context(|| format!("cannot read {}", data.authority().display()))?;
    Ok(RegistryAccess::with_account(address, credentials, ca_pem))
}

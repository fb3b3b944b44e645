//! `coracle token create`: makes a token with which another machine joins the control plane, and prints its command.

use anyhow::Context as _;
use apiserver_auth::shared_keys::SharedKeys;
use clap::{Args, Subcommand};
use machinery_client::{from_config, read_kubeconfig};
use machinery_env::Env;

use super::Failure;
use crate::config::Common;
use crate::data_dir::DataDir;
use crate::joining::offer::offer;
use crate::output::result;

/// Arguments of `coracle token`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Token {
    #[command(subcommand)]
    verb: TokenVerb,
}

#[derive(Debug, Clone, Subcommand)]
enum TokenVerb {
    /// Makes a token, and prints the command that uses it
    #[command(after_help = "Example: coracle token create --control-plane --data-dir /var/lib/coracle")]
    Create(Create),
}

#[derive(Debug, Clone, Args)]
struct Create {
    /// For another API server of this cluster: fetches the cluster's keys, once, within two hours
    #[arg(long, required = true)]
    control_plane: bool,
}

/// Makes the token with the keys and the credentials of the data folder.
///
/// # Errors
/// If the data folder is no API server's, or the API server can't be reached.
pub(crate) fn run(flags: &Token, common: &Common) -> Result<(), Failure> {
    let TokenVerb::Create(Create { control_plane: _ }) = &flags.verb;
    let data = DataDir::of(common)?;
    let keys = SharedKeys::read(&data.pki()).with_context(|| {
        format!("{} has no keys of a cluster: name an API server's folder with --data-dir", data.path().display())
    })?;
    let ca_hash = keys.authority_hash().context("ca.crt is no certificate")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let (server, token) = runtime.block_on(async {
        let env = Env::real();
        let config = read_kubeconfig(data.kubeconfig()).await?;
        let server = config.cluster_url.to_string();
        let server = server.trim_end_matches('/').to_owned();
        let token = offer(&env, &from_config(&env, config)?, &keys).await?;
        anyhow::Ok((server, token))
    })?;
    Ok(result(format_args!("coracle server --server {server} --token {token} --ca-hash {ca_hash}\n"))?)
}

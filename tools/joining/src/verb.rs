//! `coracle token`: tokens with which another machine joins the cluster, as a node or as an API server.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use apiserver_auth::shared_keys::{Authority, SharedKeys};
use clap::{Args, Subcommand};
use kube::Client;
use machinery_client::{from_config, read_kubeconfig};
use machinery_env::Env;
use machinery_options::duration::duration;

use crate::bootstrap::{self, TokenRequest};
use crate::offer::offer;
use tools_command::data_dir::DataDir;
use tools_command::failure::Failure;
use tools_command::flags::Common;
use tools_command::host::{is_loopback, of_url};
use tools_command::output::{columns, print_stderr, print_stdout, result};
use tools_command::runtime;

/// The time in which a node's token can be used, as kubeadm's.
const TTL_DEFAULT: Duration = Duration::from_hours(24);

/// Arguments of `coracle token`.
#[derive(Debug, Clone, Args)]
pub struct Token {
    #[command(subcommand)]
    verb: TokenVerb,
}

#[derive(Debug, Clone, Subcommand)]
enum TokenVerb {
    /// Makes a token, and prints the command that uses it on another machine
    #[command(
        after_help = "Example: coracle token create --ttl 2h --description 'the second machine'\n         coracle token create --control-plane --data-dir /var/lib/coracle"
    )]
    Create(Create),
    /// Lists the bootstrap tokens of the cluster
    #[command(after_help = "Example: coracle token list")]
    List(Access),
    /// Deletes bootstrap tokens, so that no machine joins with them
    #[command(after_help = "Example: coracle token delete abcdef")]
    Delete(Delete),
}

#[derive(Debug, Clone, Args)]
struct Create {
    /// For another API server of this cluster: fetches the cluster's keys, once, within two hours
    #[arg(long, conflicts_with_all = ["ttl", "description"])]
    control_plane: bool,
    /// The time in which a node's token can be used; 0 for no end [default: 24h]
    #[arg(long, env = "CORACLE_TTL", value_name = "DURATION", value_parser = duration)]
    ttl: Option<Duration>,
    /// What the token is for
    #[arg(long, env = "CORACLE_DESCRIPTION", value_name = "TEXT")]
    description: Option<String>,
    #[command(flatten)]
    access: Access,
}

#[derive(Debug, Clone, Args)]
struct Delete {
    /// Tokens, or their first parts
    #[arg(required = true, value_name = "ID")]
    tokens: Vec<String>,
    #[command(flatten)]
    access: Access,
}

#[derive(Debug, Clone, Args)]
struct Access {
    /// Kubeconfig of an administrator [default: the one in the data folder]
    #[arg(long, env = "CORACLE_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

/// The cluster of a kubeconfig.
struct ReachedCluster {
    client: Client,
    server: String,
    /// The hash of its authority; none: the kubeconfig has no authority.
    ca_hash: Option<String>,
    /// Whether only this machine reaches the server.
    loopback: bool,
}

impl ReachedCluster {
    /// The URL for the command of another machine.
    fn server_elsewhere(&self) -> &str {
        if self.loopback {
            print_stderr!(
                "{} is reached from this machine only: for other machines, start the API server with --bind ADDRESS",
                self.server
            );
        }
        &self.server
    }
}

impl Access {
    async fn cluster(&self, env: &Env, data: &DataDir) -> anyhow::Result<ReachedCluster> {
        let path = self.kubeconfig.clone().unwrap_or_else(|| data.kubeconfig());
        let config = read_kubeconfig(&path)
            .await
            .context("name a kubeconfig with --kubeconfig, or its folder with --data-dir")?;
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let authorities = config.root_cert.iter().flatten();
        let ca_hash = authorities.filter_map(|der| Authority::from_der(der)).map(|authority| authority.hash).next();
        let loopback = is_loopback(of_url(&config.cluster_url));
        Ok(ReachedCluster { client: from_config(env, config)?, server, ca_hash, loopback })
    }
}

/// Acts with the credentials of a kubeconfig; for a new API server also with the keys of the data folder.
///
/// # Errors
/// If the kubeconfig or the keys are missing, or the API server can't be reached or refuses.
pub fn run(flags: &Token, common: &Common) -> Result<(), Failure> {
    let data = DataDir::of(common)?;
    let runtime = runtime::single_threaded()?;
    Ok(runtime.block_on(async {
        let env = Env::real();
        match &flags.verb {
            TokenVerb::Create(flags) if flags.control_plane => create_for_server(&env, flags, &data).await,
            TokenVerb::Create(flags) => create_for_node(&env, flags, &data).await,
            TokenVerb::List(access) => {
                let cluster = access.cluster(&env, &data).await?;
                result(format_args!("{}", columns(&bootstrap::list(&env, &cluster.client).await?)))
            }
            TokenVerb::Delete(flags) => {
                let cluster = flags.access.cluster(&env, &data).await?;
                for token in &flags.tokens {
                    let id = bootstrap::delete(&cluster.client, token).await?;
                    print_stdout!("bootstrap token {id:?} deleted")?;
                }
                Ok(())
            }
        }
    })?)
}

async fn create_for_node(env: &Env, flags: &Create, data: &DataDir) -> anyhow::Result<()> {
    let cluster = flags.access.cluster(env, data).await?;
    let ca_hash = cluster
        .ca_hash
        .as_deref()
        .context("the kubeconfig has no certificate-authority: its cluster can't be pinned")?;
    let valid = Some(flags.ttl.unwrap_or(TTL_DEFAULT)).filter(|valid| !valid.is_zero());
    let request = TokenRequest { valid, description: flags.description.clone() };
    let token = bootstrap::create(env, &cluster.client, &request).await?;
    let server = cluster.server_elsewhere();
    print_stdout!("coracle node --server {server} --token {token} --ca-hash {ca_hash}")
}

async fn create_for_server(env: &Env, flags: &Create, data: &DataDir) -> anyhow::Result<()> {
    let keys = SharedKeys::read(&data.pki()).with_context(|| {
        format!("{} has no keys of a cluster: name an API server's folder with --data-dir", data.path().display())
    })?;
    let ca_hash = keys.authority_hash().context("ca.crt is no certificate")?;
    let cluster = flags.access.cluster(env, data).await?;
    let token = offer(env, &cluster.client, &keys).await?;
    let server = cluster.server_elsewhere();
    print_stdout!("coracle server --server {server} --token {token} --ca-hash {ca_hash}")
}

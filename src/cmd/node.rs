//! `coracle node`: a node as a process of its own, with kubelet, runtime and data plane.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use http::Uri;
use kubelet::options::{LeaseOptions, NodeOptions};
use machinery_client::read_kubeconfig;
use machinery_env::Env;
use machinery_options::feature_gates::FeatureFlags;
use proxy::options::{AddressOptions, TunnelOptions};

use crate::compose::node::{NodeProcess, NodeProcessConfig};
use crate::compose::{self, Metrics, MetricsFlags, PROGRAM, ReadyProcess};
use crate::config::{NodeFlags, NodesConfig};
use tools_command::data_dir::DataDir;
use tools_command::environment::host_name;
use tools_command::failure::Failure;
use tools_command::flags::Common;
use tools_command::machine_address::address_towards;
use tools_joining::authority;
use tools_joining::node::{NodeSource, TokenSource, check_name};
use tools_joining::token::{self, BootstrapToken};
use tools_takeover::{ListenAddress, TakeoverFlags};

/// Flags of `coracle node`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Node {
    /// Kubeconfig of the API server: of the node itself, or of a user that may request certificates for it
    #[arg(
        long,
        env = "CORACLE_KUBECONFIG",
        value_name = "FILE",
        conflicts_with = "server",
        required_unless_present = "server"
    )]
    kubeconfig: Option<PathBuf>,
    /// API server of the cluster to join: https://HOST:PORT
    #[arg(long, env = "CORACLE_SERVER", value_name = "URL", requires = "ca_hash")]
    server: Option<Uri>,
    /// Token of `coracle token create`; a node that has joined needs none
    #[arg(long, env = "CORACLE_TOKEN", value_name = "TOKEN", requires = "server", hide_env_values = true)]
    token: Option<BootstrapToken>,
    /// File with the token: unlike arguments, other users of the machine can't read it
    #[arg(long, env = "CORACLE_TOKEN_FILE", value_name = "FILE", requires = "server", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// Hash of the cluster's authority: sha256:…
    #[arg(long, env = "CORACLE_CA_HASH", value_name = "HASH", requires = "server")]
    ca_hash: Option<String>,
    #[command(flatten)]
    node: NodeOptions,
    #[command(flatten)]
    tunnel: TunnelOptions,
    #[command(flatten)]
    lease: LeaseOptions,
    #[command(flatten)]
    takeover: TakeoverFlags,
    #[command(flatten)]
    addresses: AddressOptions,
    #[command(flatten)]
    agent: NodeFlags,
    #[command(flatten)]
    metrics: MetricsFlags,
    #[command(flatten)]
    features: FeatureFlags,
}

impl Node {
    fn source(&self) -> Result<NodeSource, Failure> {
        match (&self.kubeconfig, &self.server, &self.ca_hash) {
            (Some(file), None, _) => Ok(NodeSource::Kubeconfig(file.clone())),
            (None, Some(server), Some(ca_hash)) => {
                authority::check_server(server).map_err(|form| Failure::Usage(format!("--server {server}: {form}")))?;
                authority::check_hash(ca_hash)
                    .map_err(|form| Failure::Usage(format!("--ca-hash {ca_hash}: {form}")))?;
                let token = match &self.token_file {
                    Some(file) => token::read_file(file).map_err(Failure::Usage)?,
                    None => self.token.clone(),
                };
                let (server, ca_hash) = (server.clone(), ca_hash.clone());
                Ok(NodeSource::Token(TokenSource { server, token, ca_hash }))
            }
            _ => Err(Failure::Usage("--kubeconfig, or --server and --ca-hash: how to find the cluster".into())),
        }
    }

    fn name(&self) -> Result<String, Failure> {
        let name = self.node.node_name.clone().unwrap_or_else(|| host_name().to_lowercase());
        check_name(&name).map_err(|why| Failure::Usage(format!("--node-name: {why}")))?;
        Ok(name)
    }

    async fn config(&self, source: &NodeSource, agent: NodesConfig, name: String) -> anyhow::Result<NodeProcessConfig> {
        let address = match self.node.node_ip {
            Some(address) => address,
            None => address_towards(&server(source).await?).context("give this machine's address with --node-ip")?,
        };
        check_verifiable(&name, address)?;
        Ok(NodeProcessConfig {
            name,
            address,
            kubelet_port: self.node.kubelet_port,
            tunnel_port: self.tunnel.tunnel_port,
            given: self.addresses.clone(),
            nodes: NodesConfig { bind: address, ..agent },
        })
    }
}

/// At a loopback address API servers verify a node's name, which TLS has to know as a name of DNS: such a name doesn't end as
/// an IPv4 address does.
fn check_verifiable(name: &str, address: IpAddr) -> anyhow::Result<()> {
    let ends_in_number = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    let is_unverifiable = ends_in_number && name.parse::<IpAddr>().is_err();
    anyhow::ensure!(
        !is_unverifiable || !address.to_canonical().is_loopback(),
        "--node-name: at the loopback address {address} API servers verify the node's name, and the last part of {name} has only \
         digits: choose another name, or another address with --node-ip"
    );
    Ok(())
}

/// The API server's URL.
async fn server(source: &NodeSource) -> anyhow::Result<Uri> {
    match source {
        NodeSource::Kubeconfig(file) => Ok(read_kubeconfig(file).await?.cluster_url),
        NodeSource::Token(source) => Ok(source.server.clone()),
    }
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// If the flags contradict each other, or the node can't join or start.
pub(crate) fn run(flags: &Node, common: &Common) -> Result<(), Failure> {
    let (source, name) = (flags.source()?, flags.name()?);
    let agent = flags.agent.config(1, IpAddr::from([0, 0, 0, 0]), flags.lease.fast_failover)?;
    let env = Env::real();
    let data = DataDir::of(common)?;
    compose::until_stopped(&env, Some(&data), async |progress| {
        let config = flags.config(&source, agent, name).await?;
        let metrics = Metrics::new(&flags.features.features());
        let of = |flag, port| ListenAddress { flag, address: SocketAddr::new(config.address, port) };
        let mut wanted = vec![of("--kubelet-port", config.kubelet_port), of("--tunnel-port", config.tunnel_port)];
        wanted.extend(flags.metrics.bind().map(|address| ListenAddress { flag: "--metrics-bind", address }));
        let taken = flags.takeover.take(&env, &data, progress, (&wanted, PROGRAM), async { Ok(()) }).await?;
        let NodeProcess { process, server } =
            NodeProcess::start(&env, &config, source, &data, &metrics, progress).await?;
        let report = format!("node={} server={server} address={}", config.name, config.address);
        Ok(ReadyProcess { process, taken, metrics: flags.metrics.endpoint(metrics), report })
    })
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::ServerName;

    use super::*;

    #[test]
    fn a_name_that_tls_cannot_verify_is_refused_where_it_is_verified() {
        let check = |name: &str, address: &str| check_verifiable(name, address.parse().unwrap());
        for name in ["42", "node.1", "10.0.7", "n1", "1a", "node-1", "192.0.2.1", "1.node"] {
            assert_eq!(check(name, "127.0.0.1").is_ok(), ServerName::try_from(name).is_ok(), "{name}");
            for address in ["127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1"] {
                assert_eq!(check(name, address).is_ok(), check(name, "127.0.0.1").is_ok(), "{name} {address}");
            }
            assert!(check(name, "192.0.2.1").is_ok() && check(name, "2001:db8::1").is_ok(), "{name}");
        }
    }
}

//! `coracle apiserver`: the API server as a process of its own, with its store and the built-in registry. Schedulers,
//! controllers and kubelets run elsewhere and act through the API. `coracle up` shares its flags, start, `ready` line
//! and stop.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use apiserver_admission::AdmissionConfiguration;
use apiserver_storage::options::StoreOptions;
use clap::Args;
use ipnet::Ipv4Net;
use machinery_api::features::Features;
use machinery_api::selector::subdomain_problems;
use machinery_env::Env;
use machinery_options::feature_gates::FeatureFlags;

use super::flags::takeover::TakeoverFlags;
use crate::compose::preflight::check_cluster;
use crate::compose::{self, Cluster, MetricsEndpoint, Part, ReadyProcess, prepare_engine};
use crate::config::{ApiServerConfig, ClusterConfig, NetworkConfig};
use crate::network::machine_address;
use crate::takeover::ListenAddress;
use tools_command::data_dir::DataDir;
use tools_command::failure::Failure;
use tools_command::flags::Common;

/// Default toleration of not-ready and unreachable nodes in seconds (upstream's).
pub(super) const USUAL_TOLERATION: u32 = 300;
/// The same with fast failover: by then a late node has reported again.
pub(super) const FAST_TOLERATION: u32 = 1;

/// Flags of the API server and its store.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServerFlags {
    /// Address on which the API server, NodePorts and kubelets listen
    #[arg(long, env = "CORACLE_BIND", default_value = "127.0.0.1", value_name = "ADDR")]
    pub(crate) bind: IpAddr,
    /// Port of the API server; 0 picks a free one
    #[arg(long, env = "CORACLE_PORT", default_value_t = 6443, value_name = "PORT")]
    pub(crate) port: u16,
    /// Further names and addresses by which clients reach the API server, such as a load balancer's: they are added to its
    /// certificate. May be repeated
    #[arg(long, env = "CORACLE_TLS_SAN", value_name = "NAME", value_delimiter = ',', value_parser = parse_alternative_name)]
    tls_san: Vec<String>,
    #[command(flatten)]
    store: StoreOptions,
    /// Addresses of Services [default on Linux: the first /16 of a free block of 127.0.0.0/8, else 10.96.0.0/12]
    #[arg(long, env = "CORACLE_SERVICE_CIDR", value_name = "CIDR")]
    pub(crate) service_cidr: Option<Ipv4Net>,
    /// Addresses of pods [default on Linux: the upper /15 of the same block, else 10.244.0.0/16]
    #[arg(long, env = "CORACLE_CLUSTER_CIDR", value_name = "CIDR")]
    pub(crate) cluster_cidr: Option<Ipv4Net>,
    /// Default toleration of not-ready and unreachable nodes, in seconds [default: 300, 1 with --fast-failover]
    #[arg(long, env = "CORACLE_DEFAULT_TOLERATION_SECONDS", value_name = "SECONDS")]
    pub(crate) default_toleration_seconds: Option<u32>,
    /// AdmissionConfiguration file (YAML or JSON) of the admission plugins
    #[arg(long, env = "CORACLE_ADMISSION_CONTROL_CONFIG_FILE", value_name = "FILE")]
    pub(crate) admission_control_config_file: Option<PathBuf>,
    /// Serves the dashboard at /dashboard/, to authenticated users [default: true in up, else false]
    #[arg(
        long,
        env = "CORACLE_DASHBOARD",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub(super) dashboard: Option<bool>,
    #[command(flatten)]
    pub(super) takeover: TakeoverFlags,
    #[command(flatten)]
    features: FeatureFlags,
}

impl ServerFlags {
    /// The API server's configuration; `toleration` is the default of its flag.
    ///
    /// # Errors
    /// If a flag of the store or of admission is invalid.
    pub(super) fn config(&self, toleration: u32) -> Result<ApiServerConfig, Failure> {
        if machine_address(self.bind).is_none() {
            return Err(Failure::Usage(format!(
                "--bind {}: this machine has no address that others reach; give the address to announce, such as --bind \
                 127.0.0.1",
                self.bind
            )));
        }
        Ok(ApiServerConfig {
            bind: self.bind,
            port: self.port,
            tls_sans: self.tls_san.clone(),
            store: self.store.config()?,
            join: None,
            default_toleration_seconds: self.default_toleration_seconds.unwrap_or(toleration),
            admission: self.admission()?,
            dashboard: self.dashboard.unwrap_or(false),
        })
    }

    /// The configuration of admission plugins: the file and the files that it names.
    fn admission(&self) -> Result<Arc<AdmissionConfiguration>, Failure> {
        let Some(file) = &self.admission_control_config_file else { return Ok(Arc::default()) };
        let refused =
            |why: String| Failure::Usage(format!("--admission-control-config-file {}: {why}", file.display()));
        let read = |file: &Path| std::fs::read(file).map_err(|error| error.to_string());
        // Paths are relative to the file's folder.
        let folder = file.parent().unwrap_or(Path::new(""));
        let own = read(file).map_err(refused)?;
        AdmissionConfiguration::parse(&own, folder, &read).map(Arc::new).map_err(refused)
    }

    /// The state of every feature gate.
    pub(super) fn features(&self) -> Features {
        self.features.features()
    }

    /// The cluster's addresses.
    pub(super) fn network(&self) -> NetworkConfig {
        NetworkConfig { service_cidr: self.service_cidr, cluster_cidr: self.cluster_cidr, node_cidr_mask_size: None }
    }
}

/// A name or an address in a certificate: a name of DNS in lower case, of which the first label may be `*`.
fn parse_alternative_name(name: &str) -> Result<String, String> {
    let host = name.strip_prefix("*.").unwrap_or(name);
    let is_valid = match name.parse::<IpAddr>() {
        Ok(ip) => !ip.is_unspecified(),
        Err(_) => subdomain_problems(host).is_empty(),
    };
    if is_valid {
        return Ok(name.to_owned());
    }
    Err("it is no name of DNS (lower case letters, digits, `-` and `.`) and no address".into())
}

/// Flags of `coracle apiserver`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ApiServer {
    #[command(flatten)]
    server: ServerFlags,
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// If the flags contradict each other, or the server can't start.
pub(crate) fn run(flags: &ApiServer, common: &Common) -> Result<(), Failure> {
    let (api, network) = (flags.server.config(USUAL_TOLERATION)?, flags.server.network());
    let config = ClusterConfig::for_servers(api, network, flags.server.features());
    until_stopped(config, Part::Servers, common, &flags.server.takeover, "")
}

/// Runs a cluster up to a part until SIGINT or SIGTERM; `also` is appended to the `ready` line.
///
/// # Errors
/// If the start fails, or a component ended by itself.
pub(super) fn until_stopped(
    config: ClusterConfig,
    up_to: Part,
    common: &Common,
    takeover: &TakeoverFlags,
    also: &str,
) -> Result<(), Failure> {
    let env = Env::real();
    let data = DataDir::of(common)?;
    compose::until_stopped(&env, Some(&data), async |progress| {
        let address = SocketAddr::new(config.api.bind, config.api.port);
        // The engine takes a third of a start's time, and needs nothing that the running process has.
        let mut engine = None;
        let check = async {
            check_cluster(&env, &config, &data).await?;
            engine = prepare_engine(&env, &config, &data)?;
            Ok(())
        };
        let wanted = [ListenAddress { flag: "--port", address }];
        let taken = takeover.take(&env, &data, progress, &wanted, check).await?;
        let Cluster { process, server, .. } = compose::start(&env, config, engine, up_to, &data, progress).await?;
        let report = format!("server={server} kubeconfig={}{also}", data.kubeconfig().display());
        Ok(ReadyProcess { process, taken, metrics: MetricsEndpoint::default(), report })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternative_names_are_names_or_addresses() {
        for good in ["api.example", "*.example", "10.0.0.1", "2001:db8::1", "localhost"] {
            assert_eq!(parse_alternative_name(good).unwrap(), good);
        }
        for bad in ["", "*", "a_b", "API", "https://a", "a:1", "0.0.0.0", "a b", "*.*.example"] {
            assert!(parse_alternative_name(bad).is_err(), "{bad}");
        }
    }
}

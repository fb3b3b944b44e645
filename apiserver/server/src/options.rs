//! The options of the API server.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use apiserver_admission::AdmissionConfiguration;
use apiserver_storage::options::StoreOptions;
use clap::Args;
use ipnet::Ipv4Net;
use machinery_api::selector::subdomain_problems;
use machinery_options::{OptionError, read_bytes};

/// Default toleration of not-ready and unreachable nodes in seconds (upstream's).
const USUAL_TOLERATION: u32 = 300;
/// The same with fast failover: by then a late node has reported again.
const FAST_TOLERATION: u32 = 1;

/// Options of an API server and its store.
#[derive(Debug, Clone, Args)]
pub struct ApiServerOptions {
    /// Address on which the API server, NodePorts and kubelets listen
    #[arg(long, env = "CORACLE_BIND", default_value = "127.0.0.1", value_name = "ADDR")]
    pub bind: IpAddr,
    /// Port of the API server; 0 picks a free one
    #[arg(long, env = "CORACLE_PORT", default_value_t = 6443, value_name = "PORT")]
    pub port: u16,
    /// Further names and addresses by which clients reach the API server, such as a load balancer's: they are added to its
    /// certificate. May be repeated
    #[arg(long, env = "CORACLE_TLS_SAN", value_name = "NAME", value_delimiter = ',', value_parser = parse_alternative_name)]
    pub tls_san: Vec<String>,
    /// Its store.
    #[command(flatten)]
    pub store: StoreOptions,
    /// Addresses of Services [default on Linux: the first /16 of a free block of 127.0.0.0/8, else 10.96.0.0/12]
    #[arg(long, env = "CORACLE_SERVICE_CIDR", value_name = "CIDR")]
    pub service_cidr: Option<Ipv4Net>,
    /// Addresses of pods [default on Linux: the upper /15 of the same block, else 10.244.0.0/16]
    #[arg(long, env = "CORACLE_CLUSTER_CIDR", value_name = "CIDR")]
    pub cluster_cidr: Option<Ipv4Net>,
    /// Default toleration of not-ready and unreachable nodes, in seconds [default: 300, 1 with --fast-failover]
    #[arg(long, env = "CORACLE_DEFAULT_TOLERATION_SECONDS", value_name = "SECONDS")]
    default_toleration_seconds: Option<u32>,
    /// AdmissionConfiguration file (YAML or JSON) of the admission plugins
    #[arg(long, env = "CORACLE_ADMISSION_CONTROL_CONFIG_FILE", value_name = "FILE")]
    admission_control_config_file: Option<PathBuf>,
    /// Serves the dashboard at /dashboard/, to authenticated users [default: true in up, else false]
    #[arg(
        long,
        env = "CORACLE_DASHBOARD",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub dashboard: Option<bool>,
}

impl Default for ApiServerOptions {
    /// The command line without flags, whatever the environment is.
    fn default() -> Self {
        machinery_options::defaults()
    }
}

impl ApiServerOptions {
    /// Default toleration of not-ready and unreachable nodes, in seconds.
    #[must_use]
    pub fn toleration_seconds(&self, fast_failover: bool) -> u32 {
        self.default_toleration_seconds.unwrap_or(if fast_failover { FAST_TOLERATION } else { USUAL_TOLERATION })
    }

    /// The configuration of admission plugins: the file and the files that it names.
    ///
    /// # Errors
    /// If a file can't be read or is invalid.
    pub fn admission(&self) -> Result<Arc<AdmissionConfiguration>, OptionError> {
        const FLAG: &str = "admission-control-config-file";
        let Some(file) = &self.admission_control_config_file else { return Ok(Arc::default()) };
        let refused = |why: String| OptionError::new(format!("--{FLAG} {}: {why}", file.display()));
        let read = |file: &Path| std::fs::read(file).map_err(|error| error.to_string());
        // Paths are relative to the file's folder.
        let folder = file.parent().unwrap_or(Path::new(""));
        AdmissionConfiguration::parse(&read_bytes(FLAG, file)?, folder, &read).map(Arc::new).map_err(refused)
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

    #[test]
    fn tolerations_are_shorter_with_fast_failover() {
        let usual = ApiServerOptions::default();
        assert_eq!([usual.toleration_seconds(false), usual.toleration_seconds(true)], [300, 1]);
        let given = ApiServerOptions { default_toleration_seconds: Some(7), ..usual };
        assert_eq!([given.toleration_seconds(false), given.toleration_seconds(true)], [7, 7]);
    }
}

//! The keys of a cluster, and the certificates that its servers present and refuse.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use apiserver::options::ApiServerOptions;
use apiserver_auth::certificates::Certificates;
use apiserver_auth::pki::Pki;
use machinery_env::Env;
use tools_command::data_dir::DataDir;

use super::addresses::{Addresses, reachable};

/// The keys of a cluster.
pub(in crate::compose) struct Keys {
    pub(in crate::compose) pki: Arc<Pki>,
    /// The serving certificate and the revoked ones.
    pub(in crate::compose) certificates: Arc<Certificates>,
}

impl Keys {
    /// Opens the folder of keys; missing ones are made.
    ///
    /// # Errors
    /// If they can't be read or written.
    pub(super) fn open(
        env: &Env,
        options: &ApiServerOptions,
        addresses: &Addresses,
        data: &DataDir,
    ) -> anyhow::Result<Self> {
        let names = names(reachable(options.bind), addresses.service_ip, &options.tls_san);
        let pki = Arc::new(Pki::open_or_create(&data.pki(), env, &names)?);
        let certificates = Arc::new(Certificates::new(&pki.with_authority(pki.serving()))?);
        Ok(Self { pki, certificates })
    }
}

/// The names and addresses in the serving certificate.
fn names(advertise: IpAddr, service_ip: Ipv4Addr, further: &[String]) -> Vec<String> {
    let mut names: Vec<String> = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
        "127.0.0.1",
    ]
    .map(str::to_owned)
    .into();
    names.extend([service_ip.to_string(), advertise.to_string()]);
    names.extend_from_slice(further);
    names.dedup();
    names
}

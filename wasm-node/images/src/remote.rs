//! The HTTP clients for registries. The node's configuration and `address` determine which client may call which host.
//! They never follow redirects.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use machinery_env::Env;
use machinery_rules::reserved_address::is_reserved;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Certificate, Client, ClientBuilder, Identity, Url};

use super::pull::RegistryAccess;
use super::registries::{Host, Registries};

/// Maximum time of a connection with its TLS handshake.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// Maximum time between two reads of a response to a pull.
const READ_TIME_MAX: Duration = Duration::from_secs(30);
/// Idle connections: their lifetime, and their number per host. A pull sends a handful of requests.
const IDLE_TIME_MAX: Duration = Duration::from_secs(30);
const IDLE_PER_HOST_MAX: usize = 2;
/// The `User-Agent` header.
const USER_AGENT: &str = concat!("coracle/", env!("CARGO_PKG_VERSION"));
/// Why a host isn't called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HostError {
    /// Its address is loopback, link-local, or a cloud's metadata service.
    #[error(
        "addresses of this machine, link-local ones and metadata services are only called where the file of --registries \
         names the host and port"
    )]
    Reserved,
    /// The scheme is neither http nor https, or the URL contains a user.
    #[error("not an address that a registry may have")]
    Form,
    /// No client can be built for it.
    #[error("{0}")]
    Client(String),
}

/// Clients by the hosts that they may call.
pub(crate) struct RegistryClients {
    /// The clock of their timeouts and retries.
    pub(super) env: Env,
    /// Maximum time between two reads of a response, from the beginning of the request. None for uploads, whose
    /// deadline depends on progress.
    read_time_max: Option<Duration>,
    pub(crate) registries: Registries,
    /// The cluster's own registries.
    pub(crate) built_in: Vec<RegistryAccess>,
    /// The client for every host that the configuration doesn't name.
    general: OnceLock<Result<Client, String>>,
    /// Clients for hosts that the node's configuration names, each with its own certificates.
    named: Mutex<BTreeMap<String, Client>>,
}

impl RegistryClients {
    pub(crate) fn new(env: &Env, registries: Registries, built_in: Vec<RegistryAccess>) -> Self {
        Self::with(env, registries, built_in, Some(READ_TIME_MAX))
    }

    /// Creates clients for uploads, whose bodies may take longer than a response. The caller sets a deadline for each
    /// request.
    pub(crate) fn for_uploads(env: &Env, registries: Registries, built_in: Vec<RegistryAccess>) -> Self {
        Self::with(env, registries, built_in, None)
    }

    fn with(env: &Env, registries: Registries, built_in: Vec<RegistryAccess>, read_time_max: Option<Duration>) -> Self {
        // reqwest uses the process's TLS provider. A second call fails harmlessly: the provider is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (general, named) = (OnceLock::new(), Mutex::default());
        Self { env: env.clone(), read_time_max, registries, built_in, general, named }
    }

    /// Returns the client that may call this URL.
    pub(crate) fn client_for(&self, url: &Url) -> Result<Client, HostError> {
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err(HostError::Form);
        };
        if !matches!(url.scheme(), "https" | "http") || !url.username().is_empty() || url.password().is_some() {
            return Err(HostError::Form);
        }
        if self.built_in.iter().any(|access| access.address == format!("{host}:{port}")) {
            return self.named_client(&format!("{host}:{port}"), host);
        }
        if self.registries.is_named(host, port) {
            let authority = match url.port() {
                Some(port) => format!("{host}:{port}"),
                None => host.to_owned(),
            };
            return self.named_client(&authority, host);
        }
        // A literal address is never resolved, so the resolver can't reject it.
        if literal_address(host).is_some_and(is_reserved) {
            return Err(HostError::Reserved);
        }
        let general = || {
            let resolver = Resolver { filtered: true, proxies: self.registries.proxies.clone() };
            base(self.read_time_max).dns_resolver(Arc::new(resolver)).build().map_err(|error| describe_error(&error))
        };
        self.general.get_or_init(general).clone().map_err(HostError::Client)
    }

    fn named_client(&self, authority: &str, host: &str) -> Result<Client, HostError> {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = named.get(authority) {
            return Ok(client.clone());
        }
        let built_in = self.built_in.iter().find(|access| access.address == authority);
        let client = match built_in {
            Some(access) => {
                let settings = Host {
                    ca_pem: Some(access.ca_pem.clone().unwrap_or_default()),
                    identity_pem: access.identity_pem.clone(),
                    ..Host::default()
                };
                build(&settings, true, self.read_time_max)
            }
            None => {
                let settings = self.registries.host(authority).cloned().unwrap_or_default();
                // Like in Go, hosts on this machine are reached without a proxy.
                build(
                    &settings,
                    host == "localhost" || literal_address(host).is_some_and(is_reserved),
                    self.read_time_max,
                )
            }
        };
        let client = client.map_err(|error| HostError::Client(describe_error(&error)))?;
        named.insert(authority.to_owned(), client.clone());
        Ok(client)
    }
}

fn base(read_time_max: Option<Duration>) -> ClientBuilder {
    let builder = Client::builder()
        .user_agent(USER_AGENT)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .connect_timeout(CONNECT_TIME_MAX)
        .pool_idle_timeout(IDLE_TIME_MAX)
        .pool_max_idle_per_host(IDLE_PER_HOST_MAX);
    match read_time_max {
        Some(time) => builder.read_timeout(time),
        None => builder,
    }
}

fn build(host: &Host, is_near: bool, read_time_max: Option<Duration>) -> reqwest::Result<Client> {
    let mut builder = base(read_time_max).dns_resolver(Arc::new(Resolver { filtered: false, proxies: Vec::new() }));
    if let Some(pem) = &host.ca_pem {
        // Instead of the system's CAs: a configured CA is the only trusted one.
        builder = builder.tls_certs_only(Certificate::from_pem_bundle(pem)?);
    }
    if let Some(pem) = &host.identity_pem {
        builder = builder.identity(Identity::from_pem(pem)?);
    }
    if host.skip_verify {
        builder = builder.tls_danger_accept_invalid_certs(true);
    }
    if is_near {
        builder = builder.no_proxy();
    }
    builder.build()
}

/// Returns the address if the host is a literal one.
fn literal_address(host: &str) -> Option<IpAddr> {
    host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host).parse().ok()
}

/// Formats an error with its causes, without the URL called: a redirect's URL may contain secrets.
pub(crate) fn describe_error(error: &reqwest::Error) -> String {
    let mut causes = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        causes.push(inner.to_string());
        cause = inner.source();
    }
    // The innermost cause has the reason; reqwest's own error contains the URL.
    causes.pop().unwrap_or_else(|| "the connection failed".to_owned())
}

/// The system's resolver, which rejects addresses that a registry may not have.
struct Resolver {
    filtered: bool,
    /// Hosts named by the node's operator.
    proxies: Vec<String>,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let filtered = self.filtered && !self.proxies.iter().any(|proxy| proxy.eq_ignore_ascii_case(name.as_str()));
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let found: Vec<SocketAddr> = found.filter(|found| !filtered || !is_reserved(found.ip())).collect();
            if found.is_empty() {
                return Err(HostError::Reserved.into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_registry::Credentials;

    fn remote() -> RegistryClients {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("r.yaml");
        std::fs::write(&file, "mirrors: {a.io: {endpoint: [\"http://127.0.0.1:5000\", \"http://[::1]:5000\"]}}")
            .unwrap();
        let credentials = Credentials { user: "u".into(), password: "p".into() };
        let access = RegistryAccess::with_account("127.0.0.1:6000".into(), credentials, None);
        RegistryClients::new(&Env::real(), Registries::read(&file).unwrap(), vec![access])
    }

    #[test]
    fn unlisted_addresses_of_this_machine_are_rejected() {
        let remote = remote();
        let check = |url: &str| remote.client_for(&Url::parse(url).unwrap()).map(|_| ());
        for url in ["http://127.0.0.1:5000/", "http://[::1]:5000/", "http://127.0.0.1:6000/"] {
            assert_eq!(check(url), Ok(()), "{url}");
        }
        for url in [
            "http://127.0.0.1:5001/",
            "https://127.0.0.1/",
            "http://0x7f000001/",
            "http://2130706433:6443/",
            "http://127.1:5001/",
            "http://[::ffff:169.254.169.254]/",
            "http://169.254.169.254/latest/meta-data",
        ] {
            assert_eq!(check(url), Err(HostError::Reserved), "{url}");
        }
        for url in ["ftp://a.io/", "file:///etc/passwd", "http://u:p@a.io/", "http://u@a.io/"] {
            assert_eq!(check(url), Err(HostError::Form), "{url}");
        }
    }

    #[tokio::test]
    async fn names_that_lead_to_this_machine_are_refused() {
        let remote = remote();
        let url = Url::parse("http://localhost:1/").unwrap();
        let error = remote.client_for(&url).unwrap().get(url).send().await.unwrap_err();
        assert!(describe_error(&error).contains("--registries"), "{}", describe_error(&error));
    }
}

//! The registry configuration of a node: mirrors, plain HTTP, private CAs and the node's own accounts, from one file in
//! the format of k3s's `registries.yaml` (docs/decisions/0050-pulls.md). Pure except for reading the files that it
//! names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::file::{self, FileError};
use super::keyring::Credential;
use oci_registry::reference::BUILT_IN_REGISTRY;

/// The host that serves images of `docker.io`.
const DOCKER_HUB: &str = "registry-1.docker.io";
/// The path prefix of a registry's API (OCI distribution specification).
const API: &str = "/v2";
/// The `mirrors` key for every registry without its own entry.
const WILDCARD: &str = "*";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    mirrors: BTreeMap<String, Mirror>,
    #[serde(default)]
    configs: BTreeMap<String, HostConfig>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mirror {
    #[serde(default)]
    endpoint: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostConfig {
    #[serde(default)]
    auth: Option<Auth>,
    #[serde(default)]
    tls: Option<Tls>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Auth {
    username: String,
    password: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Tls {
    #[serde(default)]
    ca_file: Option<PathBuf>,
    #[serde(default)]
    cert_file: Option<PathBuf>,
    #[serde(default)]
    key_file: Option<PathBuf>,
    #[serde(default)]
    insecure_skip_verify: bool,
}

/// The configuration of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) account: Option<Credential>,
    pub(crate) ca_pem: Option<Vec<u8>>,
    /// Certificate and key, concatenated.
    pub(crate) identity_pem: Option<Vec<u8>>,
    pub(crate) skip_verify: bool,
}

/// An endpoint for a registry's images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) https: bool,
    /// Name or address, with the port if given.
    pub(crate) authority: String,
    /// The prefix before the repository, without a trailing slash: `/v2`, or the path of the file.
    pub(crate) path: String,
    /// Whether its host differs from the image's registry. A mirror receives the registry's name.
    pub(crate) is_mirror: bool,
}

/// The registries of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registries {
    mirrors: BTreeMap<String, Vec<Endpoint>>,
    hosts: BTreeMap<String, Host>,
    /// Hosts and ports named by the node's operator: they may be on this machine.
    named: BTreeSet<(String, u16)>,
    /// Hosts of the proxies in this process's environment.
    pub(crate) proxies: Vec<String>,
}

impl Registries {
    /// Reads the file and the files that it names.
    ///
    /// # Errors
    /// See [`FileError`].
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let unread = Self::parse(&file::read_text(path)?).map_err(|why| FileError::form(path, why))?;
        unread.with_files(path)
    }

    /// Parses the file without the files that it names.
    pub(super) fn parse(text: &str) -> Result<ParsedRegistries, String> {
        // An empty file is YAML's null.
        let file: Option<File> = machinery_api::yaml::read(text)?;
        file.map_or_else(|| Ok(ParsedRegistries::default()), Self::of)
    }

    fn of(file: File) -> Result<ParsedRegistries, String> {
        let mut found = Self::default();
        for (registry, mirror) in file.mirrors {
            if registry == BUILT_IN_REGISTRY {
                return Err(format!("mirrors.{registry}: this name always means the cluster's own registry"));
            }
            if registry != WILDCARD && name_and_port(&registry).is_none() {
                return Err(format!(
                    "mirrors.{}: HOST or HOST:PORT as images name it, no URL",
                    without_account(&registry)
                ));
            }
            let endpoints = mirror.endpoint.iter().map(|text| endpoint(text, &registry));
            let endpoints =
                endpoints.collect::<Result<Vec<_>, _>>().map_err(|why| format!("mirrors.{registry}: {why}"))?;
            found.named.extend(endpoints.iter().map(Endpoint::address));
            found.mirrors.insert(registry, endpoints);
        }
        let mut tls = BTreeMap::new();
        for (host, config) in file.configs {
            if host == BUILT_IN_REGISTRY {
                return Err(format!(
                    "configs.{host}: this name always means the cluster's own registry, which needs none"
                ));
            }
            let (name, port) = name_and_port(&host)
                .ok_or_else(|| format!("configs.{}: HOST or HOST:PORT, no URL", without_account(&host)))?;
            found.named.insert((name, port.unwrap_or(443)));
            let account = config.auth.map(|auth| Credential { username: auth.username, password: auth.password });
            found.hosts.insert(host.clone(), Host { account, ..Host::default() });
            if let Some(config) = config.tls {
                if config.cert_file.is_some() != config.key_file.is_some() {
                    return Err(format!("configs.{host}.tls: cert_file and key_file belong together"));
                }
                tls.insert(host, config);
            }
        }
        Ok(ParsedRegistries { found, tls })
    }

    /// Adds the hosts of the environment's proxies (`HTTPS_PROXY` …): they may be on this machine.
    #[must_use]
    pub fn with_proxies(mut self, hosts: Vec<String>) -> Self {
        self.proxies = hosts;
        self
    }

    /// Returns the endpoints for images of `registry`, in order: its mirrors, then the registry.
    pub(crate) fn endpoints(&self, registry: &str) -> Vec<Endpoint> {
        let mut all = self.mirrors.get(registry).or_else(|| self.mirrors.get(WILDCARD)).cloned().unwrap_or_default();
        let own = if registry == "docker.io" { DOCKER_HUB } else { registry };
        if !all.iter().any(|endpoint| endpoint.authority == own) {
            all.push(Endpoint { https: true, authority: own.to_owned(), path: API.into(), is_mirror: false });
        }
        all
    }

    /// Returns the configuration of a host.
    pub(crate) fn host(&self, authority: &str) -> Option<&Host> {
        self.hosts.get(authority)
    }

    /// Returns the node's account for a registry, by the registry's name or its endpoint's.
    pub(crate) fn account(&self, registry: &str, endpoint: &Endpoint) -> Option<&Credential> {
        let own = self.hosts.get(&endpoint.authority).and_then(|host| host.account.as_ref());
        own.or_else(|| self.hosts.get(registry).filter(|_| !endpoint.is_mirror)?.account.as_ref())
    }

    /// Returns whether the file names a host and port.
    pub(crate) fn is_named(&self, host: &str, port: u16) -> bool {
        self.named.contains(&(host.to_ascii_lowercase(), port))
    }
}

/// A parsed file whose certificates are not read yet.
#[derive(Default)]
pub(super) struct ParsedRegistries {
    pub(super) found: Registries,
    tls: BTreeMap<String, Tls>,
}

impl ParsedRegistries {
    /// Reads certificates; relative paths are relative to the file's own folder.
    fn with_files(mut self, path: &Path) -> Result<Registries, FileError> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let load = |file: &Option<PathBuf>| file.as_ref().map(|file| file::read(&folder.join(file))).transpose();
        for (name, tls) in self.tls {
            let host = self.found.hosts.entry(name).or_default();
            host.ca_pem = load(&tls.ca_file)?;
            if let (Some(pem), Some(file)) = (&host.ca_pem, &tls.ca_file)
                && !reqwest::Certificate::from_pem_bundle(pem).is_ok_and(|found| !found.is_empty())
            {
                return Err(FileError::form(&folder.join(file), "there is no certificate in it"));
            }
            host.identity_pem = match (load(&tls.cert_file)?, load(&tls.key_file)?) {
                (Some(mut certificate), Some(key)) => {
                    certificate.push(b'\n');
                    certificate.extend(key);
                    Some(certificate)
                }
                _ => None,
            };
            host.skip_verify = tls.insecure_skip_verify;
        }
        Ok(self.found)
    }
}

impl Endpoint {
    /// Returns the endpoint of the cluster's own registry.
    pub(crate) fn built_in(authority: String, https: bool) -> Self {
        Self { https, authority, path: API.into(), is_mirror: false }
    }

    /// Host and port.
    fn address(&self) -> (String, u16) {
        let (name, port) = name_and_port(&self.authority).unwrap_or_default();
        (name, port.unwrap_or(if self.https { 443 } else { 80 }))
    }
}

fn endpoint(text: &str, registry: &str) -> Result<Endpoint, String> {
    let wanted = || format!("{:?}: an endpoint is http://HOST[:PORT][/PATH] or https://…", without_account(text));
    let (https, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
        (Some(rest), _) => (true, rest),
        (None, Some(rest)) => (false, rest),
        (None, None) => return Err(wanted()),
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    name_and_port(authority).ok_or_else(wanted)?;
    let path = path.trim_end_matches('/');
    // `https://HOST/v2/PROJECT` is a project of a registry that mirrors another one there.
    let has_api = path.split('/').any(|part| part == "v2");
    let path = if has_api { path.to_owned() } else { format!("{path}{API}") };
    if path.contains(['?', '#', ' ']) || path.contains("..") {
        return Err(wanted());
    }
    let own = if registry == "docker.io" { DOCKER_HUB } else { registry };
    Ok(Endpoint { https, authority: authority.to_owned(), path, is_mirror: authority != own })
}

/// Removes the userinfo from a URL for messages: it may contain a password.
fn without_account(url: &str) -> String {
    url.rsplit_once('@').map_or_else(|| url.to_owned(), |(_, rest)| format!("…@{rest}"))
}

/// Parses `HOST` or `HOST:PORT`; an IPv6 address keeps its brackets.
fn name_and_port(authority: &str) -> Option<(String, Option<u16>)> {
    let (name, port) = match authority.rsplit_once(':') {
        Some((name, port)) if !authority.ends_with(']') => (name, Some(port.parse().ok()?)),
        _ => (authority, None),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let fits = match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !name.is_empty() && name.chars().all(plain),
    };
    fits.then(|| (name.to_ascii_lowercase(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CA: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";

    fn parse(text: &str) -> Result<Registries, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), CA).unwrap();
        std::fs::write(dir.path().join("key.pem"), "no certificate").unwrap();
        let path = dir.path().join("registries.yaml");
        std::fs::write(&path, text).unwrap();
        Registries::read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn mirrors_come_before_the_registry() {
        let registries = parse(
            "mirrors:\n  docker.io:\n    endpoint: [\"http://mirror:5000/v2/hub/\", \"http://mirror:5000/\"]\n  reg.test:5000:\n    endpoint: [\"http://reg.test:5000\"]\n  \"*\":\n    endpoint: [\"https://all.test\"]\n",
        )
        .unwrap();
        let endpoints = |registry: &str| -> Vec<String> {
            let text = |endpoint: Endpoint| {
                let scheme = if endpoint.https { "https" } else { "http" };
                format!("{scheme}://{}{} {}", endpoint.authority, endpoint.path, endpoint.is_mirror)
            };
            registries.endpoints(registry).into_iter().map(text).collect()
        };
        assert_eq!(
            endpoints("docker.io"),
            ["http://mirror:5000/v2/hub true", "http://mirror:5000/v2 true", "https://registry-1.docker.io/v2 false"]
        );
        // A registry with an entry for itself is reached only in the configured way.
        assert_eq!(endpoints("reg.test:5000"), ["http://reg.test:5000/v2 false"]);
        assert_eq!(endpoints("quay.io"), ["https://all.test/v2 true", "https://quay.io/v2 false"]);
        assert!(registries.is_named("mirror", 5000) && registries.is_named("all.test", 443));
        assert!(!registries.is_named("mirror", 80) && !registries.is_named("quay.io", 443));
        assert!(Registries::default().endpoints("quay.io")[0].https);
    }

    #[test]
    fn hosts_have_accounts_and_certificates() {
        let registries = parse(
            "configs:\n  reg.test:5000:\n    auth: {username: u, password: hidden}\n    tls: {ca_file: ca.pem}\n  docker.io:\n    auth: {username: hub, password: x}\n",
        )
        .unwrap();
        let host = registries.host("reg.test:5000").unwrap();
        assert_eq!((host.ca_pem.as_deref(), host.skip_verify), (Some(CA.as_bytes()), false));
        let user = |registry: &str| {
            let endpoint = &registries.endpoints(registry)[0];
            registries.account(registry, endpoint).map(|account| account.username.clone())
        };
        assert_eq!(
            (user("reg.test:5000"), user("docker.io"), user("quay.io")),
            (Some("u".into()), Some("hub".into()), None)
        );
        assert!(!format!("{registries:?}").contains("hidden"));
        assert!(parse("").unwrap().endpoints("a.io").len() == 1);
    }

    #[test]
    fn errors_name_the_field() {
        for (text, says) in [
            ("mirror: {}", "mirror"),
            ("mirrors: {\"bad host!\": {endpoint: []}}", "HOST or HOST:PORT"),
            ("configs: {registry.local: {auth: {username: u, password: p}}}", "the cluster's own registry"),
            ("configs: {a.io: {tls: {ca_file: key.pem}}}", "there is no certificate in it"),
            ("mirrors: {a.io: {rewrite: {}}}", "rewrite"),
            ("mirrors: {a.io: {endpoint: [\"b.io\"]}}", "http://HOST"),
            ("mirrors: {a.io: {endpoint: [\"https://\"]}}", "http://HOST"),
            ("mirrors: {a.io: {endpoint: [\"https://u:hidden@b.io\"]}}", "http://HOST"),
            ("configs: {\"https://u:hidden@a.io\": {}}", "configs.…@a.io: "),
            ("configs: {a.io: {auth: hidden}}", "expected mapping"),
            ("configs: {a.io: {auth: {username: u, password: hidden, tsl: x}}}", "tsl"),
            ("mirrors: {registry.local: {endpoint: []}}", "own registry"),
            ("configs: {\"https://a.io\": {}}", "no URL"),
            ("configs: {a.io: {tls: {cert_file: x}}}", "belong together"),
            ("configs: {a.io: {tls: {ca_file: none.pem}}}", "none.pem"),
            ("- x", "registries.yaml"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(says) && !error.contains("hidden"), "{text}: {error}");
        }
    }
}

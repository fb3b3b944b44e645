//! A node joins a cluster: it gets a client certificate by a bootstrap token or another kubeconfig, keeps it, and renews it.
//! As upstream's kubelet (`pkg/kubelet/certificate/bootstrap`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use http::header::USER_AGENT;
use http::{HeaderName, HeaderValue, Uri};
use kube::config::AuthInfo;
use kube::{Client, Config};
use machinery_api::selector::{label_value_problems, subdomain_problems};
use machinery_client::request::{ApiClient, BackOff, status_code};
use machinery_client::{ClientError, TlsIdentity, from_config, read_kubeconfig, rotating};
use machinery_env::Env;
use serde_json::Value;
use tokio::sync::watch;

use crate::requesting::{self, WantedCertificate};
use crate::rotation::{rotate_at, sleep_until_due};
use crate::stored::{Authorities, Folder, NodeCertificate, Use};
use crate::token::BootstrapToken;
use crate::{authority, kubeconfig, servers};

const NODE_PREFIX: &str = "system:node:";
/// The user agent of a node's agent: the field manager of its writes.
const AGENT: &str = "kubelet";
/// The user agent of a node's data plane.
const DATA_PLANE_AGENT: &str = "kube-proxy";
/// The user as which a node's data plane acts.
const DATA_PLANE_USER: &str = "system:kube-proxy";
const IMPERSONATE_USER: HeaderName = HeaderName::from_static("impersonate-user");
/// In the version of every Coracle API server.
const CORACLE: &str = "+coracle";
/// The time after which every API server knows a new token and the rights of its holder.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// The wait between two failed renewals: at first, and at most.
const RENEWAL_WAITS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(10));

/// Where a node finds its cluster.
#[derive(Debug, Clone)]
pub enum NodeSource {
    /// The user is the node itself, or one who may request certificates for it.
    Kubeconfig(PathBuf),
    Token(TokenSource),
}

/// The arguments that `coracle token create` prints.
#[derive(Debug, Clone)]
pub struct TokenSource {
    /// `https://HOST:PORT`.
    pub server: Uri,
    /// Not needed once the node has a certificate.
    pub token: Option<BootstrapToken>,
    /// The hash of the cluster's authority: `sha256:…`.
    pub ca_hash: String,
}

/// A node with a client certificate.
#[derive(Clone)]
pub struct JoinedNode {
    pub name: String,
    /// Acts as the node, always with the newest certificate.
    pub client: Client,
    /// The newest client certificate.
    pub certificate: watch::Receiver<Arc<TlsIdentity>>,
    /// The cluster's authorities, in PEM.
    pub ca_pem: String,
    pub server: Uri,
    pub(crate) cluster: Authorities,
    pub(crate) folder: Folder,
    /// Without credentials.
    config: Config,
    /// The API servers, the first one that of the join.
    servers: Arc<watch::Sender<Vec<Uri>>>,
}

impl std::fmt::Debug for JoinedNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinedNode").field("name", &self.name).finish_non_exhaustive()
    }
}

impl JoinedNode {
    /// The client of the node's data plane. In a Coracle cluster it acts as `system:kube-proxy`, which nodes may impersonate:
    /// the node itself has no rights on other nodes' objects. Elsewhere it acts as the node.
    ///
    /// # Errors
    /// If the certificate can't be used.
    pub fn data_plane_client(&self, env: &Env, is_coracle: bool) -> Result<Client, ClientError> {
        let mut config = self.config.clone();
        if is_coracle {
            config.headers.push((IMPERSONATE_USER, HeaderValue::from_static(DATA_PLANE_USER)));
        }
        agent_client(env, &config, DATA_PLANE_AGENT, &self.certificate, self.servers.subscribe())
    }

    /// Follows the list of API servers of a Coracle cluster, for all clients of this node. `client` may list EndpointSlices:
    /// the data plane's.
    pub async fn follow_servers(&self, env: &Env, client: &Client) {
        servers::follow(env, client, &self.server, &self.servers).await;
    }

    /// Whether the API server is Coracle's.
    ///
    /// # Errors
    /// If it can't be asked.
    pub async fn is_coracle(&self) -> Result<bool, kube::Error> {
        let version: Value = ApiClient::from(self.client.clone()).get_path("/version").await?;
        Ok(is_coracle(&version))
    }

    pub(crate) fn user(&self) -> String {
        user(&self.name)
    }
}

pub(crate) fn is_coracle(version: &Value) -> bool {
    version["gitVersion"].as_str().is_some_and(|version| version.contains(CORACLE))
}

pub(crate) fn user(node: &str) -> String {
    format!("{NODE_PREFIX}{node}")
}

/// Checks a node's name: an RFC 1123 subdomain.
///
/// # Errors
/// If it is none.
pub fn check_name(name: &str) -> Result<(), String> {
    // The name is the value of the label `kubernetes.io/hostname`, too.
    match subdomain_problems(name).into_iter().chain(label_value_problems(name)).next() {
        Some(problem) => Err(format!("the node's name {}: {problem}", name.escape_debug())),
        None => Ok(()),
    }
}

/// Joins as the node `name`, with certificates in the folder `pki`. The future renews the client certificate, and must be
/// polled while the node runs. With a certificate from an earlier start nothing is sent to the API server.
///
/// # Errors
/// If the cluster can't be reached or is another one, the token is wrong or missing, or the request isn't approved in time.
pub async fn join(
    env: &Env,
    source: NodeSource,
    pki: &Path,
    name: &str,
) -> anyhow::Result<(JoinedNode, impl Future<Output = ()> + Send + use<>)> {
    check_name(name).map_err(anyhow::Error::msg)?;
    let folder = Folder::new(pki);
    let FoundCluster { mut config, cluster, credentials } = find(env, source, &folder).await?;
    let user = user(name);
    let own = credentials
        .as_ref()
        .map(kubeconfig::identity)
        .transpose()?
        .flatten()
        .filter(|own| own.is_valid(&user, env.now()));
    let own_is_newer =
        |stored: &NodeCertificate| own.as_ref().is_some_and(|own| own.content.not_after > stored.content.not_after);
    let stored = folder.read(Use::Client, &cluster, &user, env.now()).filter(|stored| !own_is_newer(stored));
    let bootstrap = Bootstrap { config: config.clone(), credentials };
    let (later, held) = match stored {
        Some(stored) if stored.begins_later(env.now()) => (Some(stored), own),
        stored => (None, stored.or(own)),
    };
    let held = match held {
        Some(held) => held,
        None => match (bootstrap.obtain(env, &WantedCertificate::client(&user)).await, later) {
            (Ok(held), _) => {
                folder.write(Use::Client, &cluster, &held.identity)?;
                held
            }
            (Err(error), Some(later)) => {
                let begin = later.content.not_before;
                tracing::warn!(error = &*error, %begin, "the node's client certificate is not valid yet, and is used all the same");
                later
            }
            (Err(error), None) => return Err(error),
        },
    };
    config.auth_info = AuthInfo::default();
    let (sender, certificate) = watch::channel(held.identity.clone());
    let servers = Arc::new(watch::Sender::new(vec![config.cluster_url.clone()]));
    let node = JoinedNode {
        name: name.to_owned(),
        client: agent_client(env, &config, AGENT, &certificate, servers.subscribe())?,
        servers,
        certificate,
        ca_pem: cluster.pem(),
        server: config.cluster_url.clone(),
        cluster,
        folder,
        config,
    };
    let renewal = Renewal { env: env.clone(), node: node.clone(), bootstrap, held, sender };
    Ok((node, renewal.run()))
}

/// A client of all API servers, always with the newest certificate.
fn agent_client(
    env: &Env,
    config: &Config,
    agent: &'static str,
    certificate: &watch::Receiver<Arc<TlsIdentity>>,
    list: watch::Receiver<Vec<Uri>>,
) -> Result<Client, ClientError> {
    let mut config = config.clone();
    config.headers.push((USER_AGENT, HeaderValue::from_static(agent)));
    let (timers, certificate, namespace) = (env.clone(), certificate.clone(), config.default_namespace.clone());
    let make = move |server: &Uri| {
        let mut config = config.clone();
        if *server != config.cluster_url {
            // Its address may be missing in its certificate.
            config.tls_server_name = Some(servers::SERVER_NAME.to_owned());
            config.cluster_url = server.clone();
        }
        rotating(&timers, config, certificate.clone())
    };
    servers::failing_over(env, list, Arc::new(make), &namespace)
}

/// A cluster whose authorities are known.
struct FoundCluster {
    /// Without credentials.
    config: Config,
    cluster: Authorities,
    /// Those of the kubeconfig, or the token.
    credentials: Option<AuthInfo>,
}

async fn find(env: &Env, source: NodeSource, folder: &Folder) -> anyhow::Result<FoundCluster> {
    match source {
        NodeSource::Kubeconfig(path) => {
            let mut config = read_kubeconfig(&path).await?;
            let credentials = std::mem::take(&mut config.auth_info);
            let cluster = Authorities::of(config.root_cert.iter().flatten());
            let cluster = cluster.with_context(|| format!("{} has no certificate-authority", path.display()))?;
            Ok(FoundCluster { config, cluster, credentials: Some(credentials) })
        }
        NodeSource::Token(source) => {
            let cluster = match folder.read_authority(&source.ca_hash) {
                Some(known) => known,
                None => {
                    let found = authority::find(env, &source.server, &source.ca_hash).await;
                    let found = found.with_context(|| format!("--server {}", source.server))?;
                    let found = Authorities::of([&found.der]).context("the authority can't be read")?;
                    folder.write_authority(&found)?;
                    found
                }
            };
            let mut config = Config::new(source.server);
            config.root_cert = Some(cluster.der());
            let credentials =
                |token: BootstrapToken| AuthInfo { token: Some(token.to_string().into()), ..AuthInfo::default() };
            Ok(FoundCluster { config, cluster, credentials: source.token.map(credentials) })
        }
    }
}

/// The credentials for the first certificate.
struct Bootstrap {
    config: Config,
    credentials: Option<AuthInfo>,
}

impl Bootstrap {
    async fn obtain(&self, env: &Env, wanted: &WantedCertificate) -> anyhow::Result<NodeCertificate> {
        let missing = "--token is missing, and there is no certificate of an earlier start";
        let mut config = self.config.clone();
        config.auth_info = self.credentials.clone().context(missing)?;
        let client = from_config(env, config)?;
        let deadline = env.deadline(KNOWN_WITHIN);
        loop {
            let error = match requesting::obtain(env, &client, wanted).await {
                Err(error) => error,
                held => return held,
            };
            // None: not an error of the API server.
            let status = error.downcast_ref::<kube::Error>().map(status_code);
            match status {
                Some(0 | 401 | 403 | 429 | 500..) if !deadline.passed(env) => env.sleep(RETRY_AFTER).await,
                Some(401) => bail!(
                    "the token or the kubeconfig's user is wrong, deleted or expired: make a token with `coracle token create`"
                ),
                Some(403) => return Err(error.context("the API server refuses the request for a certificate")),
                _ => return Err(error),
            }
        }
    }
}

/// The interval of renewals while this machine's clock is behind the API server's: each certificate begins later.
pub(crate) const SKEWED_RENEWAL_INTERVAL: Duration = Duration::from_hours(1);

/// Renews the client certificate.
struct Renewal {
    env: Env,
    node: JoinedNode,
    bootstrap: Bootstrap,
    held: NodeCertificate,
    sender: watch::Sender<Arc<TlsIdentity>>,
}

impl Renewal {
    async fn run(mut self) {
        let env = self.env.clone();
        loop {
            sleep_until_due(&env, rotate_at(&env, &self.held.content), &self.held.content).await;
            let mut waits = BackOff::new(RENEWAL_WAITS.0, RENEWAL_WAITS.1);
            while let Err(error) = self.renew().await {
                let end = self.held.content.not_after;
                tracing::warn!(error = &*error, %end, "the node's client certificate is not renewed; it will be retried");
                env.sleep(waits.next(&env)).await;
            }
            tracing::info!(end = %self.held.content.not_after, "the node's client certificate is renewed");
            if self.held.begins_later(env.now()) {
                env.sleep(SKEWED_RENEWAL_INTERVAL).await;
            }
        }
    }

    async fn renew(&mut self) -> anyhow::Result<()> {
        let wanted = WantedCertificate::client(&self.node.user());
        let invalid = !self.held.is_valid(&self.node.user(), self.env.now());
        let held = match invalid && self.bootstrap.credentials.is_some() {
            true => self.bootstrap.obtain(&self.env, &wanted).await?,
            false => requesting::obtain(&self.env, &self.node.client, &wanted).await?,
        };
        self.node.folder.write(Use::Client, &self.node.cluster, &held.identity)?;
        self.sender.send_replace(held.identity.clone());
        self.held = held;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use apiserver_auth::pki::{self, Pki};

    use super::*;

    #[test]
    fn names_are_subdomains() {
        for good in ["n1", "n1.example", "10.0.0.1"] {
            assert_eq!(check_name(good), Ok(()));
        }
        for bad in ["", "N1", "a_b", "-a", "a..b", "a\n", &"a".repeat(64), &"a".repeat(254), "../x"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert!(is_coracle(&serde_json::json!({"gitVersion": "v1.36.3+coracle"})));
        assert!(!is_coracle(&serde_json::json!({"gitVersion": "v1.36.3"})) && !is_coracle(&Value::Null));
    }

    /// A kubeconfig of a node, and a folder: no API server is needed.
    #[tokio::test]
    async fn a_certificate_at_hand_is_used_without_the_api_server() {
        let temp = tempfile::tempdir().unwrap();
        let env = Env::real();
        let authority = Pki::open_or_create(&temp.path().join("ca"), &env, &[]).unwrap();
        let kubeconfig = |node: &str| {
            let identity = authority.issue_client(&user(node), "system:nodes").unwrap();
            let path = temp.path().join(node);
            let text = pki::kubeconfig("https://127.0.0.1:1", authority.ca_pem(), "node", &identity);
            std::fs::write(&path, text).unwrap();
            (path, identity)
        };
        let folder = temp.path().join("pki");
        let (path, identity) = kubeconfig("n1");
        let (joined, _renewal) = join(&env, NodeSource::Kubeconfig(path.clone()), &folder, "n1").await.unwrap();
        assert_eq!(joined.certificate.borrow().key_pem, identity.key_pem);
        assert_eq!(joined.ca_pem, authority.ca_pem());
        // A certificate of the folder, without a token.
        let stored = TlsIdentity { cert_pem: identity.cert_pem, key_pem: identity.key_pem };
        joined.folder.write(Use::Client, &joined.cluster, &stored).unwrap();
        joined.folder.write_authority(&joined.cluster).unwrap();
        let source = |ca_hash: String| {
            NodeSource::Token(TokenSource { server: "https://127.0.0.1:1".parse().unwrap(), token: None, ca_hash })
        };
        let (joined, _renewal) = join(&env, source(authority.ca_hash()), &folder, "n1").await.unwrap();
        assert_eq!(joined.certificate.borrow().key_pem.trim_end(), stored.key_pem.trim_end());
        // Another node, or another cluster, needs a token or the server.
        let fails = async |source: NodeSource, name: &str| {
            join(&env, source, &folder, name).await.map(|_| ()).unwrap_err().to_string()
        };
        assert!(fails(source(authority.ca_hash()), "n2").await.contains("--token is missing"));
        assert!(fails(source(format!("sha256:{}", "00".repeat(32))), "n1").await.contains("--server"));
        assert!(fails(NodeSource::Kubeconfig(path), "N1").await.contains("subdomain"));
    }
}

//! The API server's role: the TLS server, its persistent bootstrap state, and certificate rotation.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use apiserver::http::kubelets::Kubelets;
use apiserver::server::Apiserver;
use apiserver::tls::Acceptor;
use apiserver_auth::certificates::Certificates;
use apiserver_auth::pki::{self, Identity, Pki};
use machinery_env::Env;
use machinery_roles::Component;
use machinery_serve::accept::Listener;
use tokio_util::sync::CancellationToken;

use super::ground::Ground;
use tools_command::data_dir::write_atomically;

/// Interval of reading the folder of keys: the delay of a revocation.
const CERTIFICATES_INTERVAL: Duration = Duration::from_secs(5);

/// The client for kubelets: nodes' certificates are of the cluster's CA, as is the client's own.
pub(super) fn kubelets(env: &Env, pki: &Pki) -> anyhow::Result<Kubelets> {
    let identity = pki.issue_client("kube-apiserver-kubelet-client", "system:masters")?;
    Ok(Kubelets::new(env, pki.ca_pem(), &identity)?)
}

/// The API server, which is open already.
pub(super) struct ApiServerParts {
    env: Env,
    listener: Listener,
    bootstrap: apiserver::bootstrap::Cluster,
    files: CertificateFiles,
    stop: CancellationToken,
}

impl ApiServerParts {
    /// That of a cluster, at its socket.
    ///
    /// # Errors
    /// If the server's name can't be read.
    pub(super) fn of(ground: &Ground, listener: Listener) -> anyhow::Result<Self> {
        let files = CertificateFiles {
            env: ground.env.clone(),
            pki: ground.keys.pki.clone(),
            certificates: ground.keys.certificates.clone(),
            apiserver: ground.api.apiserver.clone(),
            name: ground.store.instance(&ground.env, &ground.data)?,
            kubeconfig: ground.data.kubeconfig(),
            server: ground.addresses.server_url(),
            admin: Mutex::new(ground.keys.pki.admin().clone()),
        };
        let (bootstrap, stop) = (ground.api.bootstrap.clone(), ground.stops.servers.clone());
        Ok(Self { env: ground.env.clone(), listener, bootstrap, files, stop })
    }

    /// The server and the tasks that keep its bootstrap objects and certificates.
    ///
    /// # Errors
    /// If the certificates can't be used.
    pub(super) fn build(self) -> anyhow::Result<Vec<Component>> {
        let Self { env, listener, bootstrap, files, stop } = self;
        files.certificates.revoke(&files.pki.revoked()? | &files.apiserver.revoked_certificates());
        let acceptor = Acceptor::new(&env, files.certificates.clone(), files.pki.ca_pem())?;
        let (apiserver, until) = (files.apiserver.clone(), stop.clone());
        let serving = async move { apiserver.serve(listener, acceptor, until).await };
        let (apiserver, until) = (files.apiserver.clone(), stop.clone());
        let reconciling = async move { apiserver.reconcile_bootstrap_objects(&bootstrap, until).await };
        Ok(vec![
            Component::stopping("API server", serving),
            Component::stopping("bootstrap reconciler", reconciling),
            Component::new("certificates", files.run_rotation(stop)),
        ])
    }
}

/// The certificates and their files.
struct CertificateFiles {
    env: Env,
    pki: Arc<Pki>,
    certificates: Arc<Certificates>,
    apiserver: Apiserver,
    /// The process's name among those that share the store.
    name: Option<String>,
    kubeconfig: PathBuf,
    server: String,
    /// The identity in the kubeconfig.
    admin: Mutex<Identity>,
}

impl CertificateFiles {
    /// Reloads changed files and renews expiring certificates until `stop`.
    async fn run_rotation(self, stop: CancellationToken) -> anyhow::Result<()> {
        let this = Arc::new(self);
        let mut last = None;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = this.env.sleep(CERTIFICATES_INTERVAL) => {}
            }
            // Log a persistent problem once.
            let problem = this.clone().run_once().await.err().map(|error| format!("{error:#}"));
            if let Some(problem) = problem.as_ref().filter(|_| problem != last) {
                tracing::warn!("certificates cannot be reloaded or renewed: {problem}");
            }
            last = problem;
        }
    }

    /// Each part is done, also if the other one fails.
    async fn run_once(self: Arc<Self>) -> anyhow::Result<()> {
        let (this, revoked) = (self.clone(), self.revoke().await);
        tokio::task::spawn_blocking(move || this.reload_and_renew()).await??;
        revoked
    }

    /// Refuses the certificates that this server's folder or another server revokes.
    async fn revoke(self: &Arc<Self>) -> anyhow::Result<()> {
        let this = self.clone();
        let own = tokio::task::spawn_blocking(move || this.pki.revoked()).await?;
        let elsewhere = self.apiserver.revoked_certificates();
        let own = match own {
            Ok(own) => own,
            Err(error) => {
                // The own list before the mistake stays in force.
                self.certificates.revoke_also(&elsewhere);
                return Err(error.into());
            }
        };
        self.certificates.revoke(&own | &elsewhere);
        let Some(name) = &self.name else { return Ok(()) };
        Ok(self.apiserver.publish_revoked(name, &own).await?)
    }

    fn reload_and_renew(&self) -> anyhow::Result<()> {
        let leaves = self.pki.reload_and_renew()?;
        self.certificates.serve_with(&self.pki.with_authority(&leaves.serving))?;
        let mut admin = self.admin.lock().unwrap_or_else(PoisonError::into_inner);
        // Only on a change: people keep a namespace and other contexts in the file.
        if *admin != leaves.admin {
            let kubeconfig = pki::kubeconfig(&self.server, self.pki.ca_pem(), "coracle", &leaves.admin);
            write_atomically(&self.kubeconfig, kubeconfig.as_bytes()).context("the kubeconfig of the administrator")?;
            *admin = leaves.admin;
        }
        Ok(())
    }
}

//! The API server's role: the TLS server, its persistent bootstrap state, and certificate rotation.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use apiserver::http::kubelets::Kubelets;
use apiserver::tls::Acceptor;
use apiserver_auth::certificates::Certificates;
use apiserver_auth::pki::{self, Identity, Pki};
use machinery_env::Env;
use tokio_util::sync::CancellationToken;

use super::ground::Ground;
use super::role::Component;
use crate::data_dir::write_atomically;

/// Interval of reading the folder of keys: the delay of a revocation.
const CERTIFICATES_INTERVAL: Duration = Duration::from_secs(5);

/// The client for kubelets: nodes' certificates are of the cluster's CA, as is the client's own.
pub(super) fn kubelets(env: &Env, pki: &Pki) -> anyhow::Result<Kubelets> {
    let identity = pki.issue_client("kube-apiserver-kubelet-client", "system:masters")?;
    Ok(Kubelets::new(env, pki.ca_pem(), &identity)?)
}

pub(super) fn build(ground: &Ground) -> anyhow::Result<Vec<Component>> {
    let certificates = Arc::new(Certificates::new(ground.pki.serving())?);
    certificates.revoke(ground.pki.revoked()?);
    let acceptor = Acceptor::new(&ground.env, certificates.clone(), ground.pki.ca_pem())?;
    let listener = ground.take_api_listener()?;
    let (apiserver, stop) = (ground.apiserver.clone(), ground.stop.servers.clone());
    let serving = async move {
        apiserver.serve(listener, acceptor, stop).await;
        Ok(())
    };
    let (apiserver, stop, bootstrap) =
        (ground.apiserver.clone(), ground.stop.servers.clone(), ground.bootstrap.clone());
    let reconciling = async move {
        apiserver.reconcile_bootstrap_objects(&bootstrap, stop).await;
        Ok(())
    };
    let files = CertificateFiles {
        env: ground.env.clone(),
        pki: ground.pki.clone(),
        certificates,
        kubeconfig: ground.data.kubeconfig(),
        server: ground.server_url(),
        admin: Mutex::new(ground.pki.admin().clone()),
    };
    let rotating = files.run_rotation(ground.stop.servers.clone());
    Ok(vec![
        Component::new("API server", serving),
        Component::new("bootstrap reconciler", reconciling),
        Component::new("certificates", rotating),
    ])
}

/// The certificates and their files.
struct CertificateFiles {
    env: Env,
    pki: Arc<Pki>,
    certificates: Arc<Certificates>,
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
            let this_run = this.clone();
            let result = tokio::task::spawn_blocking(move || this_run.reload_and_renew()).await?;
            // Log a persistent problem once.
            let problem = result.err().map(|error| format!("{error:#}"));
            if let Some(problem) = problem.as_ref().filter(|_| problem != last) {
                tracing::warn!("certificates cannot be reloaded or renewed: {problem}");
            }
            last = problem;
        }
    }

    fn reload_and_renew(&self) -> anyhow::Result<()> {
        self.certificates.revoke(self.pki.revoked()?);
        let leaves = self.pki.reload_and_renew()?;
        self.certificates.serve_with(&leaves.serving)?;
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

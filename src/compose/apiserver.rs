//! The API server's role: requests over TLS, what it keeps as it was at the first start, and certificates that change.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use apiserver::auth::certificates::Certificates;
use apiserver::auth::pki::{self, Identity, Pki};
use apiserver::auth::tls::Acceptor;
use apiserver::http::kubelets::Kubelets;
use tokio_util::sync::CancellationToken;

use super::ground::Ground;
use super::role::Component;
use crate::data_dir::write_atomically;

/// How often the folder of keys is read: who revokes a certificate waits that long.
const CERTIFICATES_INTERVAL: Duration = Duration::from_secs(5);

/// How the API server reaches kubelets: nodes' certificates are of the cluster's CA, and so is its own identity.
pub(super) fn kubelets(pki: &Pki) -> anyhow::Result<Kubelets> {
    let identity = pki.issue_client("kube-apiserver-kubelet-client", "system:masters")?;
    Ok(Kubelets::new(pki.ca_pem(), &identity)?)
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
    let mending = async move {
        apiserver.mend(&bootstrap, stop).await;
        Ok(())
    };
    let files = Files {
        pki: ground.pki.clone(),
        certificates,
        kubeconfig: ground.data.kubeconfig(),
        server: ground.server_url(),
        admin: Mutex::new(ground.pki.admin().clone()),
    };
    let keeping = files.keep(ground.stop.servers.clone());
    Ok(vec![
        Component::new("API server", serving),
        Component::new("repair of what every cluster has", mending),
        Component::new("certificates", keeping),
    ])
}

/// The files that certificates are in.
struct Files {
    pki: Arc<Pki>,
    certificates: Arc<Certificates>,
    kubeconfig: PathBuf,
    server: String,
    /// Whom the kubeconfig is of.
    admin: Mutex<Identity>,
}

impl Files {
    /// Goes by them as they change, and issues anew what is near its end, until `stop`.
    async fn keep(self, stop: CancellationToken) -> anyhow::Result<()> {
        let this = Arc::new(self);
        let mut last = None;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(CERTIFICATES_INTERVAL) => {}
            }
            let looking = this.clone();
            let looked = tokio::task::spawn_blocking(move || looking.look()).await?;
            // A file that stays as it is is told once.
            let problem = looked.err().map(|error| format!("{error:#}"));
            if let Some(problem) = problem.as_ref().filter(|_| problem != last) {
                tracing::warn!("certificates stay as they are: {problem}");
            }
            last = problem;
        }
    }

    fn look(&self) -> anyhow::Result<()> {
        self.certificates.revoke(self.pki.revoked()?);
        let leaves = self.pki.renewed()?;
        self.certificates.serve_with(&leaves.serving)?;
        let mut admin = self.admin.lock().unwrap_or_else(PoisonError::into_inner);
        // Only then: people keep a namespace and other contexts in the file.
        if *admin != leaves.admin {
            let kubeconfig = pki::kubeconfig(&self.server, self.pki.ca_pem(), "coracle", &leaves.admin);
            write_atomically(&self.kubeconfig, kubeconfig.as_bytes()).context("the kubeconfig of the administrator")?;
            *admin = leaves.admin;
        }
        Ok(())
    }
}

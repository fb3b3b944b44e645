//! The API server's role: requests over TLS, and what it keeps as it was at the first start.

use apiserver::auth::pki::Pki;
use apiserver::auth::tls::Acceptor;
use apiserver::http::kubelets::Kubelets;

use super::ground::Ground;
use super::role::Component;

/// How the API server reaches kubelets: nodes' certificates are of the cluster's CA, and so is its own identity.
pub(super) fn kubelets(pki: &Pki) -> anyhow::Result<Kubelets> {
    let identity = pki.issue_client("kube-apiserver-kubelet-client", "system:masters")?;
    Ok(Kubelets::new(pki.ca_pem(), &identity)?)
}

pub(super) fn build(ground: &Ground) -> anyhow::Result<Vec<Component>> {
    let acceptor = Acceptor::new(&ground.env, ground.pki.serving(), ground.pki.ca_pem())?;
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
    Ok(vec![Component::new("API server", serving), Component::new("repair of what every cluster has", mending)])
}

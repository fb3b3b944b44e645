//! The controllers' role: all controllers on the shared informer; with leader election if others share the store.

use std::sync::Arc;

use apiserver::server::Apiserver;
use apiserver_auth::pki::Pki;
use apiserver_auth::signing;
use apiserver_resources::checking::Warning;
use controllers::{Authority, CertificateTemplate, ExpressionWarning};
use serde_json::Value;

use super::ground::Ground;
use super::identities::ComponentIdentity;
use super::role::Component;

/// The keys of this control plane, and the types that its API server serves.
struct ClusterAuthority {
    pki: Arc<Pki>,
    apiserver: Apiserver,
}

impl Authority for ClusterAuthority {
    fn signs_tokens(&self) -> bool {
        true
    }

    fn sign_token(&self, claims: &Value) -> Option<String> {
        self.pki.service_account().sign(claims).ok()
    }

    fn signs_certificates(&self) -> bool {
        true
    }

    fn sign_certificate(&self, template: &CertificateTemplate<'_>) -> Option<Result<String, String>> {
        let &CertificateTemplate { request, usages, not_before, not_after } = template;
        let template = signing::CertificateTemplate { request, usages, not_before, not_after };
        Some(self.pki.sign(&template).map_err(|error| error.to_string()))
    }

    fn check_policy(&self, policy: &Value) -> Option<Vec<ExpressionWarning>> {
        Some(self.apiserver.check_policy(policy).into_iter().map(warning).collect())
    }
}

/// A finding of the type check, as the controllers write it.
pub(crate) fn warning(found: Warning) -> ExpressionWarning {
    let Warning { field_ref, warning } = found;
    ExpressionWarning { field_ref, warning }
}

pub(super) fn build(ground: &Ground) -> anyhow::Result<Vec<Component>> {
    let settings = controllers::Settings {
        options: ground.config.controllers.clone(),
        root_ca_pem: ground.pki.ca_pem().to_owned(),
        cluster_cidrs: vec![(ground.network.pods.into(), ground.network.node_mask)],
        authority: Arc::new(ClusterAuthority { pki: ground.pki.clone(), apiserver: ground.apiserver.clone() }),
        instances: ground.config.inventory.as_ref().map(|inventory| inventory.now.clone() as _),
        features: ground.config.features,
        ..controllers::Settings::default()
    };
    let mut config = controllers::Config::new(settings, ground.candidate.as_deref().unwrap_or_default())?;
    config.election = config.election.filter(|_| ground.candidate.is_some());
    config.informer = Some(ground.informer.clone());
    ground.with_metrics(|registry| config.metrics.register(registry));
    let (service, timers) = (ground.service.clone(), ground.env.clone());
    let clients: controllers::Clients =
        Arc::new(move |account| ComponentIdentity::Controller(account).client(&timers, &service));
    let client = ComponentIdentity::ControllerManager.client(&ground.env, &ground.service);
    let (env, stop) = (ground.env.clone(), ground.stop.components.clone());
    let run = async move {
        loop {
            let term = controllers::run(client.clone(), clients.clone(), env.clone(), config.clone(), stop.clone());
            match term.await {
                Ok(()) => return Ok(()),
                // The API server of this process goes on.
                Err(error @ controllers::Error::Election(_)) => tracing::warn!(%error, "the controllers wait"),
            }
        }
    };
    let (env, stop) = (ground.env.clone(), ground.stop.components.clone());
    let inventory = ground.config.inventory.clone().map(|inventory| {
        Component::new("node inventory", async move {
            inventory.reload_on_changes(env, stop).await;
            Ok(())
        })
    });
    Ok([Component::new("controllers", run)].into_iter().chain(inventory).collect())
}

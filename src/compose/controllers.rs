//! The controllers' role, in the process of the API server or in one of its own.

use std::sync::Arc;

use apiserver::server::Apiserver;
use apiserver_auth::pki::Pki;
use apiserver_auth::signing;
use apiserver_resources::checking::Warning;
use controllers::{Authority, CertificateTemplate, ExpressionWarning};
use kube::Client;
use machinery_env::Env;
use machinery_roles::Component;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::ground::Ground;
use super::identities::ComponentIdentity;
use crate::inventory::NodeInventory;

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

/// The controllers, which aren't started.
pub(crate) struct ControllersParts {
    pub(crate) env: Env,
    /// With an election if others may run the same controllers.
    pub(crate) config: controllers::Config,
    /// For watches and leader election.
    pub(crate) client: Client,
    /// The client of each controller.
    pub(crate) clients: controllers::Clients,
    /// Of `--node-inventory`.
    pub(crate) inventory: Option<NodeInventory>,
    /// Waits for another term after a lost one: the API server of this process goes on.
    pub(crate) is_reelected: bool,
    pub(crate) stop: CancellationToken,
}

impl ControllersParts {
    /// Those of a cluster, on the shared informer; with leader election if others share the store.
    ///
    /// # Errors
    /// If the options contradict each other.
    pub(super) fn of(ground: &Ground) -> anyhow::Result<Self> {
        let (options, network) = (&ground.config, &ground.addresses.network);
        let settings = controllers::Settings {
            options: options.controllers.clone(),
            root_ca_pem: ground.keys.pki.ca_pem().to_owned(),
            cluster_cidrs: vec![(network.pods.into(), network.node_mask)],
            authority: Arc::new(ClusterAuthority {
                pki: ground.keys.pki.clone(),
                apiserver: ground.api.apiserver.clone(),
            }),
            instances: options.inventory.as_ref().map(|inventory| inventory.now.clone() as _),
            features: options.features,
            ..controllers::Settings::default()
        };
        let candidate = ground.store.candidate.as_deref();
        let mut config = controllers::Config::new(settings, candidate.unwrap_or_default())?;
        config.election = config.election.filter(|_| candidate.is_some());
        config.informer = Some(ground.api.informer.clone());
        ground.metrics.add(|registry| config.metrics.register(registry));
        let (service, timers) = (ground.api.service.clone(), ground.env.clone());
        Ok(Self {
            env: ground.env.clone(),
            config,
            client: ground.client(ComponentIdentity::ControllerManager),
            clients: Arc::new(move |account| ComponentIdentity::Controller(account).client(&timers, &service)),
            inventory: options.inventory.clone(),
            is_reelected: true,
            stop: ground.stops.components.clone(),
        })
    }

    /// All controllers, and the reader of the inventory.
    pub(super) fn build(self) -> Vec<Component> {
        let Self { env, config, client, clients, inventory, is_reelected, stop } = self;
        let inventory = inventory.map(|inventory| {
            Component::stopping("node inventory", inventory.reload_on_changes(env.clone(), stop.clone()))
        });
        let run = async move {
            loop {
                let term = controllers::run(client.clone(), clients.clone(), env.clone(), config.clone(), stop.clone());
                match term.await {
                    Err(error @ controllers::Error::Election(_)) if is_reelected => {
                        tracing::warn!(%error, "the controllers wait");
                    }
                    ended => return ended,
                }
            }
        };
        [Component::new("controllers", run)].into_iter().chain(inventory).collect()
    }
}

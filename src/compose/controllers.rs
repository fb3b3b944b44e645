//! The controllers' role, in the process of the API server or in one of its own.

use std::sync::Arc;

use controllers::{ControllerOptions, ProcessOptions};
use kube::Client;
use kube::config::AuthInfo;
use machinery_api::ObjectKey;
use machinery_api::features::Features;
use machinery_env::Env;
use machinery_roles::Component;
use tokio_util::sync::CancellationToken;

use super::authorities::{ClusterAuthority, FileAuthority, read};
use super::ground::Ground;
use super::identities::ComponentIdentity;
use super::kubeconfig_process::KubeconfigParts;
use crate::inventory::NodeInventory;

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

    /// Those of a process of their own, which act by the API server of a kubeconfig. With `by_account` each acts as its service
    /// account, else all act as the kubeconfig's user.
    ///
    /// # Errors
    /// If no client can be made.
    pub(crate) fn of_kubeconfig(
        parts: KubeconfigParts,
        (config, inventory): (controllers::Config, Option<NodeInventory>),
        by_account: bool,
    ) -> anyhow::Result<Self> {
        parts.metrics.add(|registry| config.metrics.register(registry));
        let clients = if by_account { clients_by_account(&parts)? } else { same_client(&parts) };
        let KubeconfigParts { env, client, stops, .. } = parts;
        Ok(Self { env, config, client, clients, inventory, is_reelected: false, stop: stops.components })
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

/// The configuration of controllers in a process of their own, before an election.
///
/// # Errors
/// If the options contradict each other, or a file can't be used.
pub(crate) fn process_config(
    (options, process): (&ControllerOptions, &ProcessOptions),
    program: &str,
    env: &Env,
    features: Features,
) -> anyhow::Result<(controllers::Config, Option<NodeInventory>)> {
    let root_ca_pem = process.root_ca.root_ca_file.as_ref().map(|file| read(file, "root-ca-file")).transpose()?;
    let inventory = NodeInventory::of(options)?;
    let settings = controllers::Settings {
        options: options.clone(),
        root_ca_pem: root_ca_pem.unwrap_or_default(),
        cluster_cidrs: process.networks.cluster_cidrs()?,
        authority: Arc::new(FileAuthority::of(process, env, features)?),
        certificate_life: process.signing.life_max(),
        instances: inventory.as_ref().map(|inventory| inventory.now.clone() as _),
        features,
    };
    Ok((controllers::Config::new(settings, program)?, inventory))
}

/// All controllers act as the kubeconfig's user.
fn same_client(parts: &KubeconfigParts) -> controllers::Clients {
    let client = parts.client.clone();
    Arc::new(move |_| client.clone())
}

/// Each controller acts as its service account.
fn clients_by_account(parts: &KubeconfigParts) -> anyhow::Result<controllers::Clients> {
    let mut anonymous = parts.config.clone();
    anonymous.auth_info = AuthInfo::default();
    let plain = machinery_client::from_config(&parts.env, anonymous)?;
    let (env, issuer) = (parts.env.clone(), parts.client.clone());
    Ok(Arc::new(move |account| {
        let account = ObjectKey::new("kube-system", account);
        machinery_client::as_service_account(&env, issuer.clone(), plain.clone(), account)
    }))
}

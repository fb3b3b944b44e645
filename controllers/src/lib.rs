//! The controllers: what makes the cluster become what its objects ask for.
//!
//! Each is one pure function from view and key to plan and one row in [`CONTROLLERS`]; the driver in
//! `machinery::runtime` does the rest. To add one: a file, a row; the tests that loop over the table then hold it to the
//! rule that a plan, once performed, leaves nothing to do.
//!
//! Absent on purpose: waiting, clients, clocks and memory between two decisions.

mod deployment;
mod endpointslice;
mod garbage_collector;
mod job;
mod namespace;
mod node_lifecycle;
mod pods;
mod replicaset;
mod root_ca;
mod serviceaccount;
#[cfg(test)]
mod table_tests;
mod taint_eviction;
mod ttl_after_finished;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use machinery::api::ObjectKey;
use machinery::env::Env;
pub use machinery::runtime::driver::Clients;
use machinery::runtime::election::{self, Election};
use machinery::runtime::metrics::Metrics;
use machinery::runtime::{Controller, Informer, driver};
use tokio_util::sync::CancellationToken;

/// All controllers, by upstream's names. Their order means nothing.
pub static CONTROLLERS: &[Controller<Settings>] = &[
    deployment::CONTROLLER,
    endpointslice::CONTROLLER,
    garbage_collector::CONTROLLER,
    job::CONTROLLER,
    namespace::CONTROLLER,
    node_lifecycle::CONTROLLER,
    replicaset::CONTROLLER,
    root_ca::CONTROLLER,
    serviceaccount::CONTROLLER,
    taint_eviction::CONTROLLER,
    ttl_after_finished::CONTROLLER,
];

/// What decisions depend on beside the view.
#[derive(Clone)]
pub struct Settings {
    /// How often, at most, a node's heartbeat is looked at.
    pub node_monitor_period: Duration,
    /// After how long without a heartbeat a node is NotReady.
    pub node_monitor_grace: Duration,
    /// The certificate authority that clients shall trust, as PEM; published in every namespace. Empty: not published.
    pub root_ca_pem: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            node_monitor_period: Duration::from_secs(5),
            node_monitor_grace: Duration::from_secs(40),
            root_ca_pem: String::new(),
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").finish_non_exhaustive()
    }
}

/// How the controllers run.
#[derive(Debug, Clone)]
pub struct Config {
    /// What decisions depend on.
    pub settings: Settings,
    /// None: act at once, as the only replica.
    pub election: Option<Election>,
    /// Names of controllers that shall not run.
    pub disabled: Vec<String>,
    /// The figures; register them before.
    pub metrics: Metrics,
}

impl Config {
    /// With upstream's Lease and timing; `identity` must be unique per replica.
    #[must_use]
    pub fn new(settings: Settings, identity: &str) -> Self {
        Self {
            settings,
            election: Some(Election::new(ObjectKey::new("kube-system", "kube-controller-manager"), identity)),
            disabled: Vec::new(),
            metrics: Metrics::default(),
        }
    }
}

/// Why the controllers ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another replica may act by now.
    #[error(transparent)]
    Election(#[from] election::LeadershipLost),
}

/// Runs the controllers until `stop`. `client` stands for `system:kube-controller-manager`: it watches and takes part in
/// the election. Each controller acts in the name of its own service account, with the client that `clients` gives for it.
///
/// # Errors
/// When the leadership was lost.
pub async fn run(
    client: Client,
    clients: Clients,
    env: Env,
    config: Config,
    stop: CancellationToken,
) -> Result<(), Error> {
    let act = |client: Client, env: Env, stop: CancellationToken| {
        let informer = Informer::new(client.clone(), env.clone(), &stop);
        let (metrics, settings) = (config.metrics.clone(), Arc::new(config.settings.clone()));
        let parts = driver::Parts { clients: clients.clone(), informer, env, metrics, settings };
        let enabled = CONTROLLERS.iter().filter(|c| !config.disabled.iter().any(|d| d == c.name));
        driver::run(enabled.collect::<Vec<_>>(), parts, stop)
    };
    match config.election.clone() {
        None => act(client, env, stop).await,
        Some(election) => {
            let lead = |leading| act(client.clone(), env.clone(), leading);
            election::run(client.clone(), env.clone(), election, stop, lead).await?;
        }
    }
    Ok(())
}

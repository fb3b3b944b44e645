//! Runs the table of controllers over the driver, alone or as the elected leader. The only file of the crate with a client and `async`:
//! the decisions have neither.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use kube::Client;
use machinery_api::ObjectKey;
use machinery_client::Informer;
use machinery_client::driver::{self, Clients};
use machinery_client::election::{self, Election, Term};
use machinery_client::metrics::Metrics;
use machinery_env::Env;
use machinery_options::OptionError;
use tokio_util::sync::CancellationToken;

use crate::{CONTROLLERS, Settings, names};

/// The configuration of the controllers' process.
#[derive(Debug, Clone)]
pub struct Config {
    /// The inputs of decisions.
    pub settings: Settings,
    /// None: act at once, as the only replica.
    pub election: Option<Election>,
    /// Names of disabled controllers.
    pub disabled: Vec<String>,
    /// The number of workers, where it differs from the controller's own.
    pub workers: BTreeMap<&'static str, usize>,
    /// The metrics; register them before.
    pub metrics: Metrics,
    /// The informer that this process' roles share. None: a new one, which watches while this replica leads.
    pub informer: Option<Arc<Informer>>,
}

impl Config {
    /// With upstream's Lease and timing; `identity` must be unique per replica.
    ///
    /// # Errors
    /// If the options contradict each other.
    pub fn new(settings: Settings, identity: &str) -> Result<Self, OptionError> {
        Ok(Self {
            disabled: settings.options.disabled()?,
            workers: settings.options.workers().clone(),
            settings,
            election: Some(Election::new(ObjectKey::new("kube-system", "kube-controller-manager"), identity)),
            metrics: Metrics::called(names::queue),
            informer: None,
        })
    }
}

/// The error that ended the controllers.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another replica may act now.
    #[error(transparent)]
    Election(#[from] election::LeadershipLost),
}

/// Runs the controllers until `stop`. `client` is authenticated as `system:kube-controller-manager`, for watches and
/// leader election. Each controller acts as its own service account, with the client from `clients`.
///
/// # Errors
/// The leadership was lost.
pub fn run(
    client: Client,
    clients: Clients,
    env: Env,
    config: Config,
    stop: CancellationToken,
) -> Pin<Box<dyn Future<Output = Result<(), Error>> + Send>> {
    // Boxed, so that the driver is compiled here and not again in the program's crate.
    Box::pin(run_until(client, clients, env, config, stop))
}

async fn run_until(
    client: Client,
    clients: Clients,
    env: Env,
    config: Config,
    stop: CancellationToken,
) -> Result<(), Error> {
    let act = |client: Client, clients: Clients, env: Env, stop: CancellationToken| {
        let shared = config.informer.clone();
        let informer = shared.unwrap_or_else(|| Informer::new(client.clone(), env.clone(), &stop));
        // Without an account a controller acts as the controller manager.
        let clients: Clients = Arc::new(move |name| if name.is_empty() { client.clone() } else { clients(name) });
        let (metrics, settings) = (config.metrics.clone(), Arc::new(config.settings.clone()));
        let workers = config.workers.clone();
        let parts = driver::DriverDeps { clients, informer, env, metrics, settings, workers };
        let enabled = CONTROLLERS.iter().filter(|c| !config.disabled.iter().any(|d| d == c.name));
        driver::run(enabled.collect::<Vec<_>>(), parts, stop)
    };
    match config.election.clone() {
        None => act(client, clients, env, stop).await,
        Some(election) => {
            let lead = |term: Term| {
                let (own, ended) = (term.client(&client), term.ended.clone());
                act(own, Arc::new(move |name| term.client(&clients(name))), env.clone(), ended)
            };
            election::run(client.clone(), env.clone(), election, stop, lead).await?;
        }
    }
    Ok(())
}

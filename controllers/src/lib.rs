//! The controllers: what makes the cluster become what its objects ask for.
//!
//! Each is one pure function from view and key to plan and one row in [`CONTROLLERS`]; the driver in
//! `machinery_client` does the rest. To add one: a file, a row; the tests that loop over the table then hold it to the
//! rule that a plan, once performed, leaves nothing to do.
//!
//! Absent on purpose: waiting, clients, clocks and memory between two decisions.

#[cfg(test)]
mod broken_tests;
mod certificates;
mod cloud;
mod cluster_role_aggregation;
mod conditions;
#[cfg(test)]
mod crash_tests;
mod cronjob;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
mod endpointslice;
mod fnv;
mod garbage_collector;
mod job;
pub mod names;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod pod_garbage_collector;
mod podautoscaler;
mod pods;
mod replacement;
mod replicaset;
mod replicationcontroller;
mod resourcequota;
mod revisions;
mod root_ca;
mod scale;
#[cfg(test)]
mod scale_tests;
mod service_lb;
mod serviceaccount;
mod serviceaccount_token;
mod servicecidr;
mod share;
mod statefulset;
mod storage;
mod storage_protection;
#[cfg(test)]
mod table_tests;
mod taint_eviction;
mod token_cleaner;
mod ttl_after_finished;
mod validatingadmissionpolicy;
#[cfg(test)]
mod workload_tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use certificates::signing::{CertificateOrder, SignCertificate};
pub use cloud::{INVENTORY_BYTES_MAX, Instance, Instances, Inventory, InventoryError, SharedInventory};
use ipnet::IpNet;
use kube::Client;
use machinery_api::ObjectKey;
use machinery_api::address_pool::AddressPool;
use machinery_api::features::Features;
pub use machinery_client::driver::Clients;
use machinery_client::election::{self, Election};
use machinery_client::metrics::Metrics;
use machinery_client::{Controller, Informer, driver};
use machinery_env::Env;
pub use node_lifecycle::NodeLifecycle;
pub use podautoscaler::AutoscalerSettings;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
pub use validatingadmissionpolicy::ExpressionWarning;

/// All controllers, by upstream's names. Their order means nothing.
pub static CONTROLLERS: &[Controller<Settings>] = &[
    certificates::approving::CONTROLLER,
    certificates::cleaner::CONTROLLER,
    certificates::signing::CONTROLLER,
    cloud::lifecycle::CONTROLLER,
    cloud::node::CONTROLLER,
    cluster_role_aggregation::CONTROLLER,
    cronjob::CONTROLLER,
    daemonset::CONTROLLER,
    deployment::CONTROLLER,
    disruption::CONTROLLER,
    endpoints::CONTROLLER,
    endpoints::mirroring::CONTROLLER,
    endpointslice::CONTROLLER,
    garbage_collector::CONTROLLER,
    job::CONTROLLER,
    namespace::CONTROLLER,
    node_ipam::CONTROLLER,
    node_lifecycle::CONTROLLER,
    pod_garbage_collector::CONTROLLER,
    podautoscaler::CONTROLLER,
    replicaset::CONTROLLER,
    replicationcontroller::CONTROLLER,
    resourcequota::CONTROLLER,
    root_ca::CONTROLLER,
    service_lb::CONTROLLER,
    serviceaccount::CONTROLLER,
    serviceaccount_token::CONTROLLER,
    servicecidr::CONTROLLER,
    statefulset::CONTROLLER,
    storage::binder::CONTROLLER,
    storage::ephemeral::CONTROLLER,
    storage::expand::CONTROLLER,
    storage::provisioner::CONTROLLER,
    storage_protection::CLAIMS,
    storage_protection::CLASSES,
    storage_protection::VOLUMES,
    taint_eviction::CONTROLLER,
    token_cleaner::CONTROLLER,
    ttl_after_finished::CONTROLLER,
    validatingadmissionpolicy::CONTROLLER,
];

/// A simulated cluster that holds these objects, in which everything that a controller looks at is watched.
#[cfg(test)]
fn simulation(
    now: jiff::Timestamp,
    objects: impl IntoIterator<Item = Value>,
) -> machinery_client::simulate::Simulation {
    let held = machinery_client::simulate::held_by(CONTROLLERS);
    machinery_client::simulate::Simulation::of(held, now, objects)
}

/// Turns claims into a signed JWT.
pub type SignToken = Arc<dyn Fn(&Value) -> Option<String> + Send + Sync>;

/// Checks the expressions of a ValidatingAdmissionPolicy against the types that are served.
pub type CheckPolicy = Arc<dyn Fn(&Value) -> Vec<ExpressionWarning> + Send + Sync>;

/// What decisions depend on beside the view.
#[derive(Clone)]
pub struct Settings {
    /// How nodes' lives are judged.
    pub node_lifecycle: NodeLifecycle,
    /// The certificate authority that clients shall trust, as PEM; published in every namespace. Empty: not published.
    pub root_ca_pem: String,
    /// Networks out of which nodes get theirs, with the length of a node's prefix. Empty: nodes get none.
    pub cluster_cidrs: Vec<(IpNet, u8)>,
    /// How many pods that have ended are kept; 0 keeps all.
    pub terminated_pods_max: usize,
    /// Signs the claims of legacy service account tokens as a JWT. None: their Secrets stay as they are.
    pub sign_token: Option<SignToken>,
    /// Makes the certificates that were approved. None: requests stay as they are.
    pub sign_certificate: Option<SignCertificate>,
    /// How long a certificate lives at most.
    pub certificate_life: Duration,
    /// Says what is wrong with policies. None: their statuses stay as they are.
    pub check_policy: Option<CheckPolicy>,
    /// What HorizontalPodAutoscalers are told.
    pub autoscaler: AutoscalerSettings,
    /// Addresses for Services of type LoadBalancer. None: these get no address.
    pub load_balancer_pool: AddressPool,
    /// Who knows of the machines behind nodes. None: nobody does, and nodes are what they say.
    pub instances: Option<Arc<dyn Instances>>,
    /// The feature gates.
    pub features: Features,
}

impl Default for Settings {
    /// As upstream where a flag isn't given.
    fn default() -> Self {
        Self {
            node_lifecycle: NodeLifecycle::default(),
            root_ca_pem: String::new(),
            cluster_cidrs: Vec::new(),
            terminated_pods_max: 12_500,
            sign_token: None,
            sign_certificate: None,
            certificate_life: Duration::from_hours(365 * 24),
            check_policy: None,
            autoscaler: AutoscalerSettings::default(),
            load_balancer_pool: AddressPool::default(),
            instances: None,
            features: Features::default(),
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
    /// How many keys are worked on at once, where that is another number than the controller's own.
    pub workers: BTreeMap<&'static str, usize>,
    /// The figures; register them before.
    pub metrics: Metrics,
    /// The view that this process' roles share. None: one of our own, watched while we lead.
    pub informer: Option<Arc<Informer>>,
}

impl Config {
    /// With upstream's Lease and timing; `identity` must be unique per replica.
    #[must_use]
    pub fn new(settings: Settings, identity: &str) -> Self {
        Self {
            settings,
            election: Some(Election::new(ObjectKey::new("kube-system", "kube-controller-manager"), identity)),
            disabled: Vec::new(),
            workers: BTreeMap::new(),
            metrics: Metrics::called(names::queue),
            informer: None,
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
        let shared = config.informer.clone();
        let informer = shared.unwrap_or_else(|| Informer::new(client.clone(), env.clone(), &stop));
        let (own, of_account) = (client.clone(), clients.clone());
        // No account: in the name of the whole.
        let clients: Clients = Arc::new(move |name| if name.is_empty() { own.clone() } else { of_account(name) });
        let (metrics, settings) = (config.metrics.clone(), Arc::new(config.settings.clone()));
        let workers = config.workers.clone();
        let parts = driver::DriverDeps { clients, informer, env, metrics, settings, workers };
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

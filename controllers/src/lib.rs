//! The controllers: reconcile the cluster with the specs of its objects.
//!
//! Each controller is a pure function from view and key to plan, and a row in [`CONTROLLERS`]; the driver in
//! `machinery_client` does the rest. A new controller needs a file and a row. Tests over the table check that a
//! performed plan leaves nothing to do.
//!
//! Invariant: a decision neither waits nor uses a client or clock. Its memory between passes is part of the plan, and
//! may be lost.

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
mod int_or_percent;
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
mod run;
mod scale;
#[cfg(test)]
mod scale_tests;
mod service_lb;
mod serviceaccount;
mod serviceaccount_token;
mod servicecidr;
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

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use certificates::signing::{CertificateTemplate, SignCertificate};
pub use cloud::{INVENTORY_BYTES_MAX, Instance, Instances, Inventory, InventoryError, SharedInventory};
use ipnet::IpNet;
use machinery_api::features::Features;
use machinery_client::Controller;
pub use machinery_client::driver::Clients;
use machinery_rules::address_pool::AddressPool;
pub use node_lifecycle::NodeLifecycle;
pub use podautoscaler::AutoscalerSettings;
pub use run::{Config, Error, run};
use serde_json::Value;
pub use validatingadmissionpolicy::ExpressionWarning;

/// All controllers, by upstream's names, in no order.
pub static CONTROLLERS: &[Controller<Settings>] = &[
    certificates::approving::CONTROLLER,
    certificates::cleaner::CONTROLLER,
    certificates::serving::CONTROLLER,
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

/// A simulated cluster with these objects, in which every input kind of a controller is watched.
#[cfg(test)]
fn simulation(
    now: jiff::Timestamp,
    objects: impl IntoIterator<Item = Value>,
) -> machinery_client::simulate::Simulation {
    let held = machinery_client::simulate::held_by(CONTROLLERS);
    machinery_client::simulate::Simulation::of(held, now, objects)
}

/// Signs claims as a JWT.
pub type SignToken = Arc<dyn Fn(&Value) -> Option<String> + Send + Sync>;

/// Type-checks the expressions of a ValidatingAdmissionPolicy against the served types.
pub type CheckPolicy = Arc<dyn Fn(&Value) -> Vec<ExpressionWarning> + Send + Sync>;

/// The inputs of decisions other than the view.
#[derive(Clone)]
pub struct Settings {
    /// The timing of node lifecycle.
    pub node_lifecycle: NodeLifecycle,
    /// The certificate authority for clients, as PEM; published in every namespace. Empty: not published.
    pub root_ca_pem: String,
    /// Networks for nodes' pods, with the prefix length of a node's network. Empty: nodes get none.
    pub cluster_cidrs: Vec<(IpNet, u8)>,
    /// The number of terminal pods to keep; 0 keeps all.
    pub terminated_pods_max: usize,
    /// Signs legacy service account tokens. None: their Secrets stay as they are.
    pub sign_token: Option<SignToken>,
    /// Issues approved certificates. None: requests stay as they are.
    pub sign_certificate: Option<SignCertificate>,
    /// The maximum lifetime of a certificate.
    pub certificate_life: Duration,
    /// Type-checks policies. None: their statuses stay as they are.
    pub check_policy: Option<CheckPolicy>,
    /// The settings of HorizontalPodAutoscalers.
    pub autoscaler: AutoscalerSettings,
    /// Addresses for Services of type LoadBalancer. Empty: Services get none.
    pub load_balancer_pool: AddressPool,
    /// The cloud provider. None: nodes are what they report.
    pub instances: Option<Arc<dyn Instances>>,
    pub features: Features,
}

impl Default for Settings {
    /// Upstream's defaults of the flags.
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

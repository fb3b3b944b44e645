//! The controllers: reconcile the cluster with the specs of its objects.
//!
//! Each controller is a pure function from view and key to plan, and a row in [`CONTROLLERS`]; the driver in
//! `machinery_client` does the rest. A new controller needs a file, a row, and a story in `tests/plans`, whose files are
//! transcripts of plans. Tests over the table check that a performed plan leaves nothing to do.
//!
//! Invariant: a decision neither waits nor uses a client or clock. Its memory between passes is part of the plan, and
//! may be lost.

mod authority;
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
pub mod explain;
mod fnv;
mod garbage_collector;
mod int_or_percent;
mod job;
pub mod names;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod options;
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

pub use authority::{Authority, CertificateTemplate, ExpressionWarning, NoAuthority};
pub use cloud::{INVENTORY_BYTES_MAX, Instance, Instances, Inventory, InventoryError, SharedInventory};
use ipnet::IpNet;
use machinery_api::features::Features;
use machinery_client::Controller;
pub use machinery_client::driver::Clients;
pub use node_lifecycle::NodeLifecycle;
pub use options::{ControllerOptions, ProcessOptions, UnsupportedFlags};
pub use run::{Config, Error, run};

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
    objects: impl IntoIterator<Item = serde_json::Value>,
) -> machinery_client::simulate::Simulation {
    let held = machinery_client::simulate::held_by(CONTROLLERS);
    machinery_client::simulate::Simulation::of(held, now, objects)
}

/// The inputs of decisions other than the view.
#[derive(Clone)]
pub struct Settings {
    /// What the user configures.
    pub options: ControllerOptions,
    /// The certificate authority for clients, as PEM; published in every namespace. Empty: not published.
    pub root_ca_pem: String,
    /// Networks for nodes' pods, with the prefix length of a node's network. Empty: nodes get none.
    pub cluster_cidrs: Vec<(IpNet, u8)>,
    /// The control plane's keys and types.
    pub authority: Arc<dyn Authority>,
    /// The maximum lifetime of a certificate.
    pub certificate_life: Duration,
    /// The cloud provider. None: nodes are what they report.
    pub instances: Option<Arc<dyn Instances>>,
    pub features: Features,
}

impl Default for Settings {
    /// Upstream's defaults of the flags.
    fn default() -> Self {
        Self {
            options: ControllerOptions::default(),
            root_ca_pem: String::new(),
            cluster_cidrs: Vec::new(),
            authority: Arc::new(NoAuthority),
            certificate_life: certificates::signing::LIFE_MAX,
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

//! Composes processes of roles: a cluster, a node, or one component against the API server of a kubeconfig.
//!
//! The only module that knows all components. Each role is a row of [`ROLES`] with a file of its own: its parts say what it is
//! made of, and building them starts nothing. A verb's process has the roles whose parts it makes ([`ProcessRoles`]); the start
//! ([`process`]), the foreground with its signals and its takeover ([`foreground`]) and the drain are the same for all of them.
//! Control plane and data plane have separate threads, so that a busy guest never starves the API (docs/architecture.md).

mod address_change;
mod apiserver;
mod authorities;
mod cluster;
mod controllers;
mod dns;
mod foreground;
mod ground;
mod identities;
mod image_metadata;
#[cfg(test)]
mod joining_tests;
pub(crate) mod kubeconfig_process;
mod membership;
mod memory;
mod metrics;
pub(crate) mod node;
mod node_configuration;
mod node_host;
mod nodes;
pub(crate) mod preflight;
mod process;
mod proxy;
mod ready;
mod registry;
mod resumption;
mod scheduler;
mod shared_store;
mod storage;
mod tunnel;

use machinery_roles::{Component, Failure, Role, Stage};

pub(crate) use cluster::{Cluster, start};
pub(crate) use controllers::{ControllersParts, process_config};
pub(crate) use foreground::{PROGRAM, ReadyProcess, runtime, until_stopped};
pub(crate) use metrics::{Metrics, MetricsEndpoint, MetricsFlags};
pub(crate) use nodes::prepare_engine;
pub(crate) use proxy::{DataPlaneParts, lone_plane};
pub(crate) use scheduler::SchedulerParts;

/// The roles of all verbs, in the order in which they start.
const ROLES: &[Role<ProcessRoles>] = &[
    Role { name: "API server", stage: Stage::Servers, build: |roles| built(roles.api_server.take(), |p| p.build()) },
    Role { name: "registry", stage: Stage::Servers, build: |roles| built(roles.registry.take(), |p| Ok(p.build())) },
    Role {
        name: "controllers",
        stage: Stage::Components,
        build: |roles| built(roles.controllers.take(), |p| Ok(p.build())),
    },
    Role {
        name: "scheduler",
        stage: Stage::Components,
        build: |roles| built(roles.scheduler.take(), |p| Ok(p.build())),
    },
    Role { name: "data plane", stage: Stage::Pods, build: |roles| built(roles.data_plane.take(), |p| Ok(p.build())) },
    Role { name: "cluster DNS", stage: Stage::Pods, build: |roles| built(roles.dns.take(), |p| p.build()) },
    Role { name: "nodes", stage: Stage::Components, build: |roles| built(roles.nodes.take(), |p| p.build()) },
    Role {
        name: "membership",
        stage: Stage::Components,
        build: |roles| built(roles.membership.take(), |p| Ok(p.build())),
    },
];

/// The roles of a process: those whose parts it has.
#[derive(Default)]
pub(crate) struct ProcessRoles {
    api_server: Option<apiserver::ApiServerParts>,
    registry: Option<registry::RegistryParts>,
    controllers: Option<ControllersParts>,
    scheduler: Option<SchedulerParts>,
    data_plane: Option<DataPlaneParts>,
    dns: Option<dns::DnsParts>,
    nodes: Option<nodes::NodesParts>,
    membership: Option<membership::MembershipParts>,
}

impl From<ControllersParts> for ProcessRoles {
    fn from(parts: ControllersParts) -> Self {
        Self { controllers: Some(parts), ..Self::default() }
    }
}

impl From<SchedulerParts> for ProcessRoles {
    fn from(parts: SchedulerParts) -> Self {
        Self { scheduler: Some(parts), ..Self::default() }
    }
}

impl From<DataPlaneParts> for ProcessRoles {
    fn from(parts: DataPlaneParts) -> Self {
        Self { data_plane: Some(parts), ..Self::default() }
    }
}

/// The components of a role; none without its parts.
fn built<P>(
    parts: Option<P>,
    build: impl FnOnce(P) -> anyhow::Result<Vec<Component>>,
) -> Result<Vec<Component>, Failure> {
    Ok(parts.map(build).transpose()?.unwrap_or_default())
}

/// The parts of a cluster that run in this process: each value includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// The API server with its store, and the registry.
    Servers,
    /// Controllers and scheduler.
    Control,
    /// The data plane and the nodes.
    Nodes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_start_before_their_clients() {
        assert!(ROLES.is_sorted_by_key(|role| role.stage != Stage::Servers));
        let names: std::collections::BTreeSet<&str> = ROLES.iter().map(|role| role.name).collect();
        assert_eq!(names.len(), ROLES.len());
    }
}

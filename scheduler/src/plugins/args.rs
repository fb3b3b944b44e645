//! What a profile tells its plugins (`pluginConfig`).

use std::collections::BTreeSet;

use super::default_preemption::PreemptionArgs;
use super::{SCORE_MAX, ScoringStrategy};
use crate::node::NodeInfo;
use crate::pod::{NodeTerm, PodRequirements};
use crate::resources::Resources;

/// See the module. The default is upstream's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Args {
    /// How `NodeResourcesFit` scores.
    pub scoring_strategy: ScoringStrategy,
    /// The resources that it scores, with weights; empty: cpu and memory, alike.
    pub scored_resources: Vec<(Resource, i64)>,
    /// `RequestedToCapacityRatio`: points of utilization and score (0 to 100 each), by utilization.
    pub shape: Vec<(i64, i64)>,
    /// Extended resources that `NodeResourcesFit` doesn't look at, whole or by the part of their name before the `/`.
    pub ignored_resources: BTreeSet<String>,
    /// The same, by group.
    pub ignored_groups: BTreeSet<String>,
    /// The resources that `NodeResourcesBalancedAllocation` balances; empty: cpu and memory.
    pub balanced_resources: Vec<Resource>,
    /// How much the required affinity of a pod that is there draws others that it means, less one.
    pub hard_affinity_weight: HardAffinityWeight,
    /// What pods that are there prefer counts only for pods that prefer something themselves.
    pub ignore_preferences_of_existing: bool,
    /// `PodTopologySpread`: the constraints of pods that have none; none: upstream's own.
    pub default_constraints: Option<Vec<DefaultConstraint>>,
    /// `NodeAffinity`: beside what each pod asks for.
    pub added_affinity: AddedAffinity,
    /// Of DefaultPreemption.
    pub preemption: PreemptionArgs,
}

/// `hardPodAffinityWeight`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HardAffinityWeight(pub i64);

impl Default for HardAffinityWeight {
    fn default() -> Self {
        Self(1)
    }
}

/// A resource that scores look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resource {
    /// `cpu`.
    Cpu,
    /// `memory`.
    Memory,
    /// `ephemeral-storage`.
    Ephemeral,
    /// Any other one.
    Other(String),
}

/// A constraint of pods that have none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultConstraint {
    /// How uneven pods may be.
    pub max_skew: i64,
    /// The label that makes domains.
    pub key: String,
    /// `DoNotSchedule`, else only preferred.
    pub required: bool,
}

/// Node affinity that all pods of a profile have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AddedAffinity {
    /// One of the terms must hold, where there are any.
    pub required: Option<Vec<NodeTerm>>,
    /// With weights.
    pub preferred: Vec<(i64, NodeTerm)>,
}

impl AddedAffinity {
    /// Whether nothing is added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Resource {
    /// Of that name.
    #[must_use]
    pub fn named(name: &str) -> Self {
        match name {
            "cpu" => Self::Cpu,
            "memory" => Self::Memory,
            "ephemeral-storage" => Self::Ephemeral,
            other => Self::Other(other.to_owned()),
        }
    }

    pub(super) fn of(&self, amounts: &Resources) -> i64 {
        match self {
            Self::Cpu => amounts.cpu_milli,
            Self::Memory => amounts.memory_bytes,
            Self::Ephemeral => amounts.ephemeral_bytes,
            Self::Other(name) => amounts.others.get(name).copied().unwrap_or(0),
        }
    }

    /// What is offered of it on a node, and what its pods ask for (`scored`: as scores count it); none where the pod asks
    /// for none of what only few pods ask for.
    pub(super) fn on(&self, node: &NodeInfo, pod: &PodRequirements, scored: bool) -> Option<(i64, i64)> {
        let cut = |amount: i128| i64::try_from(amount).unwrap_or(i64::MAX);
        let (load, used) = (node.load(), &node.requested);
        let used = match self {
            Self::Cpu if scored => load.scored_cpu_milli,
            Self::Memory if scored => load.scored_memory_bytes,
            Self::Cpu => load.cpu_milli,
            Self::Memory => load.memory_bytes,
            Self::Ephemeral => cut(used.ephemeral_bytes),
            Self::Other(_) if self.of(&pod.requests) == 0 => return None,
            Self::Other(name) => cut(used.others.get(name).copied().unwrap_or(0)),
        };
        let offered = self.of(&node.facts.allocatable);
        (offered > 0).then_some((offered, used))
    }
}

impl Args {
    /// Whether cpu and memory alone count, each as much, and by no points.
    pub(super) fn has_usual_scores(&self) -> bool {
        self.scored_resources.is_empty() && self.scoring_strategy != ScoringStrategy::RequestedToCapacityRatio
    }

    /// Whether an extended resource is none of the scheduler's business.
    #[must_use]
    pub fn ignores(&self, resource: &str) -> bool {
        let extended = resource.contains('/') && !resource.contains("kubernetes.io/");
        let of_group = |group: &String| resource.strip_prefix(group.as_str()).is_some_and(|rest| rest.starts_with('/'));
        extended && (self.ignored_resources.contains(resource) || self.ignored_groups.iter().any(of_group))
    }

    /// The score of a utilization in hundredths, by the points' broken line.
    #[must_use]
    pub fn shaped(&self, utilization: i64) -> i64 {
        let mut before: Option<(i64, i64)> = None;
        for (at, score) in &self.shape {
            if utilization <= *at {
                return match before {
                    None => *score,
                    Some((from, low)) => low + (score - low) * (utilization - from) / (at - from).max(1),
                };
            }
            before = Some((*at, *score));
        }
        before.map_or(0, |(_, score)| score).min(SCORE_MAX)
    }
}

//! The arguments of a profile's plugins (`pluginConfig`) as typed values. The default is upstream's.

use std::collections::BTreeSet;

use super::default_preemption::PreemptionArgs;
use super::{SCORE_MAX, ScoringStrategy};
use crate::node::NodeInfo;
use crate::pod::{NodeTerm, PodRequirements};
use crate::resources::Resources;

/// The arguments of all plugins. The default is upstream's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Args {
    /// The scoring strategy of `NodeResourcesFit`.
    pub scoring_strategy: ScoringStrategy,
    /// The resources that it scores, with weights; empty: cpu and memory, equally.
    pub scored_resources: Vec<(Resource, i64)>,
    /// `RequestedToCapacityRatio`: points of utilization and score (0 to 100 each), by utilization.
    pub shape: Vec<(i64, i64)>,
    /// Extended resources that `NodeResourcesFit` ignores, by full name.
    pub ignored_resources: BTreeSet<String>,
    /// The same, by the prefix before the `/`.
    pub ignored_groups: BTreeSet<String>,
    /// The resources that `NodeResourcesBalancedAllocation` balances; empty: cpu and memory.
    pub balanced_resources: Vec<Resource>,
    /// The weight of an existing pod's required affinity for pods that match it. Upstream's default is 1.
    pub hard_affinity_weight: HardAffinityWeight,
    /// Whether the preferred terms of existing pods are ignored for pods without preferred terms.
    pub ignore_preferences_of_existing: bool,
    /// `PodTopologySpread`: the constraints of pods that have none; none: upstream's defaults.
    pub default_constraints: Option<Vec<DefaultConstraint>>,
    /// `NodeAffinity`: affinity in addition to the pod's.
    pub added_affinity: AddedAffinity,
    /// The arguments of `DefaultPreemption`.
    pub preemption: PreemptionArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HardAffinityWeight(pub i64);

impl Default for HardAffinityWeight {
    fn default() -> Self {
        Self(1)
    }
}

/// A resource for scores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resource {
    Cpu,
    Memory,
    Ephemeral,
    /// An extended resource.
    Other(String),
}

/// A default spread constraint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultConstraint {
    /// The maximum difference of pods between domains.
    pub max_skew: i64,
    /// The topology label.
    pub key: String,
    /// `DoNotSchedule`; otherwise `ScheduleAnyway`.
    pub required: bool,
}

/// The node affinity of all pods of a profile.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AddedAffinity {
    /// One of the terms must match, if there are any.
    pub required: Option<Vec<NodeTerm>>,
    /// With weights.
    pub preferred: Vec<(i64, NodeTerm)>,
}

impl AddedAffinity {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Resource {
    /// The resource with a name.
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

    /// The allocatable amount of a node, and the requests of its pods (`scored`: with defaults). None for an extended
    /// resource that the pod doesn't request.
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
    /// Whether the defaults apply: cpu and memory with equal weights, and no shape.
    pub(super) fn has_usual_scores(&self) -> bool {
        self.scored_resources.is_empty() && self.scoring_strategy != ScoringStrategy::RequestedToCapacityRatio
    }

    /// Whether `NodeResourcesFit` ignores an extended resource.
    #[must_use]
    pub fn ignores(&self, resource: &str) -> bool {
        let extended = resource.contains('/') && !resource.contains("kubernetes.io/");
        let of_group = |group: &String| resource.strip_prefix(group.as_str()).is_some_and(|rest| rest.starts_with('/'));
        extended && (self.ignored_resources.contains(resource) || self.ignored_groups.iter().any(of_group))
    }

    /// The score of a utilization in hundredths, interpolated between the points of the shape.
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

//! What a profile tells its plugins (`pluginConfig`).

use super::ScoringStrategy;
use super::default_preemption::PreemptionArgs;

/// See the module. The default is upstream's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Args {
    /// How resources are scored.
    pub scoring_strategy: ScoringStrategy,
    /// Of DefaultPreemption.
    pub preemption: PreemptionArgs,
}

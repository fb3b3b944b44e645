//! Flags of the scheduler's decisions, shared by `coracle up` and `coracle scheduler`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use scheduler::configuration::Configuration;
use scheduler::plugins::ScoringStrategy;

use crate::cmd::Failure;
use crate::config::SchedulerConfig;
use crate::scheduler_plugins;

/// Flags of the scheduler.
#[derive(Debug, Clone, Args)]
pub(crate) struct SchedulerFlags {
    /// Scoring strategy of the scheduler: LeastAllocated spreads, MostAllocated packs
    #[arg(
        long,
        env = "CORACLE_SCORING_STRATEGY",
        default_value = "LeastAllocated",
        value_name = "STRATEGY",
        conflicts_with = "scheduler_config"
    )]
    scoring_strategy: ScoringStrategyArg,
    /// A KubeSchedulerConfiguration: profiles, their plugins and arguments (docs/flags.md, "The scheduler's file")
    #[arg(long, env = "CORACLE_SCHEDULER_CONFIG", value_name = "FILE")]
    scheduler_config: Option<PathBuf>,
}

/// `NodeResourcesFit`'s scoring strategy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
enum ScoringStrategyArg {
    /// Prefers empty nodes.
    LeastAllocated,
    /// Prefers full nodes (bin packing).
    MostAllocated,
}

impl SchedulerFlags {
    /// The configuration in the file, else upstream's default.
    ///
    /// # Errors
    /// If the file can't be read or is invalid.
    pub(crate) fn config(&self) -> Result<SchedulerConfig, Failure> {
        let Some(file) = &self.scheduler_config else {
            return Ok(SchedulerConfig::scored_by(match self.scoring_strategy {
                ScoringStrategyArg::LeastAllocated => ScoringStrategy::LeastAllocated,
                ScoringStrategyArg::MostAllocated => ScoringStrategy::MostAllocated,
            }));
        };
        let refused = |why: String| Failure::Usage(format!("--scheduler-config {}: {why}", file.display()));
        let text = std::fs::read_to_string(file).map_err(|error| refused(error.to_string()))?;
        let Configuration { profiles, back_off, extenders, of_process } =
            Configuration::parse(&text).map_err(refused)?;
        for plugin in profiles.iter().flat_map(|profile| &profile.wasm) {
            scheduler_plugins::check(plugin).map_err(refused)?;
        }
        if !of_process.is_empty() {
            tracing::warn!(fields = of_process.join(", "), "--scheduler-config: this scheduler ignores these fields");
        }
        Ok(SchedulerConfig { profiles, back_off, extenders })
    }
}

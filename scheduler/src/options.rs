//! The options of the scheduler's decisions.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use machinery_options::rejected::Table;
use machinery_options::{OptionError, read_text};

use crate::configuration::Configuration;
use crate::plugins::{Profile, ScoringStrategy};

/// Options of the scheduler.
#[derive(Debug, Clone, Args)]
pub struct SchedulerOptions {
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

impl Default for SchedulerOptions {
    /// Upstream's defaults, whatever the environment is.
    fn default() -> Self {
        machinery_options::defaults()
    }
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

impl SchedulerOptions {
    /// The configuration in the file, else upstream's default with the scoring strategy. `check` rejects a profile that this
    /// process can't run.
    ///
    /// # Errors
    /// If the file can't be read or is invalid, or `check` fails.
    pub fn configuration(&self, check: impl Fn(&Profile) -> Result<(), String>) -> Result<Configuration, OptionError> {
        const FLAG: &str = "scheduler-config";
        let Some(file) = &self.scheduler_config else {
            let strategy = match self.scoring_strategy {
                ScoringStrategyArg::LeastAllocated => ScoringStrategy::LeastAllocated,
                ScoringStrategyArg::MostAllocated => ScoringStrategy::MostAllocated,
            };
            let profiles = vec![Profile::default().scored_by(strategy)];
            return Ok(Configuration { profiles, ..Configuration::default() });
        };
        let refused = |why: String| OptionError::new(format!("--{FLAG} {}: {why}", file.display()));
        let configuration = Configuration::parse(&read_text(FLAG, file)?).map_err(refused)?;
        configuration.profiles.iter().try_for_each(check).map_err(refused)?;
        if !configuration.of_process.is_empty() {
            let fields = configuration.of_process.join(", ");
            tracing::warn!(fields, "--scheduler-config: this scheduler ignores these fields");
        }
        Ok(configuration)
    }
}

/// Upstream's flags that are rejected here.
#[derive(Debug, Clone)]
pub struct UnsupportedFlags;

impl Table for UnsupportedFlags {
    const OWN: &'static [(&'static str, &'static str)] = &[(
        "pod-max-in-unschedulable-pods-duration",
        "a pod waits until something changes that may help it; leave it out",
    )];
}

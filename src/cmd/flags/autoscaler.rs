//! Flags of the HorizontalPodAutoscaler controller, by upstream's names.

use std::time::Duration;

use clap::Args;
use controllers::AutoscalerSettings;

use super::duration::{duration, some_time};

/// See the module.
#[derive(Debug, Clone, Args)]
pub(super) struct AutoscalerFlags {
    /// How often each HorizontalPodAutoscaler is looked at
    #[arg(long, env = "CORACLE_HORIZONTAL_POD_AUTOSCALER_SYNC_PERIOD", default_value = "15s", value_name = "DURATION", value_parser = some_time)]
    horizontal_pod_autoscaler_sync_period: Duration,
    /// For how long a HorizontalPodAutoscaler doesn't go below a size that it proposed, where its own rules don't say
    #[arg(long, env = "CORACLE_HORIZONTAL_POD_AUTOSCALER_DOWNSCALE_STABILIZATION", default_value = "5m0s", value_name = "DURATION", value_parser = duration)]
    horizontal_pod_autoscaler_downscale_stabilization: Duration,
    /// How far from 1 the ratio of what is measured to what is wanted is before a workload is scaled
    #[arg(long, env = "CORACLE_HORIZONTAL_POD_AUTOSCALER_TOLERANCE", default_value_t = 0.1, value_name = "RATIO", value_parser = share)]
    horizontal_pod_autoscaler_tolerance: f64,
    /// For how long after its start a pod's use of CPU may be left out
    #[arg(long, env = "CORACLE_HORIZONTAL_POD_AUTOSCALER_CPU_INITIALIZATION_PERIOD", default_value = "5m0s", value_name = "DURATION", value_parser = duration)]
    horizontal_pod_autoscaler_cpu_initialization_period: Duration,
    /// Until when after its start a pod that isn't ready counts as one that never was
    #[arg(long, env = "CORACLE_HORIZONTAL_POD_AUTOSCALER_INITIAL_READINESS_DELAY", default_value = "30s", value_name = "DURATION", value_parser = duration)]
    horizontal_pod_autoscaler_initial_readiness_delay: Duration,
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=1e6).contains(&share) { Ok(share) } else { Err("not 0 or more".into()) }
}

impl AutoscalerFlags {
    pub(super) fn settings(&self) -> AutoscalerSettings {
        AutoscalerSettings {
            // Passes that follow each other at once would do nothing but ask.
            sync_period: self.horizontal_pod_autoscaler_sync_period.max(Duration::from_secs(1)),
            downscale_stabilization: self.horizontal_pod_autoscaler_downscale_stabilization,
            tolerance: self.horizontal_pod_autoscaler_tolerance,
            cpu_initialization_period: self.horizontal_pod_autoscaler_cpu_initialization_period,
            initial_readiness_delay: self.horizontal_pod_autoscaler_initial_readiness_delay,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tolerance_is_a_ratio() {
        assert_eq!(share("0.1"), Ok(0.1));
        assert!(share("NaN").is_err() && share("-1").is_err() && share("inf").is_err());
    }
}

//! Flags of the HorizontalPodAutoscaler controller, by upstream's names.

use std::time::Duration;

use clap::Args;
use controllers::AutoscalerSettings;

use super::duration::{duration, some_time};

/// Flags of the HorizontalPodAutoscaler controller.
#[derive(Debug, Clone, Args)]
pub(super) struct AutoscalerFlags {
    /// Interval between two evaluations of a HorizontalPodAutoscaler
    #[arg(long, env = "CORACLE_HORIZONTAL_POD_AUTOSCALER_SYNC_PERIOD", default_value = "15s", value_name = "DURATION", value_parser = some_time)]
    horizontal_pod_autoscaler_sync_period: Duration,
    /// Stabilization window of scaling down, unless the HorizontalPodAutoscaler has one itself
    #[arg(long, env = "CORACLE_HORIZONTAL_POD_AUTOSCALER_DOWNSCALE_STABILIZATION", default_value = "5m0s", value_name = "DURATION", value_parser = duration)]
    horizontal_pod_autoscaler_downscale_stabilization: Duration,
    /// Minimum deviation from 1 of the ratio of measured to desired value before a workload is scaled
    #[arg(long, env = "CORACLE_HORIZONTAL_POD_AUTOSCALER_TOLERANCE", default_value_t = 0.1, value_name = "RATIO", value_parser = share)]
    horizontal_pod_autoscaler_tolerance: f64,
    /// Time after a pod's start during which its CPU samples may be skipped
    #[arg(long, env = "CORACLE_HORIZONTAL_POD_AUTOSCALER_CPU_INITIALIZATION_PERIOD", default_value = "5m0s", value_name = "DURATION", value_parser = duration)]
    horizontal_pod_autoscaler_cpu_initialization_period: Duration,
    /// Time after a pod's start during which an unready pod counts as never ready
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
            // A shorter period would only load the API server.
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

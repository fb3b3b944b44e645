//! `--feature-gates`, for each verb whose program has the flag upstream.

use clap::Args;
use machinery_api::features::{Features, GateSettings, known};

/// The flag `--feature-gates`.
#[derive(Debug, Clone, Args)]
pub struct FeatureFlags {
    #[arg(long, env = "CORACLE_FEATURE_GATES", value_name = "NAME=BOOL,…", help = help())]
    feature_gates: Vec<GateSettings>,
}

fn help() -> String {
    format!("Switches features; can be given several times, what comes later counts. All: {}", known().join(", "))
}

impl FeatureFlags {
    /// The state of every gate.
    pub fn features(&self) -> Features {
        Features::of(&self.feature_gates)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use machinery_api::features::Feature;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Only {
        #[command(flatten)]
        flags: FeatureFlags,
    }

    fn features(flags: &[&str]) -> Result<Features, String> {
        let parsed = Only::try_parse_from(["x"].iter().chain(flags)).map_err(|error| error.to_string())?;
        Ok(parsed.flags.features())
    }

    #[test]
    fn the_flag_can_be_given_several_times() {
        assert_eq!(features(&[]), Ok(Features::default()));
        assert_eq!(features(&["--feature-gates="]), Ok(Features::default()));
        let given = ["--feature-gates=MaxUnavailableStatefulSet=true", "--feature-gates", "HPAScaleToZero=false"];
        let wanted =
            Features::default().with(Feature::MaxUnavailableStatefulSet, true).with(Feature::HpaScaleToZero, false);
        assert_eq!(features(&given), Ok(wanted));
    }

    #[test]
    fn an_unknown_gate_is_refused_with_the_list() {
        let message = features(&["--feature-gates=ContainerStopSignals=true"]).unwrap_err();
        for part in [
            "--feature-gates",
            "unrecognized feature gate: ContainerStopSignals",
            "MaxUnavailableStatefulSet=true|false",
        ] {
            assert!(message.contains(part), "{message}");
        }
        assert!(
            features(&["--feature-gates=HPAScaleToZero"])
                .unwrap_err()
                .contains("missing bool value for HPAScaleToZero")
        );
    }
}

//! Feature gates: the value of `--feature-gates`, with upstream's syntax and error messages.
//!
//! The input is the text of each occurrence of the flag, in order; the output is [`Features`], a plain value that every
//! component receives at its start. Invariant: a gate is in [`GATES`] exactly where both of its states are implemented.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::selector::go_quoted;

/// A gate that can be switched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// `HPAScaleToZero`: an autoscaler may take the last pod of a workload away.
    HpaScaleToZero,
    /// `MaxUnavailableStatefulSet`: a StatefulSet may replace several pods at a time.
    MaxUnavailableStatefulSet,
}

/// A feature's stage upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Also switched by `AllAlpha`.
    Alpha,
    /// Also switched by `AllBeta`.
    Beta,
}

impl Stage {
    /// As upstream's help and metrics spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alpha => "ALPHA",
            Self::Beta => "BETA",
        }
    }
}

/// A row of [`GATES`].
#[derive(Debug, Clone, Copy)]
pub struct Gate {
    /// The feature.
    pub feature: Feature,
    /// Its name in the flag.
    pub name: &'static str,
    /// Its stage in upstream's v1.36.
    pub stage: Stage,
    /// The state without the flag.
    pub default: bool,
}

/// The gates, by name, in the order of [`Feature`].
pub const GATES: [Gate; 2] = [
    // Upstream's default is off. Here autoscalers scaled to zero before there was a gate (docs/compatibility.md).
    Gate { feature: Feature::HpaScaleToZero, name: "HPAScaleToZero", stage: Stage::Alpha, default: true },
    Gate {
        feature: Feature::MaxUnavailableStatefulSet,
        name: "MaxUnavailableStatefulSet",
        stage: Stage::Beta,
        default: false,
    },
];

/// The switches of all gates of a stage, which apply to the gates that the flag doesn't name.
const STAGES: [(&str, Stage); 2] = [("AllAlpha", Stage::Alpha), ("AllBeta", Stage::Beta)];

/// The values of Go's `strconv.ParseBool`.
const BOOLEANS: [(&str, bool); 12] = [
    ("1", true),
    ("t", true),
    ("T", true),
    ("true", true),
    ("TRUE", true),
    ("True", true),
    ("0", false),
    ("f", false),
    ("F", false),
    ("false", false),
    ("FALSE", false),
    ("False", false),
];

/// Why a value of the flag is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// No `=`.
    #[error("missing bool value for {0}")]
    MissingValue(String),
    /// No boolean: name, value.
    #[error("invalid value of {0}={1}, err: strconv.ParseBool: parsing {quoted}: invalid syntax", quoted = go_quoted(.1))]
    InvalidValue(String, String),
    /// No such gate.
    #[error("unrecognized feature gate: {0}; known are {known}", known = known().join(", "))]
    Unrecognized(String),
}

/// One line for each gate, as upstream's help has it.
#[must_use]
pub fn known() -> Vec<String> {
    let line =
        |name: &str, stage: Stage, default: bool| format!("{name}=true|false ({} - default={default})", stage.as_str());
    let stages = STAGES.iter().map(|(name, stage)| line(name, *stage, false));
    stages.chain(GATES.iter().map(|gate| line(gate.name, gate.stage, gate.default))).collect()
}

/// The settings of one occurrence of the flag.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GateSettings(BTreeMap<&'static str, bool>);

impl FromStr for GateSettings {
    type Err = GateError;

    fn from_str(text: &str) -> Result<Self, GateError> {
        let mut pairs = Vec::new();
        for pair in text.split(',').filter(|pair| !pair.is_empty()) {
            let Some((name, value)) = pair.split_once('=') else {
                return Err(GateError::MissingValue(pair.trim().to_owned()));
            };
            let (name, value) = (name.trim(), value.trim());
            let boolean = BOOLEANS.iter().find(|(word, _)| *word == value).map(|(_, boolean)| *boolean);
            let boolean = boolean.ok_or_else(|| GateError::InvalidValue(name.to_owned(), value.to_owned()))?;
            pairs.push((name, boolean));
        }
        // As upstream, which checks names after reading the whole value.
        let names = STAGES.iter().map(|(name, _)| *name).chain(GATES.iter().map(|gate| gate.name));
        let names: Vec<&'static str> = names.collect();
        let mut set = BTreeMap::new();
        for (name, boolean) in pairs {
            let known = names.iter().find(|known| **known == name);
            set.insert(*known.ok_or_else(|| GateError::Unrecognized(name.to_owned()))?, boolean);
        }
        Ok(Self(set))
    }
}

/// The state of every gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features([bool; GATES.len()]);

impl Default for Features {
    fn default() -> Self {
        Self(GATES.map(|gate| gate.default))
    }
}

impl Features {
    /// Merges the occurrences of the flag: a later one overrides an earlier one, and a gate's own name overrides its
    /// stage.
    #[must_use]
    pub fn of(settings: &[GateSettings]) -> Self {
        let set: BTreeMap<&str, bool> = settings.iter().flat_map(|given| &given.0).map(|(n, b)| (*n, *b)).collect();
        let of_stage = |stage: Stage| STAGES.iter().find(|(_, of)| *of == stage).and_then(|(name, _)| set.get(name));
        Self(GATES.map(|gate| *set.get(gate.name).or_else(|| of_stage(gate.stage)).unwrap_or(&gate.default)))
    }

    /// Sets one gate.
    #[must_use]
    pub fn with(mut self, feature: Feature, enabled: bool) -> Self {
        self.0[feature as usize] = enabled;
        self
    }

    /// Whether a gate is on.
    #[must_use]
    pub const fn has(&self, feature: Feature) -> bool {
        self.0[feature as usize]
    }

    /// Each gate with its state.
    pub fn all(&self) -> impl Iterator<Item = (&'static Gate, bool)> {
        GATES.iter().zip(self.0)
    }
}

/// In the flag's syntax.
impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<String> = self.all().map(|(gate, enabled)| format!("{}={enabled}", gate.name)).collect();
        f.write_str(&pairs.join(","))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn features(given: &[&str]) -> Result<String, String> {
        let settings = given.iter().map(|text| text.parse::<GateSettings>()).collect::<Result<Vec<_>, _>>();
        settings.map(|settings| Features::of(&settings).to_string()).map_err(|error| error.to_string())
    }

    #[test]
    fn rows_stand_in_the_order_of_their_features() {
        for (at, gate) in GATES.iter().enumerate() {
            assert_eq!(gate.feature as usize, at, "{}", gate.name);
        }
        assert!(GATES.windows(2).all(|two| two[0].name < two[1].name));
        assert!(known().windows(2).all(|two| two[0] < two[1]));
    }

    #[test]
    fn occurrences_merge_and_names_override_stages() {
        for (given, to_zero, several) in [
            (&[][..], true, false),
            (&[""], true, false),
            (&["MaxUnavailableStatefulSet=true"], true, true),
            (&[" MaxUnavailableStatefulSet = T ,,HPAScaleToZero=0"], false, true),
            (&["MaxUnavailableStatefulSet=true", "HPAScaleToZero=false"], false, true),
            (&["MaxUnavailableStatefulSet=true,MaxUnavailableStatefulSet=false"], true, false),
            (&["MaxUnavailableStatefulSet=true", "MaxUnavailableStatefulSet=false"], true, false),
            (&["AllBeta=true"], true, true),
            (&["AllAlpha=false"], false, false),
            (&["AllAlpha=false,AllBeta=true"], false, true),
            (&["MaxUnavailableStatefulSet=false,AllBeta=true"], true, false),
            (&["AllAlpha=false", "HPAScaleToZero=true"], true, false),
        ] {
            let wanted = format!("HPAScaleToZero={to_zero},MaxUnavailableStatefulSet={several}");
            assert_eq!(features(given), Ok(wanted), "{given:?}");
        }
    }

    #[test]
    fn errors_have_upstreams_messages() {
        for (given, why) in [
            ("MaxUnavailableStatefulSet", "missing bool value for MaxUnavailableStatefulSet"),
            (" ", "missing bool value for "),
            (
                "MaxUnavailableStatefulSet=yes",
                "invalid value of MaxUnavailableStatefulSet=yes, err: strconv.ParseBool: parsing \"yes\": invalid syntax",
            ),
            ("Nope=a=b", "invalid value of Nope=a=b, err: strconv.ParseBool: parsing \"a=b\": invalid syntax"),
            (
                "MaxUnavailableStatefulSet=true,ContainerStopSignals=true",
                "unrecognized feature gate: ContainerStopSignals; known are AllAlpha=true|false (ALPHA - default=false), \
                 AllBeta=true|false (BETA - default=false), HPAScaleToZero=true|false (ALPHA - default=true), \
                 MaxUnavailableStatefulSet=true|false (BETA - default=false)",
            ),
        ] {
            assert_eq!(features(&[given]), Err(why.to_owned()), "{given}");
        }
    }

    proptest! {
        /// Any text is parsed or rejected, and a parsed value survives formatting.
        #[test]
        fn any_text_is_read_or_refused(text in "([A-Za-z]{0,12}|HPAScaleToZero|AllAlpha|AllBeta|MaxUnavailableStatefulSet|[,= \\PC]|true|false|1|F){0,12}") {
            if let Ok(settings) = text.parse::<GateSettings>() {
                let features = Features::of(&[settings]);
                let again: GateSettings = features.to_string().parse().unwrap();
                prop_assert_eq!(Features::of(&[again]), features);
            }
        }

        /// The parser agrees with a model on texts that are well formed.
        #[test]
        fn the_last_of_a_name_counts(pairs in prop::collection::vec((0..GATES.len(), any::<bool>()), 0..8), cut in 0..8usize) {
            let text: Vec<String> = pairs.iter().map(|(at, on)| format!("{}={on}", GATES[*at].name)).collect();
            let (first, second) = text.split_at(cut.min(text.len()));
            let settings = [first.join(","), second.join(",")].map(|text| text.parse::<GateSettings>().unwrap());
            let wanted = pairs.iter().fold(Features::default(), |all, (at, on)| all.with(GATES[*at].feature, *on));
            prop_assert_eq!(Features::of(&settings), wanted);
        }
    }
}

//! Parser of `kubescheduler.config.k8s.io/v1` files: profiles, their plugins and plugin arguments. Pure. Errors have
//! upstream's text.

mod args;
mod errors;
mod extenders;
mod fields;
mod profiles;
mod wasm;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use self::errors::{Errors, Path};
use crate::extender::ExtenderConfig;
use crate::plugins::Profile;
use crate::queue::BackOff;

/// The maximum size of a file in bytes.
const SIZE_MAX: usize = 1 << 20;
/// The maximum number of profiles in a file: each decision searches its profile linearly.
const PROFILES_MAX: usize = 256;

const API_VERSION: &str = "kubescheduler.config.k8s.io/v1";
const KIND: &str = "KubeSchedulerConfiguration";

/// A parsed configuration file.
#[derive(Debug, Clone)]
pub struct Configuration {
    /// One profile per `schedulerName`.
    pub profiles: Vec<Profile>,
    /// The back-off of a pod after a failure.
    pub back_off: BackOff,
    /// The extenders, in order.
    pub extenders: Vec<ExtenderConfig>,
    /// Fields of upstream's own process (threads, connections, election), which have no effect here.
    pub of_process: Vec<&'static str>,
}

impl Default for Configuration {
    /// Upstream's default profile.
    fn default() -> Self {
        let profiles = vec![Profile::default()];
        Self { profiles, back_off: BackOff::default(), extenders: Vec::new(), of_process: Vec::new() }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    percentage_of_nodes_to_score: Option<i32>,
    pod_initial_backoff_seconds: Option<i64>,
    pod_max_backoff_seconds: Option<i64>,
    parallelism: Option<i32>,
    #[serde(default)]
    profiles: Option<Vec<profiles::ProfileFile>>,
    #[serde(default)]
    extenders: Option<Vec<extenders::ExtenderFile>>,
}

impl Configuration {
    /// Parses a file.
    ///
    /// # Errors
    /// With upstream's text.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > SIZE_MAX {
            return Err(format!("the file is larger than {SIZE_MAX} bytes"));
        }
        let value: Value = machinery_api::yaml::read(text)?;
        Self::of(&value)
    }

    /// Reads the value of a parsed file.
    ///
    /// # Errors
    /// With upstream's text.
    pub fn of(value: &Value) -> Result<Self, String> {
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
        let (version, kind) = (text("apiVersion"), text("kind"));
        if kind.is_empty() {
            return Err("Object 'Kind' is missing".into());
        }
        if (version, kind) != (API_VERSION, KIND) {
            return Err(format!("no kind {kind:?} is registered for version {version:?}"));
        }
        let unknown = fields::unknown(value, fields::FILE);
        if !unknown.is_empty() {
            return Err(format!("strict decoding error: {}", unknown.join(", ")));
        }
        let file: File = serde_json::from_value(value.clone()).map_err(|error| error.to_string())?;
        let mut errors = Errors::default();
        let back_off = file.back_off(&mut errors);
        let given = file.profiles.filter(|profiles| !profiles.is_empty()).unwrap_or_else(|| vec![<_>::default()]);
        if given.len() > PROFILES_MAX {
            return Err(format!("profiles: Too many: {}: must have at most {PROFILES_MAX} items", given.len()));
        }
        let percentage = file.percentage_of_nodes_to_score;
        errors.percentage(&Path::new("percentageOfNodesToScore"), percentage);
        let mut profile_args = profiles::check(&given, &mut errors);
        let (extenders, ignored) = extenders::read(file.extenders.unwrap_or_default(), &mut errors);
        errors.end()?;
        // As upstream: this replaces the profile's own setting.
        for profile_args in profile_args.iter_mut().filter(|_| !ignored.is_empty()) {
            profile_args.args.ignored_resources.clone_from(&ignored);
        }
        let made = given.iter().zip(profile_args).map(|(profile, profile_args)| profile.made(profile_args, percentage));
        let profiles =
            made.collect::<Result<Vec<_>, String>>().map_err(|error| format!("initializing profiles: {error}"))?;
        Profile::queue_sort(&profiles).map_err(|error| format!("initializing profiles: {error}"))?;
        let of_process = fields::OF_PROCESS.iter().copied().filter(|field| value.get(field).is_some()).collect();
        Ok(Self { profiles, back_off, extenders, of_process })
    }
}

impl File {
    fn back_off(&self, errors: &mut Errors) -> BackOff {
        let (initial, max) =
            (self.pod_initial_backoff_seconds.unwrap_or(1), self.pod_max_backoff_seconds.unwrap_or(10));
        if self.parallelism.is_some_and(|parallelism| parallelism <= 0) {
            let why = "should be an integer value greater than zero";
            errors.invalid(&Path::new("parallelism"), self.parallelism.unwrap_or(0), why);
        }
        if initial <= 0 {
            errors.invalid(&Path::new("podInitialBackoffSeconds"), initial, "must be greater than 0");
        }
        if max < initial {
            let why = "must be greater than or equal to PodInitialBackoffSeconds";
            errors.invalid(&Path::new("podMaxBackoffSeconds"), max, why);
        }
        let seconds = |seconds: i64| Duration::from_secs(u64::try_from(seconds.min(1 << 31)).unwrap_or(0));
        BackOff { initial: seconds(initial), max: seconds(max) }
    }
}

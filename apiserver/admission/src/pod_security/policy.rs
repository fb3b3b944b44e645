//! Parses the Pod Security labels of a namespace, as upstream does.

use std::fmt;

use apiserver_resources::field::{ErrorList, Path};
use serde_json::Value;

/// How strict a standard is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// The version of a standard: a minor version of Kubernetes, or the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    Minor(i64),
    Latest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standard {
    pub(super) level: Level,
    pub(super) version: Version,
}

/// The standards of a namespace's three modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) enforce: Standard,
    pub(super) audit: Standard,
    pub(super) warn: Standard,
}

const LATEST_PRIVILEGED: Standard = Standard { level: Level::Privileged, version: Version::Latest };

/// The policy of a namespace without labels and without configured defaults.
pub(super) const DEFAULT: Policy =
    Policy { enforce: LATEST_PRIVILEGED, audit: LATEST_PRIVILEGED, warn: LATEST_PRIVILEGED };

impl Policy {
    /// Whether no mode restricts anything.
    pub(super) fn is_privileged(&self) -> bool {
        [self.enforce, self.audit, self.warn].iter().all(|standard| standard.level == Level::Privileged)
    }
}

impl fmt::Display for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.level {
            Level::Privileged => "privileged:",
            Level::Baseline => "baseline:",
            Level::Restricted => "restricted:",
        })?;
        match self.version {
            Version::Latest => f.write_str("latest"),
            Version::Minor(minor) => write!(f, "v1.{minor}"),
        }
    }
}

pub(super) const LEVELS: &str = "must be one of privileged, baseline, restricted";
pub(super) const VERSIONS: &str = "must be \"latest\" or \"v1.x\"";

pub(super) fn level(text: &str) -> Option<Level> {
    match text {
        "privileged" => Some(Level::Privileged),
        "baseline" => Some(Level::Baseline),
        "restricted" => Some(Level::Restricted),
        _ => None,
    }
}

pub(super) fn version(text: &str) -> Option<Version> {
    if text == "latest" {
        return Some(Version::Latest);
    }
    let digits = text.strip_prefix("v1.")?;
    let canonical = digits == "0" || !digits.starts_with('0');
    let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| canonical && all_digits).map(Version::Minor)
}

/// The labels of one namespace, and the errors found in them.
struct Labels<'a> {
    labels: &'a Value,
    errors: ErrorList,
}

impl Labels<'_> {
    /// Parses a label; `Some(None)` means an unknown value.
    fn read<T>(&mut self, label: &str, parse: fn(&str) -> Option<T>, wanted: &str) -> Option<Option<T>> {
        let label = format!("pod-security.kubernetes.io/{label}");
        let text = self.labels.get(&label)?.as_str()?;
        let parsed = parse(text);
        if parsed.is_none() {
            let labels = Path::root("metadata");
            let labels = labels.child("labels");
            self.errors.invalid(&labels.key(&label), text, wanted);
        }
        Some(parsed)
    }

    fn level(&mut self, label: &str) -> Option<Option<Level>> {
        self.read(label, level, LEVELS)
    }

    /// An unknown version selects the newest.
    fn version(&mut self, label: &str) -> Option<Version> {
        self.read(label, version, VERSIONS).map(|version| version.unwrap_or(Version::Latest))
    }
}

/// Returns a namespace's policy, based on the defaults, and its errors. With an invalid level, `enforce` is the
/// strictest standard, and `audit` and `warn` are privileged.
pub(super) fn of_namespace(namespace: &Value, defaults: Policy) -> (Policy, ErrorList) {
    let labels = &namespace["metadata"]["labels"];
    let mut policy = defaults;
    if labels.as_object().is_none_or(serde_json::Map::is_empty) {
        return (policy, ErrorList::new());
    }
    let mut labels = Labels { labels, errors: ErrorList::new() };
    let enforced = labels.level("enforce");
    if let Some(level) = enforced {
        policy.enforce.level = level.unwrap_or(Level::Restricted);
    }
    policy.enforce.version = labels.version("enforce-version").unwrap_or(policy.enforce.version);
    if let Some(level) = labels.level("audit") {
        policy.audit.level = level.unwrap_or(Level::Privileged);
    }
    policy.audit.version = labels.version("audit-version").unwrap_or(policy.audit.version);
    let warned = labels.level("warn");
    if let Some(level) = warned {
        policy.warn.level = level.unwrap_or(Level::Privileged);
    }
    let warned_version = labels.version("warn-version");
    policy.warn.version = warned_version.unwrap_or(policy.warn.version);
    // Without a `warn` label, warnings follow the enforced standard if that is stricter.
    if warned.is_none() && enforced.flatten().is_some_and(|enforced| enforced > policy.warn.level) {
        policy.warn.level = policy.enforce.level;
        if warned_version.is_none() {
            policy.warn.version = policy.enforce.version;
        }
    }
    (policy, labels.errors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(labels: &[(&str, &str)]) -> (String, usize) {
        let labels: serde_json::Map<String, Value> =
            labels.iter().map(|(key, value)| (format!("pod-security.kubernetes.io/{key}"), json!(value))).collect();
        let (policy, errors) = of_namespace(&json!({"metadata": {"labels": labels}}), DEFAULT);
        (format!("{} {} {}", policy.enforce, policy.audit, policy.warn), errors.count())
    }

    /// Labels, the expected policy, and the expected number of errors.
    type Row = (&'static [(&'static str, &'static str)], &'static str, usize);

    #[test]
    fn labels_are_read_as_upstream_reads_them() {
        let rows: &[Row] = &[
            (&[], "privileged:latest privileged:latest privileged:latest", 0),
            (&[("enforce", "baseline")], "baseline:latest privileged:latest baseline:latest", 0),
            (
                &[("enforce", "restricted"), ("enforce-version", "v1.20")],
                "restricted:v1.20 privileged:latest restricted:v1.20",
                0,
            ),
            (
                &[("enforce", "baseline"), ("enforce-version", "v1.20"), ("warn-version", "v1.9")],
                "baseline:v1.20 privileged:latest baseline:v1.9",
                0,
            ),
            (
                &[("enforce", "restricted"), ("warn", "privileged")],
                "restricted:latest privileged:latest privileged:latest",
                0,
            ),
            (&[("enforce", "sometimes")], "restricted:latest privileged:latest privileged:latest", 1),
            (&[("warn", "low"), ("audit-version", "v0.1")], "privileged:latest privileged:latest privileged:latest", 2),
            (
                &[("enforce", "baseline"), ("enforce-version", "v1.01")],
                "baseline:latest privileged:latest baseline:latest",
                1,
            ),
            (
                &[("audit-version", "v1.99999999999999999999")],
                "privileged:latest privileged:latest privileged:latest",
                1,
            ),
            (&[("audit-version", "v1.+1")], "privileged:latest privileged:latest privileged:latest", 1),
        ];
        for (labels, policy, errors) in rows {
            assert_eq!(read(labels), ((*policy).to_owned(), *errors), "{labels:?}");
        }
    }
}

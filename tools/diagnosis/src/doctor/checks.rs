//! The table of checks.

use serde::Serialize;

use super::facts::Facts;
use super::{clock, folder, machine, tools};

/// A check: its name, and the function from facts to its result.
pub(crate) struct Check {
    /// In the output and in the table of docs/operations.md.
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Facts) -> CheckResult,
}

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum CheckResult {
    /// All is well: the state in a few words.
    Passed(String),
    /// This system doesn't report what the check needs, or has no such limit: why.
    NotApplicable(String),
    Findings(Vec<Finding>),
}

impl CheckResult {
    pub(super) fn not_applicable(why: &str) -> Self {
        Self::NotApplicable(why.to_owned())
    }

    /// The findings, or `passed` if there are none.
    pub(super) fn of(findings: Vec<Finding>, passed: impl FnOnce() -> String) -> Self {
        if findings.is_empty() { Self::Passed(passed()) } else { Self::Findings(findings) }
    }
}

/// A fault or a risk, with the command that fixes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Finding {
    pub(crate) level: Level,
    pub(crate) message: String,
    /// The command that fixes it.
    pub(crate) fix: String,
}

impl Finding {
    pub(super) fn new(level: Level, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { level, message: message.into(), fix: fix.into() }
    }
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Level {
    /// Worth knowing.
    Info,
    /// A cluster works, with restrictions.
    Warning,
    /// A cluster doesn't start, or loses data or pods.
    Error,
}

/// All checks, in the order of the output.
pub(crate) const CHECKS: &[Check] = &[
    Check { name: "open-files", run: machine::open_files },
    Check { name: "api-port", run: machine::api_port },
    Check { name: "http-port", run: machine::http_port },
    Check { name: "instance-pool", run: machine::instance_pool },
    Check { name: "memory-limit", run: machine::memory_limit },
    Check { name: "address-blocks", run: machine::address_blocks },
    Check { name: "clock", run: clock::clock },
    Check { name: "clock-sync", run: clock::clock_sync },
    Check { name: "disk", run: folder::disk },
    Check { name: "permissions", run: folder::permissions },
    Check { name: "certificates", run: folder::certificates },
    Check { name: "sockets", run: folder::sockets },
    Check { name: "kubeconfig", run: tools::kubeconfig },
    Check { name: "kubectl", run: tools::kubectl },
];

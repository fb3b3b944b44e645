//! Checks of the clock: certificates, tokens and Leases depend on it. Pure.

use super::checks::{CheckResult, Finding, Level};
use super::facts::Facts;

/// Difference from the API server from which on Leases and tokens suffer; the header `Date` counts whole seconds.
const SKEW_WARNING_SECONDS: i64 = 5;
/// Difference from which on tokens and new certificates are refused: certificates begin five minutes early, tokens don't.
const SKEW_ERROR_SECONDS: i64 = 60;
/// The command that sets the clock.
const SET_CLOCK: &str = if cfg!(target_os = "linux") {
    "sudo timedatectl set-ntp true (or start chronyd, ntpd)"
} else if cfg!(target_os = "macos") {
    "sudo sntp -sS time.apple.com"
} else {
    "w32tm /resync"
};

pub(super) fn clock(facts: &Facts) -> CheckResult {
    let now = facts.clock.now;
    let mut findings = Vec::new();
    if let Some(built) = facts.clock.built_at.filter(|built| now < *built) {
        let message = format!("the clock says {now}, and this program was made at {built}");
        findings.push(Finding::new(Level::Error, message, SET_CLOCK));
    }
    if let Some(since) = facts.clock.authority_since.filter(|since| now < *since) {
        let message = format!("the clock says {now}, and the cluster's certificates are valid from {since}");
        findings.push(Finding::new(Level::Error, message, SET_CLOCK));
    }
    let skew = facts.clock.server_time.map(|server| now.as_second().saturating_sub(server.as_second()));
    if let Some(skew) = skew.filter(|skew| skew.saturating_abs() > SKEW_WARNING_SECONDS) {
        let level = if skew.saturating_abs() > SKEW_ERROR_SECONDS { Level::Error } else { Level::Warning };
        let direction = if skew > 0 { "ahead of" } else { "behind" };
        let message = format!("the clock is {} s {direction} the API server's", skew.saturating_abs());
        findings.push(Finding::new(level, message, SET_CLOCK));
    }
    if findings.is_empty() && facts.clock.built_at.is_none() && facts.clock.authority_since.is_none() && skew.is_none()
    {
        return CheckResult::not_applicable("there is no time to compare the clock with");
    }
    CheckResult::of(findings, || match skew {
        Some(_) => "it agrees with the API server's".to_owned(),
        None => format!("{now} is plausible"),
    })
}

pub(super) fn clock_sync(facts: &Facts) -> CheckResult {
    match facts.clock.synchronized {
        None => CheckResult::not_applicable("this system doesn't report it"),
        Some(true) => CheckResult::Passed("a time service keeps the clock".to_owned()),
        Some(false) => CheckResult::Findings(vec![Finding::new(
            Level::Warning,
            "the kernel reports that no time service keeps the clock: with several machines, Leases and tokens fail once \
             the clocks differ",
            SET_CLOCK,
        )]),
    }
}

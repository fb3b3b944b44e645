//! The results of all checks as data and as text. Pure.

use std::fmt::Write as _;

use serde::Serialize;

use super::checks::{CHECKS, CheckResult, Finding, Level};
use super::facts::Facts;
use tools_command::output::plain;

/// Width of the column of names.
const NAME_WIDTH: usize = 16;

/// The results in the order of the table. `--output json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DoctorReport {
    /// Whether there are no errors.
    pub(crate) healthy: bool,
    pub(crate) checks: Vec<CheckReport>,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CheckReport {
    pub(crate) check: &'static str,
    pub(crate) result: CheckResult,
}

impl DoctorReport {
    /// Runs all checks.
    pub(crate) fn of(facts: &Facts) -> Self {
        let checks = CHECKS.iter().map(|check| CheckReport { check: check.name, result: (check.run)(facts) });
        let mut report = Self { healthy: false, checks: checks.collect() };
        let healthy = report.errors().next().is_none();
        report.healthy = healthy;
        report
    }

    /// The findings that keep a cluster from running.
    pub(crate) fn errors(&self) -> impl Iterator<Item = &Finding> {
        self.findings().filter(|finding| finding.level == Level::Error)
    }

    fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.checks.iter().flat_map(|check| match &check.result {
            CheckResult::Findings(findings) => findings.as_slice(),
            CheckResult::Passed(_) | CheckResult::NotApplicable(_) => &[],
        })
    }

    /// The text for people.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string doesn't fail.
        for CheckReport { check, result } in &self.checks {
            let _ = match result {
                CheckResult::Passed(what) => writeln!(text, "ok       {check:<NAME_WIDTH$} {what}"),
                CheckResult::NotApplicable(why) => writeln!(text, "n/a      {check:<NAME_WIDTH$} {why}"),
                CheckResult::Findings(findings) => {
                    findings.iter().for_each(|finding| text.push_str(&finding_text(check, finding)));
                    Ok(())
                }
            };
        }
        let count = |level: Level| self.findings().filter(|finding| finding.level == level).count();
        let _ = writeln!(text, "\n{} errors, {} warnings", count(Level::Error), count(Level::Warning));
        plain(&text)
    }
}

fn finding_text(check: &str, finding: &Finding) -> String {
    let level = match finding.level {
        Level::Info => "info",
        Level::Warning => "warning",
        Level::Error => "error",
    };
    format!("{level:<8} {check:<NAME_WIDTH$} {}\n{:9}{:<NAME_WIDTH$} fix: {}\n", finding.message, "", "", finding.fix)
}

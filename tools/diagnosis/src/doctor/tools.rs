//! Checks of kubectl and its configuration. Pure.

use apiserver_catalog::discovery::VERSION as KUBERNETES;

use super::checks::{CheckResult, Finding, Level};
use super::facts::{Facts, Kubectl};
use crate::inspection::shell_quoted;

/// kubectl works with servers of the same minor version and one above and below (upstream's version skew policy).
const SKEW_MAX: u32 = 1;

pub(super) fn kubeconfig(facts: &Facts) -> CheckResult {
    let Some(own) = &facts.tools.kubeconfig else {
        return CheckResult::not_applicable("the data folder has no kubeconfig yet");
    };
    let set = &facts.tools.kubeconfig_variable;
    if set.contains(own) {
        return CheckResult::Passed("KUBECONFIG names this cluster's".to_owned());
    }
    let fix = format!("export KUBECONFIG={}", shell_quoted(&own.display().to_string()));
    let finding = match set.first() {
        Some(other) => {
            let message = format!("KUBECONFIG names {}, which is not this cluster's", other.display());
            Finding::new(Level::Warning, message, fix)
        }
        None => Finding::new(Level::Info, "KUBECONFIG is not set: kubectl uses ~/.kube/config", fix),
    };
    CheckResult::Findings(vec![finding])
}

pub(super) fn kubectl(facts: &Facts) -> CheckResult {
    match &facts.tools.kubectl {
        Kubectl::Absent => CheckResult::not_applicable("kubectl is not on PATH"),
        Kubectl::Failed(why) => CheckResult::Findings(vec![Finding::new(
            Level::Warning,
            format!("kubectl does not report its version: {why}"),
            "kubectl version --client",
        )]),
        Kubectl::Version(version) => match (minor(version), minor(KUBERNETES)) {
            (Some(client), Some(server)) if client.abs_diff(server) > SKEW_MAX => {
                CheckResult::Findings(vec![Finding::new(
                    Level::Warning,
                    format!("kubectl is {version}, and the cluster's API is {KUBERNETES}"),
                    format!("install kubectl v1.{server}"),
                )])
            }
            _ => CheckResult::Passed(format!("kubectl {version}")),
        },
    }
}

/// The minor version in `v1.36.0`.
fn minor(version: &str) -> Option<u32> {
    let mut numbers = version.strip_prefix('v')?.split('.');
    numbers.next().filter(|major| *major == "1")?;
    numbers.next()?.parse().ok()
}

//! Warns when a namespace's new `enforce` rules do not hold for its existing pods. Those pods continue to run.

use std::time::Duration;

use machinery_api::imports::ImportRules;
use machinery_api::names::IMPORTS;
use serde_json::Value;

use super::Context;
use super::containers::containers;

/// The maximum number of pods checked, and the maximum time spent on them.
const PODS_MAX: usize = 3000;
const TIME_MAX: Duration = Duration::from_secs(1);
/// The number of pods after which the check yields to the runtime.
const PODS_PER_YIELD: usize = 32;

/// Whether the imports noted for every container of the pod are allowed by the rules. A container without a note counts
/// as a violation.
fn complies(pod: &Value, rules: &ImportRules) -> bool {
    let notes = &pod["metadata"]["annotations"];
    containers(&pod["spec"]).all(|container| {
        let held = notes.get(format!("{IMPORTS}{}", container.name)).and_then(Value::as_str);
        held.and_then(|held| ImportRules::parse(held).ok()).is_some_and(|held| rules.allows_all(&held))
    })
}

/// Returns the warning if such pods exist.
pub(super) async fn warning(context: &Context<'_>, namespace: &str, rules: &ImportRules) -> Option<String> {
    let mut names = Vec::new();
    context.objects.each("", "pods", Some(namespace), None, &mut |_, name, _| names.push(name.to_owned()));
    let started = context.env.elapsed();
    let (mut first, mut count) = (None, 0_usize);
    for (at, name) in names.iter().take(PODS_MAX).enumerate() {
        if at % PODS_PER_YIELD == PODS_PER_YIELD - 1 {
            tokio::task::yield_now().await;
        }
        if context.env.elapsed().saturating_sub(started) >= TIME_MAX {
            break;
        }
        let pod = context.objects.get_uncached("", "pods", namespace, name);
        if pod.is_some_and(|pod| !complies(&pod, rules)) {
            first = first.or(Some(name));
            count += 1;
        }
    }
    let others = match count {
        0 | 1 => String::new(),
        2 => " (and 1 other pod)".to_owned(),
        _ => format!(" (and {} other pods)", count - 1),
    };
    let first = first?;
    Some(format!(
        "existing pods in namespace {namespace:?} are not held to the new {IMPORTS}enforce, and run on: {first}{others}"
    ))
}

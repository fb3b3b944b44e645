//! Pods that were admitted before their namespace asked what it asks now: they run on, and who changes the namespace is told.

use std::time::Duration;

use machinery_api::imports::ImportRules;
use machinery_api::names::IMPORTS;
use serde_json::Value;

use super::Context;
use super::containers::containers;

/// Pods that are looked at, and how long that may take.
const PODS_MAX: usize = 3000;
const TIME_MAX: Duration = Duration::from_secs(1);
/// Others have their turn after so many.
const PODS_PER_TURN: usize = 32;

/// Whether a pod is known to keep to the rules: every container is held to imports that they allow.
fn keeps(pod: &Value, rules: &ImportRules) -> bool {
    let notes = &pod["metadata"]["annotations"];
    containers(&pod["spec"]).all(|container| {
        let held = notes.get(format!("{IMPORTS}{}", container.name)).and_then(Value::as_str);
        held.and_then(|held| ImportRules::parse(held).ok()).is_some_and(|held| rules.allows_all(&held))
    })
}

/// The warning, where there are such pods.
pub(super) async fn warning(context: &Context<'_>, namespace: &str, rules: &ImportRules) -> Option<String> {
    let mut names = Vec::new();
    context.objects.each("", "pods", Some(namespace), None, &mut |_, name, _| names.push(name.to_owned()));
    let begun = context.env.elapsed();
    let (mut first, mut count) = (None, 0_usize);
    for (at, name) in names.iter().take(PODS_MAX).enumerate() {
        if at % PODS_PER_TURN == PODS_PER_TURN - 1 {
            tokio::task::yield_now().await;
        }
        if context.env.elapsed().saturating_sub(begun) >= TIME_MAX {
            break;
        }
        let pod = context.objects.read_once("", "pods", namespace, name);
        if pod.is_some_and(|pod| !keeps(&pod, rules)) {
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

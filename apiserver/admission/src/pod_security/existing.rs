//! Warns about existing pods that violate a namespace's new standard. One pod of each controller is checked first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use machinery_env::Env;
use serde_json::Value;

use super::checks::{reasons, violations};
use super::configuration::Configuration;
use super::pod::{Pod, text};
use super::policy::Standard;
use apiserver_resources::field::quoted;
use apiserver_resources::objects::ObjectReader;

/// The maximum number of pods checked.
const PODS_MAX: usize = 3000;
/// The maximum time spent.
const TIME_MAX: Duration = Duration::from_secs(1);
/// The number of pods after which the check yields to the runtime.
const PODS_PER_YIELD: usize = 32;

/// Pods by the reasons of their violations: the first name, and the count.
#[derive(Default)]
struct ViolationSummary(BTreeMap<String, (String, usize)>);

impl ViolationSummary {
    fn add(&mut self, standard: Standard, pod: &Value) {
        let found = violations(standard, Pod::of(pod));
        if found.is_empty() {
            return;
        }
        let name = text(&pod["metadata"]["name"]);
        let (first, count) = self.0.entry(reasons(&found)).or_insert_with(|| (name.to_owned(), 0));
        *count += 1;
        if name < first.as_str() {
            name.clone_into(first);
        }
    }

    fn warnings(self, namespace: &str, standard: Standard, checked: usize, all: usize) -> Vec<String> {
        let mut warnings = Vec::new();
        if checked < all {
            warnings.push(format!(
                "new PodSecurity enforce level only checked against the first {checked} of {all} existing pods"
            ));
        }
        if !self.0.is_empty() {
            warnings.push(format!(
                "existing pods in namespace {} violate the new PodSecurity enforce level \"{standard}\"",
                quoted(namespace)
            ));
        }
        let mut each: Vec<String> = self
            .0
            .into_iter()
            .map(|(reasons, (name, count))| match count {
                1 => format!("{name}: {reasons}"),
                2 => format!("{name} (and 1 other pod): {reasons}"),
                _ => format!("{name} (and {} other pods): {reasons}", count - 1),
            })
            .collect();
        each.sort();
        warnings.extend(each);
        warnings
    }
}

fn controller(pod: &Value) -> Option<&str> {
    let owners = pod["metadata"]["ownerReferences"].as_array()?;
    owners.iter().find(|owner| owner["controller"] == true)?["uid"].as_str()
}

/// Checks the namespace's pods and returns the warnings.
pub(super) async fn warnings(
    objects: &dyn ObjectReader,
    env: &Env,
    (namespace, configuration): (&str, &Configuration),
    standard: Standard,
) -> Vec<String> {
    let mut names = Vec::new();
    objects.each("", "pods", Some(namespace), None, &mut |_, name, _| names.push(name.to_owned()));
    let started = env.elapsed();
    let timed_out = || env.elapsed().saturating_sub(started) >= TIME_MAX;
    let (mut found, mut checked, mut controllers) = (ViolationSummary::default(), 0, BTreeSet::new());
    // Pods of one controller are alike, so the remaining ones are checked last.
    let mut others: Vec<Arc<Value>> = Vec::new();
    for (at, name) in names.iter().enumerate() {
        if at % PODS_PER_YIELD == PODS_PER_YIELD - 1 {
            tokio::task::yield_now().await;
        }
        if checked >= PODS_MAX || timed_out() {
            break;
        }
        let Some(pod) = objects.get_uncached("", "pods", namespace, name) else { continue };
        if configuration.exempts_class(&pod) {
            continue;
        }
        if let Some(owner) = controller(&pod)
            && !controllers.insert(owner.to_owned())
        {
            if others.len() < PODS_MAX {
                others.push(pod);
            }
            continue;
        }
        found.add(standard, &pod);
        checked += 1;
    }
    for (at, pod) in others.iter().enumerate() {
        if at % PODS_PER_YIELD == PODS_PER_YIELD - 1 {
            tokio::task::yield_now().await;
        }
        if checked >= PODS_MAX || timed_out() {
            break;
        }
        found.add(standard, pod);
        checked += 1;
    }
    found.warnings(namespace, standard, checked, names.len())
}

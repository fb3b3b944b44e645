//! What a namespace's pods do that its new standard forbids: told as warnings, some pods of each controller first.

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

/// Pods that are looked at.
const PODS_MAX: usize = 3000;
/// How long that may take.
const TIME_MAX: Duration = Duration::from_secs(1);
/// Others have their turn after so many.
const PODS_PER_TURN: usize = 32;

/// Names by what they violate: the first name, and how many there are.
#[derive(Default)]
struct Found(BTreeMap<String, (String, usize)>);

impl Found {
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

/// The warnings.
pub(super) async fn warnings(
    objects: &dyn ObjectReader,
    env: &Env,
    (namespace, configuration): (&str, &Configuration),
    standard: Standard,
) -> Vec<String> {
    let mut names = Vec::new();
    objects.each("", "pods", Some(namespace), None, &mut |_, name, _| names.push(name.to_owned()));
    let begun = env.elapsed();
    let late = || env.elapsed().saturating_sub(begun) >= TIME_MAX;
    let (mut found, mut checked, mut controllers) = (Found::default(), 0, BTreeSet::new());
    // Pods of a controller are alike: the others come last.
    let mut others: Vec<Arc<Value>> = Vec::new();
    for (at, name) in names.iter().enumerate() {
        if at % PODS_PER_TURN == PODS_PER_TURN - 1 {
            tokio::task::yield_now().await;
        }
        if checked >= PODS_MAX || late() {
            break;
        }
        let Some(pod) = objects.read_once("", "pods", namespace, name) else { continue };
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
        if at % PODS_PER_TURN == PODS_PER_TURN - 1 {
            tokio::task::yield_now().await;
        }
        if checked >= PODS_MAX || late() {
            break;
        }
        found.add(standard, pod);
        checked += 1;
    }
    found.warnings(namespace, standard, checked, names.len())
}

//! `clusterrole-aggregation-controller`: ClusterRoles whose rules are aggregated from others.

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use machinery_api::ObjectKey;
use machinery_client::selector::selects;
use machinery_client::{Action, BackOff, Change, Context, Controller, Input, ObjectCache, Plan, key_of};

use crate::Settings;

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "clusterrole-aggregation-controller",
    account: "clusterrole-aggregation-controller",
    workers: 1,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<ClusterRole>(aggregated)],
    reconcile,
};

/// The role, and every role that aggregates or aggregated it.
fn aggregated(view: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let mut keys = vec![(*change.key).clone()];
    for role in view.all::<ClusterRole>() {
        let selectors = role.aggregation_rule.iter().flat_map(|r| r.cluster_role_selectors.iter().flatten());
        let takes = |s| change.states().any(|state| selects(s, state.labels.as_ref()));
        if selectors.into_iter().any(takes) {
            keys.push(key_of(&role.metadata));
        }
    }
    keys
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, _: &Context<'_, Settings>) -> Plan {
    let Some(role) = view.get::<ClusterRole>(key) else { return Plan::nothing() };
    let Some(aggregation) = &role.aggregation_rule else { return Plan::nothing() };
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in aggregation.cluster_role_selectors.iter().flatten() {
        let others = view.all::<ClusterRole>().filter(|other| other.metadata.name != role.metadata.name);
        for part in others.filter(|other| selects(selector, other.metadata.labels.as_ref())) {
            for rule in part.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    if role.rules.as_deref().unwrap_or_default() == rules {
        return Plan::nothing();
    }
    vec![Action::update(&ClusterRole { rules: Some(rules), ..role.clone() })].into()
}

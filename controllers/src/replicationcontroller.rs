//! `replicationcontroller-controller`: reconciles ReplicationControllers like ReplicaSets.

use std::borrow::Cow;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    ReplicationController, ReplicationControllerCondition, ReplicationControllerSpec, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use machinery_client::driver::own_key;
use machinery_client::selector::{Labels, contains};
use machinery_client::{BackOff, Controller, Input, Pod};

use crate::Settings;
use crate::replicaset::{Replicated, of_pod, reconcile};

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "replicationcontroller-controller",
    account: "replication-controller",
    workers: 5,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<ReplicationController>(own_key), Input::of::<Pod>(of_pod::<ReplicationController>)],
    reconcile: reconcile::<ReplicationController>,
};

impl Replicated for ReplicationController {
    const SOURCE: Option<&'static str> = Some("replication-controller");
    const COUNTS_TERMINATING: bool = false;

    fn as_set(&self) -> Option<Cow<'_, ReplicaSet>> {
        let spec = self.spec.as_ref()?;
        let set = ReplicaSet {
            metadata: self.metadata.clone(),
            spec: Some(ReplicaSetSpec {
                replicas: spec.replicas,
                min_ready_seconds: spec.min_ready_seconds,
                selector: LabelSelector { match_labels: spec.selector.clone(), match_expressions: None },
                template: spec.template.clone(),
            }),
            status: self.status.as_ref().map(status_of_set),
        };
        Some(Cow::Owned(set))
    }

    fn chooses(&self, labels: Option<&Labels>) -> bool {
        // Without a selector, which the API server rejects, it matches nothing.
        selector(self.spec.as_ref()).is_some_and(|selector| contains(labels, selector))
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        Self { status: Some(own_status(status)), ..self.clone() }
    }
}

fn selector(spec: Option<&ReplicationControllerSpec>) -> Option<&Labels> {
    spec?.selector.as_ref().filter(|selector| !selector.is_empty())
}

fn status_of_set(status: &ReplicationControllerStatus) -> ReplicaSetStatus {
    let condition = |c: &ReplicationControllerCondition| ReplicaSetCondition {
        type_: c.type_.clone(),
        status: c.status.clone(),
        reason: c.reason.clone(),
        message: c.message.clone(),
        last_transition_time: c.last_transition_time.clone(),
    };
    ReplicaSetStatus {
        replicas: status.replicas,
        fully_labeled_replicas: status.fully_labeled_replicas,
        ready_replicas: status.ready_replicas,
        available_replicas: status.available_replicas,
        terminating_replicas: None,
        observed_generation: status.observed_generation,
        conditions: status.conditions.as_ref().map(|all| all.iter().map(condition).collect()),
    }
}

fn own_status(status: ReplicaSetStatus) -> ReplicationControllerStatus {
    let condition = |c: ReplicaSetCondition| ReplicationControllerCondition {
        type_: c.type_,
        status: c.status,
        reason: c.reason,
        message: c.message,
        last_transition_time: c.last_transition_time,
    };
    ReplicationControllerStatus {
        replicas: status.replicas,
        fully_labeled_replicas: status.fully_labeled_replicas,
        ready_replicas: status.ready_replicas,
        available_replicas: status.available_replicas,
        observed_generation: status.observed_generation,
        conditions: status.conditions.map(|all| all.into_iter().map(condition).collect()),
    }
}

#[cfg(test)]
mod tests {
    use machinery_api::ObjectKey;
    use machinery_client::Action;
    use serde_json::{Value, json};

    use super::*;
    use crate::table_tests::{decide, settle, start};

    fn controller() -> Value {
        json!({"apiVersion": "v1", "kind": "ReplicationController",
            "metadata": {"name": "web", "namespace": "a", "uid": "rc", "generation": 1},
            "spec": {"replicas": 2, "selector": {"app": "web"},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
    }

    fn pod(name: &str, app: &str, owner: Option<&str>) -> Value {
        let owners: Vec<Value> = owner
            .map(|uid| json!({"apiVersion": "v1", "kind": "ReplicationController", "name": "web", "uid": uid, "controller": true}))
            .into_iter()
            .collect();
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "a", "uid": name, "labels": {"app": app}, "ownerReferences": owners},
            "spec": {"containers": [{"name": "c", "image": "i"}]}, "status": {"phase": "Running"}})
    }

    #[test]
    fn it_adopts_releases_and_creates_pods_with_its_own_events() {
        let objects = [controller(), pod("orphan", "web", None), pod("strange", "other", Some("rc"))];
        let mut simulation = crate::simulation(start(), objects);
        let key = ObjectKey::new("a", "web");
        let plan = decide("replicationcontroller-controller", &simulation, &key);
        let Some(Action::Reporting { tried, .. }) = plan.actions.last() else { panic!("{:?}", plan.actions) };
        let Action::SlowStart(creates) = &**tried else { panic!("{tried:?}") };
        let [Action::Create { object, notes, .. }] = creates.as_slice() else { panic!("{creates:?}") };
        let owner = &object["metadata"]["ownerReferences"][0];
        assert_eq!((&owner["apiVersion"], &owner["kind"]), (&json!("v1"), &json!("ReplicationController")));
        assert_eq!(notes.done.as_ref().and_then(|event| event.source), Some("replication-controller"));
        settle(&mut simulation);
        let status = simulation.view.get::<ReplicationController>(&key).unwrap().status.clone().unwrap();
        assert_eq!((status.replicas, status.fully_labeled_replicas, status.observed_generation), (2, Some(2), Some(1)));
        let owned: Vec<_> = simulation.view.controlled::<Pod>("rc").filter_map(|p| p.metadata.name.clone()).collect();
        assert!(owned.len() == 2 && owned.contains(&"orphan".to_owned()), "{owned:?}");
    }

    #[test]
    fn one_without_a_selector_touches_nothing() {
        let mut none = controller();
        none["spec"]["selector"] = json!({});
        none["spec"]["replicas"] = json!(0);
        let simulation = crate::simulation(start(), [none, pod("orphan", "web", None)]);
        let plan = decide("replicationcontroller-controller", &simulation, &ObjectKey::new("a", "web"));
        assert!(plan.actions.iter().all(|action| matches!(action, Action::Update { .. })), "{:?}", plan.actions);
    }
}

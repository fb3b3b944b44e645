//! Rollouts with random pods: the bounds hold at every step, and every rollout ends; and examples of single steps.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use machinery_api::ObjectKey;
use machinery_client::simulate::Simulation;
use machinery_client::{Action, Kind, Pod, key_of, value_of};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::pods;
use crate::table_tests::{decide, start};

fn key() -> ObjectKey {
    ObjectKey::new("a", "web")
}

fn deployment(replicas: i32, strategy: &Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "a"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "strategy": strategy,
            "progressDeadlineSeconds": 600, "revisionHistoryLimit": 10,
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "v0"}]}}}})
}

/// Updates the Deployment as a client would.
fn edit(simulation: &mut Simulation, change: impl FnOnce(&mut Value)) {
    let mut object = value_of(simulation.view.get::<Deployment>(&key()).unwrap());
    change(&mut object);
    simulation.write(&Kind::of::<Deployment>(), object);
}

fn sets(simulation: &Simulation) -> Vec<ReplicaSet> {
    simulation.view.all::<ReplicaSet>().cloned().collect()
}

fn pass(simulation: &mut Simulation, controller: &str, key: &ObjectKey) -> Vec<Action> {
    let plan = decide(controller, simulation, key);
    let actions = plan.actions.clone();
    assert_eq!(simulation.apply(plan), Vec::<String>::new());
    actions
}

fn pass_set(simulation: &mut Simulation, choice: usize) {
    let sets = sets(simulation);
    if let Some(set) = sets.get(choice % sets.len().max(1)) {
        pass(simulation, "replicaset-controller", &key_of(&set.metadata));
    }
}

/// Makes one pod ready.
fn ready(simulation: &mut Simulation, choice: usize) {
    let waiting: Vec<Pod> = simulation.view.all::<Pod>().filter(|pod| !pods::is_ready(pod)).cloned().collect();
    if let Some(pod) = waiting.get(choice % waiting.len().max(1)) {
        let mut object = value_of(pod);
        object["status"] = json!({"phase": "Running", "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        simulation.write(&Kind::of::<Pod>(), object);
    }
}

/// Runs everything until nothing changes.
fn settle(simulation: &mut Simulation) {
    for _ in 0..200 {
        let mut idle = pass(simulation, "deployment-controller", &key()).is_empty();
        for set in sets(simulation) {
            idle &= pass(simulation, "replicaset-controller", &key_of(&set.metadata)).is_empty();
        }
        let unready = simulation.view.all::<Pod>().filter(|pod| !pods::is_ready(pod)).count();
        (0..unready).for_each(|_| ready(simulation, 0));
        if idle && unready == 0 {
            return;
        }
    }
    panic!("the rollout never ends: {:#?}", sets(simulation));
}

fn settled(replicas: i32, strategy: &Value) -> Simulation {
    let mut simulation = crate::simulation(start(), [deployment(replicas, strategy)]);
    settle(&mut simulation);
    simulation
}

fn rolling(surge: &Value, unavailable: &Value) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

fn bound() -> impl Strategy<Value = Value> {
    prop_oneof![(0..4i32).prop_map(Value::from), (0..=100u32).prop_map(|p| Value::from(format!("{p}%")))]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_rolling_update_stays_within_its_bounds(
        replicas in 1..9i32,
        surge in bound(),
        unavailable in bound(),
        steps in proptest::collection::vec((0..7u8, 0..8usize), 1..80),
    ) {
        let mut simulation = settled(replicas, &rolling(&surge, &unavailable));
        let most = replicas + super::strategy::max_surge(simulation.view.get::<Deployment>(&key()).unwrap());
        let least = replicas - super::strategy::max_unavailable(simulation.view.get::<Deployment>(&key()).unwrap());
        for (number, (step, choice)) in steps.into_iter().enumerate() {
            match step {
                0 if number % 9 == 0 => {
                    edit(&mut simulation, |d| {
                        d["spec"]["template"]["spec"]["containers"][0]["image"] = json!(format!("v{choice}"));
                    });
                }
                1 | 2 => { pass(&mut simulation, "deployment-controller", &key()); }
                3 | 4 => pass_set(&mut simulation, choice),
                _ => ready(&mut simulation, choice),
            }
            // As upstream, the bound applies to the sets' `spec.replicas`: one may finish before another starts.
            let all: i32 = sets(&simulation).iter().map(super::size).sum();
            let available = simulation.view.all::<Pod>().filter(|pod| pods::is_ready(pod)).count() as i32;
            prop_assert!(all <= most, "{all} replicas, {most} allowed");
            prop_assert!(available >= least, "{available} available, {least} needed");
        }
        settle(&mut simulation);
        let active: Vec<i32> = sets(&simulation).iter().map(super::size).filter(|n| *n > 0).collect();
        prop_assert_eq!(active, vec![replicas]);
        let deployment = simulation.view.get::<Deployment>(&key()).unwrap();
        let status = deployment.status.clone().unwrap();
        prop_assert_eq!(status.updated_replicas, Some(replicas));
        let progress = super::status::progressing(&status).and_then(|c| c.reason.clone());
        prop_assert_eq!(progress.as_deref(), Some("NewReplicaSetAvailable"));
    }

    #[test]
    fn scaling_in_the_middle_of_a_rollout_keeps_the_sum(
        replicas in 2..20i32,
        to in 0..40i32,
        steps in 0..12usize,
    ) {
        let mut simulation = settled(replicas, &rolling(&json!(3), &json!(2)));
        edit(&mut simulation, |d| d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("v1"));
        for step in 0..steps {
            pass(&mut simulation, "deployment-controller", &key());
            pass_set(&mut simulation, step);
        }
        edit(&mut simulation, |d| d["spec"]["replicas"] = json!(to));
        for _ in 0..2 {
            pass(&mut simulation, "deployment-controller", &key());
        }
        let sum: i32 = sets(&simulation).iter().map(super::size).sum();
        prop_assert!(sum <= if to == 0 { 0 } else { to + 3 }, "{sum} replicas for {to}");
        settle(&mut simulation);
        let active: Vec<i32> = sets(&simulation).iter().map(super::size).filter(|n| *n > 0).collect();
        prop_assert_eq!(active, if to == 0 { vec![] } else { vec![to] });
    }
}

#[test]
fn recreation_starts_nothing_before_the_last_old_pod_is_gone() {
    let mut simulation = settled(2, &json!({"type": "Recreate"}));
    edit(&mut simulation, |d| d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("v1"));
    for _ in 0..3 {
        pass(&mut simulation, "deployment-controller", &key());
        assert_eq!(sets(&simulation).len(), 1, "the old pods are still there");
    }
    settle(&mut simulation);
    assert_eq!(sets(&simulation).len(), 2);
}

#[test]
fn going_back_brings_the_old_set_back_with_its_history() {
    let mut simulation = settled(1, &rolling(&json!(1), &json!(0)));
    for image in ["v1", "v0"] {
        edit(&mut simulation, |d| d["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image));
        settle(&mut simulation);
    }
    let active = sets(&simulation).into_iter().find(|set| super::size(set) > 0).unwrap();
    let annotations = active.metadata.annotations.unwrap();
    assert_eq!(annotations["deployment.kubernetes.io/revision"], "3");
    assert_eq!(annotations["deployment.kubernetes.io/revision-history"], "1");
    let deployment = simulation.view.get::<Deployment>(&key()).unwrap();
    assert_eq!(deployment.metadata.annotations.as_ref().unwrap()["deployment.kubernetes.io/revision"], "3");
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut simulation = settled(2, &rolling(&json!(1), &json!(0)));
    edit(&mut simulation, |d| {
        d["spec"]["paused"] = json!(true);
        d["spec"]["replicas"] = json!(3);
        d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("v1");
    });
    settle(&mut simulation);
    assert_eq!(sets(&simulation).iter().map(super::size).collect::<Vec<_>>(), [3]);
    let status = simulation.view.get::<Deployment>(&key()).unwrap().status.clone().unwrap();
    assert_eq!(super::status::progressing(&status).unwrap().message.as_deref(), Some("Deployment is paused"));
    edit(&mut simulation, |d| d["spec"]["paused"] = json!(false));
    settle(&mut simulation);
    assert_eq!(sets(&simulation).len(), 2);
}

#[test]
fn a_rollout_without_progress_times_out() {
    let mut simulation = crate::simulation(start(), [deployment(1, &rolling(&json!(1), &json!(0)))]);
    for _ in 0..4 {
        pass(&mut simulation, "deployment-controller", &key());
        pass_set(&mut simulation, 0);
    }
    let plan = decide("deployment-controller", &simulation, &key());
    assert_eq!(plan.requeue_at, Some("2026-01-01T00:10:00Z".parse().unwrap()));
    simulation.now = "2026-01-01T00:10:01Z".parse().unwrap();
    pass(&mut simulation, "deployment-controller", &key());
    let status = simulation.view.get::<Deployment>(&key()).unwrap().status.clone().unwrap();
    let condition = super::status::progressing(&status).unwrap();
    assert_eq!((condition.status.as_str(), condition.reason.as_deref()), ("False", Some("ProgressDeadlineExceeded")));
    assert!(condition.message.as_ref().unwrap().ends_with("has timed out progressing."));
}

#[test]
fn the_oldest_sets_beyond_the_limit_are_deleted() {
    let mut simulation = settled(1, &rolling(&json!(1), &json!(0)));
    edit(&mut simulation, |d| d["spec"]["revisionHistoryLimit"] = json!(1));
    for image in ["v1", "v2", "v3"] {
        edit(&mut simulation, |d| d["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image));
        settle(&mut simulation);
    }
    assert_eq!(sets(&simulation).len(), 2, "the present one and one old one");
}

/// Status writes with progress alone may be delayed; condition changes and completion are not.
#[test]
fn only_progress_may_wait() {
    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}});
    let mut simulation = crate::simulation(start(), [deployment(5, &strategy)]);
    for _ in 0..3 {
        pass(&mut simulation, "deployment-controller", &key());
        pass_set(&mut simulation, 0);
    }
    let waits = |controller: &str, simulation: &mut Simulation, key: &ObjectKey| {
        let plan = decide(controller, simulation, key);
        assert!(matches!(plan.actions.as_slice(), [Action::Update { subresource: Some("status"), .. }]), "{plan:?}");
        let may_wait = plan.may_wait;
        simulation.apply(plan);
        may_wait
    };
    let of_ready = |_| {
        ready(&mut simulation, 0);
        let set = key_of(&sets(&simulation)[0].metadata);
        let set = waits("replicaset-controller", &mut simulation, &set);
        (set, waits("deployment-controller", &mut simulation, &key()))
    };
    // The fourth pod makes the Deployment available, the fifth completes it.
    let expected = [(true, true), (true, true), (true, true), (true, false), (false, false)];
    assert_eq!((1..=5).map(of_ready).collect::<Vec<_>>(), expected);
}

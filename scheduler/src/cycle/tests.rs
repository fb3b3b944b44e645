//! Each legal path of a cycle, and the invariants of any sequence of events.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::extender::Verdict;
use crate::queue::Depth;
use crate::tests::{node, pod};

const TOOK: Duration = Duration::from_millis(3);

/// The state of a scheduler with three nodes.
struct World {
    profiles: Vec<Profile>,
    extenders: Vec<ExtenderConfig>,
    snapshot: Snapshot,
    queue: Queue,
    departures: u64,
}

impl World {
    fn new() -> Self {
        let mut snapshot = Snapshot::default();
        for name in ["n1", "n2", "n3"] {
            snapshot.set_node(node(name, json!({})));
        }
        let profiles = vec![Profile::default()];
        Self { profiles, extenders: Vec::new(), snapshot, queue: Queue::default(), departures: 0 }
    }

    /// A scheduler whose extender filters and takes part in preemptions.
    fn with_extender() -> Self {
        let verbs = ExtenderConfig {
            filter_verb: "filter".into(),
            preempt_verb: "preempt".into(),
            ..ExtenderConfig::default()
        };
        Self { extenders: vec![verbs], ..Self::new() }
    }

    /// Queues a pod, and starts its cycle.
    fn start(&mut self, pod: PodInfo) -> SchedulingCycle {
        self.queue.put(Arc::new(pod), Duration::ZERO);
        SchedulingCycle::new(self.queue.pop(Duration::ZERO).expect("a pod"), 0)
    }

    fn step(&self, cycle: SchedulingCycle, event: Event) -> (SchedulingCycle, Vec<Action>) {
        let context = CycleContext {
            profiles: &self.profiles,
            extenders: &self.extenders,
            snapshot: &self.snapshot,
            queue: &self.queue,
            next_start: 2,
            departures: self.departures,
        };
        let mut actions = Vec::new();
        (cycle.step(event, context, &mut actions), actions)
    }

    /// Applies events, and returns the last step.
    fn after(&self, mut cycle: SchedulingCycle, events: Vec<Event>) -> (SchedulingCycle, Vec<Action>) {
        let mut actions = Vec::new();
        for event in events {
            (cycle, actions) = self.step(cycle, event);
        }
        (cycle, actions)
    }

    /// Assumes a pod on a node, as [`Action::Assume`] does.
    fn assume(&mut self, pod: &PodInfo, on: &str) {
        let assumed = PodInfo { node: Some(on.into()), ..pod.clone() };
        self.snapshot.put_pod(Arc::new(assumed), on, true);
    }
}

fn plain() -> PodInfo {
    pod("p", json!({"spec": {"priority": 10}}))
}

fn changed() -> PodInfo {
    pod("p", json!({"metadata": {"labels": {"changed": "yes"}}, "spec": {"priority": 10}}))
}

fn recreated() -> PodInfo {
    pod("p", json!({"metadata": {"uid": "another"}, "spec": {"priority": 10}}))
}

fn chosen(name: &str) -> Event {
    Event::Decided { decision: Decision::Node { name: name.into(), tried: 2 }, took: TOOK }
}

fn victim(name: &str, terminating: bool) -> Arc<PodInfo> {
    Arc::new(PodInfo { terminating, ..pod(name, json!({})) })
}

fn candidate(on: &str, victims: &[Arc<PodInfo>]) -> Candidate {
    Candidate { node: on.into(), victims: victims.to_vec(), violations: 0, spare: Vec::new() }
}

fn refused_by() -> BTreeSet<&'static str> {
    BTreeSet::from(["NodeResourcesFit"])
}

fn unschedulable(nomination: Nomination, victims: &[Arc<PodInfo>], candidates: Vec<Candidate>) -> Event {
    let (message, victims) = ("0/3 nodes are available.".to_owned(), victims.to_vec());
    let decision = Decision::Unschedulable { message, refused_by: refused_by(), nomination, victims, candidates };
    Event::Decided { decision, took: TOOK }
}

fn verdicts() -> NodeVerdicts {
    NodeVerdicts { verdicts: Verdicts::new(["n1".to_owned()]), failed: Vec::new() }
}

fn failure(reason: &'static str, message: &str, nomination: Nomination) -> SchedulingFailure {
    SchedulingFailure { reason, message: message.into(), nomination }
}

fn observed(outcome: Outcome, took: Duration) -> Action {
    Action::ObserveAttempt { outcome, took }
}

#[test]
fn a_pod_is_decided_and_bound() {
    let mut world = World::new();
    let cycle = world.start(plain());
    let (cycle, actions) = world.step(cycle, Event::WritePermit);
    assert_eq!(cycle.stage, Stage::Deciding { start: 2 });
    assert_eq!(actions, [Action::Decide { start: 2, verdicts: None }]);
    let (cycle, actions) = world.step(cycle, chosen("n1"));
    assert_eq!(cycle.stage, Stage::Reserving { node: "n1".into() });
    let assume = Action::Assume { node: "n1".into(), next_start: 1 };
    assert_eq!(actions, [observed(Outcome::Scheduled, TOOK), assume]);
    let (cycle, actions) = world.step(cycle, Event::Reserved(Vec::new()));
    assert_eq!(cycle.stage, Stage::Binding);
    assert_eq!(actions, [Action::Bind { node: "n1".into(), patches: Vec::new() }]);
    let (cycle, actions) = world.step(cycle, Event::Bound);
    assert_eq!((cycle.stage, actions), (Stage::Ended, vec![Action::ObserveBound]));
}

#[test]
fn a_pod_of_an_extender_is_decided_again_with_the_verdicts() {
    let mut world = World::with_extender();
    let cycle = world.start(plain());
    let (cycle, actions) = world.step(cycle, Event::WritePermit);
    assert_eq!((&cycle.stage, actions), (&Stage::WaitingForCallPermit, vec![Action::WaitForCallPermit]));
    let (cycle, actions) = world.step(cycle, Event::CallPermit);
    assert_eq!(cycle.stage, Stage::WaitingForExtenders { start: 2 });
    assert_eq!(actions, [Action::CallExtenders { start: 2 }]);
    let (cycle, actions) = world.step(cycle, Event::NodesFiltered(Ok(verdicts())));
    let reply = ExtenderReply::Nodes { start: 2, result: Ok(verdicts()) };
    assert_eq!(cycle.stage, Stage::WaitingForWritePermit(Box::new(reply)));
    assert_eq!(actions, [Action::WaitForWritePermit]);
    let (cycle, actions) = world.step(cycle, Event::WritePermit);
    assert_eq!(actions, [Action::Decide { start: 2, verdicts: Some(verdicts().verdicts) }]);
    let (cycle, actions) = world.after(cycle, vec![chosen("n1"), Event::Reserved(Vec::new())]);
    assert_eq!((cycle.stage, actions.len()), (Stage::Binding, 1));
}

/// A cycle with the result of its extender.
fn replied(world: &mut World, result: Result<NodeVerdicts, String>) -> SchedulingCycle {
    let cycle = world.start(plain());
    world.after(cycle, vec![Event::WritePermit, Event::CallPermit, Event::NodesFiltered(result)]).0
}

#[test]
fn failures_of_ignored_plugins_are_recorded_before_the_decision() {
    let mut world = World::with_extender();
    let failed = vec![Failed { plugin: "P".into(), why: "trap".into(), ..Failed::default() }];
    let cycle = replied(&mut world, Ok(NodeVerdicts { failed: failed.clone(), ..verdicts() }));
    let (_, actions) = world.step(cycle, Event::WritePermit);
    assert_eq!(actions[0], Action::RecordPluginFailures(failed));
    assert!(matches!(actions[1..], [Action::Decide { verdicts: Some(_), .. }]));
}

#[test]
fn a_failed_extender_requeues_the_pod_with_a_report() {
    let mut world = World::with_extender();
    let cycle = replied(&mut world, Err("code 503".into()));
    let (cycle, actions) = world.step(cycle, Event::WritePermit);
    let report = Action::Report(failure("SchedulerError", "code 503", Nomination::Clear));
    assert_eq!(actions, [observed(Outcome::Error, Duration::ZERO), Action::Requeue(None), report]);
    let (cycle, actions) = world.step(cycle, Event::Reported);
    assert_eq!((cycle.stage, actions), (Stage::Ended, Vec::new()));
}

#[test]
fn a_pod_that_is_deleted_while_it_waits_is_dropped() {
    for result in [Ok(verdicts()), Err("code 503".to_owned())] {
        let mut world = World::with_extender();
        let cycle = replied(&mut world, result);
        world.queue.remove(&cycle.queued.pod.key);
        let (cycle, actions) = world.step(cycle, Event::WritePermit);
        assert_eq!((cycle.stage, actions), (Stage::Ended, Vec::new()));
    }
}

#[test]
fn the_reply_for_an_earlier_pod_of_the_same_name_is_ignored() {
    let mut world = World::with_extender();
    let cycle = replied(&mut world, Ok(verdicts()));
    let next = world.start(recreated());
    let (cycle, actions) = world.step(cycle, Event::WritePermit);
    assert_eq!((cycle.stage, actions), (Stage::Ended, Vec::new()));
    // The failure of an outdated attempt doesn't end the attempt in flight.
    world.queue.failed(&cycle.queued, None, Duration::ZERO);
    assert_eq!(world.queue.depth(), Depth::default());
    assert_eq!(world.step(next, Event::WritePermit).0.stage, Stage::WaitingForCallPermit);
}

#[test]
fn a_pod_that_changes_while_it_waits_is_retried() {
    let mut world = World::with_extender();
    let cycle = replied(&mut world, Ok(verdicts()));
    world.queue.put(Arc::new(changed()), Duration::ZERO);
    let (cycle, actions) = world.step(cycle, Event::WritePermit);
    assert_eq!((cycle.stage, actions), (Stage::Ended, vec![Action::Requeue(None)]));
}

#[test]
fn the_second_decision_ignores_the_verdict_on_a_removed_node() {
    let mut world = World::with_extender();
    let cycle = replied(&mut world, Ok(verdicts()));
    world.snapshot.remove_node("n1");
    let (cycle, actions) = world.step(cycle, Event::WritePermit);
    let [Action::Decide { start, verdicts: Some(verdicts) }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(verdicts.of("n1"), Some(&Verdict::Fits(0)));
    let (pod, profile) = (&cycle.queued.pod, &world.profiles[0]);
    let decision = crate::decide::decide_with(&world.snapshot, pod, profile, *start, 0, Some(verdicts));
    assert!(matches!(decision, Decision::Unschedulable { .. }), "{decision:?}");
}

#[test]
fn an_unschedulable_pod_waits_for_an_event() {
    let mut world = World::new();
    let cycle = world.start(plain());
    let (cycle, actions) =
        world.after(cycle, vec![Event::WritePermit, unschedulable(Nomination::Clear, &[], Vec::new())]);
    assert_eq!(cycle.stage, Stage::Reporting);
    assert_eq!(
        actions,
        [
            observed(Outcome::Unschedulable, TOOK),
            Action::ClearNomination,
            Action::Requeue(Some(refused_by())),
            Action::Report(failure("Unschedulable", "0/3 nodes are available.", Nomination::Clear)),
        ]
    );
    assert_eq!(world.step(cycle, Event::Reported).0.stage, Stage::Ended);
}

#[test]
fn a_kept_nomination_stays() {
    let mut world = World::new();
    let cycle = world.start(plain());
    let (_, actions) = world.after(cycle, vec![Event::WritePermit, unschedulable(Nomination::Keep, &[], Vec::new())]);
    assert!(!actions.contains(&Action::ClearNomination), "{actions:?}");
}

#[test]
fn victims_are_deleted_before_the_pod_is_retried() {
    let mut world = World::new();
    let (low, going) = (victim("low", false), victim("going", true));
    let other = Arc::new(pod("other", json!({"spec": {"priority": 5}})));
    let equal = Arc::new(pod("equal", json!({"spec": {"priority": 10}})));
    world.snapshot.nominated.set(other.clone(), "n2");
    world.snapshot.nominated.set(equal, "n2");
    let cycle = world.start(plain());
    let nomination = Nomination::Node("n2".into());
    let (cycle, actions) = world
        .after(cycle, vec![Event::WritePermit, unschedulable(nomination.clone(), &[low.clone(), going], Vec::new())]);
    assert_eq!(cycle.stage, Stage::Preempting { refused_by: refused_by(), departures: 0 });
    assert_eq!(
        actions,
        [
            observed(Outcome::Unschedulable, TOOK),
            Action::Nominate { node: "n2".into(), displaced: vec![other.clone()] },
            Action::ObservePreemption { victims: 2 },
            Action::Preempt(Preemption {
                node: "n2".into(),
                victims: vec![low],
                displaced: vec![other],
                failure: failure("Unschedulable", "0/3 nodes are available.", nomination),
            }),
        ]
    );
    let (cycle, actions) = world.step(cycle, Event::Preempted(Ok(())));
    assert_eq!((cycle.stage, actions), (Stage::Ended, vec![Action::Requeue(Some(refused_by()))]));
}

#[test]
fn terminating_victims_are_not_deleted_again() {
    let mut world = World::new();
    let cycle = world.start(plain());
    let nomination = Nomination::Node("n2".into());
    let (cycle, actions) = world.after(
        cycle,
        vec![Event::WritePermit, unschedulable(nomination.clone(), &[victim("going", true)], Vec::new())],
    );
    assert_eq!(cycle.stage, Stage::Reporting);
    assert_eq!(
        actions[1..],
        [
            Action::Nominate { node: "n2".into(), displaced: Vec::new() },
            Action::Requeue(Some(refused_by())),
            Action::Report(failure("Unschedulable", "0/3 nodes are available.", nomination)),
        ]
    );
}

/// A cycle whose victims are being deleted.
fn preempting(world: &mut World) -> SchedulingCycle {
    let cycle = world.start(plain());
    let decided = unschedulable(Nomination::Node("n2".into()), &[victim("low", false)], Vec::new());
    world.after(cycle, vec![Event::WritePermit, decided]).0
}

#[test]
fn resources_that_are_freed_during_a_preemption_retry_the_pod() {
    let mut world = World::new();
    let cycle = preempting(&mut world);
    world.departures += 1;
    let (_, actions) = world.step(cycle, Event::Preempted(Ok(())));
    assert_eq!(actions, [Action::Requeue(Some(refused_by())), Action::Activate]);
}

#[test]
fn a_failed_preemption_is_retried_with_back_off() {
    let mut world = World::new();
    let cycle = preempting(&mut world);
    let (cycle, actions) = world.step(cycle, Event::Preempted(Err("no".into())));
    assert_eq!((cycle.stage, actions), (Stage::Ended, vec![Action::Requeue(None)]));
}

#[test]
fn a_panic_in_an_operation_is_reported_and_retried_with_back_off() {
    let report = Action::Report(failure("SchedulerError", "panicked", Nomination::Clear));
    let expected = [observed(Outcome::Error, Duration::ZERO), Action::Requeue(None), report];
    let mut world = World::new();
    let cycle = preempting(&mut world);
    assert_eq!(world.step(cycle, Event::Failed("panicked".into())).1, expected);
    let mut world = World::with_extender();
    let cycle = world.start(plain());
    let (_, actions) =
        world.after(cycle, vec![Event::WritePermit, Event::CallPermit, Event::Failed("panicked".into())]);
    assert_eq!(actions, expected);
}

/// A cycle with the result of its extender for the candidates `n1` and `n2`.
fn victims_selected(world: &mut World, result: Result<AcceptedCandidates, String>) -> SchedulingCycle {
    let cycle = world.start(plain());
    let low = [victim("low", false)];
    let candidates = vec![candidate("n1", &low), candidate("n2", &low)];
    let decided = unschedulable(Nomination::Node("n1".into()), &low, candidates.clone());
    let filtered = Event::NodesFiltered(Ok(verdicts()));
    let events = vec![Event::WritePermit, Event::CallPermit, filtered, Event::WritePermit, decided];
    let (cycle, actions) = world.after(cycle, events);
    assert_eq!(actions, [observed(Outcome::Unschedulable, TOOK), Action::SelectVictims { candidates }]);
    assert!(matches!(cycle.stage, Stage::SelectingVictims(_)));
    let (cycle, actions) = world.step(cycle, Event::VictimsSelected(result));
    assert_eq!(actions, [Action::WaitForWritePermit]);
    cycle
}

fn accepted(candidates: Vec<Candidate>) -> Result<AcceptedCandidates, String> {
    Ok(AcceptedCandidates { candidates, ..AcceptedCandidates::default() })
}

#[test]
fn an_accepted_candidate_is_preempted() {
    let mut world = World::with_extender();
    let left = victim("left", false);
    let cycle = victims_selected(&mut world, accepted(vec![candidate("n2", std::slice::from_ref(&left))]));
    let (cycle, actions) = world.step(cycle, Event::WritePermit);
    assert!(matches!(cycle.stage, Stage::Preempting { .. }));
    let Some(Action::Preempt(preemption)) = actions.last() else { panic!("{actions:?}") };
    assert_eq!((preemption.node.as_str(), &preemption.victims), ("n2", &vec![left]));
    assert_eq!(preemption.failure.message, "0/3 nodes are available.");
}

#[test]
fn without_an_accepted_candidate_nothing_is_preempted() {
    let rejection = NodeRejection { plugin: "P".into(), reason: "crowded".into(), unresolvable: false };
    let rejected = AcceptedCandidates { refused: [("n1".into(), rejection)].into(), ..AcceptedCandidates::default() };
    let helpless = "preemption: 0/3 nodes are available: 1 crowded, 2 Preemption is not helpful for scheduling.";
    for (result, message, nomination) in [
        (accepted(Vec::new()), NO_CANDIDATE, Nomination::Keep),
        (Err("code 503".to_owned()), "preemption: code 503", Nomination::Keep),
        (Ok(rejected), helpless, Nomination::Clear),
    ] {
        let mut world = World::with_extender();
        let cycle = victims_selected(&mut world, result);
        let (cycle, actions) = world.step(cycle, Event::WritePermit);
        assert_eq!(cycle.stage, Stage::Reporting);
        let message = format!("0/3 nodes are available. {message}");
        let report = Action::Report(failure("Unschedulable", &message, nomination.clone()));
        assert_eq!(actions.last(), Some(&report));
        assert_eq!(actions.contains(&Action::ClearNomination), nomination == Nomination::Clear);
        assert!(actions.contains(&Action::Requeue(Some(refused_by()))));
    }
}

#[test]
fn an_accepted_candidate_whose_node_is_removed_is_not_preempted() {
    let mut world = World::with_extender();
    let cycle = victims_selected(&mut world, accepted(vec![candidate("n2", &[victim("low", false)])]));
    world.snapshot.remove_node("n2");
    let (cycle, actions) = world.step(cycle, Event::WritePermit);
    assert_eq!(cycle.stage, Stage::Reporting);
    let message = format!("0/3 nodes are available. {NO_CANDIDATE}");
    assert_eq!(actions.last(), Some(&Action::Report(failure("Unschedulable", &message, Nomination::Keep))));
}

#[test]
fn a_pod_that_is_deleted_or_changed_during_the_selection_preempts_nothing() {
    let selected = || accepted(vec![candidate("n2", &[victim("low", false)])]);
    let mut world = World::with_extender();
    let cycle = victims_selected(&mut world, selected());
    world.queue.remove(&cycle.queued.pod.key);
    let (cycle, actions) = world.step(cycle, Event::WritePermit);
    assert_eq!((cycle.stage, actions), (Stage::Ended, Vec::new()));
    let mut world = World::with_extender();
    let cycle = victims_selected(&mut world, selected());
    world.queue.put(Arc::new(changed()), Duration::ZERO);
    let (cycle, actions) = world.step(cycle, Event::WritePermit);
    assert_eq!((cycle.stage, actions), (Stage::Ended, vec![Action::Requeue(None)]));
}

#[test]
fn an_extender_without_a_preempt_verb_is_not_called_for_candidates() {
    let mut world = World::with_extender();
    world.extenders[0].preempt_verb.clear();
    let cycle = world.start(plain());
    let low = [victim("low", false)];
    let decided = unschedulable(Nomination::Node("n1".into()), &low, vec![candidate("n1", &low)]);
    let filtered = Event::NodesFiltered(Ok(verdicts()));
    let events = vec![Event::WritePermit, Event::CallPermit, filtered, Event::WritePermit, decided];
    assert!(matches!(world.after(cycle, events).0.stage, Stage::Preempting { .. }));
}

#[test]
fn a_failed_binding_is_undone_and_requeued_with_back_off() {
    for events in [vec![], vec![Event::Reserved(Vec::new())]] {
        let mut world = World::new();
        let cycle = world.start(plain());
        let (cycle, _) = world.after(cycle, vec![Event::WritePermit, chosen("n1")]);
        world.assume(&plain(), "n1");
        let (cycle, _) = world.after(cycle, events);
        let (cycle, actions) = world.step(cycle, Event::Failed("busy".into()));
        assert_eq!(cycle.stage, Stage::Reporting);
        assert_eq!(
            actions,
            [
                observed(Outcome::Error, Duration::ZERO),
                Action::Forget { node: "n1".into() },
                Action::Requeue(None),
                Action::Report(failure("SchedulerError", "busy", Nomination::Clear)),
            ]
        );
    }
}

#[test]
fn a_failed_binding_leaves_a_bound_or_recreated_pod_in_the_snapshot() {
    for (pod, assumed) in [(plain(), false), (recreated(), true)] {
        let mut world = World::new();
        let cycle = world.start(plain());
        let (cycle, _) = world.after(cycle, vec![Event::WritePermit, chosen("n1"), Event::Reserved(Vec::new())]);
        let placed = PodInfo { node: Some("n1".into()), ..pod };
        world.snapshot.put_pod(Arc::new(placed), "n1", assumed);
        let (_, actions) = world.step(cycle, Event::Failed("busy".into()));
        assert!(!actions.iter().any(|action| matches!(action, Action::Forget { .. })), "{actions:?}");
    }
}

#[test]
fn a_failed_binding_of_a_deleted_pod_has_no_report() {
    let mut world = World::new();
    let cycle = world.start(plain());
    let (cycle, _) = world.after(cycle, vec![Event::WritePermit, chosen("n1"), Event::Reserved(Vec::new())]);
    world.assume(&plain(), "n1");
    world.queue.remove(&cycle.queued.pod.key);
    let (cycle, actions) = world.step(cycle, Event::Failed("busy".into()));
    assert_eq!(cycle.stage, Stage::Ended);
    assert_eq!(actions[1..], [Action::Forget { node: "n1".into() }, Action::Requeue(None)]);
}

#[test]
fn a_panic_in_the_decision_requeues_the_pod() {
    let mut world = World::new();
    let cycle = world.start(plain());
    let (cycle, actions) = world.after(cycle, vec![Event::WritePermit, Event::Failed("panicked".into())]);
    assert_eq!(cycle.stage, Stage::Reporting);
    let report = Action::Report(failure("SchedulerError", "panicked", Nomination::Clear));
    assert_eq!(actions, [observed(Outcome::Error, Duration::ZERO), Action::Requeue(None), report]);
}

fn any_event() -> impl Strategy<Value = Event> {
    let low = || [victim("low", false)];
    let accepts = move || accepted(vec![candidate("n2", &[victim("low", false)])]);
    let nominates = move || unschedulable(Nomination::Node("n1".into()), &low(), vec![candidate("n1", &low())]);
    prop_oneof![
        4 => Just(Event::WritePermit),
        2 => Just(Event::CallPermit),
        2 => Just(Event::NodesFiltered(Ok(verdicts()))),
        1 => Just(Event::NodesFiltered(Err("no".into()))),
        2 => Just(chosen("n1")),
        1 => Just(unschedulable(Nomination::Clear, &[], Vec::new())),
        2 => Just(()).prop_map(move |()| nominates()),
        2 => Just(Event::Reserved(Vec::new())),
        1 => Just(Event::Bound),
        1 => Just(Event::Failed("no".into())),
        1 => Just(()).prop_map(move |()| Event::VictimsSelected(accepts())),
        1 => Just(Event::VictimsSelected(Err("no".into()))),
        1 => Just(Event::Preempted(Ok(()))),
        1 => Just(Event::Reported),
    ]
}

/// Whether the action starts an operation, whose result is the next event.
fn is_operation(action: &Action) -> bool {
    match action {
        Action::ObserveAttempt { .. }
        | Action::ObserveBound
        | Action::ObservePreemption { .. }
        | Action::RecordPluginFailures(_)
        | Action::ClearNomination
        | Action::Nominate { .. }
        | Action::Forget { .. }
        | Action::Requeue(_)
        | Action::Activate => false,
        Action::WaitForCallPermit
        | Action::WaitForWritePermit
        | Action::CallExtenders { .. }
        | Action::Decide { .. }
        | Action::Assume { .. }
        | Action::Bind { .. }
        | Action::SelectVictims { .. }
        | Action::Report(_)
        | Action::Preempt(_) => true,
    }
}

proptest! {
    /// One operation is in flight until the cycle ends, and a pod that isn't bound is requeued once.
    #[test]
    fn no_sequence_of_events_loses_a_pod(
        extender: bool,
        leaves_at in 0_usize..12,
        events in prop::collection::vec(any_event(), 0..12),
    ) {
        let mut world = if extender { World::with_extender() } else { World::new() };
        let mut cycle = world.start(plain());
        let key = cycle.queued.pod.key.clone();
        let (mut requeued, mut bound, mut left) = (0, false, false);
        for (at, event) in events.into_iter().enumerate() {
            if at == leaves_at {
                world.queue.remove(&key);
                left = true;
            }
            if cycle.stage == Stage::Ended {
                break;
            }
            let actions;
            (cycle, actions) = world.step(cycle, event);
            let operations = actions.iter().filter(|action| is_operation(action)).count();
            prop_assert_eq!(operations, usize::from(cycle.stage != Stage::Ended), "{:?}", actions);
            prop_assert!(operations == 0 || actions.last().is_some_and(is_operation), "{:?}", actions);
            requeued += actions.iter().filter(|action| matches!(action, Action::Requeue(_))).count();
            bound |= actions.contains(&Action::ObserveBound);
            for action in &actions {
                match action {
                    Action::Assume { node, .. } => world.assume(&plain(), node),
                    Action::Forget { .. } => drop(world.snapshot.take_pod(&key)),
                    _ => {}
                }
            }
        }
        prop_assert!(requeued + usize::from(bound) <= 1);
        if matches!(cycle.stage, Stage::Ended | Stage::Reporting) {
            prop_assert!(requeued == 1 || bound || left);
            prop_assert_eq!(world.snapshot.placed(&key).is_some(), bound, "a failed pod leaves the snapshot");
        }
    }
}

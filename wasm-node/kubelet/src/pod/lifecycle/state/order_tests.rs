//! The order in which containers start and stop: pods with init containers, sidecars and several main containers.

use super::tests::{addressed, at, exited, of, play, pulled, rules, started};
use super::*;

/// A pod of these containers, named `a`, `b` …, with the pod's restart policy.
fn pod(restart: RestartPolicy, classes: &[Class]) -> LifecyclePolicy {
    let mut pod = rules(restart);
    let one = pod.containers[0].clone();
    let names = ["a", "b", "c", "d", "e"];
    pod.containers = classes
        .iter()
        .zip(names)
        .map(|(class, name)| ContainerPolicy {
            name: name.into(),
            class: *class,
            restart: match (class, restart) {
                (Class::Sidecar, _) => RestartPolicy::Always,
                (Class::Ephemeral, _) => RestartPolicy::Never,
                (Class::Init, RestartPolicy::Always) => RestartPolicy::OnFailure,
                (_, restart) => restart,
            },
            ..one.clone()
        })
        .collect::<Vec<_>>()
        .into();
    pod
}

/// The actions without event records.
fn doing(rules: &LifecyclePolicy, events: &[(i64, Event)]) -> (PodState, Vec<String>) {
    let (state, log) = play(rules, events);
    (state, log.into_iter().filter(|log| !log.contains(": ") || log.contains('{')).collect())
}

fn starts(index: usize) -> [(i64, Event); 2] {
    [(0, of(index, pulled())), (0, of(index, started()))]
}

fn ends(second: i64, index: usize, attempt: u32, code: i32) -> (i64, Event) {
    (second, of(index, exited(attempt, code)))
}

fn probed(index: usize) -> (i64, Event) {
    (
        0,
        Event::Container(
            index,
            ContainerEvent::Probed { attempt: 0, kind: ProbeKind::Startup, result: ProbeResult::Passed },
        ),
    )
}

fn lives(events: &[&[(i64, Event)]]) -> Vec<(i64, Event)> {
    [&[(0, Event::Mounted)][..], &events.concat()].concat()
}

#[test]
fn init_containers_run_one_after_the_other() {
    let rules = pod(RestartPolicy::Always, &[Class::Init, Class::Init, Class::Main, Class::Main]);
    let (state, log) = doing(&rules, &lives(&[&starts(0)]));
    assert_eq!(log, ["Mount", "Pull(0)", "Start { container: 0, attempt: 0 }"]);
    assert!(!state.ready() && !order::initialized(&state.machines));
    let (_, log) = doing(&rules, &lives(&[&starts(0), &[ends(1, 0, 0, 0)]]));
    assert_eq!(log[3..], ["Kill(0)", "Pull(1)"]);
    let all = lives(&[&starts(0), &[ends(1, 0, 0, 0)], &starts(1), &[ends(2, 1, 0, 0)]]);
    let (state, log) = doing(&rules, &all);
    assert_eq!(log[6..], ["Kill(1)", "Pull(2)", "Pull(3)"]);
    assert!(order::initialized(&state.machines) && !state.ready());
    let (state, _) = doing(&rules, &[&all[..], &starts(2), &starts(3)].concat());
    assert!(state.ready(), "what ran once is not asked any more");
}

#[test]
fn a_failed_init_container_is_tried_again_with_back_off() {
    let rules = pod(RestartPolicy::Always, &[Class::Init, Class::Main]);
    let first = lives(&[&starts(0), &[ends(1, 0, 0, 3)]]);
    let (_, log) = doing(&rules, &first);
    assert_eq!(log[3..], ["Kill(0)", "Pull(0)"]);
    let second = [&first[..], &starts(0), &[ends(2, 0, 1, 3)]].concat();
    let (state, _) = doing(&rules, &second);
    assert!(matches!(state.machines[0].stage, ContainerStage::Waiting { wait: WaitReason::Crash { .. }, .. }));
    assert_eq!((state.wake_at(&rules), &state.machines[1].stage), (Some(at(12)), &ContainerStage::Idle));
    let (_, log) = doing(&rules, &[&second[..], &[(12, Event::Tick)], &starts(0), &[ends(13, 0, 2, 0)]].concat());
    assert_eq!(log.last().map(String::as_str), Some("Pull(1)"));
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let rules = pod(RestartPolicy::Never, &[Class::Sidecar, Class::Init, Class::Main]);
    let failed = lives(&[&starts(0), &starts(1), &[ends(1, 1, 0, 3)]]);
    let (state, log) = doing(&rules, &failed);
    assert_eq!(log[5..], ["Kill(1)", "Kill(2)", "Stop { container: 0, grace: 30s }"]);
    assert_eq!((&state.stage, state.succeeded), (&Stage::Active, None), "it has not ended yet");
    let (state, log) = doing(&rules, &[&failed[..], &[ends(2, 0, 0, 143)]].concat());
    assert_eq!((log.last().map(String::as_str), state.succeeded), (Some("Clean"), Some(false)));
}

#[test]
fn a_sidecar_lets_the_next_begin_once_it_has_started() {
    let mut rules = pod(RestartPolicy::Always, &[Class::Sidecar, Class::Init, Class::Main]);
    rules.containers_mut()[0].startup = Some(Thresholds { success: 1, failure: 3, grace: None });
    let begun = lives(&[&starts(0)]);
    let (_, log) = doing(&rules, &begun);
    assert_eq!(log.last().map(String::as_str), Some("Probe(0, Startup)"), "nothing else yet");
    let passed = [&begun[..], &[probed(0)]].concat();
    let (_, log) = doing(&rules, &passed);
    assert_eq!(log.last().map(String::as_str), Some("Pull(1)"));
    // The sidecar crashes while the init container runs: both continue.
    let crashed = [&passed[..], &starts(1), &[ends(1, 0, 0, 1), ends(2, 1, 0, 0)]].concat();
    let (state, log) = doing(&rules, &crashed);
    assert_eq!(log[6..], ["Kill(0)", "Pull(0)", "Kill(1)", "Pull(2)"]);
    assert!(!state.ready());
    let up = [&crashed[..], &starts(0), &starts(2)].concat();
    let (state, _) = doing(&rules, &up);
    assert!(!state.ready(), "a sidecar's probes count");
    let again = (
        3,
        Event::Container(
            0,
            ContainerEvent::Probed { attempt: 1, kind: ProbeKind::Startup, result: ProbeResult::Passed },
        ),
    );
    assert!(doing(&rules, &[&up[..], &[again]].concat()).0.ready());
}

#[test]
fn sidecars_do_not_hold_the_phase_and_end_in_reverse_order() {
    let rules = pod(RestartPolicy::Never, &[Class::Sidecar, Class::Sidecar, Class::Main]);
    let begun = lives(&[&starts(0), &starts(1), &starts(2)]);
    let done = [&begun[..], &[ends(5, 2, 0, 0)]].concat();
    let (state, log) = doing(&rules, &done);
    assert_eq!(log[log.len() - 2..], ["Kill(2)", "Stop { container: 1, grace: 30s }"]);
    assert_eq!((state.succeeded, state.wake_at(&rules)), (None, Some(at(35))));
    let (state, log) = doing(&rules, &[&done[..], &[ends(9, 1, 0, 143)]].concat());
    assert_eq!(log[log.len() - 2..], ["Kill(1)", "Stop { container: 0, grace: 26s }"], "what is left of the grace");
    assert_eq!(state.succeeded, None);
    let (state, log) = doing(&rules, &[&done[..], &[ends(9, 1, 0, 143), ends(10, 0, 0, 137)]].concat());
    assert_eq!(
        (log.last().map(String::as_str), state.succeeded),
        (Some("Clean"), Some(true)),
        "its end counts nothing"
    );
}

#[test]
fn a_deleted_pod_ends_its_own_containers_first() {
    let rules = pod(RestartPolicy::Always, &[Class::Sidecar, Class::Sidecar, Class::Main, Class::Main]);
    let begun = lives(&[&starts(0), &starts(1), &starts(2), &starts(3)]);
    let deleted = [&begun[..], &[(1, Event::Deleted(Duration::from_secs(10)))]].concat();
    let (_, log) = doing(&rules, &deleted);
    let stop = |container: usize, grace: u64| format!("Stop {{ container: {container}, grace: {grace}s }}");
    assert_eq!(log[log.len() - 2..], [stop(2, 10), stop(3, 10)]);
    let (_, log) = doing(&rules, &[&deleted[..], &[ends(2, 2, 0, 143)]].concat());
    assert_eq!(log.last().map(String::as_str), Some("Kill(2)"), "the other one still runs");
    let late = [&deleted[..], &[(11, Event::Tick)]].concat();
    let (_, log) = doing(&rules, &late);
    assert_eq!(log[log.len() - 2..], [stop(0, 2), stop(1, 2)], "no time is left to wait for a turn");
    let forced = [&begun[..], &[(1, Event::Deleted(Duration::ZERO))]].concat();
    let (_, log) = doing(&rules, &forced);
    assert_eq!(log[log.len() - 4..], [0, 1, 2, 3].map(|index| format!("Stop {{ container: {index}, grace: 0ns }}")));
}

#[test]
fn rules_for_exit_codes_come_before_the_policy() {
    let mut rules = pod(RestartPolicy::Never, &[Class::Main, Class::Main]);
    rules.containers_mut()[0].restart_rules = vec![RestartRule { exit_codes: vec![42, 43], others: false, all: false }];
    let begun = lives(&[&starts(0), &starts(1)]);
    let (state, _) = doing(&rules, &[&begun[..], &[ends(1, 0, 0, 42)]].concat());
    assert_eq!(state.machines[0].stage, ContainerStage::Pulling);
    let (state, _) = doing(&rules, &[&begun[..], &[ends(1, 0, 0, 1)]].concat());
    assert_eq!(state.machines[0].stage, ContainerStage::Done);
    rules.containers_mut()[0].restart_rules[0].others = true;
    let (state, _) = doing(&rules, &[&begun[..], &[ends(1, 0, 0, 42)]].concat());
    assert_eq!(state.machines[0].stage, ContainerStage::Done);
    let (state, _) = doing(&rules, &[&begun[..], &[ends(1, 0, 0, 0)]].concat());
    assert_eq!(state.machines[0].stage, ContainerStage::Pulling);
}

#[test]
fn a_restart_rule_starts_the_whole_pod_again() {
    let mut rules =
        pod(RestartPolicy::Never, &[Class::Init, Class::Sidecar, Class::Main, Class::Main, Class::Ephemeral]);
    rules.containers_mut()[2].restart_rules = vec![RestartRule { exit_codes: vec![88], others: false, all: true }];
    let begun =
        lives(&[&starts(4), &starts(0), &[ends(1, 0, 0, 0)], &starts(1), &starts(2), &starts(3), &[ends(2, 3, 0, 0)]]);
    let hit = [&begun[..], &[ends(3, 2, 0, 88)]].concat();
    let (state, log) = doing(&rules, &hit);
    assert_eq!(log[log.len() - 2..], ["Kill(2)", "Stop { container: 1, grace: 0ns }"]);
    assert!(state.restarting_all && state.succeeded.is_none());
    let (state, log) = doing(&rules, &[&hit[..], &[ends(3, 1, 0, 137)]].concat());
    assert_eq!(log[log.len() - 2..], ["Kill(1)", "Pull(0)"], "from the first on");
    assert!(!state.restarting_all && !order::initialized(&state.machines) && state.machines[4].is_live());
    let last = state.machines[1].exit.as_ref().map(|exit| exit.reason.as_str());
    assert_eq!(last, Some("RestartingAllContainers"));
}

#[test]
fn ephemeral_containers_join_a_pod_and_hold_nothing() {
    let whole = pod(RestartPolicy::Never, &[Class::Init, Class::Main, Class::Ephemeral]);
    let mut rules = whole.clone();
    rules.containers_mut().pop();
    let (state, _) = doing(&rules, &lives(&[&starts(0)]));
    let (state, actions) = state.step(&whole, Event::Tick, at(1));
    assert_eq!((state.machines.len(), &actions), (3, &vec![Action::Pull(2)]), "also before the pod is initialized");
    let end = [starts(2), [ends(2, 2, 0, 1), ends(2, 0, 0, 0)], starts(1)].concat();
    let state = end.into_iter().fold(state, |state, (_, event)| {
        let event = addressed(&state, event);
        state.step(&whole, event, at(2)).0
    });
    assert_eq!((&state.machines[2].stage, state.ready()), (&ContainerStage::Done, true), "it never restarts");
    let (state, _) = state.step(&whole, exited_of(1), at(3));
    assert_eq!(state.succeeded, Some(true));
    let (state, _) = state.step(
        &pod(RestartPolicy::Never, &[Class::Init, Class::Main, Class::Ephemeral, Class::Ephemeral]),
        Event::Tick,
        at(3),
    );
    assert_eq!(state.machines[3].stage, ContainerStage::Done);
}

fn exited_of(index: usize) -> Event {
    of(index, exited(0, 0))
}

#[test]
fn restartable_containers_start_again_after_a_restart_of_the_node() {
    let exit = |code: i32| Exit {
        code,
        reason: "Unknown".into(),
        message: None,
        started: None,
        finished: at(0),
        container_id: None,
    };
    for (restart, first) in [(RestartPolicy::Always, 0), (RestartPolicy::OnFailure, 1)] {
        let rules = pod(restart, &[Class::Init, Class::Sidecar, Class::Main]);
        let mut state = PodState::adopted(at(0), at(-9), &rules);
        state.resume(0, 0, exit(0), String::new());
        state.resume(1, 0, exit(255), String::new());
        state.resume(2, 0, exit(255), String::new());
        let (state, actions) = state.begin(&rules, Admission::default(), at(0));
        assert_eq!(actions, [Action::Mount]);
        let (_, actions) = state.step(&rules, Event::Mounted, at(1));
        assert_eq!(actions, [Action::Pull(first)]);
    }
    let rules = pod(RestartPolicy::Never, &[Class::Sidecar, Class::Main]);
    let mut state = PodState::adopted(at(0), at(-9), &rules);
    state.resume(0, 0, exit(255), String::new());
    state.resume(1, 0, exit(255), String::new());
    let (state, actions) = state.begin(&rules, Admission::default(), at(0));
    assert_eq!((state.succeeded, actions), (Some(false), vec![Action::Kill(0), Action::Clean]));
}

/// As many containers as fit into an API object.
#[test]
fn thousands_of_init_containers_run_one_after_the_other() {
    const COUNT: usize = 3000;
    let mut rules = rules(RestartPolicy::Never);
    let one = rules.containers[0].clone();
    let classes = std::iter::repeat_n(Class::Init, COUNT).chain([Class::Main]);
    let named = |(index, class)| ContainerPolicy { name: format!("c{index}"), class, ..one.clone() };
    rules.containers = classes.enumerate().map(named).collect::<Vec<_>>().into();
    let (mut state, mut to_do) = PodState::new(at(0), &rules).begin(&rules, Admission::default(), at(0));
    let mut begun = Vec::new();
    while !to_do.is_empty() {
        for action in std::mem::take(&mut to_do) {
            let events = match action {
                Action::Mount => vec![Event::Mounted],
                Action::Pull(index) => vec![of(index, pulled())],
                Action::Start { container, attempt } => {
                    assert!(container == 0 || state.machines[container - 1].passed, "{container} began too early");
                    begun.push(container);
                    vec![of(container, started()), of(container, exited(attempt, 0))]
                }
                Action::Clean => vec![Event::Cleaned],
                _ => Vec::new(),
            };
            to_do.extend(
                events
                    .into_iter()
                    .flat_map(|event| {
                        let event = addressed(&state, event);
                        state.apply(&rules, event, at(0))
                    })
                    .collect::<Vec<_>>(),
            );
        }
    }
    assert!(begun.into_iter().eq(0..=COUNT), "each once, in order");
    assert_eq!(state.succeeded, Some(true));
}

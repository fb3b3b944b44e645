//! Lifecycles of pods, step by step.

use super::*;

pub(super) fn rules(restart: RestartPolicy) -> LifecyclePolicy {
    let container = ContainerPolicy {
        name: "c".into(),
        class: Class::Main,
        restart,
        restart_rules: Vec::new(),
        image: "i".into(),
        startup: None,
        readiness: None,
        liveness: None,
        post_start: None,
    };
    LifecyclePolicy {
        containers: vec![container].into(),
        pod: "p_n(u)".into(),
        restart,
        deadline: None,
        grace: Duration::from_secs(30),
    }
}

pub(super) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).unwrap()
}

/// Applies events at given times. Returns the state, and the actions as text.
pub(super) fn play(rules: &LifecyclePolicy, events: &[(i64, Event)]) -> (PodState, Vec<String>) {
    let (mut state, actions) = PodState::new(at(0), rules).begin(rules, Admission::default(), at(0));
    let mut log: Vec<String> = actions.iter().map(describe).collect();
    for (second, event) in events {
        let event = addressed(&state, event.clone());
        let (next, actions) = state.step(rules, event, at(*second));
        state = next;
        log.extend(actions.iter().map(describe));
    }
    (state, log)
}

fn describe(action: &Action) -> String {
    match action {
        Action::EventRecord { reason, message, .. } => format!("{reason}: {message}"),
        other => format!("{other:?}"),
    }
}

/// A placeholder for the number of the preparation in progress.
pub(super) const NEWEST: u32 = u32::MAX;

/// Replaces [`NEWEST`] by the number of the preparation in progress.
pub(super) fn addressed(state: &PodState, mut event: Event) -> Event {
    if let Event::Container(
        index,
        ContainerEvent::Pulled { preparation, .. }
        | ContainerEvent::PullFailed { preparation, .. }
        | ContainerEvent::StartFailed { preparation, .. },
    ) = &mut event
        && *preparation == NEWEST
    {
        *preparation = state.machines.get(*index).map_or(0, |machine| machine.preparation);
    }
    event
}

pub(super) fn pulled() -> Event {
    Event::Container(0, ContainerEvent::Pulled { preparation: NEWEST, image_id: "id".into(), message: "there".into() })
}

fn pull_failed(of: ImageOwner, reason: &'static str, message: &str) -> Event {
    Event::Container(0, ContainerEvent::PullFailed { preparation: NEWEST, of, reason, message: message.into() })
}

#[test]
fn an_older_images_answer_is_not_the_new_ones() {
    let rules = rules(RestartPolicy::Always);
    let changed = || Event::Container(0, ContainerEvent::ImageChanged);
    let pulled = |preparation, id: &str| {
        Event::Container(0, ContainerEvent::Pulled { preparation, image_id: id.into(), message: id.into() })
    };
    let failed = |preparation| {
        let (of, reason) = (ImageOwner::Container, "ErrImagePull");
        Event::Container(0, ContainerEvent::PullFailed { preparation, of, reason, message: "old".into() })
    };
    let not_made = |preparation| {
        Event::Container(
            0,
            ContainerEvent::StartFailed { preparation, reason: "RunContainerError", message: "old".into() },
        )
    };
    // The image changes while the first one is being pulled, whose results are still to come.
    let begun = [(0, Event::Mounted), (1, changed())];
    let late = [(1, pulled(1, "old")), (1, failed(1))];
    let (state, log) = play(&rules, &[&begun[..], &late].concat());
    assert_eq!(
        (&state.machines[0].stage, log),
        (&ContainerStage::Pulling, vec!["Mount".into(), "Pull(0)".into(), "Pull(0)".into()])
    );
    let (state, _) = play(&rules, &[&begun[..], &late, &[(2, pulled(2, "new"))]].concat());
    assert_eq!((&state.machines[0].stage, state.machines[0].image_id.as_str()), (&ContainerStage::Starting, "new"));
    // The image changes while a container of the first one is being created, which then fails.
    let begun = [(0, Event::Mounted), (0, pulled(1, "old")), (1, changed()), (2, pulled(3, "new"))];
    let (state, log) = play(&rules, &[&begun[..], &[(3, not_made(2))]].concat());
    assert_eq!((&state.machines[0].stage, state.machines[0].awaits(4)), (&ContainerStage::Starting, true));
    assert!(!state.machines[0].awaits(2) && !log.iter().any(|log| log.contains("Error")), "{log:?}");
    let (state, _) = play(&rules, &[&begun[..], &[(3, not_made(4))]].concat());
    assert!(matches!(state.machines[0].stage, ContainerStage::Waiting { wait: WaitReason::Config { .. }, .. }));
}

pub(super) fn started() -> Event {
    Event::Container(0, ContainerEvent::Started { container_id: "wasmtime://1".into() })
}

pub(super) fn exited(attempt: u32, code: i32) -> Event {
    Event::Container(0, ContainerEvent::Exited { attempt, code, reason: "Error".into(), message: None })
}

#[test]
fn a_pod_begins_and_a_crash_backs_off() {
    let begin = [(0, Event::Mounted), (0, pulled()), (0, started())];
    let (state, log) = play(&rules(RestartPolicy::Always), &begin);
    assert_eq!(
        log,
        [
            "Mount",
            "Pull(0)",
            "Pulled: there",
            "Start { container: 0, attempt: 0 }",
            "Created: Container created",
            "Started: Container started"
        ]
    );
    assert!(state.ready());
    let mut events = begin.to_vec();
    events.extend([(1, exited(0, 3)), (1, pulled()), (1, started()), (2, exited(1, 3))]);
    let (state, log) = play(&rules(RestartPolicy::Always), &events);
    let ContainerStage::Waiting { wait: WaitReason::Crash { wait }, until } = &state.machines[0].stage else {
        panic!("{state:?}")
    };
    assert_eq!((wait.as_secs(), *until, state.machines[0].attempt), (10, at(12), Some(1)));
    assert!(log.contains(&"BackOff: Back-off restarting failed container c in pod p_n(u)".to_owned()));
    assert_eq!(state.wake_at(&rules(RestartPolicy::Always)), Some(at(12)));
    events.extend([(12, Event::Tick), (12, pulled()), (12, started())]);
    let (state, _) = play(&rules(RestartPolicy::Always), &events);
    assert_eq!((state.machines[0].attempt, state.machines[0].last.as_ref().map(|last| last.code)), (Some(2), Some(3)));
}

#[test]
fn the_restart_policy_decides_the_end() {
    for (restart, code, ended) in [
        (RestartPolicy::Never, 0, Some(true)),
        (RestartPolicy::Never, 1, Some(false)),
        (RestartPolicy::OnFailure, 0, Some(true)),
        (RestartPolicy::OnFailure, 1, None),
        (RestartPolicy::Always, 0, None),
    ] {
        let events = [(0, Event::Mounted), (0, pulled()), (0, started()), (1, exited(0, code)), (1, Event::Cleaned)];
        let (state, log) = play(&rules(restart), &events);
        assert_eq!(state.succeeded, ended, "{restart:?} {code}");
        assert_eq!(log.contains(&"Clean".to_owned()), ended.is_some());
        assert!(!log.contains(&"Delete".to_owned()));
    }
}

#[test]
fn probes_decide_readiness_and_life() {
    let threshold = |failure| Some(Thresholds { success: 1, failure, grace: None });
    let mut rules = rules(RestartPolicy::Always);
    let own = &mut rules.containers_mut()[0];
    (own.startup, own.readiness, own.liveness) = (threshold(3), threshold(2), threshold(1));
    let probed = |kind, good: bool| {
        Event::Container(
            0,
            ContainerEvent::Probed {
                attempt: 0,
                kind,
                result: if good { ProbeResult::Passed } else { ProbeResult::Failed("no".into()) },
            },
        )
    };
    let mut events = vec![(0, Event::Mounted), (0, pulled()), (0, started())];
    let (state, log) = play(&rules, &events);
    assert!(!state.ready() && log.ends_with(&["Probe(0, Startup)".to_owned()]));
    events.push((1, probed(ProbeKind::Startup, true)));
    let (state, log) = play(&rules, &events);
    assert!(!state.ready() && log.ends_with(&["Probe(0, Readiness)".to_owned(), "Probe(0, Liveness)".to_owned()]));
    events.push((1, probed(ProbeKind::Readiness, true)));
    events.push((2, probed(ProbeKind::Readiness, false)));
    assert!(play(&rules, &events).0.ready(), "one failure of two");
    events.push((3, probed(ProbeKind::Readiness, false)));
    let (state, log) = play(&rules, &events);
    assert!(!state.ready() && log.ends_with(&["Unhealthy: Readiness probe failed: no".to_owned()]));
    events.push((4, probed(ProbeKind::Liveness, false)));
    let (state, log) = play(&rules, &events);
    assert!(matches!(state.machines[0].stage, ContainerStage::Stopping { why: StopReason::Probe, .. }));
    assert_eq!(log[log.len() - 2], "Killing: Container c failed liveness probe, will be restarted");
    events.push((5, exited(0, 143)));
    assert_eq!(play(&rules, &events).0.machines[0].stage, ContainerStage::Pulling);
}

#[test]
fn a_probe_counts_successes_and_has_a_grace_of_its_own() {
    let mut rules = rules(RestartPolicy::Always);
    let seven = Duration::from_secs(7);
    let own = &mut rules.containers_mut()[0];
    own.readiness = Some(Thresholds { success: 3, failure: 1, grace: None });
    own.liveness = Some(Thresholds { success: 1, failure: 1, grace: Some(seven) });
    let probed =
        |second, kind, result| (second, Event::Container(0, ContainerEvent::Probed { attempt: 0, kind, result }));
    let ready = |second| probed(second, ProbeKind::Readiness, ProbeResult::Passed);
    let begin = vec![(0, Event::Mounted), (0, pulled()), (0, started()), ready(1), ready(2)];
    assert!(!play(&rules, &begin).0.ready(), "two of three");
    let three = [&begin[..], &[ready(3)]].concat();
    assert!(play(&rules, &three).0.ready());
    let failed = || ProbeResult::Failed("no".into());
    let again = [&begin[..], &[probed(3, ProbeKind::Readiness, failed()), ready(4), ready(5)]].concat();
    assert!(!play(&rules, &again).0.ready(), "a failure between them: two of three");
    let (_, log) = play(&rules, &[&three[..], &[probed(4, ProbeKind::Liveness, failed())]].concat());
    assert!(log.contains(&format!("{:?}", Action::Stop { container: 0, grace: seven })), "{log:?}");
}

#[test]
fn deletion_stops_cleans_and_deletes() {
    let grace = Duration::from_secs(30);
    let events = [
        (0, Event::Mounted),
        (0, pulled()),
        (0, started()),
        (1, Event::Deleted(grace)),
        (2, Event::Deleted(Duration::from_secs(1))),
        (3, exited(0, 0)),
        (3, Event::Cleaned),
    ];
    let (state, log) = play(&rules(RestartPolicy::Always), &events);
    assert_eq!(
        log[6..],
        [
            "Killing: Stopping container c",
            "Stop { container: 0, grace: 30s }",
            "Stop { container: 0, grace: 1s }",
            "Kill(0)",
            "Clean",
            "Delete"
        ]
    );
    assert_eq!((state.stage, state.succeeded), (Stage::Ended, Some(true)));

    let (state, log) = play(&rules(RestartPolicy::Always), &[(0, Event::Deleted(grace)), (0, Event::Cleaned)]);
    assert_eq!(log, ["Mount", "Kill(0)", "Clean", "Delete"]);
    assert_eq!(state.succeeded, Some(false));
}

#[test]
fn a_pull_that_fails_backs_off() {
    let failed = || pull_failed(ImageOwner::Container, "ErrImagePull", "gone");
    let events = [(0, Event::Mounted), (0, failed()), (1, Event::Tick)];
    let (state, log) = play(&rules(RestartPolicy::Always), &events);
    let ContainerStage::Waiting { wait: WaitReason::PullBackOff { message }, until } = &state.machines[0].stage else {
        panic!("{state:?}")
    };
    assert_eq!(message, r#"Back-off pulling image "i": ErrImagePull: gone"#);
    assert!(*until > at(1));
    assert_eq!(log[2..4], [r#"Failed: Failed to pull image "i": gone"#, "Failed: Error: ErrImagePull"]);
}

#[test]
fn the_image_of_a_volume_is_reported_by_its_own_name() {
    let of = || ImageOwner::Volume("data:v1".into());
    let failed = (0, pull_failed(of(), "ErrImagePull", "gone"));
    let machine = |event| (0, Event::Container(0, event));
    let begun = machine(ContainerEvent::PullBegan { of: of() });
    let there = machine(ContainerEvent::VolumePulled { message: "there".into() });
    let events = [(0, Event::Mounted), begun, there, failed, (1, Event::Tick)];
    let (state, log) = play(&rules(RestartPolicy::Always), &events);
    let ContainerStage::Waiting { wait: WaitReason::PullBackOff { message }, .. } = &state.machines[0].stage else {
        panic!("{state:?}")
    };
    assert_eq!(message, r#"Back-off pulling image "data:v1": ErrImagePull: gone"#);
    let wanted = [
        r#"Pulling: Pulling image "data:v1""#,
        "Pulled: there",
        r#"Failed: Failed to pull image "data:v1": gone"#,
        "Failed: Error: ErrImagePull",
        r#"BackOff: Back-off pulling image "data:v1""#,
        "Failed: Error: ImagePullBackOff",
    ];
    assert_eq!(log[2..8], wanted);
}

#[test]
fn a_deadline_and_an_eviction_fail_the_pod() {
    let rules = LifecyclePolicy { deadline: Some(Duration::from_secs(5)), ..rules(RestartPolicy::Always) };
    let mut events = vec![(0, Event::Mounted), (0, pulled()), (0, started())];
    assert_eq!(play(&rules, &events).0.wake_at(&rules), Some(at(5)));
    events.extend([(5, Event::Tick), (6, exited(0, 143)), (6, Event::Cleaned)]);
    let (state, _) = play(&rules, &events);
    assert_eq!(
        (state.succeeded, state.terminal_reason.and_then(|v| v.reason)),
        (Some(false), Some("DeadlineExceeded"))
    );
}

#[test]
fn a_pod_that_is_refused_ends_at_its_deadline() {
    let rules = LifecyclePolicy { deadline: Some(Duration::from_secs(5)), ..rules(RestartPolicy::Always) };
    let unsupported = Some(("spec.hostNetwork: no".to_owned(), vec!["spec.hostNetwork: no".to_owned()]));
    let admission = Admission { unsupported, ..Admission::default() };
    let (state, _) = PodState::new(at(0), &rules).begin(&rules, admission, at(0));
    assert_eq!(state.wake_at(&rules), Some(at(5)));
    let (state, actions) = state.step(&rules, Event::Tick, at(4));
    assert!(matches!(state.stage, Stage::Refused { .. }) && actions.is_empty());
    let (state, _) = state.step(&rules, Event::Tick, at(5));
    let (state, actions) = state.step(&rules, Event::Cleaned, at(5));
    assert_eq!((state.stage, state.succeeded, actions), (Stage::Ended, Some(false), Vec::new()));
    assert_eq!(state.terminal_reason.and_then(|terminal_reason| terminal_reason.reason), Some("DeadlineExceeded"));
}

#[test]
fn a_restart_of_the_node_counts_one_restart() {
    let exit =
        Exit { code: 255, reason: "Unknown".into(), message: None, started: None, finished: at(0), container_id: None };
    let rules = rules(RestartPolicy::Always);
    let mut state = PodState::adopted(at(0), at(-9), &rules);
    state.resume(0, 4, exit, String::new());
    let (state, actions) = state.begin(&rules, Admission::default(), at(0));
    assert_eq!(actions, [Action::Mount]);
    let state = [Event::Mounted, pulled(), started()].into_iter().fold(state, |s, e| {
        let event = addressed(&s, e);
        s.step(&rules, event, at(1)).0
    });
    assert_eq!(
        (state.machines[0].attempt, state.machines[0].last.as_ref().map(|last| last.code)),
        (Some(5), Some(255))
    );
}

#[test]
fn another_image_starts_the_container_again() {
    let rules = rules(RestartPolicy::Never);
    let events = [
        (0, Event::Mounted),
        (0, pulled()),
        (0, started()),
        (1, Event::Container(0, ContainerEvent::ImageChanged)),
        (2, exited(0, 143)),
    ];
    let (state, log) = play(&rules, &events);
    assert!(log.contains(&"Killing: Container c definition changed, will be restarted".to_owned()));
    assert_eq!(
        (state.machines[0].stage.clone(), log.last().map(String::as_str)),
        (ContainerStage::Pulling, Some("Pull(0)"))
    );
}

#[test]
fn an_immediate_restart_shows_no_state_in_between() {
    let rules = rules(RestartPolicy::Always);
    let begun = [(0, Event::Mounted), (0, pulled()), (0, started())];
    let held = |later: &[(i64, Event)]| {
        let state = play(&rules, &[&begun[..], later].concat()).0;
        (state.ready(), state.settles_at().map(|until| until.duration_since(at(0)).as_millis()))
    };
    let changed = (1, Event::Container(0, ContainerEvent::ImageChanged));
    assert_eq!(held(&[]), (true, Some(20)), "until its first probe");
    assert_eq!(held(std::slice::from_ref(&changed)), (false, Some(1500)), "while it ends");
    assert_eq!(held(&[changed.clone(), (2, exited(0, 143))]), (false, Some(2500)), "while its image is had");
    assert_eq!(held(&[changed.clone(), (2, exited(0, 143)), (2, pulled())]).1, Some(2500), "while it starts");
    let again = Event::Container(0, ContainerEvent::Started { container_id: "2".into() });
    assert_eq!(held(&[changed, (2, exited(0, 143)), (2, pulled()), (2, again)]), (true, Some(2020)));
}

#[test]
fn a_deleted_server_is_ready_while_it_takes_requests() {
    let begin = [(0, Event::Mounted), (0, pulled()), (0, started())];
    let rules = LifecyclePolicy { deadline: Some(Duration::from_secs(1)), ..rules(RestartPolicy::Always) };
    let deleted = [&begin[..], &[(0, Event::Deleted(Duration::from_secs(30)))]].concat();
    assert!(play(&rules, &deleted).0.ready());
    assert!(
        !play(&rules, &[&deleted[..], &[(1, Event::Container(0, ContainerEvent::StoppedListening))]].concat())
            .0
            .ready()
    );
    let over = [&begin[..], &[(1, Event::Tick)]].concat();
    assert!(!play(&rules, &over).0.ready(), "no deletion takes its endpoints out");
}

#[test]
fn readiness_is_probed_while_the_pod_ends() {
    let mut rules = rules(RestartPolicy::Always);
    rules.containers_mut()[0].readiness = Some(Thresholds { success: 1, failure: 2, grace: None });
    rules.containers_mut()[0].liveness = Some(Thresholds { success: 1, failure: 1, grace: None });
    let probed = |kind, result| (1, Event::Container(0, ContainerEvent::Probed { attempt: 0, kind, result }));
    let (passed, failed) = (
        || probed(ProbeKind::Readiness, ProbeResult::Passed),
        || probed(ProbeKind::Readiness, ProbeResult::Failed("no".into())),
    );
    let deleted =
        [(0, Event::Mounted), (0, pulled()), (0, started()), passed(), (1, Event::Deleted(Duration::from_secs(30)))];
    let ready = |events: Vec<(i64, Event)>| play(&rules, &[&deleted[..], &events[..]].concat()).0.ready();
    assert!(ready(vec![failed()]), "one failure of two");
    assert!(!ready(vec![failed(), failed()]));
    assert!(ready(vec![failed(), failed(), passed()]));
    // The liveness probe ends with the deletion: a late result changes nothing.
    let late = probed(ProbeKind::Liveness, ProbeResult::Failed("no".into()));
    let (state, log) = play(&rules, &[&deleted[..], &[late]].concat());
    assert!(state.ready() && !log.iter().any(|line| line.contains("Liveness probe failed")), "{log:?}");
    // No result of a command in the container makes it ready once it has stopped to listen.
    assert!(!ready(vec![(1, Event::Container(0, ContainerEvent::StoppedListening)), passed(), passed()]));
}

#[test]
fn a_clock_that_is_set_back_prolongs_no_wait() {
    let rules = rules(RestartPolicy::Always);
    let failed = pull_failed(ImageOwner::Container, "ErrImageNeverPull", "m");
    let (state, _) = play(&rules, &[(0, Event::Mounted), (5, failed)]);
    assert_eq!(state.wake_at(&rules), Some(at(15)));
    let (state, actions) = state.step(&rules, Event::ClockStepped(SignedDuration::from_hours(-1)), at(5 - 3600));
    assert_eq!(actions, []);
    assert_eq!(state.wake_at(&rules), Some(at(15 - 3600)));
    let (state, actions) = state.step(&rules, Event::Tick, at(15 - 3600));
    assert_eq!((&state.machines[0].stage, actions), (&ContainerStage::Pulling, vec![Action::Pull(0)]));
}

/// Two main containers.
fn two(restart: RestartPolicy) -> LifecyclePolicy {
    let mut rules = rules(restart);
    let other = ContainerPolicy { name: "d".into(), ..rules.containers[0].clone() };
    rules.containers_mut().push(other);
    rules
}

pub(super) fn of(container: usize, event: Event) -> Event {
    match event {
        Event::Container(_, event) => Event::Container(container, event),
        other => other,
    }
}

#[test]
fn a_pod_ends_when_all_of_its_containers_have() {
    let both = |event: fn() -> Event| [(0, of(0, event())), (0, of(1, event()))];
    let begin: Vec<_> = [(0, Event::Mounted)].into_iter().chain(both(pulled)).chain(both(started)).collect();
    let rules = two(RestartPolicy::OnFailure);
    let (state, log) = play(&rules, &begin);
    assert!(state.ready());
    assert_eq!(log.iter().filter(|log| log.starts_with("Start {")).count(), 2);
    let first = [&begin[..], &[(1, of(0, exited(0, 0)))]].concat();
    let (state, log) = play(&rules, &first);
    assert_eq!((state.stage.clone(), state.succeeded, state.ready()), (Stage::Active, None, false));
    assert!(!log.contains(&"Clean".to_owned()));
    let crashed = [&first[..], &[(1, of(1, exited(0, 1))), (1, of(1, pulled())), (1, of(1, started()))]].concat();
    let (state, _) = play(&rules, &crashed);
    assert_eq!(
        (state.machines[0].attempt, state.machines[1].attempt),
        (Some(0), Some(1)),
        "each has a life of its own"
    );
    let (state, _) = play(&rules, &[&crashed[..], &[(2, of(1, exited(1, 0)))]].concat());
    assert_eq!((state.stage, state.succeeded), (Stage::Cleaning, Some(true)));
    let deleted = [&begin[..], &[(1, Event::Deleted(Duration::from_secs(3))), (1, of(1, exited(0, 143)))]].concat();
    let (state, log) = play(&rules, &deleted);
    assert_eq!(log.iter().filter(|log| log.starts_with("Stop {")).count(), 2);
    assert_eq!(state.stage, Stage::Active, "the other one still runs");
    let (state, _) = play(&rules, &[&deleted[..], &[(1, of(0, exited(0, 143)))]].concat());
    assert_eq!((state.stage, state.succeeded), (Stage::Cleaning, Some(false)));
}

fn hooked(attempt: u32, failure: Option<&str>) -> Event {
    Event::Container(0, ContainerEvent::HookEnded { attempt, failure: failure.map(str::to_owned) })
}

#[test]
fn a_container_counts_once_the_hook_after_its_start_has_ended() {
    let mut rules = rules(RestartPolicy::Always);
    rules.containers_mut()[0].post_start = Some(PostStart::Call);
    rules.containers_mut()[0].readiness = Some(Thresholds { success: 1, failure: 3, grace: None });
    let other = ContainerPolicy { name: "d".into(), post_start: None, ..rules.containers[0].clone() };
    rules.containers_mut().push(other);
    let mut events = vec![(0, Event::Mounted), (0, pulled()), (0, started())];
    let (state, log) = play(&rules, &events);
    assert!(state.machines[0].hook_pending() && !state.ready(), "{state:?}");
    assert!(log.ends_with(&["Started: Container started".to_owned(), "Hook(0)".to_owned()]), "{log:?}");
    assert!(!log.contains(&"Pull(1)".to_owned()), "as upstream, the next one waits: {log:?}");
    // The hook of another start is ignored.
    events.push((1, hooked(7, None)));
    events.push((1, hooked(0, None)));
    let (state, log) = play(&rules, &events);
    assert!(!state.machines[0].hook_pending());
    assert!(log.ends_with(&["Probe(0, Readiness)".to_owned(), "Pull(1)".to_owned()]), "{log:?}");
}

#[test]
fn a_hook_that_fails_kills_the_container_which_backs_off() {
    let mut rules = rules(RestartPolicy::Always);
    rules.containers_mut()[0].post_start = Some(PostStart::Call);
    let life = |attempt, second| {
        vec![
            (second, pulled()),
            (second, started()),
            (second, hooked(attempt, Some("why"))),
            (second, exited(attempt, 143)),
        ]
    };
    let mut events = vec![(0, Event::Mounted)];
    events.extend(life(0, 0));
    let (state, log) = play(&rules, &events);
    assert_eq!(
        log[log.len() - 4..],
        [
            "FailedPostStartHook: PostStartHook failed",
            "Killing: FailedPostStartHook",
            "Stop { container: 0, grace: 30s }",
            "Kill(0)"
        ]
    );
    let shown = ContainerStage::Waiting { wait: WaitReason::Hook { message: "why".into() }, until: at(1) };
    assert_eq!((&state.machines[0].stage, state.machines[0].exit.as_ref().map(|exit| exit.code)), (&shown, Some(143)));
    events.push((1, Event::Tick));
    events.extend(life(1, 1));
    events.push((2, Event::Tick));
    let (state, _) = play(&rules, &events);
    assert!(
        matches!(state.machines[0].stage, ContainerStage::Waiting { wait: WaitReason::Crash { .. }, .. }),
        "{state:?}"
    );
    assert_eq!(state.machines[0].last.as_ref().map(|last| last.code), Some(143));
    // Without a restart, the pod has failed.
    rules.containers_mut()[0].restart = RestartPolicy::Never;
    let (state, _) = play(&rules, &events[..5]);
    assert_eq!(state.succeeded, Some(false));
}

#[test]
fn an_end_breaks_the_hook_off() {
    let mut rules = rules(RestartPolicy::Always);
    let failed = "FailedPostStartHook: PostStartHook failed".to_owned();
    for (hook, says) in [(PostStart::Call, true), (PostStart::Sleep, false)] {
        rules.containers_mut()[0].post_start = Some(hook);
        let begin = [(0, Event::Mounted), (0, pulled()), (0, started())];
        let deleted = [&begin[..], &[(1, Event::Deleted(Duration::from_secs(5)))]].concat();
        let (state, log) = play(&rules, &deleted);
        assert!(log.contains(&failed) && log.contains(&"Stop { container: 0, grace: 5s }".to_owned()), "{log:?}");
        assert!(!state.ready() && !state.machines[0].hook_pending());
        let (state, log) = play(&rules, &[&begin[..], &[(1, exited(0, 1))]].concat());
        assert_eq!((log.contains(&failed), state.machines[0].stage.clone()), (says, ContainerStage::Pulling));
    }
}

#[test]
fn a_probe_that_cannot_be_made_counts_neither_way() {
    let mut rules = rules(RestartPolicy::Always);
    rules.containers_mut()[0].liveness = Some(Thresholds { success: 1, failure: 2, grace: None });
    let probed = |result| Event::Container(0, ContainerEvent::Probed { attempt: 0, kind: ProbeKind::Liveness, result });
    let failed = || probed(ProbeResult::Failed("no".into()));
    let errored = || probed(ProbeResult::Errored("how".into()));
    let mut events = vec![(0, Event::Mounted), (0, pulled()), (0, started())];
    events.extend([(1, failed()), (2, errored()), (3, errored()), (4, probed(ProbeResult::Warned("hm".into())))]);
    events.push((5, failed()));
    let (state, log) = play(&rules, &events);
    assert!(matches!(state.machines[0].stage, ContainerStage::Running(_)), "{state:?}");
    assert!(log.contains(&"Unhealthy: Liveness probe errored and resulted in unknown state: how".to_owned()));
    assert!(log.contains(&"ProbeWarning: Liveness probe warning: hm".to_owned()));
    events.extend([(6, errored()), (7, failed())]);
    let (state, _) = play(&rules, &events);
    assert!(matches!(state.machines[0].stage, ContainerStage::Stopping { why: StopReason::Probe, .. }), "{state:?}");
}

/// As upstream: a pod that ends with its node has failed, within the node's grace period.
#[test]
fn a_node_that_shuts_down_ends_its_pods() {
    let seven = Duration::from_secs(7);
    let events = [(0, Event::Mounted), (0, pulled()), (0, started()), (1, Event::ShutDown(seven)), (2, exited(0, 143))];
    let (state, log) = play(&rules(RestartPolicy::Always), &events);
    assert!(log.contains(&format!("{:?}", Action::Stop { container: 0, grace: seven })), "{log:?}");
    let reason = state.terminal_reason.as_ref().and_then(|of| of.reason);
    assert_eq!((reason, state.succeeded), (Some("Terminated"), Some(false)));
}

//! No sequence of events breaks a pod, whatever its containers.

use proptest::prelude::*;

use super::tests::{NEWEST, addressed, at, rules};
use super::*;

fn container_event() -> impl Strategy<Value = ContainerEvent> {
    let kinds = prop_oneof![Just(ProbeKind::Startup), Just(ProbeKind::Readiness), Just(ProbeKind::Liveness)];
    let reasons = prop_oneof![Just("ErrImagePull"), Just("ErrImageNeverPull"), Just("InvalidImageName")];
    let text = || Just("m".to_owned());
    let results = prop_oneof![
        3 => Just(ProbeResult::Passed),
        3 => text().prop_map(ProbeResult::Failed),
        1 => text().prop_map(ProbeResult::Warned),
        1 => text().prop_map(ProbeResult::Errored),
    ];
    // Mostly the expected number.
    let numbers = || prop_oneof![4 => Just(NEWEST), 1 => 0..6_u32];
    prop_oneof![
        Just(ContainerEvent::PullBegan { of: ImageOwner::Container }),
        Just(ContainerEvent::VolumePulled { message: "m".into() }),
        numbers().prop_map(|preparation| ContainerEvent::Pulled {
            preparation,
            image_id: "id".into(),
            message: "m".into()
        }),
        (numbers(), reasons, text()).prop_map(|(preparation, reason, message)| ContainerEvent::PullFailed {
            preparation,
            of: ImageOwner::Container,
            reason,
            message
        }),
        Just(ContainerEvent::Started { container_id: "x://1".into() }),
        numbers().prop_map(|preparation| ContainerEvent::StartFailed {
            preparation,
            reason: "RunContainerError",
            message: "m".into()
        }),
        Just(ContainerEvent::SourcesChanged),
        Just(ContainerEvent::HookFailed),
        Just(ContainerEvent::HookFellBack { host: "h".into() }),
        Just(ContainerEvent::StoppedListening),
        Just(ContainerEvent::ImageChanged),
        Just(ContainerEvent::Resized),
        (0..4_u32, any::<bool>()).prop_map(|(attempt, bad)| ContainerEvent::InstantiationTried {
            attempt,
            broken: bad.then(|| "m".to_owned())
        }),
        (0..4_u32, kinds, results).prop_map(|(attempt, kind, result)| ContainerEvent::Probed { attempt, kind, result }),
        (0..4_u32, any::<bool>())
            .prop_map(|(attempt, bad)| ContainerEvent::HookEnded { attempt, failure: bad.then(|| "m".to_owned()) }),
        (0..4_u32, prop_oneof![Just(0), Just(1), Just(137)], text())
            .prop_map(|(attempt, code, reason)| { ContainerEvent::Exited { attempt, code, reason, message: None } }),
    ]
}

/// Any event at any time, mostly of containers, and also of an unknown one.
fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => Just(Event::Tick),
        1 => (-500..500_i64).prop_map(|seconds| Event::ClockStepped(SignedDuration::from_secs(seconds))),
        1 => (0..60_u64).prop_map(|seconds| Event::Deleted(Duration::from_secs(seconds))),
        1 => Just(Event::Removed),
        4 => Just(Event::Mounted),
        1 => Just(Event::MountFailed("m".into())),
        1 => Just(Event::Evicted("m".into())),
        1 => Just(Event::ShutDown(Duration::from_secs(3))),
        2 => Just(Event::Cleaned),
        30 => (0..9_usize, container_event()).prop_map(|(index, event)| Event::Container(index, event)),
    ]
}

fn any_restart() -> impl Strategy<Value = RestartPolicy> + Clone {
    prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)]
}

fn any_rule() -> impl Strategy<Value = RestartRule> + Clone {
    (prop_oneof![Just(0), Just(1), Just(137)], any::<bool>(), any::<bool>())
        .prop_map(|(code, others, all)| RestartRule { exit_codes: vec![code], others, all })
}

fn any_rules() -> impl Strategy<Value = LifecyclePolicy> {
    let restart = any_restart();
    let threshold =
        || proptest::option::of((1..3_u32).prop_map(|n| Thresholds { success: 1, failure: n, grace: None }));
    let hook = proptest::option::of(prop_oneof![Just(PostStart::Sleep), Just(PostStart::Call)]);
    let container = (threshold(), threshold(), threshold(), any_restart(), proptest::option::of(any_rule()), hook);
    let classes = proptest::collection::vec(prop_oneof![Just(Class::Init), Just(Class::Sidecar)], 0..4);
    let own = (1..4_usize, 0..2_usize)
        .prop_map(|(own, ephemeral)| [vec![Class::Main; own], vec![Class::Ephemeral; ephemeral]].concat());
    let classes = (classes, own).prop_map(|(init, own)| [init, own].concat());
    let containers = classes.prop_flat_map(move |classes| {
        let count = classes.len();
        (Just(classes), proptest::collection::vec(container.clone(), count))
    });
    (restart, containers, proptest::option::of(0..500_u64)).prop_map(|(restart, containers, deadline)| {
        LifecyclePolicy {
            containers: containers
                .0
                .into_iter()
                .zip(containers.1)
                .map(|(class, (startup, readiness, liveness, own, rule, hook))| ContainerPolicy {
                    name: "c".into(),
                    class,
                    restart: match class {
                        Class::Sidecar => RestartPolicy::Always,
                        Class::Ephemeral => RestartPolicy::Never,
                        Class::Init if own == RestartPolicy::Always => RestartPolicy::OnFailure,
                        Class::Init | Class::Main => own,
                    },
                    restart_rules: rule.into_iter().filter(|_| class != Class::Ephemeral).collect(),
                    image: "i".into(),
                    startup,
                    readiness,
                    liveness,
                    post_start: hook.filter(|_| matches!(class, Class::Main | Class::Sidecar)),
                })
                .collect::<Vec<_>>()
                .into(),
            deadline: deadline.map(Duration::from_secs),
            ..rules(restart)
        }
    })
}

fn is_over(state: &PodState) -> bool {
    matches!(state.stage, Stage::Cleaning | Stage::Ended)
}

/// Checks which containers start and stop together, and which wait for others.
fn check_order(before: &PodState, after: &PodState, actions: &[Action]) -> Result<(), TestCaseError> {
    let begins = |index: usize| {
        matches!(before.machines.get(index), Some(machine) if machine.stage == ContainerStage::Idle)
            && !matches!(after.machines[index].stage, ContainerStage::Idle | ContainerStage::Done)
    };
    let first = after
        .machines
        .iter()
        .position(|machine| matches!(machine.class, Class::Init | Class::Sidecar) && !machine.passed);
    for (index, machine) in after.machines.iter().enumerate().filter(|(index, _)| begins(*index)) {
        prop_assert!(!after.closing(), "nothing begins in a pod that closes");
        match machine.class {
            Class::Init | Class::Sidecar => prop_assert!(first.is_none_or(|first| index <= first), "{:?}", after),
            Class::Main => {
                prop_assert!(first.is_none(), "a container began before the pod was initialized: {:?}", after);
                let hooks = |machine: &ContainerMachine| machine.class == Class::Main && machine.hook_pending();
                prop_assert!(!before.machines[..index].iter().any(hooks) || !after.machines[..index].iter().any(hooks));
            }
            Class::Ephemeral => {}
        }
    }
    let busy = after.machines.iter().any(|machine| machine.class == Class::Main && machine.is_live());
    let late = after.closes.is_some_and(|closes| closes.at_once) || actions.is_empty();
    for action in actions.iter().filter(|_| !late) {
        if let Action::Stop { container, grace } = action
            && after.machines[*container].class == Class::Sidecar
            && before.stage == Stage::Active
            && matches!(
                before.machines.get(*container),
                Some(ContainerMachine { stage: ContainerStage::Running(_), .. })
            )
            && matches!(&after.machines[*container].stage, ContainerStage::Stopping { why: StopReason::Pod, .. })
        {
            let later = after.machines[container + 1..]
                .iter()
                .any(|machine| machine.class == Class::Sidecar && machine.is_live());
            prop_assert!(*grace <= TURN_MIN || !busy && !later, "a sidecar ends before its turn: {:?}", actions);
        }
    }
    Ok(())
}

fn check(
    rules: &LifecyclePolicy,
    before: &PodState,
    after: &PodState,
    actions: &[Action],
) -> Result<(), TestCaseError> {
    prop_assert_eq!(after.machines.len(), rules.containers.len());
    if is_over(after) {
        prop_assert!(after.machines.iter().all(|machine| machine.stage == ContainerStage::Done), "{:?}", after);
        prop_assert!(after.succeeded.is_some() || after.removed);
    }
    if is_over(before) {
        let starts = |action: &Action| matches!(action, Action::Pull(_) | Action::Start { .. } | Action::Mount);
        prop_assert!(is_over(after) && !actions.iter().any(starts), "nothing begins after the end: {:?}", actions);
    }
    if before.succeeded.is_some() {
        prop_assert_eq!(after.succeeded, before.succeeded, "a phase that is final stays");
    }
    prop_assert!(!before.ending() || after.ending());
    for (was, now) in before.machines.iter().zip(&after.machines) {
        prop_assert!(now.attempt >= was.attempt, "starts are counted up");
        prop_assert!(now.hook_pending() || !now.is_live() || now.exit.is_none());
    }
    for (index, machine) in before.machines.iter().enumerate() {
        let kills = actions.contains(&Action::Kill(index));
        let was_live = machine.is_live();
        let is_live = after.machines[index].is_live();
        prop_assert!(!was_live || is_live || kills, "what runs no more was ended: {:?}", actions);
    }
    check_order(before, after, actions)?;
    let clean = actions.iter().filter(|action| **action == Action::Clean).count();
    prop_assert!(clean <= 1);
    if !is_over(before) && is_over(after) {
        prop_assert_eq!(clean, 1, "its end cleans up, once");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_events_breaks_a_pod(
        rules in any_rules(),
        events in proptest::collection::vec((event(), 0..100_i64), 0..80),
        refused in any::<bool>(),
    ) {
        let unsupported = (refused && events.len() % 5 == 0).then(|| ("no".to_owned(), vec!["no".to_owned()]));
        let admission = Admission { unsupported, ..Admission::default() };
        let (mut state, _) = PodState::new(at(0), &rules).begin(&rules, admission, at(0));
        let mut now = 0;
        for (event, later) in events {
            now += later;
            let event = addressed(&state, event);
            let (next, actions) = state.clone().step(&rules, event, at(now));
            check(&rules, &state, &next, &actions)?;
            let _ = (next.wake_at(&rules), next.settles_at(), next.ready());
            state = next;
        }
    }
}

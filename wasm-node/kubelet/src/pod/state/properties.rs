//! No sequence of events breaks a pod, of whatever containers.

use proptest::prelude::*;

use super::tests::{NEWEST, addressed, at, rules};
use super::*;

fn cell_event() -> impl Strategy<Value = CellEvent> {
    let kinds = prop_oneof![Just(ProbeKind::Startup), Just(ProbeKind::Readiness), Just(ProbeKind::Liveness)];
    let reasons = prop_oneof![Just("ErrImagePull"), Just("ErrImageNeverPull"), Just("InvalidImageName")];
    let text = || Just("m".to_owned());
    let results = prop_oneof![
        3 => Just(ProbeResult::Passed),
        3 => text().prop_map(ProbeResult::Failed),
        1 => text().prop_map(ProbeResult::Warned),
        1 => text().prop_map(ProbeResult::Errored),
    ];
    // Mostly the answer that is waited for.
    let numbers = || prop_oneof![4 => Just(NEWEST), 1 => 0..6_u32];
    prop_oneof![
        Just(CellEvent::PullBegan { of: ImageOf::Container }),
        Just(CellEvent::VolumePulled { message: "m".into() }),
        numbers().prop_map(|preparation| CellEvent::Pulled { preparation, image_id: "id".into(), message: "m".into() }),
        (numbers(), reasons, text()).prop_map(|(preparation, reason, message)| CellEvent::PullFailed {
            preparation,
            of: ImageOf::Container,
            reason,
            message
        }),
        Just(CellEvent::Started { container_id: "x://1".into() }),
        numbers().prop_map(|preparation| CellEvent::StartFailed {
            preparation,
            reason: "RunContainerError",
            message: "m".into()
        }),
        Just(CellEvent::SourcesChanged),
        Just(CellEvent::HookFailed),
        Just(CellEvent::HookFellBack { host: "h".into() }),
        Just(CellEvent::Closed),
        Just(CellEvent::ImageChanged),
        Just(CellEvent::Resized),
        (0..4_u32, any::<bool>())
            .prop_map(|(attempt, bad)| CellEvent::Tried { attempt, broken: bad.then(|| "m".to_owned()) }),
        (0..4_u32, kinds, results).prop_map(|(attempt, kind, result)| CellEvent::Probed { attempt, kind, result }),
        (0..4_u32, any::<bool>())
            .prop_map(|(attempt, bad)| CellEvent::Hooked { attempt, failure: bad.then(|| "m".to_owned()) }),
        (0..4_u32, prop_oneof![Just(0), Just(1), Just(137)], text())
            .prop_map(|(attempt, code, reason)| { CellEvent::Exited { attempt, code, reason, message: None } }),
    ]
}

/// Any event at any time, mostly of containers: also of one that isn't there.
fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => Just(Event::Tick),
        1 => (0..60_u64).prop_map(|seconds| Event::Deleted(Duration::from_secs(seconds))),
        1 => Just(Event::Removed),
        4 => Just(Event::Mounted),
        1 => Just(Event::MountFailed("m".into())),
        1 => Just(Event::Evicted("m".into())),
        1 => Just(Event::ShutDown(Duration::from_secs(3))),
        2 => Just(Event::Cleaned),
        30 => (0..9_usize, cell_event()).prop_map(|(index, event)| Event::Container(index, event)),
    ]
}

fn any_restart() -> impl Strategy<Value = Restart> + Clone {
    prop_oneof![Just(Restart::Always), Just(Restart::OnFailure), Just(Restart::Never)]
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
                        Class::Sidecar => Restart::Always,
                        Class::Ephemeral => Restart::Never,
                        Class::Init if own == Restart::Always => Restart::OnFailure,
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

fn is_over(state: &State) -> bool {
    matches!(state.stage, Stage::Cleaning | Stage::Ended)
}

/// What begins and ends together, and what waits for whom.
fn check_order(before: &State, after: &State, actions: &[Action]) -> Result<(), TestCaseError> {
    let begins = |index: usize| {
        matches!(before.cells.get(index), Some(cell) if cell.stage == CellStage::Idle)
            && !matches!(after.cells[index].stage, CellStage::Idle | CellStage::Done)
    };
    let first = after.cells.iter().position(|cell| matches!(cell.class, Class::Init | Class::Sidecar) && !cell.passed);
    for (index, cell) in after.cells.iter().enumerate().filter(|(index, _)| begins(*index)) {
        prop_assert!(!after.closing(), "nothing begins in a pod that closes");
        match cell.class {
            Class::Init | Class::Sidecar => prop_assert!(first.is_none_or(|first| index <= first), "{:?}", after),
            Class::Main => {
                prop_assert!(first.is_none(), "a container began before the pod was initialized: {:?}", after);
                let hooks = |cell: &Cell| cell.class == Class::Main && cell.hooking();
                prop_assert!(!before.cells[..index].iter().any(hooks) || !after.cells[..index].iter().any(hooks));
            }
            Class::Ephemeral => {}
        }
    }
    let busy = after.cells.iter().any(|cell| cell.class == Class::Main && cell.is_live());
    let late = after.closes.is_some_and(|closes| closes.at_once) || actions.is_empty();
    for action in actions.iter().filter(|_| !late) {
        if let Action::Stop { container, grace } = action
            && after.cells[*container].class == Class::Sidecar
            && before.stage == Stage::Active
            && matches!(before.cells.get(*container), Some(Cell { stage: CellStage::Running(_), .. }))
            && matches!(&after.cells[*container].stage, CellStage::Stopping { why: StopReason::Pod, .. })
        {
            let later = after.cells[container + 1..].iter().any(|cell| cell.class == Class::Sidecar && cell.is_live());
            prop_assert!(*grace <= TURN_MIN || !busy && !later, "a sidecar ends before its turn: {:?}", actions);
        }
    }
    Ok(())
}

fn check(rules: &LifecyclePolicy, before: &State, after: &State, actions: &[Action]) -> Result<(), TestCaseError> {
    prop_assert_eq!(after.cells.len(), rules.containers.len());
    if is_over(after) {
        prop_assert!(after.cells.iter().all(|cell| cell.stage == CellStage::Done), "{:?}", after);
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
    for (was, now) in before.cells.iter().zip(&after.cells) {
        prop_assert!(now.attempt >= was.attempt, "starts are counted up");
        prop_assert!(now.hooking() || !now.is_live() || now.exit.is_none());
    }
    for (index, cell) in before.cells.iter().enumerate() {
        let kills = actions.contains(&Action::Kill(index));
        let was_live = cell.is_live();
        let is_live = after.cells[index].is_live();
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
        let refused = (refused && events.len() % 5 == 0).then(|| ("no".to_owned(), vec!["no".to_owned()]));
        let (mut state, _) = State::new(at(0), &rules).begin(&rules, refused, at(0));
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

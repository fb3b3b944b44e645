//! Rate limit for replacing pods that were lost right after their creation: docs/decisions/0095-replacement-rate.md.
//!
//! A pod that is evicted, rejected, failed or deleted within [`EARLY`] of its creation counts as lost early, unless its
//! own controller deleted it. A burst of an owner's early losses is replaced at once, and then one each second. Pods
//! for a new owner or a larger size are never delayed.

use std::time::Duration;

use machinery_client::losses::EARLY;
use machinery_client::{Action, Kind, ObjectCache, Plan, Pod};

use crate::pods;

/// The minimum burst, as many as upstream's client sends requests in a burst.
const BURST_MIN: usize = 30;
/// The interval between replacements after the burst: upstream's rate for one pod that is evicted at once.
const INTERVAL: Duration = Duration::from_secs(1);

/// The memory of an owner's early losses.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Replacement {
    owner_uid: String,
    /// The early losses that are processed, in the view's count.
    counted: u64,
    /// Those that aren't replaced yet.
    owed: usize,
    /// Young pods that the owner's controller deleted.
    given_up: u64,
    /// The accumulated credit: [`INTERVAL`] per replacement.
    credit: Duration,
    at: Duration,
}

/// The number of pods to create now, and the wait for the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReplacementBudget {
    pub(crate) pods: usize,
    pub(crate) next_in: Option<Duration>,
}

impl Replacement {
    /// Processes the losses since the last pass, with `missing` of the `wanted` pods to create; none if the owner has
    /// lost nothing.
    pub(crate) fn next(
        before: Option<&Self>,
        view: &ObjectCache,
        owner_uid: &str,
        (missing, wanted): (usize, usize),
        elapsed: Duration,
    ) -> (ReplacementBudget, Option<Self>) {
        let losses = view.early_losses(owner_uid);
        let before = before.filter(|before| before.owner_uid == owner_uid);
        if losses == 0 {
            let given_up = before.filter(|before| before.given_up > 0).cloned();
            return (ReplacementBudget { pods: missing, next_in: None }, given_up);
        }
        let stock = INTERVAL * u32::try_from(BURST_MIN.max(wanted.saturating_mul(2))).unwrap_or(u32::MAX);
        let fresh = || Self { owner_uid: owner_uid.to_owned(), credit: stock, at: elapsed, ..Self::default() };
        let mut now = before.cloned().unwrap_or_else(fresh);
        let new = losses.checked_sub(now.counted).unwrap_or(losses);
        let forgiven = new.min(now.given_up);
        now.given_up -= forgiven;
        now.counted = losses;
        now.credit = now.credit.saturating_add(elapsed.saturating_sub(now.at)).min(stock);
        now.at = elapsed;
        // A complete owner needs no replacement: the lost pods were surplus.
        let owed = usize::try_from(new - forgiven).unwrap_or(usize::MAX);
        now.owed = now.owed.saturating_add(owed).min(missing);
        let in_stock = usize::try_from(now.credit.as_nanos() / INTERVAL.as_nanos()).unwrap_or(usize::MAX);
        let paid = now.owed.min(in_stock);
        let pods = missing - now.owed + paid;
        now.owed -= paid;
        now.credit -= INTERVAL * u32::try_from(paid).unwrap_or(u32::MAX);
        let next_in = (now.owed > 0).then(|| INTERVAL.saturating_sub(now.credit));
        (ReplacementBudget { pods, next_in }, Some(now))
    }

    /// The memory with the young pods that a plan deletes; none if there is nothing to remember.
    pub(crate) fn noted(
        known: Option<Self>,
        owner_uid: &str,
        plan: &Plan,
        view: &ObjectCache,
        elapsed: Duration,
    ) -> Option<Self> {
        let begun = known.is_some();
        let mut now = known.unwrap_or_else(|| Self {
            owner_uid: owner_uid.to_owned(),
            credit: Duration::MAX,
            at: elapsed,
            ..Self::default()
        });
        let young: usize = plan.actions.iter().map(|action| young_deletions(action, view, elapsed)).sum();
        now.given_up += u64::try_from(young).unwrap_or(u64::MAX);
        (begun || now.given_up > 0).then_some(now)
    }
}

fn young_deletions(action: &Action, view: &ObjectCache, elapsed: Duration) -> usize {
    match action {
        Action::Delete { kind, key, .. } if *kind == Kind::of::<Pod>() => {
            let active = view.get::<Pod>(key).is_some_and(pods::is_active);
            let young = view.appeared_at(kind, key).is_some_and(|at| elapsed.saturating_sub(at) < EARLY);
            usize::from(active && young)
        }
        Action::Concurrent(actions) | Action::SlowStart(actions) => {
            actions.iter().map(|action| young_deletions(action, view, elapsed)).sum()
        }
        Action::Reporting { tried, .. } => young_deletions(tried, view, elapsed),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use machinery_client::simulate::Simulation;
    use serde_json::{Value, json};

    use super::*;

    /// An owner of pods that are all removed after a while.
    struct Play {
        simulation: Simulation,
        memory: Option<Replacement>,
        made: usize,
    }

    impl Play {
        fn new() -> Self {
            let now = "2026-01-01T00:00:00Z".parse().unwrap();
            Self { simulation: crate::simulation(now, []), memory: None, made: 0 }
        }

        fn pass(&mut self, missing: usize, wanted: usize) -> ReplacementBudget {
            let elapsed = self.simulation.elapsed();
            let view = &self.simulation.view;
            let (allowed, memory) = Replacement::next(self.memory.as_ref(), view, "o", (missing, wanted), elapsed);
            self.memory = memory;
            allowed
        }

        fn wait(&mut self, time: Duration) {
            self.simulation.now = self.simulation.now.saturating_add(time).unwrap();
        }

        /// Creates pods that live for `life`.
        fn lose(&mut self, pods: usize, life: Duration) {
            let kind = Kind::of::<Pod>();
            let owner = json!([{"apiVersion": "v1", "kind": "X", "name": "x", "uid": "o", "controller": true}]);
            let pod = |number: usize| -> Value {
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("p{number}"), "namespace": "a",
                    "ownerReferences": owner}, "spec": {"containers": []}})
            };
            let numbers = self.made..self.made + pods;
            let keys: Vec<_> = numbers.map(|number| self.simulation.create(&kind, pod(number))).collect();
            self.made += pods;
            self.wait(life);
            for key in keys {
                self.simulation.view.set_elapsed(self.simulation.elapsed());
                self.simulation.view.remove(&kind, &key, 0);
            }
        }
    }

    /// A minute with pods that are evicted at once: the burst, and one a second.
    #[test]
    fn early_losses_are_replaced_once_a_second() {
        for wanted in [1, 10, 500] {
            let mut play = Play::new();
            let mut made = 0;
            let mut allowed = play.pass(wanted, wanted);
            for _ in 0..10_000 {
                if play.simulation.elapsed() > Duration::from_secs(60) {
                    break;
                }
                made += allowed.pods;
                play.lose(allowed.pods, Duration::from_millis(5));
                if allowed.pods == 0 {
                    play.wait(allowed.next_in.expect("it goes on in the end"));
                }
                allowed = play.pass(wanted, wanted);
            }
            let burst = wanted + BURST_MIN.max(2 * wanted);
            assert!(made >= burst && made <= burst + 62, "{wanted}: {made}");
        }
    }

    #[test]
    fn growth_and_old_pods_are_never_delayed() {
        let mut play = Play::new();
        assert_eq!(play.pass(500, 500), ReplacementBudget { pods: 500, next_in: None }, "there was nothing before");
        play.lose(500, EARLY);
        assert_eq!(play.pass(500, 500), ReplacementBudget { pods: 500, next_in: None }, "they lived for long enough");
        for _ in 0..40 {
            play.lose(1, Duration::ZERO);
            play.pass(1, 1);
        }
        let held = play.pass(1, 1);
        assert_eq!(held.pods, 0);
        assert_eq!(play.pass(101, 101).pods, 100, "a hundred more are wanted");
    }

    /// A user who deletes all pods of a set that is seconds old gets them back at once, and a second time.
    #[test]
    fn all_pods_of_a_set_may_go_twice() {
        let mut play = Play::new();
        for _ in 0..2 {
            play.lose(100, Duration::from_secs(1));
            assert_eq!(play.pass(100, 100).pods, 100);
        }
        play.lose(100, Duration::from_secs(1));
        assert!(play.pass(100, 100).pods < 5);
    }

    #[test]
    fn pods_deleted_by_their_owner_are_no_losses() {
        let mut play = Play::new();
        for _ in 0..100 {
            let memory = play.memory.take();
            let plan = Plan::nothing();
            let elapsed = play.simulation.elapsed();
            let mut noted =
                Replacement::noted(memory, "o", &plan, &play.simulation.view, elapsed).unwrap_or_else(|| Replacement {
                    owner_uid: "o".into(),
                    credit: Duration::MAX,
                    ..Replacement::default()
                });
            noted.given_up += 1;
            play.memory = Some(noted);
            play.lose(1, Duration::ZERO);
            assert_eq!(play.pass(1, 1), ReplacementBudget { pods: 1, next_in: None });
        }
    }

    #[test]
    fn young_active_deletions_of_a_plan_are_counted() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let pod = |name: &str, phase: &str| {
            json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "a"}, "spec": {"containers": []}, "status": {"phase": phase}})
        };
        let mut simulation = crate::simulation(now, [pod("p", "Running"), pod("q", "Failed")]);
        let plan = |simulation: &Simulation| -> Plan {
            vec![Action::Concurrent(simulation.view.all::<Pod>().map(Action::delete).collect())].into()
        };
        let given_up = |simulation: &Simulation| {
            let elapsed = simulation.elapsed();
            let noted = Replacement::noted(None, "o", &plan(simulation), &simulation.view, elapsed);
            noted.map(|noted| noted.given_up)
        };
        assert_eq!(given_up(&simulation), Some(1));
        simulation.now = simulation.now.saturating_add(EARLY).unwrap();
        assert_eq!(given_up(&simulation), None);
    }
}

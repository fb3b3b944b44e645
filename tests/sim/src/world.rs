//! What everything in one run shares: time, randomness, the log, the truth, and the weather that faults make.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use machinery_env::{Env, TokioClock};
use tokio::time::Instant;

use crate::checkers::autoscaling::Autoscaling;
use crate::checkers::claims;
use crate::checkers::counts::Counts;
use crate::checkers::identities::Identities;
use crate::checkers::invariants::Invariants;
use crate::checkers::mounts::Mounts;
use crate::checkers::orphans::Orphans;
use crate::checkers::waits::Waits;
use crate::history::{History, Step};
use crate::log::{Log, log};
use crate::panics;
use crate::random::Random;
use crate::sabotage::Sabotage;

/// How likely it is that something goes wrong, in permille of requests, events or transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Weather {
    /// The usual delay of a message is up to so many milliseconds.
    pub(crate) delay_ms: u64,
    /// Messages that are far slower than that.
    pub(crate) slow: u64,
    /// Requests that never reach the server.
    pub(crate) lost: u64,
    /// Answers that never reach the client.
    pub(crate) unanswered: u64,
    /// Pieces of a watch after which, or within which, its connection breaks.
    pub(crate) cut: u64,
    /// Requests that a busy server answers with 429.
    pub(crate) busy: u64,
    /// Transactions that the store refuses, and those that it does and doesn't acknowledge.
    pub(crate) store: u64,
    /// A server that has too much to do takes up to so many milliseconds before it begins, and before it answers.
    pub(crate) server_ms: u64,
}

impl Weather {
    /// Nothing goes wrong.
    pub(crate) const CALM: Self =
        Self { delay_ms: 1, slow: 0, lost: 0, unanswered: 0, cut: 0, busy: 0, store: 0, server_ms: 0 };
}

/// See the module.
pub(crate) struct World {
    /// The components' time and randomness.
    pub(crate) env: Env,
    /// The network's and the store's own.
    pub(crate) random: Random,
    pub(crate) log: Log,
    pub(crate) history: History,
    pub(crate) sabotage: Sabotage,
    /// What runs on nodes, as it is.
    pub(crate) identities: Identities,
    pub(crate) mounts: Mounts,
    pub(crate) autoscaling: Autoscaling,
    clock: Arc<TokioClock>,
    weather: Mutex<Weather>,
    invariants: Mutex<Invariants>,
    counts: Mutex<Counts>,
    orphans: Mutex<Orphans>,
    waits: Mutex<Waits>,
    violations: Mutex<Vec<String>>,
}

impl World {
    /// A world under a seed; within a runtime whose time is paused.
    pub(crate) fn new(seed: u64, sabotage: Sabotage) -> Self {
        panics::watch();
        let (env, clock) = TokioClock::env(seed);
        Self {
            env,
            clock,
            identities: Identities::default(),
            mounts: Mounts::default(),
            autoscaling: Autoscaling::default(),
            random: Random::new(seed, "network"),
            log: Log::new(),
            history: History::default(),
            sabotage,
            weather: Mutex::new(Weather::CALM),
            invariants: Mutex::default(),
            counts: Mutex::default(),
            orphans: Mutex::default(),
            waits: Mutex::default(),
            violations: Mutex::default(),
        }
    }

    fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
        of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn weather(&self) -> Weather {
        *Self::lock(&self.weather)
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        log!(self, "weather: {weather:?}");
        *Self::lock(&self.weather) = weather;
    }

    /// Sets everybody's wall clock by so many seconds.
    pub(crate) fn jump(&self, seconds: i64) {
        log!(self, "clock: set by {seconds} s");
        self.clock.jump(seconds);
        self.autoscaling.jumped();
        Self::lock(&self.waits).jumped(seconds);
    }

    /// A checker found something wrong.
    pub(crate) fn violated(&self, what: String) {
        log!(self, "VIOLATION: {what}");
        Self::lock(&self.violations).push(what);
    }

    /// What checkers found, and what panicked in this run's thread.
    pub(crate) fn violations(&self) -> Vec<String> {
        let mut all = Self::lock(&self.violations).clone();
        all.extend(panics::seen().into_iter().map(|panic| format!("something panicked: {panic}")));
        all
    }

    /// Faults have ended: whatever waits for a time is held to it.
    pub(crate) fn calm(&self) {
        Self::lock(&self.waits).calm(Instant::now());
    }

    /// Whether a pod waits for the end of a toleration.
    pub(crate) fn tolerates(&self) -> bool {
        Self::lock(&self.waits).tolerates()
    }

    /// Something was committed.
    pub(crate) fn committed(&self, steps: &[Step]) {
        for step in steps {
            let gone = if step.new.is_none() { " gone" } else { "" };
            log!(self, "store: {} {}{gone}", step.revision, step.key);
            let mut found = Self::lock(&self.invariants).step(&self.history, step);
            found.extend(Self::lock(&self.counts).step(step));
            found.extend(claims::step(&self.history, step));
            found.extend(Self::lock(&self.orphans).step(&self.history, step));
            found.extend(Self::lock(&self.waits).step(&self.history, step, Instant::now()));
            found.into_iter().for_each(|what| self.violated(what));
        }
    }

    /// The time that the server takes beside its work.
    pub(crate) fn serves_after(&self) -> Duration {
        match self.weather().server_ms {
            0 => Duration::ZERO,
            most => self.random.millis(0, most),
        }
    }

    /// The time that a message takes in this weather.
    pub(crate) fn travel(&self) -> Duration {
        let weather = self.weather();
        if self.random.chance(weather.slow) {
            return self.random.millis(weather.delay_ms, weather.delay_ms * 200);
        }
        self.random.millis(0, weather.delay_ms)
    }
}

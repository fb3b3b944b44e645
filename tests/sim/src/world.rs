//! State shared by everything in one run: time, randomness, log, history, and the current fault rates.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use machinery_env::{Env, TokioClock};

use crate::checkers::autoscaling::Autoscaling;
use crate::checkers::claims;
use crate::checkers::counts::Counts;
use crate::checkers::identities::Identities;
use crate::checkers::invariants::Invariants;
use crate::checkers::mounts::Mounts;
use crate::checkers::orphans::Orphans;
use crate::checkers::waits::Waits;
use crate::clock;
use crate::history::{History, KeyChange};
use crate::log::{Log, log};
use crate::panics;
use crate::random::Random;
use crate::sabotage::Sabotage;

/// Fault rates in permille of requests, events or transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Weather {
    /// Maximum usual delay of a message in milliseconds.
    pub(crate) delay_ms: u64,
    /// Messages that are far slower.
    pub(crate) slow: u64,
    /// Pieces of a watch that are far slower than all requests.
    pub(crate) slow_watches: u64,
    /// Requests that don't reach the server.
    pub(crate) lost: u64,
    /// Responses that don't reach the client.
    pub(crate) unanswered: u64,
    /// Pieces of a watch after or within which its connection breaks.
    pub(crate) cut: u64,
    /// Requests that an overloaded server rejects with 429.
    pub(crate) busy: u64,
    /// Transactions that the store rejects, and those that it commits without an acknowledgement.
    pub(crate) store: u64,
    /// Maximum milliseconds that an overloaded server takes before it starts, and before it responds.
    pub(crate) server_ms: u64,
}

/// The least lag of a slow piece of a watch: longer than a controller's pass with dozens of requests.
const WATCH_LAG_MS: u64 = 1000;

impl Weather {
    /// No faults.
    pub(crate) const CALM: Self =
        Self { delay_ms: 1, slow: 0, slow_watches: 0, lost: 0, unanswered: 0, cut: 0, busy: 0, store: 0, server_ms: 0 };
}

/// Everything that is shared in one run.
pub(crate) struct World {
    /// The components' time and randomness.
    pub(crate) env: Env,
    /// The network's and the store's own.
    pub(crate) random: Random,
    pub(crate) log: Log,
    pub(crate) history: History,
    pub(crate) sabotage: Sabotage,
    /// The processes that run on nodes, independent of the API.
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
    /// A world under a seed; requires a runtime with paused time.
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

    /// Steps all wall clocks by seconds.
    pub(crate) fn step_clock(&self, seconds: i64) {
        log!(self, "clock: set by {seconds} s");
        self.clock.jump(seconds);
        self.autoscaling.clock_stepped();
        Self::lock(&self.waits).clock_stepped(seconds);
    }

    /// Records a violation.
    pub(crate) fn record_violation(&self, what: String) {
        log!(self, "VIOLATION: {what}");
        Self::lock(&self.violations).push(what);
    }

    /// Violations found by checkers, and panics in this run's thread.
    pub(crate) fn violations(&self) -> Vec<String> {
        let mut all = Self::lock(&self.violations).clone();
        all.extend(panics::seen().into_iter().map(|panic| format!("something panicked: {panic}")));
        all
    }

    /// Marks the end of faults: time limits of waits start.
    pub(crate) fn calm(&self) {
        Self::lock(&self.waits).calm(clock::now());
    }

    /// Whether a pod waits for the end of a toleration.
    pub(crate) fn tolerates(&self) -> bool {
        Self::lock(&self.waits).tolerates()
    }

    /// Runs the checkers on commits.
    pub(crate) fn committed(&self, steps: &[KeyChange]) {
        for step in steps {
            let gone = if step.new.is_none() { " gone" } else { "" };
            log!(self, "store: {} {}{gone}", step.revision, step.key);
            let mut found = Self::lock(&self.invariants).step(&self.history, step);
            found.extend(Self::lock(&self.counts).step(step));
            found.extend(claims::step(&self.history, step));
            found.extend(Self::lock(&self.orphans).step(&self.history, step));
            found.extend(Self::lock(&self.waits).step(&self.history, step, clock::now()));
            found.into_iter().for_each(|what| self.record_violation(what));
        }
    }

    /// The server's delay beside its work.
    pub(crate) fn server_delay(&self) -> Duration {
        match self.weather().server_ms {
            0 => Duration::ZERO,
            most => self.random.millis(0, most),
        }
    }

    /// The delay of a piece of a watch. Without slow watches it draws as often as any message: seeds keep their histories.
    pub(crate) fn watch_delay(&self) -> Duration {
        let weather = self.weather();
        if weather.slow_watches > 0 && self.random.chance(weather.slow_watches) {
            return self.random.millis(WATCH_LAG_MS, 2 * WATCH_LAG_MS);
        }
        self.message_delay()
    }

    /// The delay of a message under the current fault rates.
    pub(crate) fn message_delay(&self) -> Duration {
        let weather = self.weather();
        if self.random.chance(weather.slow) {
            return self.random.millis(weather.delay_ms, weather.delay_ms * 200);
        }
        self.random.millis(0, weather.delay_ms)
    }
}

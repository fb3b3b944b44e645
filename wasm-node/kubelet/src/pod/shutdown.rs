//! The shutdown of a node: connects its agent, its pods, and the caller that requests it.

use std::time::Duration;

use machinery_env::Env;
use tokio_util::sync::CancellationToken;

/// The agent's time beyond its pods' grace periods, for the final status writes.
const AGENT_MAX: Duration = Duration::from_secs(6);

/// The grace periods of a node shutdown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShutdownGrace {
    /// The whole period (`--shutdown-grace-period`); zero disables the shutdown of pods.
    pub whole: Duration,
    /// Its last part, for critical pods (`--shutdown-grace-period-critical-pods`).
    pub critical: Duration,
}

impl ShutdownGrace {
    /// The groups in their order: whether they are critical pods, and their grace period.
    pub(crate) fn groups(self) -> [(bool, Duration); 2] {
        [(false, self.whole.saturating_sub(self.critical)), (true, self.critical)]
    }
}

/// A handle to request a node's shutdown and to wait for its end.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    pub(crate) grace: ShutdownGrace,
    started: CancellationToken,
    done: CancellationToken,
}

impl Shutdown {
    /// A shutdown with these grace periods.
    #[must_use]
    pub fn new(grace: ShutdownGrace) -> Self {
        Self { grace, ..Self::default() }
    }

    /// Ends the node's pods; returns at once if the grace period is zero.
    pub async fn run(&self, env: &Env) {
        if self.grace.whole.is_zero() {
            return;
        }
        self.started.cancel();
        // An agent that has already stopped never completes the shutdown.
        let _ = env.timeout(self.grace.whole + AGENT_MAX, self.done.cancelled()).await;
    }

    /// Resolves when the shutdown begins.
    pub(crate) async fn started(&self) {
        self.started.cancelled().await;
    }

    /// Marks the shutdown as complete: the pods have ended.
    pub(crate) fn end(&self) {
        self.done.cancel();
    }

    /// Whether the shutdown has begun.
    pub(crate) fn has_begun(&self) -> bool {
        self.started.is_cancelled()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_share_the_time() {
        let second = Duration::from_secs;
        let grace = ShutdownGrace { whole: second(30), critical: second(10) };
        assert_eq!(grace.groups(), [(false, second(20)), (true, second(10))]);
    }

    #[tokio::test(start_paused = true)]
    async fn without_time_nothing_ends() {
        let off = Shutdown::default();
        off.run(&Env::real()).await;
        assert!(!off.has_begun());
        let on = Shutdown::new(ShutdownGrace { whole: Duration::from_secs(1), critical: Duration::ZERO });
        let running = on.clone();
        let agent = async {
            on.started().await;
            on.end();
        };
        let env = Env::real();
        tokio::join!(running.run(&env), agent);
        assert!(running.has_begun());
    }
}

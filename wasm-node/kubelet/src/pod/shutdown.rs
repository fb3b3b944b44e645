//! The end of a node, as a word between its agent, its pods and whoever asks for it.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// What an agent may take beyond its pods' time: the API hears of each of them.
const AGENT_MAX: Duration = Duration::from_secs(6);

/// How long pods may take to end with their node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShutdownGrace {
    /// All of them (`--shutdown-grace-period`); zero = they don't end.
    pub whole: Duration,
    /// The last part of it, for critical pods (`--shutdown-grace-period-critical-pods`).
    pub critical: Duration,
}

impl ShutdownGrace {
    /// The groups in their order: whether its pods are critical, and their time.
    pub(crate) fn groups(self) -> [(bool, Duration); 2] {
        [(false, self.whole.saturating_sub(self.critical)), (true, self.critical)]
    }
}

/// The end of a node, for whoever asks for it and waits.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    pub(crate) grace: ShutdownGrace,
    begun: CancellationToken,
    done: CancellationToken,
}

impl Shutdown {
    /// One that gives pods that long.
    #[must_use]
    pub fn new(grace: ShutdownGrace) -> Self {
        Self { grace, ..Self::default() }
    }

    /// Ends the node's pods; at once where they have no time.
    pub async fn run(&self) {
        if self.grace.whole.is_zero() {
            return;
        }
        self.begun.cancel();
        // An agent that has ended already answers nothing.
        let _ = tokio::time::timeout(self.grace.whole + AGENT_MAX, self.done.cancelled()).await;
    }

    /// Resolves when the node is shutting down.
    pub(crate) async fn begun(&self) {
        self.begun.cancelled().await;
    }

    /// Its pods have ended.
    pub(crate) fn end(&self) {
        self.done.cancel();
    }

    /// Whether it is.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.is_cancelled()
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
        off.run().await;
        assert!(!off.has_begun());
        let on = Shutdown::new(ShutdownGrace { whole: Duration::from_secs(1), critical: Duration::ZERO });
        let asked = on.clone();
        let agent = async {
            on.begun().await;
            on.end();
        };
        tokio::join!(asked.run(), agent);
        assert!(asked.has_begun());
    }
}

//! The first request of a connection. A connection that the server has accepted is not closed before it: its client sends
//! one already, and doesn't repeat a request on a new connection.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use machinery_env::Env;
use tokio::sync::Notify;

/// Time in which an accepted connection sends its first request before the server closes it at its end.
const FIRST_REQUEST_MAX: Duration = Duration::from_secs(1);

/// Whether a connection has had a request.
#[derive(Debug, Default)]
pub struct FirstRequest {
    begun: AtomicBool,
    changed: Notify,
}

impl FirstRequest {
    /// Marks a request.
    pub fn mark(&self) {
        if !self.begun.swap(true, Ordering::AcqRel) {
            self.changed.notify_one();
        }
    }

    /// Resolves when there was a request, or when none came in time. One task may wait.
    pub async fn wait(&self, env: &Env) {
        if !self.begun.load(Ordering::Acquire) {
            let _ = env.timeout(FIRST_REQUEST_MAX, self.changed.notified()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_has_a_second_for_its_first_request() {
        let env = Env::real();
        let first = FirstRequest::default();
        let begun = env.instant();
        first.wait(&env).await;
        assert_eq!(env.instant() - begun, FIRST_REQUEST_MAX);
        first.mark();
        first.mark();
        let begun = env.instant();
        first.wait(&env).await;
        assert_eq!(env.instant(), begun);
    }
}

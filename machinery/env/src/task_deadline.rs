//! The deadline of the current task: calls to other servers on behalf of a request end before the request does, however
//! deep in its handling they are made.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::error::Elapsed;

use crate::{Deadline, Env};

tokio::task_local! {
    static DEADLINE: Deadline;
}

impl Env {
    /// Runs work within a timeout, whose end [`task_deadline`] returns during it. The work is boxed, as it is moved
    /// several times.
    ///
    /// # Errors
    /// The timeout elapsed.
    pub async fn within<T>(&self, timeout: Duration, work: Pin<Box<impl Future<Output = T>>>) -> Result<T, Elapsed> {
        let deadline = self.deadline(timeout);
        self.timeout_at(deadline, DEADLINE.scope(deadline, work)).await
    }
}

/// The deadline that [`Env::within`] set for the current work; `None` outside of it.
#[must_use]
pub fn task_deadline() -> Option<Deadline> {
    DEADLINE.try_get().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TokioClock;

    #[tokio::test(start_paused = true)]
    async fn work_reads_the_deadline_of_its_request() {
        assert_eq!(task_deadline(), None);
        let (env, _) = TokioClock::env(1);
        let begun = env.instant();
        let end = env.within(Duration::from_secs(3), Box::pin(async { task_deadline() })).await.unwrap();
        assert_eq!(end.map(Deadline::instant), Some(begun + Duration::from_secs(3)));
        assert!(env.within(Duration::from_secs(3), Box::pin(std::future::pending::<()>())).await.is_err());
    }
}

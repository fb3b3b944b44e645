//! The deadline of the current request, for calls to webhooks and other servers, which must end before it.

use std::pin::Pin;
use std::time::Duration;

use machinery_api::ApiError;
use machinery_env::{Deadline, Env};
use tokio::time::error::Elapsed;

tokio::task_local! {
    static END: Deadline;
}

/// Runs a request's work within its timeout. The work is boxed, as it is moved several times.
///
/// # Errors
/// The timeout elapsed.
pub async fn within<T>(env: &Env, time: Duration, work: Pin<Box<impl Future<Output = T>>>) -> Result<T, Elapsed> {
    let end = env.deadline(time);
    env.timeout_at(end, END.scope(end, work)).await
}

/// 504 for a request that timed out.
pub(crate) fn timed_out() -> ApiError {
    ApiError::Timeout("Timeout: request did not complete within the allotted timeout".into(), 0, Vec::new())
}

/// The deadline of the current request; `None` if it has none, or outside a request.
#[must_use]
pub fn of_request() -> Option<Deadline> {
    END.try_get().ok()
}

#[cfg(test)]
mod tests {
    use machinery_env::TokioClock;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_knows_when_its_request_ends() {
        assert_eq!(of_request(), None);
        let (env, _) = TokioClock::env(1);
        let begun = env.instant();
        let end = within(&env, Duration::from_secs(3), Box::pin(async { of_request() })).await.unwrap();
        assert_eq!(end.map(Deadline::instant), Some(begun + Duration::from_secs(3)));
        assert!(within(&env, Duration::from_secs(3), Box::pin(std::future::pending::<()>())).await.is_err());
    }
}

//! Until when a request is to be answered, for those who ask others about it: they have no more time than the request has.

use std::pin::Pin;
use std::time::Duration;

use machinery_api::ApiError;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};

tokio::task_local! {
    static END: Instant;
}

/// Does a request's work within its time. It lies in a box, as it is moved on from here several times.
///
/// # Errors
/// It took longer.
pub async fn within<T>(time: Duration, work: Pin<Box<impl Future<Output = T>>>) -> Result<T, Elapsed> {
    let end = Instant::now() + time;
    timeout_at(end, END.scope(end, work)).await
}

/// The answer to what took too long.
pub(crate) fn timed_out() -> ApiError {
    ApiError::Timeout("Timeout: request did not complete within the allotted timeout".into(), 0, Vec::new())
}

/// When the time of the request that is being answered ends; none: it has no end, or this is no request's work.
#[must_use]
pub fn of_request() -> Option<Instant> {
    END.try_get().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_knows_when_its_request_ends() {
        assert_eq!(of_request(), None);
        let begun = Instant::now();
        let end = within(Duration::from_secs(3), Box::pin(async { of_request() })).await.unwrap();
        assert_eq!(end, Some(begun + Duration::from_secs(3)));
        assert!(within(Duration::from_secs(3), Box::pin(std::future::pending::<()>())).await.is_err());
    }
}

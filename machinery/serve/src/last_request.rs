//! The last request of a connection whose server ends: an idle client has a while to send one more, and its response says
//! `Connection: close`. A client doesn't expect that a connection ends without a word, and may not repeat its request.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::header::CONNECTION;
use http::{HeaderValue, Response, StatusCode, Version};
use machinery_env::Env;
use tokio_util::sync::CancellationToken;

use crate::accept::{FIRST_REQUEST_MAX, LAST_REQUEST_MAX};

/// Time of an idle connection for one more request, where the next process waits for its end. `has_begun`: there was one.
#[must_use]
pub const fn idle_max(has_begun: bool) -> Duration {
    if has_begun { LAST_REQUEST_MAX } else { FIRST_REQUEST_MAX }
}

/// The end of one connection.
#[derive(Debug)]
pub struct LastRequest {
    ending: CancellationToken,
    /// A request has begun.
    begun: AtomicBool,
    /// HTTP/2, which announces the end by a frame.
    multiplexed: AtomicBool,
}

impl LastRequest {
    /// For a new connection, whose server ends with `ending`.
    #[must_use]
    pub fn new(ending: CancellationToken) -> Self {
        Self { ending, begun: AtomicBool::new(false), multiplexed: AtomicBool::new(false) }
    }

    /// Records a request.
    pub fn observe(&self, version: Version) {
        self.begun.store(true, Ordering::Release);
        if version > Version::HTTP_11 {
            self.multiplexed.store(true, Ordering::Release);
        }
    }

    /// Announces the end of the connection in a response, if the server ends.
    pub fn announce<B>(&self, response: &mut Response<B>) {
        let closes = self.ending.is_cancelled() && !self.multiplexed.load(Ordering::Acquire);
        if closes && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }

    /// Whether there was a request. A connection without one is dropped: hyper waits for the rest of a first head.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Resolves when the connection is to be closed after its open requests: at the server's end for HTTP/2, and
    /// `idle_max` later for HTTP/1. That is called at the server's end, and gets whether there was a request.
    pub async fn passed(&self, env: &Env, idle_max: impl FnOnce(bool) -> Duration) {
        self.ending.cancelled().await;
        if !self.multiplexed.load(Ordering::Acquire) {
            env.sleep(idle_max(self.has_begun())).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE_MAX: Duration = Duration::from_secs(2);

    #[tokio::test(start_paused = true)]
    async fn one_more_request_is_served_with_connection_close() {
        let (env, ending) = (Env::real(), CancellationToken::new());
        let last = LastRequest::new(ending.clone());
        let announced = |status: u16| {
            let mut response = Response::builder().status(status).body(()).unwrap();
            last.announce(&mut response);
            response.headers().contains_key(CONNECTION)
        };
        last.observe(Version::HTTP_11);
        assert!(!announced(200), "the server goes on");
        ending.cancel();
        assert!(announced(200) && !announced(101));
        let begun = env.instant();
        last.passed(&env, |_| IDLE_MAX).await;
        assert_eq!(env.instant() - begun, IDLE_MAX);
        last.observe(Version::HTTP_2);
        assert!(!announced(200), "it has a frame for that");
        last.passed(&env, |_| IDLE_MAX).await;
        assert_eq!(env.instant() - begun, IDLE_MAX, "at once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_request_has_longer_than_one_that_is_idle() {
        for (begun, time_max) in [(false, FIRST_REQUEST_MAX), (true, LAST_REQUEST_MAX)] {
            let (env, ending) = (Env::real(), CancellationToken::new());
            let last = LastRequest::new(ending.clone());
            if begun {
                last.observe(Version::HTTP_11);
            }
            ending.cancel();
            let since = env.instant();
            last.passed(&env, idle_max).await;
            assert_eq!(env.instant() - since, time_max);
        }
    }
}

//! Detects a dead peer: a stream that remembers when its peer was heard last.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use machinery_env::Env;
use machinery_serve::hooked::{Hook, Hooked};
use tokio::io::{AsyncRead, ReadBuf};

/// Interval of the dialling side's pings: the answer is heard there, the ping on the other side.
pub(super) const PING_INTERVAL: Duration = Duration::from_millis(900);
/// Silence after which the peer is dead: three pings, and below the promised 3 s.
pub(super) const SILENCE_MAX: Duration = Duration::from_millis(2_700);

/// When the peer was heard last.
#[derive(Clone)]
pub(super) struct LastHeard {
    env: Env,
    at_ms: Arc<AtomicU64>,
}

impl LastHeard {
    pub(super) fn new(env: &Env) -> Self {
        let heard = Self { env: env.clone(), at_ms: Arc::default() };
        heard.now();
        heard
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.env.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn now(&self) {
        self.at_ms.store(self.elapsed_ms(), Ordering::Relaxed);
    }

    /// Waits until the peer was silent for [`SILENCE_MAX`]. Cancel safe.
    pub(super) async fn silent(&self) {
        loop {
            let silence = self.elapsed_ms().saturating_sub(self.at_ms.load(Ordering::Relaxed));
            let left = SILENCE_MAX.saturating_sub(Duration::from_millis(silence));
            if left.is_zero() {
                return;
            }
            self.env.sleep(left).await;
        }
    }
}

/// A stream that records when bytes came.
pub(super) type Heard<S> = Hooked<S, LastHeard>;

impl<S: AsyncRead + Unpin> Hook<S> for LastHeard {
    fn poll_read(
        &mut self,
        stream: Pin<&mut S>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let polled = stream.poll_read(context, into);
        if into.filled().len() > before {
            self.now();
        }
        polled
    }
}

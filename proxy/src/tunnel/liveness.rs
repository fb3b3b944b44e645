//! Detects a dead peer: a stream that records the time of the last received byte.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use machinery_env::Env;
use machinery_serve::hooked::{Hook, Hooked};
use tokio::io::{AsyncRead, ReadBuf};

/// Interval of the pings, which only the dialling side sends: it receives the answer, the other side the ping.
pub(super) const PING_INTERVAL: Duration = Duration::from_millis(900);
/// Silence after which the peer is dead: three pings, and below the promised 3 s.
pub(super) const SILENCE_MAX: Duration = Duration::from_millis(2_700);

/// The time of the last byte from the peer.
#[derive(Clone)]
pub(super) struct LastReceived {
    env: Env,
    at_ms: Arc<AtomicU64>,
}

impl LastReceived {
    pub(super) fn new(env: &Env) -> Self {
        let last_received = Self { env: env.clone(), at_ms: Arc::default() };
        last_received.record();
        last_received
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.env.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn record(&self) {
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
pub(super) type LivenessStream<S> = Hooked<S, LastReceived>;

impl<S: AsyncRead + Unpin> Hook<S> for LastReceived {
    fn poll_read(
        &mut self,
        stream: Pin<&mut S>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let polled = stream.poll_read(context, into);
        if into.filled().len() > before {
            self.record();
        }
        polled
    }
}

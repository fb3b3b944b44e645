//! A leader's term: its end, and clients that send nothing after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Request;
use kube::Client;
use kube::client::Body;
use machinery_env::Env;
use tokio_util::sync::CancellationToken;
use tower::BoxError;

use super::LeadershipLost;

/// The time in which a replica leads.
///
/// A process that was stopped (SIGSTOP, a frozen virtual machine) may go on after its lease ran out, anywhere in its
/// work. So each request of the leader is checked against the clock before it is sent.
#[derive(Debug, Clone)]
pub struct Term {
    env: Env,
    /// Cancelled when the leadership ends.
    pub ended: CancellationToken,
    /// No request is sent from then on (monotonic, milliseconds).
    until: Arc<AtomicU64>,
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Term {
    pub(super) fn new(env: &Env, ended: CancellationToken, until: Duration) -> Self {
        Self { env: env.clone(), ended, until: Arc::new(AtomicU64::new(milliseconds(until))) }
    }

    /// The leadership was renewed.
    pub(super) fn extend(&self, until: Duration) {
        self.until.store(milliseconds(until), Ordering::Release);
    }

    /// Whether the term lasts.
    fn lasts(&self) -> bool {
        milliseconds(self.env.elapsed()) < self.until.load(Ordering::Acquire)
    }

    /// A client with the same identity, whose requests fail after the term.
    #[must_use]
    pub fn client(&self, of: &Client) -> Client {
        let namespace = of.default_namespace().to_owned();
        let (term, inner) = (self.clone(), of.clone());
        let fenced = tower::service_fn(move |request: Request<Body>| {
            let (lasts, inner) = (term.lasts(), inner.clone());
            async move {
                match lasts {
                    true => inner.send(request).await.map_err(BoxError::from),
                    false => Err(LeadershipLost.into()),
                }
            }
        });
        Client::new(fenced, namespace)
    }
}

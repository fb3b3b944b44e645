//! Calls of admission and conversion webhooks over HTTPS. A bad webhook delays only its own callers, for a bounded
//! time. All webhooks together use bounded memory.

mod accounts;
mod client;
mod metrics;
mod responses;
mod verifier;

use std::sync::Arc;

use machinery_env::Env;

pub(crate) use self::accounts::{Accounts, ReadFile};
pub(crate) use self::client::{Client, WebhookRequest};
pub use self::client::{ServiceDialer, Stream};
pub(crate) use self::metrics::{AdmissionPhase, CallOutcome, Metrics};
use self::responses::ResponseBudget;

/// State shared by all webhook calls.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) service_dialer: Arc<dyn ServiceDialer>,
    pub(crate) metrics: Metrics,
    env: Env,
    budget: ResponseBudget,
}

impl Caller {
    pub(crate) fn new(service_dialer: Arc<dyn ServiceDialer>, metrics: Metrics, env: Env) -> Self {
        Self { service_dialer, metrics, env, budget: ResponseBudget::default() }
    }
}

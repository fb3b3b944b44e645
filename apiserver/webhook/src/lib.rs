//! Calls of admission and conversion webhooks over HTTPS: takes a webhook's `clientConfig` and a review, returns the
//! response. A bad webhook delays only its own callers, for a bounded time. All webhooks together use bounded memory.
//!
//! Absent on purpose: an HTTP server, the store, and admission, which decides what is called.
#![warn(missing_docs)]

mod accounts;
mod client;
pub mod conversion;
mod metrics;
mod responses;

use std::sync::Arc;

use machinery_env::Env;

pub use self::accounts::{Accounts, ReadFile};
pub use self::client::{CallError, Client, ServiceDialer, Stream, WebhookRequest};
pub use self::metrics::{AdmissionPhase, CallOutcome, Metrics};
use self::responses::ResponseBudget;
pub use self::responses::WebhookResponse;

/// State shared by all webhook calls.
#[derive(Clone)]
pub struct Caller {
    /// Connects to webhooks that are Services.
    pub service_dialer: Arc<dyn ServiceDialer>,
    /// The metrics of all calls.
    pub metrics: Metrics,
    env: Env,
    budget: ResponseBudget,
}

impl Caller {
    /// Calls with an empty response budget.
    #[must_use]
    pub fn new(service_dialer: Arc<dyn ServiceDialer>, metrics: Metrics, env: Env) -> Self {
        Self { service_dialer, metrics, env, budget: ResponseBudget::default() }
    }
}

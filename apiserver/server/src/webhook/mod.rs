//! Webhooks: others who are asked about an object over HTTPS, by admission and by conversion alike. What answers badly costs
//! its own caller a bounded time, and all together a bounded piece of memory.

mod accounts;
mod answers;
mod client;
mod metrics;
mod verifier;

use std::sync::Arc;

pub(crate) use self::accounts::{Accounts, Read};
use self::answers::Room;
pub(crate) use self::client::{Ask, Client};
pub use self::client::{Reach, Stream};
pub(crate) use self::metrics::{Asked, Metrics, Step};

/// What all who ask webhooks share.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) reach: Arc<dyn Reach>,
    pub(crate) metrics: Metrics,
    room: Room,
}

impl Caller {
    pub(crate) fn new(reach: Arc<dyn Reach>, metrics: Metrics) -> Self {
        Self { reach, metrics, room: Room::default() }
    }
}

//! How long a connection lives, as those know it who serve what comes over it.

use std::sync::Arc;

use machinery_serve::accept::ConnectionPermit;
use tokio_util::sync::CancellationToken;

/// How long a connection may live, and what it holds till then: also of what it becomes by an upgrade, whose request has it
/// as an extension.
#[derive(Clone)]
pub(crate) struct Tenure {
    pub(crate) stop: CancellationToken,
    pub(crate) _permit: Arc<ConnectionPermit>,
}

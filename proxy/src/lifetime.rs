//! The stop signal and the connection permit of a host process's connection. An upgraded connection keeps both.

use std::sync::Arc;

use machinery_serve::accept::ConnectionPermit;
use tokio_util::sync::CancellationToken;

/// Stop signal and connection permit of a connection. An upgraded request carries it as an extension, so that the permit lasts
/// until the upgraded connection ends.
#[derive(Clone)]
pub(crate) struct ConnectionLifetime {
    pub(crate) stop: CancellationToken,
    pub(crate) _permit: Arc<ConnectionPermit>,
}

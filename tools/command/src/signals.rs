//! The signals that stop a verb.

use crate::notify;

/// Waits for SIGINT or SIGTERM, and notifies the supervisor of the stop. The call itself installs the handlers.
pub fn stop_signal() -> impl Future<Output = ()> {
    let mut signals = StopSignals::install();
    async move { signals.next().await }
}

/// SIGINT and SIGTERM, one after the other.
pub struct StopSignals {
    #[cfg(unix)]
    handlers: Option<[tokio::signal::unix::Signal; 2]>,
}

impl StopSignals {
    /// Installs the handlers; needs the runtime.
    pub fn install() -> Self {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            let handlers = signal(SignalKind::terminate()).ok().zip(signal(SignalKind::interrupt()).ok());
            Self { handlers: handlers.map(|(terminate, interrupt)| [terminate, interrupt]) }
        }
        #[cfg(not(unix))]
        Self {}
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        #[cfg(unix)]
        if let Some([terminate, interrupt]) = &mut self.handlers {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            notify::stopping();
            return;
        }
        let _ = tokio::signal::ctrl_c().await;
        notify::stopping();
    }
}

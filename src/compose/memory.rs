//! Memory that the start of a process leaves behind.

use std::time::Duration;

use machinery_env::Env;

/// When the work of a start is over: first syncs of caches, first passes of controllers.
const STARTED: Duration = Duration::from_secs(20);

/// Unmaps the program's pages that were needed by its start alone, once, some time after it. Needs a runtime.
pub(crate) fn release_after_start(env: &Env) {
    let env = env.clone();
    tokio::spawn(async move {
        env.sleep(STARTED).await;
        match tokio::task::spawn_blocking(wasm_runtime::program::release_pages).await {
            Ok(Ok(bytes)) => tracing::debug!(bytes, "unmapped the program's pages after the start"),
            Ok(Err(error)) => tracing::debug!(%error, "the program's pages stay mapped"),
            Err(error) => tracing::error!(%error, "releasing the program's pages panicked"),
        }
    });
}

//! Modules that nobody waits for: compiled when the compilers have had nothing to do for a while.

use std::path::Path;
use std::time::Duration;

use super::Engine;
use runtime_api::{LoadError, Metering};

/// How long nobody may have compiled anything: a node that has just started, or is given its pods, is busy now and then.
const IDLE_FOR: Duration = Duration::from_secs(3);
/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// By whose share of the compilers: nobody's.
const NAMESPACE: &str = "";

impl Engine {
    /// As [`Engine::compile`], in the background lane, once both lanes have been idle for a while: what somebody waits for
    /// goes first, and has the quick lane to itself meanwhile.
    ///
    /// # Errors
    /// As there.
    pub async fn compile_when_idle(&self, digest: &str, file: &Path, metering: Metering) -> Result<(), LoadError> {
        let key = (digest.to_owned(), self.metered(metering)?.fingerprint.clone());
        let (compiler, env) = (&self.inner.compiler, self.env());
        let mut since = env.elapsed();
        while !self.inner.cache.contains(&key.0, &key.1) {
            let now = env.elapsed();
            if !compiler.quick.is_idle() || !compiler.background.is_idle() {
                since = now;
            } else if now.saturating_sub(since) >= IDLE_FOR {
                compiler.memory().slow(&key, now);
                return self.compile(digest, file, metering, NAMESPACE).await;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }
}

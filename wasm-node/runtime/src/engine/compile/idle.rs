//! Background compilation of modules without a waiter, once the compilers have been idle for a while.

use std::path::Path;
use std::time::Duration;

use super::super::wasi::{CodeSettings, ModuleForm};
use super::Engine;
use runtime_api::{LoadError, Metering};

/// Minimum idle time of the compilers: a node that has just started, or gets its pods, is busy intermittently.
const IDLE_FOR: Duration = Duration::from_secs(3);
/// Interval between two checks for idleness.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// The namespace charged: none.
const NAMESPACE: &str = "";

impl Engine {
    /// As [`Engine::compile`], in the background lane, once both lanes have been idle for a while: compilations with a waiter
    /// go first, and have the quick lane to themselves meanwhile.
    ///
    /// # Errors
    /// As for [`Engine::compile`].
    pub async fn compile_when_idle(&self, digest: &str, file: &Path, metering: Metering) -> Result<(), LoadError> {
        if self.cached_settings(digest, metering)?.is_some() {
            return Ok(());
        }
        let wasi = ModuleForm::of_file(file).await?.wasi;
        let fingerprint = self.fingerprint_of(CodeSettings::new(metering, wasi))?;
        let key = (digest.to_owned(), fingerprint.to_owned());
        let (compiler, env) = (&self.inner.compiler, self.env());
        let mut since = env.elapsed();
        while !self.inner.cache.contains(&key.0, &key.1) {
            let now = env.elapsed();
            if !compiler.quick.is_idle() || !compiler.background.is_idle() {
                since = now;
            } else if now.saturating_sub(since) >= IDLE_FOR {
                compiler.failures().slow(&key, now);
                return self.compile(digest, file, metering, NAMESPACE).await;
            }
            env.sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }
}

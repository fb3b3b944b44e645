//! A value that is compiled once, on first use, on a blocking thread. Compiling the expressions of one policy may take
//! a second and must not delay requests that the policy does not match.

use std::sync::{Arc, OnceLock};

use machinery_api::error::{ApiError, ApiResult};
use serde_json::Value;

pub(crate) struct Lazy<T> {
    value: OnceLock<T>,
    /// Held while the value is compiled.
    lock: Arc<tokio::sync::Mutex<()>>,
    make: fn(&Value) -> T,
    /// The input; dropped after compilation.
    source: arc_swap::ArcSwapOption<Value>,
}

impl<T: Send + Sync + 'static> Lazy<T> {
    pub(crate) fn new(source: Arc<Value>, make: fn(&Value) -> T) -> Self {
        Self { value: OnceLock::new(), lock: Arc::default(), make, source: Some(source).into() }
    }

    /// Returns the value and compiles it on the first call. If that caller is cancelled, the compilation completes for
    /// the next one.
    ///
    /// # Errors
    /// Fails if the compilation panicked.
    pub(crate) async fn get(self: &Arc<Self>) -> ApiResult<&T> {
        if let Some(value) = self.value.get() {
            return Ok(value);
        }
        let guard = self.lock.clone().lock_owned().await;
        if let (None, Some(source)) = (self.value.get(), self.source.load_full()) {
            let lazy = self.clone();
            let work = move || {
                let _guard = guard;
                lazy.value.get_or_init(|| (lazy.make)(&source));
                lazy.source.store(None);
            };
            tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::Internal(error.to_string()))?;
        }
        self.value.get().ok_or_else(|| ApiError::Internal("nothing was compiled".into()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;

    use super::*;

    static MADE: AtomicUsize = AtomicUsize::new(0);

    fn make(source: &Value) -> i64 {
        MADE.fetch_add(1, Ordering::Relaxed);
        source.as_i64().unwrap_or_default()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_value_is_computed_once_for_all_waiters() {
        let lazy = Arc::new(Lazy::new(Arc::new(json!(7)), make));
        assert_eq!(MADE.load(Ordering::Relaxed), 0, "nobody has asked");
        let waiters = (0..20).map(|_| {
            let lazy = lazy.clone();
            tokio::spawn(async move { *lazy.get().await.expect("made") })
        });
        for value in futures::future::join_all(waiters).await {
            assert_eq!(value.expect("no panic"), 7);
        }
        assert_eq!(MADE.load(Ordering::Relaxed), 1);
        assert!(lazy.source.load().is_none(), "what it was made of is let go");
    }
}

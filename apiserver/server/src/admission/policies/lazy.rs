//! What is compiled when it is first asked for: once, and on a thread where nobody else waits for it. A policy may have
//! expressions that take a second; whoever writes what it is not about has nothing to do with them.

use std::sync::{Arc, OnceLock};

use machinery_api::error::{ApiError, ApiResult};
use serde_json::Value;

/// See the module.
pub(in crate::admission) struct Lazy<T> {
    made: OnceLock<T>,
    /// Held by who makes it.
    turn: Arc<tokio::sync::Mutex<()>>,
    make: fn(&Value) -> T,
    /// Of what it is made.
    source: arc_swap::ArcSwapOption<Value>,
}

impl<T: Send + Sync + 'static> Lazy<T> {
    pub(in crate::admission) fn new(source: Arc<Value>, make: fn(&Value) -> T) -> Self {
        Self { made: OnceLock::new(), turn: Arc::default(), make, source: Some(source).into() }
    }

    /// What it is; made now where it is not yet. Who goes away meanwhile leaves it to be made for the next one.
    ///
    /// # Errors
    /// It can't be made at all.
    pub(in crate::admission) async fn get(self: &Arc<Self>) -> ApiResult<&T> {
        if let Some(made) = self.made.get() {
            return Ok(made);
        }
        let turn = self.turn.clone().lock_owned().await;
        if let (None, Some(source)) = (self.made.get(), self.source.load_full()) {
            let own = self.clone();
            let work = move || {
                let _turn = turn;
                own.made.get_or_init(|| (own.make)(&source));
                own.source.store(None);
            };
            tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::Internal(error.to_string()))?;
        }
        self.made.get().ok_or_else(|| ApiError::Internal("nothing was compiled".into()))
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
    async fn it_is_made_once_for_all_who_wait() {
        let lazy = Arc::new(Lazy::new(Arc::new(json!(7)), make));
        assert_eq!(MADE.load(Ordering::Relaxed), 0, "nobody has asked");
        let asking = (0..20).map(|_| {
            let lazy = lazy.clone();
            tokio::spawn(async move { *lazy.get().await.expect("made") })
        });
        for asked in futures::future::join_all(asking).await {
            assert_eq!(asked.expect("no panic"), 7);
        }
        assert_eq!(MADE.load(Ordering::Relaxed), 1);
        assert!(lazy.source.load().is_none(), "what it was made of is let go");
    }
}

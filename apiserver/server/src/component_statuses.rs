//! ComponentStatuses: the store's alone. Controllers and the scheduler are parts of the same process, or clients that the API server doesn't know.

use std::sync::Arc;

use apiserver_resources::objects::ObjectSource;
use apiserver_resources::{ResourceInfo, componentstatuses};
use apiserver_storage::cache::WatchCache;
use futures::future::BoxFuture;
use serde_json::{Value, json};

/// What clients know the store as.
const STORE: &str = "etcd-0";

/// Asks the store.
struct Statuses(Arc<WatchCache>);

impl std::fmt::Debug for Statuses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Statuses")
    }
}

impl Statuses {
    async fn store(&self) -> Value {
        let condition = match self.0.sync().await {
            Ok(()) => json!({"type": "Healthy", "status": "True", "message": "ok"}),
            Err(error) => json!({"type": "Healthy", "status": "False", "error": error.to_string()}),
        };
        json!({"kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": STORE}, "conditions": [condition]})
    }
}

impl ObjectSource for Statuses {
    fn get<'a>(&'a self, _: &'a str, name: &'a str) -> BoxFuture<'a, Option<Value>> {
        Box::pin(async move {
            match name {
                STORE => Some(self.store().await),
                _ => None,
            }
        })
    }

    fn missing_as(&self) -> Option<&'static str> {
        Some(componentstatuses::ROW.singular)
    }

    fn list<'a>(&'a self, _: Option<&'a str>) -> BoxFuture<'a, Vec<Value>> {
        Box::pin(async move { vec![self.store().await] })
    }
}

/// `componentstatuses`, answered from `cache`'s store.
pub(crate) fn resource(cache: Arc<WatchCache>) -> ResourceInfo {
    ResourceInfo { source: Some(Arc::new(Statuses(cache))), ..ResourceInfo::of(&componentstatuses::ROW) }
}

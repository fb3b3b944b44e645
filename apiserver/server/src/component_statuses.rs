//! ComponentStatuses: only the store's. Controllers and the scheduler run in the same process, or are clients unknown
//! to the API server.

use std::sync::Arc;

use apiserver_resources::objects::ObjectSource;
use apiserver_resources::{ResourceInfo, componentstatuses};
use apiserver_storage::cache::WatchCache;
use futures::future::BoxFuture;
use serde_json::{Value, json};

/// The store's name for clients.
const STORE: &str = "etcd-0";

/// Serves the store's health.
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

    fn not_found_name(&self) -> Option<&'static str> {
        Some(componentstatuses::ROW.singular)
    }

    fn list<'a>(&'a self, _: Option<&'a str>) -> BoxFuture<'a, Vec<Value>> {
        Box::pin(async move { vec![self.store().await] })
    }
}

/// `componentstatuses`, with the health of `cache`'s store.
pub(crate) fn resource(cache: Arc<WatchCache>) -> ResourceInfo {
    ResourceInfo { source: Some(Arc::new(Statuses(cache))), ..ResourceInfo::of(&componentstatuses::ROW) }
}

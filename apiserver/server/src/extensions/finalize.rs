//! Finalizes deleted CustomResourceDefinitions: deletes the instances in key order, waits for their finalizers, then
//! removes the definition's own.

use std::sync::Arc;
use std::time::Duration;

use apiserver_resources::ResourceInfo;
use apiserver_resources::apiextensions::conditions::{self, ESTABLISHED, FINALIZER, TERMINATING};
use apiserver_storage::cache::Selectors;
use machinery_api::ApiError;
use serde_json::{Value, json};

use super::{Extensions, lock};
use crate::http::handle::RequestHandler;
use crate::registry::{ObjectConversions, Registry, RequestScope, object};
use apiserver_auth::{MASTERS, UserInfo};
use apiserver_resources::options::DeleteOptions;

/// The time after which remaining instances are reported in the status.
const DELETION_TIMEOUT: Duration = Duration::from_secs(60);
/// The delay before a retry.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// Whether a definition is deleted and still has the finalizer for its instances.
pub(super) fn needs_finalizing(definition: &Value) -> bool {
    object::is_deleting(definition) && object::finalizers(definition).contains(&FINALIZER)
}

impl Extensions {
    /// Starts finalizing unless it is already running.
    pub(super) fn start_finalizing(self: &Arc<Self>, handler: &Arc<RequestHandler>, name: &str) {
        if !lock(&self.finalizing).insert(name.to_owned()) {
            return;
        }
        let (extensions, handler, name) = (self.clone(), Arc::downgrade(handler), name.to_owned());
        tokio::spawn(async move {
            while let Some(handler) = handler.upgrade() {
                if handler.stop.is_cancelled() || extensions.finalize(&handler, &name).await {
                    break;
                }
                let (stop, env) = (handler.stop.clone(), handler.deps.env.clone());
                drop(handler);
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = env.sleep(RETRY_DELAY) => {}
                }
            }
            lock(&extensions.finalizing).remove(&name);
        });
    }

    /// Returns true when no retry is needed.
    async fn finalize(&self, handler: &Arc<RequestHandler>, name: &str) -> bool {
        let registry = &handler.deps.registry;
        let Some(definition) = self.get(registry, name).filter(|definition| needs_finalizing(definition)) else {
            return true;
        };
        let started = with_terminating(
            registry,
            &definition,
            "True",
            "InstanceDeletionInProgress",
            "CustomResource deletion is in progress",
        );
        if started != *definition && !self.write_status(registry, started).await {
            return false;
        }
        let ended = if !conditions::is_true(&definition, ESTABLISHED) {
            Ok(("False", "NeverEstablished", "resource was never established".to_owned()))
        } else {
            match self.stored(name) {
                Some(row) => self.delete_instances(handler, &row).await,
                None => Ok((
                    "False",
                    "OverlappingBuiltInResource",
                    "instances overlap with built-in resources in storage".into(),
                )),
            }
        };
        let Some(definition) = self.get(registry, name).filter(|definition| needs_finalizing(definition)) else {
            return true;
        };
        match ended {
            Ok((status, reason, message)) => {
                let mut new = with_terminating(registry, &definition, status, reason, &message);
                let left: Vec<&str> = object::finalizers(&definition).into_iter().filter(|f| *f != FINALIZER).collect();
                new["metadata"]["finalizers"] = json!(left);
                self.write_status(registry, new).await
            }
            Err((reason, message)) => {
                let new = with_terminating(registry, &definition, "True", reason, &message);
                if new != *definition {
                    self.write_status(registry, new).await;
                }
                false
            }
        }
    }

    async fn delete_instances(
        &self,
        handler: &Arc<RequestHandler>,
        row: &Arc<ResourceInfo>,
    ) -> Result<(&'static str, &'static str, String), (&'static str, String)> {
        let registry = &handler.deps.registry;
        let Some(prefix) = &row.prefix else { return Ok(completed()) };
        let scope = prefix.all();
        let deadline = registry.env.deadline(DELETION_TIMEOUT);
        loop {
            let page = registry.cache.list(scope.as_str(), None, None, 0, &Selectors::default());
            let page =
                page.map_err(|error| ("InstanceDeletionFailed", format!("could not list instances: {error:?}")))?;
            if page.items.is_empty() {
                return Ok(completed());
            }
            for item in page.items.iter().filter(|item| !item.is_deleting()) {
                match delete(registry, row, item.namespace(), item.name()).await {
                    Ok(()) | Err(ApiError::NotFound(..)) => {}
                    Err(error) => {
                        return Err(("InstanceDeletionFailed", format!("could not issue all deletes: {error}")));
                    }
                }
            }
            // Waits for a change of an instance.
            let Ok(mut watch) = registry.cache.watch(scope.as_str(), Some(page.revision), Selectors::default()) else {
                continue;
            };
            tokio::select! {
                () = handler.stop.cancelled() => return Err(("InstanceDeletionCheck", "the server stops".into())),
                () = registry.env.sleep_until(deadline) => {
                    let why = "could not confirm zero CustomResources remaining: timed out waiting for the condition";
                    return Err(("InstanceDeletionCheck", why.into()));
                }
                _ = watch.recv() => {}
            }
        }
    }
}

fn completed() -> (&'static str, &'static str, String) {
    ("False", "InstanceDeletionCompleted", "removed all instances".into())
}

fn with_terminating(registry: &Registry, definition: &Value, status: &str, reason: &str, message: &str) -> Value {
    let mut new = definition.clone();
    conditions::set(&mut new, TERMINATING, status, reason, message, registry.env.now());
    new
}

async fn delete(registry: &Registry, row: &Arc<ResourceInfo>, namespace: &str, name: &str) -> Result<(), ApiError> {
    let catalog = registry.served.load();
    let user = UserInfo::component("system:apiserver", Some(MASTERS));
    let now = registry.env.now();
    let mut call = RequestScope {
        catalog: &catalog,
        row,
        subresource: None,
        namespace,
        name,
        user: &user,
        now,
        warnings: Vec::new(),
        conversions: ObjectConversions::default(),
    };
    registry.delete(&mut call, &DeleteOptions::default()).await.map(drop)
}

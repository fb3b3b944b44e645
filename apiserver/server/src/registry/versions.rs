//! Objects of a custom resource in the version that is asked for, with the schema as it is now.
//!
//! What is stored under another schema or in another version is read anew: unknown fields go, defaults come, and it is
//! converted, by its apiVersion alone or by asking the definition's webhook. What is as it was stored costs a comparison.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use apiserver_resources::ResourceInfo;
use apiserver_resources::apiextensions::custom::CustomResource;
use apiserver_storage::cache::Cached;
use apiserver_storage::store::Record;
use machinery_api::ApiError;
use machinery_api::apply::Managers;
use serde_json::Value;

use super::elsewhere::Elsewhere;
use super::{Registry, object};
use crate::conversion::Converter;

/// What views are kept for other readers.
const KEPT_BYTES_MAX: usize = 16 << 20;
/// After so many objects others have a turn, and a webhook is asked about no more at once.
const SLICE: usize = 100;
/// Nor about more bytes, beside a single object.
const SLICE_BYTES: usize = 2 << 20;

/// See the module.
pub struct Versions {
    kept: Mutex<Kept>,
    /// Asks webhooks.
    converter: Arc<Converter>,
}

#[derive(Default)]
struct Kept {
    views: HashMap<ViewKey, Arc<Cached>>,
    bytes: usize,
}

/// An object at a revision, in a version, by a schema.
#[derive(PartialEq, Eq, Hash, Clone)]
struct ViewKey {
    key: Arc<str>,
    modified: u64,
    api_version: Arc<str>,
    views: u64,
}

/// Whether a record is as its resource shows it.
pub(crate) fn is_as_shown(row: &ResourceInfo, custom: &CustomResource, generation: u32) -> bool {
    row.stored_as.is_none() && generation == custom.definition.generation
}

impl Versions {
    /// Where webhooks are asked by this converter.
    pub(crate) fn new(converter: Arc<Converter>) -> Self {
        Self { kept: Mutex::default(), converter }
    }

    /// Objects as a row shows them, in their order.
    pub(crate) async fn show(
        &self,
        row: &Arc<ResourceInfo>,
        items: Vec<Arc<Cached>>,
    ) -> Result<Vec<Arc<Cached>>, ApiError> {
        match &row.custom {
            None => Ok(items),
            Some(custom) => Box::pin(self.show_custom(row, custom, items)).await,
        }
    }

    async fn show_custom(
        &self,
        row: &Arc<ResourceInfo>,
        custom: &CustomResource,
        mut items: Vec<Arc<Cached>>,
    ) -> Result<Vec<Arc<Cached>>, ApiError> {
        let mut other: Vec<usize> = Vec::new();
        for (at, item) in items.iter_mut().enumerate() {
            if is_as_shown(row, custom, item.schema_generation()) {
                continue;
            }
            match self.kept(row, custom, item) {
                Some(view) => *item = view,
                None => other.push(at),
            }
        }
        let mut rest = &*other;
        while !rest.is_empty() {
            let slice;
            (slice, rest) = rest.split_at(slice_len(&items, rest));
            let objects = slice.iter().map(|at| items[*at].value()).collect();
            let converted = self.convert(custom, objects).await?;
            for (at, value) in slice.iter().zip(converted) {
                let view = Arc::new(items[*at].shown_as(record(row, custom, &value, items[*at].managers())));
                self.keep(row, custom, &view);
                items[*at] = view;
            }
            if !rest.is_empty() {
                tokio::task::yield_now().await;
            }
        }
        Ok(items)
    }

    /// One object as a row shows it.
    pub(crate) async fn show_one(&self, row: &Arc<ResourceInfo>, item: Arc<Cached>) -> Result<Arc<Cached>, ApiError> {
        match &row.custom {
            Some(custom) if !is_as_shown(row, custom, item.schema_generation()) => {
                let mut shown = self.show(row, vec![item]).await?;
                shown.pop().ok_or_else(|| ApiError::Internal("a conversion lost an object".into()))
            }
            _ => Ok(item),
        }
    }

    fn kept(&self, row: &ResourceInfo, custom: &CustomResource, item: &Cached) -> Option<Arc<Cached>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.views.get(&view_key(row, custom, item)).cloned()
    }

    fn keep(&self, row: &ResourceInfo, custom: &CustomResource, view: &Arc<Cached>) {
        let bytes = view.stored_len() + view.key.len() + size_of::<Cached>();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.bytes + bytes > KEPT_BYTES_MAX {
            *kept = Kept::default();
        }
        if bytes < KEPT_BYTES_MAX && kept.views.insert(view_key(row, custom, view), view.clone()).is_none() {
            kept.bytes += bytes;
        }
    }

    /// Stored objects, in whatever version, in the version of a resource.
    async fn convert(&self, custom: &CustomResource, objects: Vec<Value>) -> Result<Vec<Value>, ApiError> {
        let definition = &custom.definition;
        let wanted = &definition.versions[custom.version];
        let mut settled = Vec::with_capacity(objects.len());
        for mut object in objects {
            let stored = object["apiVersion"].as_str().unwrap_or_default();
            let Some(version) = definition.version_of(stored) else {
                let (group, kind) = (&definition.group, &definition.kind);
                return Err(ApiError::Internal(format!(
                    "request to convert CR from an invalid group/version: {stored} ({kind}.{group})"
                )));
            };
            version.settle(&mut object);
            settled.push(object);
        }
        self.converter.in_version(definition, &wanted.api_version, settled).await
    }

    /// Asks for the object of a write in those versions that it was found to be missing in. Returns whether there were some.
    pub(super) async fn fill(&self, row: &ResourceInfo, elsewhere: &Elsewhere) -> bool {
        match &row.custom {
            Some(custom) => Box::pin(elsewhere.fill(&self.converter, &custom.definition)).await,
            None => false,
        }
    }

    /// An object in the version that is stored.
    pub(crate) async fn to_be_stored(&self, custom: &CustomResource, object: Value) -> Result<Value, ApiError> {
        let stored = custom.definition.stored();
        let in_version = self.converter.in_version(&custom.definition, &stored.api_version, vec![object]);
        let mut converted = in_version.await?.pop().unwrap_or_default();
        // It may lack what objects of that version are created with.
        stored.settle(&mut converted);
        Ok(converted)
    }

    /// An object of the version that is stored in the resource's own.
    pub(crate) async fn of_stored(&self, custom: &CustomResource, object: Value) -> Result<Value, ApiError> {
        let wanted = &custom.definition.versions[custom.version].api_version;
        Ok(self.converter.in_version(&custom.definition, wanted, vec![object]).await?.pop().unwrap_or_default())
    }
}

/// How many of the next objects are one piece of work.
fn slice_len(items: &[Arc<Cached>], next: &[usize]) -> usize {
    let mut bytes = 0;
    let fit = next.iter().take(SLICE).take_while(|at| {
        bytes += items[**at].stored_len();
        bytes <= SLICE_BYTES
    });
    fit.count().max(1)
}

fn view_key(row: &ResourceInfo, custom: &CustomResource, item: &Cached) -> ViewKey {
    ViewKey {
        key: item.key.clone(),
        modified: item.modified,
        api_version: row.api_version.clone(),
        views: custom.definition.views,
    }
}

/// A value of a row's version as it would be stored.
fn record(row: &ResourceInfo, custom: &CustomResource, value: &Value, managers: &Managers) -> Record {
    let body = object::encode(row, value);
    Registry::record(row, &body, value, (custom.definition.generation, managers))
}

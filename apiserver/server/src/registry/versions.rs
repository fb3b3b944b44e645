//! Converts custom resources into the requested version, under the current schema.
//!
//! Objects stored under another schema or in another version are read again: pruned, defaulted, and converted, by
//! changing the apiVersion or by the definition's webhook. Others cost one comparison.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use apiserver_resources::ResourceInfo;
use apiserver_resources::apiextensions::custom::CustomResource;
use apiserver_schema::apply::Managers;
use apiserver_storage::cache::Cached;
use apiserver_storage::store::Record;
use machinery_api::ApiError;
use serde_json::Value;

use super::conversions::ObjectConversions;
use super::{Registry, object};
use apiserver_webhook::conversion::Converter;

/// The maximum size of the cache of converted objects.
const CACHE_BYTES_MAX: usize = 16 << 20;
/// The number of objects after which the task yields, and the maximum of one webhook request.
const SLICE: usize = 100;
/// The same in bytes; a single object may be larger.
const SLICE_BYTES: usize = 2 << 20;

/// The converter of custom resources, with its cache.
pub struct CustomVersions {
    cache: Mutex<ViewCache>,
    /// Calls webhooks.
    converter: Arc<Converter>,
}

#[derive(Default)]
struct ViewCache {
    views: HashMap<ViewKey, Arc<Cached>>,
    bytes: usize,
}

/// An object at a revision, in a version, under a schema.
#[derive(PartialEq, Eq, Hash, Clone)]
struct ViewKey {
    key: Arc<str>,
    modified: u64,
    api_version: Arc<str>,
    views: u64,
}

/// Whether a record needs no conversion for this row.
pub(crate) fn needs_no_conversion(row: &ResourceInfo, custom: &CustomResource, generation: u32) -> bool {
    row.stored_as.is_none() && generation == custom.definition.generation
}

impl CustomVersions {
    /// Calls webhooks through `converter`.
    pub(crate) fn new(converter: Arc<Converter>) -> Self {
        Self { cache: Mutex::default(), converter }
    }

    /// The objects in the version of a row, in their order.
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
            if needs_no_conversion(row, custom, item.schema_generation()) {
                continue;
            }
            match self.cached_view(row, custom, item) {
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
                self.cache_view(row, custom, &view);
                items[*at] = view;
            }
            if !rest.is_empty() {
                tokio::task::yield_now().await;
            }
        }
        Ok(items)
    }

    /// One object in the version of a row.
    pub(crate) async fn show_one(&self, row: &Arc<ResourceInfo>, item: Arc<Cached>) -> Result<Arc<Cached>, ApiError> {
        match &row.custom {
            Some(custom) if !needs_no_conversion(row, custom, item.schema_generation()) => {
                let mut shown = self.show(row, vec![item]).await?;
                shown.pop().ok_or_else(|| ApiError::Internal("a conversion lost an object".into()))
            }
            _ => Ok(item),
        }
    }

    fn cached_view(&self, row: &ResourceInfo, custom: &CustomResource, item: &Cached) -> Option<Arc<Cached>> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.views.get(&view_key(row, custom, item)).cloned()
    }

    fn cache_view(&self, row: &ResourceInfo, custom: &CustomResource, view: &Arc<Cached>) {
        let bytes = view.stored_len() + view.key.len() + size_of::<Cached>();
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.bytes + bytes > CACHE_BYTES_MAX {
            *cache = ViewCache::default();
        }
        if bytes < CACHE_BYTES_MAX && cache.views.insert(view_key(row, custom, view), view.clone()).is_none() {
            cache.bytes += bytes;
        }
    }

    /// Converts stored objects of any version into the version of a resource.
    async fn convert(&self, custom: &CustomResource, objects: Vec<Value>) -> Result<Vec<Value>, ApiError> {
        let definition = &custom.definition;
        let wanted = &definition.versions[custom.version];
        let mut prepared = Vec::with_capacity(objects.len());
        for mut object in objects {
            let stored = object["apiVersion"].as_str().unwrap_or_default();
            let Some(version) = definition.version_of(stored) else {
                let (group, kind) = (&definition.group, &definition.kind);
                return Err(ApiError::Internal(format!(
                    "request to convert CR from an invalid group/version: {stored} ({kind}.{group})"
                )));
            };
            version.settle(&mut object);
            prepared.push(object);
        }
        self.converter.convert(definition, &wanted.api_version, prepared).await
    }

    /// Runs the missing conversions of a write. Returns whether there were any.
    pub(super) async fn convert_missing(&self, row: &ResourceInfo, conversions: &ObjectConversions) -> bool {
        match &row.custom {
            Some(custom) => Box::pin(conversions.convert_missing(&self.converter, &custom.definition)).await,
            None => false,
        }
    }

    /// Converts an object into the stored version.
    pub(crate) async fn to_stored_version(&self, custom: &CustomResource, object: Value) -> Result<Value, ApiError> {
        let stored = custom.definition.stored();
        let in_version = self.converter.convert(&custom.definition, &stored.api_version, vec![object]);
        let mut converted = in_version.await?.pop().unwrap_or_default();
        // The webhook may have left out defaults of that version.
        stored.settle(&mut converted);
        Ok(converted)
    }

    /// Converts an object of the stored version into the resource's own.
    pub(crate) async fn convert_stored(&self, custom: &CustomResource, object: Value) -> Result<Value, ApiError> {
        let wanted = &custom.definition.versions[custom.version].api_version;
        Ok(self.converter.convert(&custom.definition, wanted, vec![object]).await?.pop().unwrap_or_default())
    }
}

/// The number of next objects that form one slice.
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

/// The record of a value in a row's version.
fn record(row: &ResourceInfo, custom: &CustomResource, value: &Value, managers: &Managers) -> Record {
    let body = object::encode(row, value);
    Registry::record(row, &body, value, (custom.definition.generation, managers))
}

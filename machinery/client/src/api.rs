//! A typed client of one kind, as kube's `Api`, over the codecs of [`crate::wire`]: get, list, create, patch, delete,
//! wait for a condition.
//!
//! Invariant: bodies are encoded and decoded in this crate only, so that a caller's crate compiles no deserializer.

use std::marker::PhantomData;
use std::ops::ControlFlow;

use http::Method;
use kube::Client;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::object::{Kind, Object, Typed, shared};
use crate::reflector::{Reflector, ReflectorEvent};
use crate::request::{PatchType, query_string, send, status_code};
use crate::wire::ReadWire;
use machinery_api::ObjectKey;
use machinery_env::Env;

/// A client of the objects of one kind, in one namespace or in all.
pub struct Api<K> {
    client: Client,
    namespace: String,
    /// The query of every write: `fieldManager`, `dryRun`.
    write_query: Vec<(&'static str, &'static str)>,
    kind: PhantomData<fn() -> K>,
}

impl<K> std::fmt::Debug for Api<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

/// Options of a list.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// `labelSelector`; empty for all.
    pub labels: String,
    /// `fieldSelector`; empty for all.
    pub fields: String,
    /// Maximum objects in one page; 0 for all in one.
    pub limit: usize,
    /// The token of the last page; empty for the first page.
    pub continue_token: String,
}

/// One page of a list.
#[derive(Debug)]
pub struct Page<K> {
    /// Its objects.
    pub items: Vec<K>,
    /// The token of the next page; empty after the last one.
    pub continue_token: String,
}

#[derive(Deserialize)]
struct RawPage<'a> {
    #[serde(default)]
    metadata: PageMetadata,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize, Default)]
struct PageMetadata {
    #[serde(default)]
    r#continue: String,
}

#[expect(clippy::missing_errors_doc, reason = "each fails where the server refuses or cannot be reached")]
impl<K: Typed> Api<K> {
    /// A client for all namespaces, or for a cluster-scoped kind.
    #[must_use]
    pub fn all(client: Client) -> Self {
        Self::namespaced(client, "")
    }

    /// A client for one namespace.
    #[must_use]
    pub fn namespaced(client: Client, namespace: &str) -> Self {
        Self { client, namespace: namespace.to_owned(), write_query: Vec::new(), kind: PhantomData }
    }

    /// Sets the field manager of writes.
    #[must_use]
    pub fn managed_by(mut self, manager: &'static str) -> Self {
        self.write_query.push(("fieldManager", manager));
        self
    }

    /// Sends writes with `dryRun=All`: admitted and answered, not stored.
    #[must_use]
    pub fn dry_run(mut self) -> Self {
        self.write_query.push(("dryRun", "All"));
        self
    }

    /// GET of an object.
    pub async fn get(&self, name: &str) -> Result<K, kube::Error> {
        read(&self.send(Method::GET, &self.path(name), "", Vec::new()).await?)
    }

    /// GET of an object in its wire form, with fields that the type omits.
    pub async fn get_value(&self, name: &str) -> Result<Value, kube::Error> {
        let text = self.send(Method::GET, &self.path(name), "", Vec::new()).await?;
        serde_json::from_str(&text).map_err(kube::Error::SerdeError)
    }

    /// GET of an object; `None` on a 404.
    pub async fn get_opt(&self, name: &str) -> Result<Option<K>, kube::Error> {
        match self.get(name).await {
            Err(error) if status_code(&error) == 404 => Ok(None),
            found => found.map(Some),
        }
    }

    /// GET of the collection.
    pub async fn list(&self, options: &ListOptions) -> Result<Page<K>, kube::Error> {
        let limit = options.limit.to_string();
        let pairs = [
            ("labelSelector", options.labels.as_str()),
            ("fieldSelector", options.fields.as_str()),
            ("limit", limit.as_str()),
            ("continue", options.continue_token.as_str()),
        ];
        let query: Vec<_> = pairs.into_iter().filter(|(_, value)| !value.is_empty() && *value != "0").collect();
        let path = format!("{}?{}", Kind::of::<K>().collection_path(&self.namespace), query_string(&query));
        let text = self.send(Method::GET, &path, "", Vec::new()).await?;
        let page: RawPage<'_> = serde_json::from_str(&text).map_err(kube::Error::SerdeError)?;
        let items = page.items.unwrap_or_default().into_iter().map(|item| read(item.get()));
        Ok(Page { items: items.collect::<Result<_, _>>()?, continue_token: page.metadata.r#continue })
    }

    /// POST of a new object.
    pub async fn create(&self, object: &Value) -> Result<K, kube::Error> {
        read(&self.post(object).await?)
    }

    /// POST of a new object; returns the wire form.
    pub async fn create_value(&self, object: &Value) -> Result<Value, kube::Error> {
        serde_json::from_str(&self.post(object).await?).map_err(kube::Error::SerdeError)
    }

    async fn post(&self, object: &Value) -> Result<String, kube::Error> {
        let path = self.writing(Kind::of::<K>().collection_path(&self.namespace));
        self.send(Method::POST, &path, "application/json", object.to_string().into_bytes()).await
    }

    /// PATCH of an object.
    pub async fn patch(&self, name: &str, patch_type: PatchType, patch: &Value) -> Result<K, kube::Error> {
        let path = self.writing(self.path(name));
        let body = patch.to_string().into_bytes();
        read(&self.send(Method::PATCH, &path, patch_type.content_type(), body).await?)
    }

    /// DELETE of an object.
    pub async fn delete(&self, name: &str) -> Result<(), kube::Error> {
        self.send(Method::DELETE, &self.path(name), "", Vec::new()).await.map(drop)
    }

    /// Watches an object, or its absence, until `condition` holds, and returns that state. A failed watch is retried
    /// without end: callers must set a timeout.
    pub async fn wait_until(
        &self,
        env: &Env,
        name: &str,
        mut condition: impl FnMut(Option<&K>) -> bool + Send,
    ) -> Option<std::sync::Arc<K>> {
        let mut found = None;
        let reflector = Reflector::of::<K>(self.client.clone(), env.clone()).within(&*self.namespace);
        reflector
            .selecting(format!("metadata.name={name}"))
            .run(|event| {
                let now: Option<std::sync::Arc<dyn Object>> = match event {
                    ReflectorEvent::Replaced(objects, _) => objects.into_iter().next(),
                    ReflectorEvent::Applied(object) => Some(object),
                    ReflectorEvent::Deleted(_) => None,
                    ReflectorEvent::Progress(_) | ReflectorEvent::Interrupted(_) => return ControlFlow::Continue(()),
                };
                found = now.and_then(shared::<K>);
                if condition(found.as_deref()) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .await;
        found
    }

    fn path(&self, name: &str) -> String {
        Kind::of::<K>().path(&ObjectKey::new(&*self.namespace, name))
    }

    fn writing(&self, path: String) -> String {
        if self.write_query.is_empty() { path } else { format!("{path}?{}", query_string(&self.write_query)) }
    }

    async fn send(&self, method: Method, path: &str, media: &str, body: Vec<u8>) -> Result<String, kube::Error> {
        send(&self.client, method, path, media, body).await
    }
}

fn read<K: ReadWire>(text: &str) -> Result<K, kube::Error> {
    K::from_json(text).map_err(kube::Error::SerdeError)
}

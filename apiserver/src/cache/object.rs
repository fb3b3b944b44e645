//! One cached object: its stored bytes, where its resourceVersion is stamped in, and the facts that lists, watches and
//! selectors ask for.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use machinery::shared::Pool;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;

use super::texts::Texts;
use crate::store::{Entry, Revision};

/// Extracts field labels and values that field selectors may name, beside `metadata.name` and `metadata.namespace`.
pub type Fields = Arc<dyn Fn(&Value) -> Vec<(Cow<'static, str>, String)> + Send + Sync>;

type FieldNames = Vec<Cow<'static, str>>;

static FIELD_NAMES: Pool<FieldNames> = Pool::new();

/// What the cache must know of a resource.
#[derive(Clone)]
pub struct Resource {
    /// `/registry/pods/`: ends with `/`.
    pub prefix: Arc<str>,
    /// `None`: objects are not parsed at all when they are stored.
    pub fields: Option<Fields>,
    /// Fields whose equality is indexed for lists and watches (`spec.nodeName` of pods).
    pub indexed_fields: &'static [&'static str],
    /// Whether lists by label equality use an index.
    pub indexes_labels: bool,
}

impl Resource {
    /// One with neither fields nor indexes.
    pub fn plain(prefix: impl Into<Arc<str>>) -> Self {
        Self { prefix: prefix.into(), fields: None, indexed_fields: &[], indexes_labels: false }
    }
}

/// `/registry/pods/` of a prefix that no resource was registered for.
pub(super) fn resource_prefix(prefix: &str) -> String {
    let end = prefix.match_indices('/').nth(2).map_or(prefix.len(), |(at, _)| at + 1);
    prefix[..end].to_owned()
}

/// An object at one revision. Cheap to hold, and shared by lists, watches and history.
pub struct Cached {
    /// The key in the store.
    pub key: Arc<str>,
    /// When the object was created.
    pub created: Revision,
    /// Its resourceVersion.
    pub modified: Revision,
    /// As stored: without resourceVersion.
    stored: Bytes,
    /// Where in `stored` the resourceVersion goes, just after metadata's brace; 0: nowhere.
    stamp_at: u32,
    /// Whether metadata has other fields, so that a comma follows.
    stamp_comma: bool,
    /// Length of the namespace in the key, 0 for cluster-wide objects.
    namespace_len: u16,
    /// Keys and values, in order of the keys.
    labels: Texts,
    /// The values of `field_names`, in their order.
    fields: Texts,
    field_names: Arc<FieldNames>,
    /// The parsed form while somebody holds it.
    parsed: Mutex<Weak<Value>>,
}

impl std::fmt::Debug for Cached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.key, self.modified)
    }
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta<'a> {
    #[serde(borrow, default)]
    namespace: Option<Cow<'a, str>>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    resource_version: Option<IgnoredAny>,
}

impl Cached {
    pub(super) fn new(entry: &Entry, resource: Option<&Resource>) -> Self {
        let mut cached = Self {
            key: entry.key.clone(),
            created: entry.created,
            modified: entry.modified,
            stored: entry.value.clone(),
            stamp_at: 0,
            stamp_comma: false,
            namespace_len: 0,
            labels: Texts::default(),
            fields: Texts::default(),
            field_names: Arc::default(),
            parsed: Mutex::default(),
        };
        if cached.read_metadata().is_none() {
            // Stored with a resourceVersion, which nobody should do: taken out once, here.
            if let Ok(mut value) = serde_json::from_slice::<Value>(&cached.stored)
                && let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut)
            {
                metadata.remove("resourceVersion");
                cached.stored = value.to_string().into();
                cached.read_metadata();
            }
        }
        cached.read_fields(resource);
        cached
    }

    /// `None`: metadata holds a resourceVersion.
    fn read_metadata(&mut self) -> Option<()> {
        let Ok(text) = std::str::from_utf8(&self.stored) else { return Some(()) };
        let Ok(Envelope { metadata: Some(raw) }) = serde_json::from_str::<Envelope<'_>>(text) else { return Some(()) };
        let Ok(meta) = serde_json::from_str::<Meta<'_>>(raw.get()) else { return Some(()) };
        if meta.resource_version.is_some() {
            return None;
        }
        let inside = raw.get().as_ptr() as usize - text.as_ptr() as usize + 1;
        self.stamp_at = u32::try_from(inside).unwrap_or(0);
        self.stamp_comma = !raw.get()[1..].trim_start().starts_with('}');
        let namespace = meta.namespace.unwrap_or_default();
        let in_key = self.key.rsplit('/').nth(1).is_some_and(|segment| segment == namespace);
        self.namespace_len = if in_key { u16::try_from(namespace.len()).unwrap_or(0) } else { 0 };
        let labels = meta.labels.unwrap_or_default();
        self.labels = labels.iter().flat_map(|(key, value)| [key, value]).collect();
        Some(())
    }

    fn read_fields(&mut self, resource: Option<&Resource>) {
        let extracted = resource
            .and_then(|resource| resource.fields.as_ref())
            .map_or_else(Vec::new, |extract| extract(&serde_json::from_slice(&self.stored).unwrap_or(Value::Null)));
        let (names, values): (FieldNames, Vec<String>) = extracted.into_iter().unzip();
        self.fields = values.iter().collect();
        self.field_names = FIELD_NAMES.share(names);
    }

    fn copy(&self) -> Self {
        Self {
            key: self.key.clone(),
            created: self.created,
            modified: self.modified,
            stored: self.stored.clone(),
            stamp_at: self.stamp_at,
            stamp_comma: self.stamp_comma,
            namespace_len: self.namespace_len,
            labels: self.labels.clone(),
            fields: self.fields.clone(),
            field_names: self.field_names.clone(),
            parsed: Mutex::default(),
        }
    }

    /// The same state under another resourceVersion: how watches show an object that has gone.
    pub(super) fn stamped(&self, revision: Revision) -> Self {
        Self { modified: revision, ..self.copy() }
    }

    pub(super) fn extracted_by(&self, resource: &Resource) -> Self {
        let mut cached = self.copy();
        cached.read_fields(Some(resource));
        cached
    }

    /// The namespace, or empty.
    #[must_use]
    pub fn namespace(&self) -> &str {
        let end = self.key.len() - self.name().len();
        let len = usize::from(self.namespace_len);
        if len == 0 { "" } else { self.key.get(end - 1 - len..end - 1).unwrap_or("") }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or("")
    }

    /// A label's value.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// All labels in key order.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.labels.pairs()
    }

    /// A field label's value, as field selectors compare it; `None`: no such label.
    #[must_use]
    pub fn field(&self, label: &str) -> Option<&str> {
        match label {
            "metadata.name" => Some(self.name()),
            "metadata.namespace" => Some(self.namespace()),
            _ => {
                self.field_names.iter().zip(self.fields.iter()).find(|(name, _)| *name == label).map(|(_, value)| value)
            }
        }
    }

    /// The bytes as stored: JSON without resourceVersion.
    #[must_use]
    pub fn stored(&self) -> &Bytes {
        &self.stored
    }

    /// Appends the object's JSON with its resourceVersion.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let at = self.stamp_at as usize;
        if at == 0 {
            out.extend_from_slice(&self.stored);
            return;
        }
        out.reserve(self.stored.len() + 48);
        out.extend_from_slice(&self.stored[..at]);
        out.extend_from_slice(b"\"resourceVersion\":\"");
        out.extend_from_slice(self.modified.to_string().as_bytes());
        out.extend_from_slice(if self.stamp_comma { b"\"," } else { b"\"" });
        out.extend_from_slice(&self.stored[at..]);
    }

    /// The object's JSON with its resourceVersion, as a copy of its own.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        let mut out = Vec::new();
        self.write_to(&mut out);
        out.into()
    }

    /// The parsed object with its resourceVersion, for changing it.
    #[must_use]
    pub fn value(&self) -> Value {
        let mut value: Value = serde_json::from_slice(&self.stored).unwrap_or(Value::Null);
        if self.stamp_at > 0
            && let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut)
        {
            metadata.insert("resourceVersion".into(), self.modified.to_string().into());
        }
        value
    }

    /// The same for reading: parsed once while anybody holds it.
    #[must_use]
    pub fn shared(&self) -> Arc<Value> {
        let mut parsed = self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        parsed.upgrade().unwrap_or_else(|| {
            let value = Arc::new(self.value());
            *parsed = Arc::downgrade(&value);
            value
        })
    }
}

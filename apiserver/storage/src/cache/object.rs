//! A cached object: its record and its revisions. Lists, watches and selectors use the record's head. Objects are not
//! parsed here, except for fields that the record's writer did not extract.

use std::borrow::Cow;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use apiserver_resources::ResourceInfo;
use apiserver_schema::apply::Managers;
use bytes::Bytes;
use machinery_api::{ObjectName, StorageKey, StoragePrefix};
use serde_json::Value;

use crate::store::record::{Body, Facts, fingerprint};
use crate::store::{Entry, Record, Revision};

/// `"resourceVersion":"N",` with an N of 64 bits.
const STAMP_BYTES_MAX: usize = 48;

type ReadFields = dyn Fn(&Value) -> Vec<String> + Send + Sync;

/// The field selectors of a resource's objects, besides `metadata.name` and `metadata.namespace`.
pub struct Fields {
    /// The field labels.
    names: Vec<Cow<'static, str>>,
    /// Reads their values from an object, in the labels' order.
    read: Box<ReadFields>,
    /// The fingerprint of the labels, which records contain.
    named: u64,
}

impl Fields {
    /// Takes the labels, and the function that reads their values from an object.
    #[must_use]
    pub fn new(names: Vec<Cow<'static, str>>, read: impl Fn(&Value) -> Vec<String> + Send + Sync + 'static) -> Self {
        let named = fingerprint(names.iter().map(|name| &**name));
        Self { names, read: Box::new(read), named }
    }

    /// The fingerprint and the values for a record's head.
    #[must_use]
    pub fn of(&self, object: &Value) -> (u64, Vec<String>) {
        (self.named, (self.read)(object))
    }
}

impl std::fmt::Debug for Fields {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.names)
    }
}

/// The watch cache's description of a resource.
#[derive(Clone)]
pub struct Resource {
    /// The storage prefix.
    pub prefix: StoragePrefix,
    /// The selectable fields; `None` if it has none of its own.
    pub fields: Option<Arc<Fields>>,
    /// The fields with an equality index for lists and watches (`spec.nodeName` of pods).
    pub indexed_fields: Arc<[Arc<str>]>,
    /// Whether label equality is indexed.
    pub indexes_labels: bool,
}

impl Resource {
    /// A resource with neither fields nor indexes.
    #[must_use]
    pub fn plain(prefix: StoragePrefix) -> Self {
        Self { prefix, fields: None, indexed_fields: Arc::default(), indexes_labels: false }
    }

    /// The description of a served resource; `None` if it is virtual.
    #[must_use]
    pub fn of(resource: &Arc<ResourceInfo>) -> Option<Self> {
        let strategy = resource.strategy.clone();
        let fields = (!strategy.selectable_labels().is_empty()).then(|| {
            let names = strategy.selectable_labels().to_vec();
            let read = move |object: &Value| strategy.selectable(object);
            Arc::new(Fields::new(names, read))
        });
        Some(Self {
            prefix: resource.prefix.clone()?,
            fields,
            indexed_fields: resource.indexed_fields.clone(),
            indexes_labels: resource.indexes_labels,
        })
    }
}

/// An object at one revision: cheap to hold, shared by lists, watches and history.
pub struct Cached {
    /// The key in the store.
    pub key: Arc<str>,
    /// The revision of the object's creation.
    pub created: Revision,
    /// Its resourceVersion.
    pub modified: Revision,
    record: Record,
    /// The field labels.
    fields: Option<Arc<Fields>>,
    /// The field values, if the record has none for these labels.
    read: Option<Box<[String]>>,
    /// The parsed form, as long as a reader holds it.
    parsed: Mutex<Weak<Value>>,
}

impl std::fmt::Debug for Cached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.key, self.modified)
    }
}

/// The field values if the record lacks them: its writer (another program version or schema) had other labels.
fn unread(record: &Record, fields: Option<&Fields>) -> Option<Box<[String]>> {
    let fields = fields.filter(|fields| fields.named != record.fields_named())?;
    let value = serde_json::from_slice(&record.body()).unwrap_or(Value::Null);
    Some((fields.read)(&value).into_boxed_slice())
}

/// Appends a record's JSON with a resourceVersion, and `managedFields` if `managed`.
pub fn write_record(record: &Record, revision: Revision, managed: bool, out: &mut Vec<u8>) {
    let Some((at, comma)) = record.stamp() else {
        record.write_body(out, (0, &[]));
        return;
    };
    let mut stamp = [0; STAMP_BYTES_MAX];
    let mut rest = &mut stamp[..];
    let managers = record.managers();
    let managed = managed && !managers.is_empty();
    // The buffer fits the largest revision.
    let _ = write!(rest, "\"resourceVersion\":\"{revision}\"{}", if comma || managed { "," } else { "" });
    let left = rest.len();
    let stamp = &stamp[..STAMP_BYTES_MAX - left];
    if !managed {
        return record.write_body(out, (at, stamp));
    }
    let mut piece = Vec::with_capacity(2048);
    piece.extend_from_slice(stamp);
    managers.write_json(&mut piece);
    if comma {
        piece.push(b',');
    }
    record.write_body(out, (at, &piece));
}

impl Cached {
    /// `fields` are the resource's.
    pub(super) fn new(entry: &Entry, fields: Option<Arc<Fields>>) -> Self {
        Self {
            key: entry.key.clone(),
            created: entry.created,
            modified: entry.modified,
            record: entry.record.clone(),
            read: unread(&entry.record, fields.as_deref()),
            fields,
            parsed: Mutex::default(),
        }
    }

    /// A virtual object for lists: without a resourceVersion.
    #[must_use]
    pub fn unstored(object: &Value) -> Self {
        let facts = Facts::of(object);
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let key = StoragePrefix::new("").object(ObjectName::new(facts.namespace, name)).to_string().into();
        let record = Record::new(object.to_string().as_bytes(), &facts);
        Self { key, created: 0, modified: 0, record, fields: None, read: None, parsed: Mutex::default() }
    }

    fn copy(&self) -> Self {
        Self {
            key: self.key.clone(),
            created: self.created,
            modified: self.modified,
            record: self.record.clone(),
            fields: self.fields.clone(),
            read: self.read.clone(),
            parsed: Mutex::default(),
        }
    }

    /// The same state in another form, for a converted object.
    #[must_use]
    pub fn shown_as(&self, record: Record) -> Self {
        let read = self.read.clone().or_else(|| {
            // Selectors continue to compare the stored values.
            let same = self.record.fields_named() == record.fields_named() && self.record.fields().eq(record.fields());
            (!same).then(|| self.record.fields().map(Into::into).collect())
        });
        Self { record, read, ..self.copy() }
    }

    /// The generation of the schema that it was stored under.
    #[must_use]
    pub fn schema_generation(&self) -> u32 {
        self.record.schema_generation()
    }

    /// The same state with another resourceVersion, for a deletion event.
    pub(super) fn stamped(&self, revision: Revision) -> Self {
        Self { modified: revision, ..self.copy() }
    }

    /// The same state with the resource's current fields.
    pub(super) fn extracted_by(&self, fields: Option<Arc<Fields>>) -> Self {
        Self { read: unread(&self.record, fields.as_deref()), fields, ..self.copy() }
    }

    /// Whether its fields are the resource's current ones.
    pub(super) fn is_extracted_by(&self, resource: &Resource) -> bool {
        match (&self.fields, &resource.fields) {
            (Some(own), Some(fields)) => Arc::ptr_eq(own, fields),
            (own, fields) => own.is_none() && fields.is_none(),
        }
    }

    /// Namespace and name.
    #[must_use]
    pub fn object_name(&self) -> ObjectName<'_> {
        StorageKey::name_at_end(&self.key, self.record.namespace_len())
    }

    /// The namespace, or empty.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.object_name().namespace
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.object_name().name
    }

    /// A label's value.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// All labels in key order.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.record.labels()
    }

    /// Whether the labels equal those of another state.
    pub(super) fn has_labels_of(&self, other: &Self) -> bool {
        self.record.has_labels_of(&other.record)
    }

    /// The value of a field label, for field selectors; `None` if there is no such label.
    #[must_use]
    pub fn field(&self, label: &str) -> Option<&str> {
        match label {
            "metadata.name" => Some(self.name()),
            "metadata.namespace" => Some(self.namespace()),
            _ => {
                let at = self.fields.as_ref()?.names.iter().position(|name| name == label)?;
                match &self.read {
                    Some(read) => read.get(at).map(String::as_str),
                    None => self.record.fields().nth(at),
                }
            }
        }
    }

    /// Whether it has a deletion timestamp.
    #[must_use]
    pub fn is_deleting(&self) -> bool {
        self.record.is_deleting()
    }

    /// The stored JSON, without resourceVersion.
    #[must_use]
    pub fn stored(&self) -> Body {
        self.record.body()
    }

    /// The length of the stored JSON.
    #[must_use]
    pub fn stored_len(&self) -> usize {
        self.record.body_len()
    }

    /// The record, for compression.
    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    /// Appends the object's JSON with its resourceVersion, and `managedFields` if `managed`.
    pub fn write_to(&self, managed: bool, out: &mut Vec<u8>) {
        write_record(&self.record, self.modified, managed, out);
    }

    /// A copy of the object's JSON with its resourceVersion.
    #[must_use]
    pub fn bytes(&self, managed: bool) -> Bytes {
        let mut out = Vec::new();
        self.write_to(managed, &mut out);
        out.into()
    }

    /// The managers of the object's fields.
    #[must_use]
    pub fn managers(&self) -> &Managers {
        self.record.managers()
    }

    /// The parsed object with its resourceVersion and without managers, as an own copy.
    #[must_use]
    pub fn value(&self) -> Value {
        let mut value: Value = serde_json::from_slice(&self.stored()).unwrap_or(Value::Null);
        if self.record.stamp().is_some()
            && let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut)
        {
            metadata.insert("resourceVersion".into(), self.modified.to_string().into());
        }
        value
    }

    /// The parsed object, shared: parsed once while a reader holds it.
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

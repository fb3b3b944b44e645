//! The stored form of an object: a small head of facts (labels, selectable fields, whether it is being deleted) before
//! its JSON. The head is built once, in the writing request, which has the parsed object. Transactions, the log,
//! snapshots and the cache pass it on, so that no object is parsed under a lock or at a start. A cold record's JSON is
//! compressed, for all holders of the record.
//!
//! The head, little endian: version, flags, length of the namespace (2 bytes), offset of the resourceVersion (4), the
//! schema's generation (4), the fingerprint of the fields' names (8), bytes of labels, of fields and of managers (4
//! each); then labels and fields as length-prefixed texts, and the managers of the object's fields. Version 1 has no
//! managers. In memory, managers are entries that share the parts that many objects have in common.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock};

use apiserver_schema::apply::Managers;
use machinery_api::packed::{Packed, Packer};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;

const VERSION: u8 = 2;
/// The version of heads without managers.
const VERSION_UNMANAGED: u8 = 1;
const FIXED_BYTES: usize = 32;
const COMMA: u8 = 1;
const DELETING: u8 = 2;

/// A stored object. Cheap to clone.
#[derive(Clone)]
pub struct Record(Arc<RecordData>);

struct RecordData {
    head: Box<[u8]>,
    managers: Managers,
    body_len: u32,
    body: RwLock<Form>,
}

enum Form {
    Plain(Arc<[u8]>),
    Packed(Packed),
}

/// A record's JSON, for the duration of a read.
#[derive(Debug, Clone)]
pub struct Body(BodyBytes);

#[derive(Debug, Clone)]
enum BodyBytes {
    Shared(Arc<[u8]>),
    Owned(Vec<u8>),
}

impl Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            BodyBytes::Shared(bytes) => bytes,
            BodyBytes::Owned(bytes) => bytes,
        }
    }
}

impl PartialEq for Record {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
            || (self.0.body_len == other.0.body_len
                && self.0.head == other.0.head
                && self.0.managers == other.0.managers
                && *self.body() == *other.body())
    }
}

impl Eq for Record {}

/// The facts about an object when it is stored.
#[derive(Debug, Default)]
pub struct Facts<'a> {
    /// The offset in the body for the resourceVersion, right after metadata's brace; 0: none.
    pub stamp_at: usize,
    /// Whether metadata has other fields, so that a comma follows.
    pub comma: bool,
    /// Whether it has a deletion timestamp.
    pub deleting: bool,
    /// The namespace, or empty.
    pub namespace: &'a str,
    /// The generation of the schema that it was stored under; 0 for built-in kinds.
    pub schema_generation: u32,
    /// Labels in order of their keys.
    pub labels: Vec<(&'a str, &'a str)>,
    /// The fingerprint of the selectable fields' names, and their values in the names' order; `None`: unknown.
    pub fields: Option<(u64, Vec<String>)>,
    /// The managers of the object's fields.
    pub managers: Managers,
}

impl<'a> Facts<'a> {
    /// The facts that the object contains; the caller adds `stamp_at` and the fields.
    #[must_use]
    pub fn of(object: &'a Value) -> Self {
        let metadata = &object["metadata"];
        let labels = metadata["labels"].as_object().into_iter().flatten();
        Self {
            deleting: !metadata["deletionTimestamp"].is_null(),
            namespace: metadata["namespace"].as_str().unwrap_or_default(),
            labels: labels.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?))).collect(),
            ..Self::default()
        }
    }
}

/// A hash of a list of field names, equal only for equal lists. Never 0.
pub fn fingerprint<'a>(names: impl IntoIterator<Item = &'a str>) -> u64 {
    // FNV-1a over the names, each with a terminator that no name contains.
    let bytes = names.into_iter().flat_map(|name| name.bytes().chain([0xFF]));
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    hash.max(1)
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries([self.head(), &self.body()].map(String::from_utf8_lossy)).finish()
    }
}

fn put_texts<'a>(out: &mut Vec<u8>, texts: impl Iterator<Item = &'a str>) -> u32 {
    let begin = out.len();
    for text in texts {
        out.extend_from_slice(&length(text.len()).to_le_bytes());
        out.extend_from_slice(text.as_bytes());
    }
    length(out.len() - begin)
}

/// The store's limit keeps values and heads far below 4 GiB.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Length-prefixed texts.
struct Texts<'a>(&'a [u8]);

impl<'a> Iterator for Texts<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let (length, rest) = self.0.split_first_chunk::<4>()?;
        let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }
}

impl Texts<'_> {
    /// The number of texts, if they fill the slice exactly.
    fn count_whole(mut self) -> Option<usize> {
        let mut count = 0;
        while !self.0.is_empty() {
            self.next()?;
            count += 1;
        }
        Some(count)
    }
}

impl Record {
    /// From a body and its facts.
    #[must_use]
    pub fn new(body: &[u8], facts: &Facts<'_>) -> Self {
        let labels = facts.labels.iter().map(|(key, value)| key.len() + value.len() + 8).sum::<usize>();
        let fields = facts.fields.iter().flat_map(|(_, values)| values).map(|value| value.len() + 4).sum::<usize>();
        let mut out = Vec::with_capacity(FIXED_BYTES + labels + fields);
        let flags = if facts.comma { COMMA } else { 0 } | if facts.deleting { DELETING } else { 0 };
        let version = if facts.managers.is_empty() { VERSION_UNMANAGED } else { VERSION };
        out.extend_from_slice(&[version, flags]);
        out.extend_from_slice(&u16::try_from(facts.namespace.len()).unwrap_or(0).to_le_bytes());
        out.extend_from_slice(&length(facts.stamp_at).to_le_bytes());
        out.extend_from_slice(&facts.schema_generation.to_le_bytes());
        out.extend_from_slice(&facts.fields.as_ref().map_or(0, |(names, _)| *names).to_le_bytes());
        out.extend_from_slice(&[0; 12]);
        let labels = put_texts(&mut out, facts.labels.iter().flat_map(|(key, value)| [*key, *value]));
        let fields = put_texts(&mut out, facts.fields.iter().flat_map(|(_, values)| values).map(String::as_str));
        out[20..24].copy_from_slice(&labels.to_le_bytes());
        out[24..28].copy_from_slice(&fields.to_le_bytes());
        out[28..32].copy_from_slice(&length(facts.managers.written_len()).to_le_bytes());
        Self::build(out.into(), facts.managers.clone(), body)
    }

    fn build(head: Box<[u8]>, managers: Managers, body: &[u8]) -> Self {
        let body_len = length(body.len());
        Self(Arc::new(RecordData { head, managers, body_len, body: RwLock::new(Form::Plain(body.into())) }))
    }

    /// From a body without facts.
    #[must_use]
    pub fn plain(body: &[u8]) -> Self {
        Self::new(body, &Facts::default())
    }

    /// From a parsed object without selectable fields.
    #[must_use]
    pub fn of(object: &Value) -> Self {
        let body = object.to_string();
        match Stamp::find(body.as_bytes()) {
            Some(stamp) => Self::with_stamp(body.as_bytes(), stamp, object, |_| None),
            None => Self::read(body.as_bytes(), |_| None),
        }
    }

    /// From an object's JSON, for one that was stored without a head. `fields` extracts the selectable fields of the
    /// parsed object.
    #[must_use]
    pub fn read(body: &[u8], fields: impl FnOnce(&Value) -> Option<(u64, Vec<String>)>) -> Self {
        let Some(stamp) = Stamp::find(body) else {
            // Stored with a resourceVersion, which should not happen: it is removed once, here.
            let Ok(mut value) = serde_json::from_slice::<Value>(body) else { return Self::plain(body) };
            if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("resourceVersion");
            }
            let body = value.to_string();
            let stamp = Stamp::find(body.as_bytes()).unwrap_or_default();
            return Self::with_stamp(body.as_bytes(), stamp, &value, fields);
        };
        match serde_json::from_slice::<Value>(body) {
            Ok(value) => Self::with_stamp(body, stamp, &value, fields),
            Err(_) => Self::plain(body),
        }
    }

    fn with_stamp(
        body: &[u8],
        stamp: Stamp,
        value: &Value,
        fields: impl FnOnce(&Value) -> Option<(u64, Vec<String>)>,
    ) -> Self {
        let mut facts = Facts { fields: fields(value), ..Facts::of(value) };
        (facts.stamp_at, facts.comma) = (stamp.at, stamp.comma);
        // In the stored order, which is the order of the keys.
        let labels: BTreeMap<&str, &str> = facts.labels.into_iter().collect();
        facts.labels = labels.into_iter().collect();
        Self::new(body, &facts)
    }

    /// Decodes the bytes of [`write_to`](Self::write_to); `None`: they are no record, or one of a newer version.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let fixed = bytes.first_chunk::<FIXED_BYTES>()?;
        let number = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]) as usize;
        let (labels, fields, managers) = (number(20), number(24), number(28));
        let is_managed = match fixed[0] {
            VERSION => true,
            VERSION_UNMANAGED => false,
            _ => return None,
        };
        if fixed[1] & !(COMMA | DELETING) != 0 || (managers != 0) != is_managed {
            return None;
        }
        let (texts, rest) = bytes[FIXED_BYTES..].split_at_checked(labels.checked_add(fields)?)?;
        let (managed, body) = rest.split_at_checked(managers)?;
        let (labels, fields) = texts.split_at_checked(labels)?;
        Texts(fields).count_whole()?;
        let sound = Texts(labels).count_whole()? % 2 == 0 && number(4) <= body.len();
        let managers = Managers::decode(managed).filter(|managers| managers.is_empty() != is_managed)?;
        sound.then(|| Self::build(bytes[..bytes.len() - rest.len()].into(), managers, body))
    }

    /// Appends head and body, as in logs and snapshots.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.head());
        self.0.managers.write_to(out);
        self.write_body(out, (0, &[]));
    }

    /// Appends the object's JSON, with `piece` inserted at offset `at`.
    ///
    /// # Panics
    /// The offset is out of range.
    pub fn write_body(&self, out: &mut Vec<u8>, (at, piece): (usize, &[u8])) {
        match &*self.0.body.read().unwrap_or_else(PoisonError::into_inner) {
            Form::Plain(bytes) => {
                let (before, after) = bytes.split_at(at);
                // Also for the line's end, which responses have.
                out.reserve(bytes.len() + piece.len() + 1);
                [before, piece, after].into_iter().for_each(|part| out.extend_from_slice(part));
            }
            Form::Packed(packed) => packed.write_to(out, (at, piece)),
        }
    }

    /// The number of bytes that [`write_to`](Self::write_to) appends, whether the body is compressed or not.
    #[must_use]
    pub fn bytes_len(&self) -> usize {
        self.0.head.len() + self.number(28) as usize + self.body_len()
    }

    /// The object's JSON. Callers with several reads should keep it: a compressed body is decompressed each time.
    #[must_use]
    pub fn body(&self) -> Body {
        let form = self.0.body.read().unwrap_or_else(PoisonError::into_inner);
        Body(match &*form {
            Form::Plain(bytes) => BodyBytes::Shared(bytes.clone()),
            Form::Packed(packed) => BodyBytes::Owned(packed.text()),
        })
    }

    /// The length of the object's JSON.
    #[must_use]
    pub fn body_len(&self) -> usize {
        self.0.body_len as usize
    }

    /// Whether the body is uncompressed.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        matches!(&*self.0.body.read().unwrap_or_else(PoisonError::into_inner), Form::Plain(_))
    }

    /// Compresses the body and the field sets of the managers, for all holders of the record; returns false if that
    /// saves nothing.
    pub fn pack(&self, packer: &mut Packer, fields: &mut Packer) -> bool {
        self.0.managers.pack(fields);
        let packed = match &*self.0.body.read().unwrap_or_else(PoisonError::into_inner) {
            Form::Plain(bytes) => packer.pack(bytes),
            Form::Packed(_) => return true,
        };
        let Some(packed) = packed else { return false };
        *self.0.body.write().unwrap_or_else(PoisonError::into_inner) = Form::Packed(packed);
        true
    }

    fn head(&self) -> &[u8] {
        &self.0.head
    }

    fn number(&self, at: usize) -> u32 {
        let bytes = self.head().get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_le_bytes)
    }

    /// The managers of the object's fields.
    #[must_use]
    pub fn managers(&self) -> &Managers {
        &self.0.managers
    }

    /// The offset in the body for the resourceVersion, and whether a comma follows it; `None`: none.
    #[must_use]
    pub fn stamp(&self) -> Option<(usize, bool)> {
        let at = self.number(4) as usize;
        (at > 0).then_some((at, self.head()[1] & COMMA != 0))
    }

    /// Whether the object has a deletion timestamp.
    #[must_use]
    pub fn is_deleting(&self) -> bool {
        self.head()[1] & DELETING != 0
    }

    /// The length of the namespace in the object's key, 0 for cluster-wide objects.
    #[must_use]
    pub fn namespace_len(&self) -> usize {
        usize::from(u16::from_le_bytes([self.head()[2], self.head()[3]]))
    }

    /// The generation of the schema that the object was stored under.
    #[must_use]
    pub fn schema_generation(&self) -> u32 {
        self.number(8)
    }

    fn label_bytes(&self) -> &[u8] {
        &self.head()[FIXED_BYTES..FIXED_BYTES + self.number(20) as usize]
    }

    /// Whether both have the same labels.
    #[must_use]
    pub fn has_labels_of(&self, other: &Self) -> bool {
        self.label_bytes() == other.label_bytes()
    }

    /// Labels and their values, in order of the keys.
    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut texts = Texts(self.label_bytes());
        std::iter::from_fn(move || Some((texts.next()?, texts.next()?)))
    }

    /// The fingerprint of the names of [`fields`](Self::fields); 0: unknown.
    #[must_use]
    pub fn fields_named(&self) -> u64 {
        u64::from(self.number(12)) | u64::from(self.number(16)) << 32
    }

    /// The values of the selectable fields, in the order of their names.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        Texts(&self.head()[FIXED_BYTES + self.number(20) as usize..])
    }
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    #[serde(default)]
    resource_version: Option<IgnoredAny>,
}

/// The offset for a resourceVersion.
#[derive(Default)]
struct Stamp {
    at: usize,
    comma: bool,
}

impl Stamp {
    /// `None` if the body contains a resourceVersion.
    fn find(body: &[u8]) -> Option<Self> {
        let nowhere = Some(Self::default());
        let Ok(text) = std::str::from_utf8(body) else { return nowhere };
        let Ok(Envelope { metadata: Some(raw) }) = serde_json::from_str::<Envelope<'_>>(text) else { return nowhere };
        let Ok(meta) = serde_json::from_str::<Meta>(raw.get()) else { return nowhere };
        if meta.resource_version.is_some() {
            return None;
        }
        let at = raw.get().as_ptr() as usize - text.as_ptr() as usize + 1;
        Some(Self { at, comma: !raw.get()[1..].trim_start().starts_with('}') })
    }
}

#[cfg(test)]
mod tests;

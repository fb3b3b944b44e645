//! Field managers: the entries of `metadata.managedFields` in memory, in storage and on the wire.

use std::fmt::Write as _;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::fields;
use super::pool::{self, FieldSet};
use machinery_api::packed::Packer;

/// The operation of a manager's writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// An apply patch.
    Apply,
    /// Any other write.
    Update,
}

impl Operation {
    /// The wire form.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// Identity of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The manager's name.
    pub manager: Box<str>,
    /// The operation.
    pub operation: Operation,
    /// The version of the fields' names.
    pub api_version: Box<str>,
    /// The subresource; empty for the object itself.
    pub subresource: Box<str>,
}

impl Identity {
    /// Normalizes an empty manager's name to `unknown`.
    #[must_use]
    pub fn new(manager: &str, operation: Operation, api_version: &str, subresource: &str) -> Arc<Self> {
        let manager = if manager.is_empty() { "unknown" } else { manager };
        pool::identity(Self {
            manager: manager.into(),
            operation,
            api_version: api_version.into(),
            subresource: subresource.into(),
        })
    }

    /// Whether both identify the same entry: the version doesn't distinguish appliers.
    #[must_use]
    pub fn is_entry_of(&self, other: &Self) -> bool {
        self.manager == other.manager
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    /// Upstream's sort key of managers.
    pub(super) fn sort_key(&self) -> String {
        let mut out = format!("{{\"manager\":{},\"operation\":\"{}\"", json!(self.manager), self.operation.as_str());
        if self.operation == Operation::Update {
            let _ = write!(out, ",\"apiVersion\":{}", json!(self.api_version));
        }
        if !self.subresource.is_empty() {
            let _ = write!(out, ",\"subresource\":{}", json!(self.subresource));
        }
        out + "}"
    }
}

/// The entry of one manager.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The identity.
    pub who: Arc<Identity>,
    /// The time of the last change, in seconds.
    pub at: Option<i64>,
    /// The fields.
    pub fields: Arc<FieldSet>,
}

impl Entry {
    /// Whether both are equal except for their times.
    fn is_like(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.fields, &other.fields) && self.who == other.who
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at && self.is_like(other)
    }
}

impl Eq for Entry {}

/// All entries of an object, in upstream's order. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Managers(Option<Arc<Vec<Entry>>>);

fn sort_order(entry: &Entry) -> (&str, i64, [&str; 3]) {
    let who = &entry.who;
    (who.operation.as_str(), entry.at.unwrap_or(0), [&who.manager, &who.api_version, &who.subresource])
}

/// Appends a length-prefixed text.
fn put(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn take<'a>(bytes: &mut &'a [u8]) -> Option<&'a str> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *bytes = rest;
    std::str::from_utf8(text).ok()
}

impl Managers {
    /// Sorts entries.
    #[must_use]
    pub fn new(mut entries: Vec<Entry>) -> Self {
        if entries.is_empty() {
            return Self::default();
        }
        entries.sort_by(|a, b| sort_order(a).cmp(&sort_order(b)));
        entries.shrink_to_fit();
        Self(Some(Arc::new(entries)))
    }

    /// The entries.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        self.0.as_ref().map_or(&[], |entries| entries)
    }

    /// Whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether both are equal except for times.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.entries(), other.entries());
        ours.len() == theirs.len() && ours.iter().all(|entry| theirs.iter().any(|other| entry.is_like(other)))
    }

    /// Compresses the sets that this object alone holds: [`machinery_api::packed`].
    pub fn pack(&self, packer: &mut Packer) {
        self.entries().iter().for_each(|entry| entry.fields.pack(packer));
    }

    /// Appends `"managedFields":[…]`; nothing if empty.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        for (i, entry) in self.entries().iter().enumerate() {
            out.extend_from_slice(if i == 0 { b"\"managedFields\":[" } else { b"," });
            let who = &entry.who;
            let mut text = |name: &str, value: &str| {
                out.extend_from_slice(name.as_bytes());
                if value.bytes().all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\') {
                    out.push(b'"');
                    out.extend_from_slice(value.as_bytes());
                    out.push(b'"');
                } else {
                    out.extend_from_slice(json!(value).to_string().as_bytes());
                }
            };
            text("{\"manager\":", &who.manager);
            text(",\"operation\":", who.operation.as_str());
            text(",\"apiVersion\":", &who.api_version);
            if let Some(at) = entry.at {
                text(",\"time\":", &time(at));
            }
            text(",\"fieldsType\":", "FieldsV1");
            out.extend_from_slice(b",\"fieldsV1\":");
            entry.fields.read(|text| out.extend_from_slice(text.as_bytes()));
            if !who.subresource.is_empty() {
                out.extend_from_slice(b",\"subresource\":");
                out.extend_from_slice(json!(who.subresource).to_string().as_bytes());
            }
            out.push(b'}');
        }
        if !self.is_empty() {
            out.push(b']');
        }
    }

    /// As a JSON value, for responses that differ from the stored form; `None` if empty.
    #[must_use]
    pub fn to_value(&self) -> Option<Value> {
        let mut text = b"{".to_vec();
        self.write_json(&mut text);
        text.push(b'}');
        serde_json::from_slice::<Value>(&text).ok()?.get_mut("managedFields").map(Value::take)
    }

    /// Parses a client's value, completely or not at all; the error is upstream's.
    pub fn of_value(value: &Value) -> Result<Self, String> {
        let mut entries: Vec<Entry> = Vec::new();
        for (i, entry) in value.as_array().into_iter().flatten().enumerate() {
            let entry = read(i, entry)?;
            // A later entry of the same manager replaces an earlier one.
            entries.retain(|before| !before.who.is_entry_of(&entry.who));
            entries.push(entry);
        }
        Ok(Self::new(entries))
    }

    /// Appends the stored form.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        for entry in self.entries() {
            out.push(u8::from(entry.who.operation == Operation::Apply) | u8::from(entry.at.is_some()) << 1);
            out.extend_from_slice(&entry.at.unwrap_or(0).to_le_bytes());
            for text in [&entry.who.manager, &entry.who.api_version, &entry.who.subresource] {
                put(out, text);
            }
            entry.fields.read(|text| put(out, text));
        }
    }

    /// The length of [`write_to`](Self::write_to)'s output.
    #[must_use]
    pub fn written_len(&self) -> usize {
        let texts = |e: &Entry| e.who.manager.len() + e.who.api_version.len() + e.who.subresource.len();
        self.entries().iter().map(|e| 25 + texts(e) + e.fields.text_len()).sum()
    }

    /// Reads [`write_to`](Self::write_to)'s output; `None` if it is damaged.
    #[must_use]
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut entries = Vec::new();
        while let Some((flags, rest)) = bytes.split_first() {
            let (at, mut rest) = rest.split_first_chunk::<8>()?;
            let (manager, api_version, subresource) = (take(&mut rest)?, take(&mut rest)?, take(&mut rest)?);
            let text = take(&mut rest)?;
            if flags & !3 != 0 || !text.starts_with('{') || !text.ends_with('}') {
                return None;
            }
            let operation = if flags & 1 == 1 { Operation::Apply } else { Operation::Update };
            let (manager, api_version, subresource) = (manager.into(), api_version.into(), subresource.into());
            let who = pool::identity(Identity { manager, operation, api_version, subresource });
            let at = (i64::from_le_bytes(*at), flags & 2 == 2);
            if at.0 != 0 && !at.1 {
                return None;
            }
            entries.push(Entry { who, at: at.1.then_some(at.0), fields: pool::of_text(text) });
            bytes = rest;
        }
        Some(Self((!entries.is_empty()).then(|| Arc::new(entries))))
    }
}

/// The wire form of a time in seconds.
fn time(at: i64) -> String {
    Timestamp::from_second(at).unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn read(i: usize, entry: &Value) -> Result<Entry, String> {
    let text = |field: &str| entry[field].as_str().unwrap_or_default();
    let operation = match text("operation") {
        "Apply" => Operation::Apply,
        "Update" => Operation::Update,
        _ => return Err("operation must be `Apply` or `Update`".into()),
    };
    if text("apiVersion").is_empty() {
        return Err("apiVersion must not be empty".into());
    }
    match text("fieldsType") {
        "FieldsV1" => {}
        "" => return Err(format!("missing fieldsType in managed fields entry {i}")),
        other => {
            let other = machinery_api::selector::go_quoted(other);
            return Err(format!("invalid fieldsType {other} in managed fields entry {i}"));
        }
    }
    let set = match &entry["fieldsV1"] {
        Value::Null => super::set::Set::default(),
        fields => fields::decode_value(fields).map_err(|error| format!("error decoding set: {error}"))?,
    };
    let who = Identity {
        manager: text("manager").into(),
        operation,
        api_version: text("apiVersion").into(),
        subresource: text("subresource").into(),
    };
    let at = text("time").parse::<Timestamp>().ok().map(Timestamp::as_second);
    Ok(Entry { who: pool::identity(who), at, fields: pool::of_set(&set) })
}

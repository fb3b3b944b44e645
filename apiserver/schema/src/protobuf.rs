//! Decodes Kubernetes protobuf bodies by the table's field numbers into JSON as written; no code is per kind.

use jiff::Timestamp;
use machinery_api::time;

use super::budget::{Budget, ENTRY_BYTES, ITEM_BYTES, OBJECT_BYTES};
use super::raw::{self, Raw};
use super::types::{Kind, Type, TypeRef, Types};

/// The prefix of every body.
pub(super) const MAGIC: &[u8] = b"k8s\0";
/// Maximum nesting of messages.
const DEPTH_MAX: usize = 100;

/// `runtime.Unknown`: the envelope.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Envelope<'a> {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) raw: &'a [u8],
}

/// Parses the envelope.
pub(crate) fn envelope(bytes: &[u8]) -> Result<Envelope<'_>, String> {
    if bytes.is_empty() {
        return Err("empty data".into());
    }
    let Some(rest) = bytes.strip_prefix(MAGIC) else {
        return Err("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]".into());
    };
    if rest.is_empty() {
        return Err("empty body".into());
    }
    let mut out = Envelope::default();
    let mut reader = Reader { bytes: rest, of: "Unknown" };
    while let Some((number, payload)) = reader.field()? {
        match number {
            1 => {
                let mut inner = Reader { bytes: payload.bytes(number)?, of: "TypeMeta" };
                while let Some((number, payload)) = inner.field()? {
                    match number {
                        1 => out.api_version = payload.text(number)?,
                        2 => out.kind = payload.text(number)?,
                        _ => {}
                    }
                }
            }
            2 => out.raw = payload.bytes(number)?,
            // Upstream ignores encoding and content type too.
            _ => {}
        }
    }
    Ok(out)
}

/// Decodes a message of a known type within the budget, which the caller must check.
pub(crate) fn parse(found: TypeRef<'_>, bytes: &[u8], budget: &mut Budget) -> Result<Raw, String> {
    message(found.of, bytes, 0, &mut Reading { types: found.types, budget }).map(Raw::Map)
}

/// Common state of decoding a body's messages.
struct Reading<'a> {
    types: &'a Types,
    budget: &'a mut Budget,
}

#[derive(Clone, Copy)]
enum Payload<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

impl<'a> Payload<'a> {
    fn wire(self) -> u8 {
        match self {
            Self::Varint(_) => 0,
            Self::Fixed64(_) => 1,
            Self::Bytes(_) => 2,
            Self::Fixed32(_) => 5,
        }
    }

    fn wrong<T>(self, number: u32) -> Result<T, String> {
        Err(format!("proto: wrong wireType = {} for field {number}", self.wire()))
    }

    fn bytes(self, number: u32) -> Result<&'a [u8], String> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            other => other.wrong(number),
        }
    }

    fn varint(self, number: u32) -> Result<u64, String> {
        match self {
            Self::Varint(n) => Ok(n),
            other => other.wrong(number),
        }
    }

    fn text(self, number: u32) -> Result<String, String> {
        self.bytes(number).map(|b| String::from_utf8_lossy(b).into_owned())
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    /// The message's name, for errors.
    of: &'a str,
}

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, String> {
        let mut out = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.bytes.split_first().ok_or("unexpected EOF")?;
            self.bytes = rest;
            out |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(out);
            }
        }
        Err("proto: integer overflow".into())
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], String> {
        if count.cast_signed() < 0 {
            return Err("proto: negative length found during unmarshaling".into());
        }
        let count = usize::try_from(count).map_err(|_| "unexpected EOF")?;
        if count > self.bytes.len() {
            return Err("unexpected EOF".into());
        }
        let (head, rest) = self.bytes.split_at(count);
        self.bytes = rest;
        Ok(head)
    }

    fn field(&mut self) -> Result<Option<(u32, Payload<'a>)>, String> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3)
            .ok()
            .filter(|n| *n > 0)
            .ok_or_else(|| format!("proto: {}: illegal tag {} (wire type {})", self.of, tag >> 3, tag & 7))?;
        let payload = match tag & 7 {
            0 => Payload::Varint(self.varint()?),
            1 => Payload::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().map_err(|_| "unexpected EOF")?)),
            2 => {
                let length = self.varint()?;
                Payload::Bytes(self.take(length)?)
            }
            5 => Payload::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().map_err(|_| "unexpected EOF")?)),
            other => return Err(format!("proto: illegal wireType {other}")),
        };
        Ok(Some((number, payload)))
    }
}

/// Adds a field's Go name to an error, as upstream.
fn with_name(error: String, number: u32, name: &str) -> String {
    let Some(head) = error.strip_suffix(&format!("for field {number}")) else { return error };
    let (first, rest) = name.split_at(name.len().min(1));
    match name {
        "metadata" => format!("{head}for field ObjectMeta"),
        _ => format!("{head}for field {}{rest}", first.to_ascii_uppercase()),
    }
}

type Entries = Vec<(String, Raw)>;

fn message(found: &Type, bytes: &[u8], depth: usize, reading: &mut Reading<'_>) -> Result<Entries, String> {
    let mut out = Entries::new();
    merge(&mut out, found, bytes, depth, reading)?;
    Ok(out)
}

/// Decodes a message over an earlier occurrence, as upstream's generated code decodes into the same struct.
fn merge(out: &mut Entries, found: &Type, bytes: &[u8], depth: usize, reading: &mut Reading<'_>) -> Result<(), String> {
    if depth > DEPTH_MAX {
        return Err("proto: exceeded max depth".into());
    }
    let of = found.name.rsplit('.').next().unwrap_or_default();
    let mut reader = Reader { bytes, of };
    if !reading.budget.take(OBJECT_BYTES) {
        return Ok(());
    }
    while let Some((number, payload)) = reader.field()? {
        if reading.budget.exceeded() {
            break;
        }
        if let Some(field) = found.numbered(number) {
            put(out, &field.name, &field.kind, field.wire.as_deref(), (number, payload), depth, reading)
                .map_err(|error| with_name(error, number, &field.name))?;
        } else if let Some((_, name)) = found.inline.iter().find(|(n, _)| *n == number) {
            let inner = payload.bytes(number)?;
            if let Some(other) = reading.types.by_message(name) {
                merge(out, other, inner, depth + 1, reading)?;
                out.retain(|(name, _)| found.field(name).is_some());
            } else if let Some(other) = reading.types.message(name) {
                inlined(out, found, &other.fields, inner, depth + 1, reading)?;
            }
        }
    }
    Ok(())
}

/// A message without a type of its own, whose fields are inlined in `found`'s JSON.
fn inlined(
    out: &mut Entries,
    found: &Type,
    fields: &[(&'static str, u32, Box<str>)],
    bytes: &[u8],
    depth: usize,
    reading: &mut Reading<'_>,
) -> Result<(), String> {
    let mut reader = Reader { bytes, of: "" };
    while let Some((number, payload)) = reader.field()? {
        if let Some(field) = fields.iter().find(|(_, n, _)| *n == number).and_then(|(name, ..)| found.field(name)) {
            put(out, &field.name, &field.kind, field.wire.as_deref(), (number, payload), depth, reading)?;
        }
    }
    Ok(())
}

fn put(
    out: &mut Entries,
    name: &str,
    kind: &Kind,
    wire: Option<&str>,
    (number, payload): (u32, Payload<'_>),
    depth: usize,
    reading: &mut Reading<'_>,
) -> Result<(), String> {
    if !reading.budget.take(ENTRY_BYTES) {
        return Ok(());
    }
    let at = out.iter().position(|(n, _)| n == name);
    match kind {
        // A list wrapped in a message (Verbs, ExtraValue).
        Kind::List(_) if wire.is_some_and(|w| !w.starts_with("repeated ")) => {
            let found = value(kind, wire, number, payload, depth, reading)?;
            match (at.map(|at| &mut out[at].1), found) {
                (Some(Raw::List(list)), Raw::List(mut more)) => list.append(&mut more),
                (_, found) => out.push((name.into(), found)),
            }
        }
        Kind::Object(id) => {
            let at = at.unwrap_or_else(|| {
                out.push((name.into(), Raw::Map(Entries::new())));
                out.len() - 1
            });
            if let Raw::Map(entries) = &mut out[at].1 {
                merge(entries, reading.types.get(*id), payload.bytes(number)?, depth + 1, reading)?;
            }
        }
        Kind::List(inner) => {
            let mut items = items(inner, wire, (number, payload), depth, reading)?;
            match at.map(|at| &mut out[at].1) {
                Some(Raw::List(list)) => list.append(&mut items),
                _ => out.push((name.into(), Raw::List(items))),
            }
        }
        Kind::Map(inner) => {
            let (key, found) = map_entry(inner, wire, (number, payload), depth, reading)?;
            match at.map(|at| &mut out[at].1) {
                // The last of duplicate keys wins, in the reader of this list.
                Some(Raw::Map(map)) => map.push((key, found)),
                _ => out.push((name.into(), Raw::Map(vec![(key, found)]))),
            }
        }
        _ => {
            let found = value(kind, wire, number, payload, depth, reading)?;
            match at {
                Some(at) => out[at].1 = found,
                None => out.push((name.into(), found)),
            }
        }
    }
    Ok(())
}

/// A list field holds one item, or several packed numbers.
fn items(
    inner: &Kind,
    wire: Option<&str>,
    (number, payload): (u32, Payload<'_>),
    depth: usize,
    reading: &mut Reading<'_>,
) -> Result<Vec<Raw>, String> {
    match (inner, payload) {
        (Kind::Int32 | Kind::Int64 | Kind::Bool, Payload::Bytes(bytes)) => {
            let (mut items, mut reader) = (Vec::new(), Reader { bytes, of: "" });
            while !reader.bytes.is_empty() && reading.budget.take(ITEM_BYTES) {
                let n = Payload::Varint(reader.varint()?);
                items.push(value(inner, None, number, n, depth, reading)?);
            }
            Ok(items)
        }
        _ => {
            let wire = wire.and_then(|w| w.strip_prefix("repeated "));
            Ok(vec![value(inner, wire, number, payload, depth, reading)?])
        }
    }
}

/// A map entry is a message: the key is field 1, the value field 2.
fn map_entry(
    inner: &Kind,
    wire: Option<&str>,
    (number, payload): (u32, Payload<'_>),
    depth: usize,
    reading: &mut Reading<'_>,
) -> Result<(String, Raw), String> {
    let wire = wire.and_then(|w| w.strip_prefix("map<string,")).and_then(|w| w.strip_suffix('>'));
    let (mut key, mut found) = (String::new(), Raw::Null);
    let mut reader = Reader { bytes: payload.bytes(number)?, of: "" };
    while let Some((number, payload)) = reader.field()? {
        match number {
            1 => key = payload.text(number)?,
            2 => found = value(inner, wire, number, payload, depth, reading)?,
            _ => {}
        }
    }
    Ok((key, found))
}

fn value(
    kind: &Kind,
    wire: Option<&str>,
    number: u32,
    payload: Payload<'_>,
    depth: usize,
    reading: &mut Reading<'_>,
) -> Result<Raw, String> {
    Ok(match kind {
        Kind::String => Raw::String(payload.text(number)?),
        Kind::Bool => Raw::Bool(payload.varint(number)? != 0),
        Kind::Int32 => Raw::Int(i64::from(payload.varint(number)? as i32)),
        Kind::Int64 => Raw::Int(payload.varint(number)? as i64),
        Kind::Double => match payload {
            Payload::Fixed64(bits) => Raw::Number(f64::from_bits(bits).to_string().into()),
            Payload::Fixed32(bits) => Raw::Number(f32::from_bits(bits).to_string().into()),
            other => return other.wrong(number),
        },
        Kind::Bytes => {
            use base64::Engine;
            Raw::String(base64::engine::general_purpose::STANDARD.encode(payload.bytes(number)?))
        }
        Kind::Quantity | Kind::Amount => {
            let text = first(payload.bytes(number)?, 1)?.map(|p| p.text(1)).transpose()?;
            match text {
                Some(text) if text.is_empty() => return Err(machinery_api::quantity::QuantityError::Format.to_string()),
                text => Raw::String(text.unwrap_or_else(|| "0".into())),
            }
        }
        Kind::Time | Kind::MicroTime => {
            let bytes = payload.bytes(number)?;
            if bytes.is_empty() {
                return Ok(Raw::Null);
            }
            let seconds = first(bytes, 1)?.map_or(Ok(0), |p| p.varint(1))? as i64;
            let nanos = first(bytes, 2)?.map_or(Ok(0), |p| p.varint(2))? as i32;
            let precision = if *kind == Kind::Time { time::Precision::Seconds } else { time::Precision::Micros };
            let at = Timestamp::new(seconds, if *kind == Kind::Time { 0 } else { nanos });
            Raw::String(time::format(at.map_err(|_| "time out of range".to_owned())?, precision))
        }
        Kind::IntOrString => {
            let bytes = payload.bytes(number)?;
            match first(bytes, 1)?.map_or(Ok(0), |p| p.varint(1))? {
                0 => Raw::Int(i64::from(first(bytes, 2)?.map_or(Ok(0), |p| p.varint(2))? as i32)),
                _ => Raw::String(first(bytes, 3)?.map_or(Ok(String::new()), |p| p.text(3))?),
            }
        }
        Kind::Any => any(wire, payload.bytes(number)?, depth, reading)?,
        Kind::Object(id) => Raw::Map(message(reading.types.get(*id), payload.bytes(number)?, depth + 1, reading)?),
        Kind::List(inner) => {
            // The field `items` of a wrapping message.
            let mut items = Vec::new();
            let mut reader = Reader { bytes: payload.bytes(number)?, of: "" };
            while let Some((number, payload)) = reader.field()? {
                if number == 1 && reading.budget.take(ITEM_BYTES) {
                    items.push(value(inner, None, number, payload, depth + 1, reading)?);
                }
            }
            Raw::List(items)
        }
        Kind::Map(_) => {
            return Err("proto: a map in a map".into());
        }
    })
}

/// The content of a message that stands for arbitrary JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AnyJsonMessage {
    /// JSON as written: RawExtension, FieldsV1 and the like.
    Json,
    /// Nothing: only its presence matters.
    Nothing,
    /// A schema, or a boolean.
    SchemaOrBool,
    /// A schema, or several.
    SchemaOrSchemas,
    /// A schema, or names.
    SchemaOrTexts,
}

impl AnyJsonMessage {
    /// The message name of a schema.
    pub(super) const SCHEMA: &str = "k8s.io.apiextensions_apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

    /// By the message's name.
    pub(super) fn of(wire: Option<&str>) -> Self {
        match wire.and_then(|wire| wire.rsplit('.').next()) {
            Some("JSONSchemaPropsOrBool") => Self::SchemaOrBool,
            Some("JSONSchemaPropsOrArray") => Self::SchemaOrSchemas,
            Some("JSONSchemaPropsOrStringArray") => Self::SchemaOrTexts,
            Some("CustomResourceSubresourceStatus") => Self::Nothing,
            _ => Self::Json,
        }
    }
}

fn any(wire: Option<&str>, bytes: &[u8], depth: usize, reading: &mut Reading<'_>) -> Result<Raw, String> {
    let holds = AnyJsonMessage::of(wire);
    match holds {
        AnyJsonMessage::Json => {
            return match first(bytes, 1)? {
                Some(Payload::Bytes(text)) if !text.is_empty() => raw::parse(text),
                _ => Ok(Raw::Null),
            };
        }
        AnyJsonMessage::Nothing => return Ok(Raw::Map(Vec::new())),
        _ => {}
    }
    let types = reading.types;
    let Some(schema) = types.by_message(AnyJsonMessage::SCHEMA) else { return Ok(Raw::Null) };
    let (mut one, mut several, mut allows) = (None, None::<Vec<Raw>>, false);
    let mut reader = Reader { bytes, of: "JSONSchemaProps" };
    while let Some((number, payload)) = reader.field()? {
        match (holds, number) {
            (AnyJsonMessage::SchemaOrBool, 1) => allows = payload.varint(number)? != 0,
            (AnyJsonMessage::SchemaOrBool, 2) | (_, 1) => {
                one = Some(schema_of(schema, payload.bytes(number)?, depth, reading)?);
            }
            (AnyJsonMessage::SchemaOrSchemas, 2) => {
                let found = schema_of(schema, payload.bytes(number)?, depth, reading)?;
                several.get_or_insert_default().push(found);
            }
            (AnyJsonMessage::SchemaOrTexts, 2) if reading.budget.take(ITEM_BYTES) => {
                several.get_or_insert_default().push(Raw::String(payload.text(number)?));
            }
            _ => {}
        }
    }
    Ok(match (several, one) {
        // In upstream's order of printing: several take precedence over one.
        (Some(several), _) => Raw::List(several),
        (None, Some(one)) => one,
        (None, None) if holds == AnyJsonMessage::SchemaOrBool => Raw::Bool(allows),
        (None, None) => Raw::Null,
    })
}

/// A schema in a field of arbitrary JSON: it isn't type-checked later.
fn schema_of(found: &Type, bytes: &[u8], depth: usize, reading: &mut Reading<'_>) -> Result<Raw, String> {
    let mut entries = message(found, bytes, depth + 1, reading)?;
    leave_out_empty(reading.types, found, &mut entries);
    Ok(Raw::Map(entries))
}

/// Removes fields that upstream's structs would not print.
fn leave_out_empty(types: &Types, found: &Type, entries: &mut Entries) {
    fn below(types: &Types, kind: &Kind, value: &mut Raw) {
        match (kind, value) {
            (Kind::Object(id), Raw::Map(entries)) => leave_out_empty(types, types.get(*id), entries),
            (Kind::List(inner), Raw::List(items)) => items.iter_mut().for_each(|item| below(types, inner, item)),
            (Kind::Map(inner), Raw::Map(entries)) => entries.iter_mut().for_each(|(_, item)| below(types, inner, item)),
            _ => {}
        }
    }
    entries.retain_mut(|(name, value)| {
        let Some(field) = found.field(name) else { return true };
        below(types, &field.kind, value);
        let empty = match value {
            Raw::String(text) => text.is_empty(),
            Raw::Bool(value) => !*value,
            Raw::Int(value) => *value == 0,
            _ => false,
        };
        !(empty && field.omit_empty && !field.pointer)
    });
}

/// The last field of that number.
fn first(bytes: &[u8], wanted: u32) -> Result<Option<Payload<'_>>, String> {
    let (mut reader, mut found) = (Reader { bytes, of: "" }, None);
    while let Some((number, payload)) = reader.field()? {
        if number == wanted {
            found = Some(payload);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::decode::{FieldValidation, body};
    use super::super::{Media, Target};

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let tag = [number << 3 | 2 | 0x80, number >> 4];
        [&tag[..], &[u8::try_from(bytes.len()).unwrap()], bytes].concat()
    }

    fn read(target: &Target<'_>, message: &[u8]) -> Value {
        let envelope = [b"k8s\0", &*field(2, message)].concat();
        body(&envelope, Media::Protobuf, target, FieldValidation::Strict).unwrap().object
    }

    /// As upstream's generated `Unmarshal`: an embedded message is decoded in place (`m.X.Unmarshal`, not `m.X = X{}`);
    /// list items and map values are new ones each.
    #[test]
    fn a_message_that_comes_twice_is_one() {
        let pod = Target::kind("", "v1", "Pod").unwrap();
        let labels = |value: &[u8]| field(11, &[field(1, b"app"), field(2, value)].concat());
        let metadata = [
            field(1, &[field(1, b"web"), labels(b"a")].concat()),
            field(1, &[field(3, b"default"), labels(b"b")].concat()),
        ];
        // The volume's source is a message of its own on the wire: `configMap.name`, then `configMap.defaultMode`.
        let of_map = |inner: &[u8]| field(2, &field(19, inner));
        let volume = [field(1, b"v"), of_map(&field(1, &field(1, b"cm"))), of_map(&[3 << 3, 5])].concat();
        let context = |inner: &[u8]| field(14, inner);
        let spec = [
            field(2, &[field(1, &volume), field(2, &field(1, b"c")), context(&[1 << 3 | 2, 0])].concat()),
            field(2, &[field(2, &field(1, b"d")), field(3, b"Never"), context(&[2 << 3, 7])].concat()),
        ];
        let found = read(&pod, &[metadata.concat(), spec.concat()].concat());
        assert_eq!(found["metadata"], json!({"name": "web", "namespace": "default", "labels": {"app": "b"}}));
        assert_eq!(
            found["spec"],
            json!({
                "volumes": [{"name": "v", "configMap": {"name": "cm", "defaultMode": 5}}],
                "containers": [{"name": "c", "resources": {}}, {"name": "d", "resources": {}}],
                "restartPolicy": "Never",
                "securityContext": {"seLinuxOptions": {}, "runAsUser": 7},
            })
        );
    }
}

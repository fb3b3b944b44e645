//! A minimal protobuf writer for discovery and OpenAPI: appends fields to a message. Pure.

use serde_json::Value;

pub(super) const VARINT: u32 = 0;
pub(super) const FIXED64: u32 = 1;
const BYTES: u32 = 2;

#[derive(Default)]
pub(super) struct Message(pub(super) Vec<u8>);

impl Message {
    pub(super) fn varint(&mut self, mut number: u64) {
        while number > 0x7f {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    pub(super) fn tag(&mut self, number: u32, wire: u32) {
        self.varint(u64::from(number << 3 | wire));
    }

    pub(super) fn bytes(&mut self, number: u32, bytes: &[u8]) {
        self.tag(number, BYTES);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn message(&mut self, number: u32, inner: Self) {
        self.bytes(number, &inner.0);
    }

    pub(super) fn text(&mut self, number: u32, value: &Value) {
        if let Some(text) = value.as_str().filter(|text| !text.is_empty()) {
            self.bytes(number, text.as_bytes());
        }
    }

    pub(super) fn texts(&mut self, number: u32, value: &Value) {
        for text in value.as_array().into_iter().flatten().filter_map(Value::as_str) {
            self.bytes(number, text.as_bytes());
        }
    }

    pub(super) fn bool(&mut self, number: u32, value: &Value) {
        if value == &Value::Bool(true) {
            self.tag(number, VARINT);
            self.varint(1);
        }
    }

    pub(super) fn int(&mut self, number: u32, value: &Value) {
        if let Some(value) = value.as_i64().filter(|value| *value != 0) {
            self.tag(number, VARINT);
            self.varint(value.cast_unsigned());
        }
    }

    pub(super) fn double(&mut self, number: u32, value: &Value) {
        if let Some(value) = value.as_f64().filter(|value| *value != 0.0) {
            self.tag(number, FIXED64);
            self.0.extend_from_slice(&value.to_bits().to_le_bytes());
        }
    }

    /// Writes an `Any` with YAML; JSON is valid YAML.
    pub(super) fn any(&mut self, number: u32, value: &Value) {
        let mut any = Self::default();
        any.bytes(2, (value.to_string() + "\n").as_bytes());
        self.message(number, any);
    }

    pub(super) fn named(&mut self, number: u32, name: &str, value: &[u8]) {
        let mut named = Self::default();
        named.bytes(1, name.as_bytes());
        named.bytes(2, value);
        self.message(number, named);
    }

    /// Writes the extensions (`x-…`).
    pub(super) fn extensions(&mut self, number: u32, of: &Value) {
        for (name, value) in entries(of).filter(|(name, _)| name.starts_with("x-")) {
            let mut named = Self::default();
            named.bytes(1, name.as_bytes());
            named.any(2, value);
            self.message(number, named);
        }
    }
}

pub(super) fn entries(of: &Value) -> impl Iterator<Item = (&String, &Value)> {
    of.as_object().into_iter().flatten()
}

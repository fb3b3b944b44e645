//! JSON as written: with order, duplicate keys and literal numbers, and Go's messages for invalid JSON.
//!
//! Objects in memory are ordered maps. Only this form has what strict field validation (which key is a duplicate, which
//! came first) and quantities (`1e3` is not `1000`) need.

use serde_json::{Map, Number, Value};

use super::budget::{Budget, ENTRY_BYTES, ITEM_BYTES, OBJECT_BYTES};

/// Maximum depth of built values; deeper ones are skipped and are allowed only where nothing is stored.
pub(crate) const DEPTH_MAX: usize = 256;
/// Maximum nesting of a text, as upstream.
const DEPTH_READ_MAX: usize = 10_000;

/// One JSON value as written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Raw {
    Null,
    Bool(bool),
    Int(i64),
    /// Any other number, as its text.
    Number(Box<str>),
    String(String),
    List(Vec<Raw>),
    Map(Vec<(String, Raw)>),
    /// Below [`DEPTH_MAX`].
    TooDeep,
}

impl Raw {
    /// A value's kind in Go's messages.
    pub(crate) fn kind_of(value: &Value) -> &'static str {
        match value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        }
    }

    /// The kind in Go's messages.
    pub(crate) fn go_name(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "bool",
            Self::Int(_) | Self::Number(_) => "number",
            Self::String(_) => "string",
            Self::List(_) => "array",
            Self::Map(_) | Self::TooDeep => "object",
        }
    }

    /// Converts to a value: the last of duplicate keys wins. `None` if too deep. Values over the budget are omitted;
    /// the caller must check the budget.
    pub(crate) fn into_value(self, budget: &mut Budget) -> Option<Value> {
        Some(match self {
            Self::Null => Value::Null,
            Self::Bool(b) => Value::Bool(b),
            Self::Int(n) => n.into(),
            Self::Number(text) => number(&text),
            Self::String(text) => Value::String(text),
            Self::List(items) => {
                let mut list = Vec::new();
                for item in items {
                    if !budget.take(ITEM_BYTES) {
                        break;
                    }
                    list.push(item.into_value(budget)?);
                }
                Value::Array(list)
            }
            Self::Map(entries) => {
                let mut map = Map::new();
                let mut fits = entries.is_empty() || budget.take(OBJECT_BYTES);
                for (key, value) in entries {
                    fits = fits && budget.take(ENTRY_BYTES + key.len());
                    if !fits {
                        break;
                    }
                    map.insert(key, value.into_value(budget)?);
                }
                Value::Object(map)
            }
            Self::TooDeep => return None,
        })
    }

    /// The effective (last) entry of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(entries) => entries.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v),
            _ => None,
        }
    }
}

impl From<Value> for Raw {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(b) => Self::Bool(b),
            Value::Number(n) => n.as_i64().map_or_else(|| Self::Number(n.to_string().into()), Self::Int),
            Value::String(text) => Self::String(text),
            Value::Array(items) => Self::List(items.into_iter().map(Self::from).collect()),
            Value::Object(map) => Self::Map(map.into_iter().map(|(k, v)| (k, Self::from(v))).collect()),
        }
    }
}

/// The value of a literal number where any JSON is allowed.
pub(crate) fn number(text: &str) -> Value {
    if let Ok(n) = text.parse::<i64>() {
        return n.into();
    }
    if let Ok(n) = text.parse::<u64>() {
        return n.into();
    }
    text.parse::<f64>().ok().and_then(Number::from_f64).map_or(Value::Null, Value::Number)
}

/// Parses a JSON text. Errors are Go's messages.
pub(crate) fn parse(bytes: &[u8]) -> Result<Raw, String> {
    let mut reader = Reader { bytes, at: 0 };
    let value = reader.value(0)?;
    reader.blanks();
    match reader.peek() {
        None => Ok(value),
        Some(_) => Err(reader.unexpected("after top-level value")),
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn unexpected(&self, place: &str) -> String {
        let Some(byte) = self.peek() else { return "unexpected end of JSON input".into() };
        let shown = match byte {
            b'\'' => "'\\''".to_owned(),
            b'"' => "'\"'".to_owned(),
            _ => {
                let quoted = machinery_api::selector::go_quoted(&char::from(byte).to_string());
                format!("'{}'", quoted.trim_matches('"'))
            }
        };
        format!("invalid character {shown} {place}")
    }

    /// Within a word or a number, where Go treats the end of the text as a blank.
    fn unfinished(&self, place: &str) -> String {
        if self.peek().is_none() { format!("invalid character ' ' {place}") } else { self.unexpected(place) }
    }

    fn value(&mut self, depth: usize) -> Result<Raw, String> {
        self.blanks();
        match self.peek() {
            Some(b'{' | b'[') if depth >= DEPTH_MAX => {
                self.skip(depth)?;
                Ok(Raw::TooDeep)
            }
            Some(b'{') => self.object(depth),
            Some(b'[') => self.list(depth),
            Some(b'"') => self.string().map(Raw::String),
            Some(b't') => self.word("true", Raw::Bool(true)),
            Some(b'f') => self.word("false", Raw::Bool(false)),
            Some(b'n') => self.word("null", Raw::Null),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => Err(self.unexpected("looking for beginning of value")),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Raw, String> {
        let mut entries = Vec::new();
        self.at += 1;
        self.blanks();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Raw::Map(entries));
        }
        loop {
            let key = self.key()?;
            entries.push((key, self.value(depth + 1)?));
            if self.more(b'}', "after object key:value pair")? {
                continue;
            }
            return Ok(Raw::Map(entries));
        }
    }

    fn key(&mut self) -> Result<String, String> {
        self.blanks();
        if self.peek() != Some(b'"') {
            return Err(self.unexpected("looking for beginning of object key string"));
        }
        let key = self.string()?;
        self.blanks();
        if self.peek() != Some(b':') {
            return Err(self.unexpected("after object key"));
        }
        self.at += 1;
        Ok(key)
    }

    /// After an element: true at a comma, false at the end.
    fn more(&mut self, end: u8, place: &str) -> Result<bool, String> {
        self.blanks();
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                Ok(true)
            }
            Some(b) if b == end => {
                self.at += 1;
                Ok(false)
            }
            _ => Err(self.unexpected(place)),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Raw, String> {
        let mut items = Vec::new();
        self.at += 1;
        self.blanks();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Raw::List(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            if !self.more(b']', "after array element")? {
                return Ok(Raw::List(items));
            }
        }
    }

    /// Skips a list or an object without recursion.
    fn skip(&mut self, depth: usize) -> Result<(), String> {
        let mut open: Vec<u8> = Vec::new();
        loop {
            self.blanks();
            match self.peek() {
                Some(start @ (b'{' | b'[')) => {
                    let end = if start == b'{' { b'}' } else { b']' };
                    self.at += 1;
                    self.blanks();
                    if self.peek() == Some(end) {
                        self.at += 1;
                    } else {
                        if depth + open.len() >= DEPTH_READ_MAX {
                            return Err(format!("invalid character '{}' exceeded max depth", char::from(start)));
                        }
                        open.push(end);
                        if end == b'}' {
                            self.key()?;
                        }
                        continue;
                    }
                }
                _ => drop(self.value(0)?),
            }
            loop {
                let Some(end) = open.last().copied() else { return Ok(()) };
                let place = if end == b'}' { "after object key:value pair" } else { "after array element" };
                if self.more(end, place)? {
                    if end == b'}' {
                        self.key()?;
                    }
                    break;
                }
                open.pop();
            }
        }
    }

    fn word(&mut self, word: &str, value: Raw) -> Result<Raw, String> {
        for expected in word.bytes() {
            if self.peek() != Some(expected) {
                return Err(self.unfinished(&format!("in literal {word} (expecting '{}')", char::from(expected))));
            }
            self.at += 1;
        }
        Ok(value)
    }

    fn digits(&mut self, place: &str) -> Result<(), String> {
        if !matches!(self.peek(), Some(b'0'..=b'9')) {
            return Err(self.unfinished(place));
        }
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        Ok(())
    }

    fn number(&mut self) -> Result<Raw, String> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits("in numeric literal")?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits("after decimal point in numeric literal")?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits("in exponent of numeric literal")?;
        }
        let text = std::str::from_utf8(&self.bytes[start..self.at]).unwrap_or_default();
        Ok(match text.parse::<i64>() {
            Ok(n) if text != "-0" => Raw::Int(n),
            _ => Raw::Number(text.into()),
        })
    }

    fn string(&mut self) -> Result<String, String> {
        self.at += 1;
        let mut out: Vec<u8> = Vec::new();
        loop {
            let start = self.at;
            while matches!(self.peek(), Some(b) if b >= 0x20 && b != b'"' && b != b'\\') {
                self.at += 1;
            }
            out.extend_from_slice(&self.bytes[start..self.at]);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    // Go replaces invalid UTF-8.
                    return Ok(String::from_utf8(out).unwrap_or_else(|e| replace_invalid(e.as_bytes())));
                }
                Some(b'\\') => {
                    self.at += 1;
                    let c = self.escape()?;
                    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                _ => return Err(self.unexpected("in string literal")),
            }
        }
    }

    fn escape(&mut self) -> Result<char, String> {
        let c = match self.peek() {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.at += 1;
                return self.unicode();
            }
            _ => return Err(self.unexpected("in string escape code")),
        };
        self.at += 1;
        Ok(c)
    }

    fn hex4(&mut self) -> Result<u32, String> {
        let mut code = 0;
        for _ in 0..4 {
            let Some(digit) = self.peek().and_then(|b| char::from(b).to_digit(16)) else {
                return Err(self.unexpected("in \\u hexadecimal character escape"));
            };
            code = code * 16 + digit;
            self.at += 1;
        }
        Ok(code)
    }

    /// A lone surrogate becomes U+FFFD.
    fn unicode(&mut self) -> Result<char, String> {
        let code = self.hex4()?;
        if (0xd800..0xdc00).contains(&code) && self.bytes[self.at..].starts_with(b"\\u") {
            let here = self.at;
            self.at += 2;
            let low = self.hex4()?;
            if (0xdc00..0xe000).contains(&low) {
                let joined = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                return Ok(char::from_u32(joined).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            self.at = here;
        }
        Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER))
    }
}

/// Go writes one U+FFFD for each invalid byte, where Rust writes one for a run.
fn replace_invalid(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        out.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_are_gos() {
        for (text, message) in [
            (r#"{"metadata": {"name": "a"}"#, "unexpected end of JSON input"),
            (r#"{"a": 1,}"#, "invalid character '}' looking for beginning of object key string"),
            (r#"{"a": 1} {}"#, "invalid character '{' after top-level value"),
            ("{'a': 1}", "invalid character '\\'' looking for beginning of object key string"),
            (r#"{"a" 1}"#, "invalid character '1' after object key"),
            ("[1 2]", "invalid character '2' after array element"),
            ("nul", "invalid character ' ' in literal null (expecting 'l')"),
            ("nulx", "invalid character 'x' in literal null (expecting 'l')"),
            ("-a", "invalid character 'a' in numeric literal"),
            ("\"\n\"", "invalid character '\\n' in string literal"),
            ("", "unexpected end of JSON input"),
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap_err(), message, "{text}");
        }
    }

    #[test]
    fn depth_is_bounded_without_recursion() {
        let nested = |n: usize| format!("{}1{}", "[".repeat(n), "]".repeat(n));
        assert!(parse(nested(200).as_bytes()).unwrap().into_value(&mut Budget::unlimited()).is_some());
        assert!(parse(nested(9_000).as_bytes()).unwrap().into_value(&mut Budget::unlimited()).is_none());
        assert_eq!(parse("[".repeat(100_000).as_bytes()).unwrap_err(), "invalid character '[' exceeded max depth");
        let objects = "{\"a\":".repeat(100_000);
        assert_eq!(parse(objects.as_bytes()).unwrap_err(), "invalid character '{' exceeded max depth");
    }

    #[test]
    fn strings_are_read_as_go_reads_them() {
        let text = |bytes: &[u8]| match parse(bytes).unwrap() {
            Raw::String(s) => s,
            other => panic!("{other:?}"),
        };
        assert_eq!(text(br#""\ud83e\udd80 \u0000 \ud800 \ud800\u0041""#), "\u{1f980} \0 \u{fffd} \u{fffd}A");
        assert_eq!(text(b"\"a\xff\xfeb\""), "a\u{fffd}\u{fffd}b");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), near in "[\\[\\]{}:,\"\\\\ntf0-9.eE+ -]{0,60}") {
            let _ = parse(&bytes);
            let _ = parse(near.as_bytes());
        }

        #[test]
        fn agrees_with_serde_json(text in "[\\[\\]{}:,\"a0-9. ]{0,12}") {
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                prop_assert_eq!(parse(text.as_bytes()).ok().and_then(|raw| raw.into_value(&mut Budget::unlimited())), Some(value));
            } else {
                prop_assert!(parse(text.as_bytes()).is_err());
            }
        }
    }
}

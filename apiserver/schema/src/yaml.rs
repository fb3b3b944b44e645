//! Decodes YAML bodies into JSON as written: from parser events, with YAML 1.1's plain scalars (`yes`, `0o7`, `1_000`)
//! as upstream's library. Only the first document counts. The expansion of aliases is bounded.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use granit_parser::{Event, Parser, ScalarStyle, Span, StrInput};

use super::budget::{Budget, ENTRY_BYTES, OBJECT_BYTES};
use super::raw::{DEPTH_MAX, Raw};
use super::typed::FINDINGS_MAX;

/// Maximum expanded nodes of a document: far more than a valid object has, far less than a bomb.
const NODES_MAX: usize = 300_000;
/// Maximum expanded text bytes of a document.
const TEXT_BYTES_MAX: usize = 12 * 1024 * 1024;

/// Replaced by the caller's budget error.
const TOO_LARGE: &str = "yaml: too large";

/// A document with its duplicate keys (a sentence each, as upstream's).
pub(crate) struct Document {
    pub(crate) raw: Raw,
    pub(crate) doubled: Vec<String>,
}

/// Parses the first document within the budget, which the caller must check first; errors begin with `yaml: `.
pub(crate) fn parse(bytes: &[u8], budget: &mut Budget) -> Result<Document, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "yaml: invalid leading UTF-8 octet".to_owned())?;
    let mut composer = Composer {
        text,
        parser: Parser::new_from_str(text),
        anchors: BTreeMap::new(),
        doubled: Vec::new(),
        nodes: 0,
        text_bytes: 0,
        budget,
    };
    let raw = loop {
        match composer.next()? {
            (Event::StreamStart | Event::DocumentStart(..), _) => {}
            (Event::StreamEnd | Event::DocumentEnd, _) => break Raw::Null,
            (event, span) => break composer.node(event, &span, 0)?,
        }
    };
    Ok(Document { raw, doubled: composer.doubled })
}

struct Composer<'a> {
    text: &'a str,
    parser: Parser<'a, StrInput<'a>>,
    anchors: BTreeMap<usize, Raw>,
    doubled: Vec<String>,
    nodes: usize,
    text_bytes: usize,
    budget: &'a mut Budget,
}

impl<'a> Composer<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), String> {
        loop {
            match self.parser.next_event() {
                Some(Ok((Event::Comment(..), _))) => {}
                Some(Ok(event)) => return Ok(event),
                Some(Err(error)) if error.info().contains("unknown anchor") => {
                    let name = self.alias(error.marker().index());
                    return Err(format!("yaml: unknown anchor '{name}' referenced"));
                }
                Some(Err(error)) => return Err(format!("yaml: {error}")),
                None => return Ok((Event::StreamEnd, Span::default())),
            }
        }
    }

    /// The name of the alias at that character.
    fn alias(&self, at: usize) -> String {
        let rest = self.text.chars().skip(at).skip_while(|c| *c == '*');
        rest.take_while(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
    }

    fn count(&mut self, nodes: usize, text_bytes: usize) -> Result<(), String> {
        self.nodes += nodes;
        self.text_bytes += text_bytes;
        if self.nodes > NODES_MAX || self.text_bytes > TEXT_BYTES_MAX {
            return Err("yaml: document contains excessive aliasing".into());
        }
        Ok(())
    }

    fn node(&mut self, event: Event<'a>, span: &Span, depth: usize) -> Result<Raw, String> {
        if depth > DEPTH_MAX {
            return Err("yaml: exceeded max depth".into());
        }
        let anchor = event.anchor_id();
        let raw = match event {
            Event::Alias(id) => {
                // The anchor is known and its node has not ended yet.
                let itself = || format!("yaml: anchor '{}' value contains itself", self.alias(span.start.index()));
                let raw = self.anchors.get(&id).cloned().ok_or_else(itself)?;
                let (nodes, text_bytes) = size(&raw);
                self.count(nodes, text_bytes)?;
                return Ok(raw);
            }
            Event::SequenceStart(..) => {
                self.count(1, 0)?;
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break,
                        (Event::StreamEnd, _) => return Err("yaml: unexpected end of stream".into()),
                        (event, span) => items.push(self.node(event, &span, depth + 1)?),
                    }
                }
                Raw::List(items)
            }
            Event::MappingStart(..) => {
                self.count(1, 0)?;
                if !self.budget.take(OBJECT_BYTES) {
                    return Err(TOO_LARGE.into());
                }
                self.mapping(depth)?
            }
            event => {
                let tag = event.tag().map(|tag| {
                    let (handle, suffix) = tag.parts();
                    format!("{handle}{suffix}")
                });
                let Some((text, style)) = event.scalar() else {
                    return Err(format!("yaml: line {}: did not find expected node content", span.start.line()));
                };
                self.count(1, text.len())?;
                match tag.as_deref() {
                    Some(tag) => tagged(tag, text)?,
                    None if style == ScalarStyle::Plain => plain(text)?,
                    None => Raw::String(text.into()),
                }
            }
        };
        if let Some(id) = anchor.filter(|id| *id > 0) {
            // A value stored for aliases counts like an expansion.
            let (nodes, text_bytes) = size(&raw);
            self.count(nodes, text_bytes)?;
            self.anchors.insert(id, raw.clone());
        }
        Ok(raw)
    }

    fn mapping(&mut self, depth: usize) -> Result<Raw, String> {
        let mut entries: BTreeMap<String, Raw> = BTreeMap::new();
        let mut merged: Vec<Raw> = Vec::new();
        loop {
            let (event, span) = self.next()?;
            match &event {
                Event::MappingEnd => break,
                Event::StreamEnd => return Err("yaml: unexpected end of stream".into()),
                _ => {}
            }
            let merge = event.scalar() == Some(("<<", ScalarStyle::Plain));
            let line = span.start.line();
            let key = self.node(event, &span, depth + 1)?;
            let (event, span) = self.next()?;
            let value = self.node(event, &span, depth + 1)?;
            if merge {
                merged.push(value);
                continue;
            }
            let key = match key {
                Raw::String(text) => text,
                Raw::Int(n) => n.to_string(),
                Raw::Number(text) => text.into(),
                Raw::Bool(b) => b.to_string(),
                other => return Err(format!("yaml: line {line}: unsupported map key of type: {}", other.go_name())),
            };
            if !self.budget.take(ENTRY_BYTES + key.len()) {
                return Err(TOO_LARGE.into());
            }
            if entries.insert(key.clone(), value).is_some() && self.doubled.len() < FINDINGS_MAX {
                let shown = machinery_api::selector::go_quoted(&key);
                self.doubled.push(format!("line {line}: key {shown} already set in map"));
            }
        }
        for value in merged {
            let maps = match value {
                Raw::Map(_) => vec![value],
                Raw::List(items) => items,
                _ => return Err("yaml: map merge requires map or sequence of maps as the value".into()),
            };
            for map in maps {
                let Raw::Map(inner) = map else {
                    return Err("yaml: map merge requires map or sequence of maps as the value".into());
                };
                for (key, value) in inner {
                    entries.entry(key).or_insert(value);
                }
            }
        }
        Ok(Raw::Map(entries.into_iter().collect()))
    }
}

/// The numbers of nodes and of text bytes.
fn size(raw: &Raw) -> (usize, usize) {
    match raw {
        Raw::String(text) => (1, text.len()),
        Raw::List(items) => items.iter().map(size).fold((1, 0), |a, b| (a.0 + b.0, a.1 + b.1)),
        Raw::Map(entries) => {
            entries.iter().map(|(k, v)| (size(v), k.len())).fold((1, 0), |a, (b, k)| (a.0 + b.0, a.1 + b.1 + k))
        }
        _ => (1, 0),
    }
}

/// A tagged scalar: of the core schema, else a string.
fn tagged(tag: &str, text: &str) -> Result<Raw, String> {
    let tag = tag.strip_prefix("tag:yaml.org,2002:").unwrap_or_default();
    match tag {
        "int" | "float" | "bool" | "null" => {}
        "binary" => {
            let joined: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
            let bytes = STANDARD.decode(joined);
            let bytes = bytes.map_err(|_| "yaml: !!binary value contains invalid base64 data".to_owned())?;
            return Ok(Raw::String(String::from_utf8_lossy(&bytes).into_owned()));
        }
        _ => return Ok(Raw::String(text.into())),
    }
    let raw = plain(text)?;
    let found = match &raw {
        Raw::Int(_) => "int",
        Raw::Number(number) if number.bytes().all(|b| b.is_ascii_digit()) => "int",
        Raw::Number(_) => "float",
        Raw::Bool(_) => "bool",
        Raw::Null => "null",
        _ => "str",
    };
    if found == tag || (found, tag) == ("int", "float") {
        return Ok(raw);
    }
    Err(format!("yaml: cannot decode !!{found} `{text}` as a !!{tag}"))
}

/// A plain scalar, by YAML 1.1.
fn plain(text: &str) -> Result<Raw, String> {
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Raw::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Raw::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Raw::Bool(false),
        ".nan" | ".NaN" | ".NAN" => return Err("json: unsupported value: NaN".into()),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Err("json: unsupported value: +Inf".into()),
        "-.inf" | "-.Inf" | "-.INF" => return Err("json: unsupported value: -Inf".into()),
        _ if text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) => numeric(text),
        _ => Raw::String(text.into()),
    })
}

fn numeric(text: &str) -> Raw {
    let joined = if text.starts_with('.') { text.to_owned() } else { text.replace('_', "") };
    let (sign, digits) = match joined.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", joined.strip_prefix('+').unwrap_or(&joined)),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] if digits.bytes().all(|b| b.is_ascii_digit()) => (8, &digits[1..]),
        _ => (10, digits),
    };
    if digits.bytes().all(|b| b.is_ascii_alphanumeric()) {
        if let Ok(n) = i64::from_str_radix(&format!("{sign}{digits}"), radix) {
            return Raw::Int(n);
        }
        if let (Ok(n), "") = (u64::from_str_radix(digits, radix), sign) {
            return Raw::Number(n.to_string().into());
        }
    }
    let float_like = !joined.is_empty()
        && joined.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'))
        && joined.bytes().any(|b| b.is_ascii_digit());
    match joined.parse::<f64>() {
        // In Go's JSON format of a float.
        Ok(n) if float_like && n.is_finite() => {
            let size = n.abs();
            let text = if size != 0.0 && !(1e-6..1e21).contains(&size) { format!("{n:e}") } else { format!("{n}") };
            text.parse::<i64>().map_or_else(|_| Raw::Number(text.into()), Raw::Int)
        }
        _ => Raw::String(text.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn parse(bytes: &[u8]) -> Result<Document, String> {
        super::parse(bytes, &mut Budget::unlimited())
    }

    fn read(text: &str) -> serde_json::Value {
        parse(text.as_bytes()).unwrap().raw.into_value(&mut Budget::unlimited()).unwrap()
    }

    #[test]
    fn scalars_are_yaml_1_1() {
        let text = "{a: yes, b: 0777, c: 0x1f, d: 1_000, e: 1e3, f: ~, g: 'yes', h: 1.5, i: 2026-01-02, j: -3, k: 08, 1: one, true: t, l: !!str 5, m: 12:30, p: 0o7, o: +1}";
        assert_eq!(
            read(text),
            json!({"a": true, "b": 511, "c": 31, "d": 1000, "e": 1000, "f": null, "g": "yes", "h": 1.5, "i": "2026-01-02", "j": -3, "k": 8,
                "1": "one", "true": "t", "l": "5", "m": "12:30", "p": 7, "o": 1})
        );
    }

    #[test]
    fn documents_aliases_merges_and_doubled_keys() {
        assert_eq!(read("a: 1\n---\nb: 2\n"), json!({"a": 1}));
        assert_eq!(read("---\n# nothing\n---\nb: 2\n"), json!(null));
        assert_eq!(
            read("x: &x {a: 1, b: 2}\nw: *x\nz: {<<: *x, a: 3}"),
            json!({"x": {"a": 1, "b": 2}, "w": {"a": 1, "b": 2}, "z": {"a": 3, "b": 2}})
        );
        let document = parse(b"a: 1\nb: 2\na: 3\n").unwrap();
        assert_eq!(document.doubled, ["line 3: key \"a\" already set in map"]);
        assert_eq!(document.raw.into_value(&mut Budget::unlimited()).unwrap(), json!({"a": 3, "b": 2}));
        assert!(
            parse(b"a: [1").is_err()
                && parse(b"a: *none").is_err()
                && parse(b"{a: b: c}").is_err()
                && parse(b"a: .inf").is_err()
        );
    }

    #[test]
    fn tags_are_resolved_as_upstreams_library_does() {
        assert_eq!(
            read(
                "{a: !!binary aGVsbG8=, b: ! 5, c: !mine 5, d: !<tag:yaml.org,2002:str> 5, e: !!int '0x10', f: !!float 3, \
                 g: !!bool yes, h: !!null '', i: !!timestamp 2026-01-02, j: !!binary 'aGVs\n\n bG8='}"
            ),
            json!({"a": "hello", "b": "5", "c": "5", "d": "5", "e": 16, "f": 3, "g": true, "h": null, "i": "2026-01-02", "j": "hello"})
        );
        for (text, message) in [
            ("a: !!binary '***'", "yaml: !!binary value contains invalid base64 data"),
            ("a: !!bool zzz", "yaml: cannot decode !!str `zzz` as a !!bool"),
            ("a: !!int 1.5", "yaml: cannot decode !!float `1.5` as a !!int"),
            ("a: !!null x", "yaml: cannot decode !!str `x` as a !!null"),
            ("a: *none", "yaml: unknown anchor 'none' referenced"),
            ("\u{e9}: &m {b: *m}", "yaml: anchor 'm' value contains itself"),
        ] {
            assert_eq!(parse(text.as_bytes()).err().unwrap(), message);
        }
    }

    #[test]
    fn bombs_are_refused() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for n in 1..20 {
            let aliases = vec![format!("*a{}", n - 1); 10].join(", ");
            bomb.push_str(&format!("a{n}: &a{n} [{aliases}]\n"));
        }
        assert_eq!(parse(bomb.as_bytes()).err().unwrap(), "yaml: document contains excessive aliasing");
        let nested: String = (0..200).map(|n| format!("&a{n} [")).collect();
        let nested = format!("{nested}{}{}", "x".repeat(100_000), "]".repeat(200));
        assert_eq!(parse(nested.as_bytes()).err().unwrap(), "yaml: document contains excessive aliasing");
        assert!(parse("[".repeat(10_000).as_bytes()).is_err());
        assert!(parse("- ".repeat(10_000).as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), near in "[a-c&*!<>|:?,#'\"\\[\\]{}% \n~0-9.e+-]{0,60}") {
            let _ = parse(&bytes);
            let _ = parse(near.as_bytes());
        }

        #[test]
        fn json_is_yaml(n in any::<i32>(), text in "[a-z \\\\\"\n\u{e9}]{0,10}") {
            let value = json!({"a": [n, {"b": text}], "c": null, "d": true, "e": 0.25});
            prop_assert_eq!(read(&value.to_string()), value);
        }
    }
}

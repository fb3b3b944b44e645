//! What a module says of itself, for a person: what it needs and what made it. Parsed, never compiled.

use std::collections::BTreeMap;

use wasmparser::{KnownCustom, Parser, Payload};

use super::inspect::inspect;
use runtime_api::{Inspection, LoadError};

/// Names in a `producers` section that are kept: honest ones have a handful.
const PRODUCERS_MAX: usize = 64;
/// Longest name or version that is kept.
const NAME_CHARS_MAX: usize = 120;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// What it imports and exports.
    pub inspection: Inspection,
    /// Bytes of memory that its core modules have from the start, together.
    pub memory_bytes: u64,
    /// What made it, by the fields of `producers` sections (tool conventions): `language`, `processed-by`, `sdk`; names with their
    /// versions.
    pub producers: BTreeMap<String, Vec<String>>,
}

/// Reads a module. Linear in its size.
///
/// # Errors
/// Not a module, or not a valid one.
pub fn describe(bytes: &[u8]) -> Result<Description, LoadError> {
    let mut found = Description { inspection: inspect(bytes)?, memory_bytes: 0, producers: BTreeMap::new() };
    let mut names = 0;
    for payload in Parser::new(0).parse_all(bytes) {
        let invalid = |error: wasmparser::BinaryReaderError| LoadError::Invalid(error.to_string());
        match payload.map_err(invalid)? {
            Payload::MemorySection(section) => {
                for memory in section {
                    let memory = memory.map_err(invalid)?;
                    let page_bytes = 1u64.checked_shl(memory.page_size_log2()).unwrap_or(u64::MAX);
                    let bytes = memory.initial.saturating_mul(page_bytes);
                    found.memory_bytes = found.memory_bytes.saturating_add(bytes);
                }
            }
            Payload::CustomSection(section) => {
                let KnownCustom::Producers(fields) = section.as_known() else { continue };
                // What is broken in a section of notes breaks nothing else.
                for field in fields.into_iter().map_while(Result::ok) {
                    for value in field.values.into_iter().map_while(Result::ok) {
                        let text = format!("{} {}", value.name, value.version);
                        let text: String =
                            text.trim().chars().filter(|c| !c.is_control()).take(NAME_CHARS_MAX).collect();
                        let known =
                            found.producers.entry(field.name.chars().take(NAME_CHARS_MAX).collect()).or_default();
                        if names < PRODUCERS_MAX && !known.contains(&text) {
                            known.push(text);
                            names += 1;
                        }
                    }
                }
            }
            _ => {}
        }
    }
    found.producers.retain(|_, values| !values.is_empty());
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_says_what_made_it() {
        let path = format!("{}/../../sample-workloads/bin/hello.wasm", env!("CARGO_MANIFEST_DIR"));
        let hello = describe(&std::fs::read(path).unwrap()).unwrap();
        assert!(hello.inspection.component && hello.memory_bytes >= 64 << 10, "{hello:?}");
        let tools: Vec<&String> = hello.producers.values().flatten().collect();
        assert!(tools.iter().any(|tool| tool.starts_with("wit-component ")), "{hello:?}");
    }

    #[test]
    fn memories_of_all_modules_count_and_broken_notes_do_not() {
        let text = r#"(component (core module (memory 2)) (core module (memory 1 5)) (@custom "producers" "\ff\ff"))"#;
        let found = describe(&wat::parse_str(text).unwrap()).unwrap();
        assert_eq!((found.memory_bytes, found.producers.len()), (3 << 16, 0));
        assert!(describe(b"text").is_err());
    }
}

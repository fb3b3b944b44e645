//! Human-readable description of a module: its needs and its toolchain. Parses, never compiles.

use std::collections::BTreeMap;

use wasmparser::{KnownCustom, Parser, Payload, ProducersSectionReader};

use super::inspect::inspect;
use super::world::{World, declared, printable, world};
use runtime_api::{Inspection, LoadError};

/// Maximum recorded names of `producers` sections: honest modules have a handful.
const PRODUCERS_MAX: usize = 64;

/// Description of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Its imports and exports.
    pub inspection: Inspection,
    /// Initial bytes of memory of its core modules together.
    pub memory_bytes: u64,
    /// Its toolchain, by the fields of `producers` sections (tool conventions): `language`, `processed-by`, `sdk`; names with
    /// versions.
    pub producers: BTreeMap<String, Vec<String>>,
    /// The world that it fits.
    pub world: World,
}

/// Describes a module. Linear in its size.
///
/// # Errors
/// Not a module, or not a valid one.
pub fn describe(bytes: &[u8]) -> Result<Description, LoadError> {
    let inspection = inspect(bytes)?;
    let (mut memory_bytes, mut producers, mut noted) = (0_u64, Producers::default(), None);
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(invalid)? {
            Payload::MemorySection(section) => {
                for memory in section {
                    let memory = memory.map_err(invalid)?;
                    let page_bytes = 1u64.checked_shl(memory.page_size_log2()).unwrap_or(u64::MAX);
                    memory_bytes = memory_bytes.saturating_add(memory.initial.saturating_mul(page_bytes));
                }
            }
            Payload::CustomSection(section) => {
                noted = noted.or_else(|| declared(section.name()));
                if let KnownCustom::Producers(fields) = section.as_known() {
                    producers.add(fields);
                }
            }
            _ => {}
        }
    }
    let world = world(&inspection, noted);
    Ok(Description { inspection, memory_bytes, producers: producers.by_field, world })
}

fn invalid(error: wasmparser::BinaryReaderError) -> LoadError {
    LoadError::Invalid(error.to_string())
}

/// All `producers` sections merged, those of a component's modules included; each name once.
#[derive(Debug, Default)]
struct Producers {
    by_field: BTreeMap<String, Vec<String>>,
    names: usize,
}

impl Producers {
    /// A malformed section of notes affects nothing else.
    fn add(&mut self, section: ProducersSectionReader<'_>) {
        for field in section.into_iter().map_while(Result::ok) {
            for value in field.values.into_iter().map_while(Result::ok) {
                let text = printable(format!("{} {}", value.name, value.version).trim());
                let name = printable(field.name);
                let known = self.by_field.get(&name).is_some_and(|known| known.contains(&text));
                if !known && self.names < PRODUCERS_MAX && !text.is_empty() && !name.is_empty() {
                    self.by_field.entry(name).or_default().push(text);
                    self.names += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_names_its_toolchain() {
        let path = format!("{}/../../sample-workloads/bin/hello.wasm", env!("CARGO_MANIFEST_DIR"));
        let hello = describe(&std::fs::read(path).unwrap()).unwrap();
        assert!(hello.inspection.component && hello.memory_bytes >= 64 << 10, "{hello:?}");
        let tools: Vec<&String> = hello.producers.values().flatten().collect();
        assert!(tools.iter().any(|tool| tool.starts_with("wit-component ")), "{hello:?}");
        assert!(hello.world.to_string().starts_with("wasi:http/proxy@0.2."), "{hello:?}");
    }

    /// An encoded string of a section.
    fn name(text: &str) -> Vec<u8> {
        [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
    }

    /// A custom section `producers` with one value per field.
    fn section(fields: &[(&str, &str, &str)]) -> Vec<u8> {
        let mut body = [name("producers"), vec![u8::try_from(fields.len()).unwrap()]].concat();
        for (field, value, version) in fields {
            body.extend([name(field), vec![1], name(value), name(version)].concat());
        }
        [vec![0, u8::try_from(body.len()).unwrap()], body].concat()
    }

    /// A core module within a component; `behind` belongs to the component.
    fn within(module: &[u8], behind: &[u8]) -> Vec<u8> {
        let length = u8::try_from(module.len()).unwrap();
        assert!(length < 0x80, "one byte of a number");
        [b"\0asm\x0d\0\x01\0\x01", &[length][..], module, behind].concat()
    }

    #[test]
    fn a_component_lists_the_languages_of_its_modules_once() {
        let rust = ("language", "Rust", "");
        let of_module = section(&[rust, ("processed-by", "rustc", "1.90.0")]);
        let module = [b"\0asm\x01\0\0\0", &of_module[..]].concat();
        let own = section(&[rust, ("language", "C\u{1b}11", "11"), ("processed-by", "wit-component", "0.2")]);
        let found = describe(&within(&module, &own)).unwrap().producers;
        assert_eq!(found["language"], ["Rust", "C11 11"]);
        assert_eq!(found["processed-by"], ["rustc 1.90.0", "wit-component 0.2"]);
        // Values with control characters, and empty ones.
        let odd = section(&[("sdk", "a\nb", ""), ("language", "\r", "")]);
        let found = describe(&[b"\0asm\x01\0\0\0", &odd[..]].concat()).unwrap().producers;
        assert_eq!(found, BTreeMap::from([("sdk".to_owned(), vec!["ab".to_owned()])]));
    }

    #[test]
    fn many_producers_are_cut() {
        let sections = (0..200).flat_map(|n| section(&[("sdk", &"n".repeat(100), &n.to_string())]));
        let module: Vec<u8> = b"\0asm\x01\0\0\0".iter().copied().chain(sections).collect();
        assert_eq!(describe(&module).unwrap().producers["sdk"].len(), PRODUCERS_MAX);
    }

    #[test]
    fn any_producers_section_is_described_within_bounds() {
        bolero::check!().for_each(|bytes| {
            let bytes = &bytes[..bytes.len().min(100)];
            for named in ["producers", "component-type:a"] {
                let body = [name(named), bytes.to_vec()].concat();
                let section = [vec![0, u8::try_from(body.len()).unwrap()], body].concat();
                let module = [b"\0asm\x01\0\0\0", &section[..]].concat();
                for whole in [within(&module, &section), within(&module, &[]), module] {
                    let Ok(found) = describe(&whole) else { continue };
                    let lines = found.producers.iter().flat_map(|(field, values)| values.iter().chain([field]));
                    let texts: Vec<String> = lines.cloned().chain([found.world.to_string()]).collect();
                    assert!(texts.len() <= 2 * PRODUCERS_MAX + 1);
                    assert!(texts.iter().all(|text| !text.contains(char::is_control)), "{texts:?}");
                }
            }
        });
    }

    #[test]
    fn memories_of_all_modules_count_and_broken_notes_do_not() {
        let text = r#"(component (core module (memory 2)) (core module (memory 1 5)) (@custom "producers" "\ff\ff"))"#;
        let found = describe(&wat::parse_str(text).unwrap()).unwrap();
        assert_eq!((found.memory_bytes, found.producers.len()), (3 << 16, 0));
        assert!(describe(b"text").is_err());
    }
}

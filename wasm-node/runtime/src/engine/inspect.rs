//! Reads a module's imports and exports from its binary. Parses and validates, never compiles: inspecting an untrusted
//! file costs no more than reading it.

use wasmparser::{Encoding, Parser, Payload, Validator, WasmFeatures};

use super::load::{CodeKind, component_kind};
use runtime_api::{Inspection, Kind, LoadError, ModuleInspector};

/// This runtime's inspection of modules.
pub const MODULE_INSPECTOR: ModuleInspector = ModuleInspector { inspect, imports };

/// Reads a module's imports and exports for `coracle push`. Linear in the module's size.
///
/// # Errors
/// Not a module, or not a valid one.
pub fn inspect(bytes: &[u8]) -> Result<Inspection, LoadError> {
    CodeKind::of(bytes)?;
    // All features: each node decides which of them it supports.
    Validator::new_with_features(WasmFeatures::all()).validate_all(bytes).map_err(invalid)?;
    inspect_valid(bytes)
}

/// A core module's import in the notation of policies: `wasi_snapshot_preview1/fd_write`.
pub(crate) fn of_module(module: &str, name: &str) -> String {
    format!("{module}/{name}")
}

/// A module's imports in the notation of policies: those of a component, and each function of a core module. Reads an
/// invalid module as far as possible, as it never runs; validates nothing, so that the check costs little.
///
/// # Errors
/// Not a module, or an unreadable one.
pub fn imports(bytes: &[u8]) -> Result<Vec<String>, LoadError> {
    if CodeKind::of(bytes)? == CodeKind::Component {
        return Ok(inspect_valid(bytes)?.imports);
    }
    let mut imports = Vec::new();
    for payload in Parser::new(0).parse_all(bytes) {
        if let Payload::ImportSection(section) = payload.map_err(invalid)? {
            for import in section.into_imports() {
                let import = import.map_err(invalid)?;
                imports.push(of_module(import.module, import.name));
            }
        }
    }
    Ok(imports)
}

fn invalid(error: wasmparser::BinaryReaderError) -> LoadError {
    LoadError::Invalid(error.to_string())
}

/// The same for a valid module; skips function bodies.
pub(super) fn inspect_valid(bytes: &[u8]) -> Result<Inspection, LoadError> {
    let component = CodeKind::of(bytes)? == CodeKind::Component;
    let mut found = Inspection { component, kind: None, imports: Vec::new(), exports: Vec::new() };
    let mut depth = 0_u32;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(invalid)? {
            Payload::Version { encoding, .. } => {
                debug_assert!(depth > 0 || (encoding == Encoding::Component) == found.component);
                depth += 1;
            }
            Payload::End(_) => depth = depth.saturating_sub(1),
            // Only the outermost component counts.
            _ if depth != 1 => {}
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    found.imports.push(import.map_err(invalid)?.module.to_owned());
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    found.exports.push(export.map_err(invalid)?.name.to_owned());
                }
            }
            Payload::ComponentImportSection(section) => {
                for import in section {
                    let import = import.map_err(invalid)?;
                    // Types come with the instances that export them.
                    if !matches!(import.ty, wasmparser::ComponentTypeRef::Type(_)) {
                        found.imports.push(import.name.name.to_owned());
                    }
                }
            }
            Payload::ComponentExportSection(section) => {
                for export in section {
                    found.exports.push(export.map_err(invalid)?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    if found.component {
        found.kind = component_kind(&found.exports).ok();
    } else {
        found.imports.dedup();
        found.kind = found.exports.iter().any(|name| name == "_start").then_some(Kind::Command);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(name: &str) -> Vec<u8> {
        let path = format!("{}/../../sample-workloads/bin/{name}.wasm", env!("CARGO_MANIFEST_DIR"));
        std::fs::read(path).unwrap()
    }

    #[test]
    fn a_sample_component_and_a_core_module() {
        let hello = inspect(&sample("hello")).unwrap();
        assert!(hello.component && hello.exports.iter().any(|name| name.starts_with("wasi:http/incoming-handler@")));
        assert!(hello.imports.iter().any(|name| name.starts_with("wasi:http/types@")), "{hello:?}");
        let crash = inspect(&sample("crash")).unwrap();
        assert!(!crash.component && crash.exports.contains(&"_start".to_owned()), "{crash:?}");
        assert_eq!(crash.imports, ["wasi_snapshot_preview1"]);
        assert_eq!((hello.kind, crash.kind), (Some(Kind::HttpServer), Some(Kind::Command)));
    }

    #[test]
    fn only_the_outermost_counts() {
        let text = r#"(component
            (component $inner (import "hidden" (func)) (export "inside" (func 0)))
            (core module (import "env" "f" (func)) (func (export "core")))
            (import "acme:a/b@1.2.0" (instance))
            (import "t" (type (sub resource)))
            (import "f" (func $f))
            (export "g" (func $f)))"#;
        let found = inspect(&wat::parse_str(text).unwrap()).unwrap();
        assert_eq!(found.imports, ["acme:a/b@1.2.0", "f"]);
        assert_eq!(found.exports, ["g"]);
        assert_eq!(found.kind, Some(Kind::Plugin));
    }

    #[test]
    fn imports_of_both_forms_as_policies_name_them() {
        let hello = imports(&sample("hello")).unwrap();
        assert_eq!(hello, inspect(&sample("hello")).unwrap().imports);
        let crash = imports(&sample("crash")).unwrap();
        assert!(crash.contains(&"wasi_snapshot_preview1/proc_exit".to_owned()), "{crash:?}");
        assert!(imports(b"text").is_err() && imports(&sample("hello")[..1000]).is_err());
    }

    #[test]
    fn truncated_or_invalid_modules_are_rejected() {
        let whole = sample("hello");
        for cut in [8, 100, whole.len() / 2, whole.len() - 1] {
            // A component's preamble alone is a valid, empty component.
            assert_eq!(inspect(&whole[..cut]).is_err(), cut > 8, "{cut}");
        }
        let untyped =
            wat::parse_str("(module (func (export \"_start\") (drop (i32.add (i64.const 1) (i32.const 2)))))");
        let error = inspect(&untyped.unwrap()).unwrap_err().to_string();
        assert!(error.starts_with("not a valid module: ") && error.contains("type mismatch"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), at in 0usize..60_000) {
            let _ = inspect(&[b"\0asm\x0d\0\x01\0", &bytes[..]].concat());
            let _ = inspect(&[b"\0asm\x01\0\0\0", &bytes[..]].concat());
            // A real module with bytes changed in its middle.
            let mut changed = sample("hello");
            let at = at.min(changed.len());
            let end = (at + bytes.len()).min(changed.len());
            changed[at..end].copy_from_slice(&bytes[..end - at]);
            let _ = inspect(&changed);
        }
    }
}

//! `coracle inspect`: prints a module's imports, exports and requirements.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use clap::Args;
use images::Image;
use wasm_runtime::engine::{Description, describe};

use super::pull::{Access, fetch};
use crate::module_file;
use tools_command::failure::Failure;
use tools_command::flags::Common;
use tools_command::output::result;

/// Arguments of `coracle inspect`.
#[derive(Debug, Clone, Args)]
pub struct Inspect {
    /// A .wasm file, or an image as for `coracle pull`
    #[arg(value_name = "FILE|REF")]
    pub(crate) what: String,
    #[command(flatten)]
    pub(crate) access: Access,
}

/// Prints a module's imports, exports and requirements.
///
/// # Errors
/// If it can't be read or pulled, or is no module.
pub fn run(flags: &Inspect, common: &Common) -> Result<(), Failure> {
    let file = Path::new(&flags.what);
    // An existing file wins: no registry's name ends in its own path.
    let is_path = file.is_absolute() || flags.what.starts_with('.') || flags.what.ends_with(".wasm");
    let (image, module) = if is_path || file.exists() {
        let module = module_file::read(file)
            .with_context(|| format!("cannot read {}; give the path of a .wasm file, or an image", flags.what))?;
        (None, module)
    } else {
        let (image, module) = fetch(&flags.what, &flags.access, common)?;
        (Some(image), module)
    };
    let found = describe(&module).with_context(|| flags.what.clone())?;
    result(format_args!("{}", report(image.as_ref(), module.len(), &found)))?;
    Ok(())
}

/// The output of `inspect`.
fn report(image: Option<&Image>, bytes: usize, found: &Description) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<10} {value}");
    };
    if let Some(image) = image {
        line("image", &image.image_id);
    }
    let form = if found.inspection.component { "component (WASI 0.2)" } else { "core module (WASI preview 1)" };
    line("form", form);
    line("runs as", runs_as(found));
    line("size", &format!("{bytes} bytes"));
    line("world", &found.world.to_string());
    line("memory", &format!("{} KiB from the start", found.memory_bytes >> 10));
    for (field, values) in &found.producers {
        // The convention's field is `language`, and it may have several values.
        let title = if field == "language" { "languages" } else { field.as_str() };
        line(title, &values.join(", "));
    }
    if let Some(image) = image {
        let others: Vec<&str> = image.modules.keys().map(String::as_str).collect();
        if !others.is_empty() {
            line("modules", &others.join(" "));
        }
        line("arguments", &image.argv.join(" "));
    }
    for (title, names) in [("imports", &found.inspection.imports), ("exports", &found.inspection.exports)] {
        let _ = writeln!(text, "{title}");
        for name in names {
            // An export's name is untrusted: it may contain a terminal's control sequences.
            let name: String = name.chars().filter(|c| !c.is_control()).collect();
            let _ = writeln!(text, "  {name}");
        }
    }
    text
}

/// The kind of container that the module becomes (docs/contract.md §4).
fn runs_as(found: &Description) -> &'static str {
    let exports = |name: &str| found.inspection.exports.iter().any(|export| export.starts_with(name));
    match (found.inspection.component, exports("wasi:http/incoming-handler@"), exports("wasi:cli/run@")) {
        (true, true, _) => "HTTP server (exports wasi:http/incoming-handler)",
        (true, false, true) => "command (exports wasi:cli/run)",
        (false, _, _) if exports("_start") => "command (exports _start)",
        (true, false, false) => "plugin (exports neither wasi:http/incoming-handler nor wasi:cli/run)",
        _ => "nothing here: _start is not exported",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_described() {
        let module = std::fs::read("../../sample-workloads/bin/hello.wasm").unwrap();
        let text = report(None, module.len(), &describe(&module).unwrap());
        let wanted = ["HTTP server", "component (WASI 0.2)", "  wasi:http/types@", "processed-by wit-component", "KiB"];
        for wanted in wanted.into_iter().chain(["world      wasi:http/proxy@0.2."]) {
            assert!(text.contains(wanted), "{text}");
        }
        let module = std::fs::read("../../sample-workloads/bin/crash.wasm").unwrap();
        assert!(report(None, 1, &describe(&module).unwrap()).contains("command (exports _start)"));
    }

    #[test]
    fn languages_are_printed_and_no_name_moves_the_cursor() {
        // A function called `a\x1b[2J`, and a producers section: a language, Rust, in two words.
        let exported = b"\x01\x04\x01\x60\0\0\x03\x02\x01\0\x07\x09\x01\x05a\x1b[2J\0\0\x0a\x04\x01\x02\0\x0b";
        let notes = b"\0\x1f\x09producers\x01\x08language\x01\x04Rust\x042024";
        let module = [&b"\0asm\x01\0\0\0"[..], exported, notes].concat();
        let text = report(None, 1, &describe(&module).unwrap());
        assert!(text.contains("languages  Rust 2024\n") && text.contains("  a[2J\n"), "{text:?}");
        assert!(text.contains("world      none that is known\n"), "{text}");
    }
}

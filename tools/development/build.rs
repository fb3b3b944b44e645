//! Build script: lists the files below `templates/` with their texts, so that a new folder is part of the program.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=templates");
    let mut files = Vec::new();
    list(Path::new("templates"), &mut files)?;
    files.sort();
    let mut table = String::from("&[\n");
    for file in files {
        let names: Vec<_> = file.iter().skip(1).map(|name| name.to_string_lossy()).collect();
        let path = names.join("/");
        let text = format!("include_str!(concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/templates/{path}\"))");
        let _ = writeln!(table, "    ({path:?}, {text}),");
    }
    table.push_str("]\n");
    let folder = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("cargo gives no folder"))?;
    fs::write(Path::new(&folder).join("templates.rs"), table)
}

/// The files below a folder.
fn list(folder: &Path, into: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { list(&path, into)? } else { into.push(path) }
    }
    Ok(())
}

//! `coracle.yaml`: how a project's module is built, for `coracle run`. Templates of `coracle new` have one.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use serde_json::{Map, Value};

/// The file's name.
pub(crate) const FILE: &str = "coracle.yaml";
/// Far above the size of its few lines.
const BYTES_MAX: u64 = 64 << 10;
/// Maximum paths to watch.
const WATCH_MAX: usize = 64;
/// Maximum host interfaces.
const GRANTS_MAX: usize = 16;

/// A project: a folder with a build command and the module that the command makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Project {
    /// Command of a shell, run in the project's folder.
    pub(crate) build: String,
    /// The module that the command makes.
    pub(crate) module: PathBuf,
    /// Files and folders whose change is a reason to build.
    pub(crate) watch: Vec<PathBuf>,
    /// Optional host interfaces that the module imports.
    pub(crate) grant: Vec<String>,
    /// The folder of the file.
    pub(crate) folder: PathBuf,
}

impl Project {
    /// Reads the file in a folder; `None` if there is none.
    ///
    /// # Errors
    /// It can't be read, or isn't such a file.
    pub(crate) fn find(folder: &Path) -> anyhow::Result<Option<Self>> {
        let path = folder.join(FILE);
        let mut text = String::new();
        match std::fs::File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened
                .and_then(|file| file.take(BYTES_MAX + 1).read_to_string(&mut text))
                .with_context(|| format!("cannot read {}", path.display()))?,
        };
        if text.len() as u64 > BYTES_MAX {
            return Err(anyhow!("{} is larger than {} KiB", path.display(), BYTES_MAX >> 10));
        }
        let project = Self::parse(&text, folder).map_err(|why| anyhow!("{}: {why}", path.display()))?;
        Ok(Some(project))
    }

    fn parse(text: &str, folder: &Path) -> Result<Self, String> {
        let mut entries = machinery_api::yaml::read::<Map<String, Value>>(text)?;
        let mut text = |key: &str| match entries.remove(key) {
            Some(Value::String(text)) if !text.trim().is_empty() => Ok(text),
            Some(_) => Err(format!("{key}: wanted a text")),
            None => Err(format!("{key} is missing; the file has build: COMMAND, module: PATH and watch: [PATH]")),
        };
        let (build, module) = (text("build")?, text("module")?);
        let watch = match entries.remove("watch") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(paths)) if paths.len() <= WATCH_MAX => {
                let path = |path: &Value| path.as_str().filter(|path| !path.is_empty()).map(|path| folder.join(path));
                paths.iter().map(path).collect::<Option<Vec<_>>>().ok_or("watch: wanted a list of paths")?
            }
            Some(_) => return Err(format!("watch: wanted a list of at most {WATCH_MAX} paths")),
        };
        let grant = match entries.remove("grant") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(names)) if names.len() <= GRANTS_MAX => {
                let name = |name: &Value| name.as_str().filter(|name| is_interface(name)).map(str::to_owned);
                names.iter().map(name).collect::<Option<_>>().ok_or("grant: wanted a list of names, as [keyvalue]")?
            }
            Some(_) => return Err(format!("grant: wanted a list of at most {GRANTS_MAX} names")),
        };
        if let Some(key) = entries.keys().next() {
            return Err(format!("unknown key {key}: there are build, module, watch and grant"));
        }
        let watch = if watch.is_empty() { vec![folder.to_owned()] } else { watch };
        Ok(Self { build, module: folder.join(module), watch, grant, folder: folder.to_owned() })
    }
}

fn is_interface(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty() && name.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_has_a_command_and_a_module() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Project::find(folder.path()).unwrap(), None);
        let file = folder.path().join(FILE);
        std::fs::write(&file, "build: cargo build\nmodule: target/app.wasm\nwatch: [src, Cargo.toml]\n").unwrap();
        let project = Project::find(folder.path()).unwrap().unwrap();
        assert_eq!(project.build, "cargo build");
        assert_eq!(project.module, folder.path().join("target/app.wasm"));
        assert_eq!(project.watch, [folder.path().join("src"), folder.path().join("Cargo.toml")]);
        std::fs::write(&file, "#".repeat(BYTES_MAX as usize + 1)).unwrap();
        assert!(Project::find(folder.path()).unwrap_err().to_string().contains("larger than 64 KiB"));
        let whole = Project::parse("build: make\nmodule: a.wasm\n", Path::new("x")).unwrap();
        assert_eq!(whole.watch, [Path::new("x")]);
        assert!(whole.grant.is_empty());
        let text = "build: make\nmodule: a.wasm\ngrant: [keyvalue, config]\n";
        assert_eq!(Project::parse(text, Path::new("x")).unwrap().grant, ["keyvalue", "config"]);
    }

    #[test]
    fn other_contents_are_errors() {
        for (text, why) in [
            ("build: make\n", "module is missing"),
            ("module: a.wasm\n", "build is missing"),
            ("build: ' '\nmodule: a.wasm\n", "build: wanted a text"),
            ("build: 1\nmodule: a.wasm\n", "build: wanted a text"),
            ("build: make\nmodule: a.wasm\nwatch: src\n", "watch: wanted a list"),
            ("build: make\nmodule: a.wasm\nwatch: [1]\n", "watch: wanted a list"),
            ("build: make\nmodule: a.wasm\ngrant: keyvalue\n", "grant: wanted a list"),
            ("build: make\nmodule: a.wasm\ngrant: ['a,b']\n", "grant: wanted a list of names"),
            ("build: make\nmodule: a.wasm\nbuilds: x\n", "unknown key builds"),
            ("- build\n", "line 1"),
            ("build: [\n", "line"),
        ] {
            let error = Project::parse(text, Path::new(".")).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        let many = format!("build: make\nmodule: a\nwatch: [{}]\n", vec!["a"; WATCH_MAX + 1].join(", "));
        assert!(Project::parse(&many, Path::new(".")).unwrap_err().contains("at most 64"));
    }
}

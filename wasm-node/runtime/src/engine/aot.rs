//! Cache of compiled modules on disk, keyed by the module's digest and the engine's settings. Only artifacts of this
//! node are loaded: the folder has mode 0700, and each artifact has a checksum file, since a damaged one is code.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use runtime_api::disk::DiskSpace;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use wasmtime::Module;
use wasmtime::component::Component;

use super::compile::Compiled;
use super::exchange::CompiledModule;
use super::load::{Code, CodeKind};
use crate::plugin::types::Description;

/// No compilation takes this long: an older scratch file is an orphan.
const SCRATCH_AGE_MAX: Duration = Duration::from_secs(3600);

pub(crate) struct Cache {
    dir: PathBuf,
}

impl Cache {
    pub(crate) fn open(dir: PathBuf) -> std::io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        restrict(&dir, 0o700)?;
        // Removes orphaned scratch files.
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
            let scratch = entry.file_name().to_string_lossy().starts_with("compile-");
            if scratch && age().is_some_and(|age| age > SCRATCH_AGE_MAX) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(Self { dir })
    }

    /// The compiler's description of a plugin, or why the module can't be one; `None` if missing or damaged.
    pub(crate) fn description(&self, digest: &str, fingerprint: &str) -> Option<Result<Description, String>> {
        let text = std::fs::read(description_path(&self.path(digest, fingerprint))).ok()?;
        let written: Result<Box<RawValue>, String> = serde_json::from_slice(&text).ok()?;
        match written {
            Ok(text) => Description::read(text.get().as_bytes()).ok().map(Ok),
            Err(why) => Some(Err(why)),
        }
    }

    /// Removes an artifact for recompilation. Existing mappings stay valid.
    pub(crate) fn forget(&self, digest: &str, fingerprint: &str) {
        let path = self.path(digest, fingerprint);
        for file in [sum_path(&path), description_path(&path), path] {
            let _ = std::fs::remove_file(file);
        }
    }

    fn path(&self, digest: &str, fingerprint: &str) -> PathBuf {
        let digest = digest.strip_prefix("sha256:").unwrap_or(digest);
        self.dir.join(format!("{digest}-{fingerprint}.cwasm"))
    }

    pub(crate) fn contains(&self, digest: &str, fingerprint: &str) -> bool {
        let path = self.path(digest, fingerprint);
        path.exists() && sum_path(&path).exists()
    }

    /// Fails if the disk space reserved for the cluster's store would be used.
    pub(crate) fn check_space(&self) -> std::io::Result<()> {
        DiskSpace::of(&self.dir).map_or(Ok(()), |disk| runtime_api::disk::check_space(disk.free))
    }

    /// A temporary file for a compiler process, before [`Cache::adopt`].
    pub(crate) fn scratch(&self) -> std::io::Result<tempfile::NamedTempFile> {
        tempfile::Builder::new().prefix("compile-").suffix(".tmp").tempfile_in(&self.dir)
    }

    /// Moves a finished artifact to its name. Nothing is synced: after a crash of the machine, an artifact that doesn't fit its
    /// checksum is recompiled like a damaged one.
    pub(crate) fn adopt(&self, digest: &str, fingerprint: &str, file: tempfile::NamedTempFile) -> std::io::Result<()> {
        let path = self.path(digest, fingerprint);
        // The checksum goes first: an artifact without one is never loaded, one with a stale sum is recompiled.
        std::fs::rename(sum_path(file.path()), sum_path(&path))?;
        match std::fs::rename(description_path(file.path()), description_path(&path)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        file.persist(&path).map(drop).map_err(|error| error.error)
    }

    pub(crate) fn store(&self, digest: &str, fingerprint: &str, code: &Compiled) -> std::io::Result<()> {
        let file = self.scratch()?;
        let _companions = CompanionFiles::of(file.path());
        code.write(file.path())?;
        self.adopt(digest, fingerprint, file)
    }

    /// Opens an artifact with what belongs to it; `None` if a part is missing.
    pub(crate) fn open_module(&self, digest: &str, fingerprint: &str) -> std::io::Result<Option<CompiledModule>> {
        let path = self.path(digest, fingerprint);
        let Some(sum) = if_found(std::fs::read_to_string(sum_path(&path)))? else { return Ok(None) };
        let description = if_found(std::fs::read(description_path(&path)))?;
        let Some(file) = if_found(std::fs::File::open(&path))? else { return Ok(None) };
        let bytes = file.metadata()?.len();
        Ok(Some(CompiledModule { file, bytes, sum, description }))
    }

    /// Maps an artifact; `None` if there is none. Removes a damaged one and returns its error.
    pub(crate) fn load(
        &self,
        engine: &wasmtime::Engine,
        digest: &str,
        fingerprint: &str,
        kind: CodeKind,
    ) -> Result<Option<Code>, String> {
        let path = self.path(digest, fingerprint);
        let Ok(expected) = std::fs::read_to_string(sum_path(&path)) else { return Ok(None) };
        let loaded = match std::fs::File::open(&path).and_then(checksum) {
            // The root cause alone: its context contains paths of the node, which must not be in a pod's status.
            Ok(sum) if sum == expected => map(engine, &path, kind).map_err(|error| error.root_cause().to_string()),
            Ok(_) => Err("the compiled module's checksum is wrong".to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => Err(error.to_string()),
        };
        if let Err(why) = &loaded {
            tracing::warn!(path = %path.display(), "compiled module removed: {why}");
            let _ = std::fs::remove_file(&path);
        }
        loaded.map(Some)
    }

    /// Bytes of compiled modules by the source module's digest.
    pub(crate) fn sizes(&self) -> std::io::Result<BTreeMap<String, u64>> {
        let mut sizes = BTreeMap::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            if let Some((digest, _)) = parts(&entry.file_name().to_string_lossy()) {
                *sizes.entry(digest).or_default() += entry.metadata().map_or(0, |metadata| metadata.len());
            }
        }
        Ok(sizes)
    }

    /// Removes artifacts of digests that are not `in_use`, and of other engine settings.
    pub(crate) fn sweep(&self, fingerprints: &[String], in_use: &dyn Fn(&str) -> bool) -> std::io::Result<u64> {
        let mut freed = 0;
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            // Scratch files have no digest in their name.
            let Some((digest, fingerprint)) = parts(&entry.file_name().to_string_lossy()) else { continue };
            if fingerprints.contains(&fingerprint) && in_use(&digest) {
                continue;
            }
            let bytes = entry.metadata().map_or(0, |metadata| metadata.len());
            match std::fs::remove_file(entry.path()) {
                Ok(()) => freed += bytes,
                // A mapped file may be undeletable; the next sweep retries.
                Err(error) => {
                    tracing::debug!(path = %entry.path().display(), %error, "cannot remove a compiled module")
                }
            }
        }
        Ok(freed)
    }
}

/// `None` for a file that is missing.
fn if_found<T>(result: std::io::Result<T>) -> std::io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Digest and fingerprint in the name of an artifact or of its companion files.
fn parts(name: &str) -> Option<(String, String)> {
    let stem =
        name.strip_suffix(".sum").or_else(|| name.strip_suffix(".plugin")).unwrap_or(name).strip_suffix(".cwasm")?;
    let (digest, fingerprint) = stem.split_once('-')?;
    Some((format!("sha256:{digest}"), fingerprint.to_owned()))
}

#[expect(
    unsafe_code,
    reason = "a mapped artifact is code; it is ours, sound by its checksum, in a folder only we write"
)]
fn map(engine: &wasmtime::Engine, path: &Path, kind: CodeKind) -> wasmtime::Result<Code> {
    // SAFETY: the file was written by this node's compiler into a folder of mode 0700, its checksum was just compared,
    // and files there are only ever replaced by rename, never written in place. wasmtime itself checks its version and
    // settings in the artifact's header.
    unsafe {
        match kind {
            CodeKind::Component => Ok(Code::Component(Component::deserialize_file(engine, path)?)),
            CodeKind::Module => Ok(Code::Module(Module::deserialize_file(engine, path)?)),
        }
    }
}

/// Path of a plugin's description beside its artifact.
pub(crate) fn description_path(artifact: &Path) -> PathBuf {
    companion_path(artifact, ".plugin")
}

/// Path of an artifact's checksum beside it.
pub(crate) fn sum_path(artifact: &Path) -> PathBuf {
    companion_path(artifact, ".sum")
}

fn companion_path(artifact: &Path, suffix: &str) -> PathBuf {
    let mut path = artifact.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Removes companion files of an artifact that was not adopted.
pub(crate) struct CompanionFiles(PathBuf);

impl CompanionFiles {
    pub(crate) fn of(artifact: &Path) -> Self {
        Self(artifact.to_owned())
    }
}

impl Drop for CompanionFiles {
    fn drop(&mut self) {
        // An adopted artifact's companions have been renamed.
        let _ = std::fs::remove_file(description_path(&self.0));
        let _ = std::fs::remove_file(sum_path(&self.0));
    }
}

pub(crate) fn checksum(mut of: impl Read) -> std::io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = of.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex::encode(hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
    }
}

#[cfg(unix)]
fn restrict(path: &Path, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
fn restrict(_path: &Path, _mode: u32) -> std::io::Result<()> {
    Ok(())
}

//! Compiled modules on disk, keyed by the module's digest and the engine's settings. Only what this node wrote is
//! loaded: the folder is its own (0700), and each artifact has a checksum beside it, since a damaged one is code.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use wasmtime::Module;
use wasmtime::component::Component;

use super::compile::Compiled;
use super::load::{Code, CodeKind};
use crate::plugin::types::Description;

/// No compilation takes this long, so a scratch file this old belongs to a process that is gone.
const SCRATCH_AGE_MAX: Duration = Duration::from_secs(3600);

pub(crate) struct Cache {
    dir: PathBuf,
}

impl Cache {
    pub(crate) fn open(dir: PathBuf) -> std::io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        restrict(&dir, 0o700)?;
        // What a compiler left unfinished long ago.
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

    /// What the compiler found that a plugin offers, or why it can't be one; none where that is missing or damaged.
    pub(crate) fn description(&self, digest: &str, fingerprint: &str) -> Option<Result<Description, String>> {
        let text = std::fs::read(description_path(&self.path(digest, fingerprint))).ok()?;
        let written: Result<Box<RawValue>, String> = serde_json::from_slice(&text).ok()?;
        match written {
            Ok(text) => Description::read(text.get().as_bytes()).ok().map(Ok),
            Err(why) => Some(Err(why)),
        }
    }

    /// Removes an artifact, so that it is made anew. Who has mapped it keeps it.
    pub(crate) fn forget(&self, digest: &str, fingerprint: &str) {
        let _ = std::fs::remove_file(self.path(digest, fingerprint));
    }

    fn path(&self, digest: &str, fingerprint: &str) -> PathBuf {
        let digest = digest.strip_prefix("sha256:").unwrap_or(digest);
        self.dir.join(format!("{digest}-{fingerprint}.cwasm"))
    }

    pub(crate) fn contains(&self, digest: &str, fingerprint: &str) -> bool {
        let path = self.path(digest, fingerprint);
        path.exists() && sum_path(&path).exists()
    }

    /// Refuses where an artifact would take what the cluster's store needs.
    pub(crate) fn check_space(&self) -> std::io::Result<()> {
        free_bytes(&self.dir).map_or(Ok(()), runtime_api::disk::check_space)
    }

    /// Where a compiler process writes its result before [`Cache::adopt`].
    pub(crate) fn scratch(&self) -> std::io::Result<tempfile::NamedTempFile> {
        tempfile::Builder::new().prefix("compile-").suffix(".tmp").tempfile_in(&self.dir)
    }

    /// Gives a finished artifact its name. Nothing is synced: what a crash of the machine leaves of it, or of its checksum,
    /// does not fit the other, and is compiled again as anything that is damaged.
    pub(crate) fn adopt(&self, digest: &str, fingerprint: &str, file: tempfile::NamedTempFile) -> std::io::Result<()> {
        let path = self.path(digest, fingerprint);
        // The checksum goes first: an artifact without one is never loaded, one with a stale sum is compiled again.
        std::fs::rename(sum_path(file.path()), sum_path(&path))?;
        match std::fs::rename(description_path(file.path()), description_path(&path)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        file.persist(&path).map(drop).map_err(|error| error.error)
    }

    pub(crate) fn store(&self, digest: &str, fingerprint: &str, code: &Compiled) -> std::io::Result<()> {
        let file = self.scratch()?;
        let _beside = Beside::of(file.path());
        code.write(file.path())?;
        self.adopt(digest, fingerprint, file)
    }

    /// Maps an artifact; none where there is none. A damaged one is removed, and the error says what is wrong.
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
            // The cause alone: what is around it names the file, and a pod's status is no place for the node's paths.
            Ok(sum) if sum == expected => map(engine, &path, kind).map_err(|error| error.root_cause().to_string()),
            Ok(_) => Err("the compiled module's checksum is wrong".to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => Err(error.to_string()),
        };
        if let Err(why) = &loaded {
            tracing::warn!(path = %path.display(), "compiled module set aside: {why}");
            let _ = std::fs::remove_file(&path);
        }
        loaded.map(Some)
    }

    /// Bytes of compiled modules by the digest of what they were compiled from.
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
            // What is being compiled just now has no digest in its name.
            let Some((digest, fingerprint)) = parts(&entry.file_name().to_string_lossy()) else { continue };
            if fingerprints.contains(&fingerprint) && in_use(&digest) {
                continue;
            }
            let bytes = entry.metadata().map_or(0, |metadata| metadata.len());
            match std::fs::remove_file(entry.path()) {
                Ok(()) => freed += bytes,
                // Where a mapped file can't be removed, the next sweep finds it unmapped.
                Err(error) => tracing::debug!(path = %entry.path().display(), %error, "a compiled module stays"),
            }
        }
        Ok(freed)
    }
}

/// Digest and fingerprint of an artifact or what lies beside it, by the file's name.
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
    // and files there are only ever replaced by rename, never written in place. wasmtime itself checks its version
    // and settings in the artifact's header.
    unsafe {
        match kind {
            CodeKind::Component => Ok(Code::Component(Component::deserialize_file(engine, path)?)),
            CodeKind::Module => Ok(Code::Module(Module::deserialize_file(engine, path)?)),
        }
    }
}

/// Where what a plugin offers lies, beside its code.
pub(crate) fn description_path(artifact: &Path) -> PathBuf {
    beside(artifact, ".plugin")
}

/// Where an artifact's checksum lies, beside it.
pub(crate) fn sum_path(artifact: &Path) -> PathBuf {
    beside(artifact, ".sum")
}

fn beside(artifact: &Path, suffix: &str) -> PathBuf {
    let mut path = artifact.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Removes what lies beside an artifact that was not adopted, whole or in part.
pub(crate) struct Beside(PathBuf);

impl Beside {
    pub(crate) fn of(artifact: &Path) -> Self {
        Self(artifact.to_owned())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // What is beside an adopted one lies elsewhere.
        let _ = std::fs::remove_file(description_path(&self.0));
        let _ = std::fs::remove_file(sum_path(&self.0));
    }
}

#[cfg(unix)]
fn free_bytes(dir: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(dir).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_dir: &Path) -> Option<u64> {
    None
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

//! Compiled modules of other nodes: one is looked for before a compilation, and this node's are read for others
//! (docs/decisions/0115-compiled-modules.md).
//!
//! Compiled code runs with all rights of this process. A [`CompiledSource`] must return what a trusted node has signed.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use super::Engine;
use super::aot::{self, CompanionFiles};
use super::compile::Key;
use super::load::CodeKind;

/// Maximum bytes of a compiled module: some eight times the largest module.
pub const COMPILED_BYTES_MAX: u64 = 1 << 30;
/// Maximum bytes of a plugin's description beside its compiled module: schemas have at most 16 MiB, the rest much less.
pub const DESCRIPTION_BYTES_MAX: u64 = 32 << 20;

/// Identifies a compiled module: the source's digest, and the engine's settings, version and CPU features.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CompiledName {
    digest: String,
    fingerprint: String,
}

impl CompiledName {
    /// `digest`: 64 hexadecimal digits, with or without `sha256:`; `fingerprint`: 16 of them. `None` for anything else, as a
    /// name is part of a path.
    #[must_use]
    pub fn new(digest: &str, fingerprint: &str) -> Option<Self> {
        let digest = digest.strip_prefix("sha256:").unwrap_or(digest);
        let is_hex = |text: &str, length| {
            text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        };
        let is_valid = is_hex(digest, 64) && is_hex(fingerprint, 16);
        is_valid.then(|| Self { digest: digest.to_owned(), fingerprint: fingerprint.to_owned() })
    }

    /// The SHA-256 of the source module, in hexadecimal digits.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Identifies wasmtime's version, the settings and the CPU features.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

/// A compiled module of this node.
#[derive(Debug)]
pub struct CompiledModule {
    /// The artifact, open at its start.
    pub file: std::fs::File,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256 after the compilation, in hexadecimal digits.
    pub sum: String,
    /// A plugin's description.
    pub description: Option<Vec<u8>>,
}

/// What belongs to an artifact that was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchedModule {
    /// The signed SHA-256 of the artifact, in hexadecimal digits.
    pub sum: String,
    /// A plugin's signed description.
    pub description: Option<Vec<u8>>,
}

/// Compiled modules of other nodes.
#[async_trait]
pub trait CompiledSource: Send + Sync {
    /// Looks for a compiled module, and writes its artifact to the existing file `into`; at most [`COMPILED_BYTES_MAX`]. `None`
    /// if no trusted node has it, within a bounded time.
    async fn fetch(&self, name: &CompiledName, into: &Path) -> Option<FetchedModule>;
}

impl Engine {
    /// Sets the source that is queried before each compilation. The first one stays.
    pub fn set_compiled_source(&self, source: Arc<dyn CompiledSource>) {
        let _ = self.inner.compiled_source.set(source);
    }

    /// Identifies what artifacts of this engine fit: wasmtime's version, the settings and the CPU features.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.inner.epochs.fingerprint
    }

    /// Opens a compiled module for another node; `None` if there is none. Blocks on the disk.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn compiled_module(&self, name: &CompiledName) -> std::io::Result<Option<CompiledModule>> {
        self.inner.cache.open_module(&name.digest, &name.fingerprint)
    }

    /// Whether the module is cached after a query of other nodes. A second caller waits for the first one's result.
    pub(super) async fn fetch_compiled(&self, key: &Key, kind: CodeKind) -> bool {
        let (Some(source), Some(name)) = (self.inner.compiled_source.get(), CompiledName::new(&key.0, &key.1)) else {
            return false;
        };
        let fetching = self.inner.fetching.of(key);
        let Ok(_fetching) = fetching.try_lock() else {
            drop(fetching.lock().await);
            return self.inner.cache.contains(&key.0, &key.1);
        };
        // Another caller may have fetched it meanwhile.
        if self.inner.cache.contains(&key.0, &key.1) {
            return true;
        }
        match self.fetch_from(&**source, &name, kind).await {
            Ok(is_cached) => is_cached,
            Err(error) => {
                tracing::warn!(digest = %name.digest, %error, "a compiled module of another node is not used");
                false
            }
        }
    }

    async fn fetch_from(
        &self,
        source: &dyn CompiledSource,
        name: &CompiledName,
        kind: CodeKind,
    ) -> std::io::Result<bool> {
        self.inner.cache.check_space()?;
        let out = self.inner.cache.scratch()?;
        let companions = CompanionFiles::of(out.path());
        let Some(fetched) = source.fetch(name, out.path()).await else { return Ok(false) };
        let (engine, name) = (self.clone(), name.clone());
        let adopt = move || {
            let _companions = companions;
            check(out.path(), &fetched, kind)?;
            std::fs::write(aot::sum_path(out.path()), &fetched.sum)?;
            if let Some(description) = &fetched.description {
                std::fs::write(aot::description_path(out.path()), description)?;
            }
            engine.inner.cache.adopt(&name.digest, &name.fingerprint, out)
        };
        tokio::task::spawn_blocking(adopt).await.map_err(std::io::Error::other)??;
        Ok(true)
    }
}

/// Compares an artifact with its signed checksum and its kind.
fn check(file: &Path, fetched: &FetchedModule, kind: CodeKind) -> std::io::Result<()> {
    if aot::checksum(std::fs::File::open(file)?)? != fetched.sum {
        return Err(std::io::Error::other("its checksum is wrong"));
    }
    let wanted = match kind {
        CodeKind::Component => wasmtime::Precompiled::Component,
        CodeKind::Module => wasmtime::Precompiled::Module,
    };
    match wasmtime::Engine::detect_precompiled_file(file) {
        Ok(Some(found)) if found == wanted => Ok(()),
        _ => Err(std::io::Error::other("it is no compiled module of this kind")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_digits_only() {
        let (digest, fingerprint) = ("0123456789abcdef".repeat(4), "00000000000000ff");
        let name = CompiledName::new(&format!("sha256:{digest}"), fingerprint).unwrap();
        assert_eq!((name.digest(), name.fingerprint()), (digest.as_str(), fingerprint));
        assert_eq!(CompiledName::new(&digest, fingerprint), Some(name));
        for (bad_digest, bad_fingerprint) in [
            (&digest[1..], fingerprint),
            (digest.as_str(), "ff"),
            (&digest.to_uppercase(), fingerprint),
            (&format!("{}/..", &digest[3..]), fingerprint),
            (digest.as_str(), "../../0123456789"),
            ("", ""),
        ] {
            assert_eq!(CompiledName::new(bad_digest, bad_fingerprint), None, "{bad_digest} {bad_fingerprint}");
        }
    }
}

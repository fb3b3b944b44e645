//! The registry's names on disk: the manifests, tags, linked blobs and referrers of each repository. Each is one small
//! file, written durably. Nothing is cached in memory, so a restart changes nothing.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use crate::blobs::{BlobError, BlobStore, remove_durably, write_durably};
use crate::reference::is_sha256;

// Parts of a repository's name begin with a letter or digit, so these can't be mistaken for one.
const MANIFESTS: &str = "_manifests";
const TAGS: &str = "_tags";
const BLOBS: &str = "_blobs";
const REFERRERS: &str = "_referrers";

/// The maximum age of a link when a push finds its blob present. An older link is renewed, so that a collection leaves
/// the push enough time to send its manifest.
const LINK_FRESH_MAX: Duration = Duration::from_secs(600);

/// One repository, whose name has been validated. Methods block on the disk.
pub(super) struct Repository {
    dir: PathBuf,
}

fn encoded(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

fn read(path: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn list(path: &Path) -> io::Result<BTreeSet<String>> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error),
    };
    let mut names = BTreeSet::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        // Unfinished writes begin with a dot.
        if !name.starts_with('.') {
            names.insert(name);
        }
    }
    Ok(names)
}

impl Repository {
    pub(super) fn new(store: &BlobStore, name: &str) -> Self {
        Self { dir: store.repositories().join(name) }
    }

    /// Returns whether anything was ever pushed here.
    pub(super) fn exists(&self) -> bool {
        self.dir.join(MANIFESTS).is_dir() || self.dir.join(BLOBS).is_dir()
    }

    /// Links a blob, or renews its link.
    pub(super) fn link_blob(&self, digest: &str, now: Timestamp) -> io::Result<()> {
        let path = self.dir.join(BLOBS).join(encoded(digest));
        if age(&path, now).is_some_and(|age| age < LINK_FRESH_MAX) { Ok(()) } else { write_durably(&path, b"") }
    }

    /// Returns whether a push may rely on this blob from now on.
    pub(super) fn offer_blob(&self, digest: &str, now: Timestamp) -> io::Result<bool> {
        if self.dir.join(BLOBS).join(encoded(digest)).exists() {
            return self.link_blob(digest, now).map(|()| true);
        }
        Ok(self.has_blob(digest))
    }

    pub(super) fn has_blob(&self, digest: &str) -> bool {
        self.dir.join(BLOBS).join(encoded(digest)).exists() || self.dir.join(MANIFESTS).join(encoded(digest)).exists()
    }

    pub(super) fn unlink_blob(&self, digest: &str) -> io::Result<bool> {
        remove_durably(&self.dir.join(BLOBS).join(encoded(digest)))
    }

    /// Returns a tag's digest.
    pub(super) fn tag(&self, tag: &str) -> io::Result<Option<String>> {
        read(&self.dir.join(TAGS).join(tag))
    }

    pub(super) fn tags(&self) -> io::Result<BTreeSet<String>> {
        list(&self.dir.join(TAGS))
    }

    pub(super) fn put_tag(&self, tag: &str, digest: &str) -> io::Result<()> {
        write_durably(&self.dir.join(TAGS).join(tag), digest.as_bytes())
    }

    pub(super) fn delete_tag(&self, tag: &str) -> io::Result<bool> {
        remove_durably(&self.dir.join(TAGS).join(tag))
    }

    /// Returns a manifest's media type if it belongs to this repository.
    pub(super) fn manifest(&self, digest: &str) -> io::Result<Option<String>> {
        read(&self.dir.join(MANIFESTS).join(encoded(digest)))
    }

    pub(super) fn put_manifest(&self, digest: &str, media_type: &str) -> io::Result<()> {
        write_durably(&self.dir.join(MANIFESTS).join(encoded(digest)), media_type.as_bytes())
    }

    /// Removes a manifest, its tags, and its entry among its subject's referrers.
    pub(super) fn delete_manifest(&self, digest: &str, subject: Option<&str>) -> io::Result<bool> {
        for tag in self.tags()? {
            if self.tag(&tag)?.as_deref() == Some(digest) {
                self.delete_tag(&tag)?;
            }
        }
        if let Some(subject) = subject {
            remove_durably(&self.dir.join(REFERRERS).join(encoded(subject)).join(encoded(digest)))?;
        }
        remove_durably(&self.dir.join(MANIFESTS).join(encoded(digest)))
    }

    pub(super) fn put_referrer(&self, subject: &str, digest: &str, descriptor: &Value) -> io::Result<()> {
        let path = self.dir.join(REFERRERS).join(encoded(subject)).join(encoded(digest));
        write_durably(&path, descriptor.to_string().as_bytes())
    }

    /// Returns the descriptors of the manifests whose subject is `subject`.
    pub(super) fn referrers(&self, subject: &str) -> io::Result<Vec<Value>> {
        let dir = self.dir.join(REFERRERS).join(encoded(subject));
        let mut all = Vec::new();
        for name in list(&dir)? {
            if let Some(text) = read(&dir.join(name))?
                && let Ok(descriptor) = serde_json::from_str(&text)
            {
                all.push(descriptor);
            }
        }
        Ok(all)
    }
}

/// Returns every repository that has a manifest, in order.
pub(super) fn catalog(store: &BlobStore) -> io::Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    walk(&store.repositories(), String::new(), &mut |name, dir| {
        if !list(&dir.join(MANIFESTS))?.is_empty() {
            all.insert(name.to_owned());
        }
        Ok(())
    })?;
    Ok(all)
}

/// Returns the digests of all blobs and manifests that a repository refers to.
pub fn referenced(store: &BlobStore) -> io::Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    walk(&store.repositories(), String::new(), &mut |_, dir| {
        for kind in [BLOBS, MANIFESTS] {
            all.extend(list(&dir.join(kind))?.into_iter().map(|hex| format!("sha256:{hex}")));
        }
        Ok(())
    })?;
    Ok(all)
}

/// Drops links older than `age_max` to blobs that no manifest of their repository names: they are of deleted manifests
/// and abandoned pushes.
pub fn unlink_unreferenced(store: &BlobStore, now: Timestamp, age_max: Duration) -> Result<(), BlobError> {
    walk(&store.repositories(), String::new(), &mut |_, dir| {
        let links = list(&dir.join(BLOBS))?;
        if links.is_empty() {
            return Ok(());
        }
        // Prevents new manifests from relying on a link meanwhile.
        let _alone = store.unlinking();
        let mut named = BTreeSet::new();
        for manifest in list(&dir.join(MANIFESTS))? {
            let bytes = store.read(&format!("sha256:{manifest}"), super::manifests::MANIFEST_BYTES_MAX as u64);
            let Some(manifest) = bytes.ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok()) else {
                // An unreadable manifest may name any blob.
                tracing::warn!(repository = %dir.display(), manifest, "the manifest cannot be read: its repository is not collected");
                return Ok(());
            };
            digests(&manifest, &mut named);
        }
        for link in links {
            let path = dir.join(BLOBS).join(&link);
            if !named.contains(&link) && age(&path, now).is_some_and(|age| age > age_max) {
                remove_durably(&path)?;
            }
        }
        Ok(())
    })?;
    Ok(())
}

/// Collects every digest in a manifest, at any position.
fn digests(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::String(text) if is_sha256(text) => {
            found.insert(encoded(text).to_owned());
        }
        Value::Array(items) => items.iter().for_each(|item| digests(item, found)),
        Value::Object(fields) => fields.values().for_each(|field| digests(field, found)),
        _ => {}
    }
}

/// Returns the age of a file; `None` if it is absent.
fn age(path: &Path, now: Timestamp) -> Option<Duration> {
    let written = Timestamp::try_from(path.metadata().ok()?.modified().ok()?).ok()?;
    Some(Duration::try_from(now.duration_since(written)).unwrap_or_default())
}

fn walk(dir: &Path, name: String, visit: &mut dyn FnMut(&str, &Path) -> io::Result<()>) -> io::Result<()> {
    if !name.is_empty() {
        visit(&name, dir)?;
    }
    for part in list(dir)? {
        let path = dir.join(&part);
        // A name has at most 255 bytes, so the router's check bounds the depth.
        if !part.starts_with('_') && path.is_dir() {
            walk(&path, if name.is_empty() { part } else { format!("{name}/{part}") }, visit)?;
        }
    }
    Ok(())
}

//! Images as archives: an OCI layout in a tar (as written by skopeo, podman, crane and docker), or docker's older form.
//! An archive is untrusted: everything in it is bounded, and each blob is checked against the digest in its name.
//! Blocks on the disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, Write};

use serde::Deserialize;
use serde_json::json;

use super::manifest::{Descriptor, OCI_MANIFEST, Refusal};
use super::session::MANIFEST_BYTES_MAX;
use super::tar_layer::{check_extended, parts, unreadable};
use oci_registry::blobs::{BLOB_BYTES_MAX, BlobError, BlobStore, Pins, digest};
use oci_registry::reference::is_sha256;

/// Maximum entries of an archive: the blobs of a few images.
const ENTRIES_MAX: usize = 10_000;
/// Maximum images of an archive.
pub(super) const IMAGES_MAX: usize = 64;
/// Maximum bytes of an archive's small documents together (manifests, configs, indexes). They are held in memory during
/// the read.
const DOCUMENTS_BYTES_MAX: u64 = 32 << 20;
/// Annotations with an image's name: containerd's full name, and OCI's, which may be a tag alone.
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// An error while an archive is read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArchiveError {
    /// The archive is invalid.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The disk failed, or a blob doesn't match its digest.
    #[error(transparent)]
    Blob(#[from] BlobError),
}

/// The content of an archive, whose blobs are in the store.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Names, where the archive has them, with manifests or indexes.
    pub(super) images: Vec<(Option<String>, String)>,
    /// Small blobs by digest, manifests among them.
    pub(super) documents: BTreeMap<String, Vec<u8>>,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

/// An image in docker's older form.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

fn refusal(why: impl Into<String>) -> ArchiveError {
    Refusal::Malformed(why.into()).into()
}

/// Reads the whole archive and stores its blobs.
pub(super) fn read(archive: &mut File, store: &BlobStore, pins: &Pins) -> Result<Contents, ArchiveError> {
    rewind(archive)?;
    check_extended(&mut tar::Archive::new(BufReader::new(&mut *archive)))?;
    let (mut index, mut saved, mut contents, mut left) = (None, None, Contents::default(), DOCUMENTS_BYTES_MAX);
    for_each_file(archive, &mut |name, entry, size| {
        match name {
            "index.json" => index = Some(read_document(entry, &mut left)?),
            "manifest.json" => saved = Some(read_document(entry, &mut left)?),
            name => {
                let hex = name.strip_prefix("blobs/sha256/").map(|hex| format!("sha256:{hex}"));
                let Some(digest) = hex.filter(|digest| is_sha256(digest)) else { return Ok(()) };
                if size <= MANIFEST_BYTES_MAX && size <= left {
                    contents.documents.insert(digest.clone(), read_document(entry, &mut left)?);
                }
                // A document is stored as a blob, too: it may be a config.
                match contents.documents.get(&digest) {
                    Some(bytes) => store_blob(&mut bytes.as_slice(), Some(digest), store, pins)?,
                    None => store_blob(entry, Some(digest), store, pins)?,
                };
            }
        }
        Ok(())
    })?;
    match (index, saved) {
        (Some(index), _) => contents.images = parse_index(&index)?,
        (None, Some(saved)) => docker_images(&saved, archive, store, pins, &mut contents)?,
        (None, None) => {
            return Err(refusal("the archive has neither index.json (OCI) nor manifest.json (docker save)"));
        }
    }
    if contents.images.len() > IMAGES_MAX {
        return Err(Refusal::TooLarge(format!("an archive of more than {IMAGES_MAX} images")).into());
    }
    Ok(contents)
}

fn rewind(archive: &mut File) -> Result<(), ArchiveError> {
    archive.rewind().map_err(|error| BlobError::Io(error).into())
}

/// A callback for a file of an archive: name, content, size in bytes.
type FileVisitor<'a> = &'a mut dyn FnMut(&str, &mut dyn Read, u64) -> Result<(), ArchiveError>;

/// Calls `visit` for every file of the archive.
fn for_each_file(archive: &mut File, visit: FileVisitor<'_>) -> Result<(), ArchiveError> {
    rewind(archive)?;
    let mut tar = tar::Archive::new(BufReader::new(archive));
    for (number, entry) in tar.entries().map_err(|error| unreadable(&error))?.enumerate() {
        if number > ENTRIES_MAX {
            return Err(Refusal::TooLarge(format!("an archive of more than {ENTRIES_MAX} entries")).into());
        }
        let mut entry = entry.map_err(|error| unreadable(&error))?;
        let path = entry.path().map_err(|error| unreadable(&error))?.into_owned();
        if let Some(name) = parts(&path).filter(|_| entry.header().entry_type().is_file()) {
            let size = entry.size();
            visit(&name.join("/"), &mut entry, size)?;
        }
    }
    Ok(())
}

fn read_document(entry: &mut dyn Read, left: &mut u64) -> Result<Vec<u8>, ArchiveError> {
    let max = MANIFEST_BYTES_MAX.min(*left);
    let mut bytes = Vec::new();
    entry.take(max + 1).read_to_end(&mut bytes).map_err(|error| unreadable(&error))?;
    *left = left.saturating_sub(bytes.len() as u64);
    if bytes.len() as u64 > max {
        return Err(Refusal::TooLarge(format!("a document of more than {max} bytes")).into());
    }
    Ok(bytes)
}

fn store_blob(
    entry: &mut dyn Read,
    wanted: Option<String>,
    store: &BlobStore,
    pins: &Pins,
) -> Result<String, ArchiveError> {
    let mut writer = store.writer(BLOB_BYTES_MAX)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match entry.read(&mut buffer).map_err(|error| unreadable(&error))? {
            0 => break,
            read => writer.write(&buffer[..read])?,
        }
    }
    let Some(wanted) = wanted else { return Ok(writer.commit_any(store, pins)?) };
    pins.add(&wanted);
    writer.commit(store, &wanted)?;
    Ok(wanted)
}

fn parse_index(bytes: &[u8]) -> Result<Vec<(Option<String>, String)>, ArchiveError> {
    let index: Index = serde_json::from_slice(bytes).map_err(|error| refusal(format!("index.json: {error}")))?;
    let named = index.manifests.into_iter().map(|child| {
        let name = NAME_ANNOTATIONS.iter().find_map(|name| child.annotations.get(*name));
        // A tag alone is no image name.
        (name.filter(|name| name.contains(['/', ':'])).cloned(), child.digest)
    });
    Ok(named.collect())
}

/// Builds a manifest for docker's older form, which has none.
fn docker_images(
    bytes: &[u8],
    archive: &mut File,
    store: &BlobStore,
    pins: &Pins,
    contents: &mut Contents,
) -> Result<(), ArchiveError> {
    let images: Vec<DockerImage> =
        serde_json::from_slice(bytes).map_err(|error| refusal(format!("manifest.json: {error}")))?;
    let mut blobs: BTreeMap<String, Option<(String, bool)>> = BTreeMap::new();
    blobs.extend(
        images.iter().flat_map(|image| image.layers.iter().chain([&image.config])).map(|name| (name.clone(), None)),
    );
    for_each_file(archive, &mut |name, entry, _| {
        if let Some(found) = blobs.get_mut(name) {
            let mut head = Vec::new();
            (&mut *entry).take(2).read_to_end(&mut head).map_err(|error| unreadable(&error))?;
            let is_gzip = head == [0x1f, 0x8b];
            let mut whole = head.as_slice().chain(entry);
            *found = Some((store_blob(&mut whole, None, store, pins)?, is_gzip));
        }
        Ok(())
    })?;
    let described = |name: &String, kinds: [&str; 2]| {
        let found = blobs.get(name).and_then(Option::as_ref);
        let (digest, is_gzip) = found.ok_or_else(|| refusal(format!("{name:?} is not in the archive")))?;
        let size = store.size(digest).unwrap_or_default();
        Ok::<_, ArchiveError>(json!({"mediaType": kinds[usize::from(*is_gzip)], "digest": digest, "size": size}))
    };
    for image in &images {
        let config = "application/vnd.docker.container.image.v1+json";
        let layer =
            ["application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.diff.tar.gzip"];
        let layers = image.layers.iter().map(|name| described(name, layer)).collect::<Result<Vec<_>, _>>()?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described(&image.config, [config, config])?, "layers": layers,
        });
        let manifest = manifest.to_string().into_bytes();
        let of = digest(&manifest);
        contents.documents.insert(of.clone(), manifest);
        let names = image.repo_tags.clone().unwrap_or_default();
        let names = if names.is_empty() { vec![None] } else { names.into_iter().map(Some).collect() };
        contents.images.extend(names.into_iter().map(|name| (name, of.clone())));
    }
    Ok(())
}

/// Writes an image, whose manifest is in the store, as an OCI layout under `name`.
pub(super) fn write(name: &str, manifest: &str, store: &BlobStore, to: &mut dyn Write) -> Result<(), ArchiveError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ManifestEntry {
        #[serde(default)]
        media_type: Option<String>,
        config: Descriptor,
        #[serde(default)]
        layers: Vec<Descriptor>,
    }
    let bytes = store.read(manifest, MANIFEST_BYTES_MAX)?;
    let named: ManifestEntry = serde_json::from_slice(&bytes).map_err(|error| refusal(error.to_string()))?;
    let media_type = named.media_type.unwrap_or_else(|| OCI_MANIFEST.to_owned());
    let annotations: BTreeMap<&str, &str> = NAME_ANNOTATIONS.map(|key| (key, name)).into();
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{"mediaType": media_type, "digest": manifest, "size": bytes.len(), "annotations": annotations}],
    });
    let mut tar = tar::Builder::new(to);
    let io = |error: io::Error| ArchiveError::Blob(BlobError::Io(error));
    let mut add = |name: &str, size: u64, from: &mut dyn Read| {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, from).map_err(io)
    };
    for (name, text) in [("oci-layout", json!({"imageLayoutVersion": "1.0.0"})), ("index.json", index)] {
        let text = text.to_string().into_bytes();
        add(name, text.len() as u64, &mut text.as_slice())?;
    }
    let blobs = named.layers.iter().chain([&named.config]).map(|blob| blob.digest.as_str()).chain([manifest]);
    for digest in blobs.collect::<std::collections::BTreeSet<_>>() {
        let file = File::open(store.path(digest)?).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        add(&format!("blobs/{}", digest.replace(':', "/")), size, &mut BufReader::new(file))?;
    }
    tar.finish().map_err(io)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn store() -> (tempfile::TempDir, Arc<BlobStore>) {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(BlobStore::open(dir.path()).unwrap());
        (dir, store)
    }

    fn archive(files: &[(&str, &[u8])]) -> File {
        let mut builder = tar::Builder::new(tempfile::tempfile().unwrap());
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn read_archive(files: &[(&str, &[u8])]) -> Result<Contents, String> {
        let (_dir, store) = store();
        read(&mut archive(files), &store, &store.pins()).map_err(|error| error.to_string())
    }

    #[test]
    fn written_archives_are_readable() {
        let (_dir, from) = store();
        let pins = from.pins();
        let (config, layer) = (b"{}".to_vec(), b"layer".to_vec());
        let described = |bytes: &[u8]| json!({"mediaType": "x", "digest": digest(bytes), "size": bytes.len()});
        let manifest = json!({"config": described(&config), "layers": [described(&layer), described(&layer)]});
        let manifest = manifest.to_string().into_bytes();
        for blob in [&config, &layer, &manifest] {
            pins.add(&from.put(blob).unwrap());
        }
        let mut file = tempfile::tempfile().unwrap();
        write("a.io/b:v1", &digest(&manifest), &from, &mut file).unwrap();
        let (_dir, to) = store();
        let contents = read(&mut file, &to, &to.pins()).unwrap();
        assert_eq!(contents.images, [(Some("a.io/b:v1".to_owned()), digest(&manifest))]);
        assert_eq!(contents.documents[&digest(&manifest)], manifest);
        assert!([&config, &layer].iter().all(|blob| to.size(&digest(blob)).is_some()));
    }

    #[test]
    fn dockers_older_form_is_read() {
        let saved =
            br#"[{"Config": "c.json", "RepoTags": ["b:v1", "b:v2"], "Layers": ["1/layer.tar", "2/layer.tar"]}]"#;
        let files: [(&str, &[u8]); 4] =
            [("manifest.json", saved), ("c.json", b"{}"), ("1/layer.tar", b"t"), ("2/layer.tar", b"\x1f\x8bz")];
        let contents = read_archive(&files).unwrap();
        let names: Vec<_> = contents.images.iter().map(|(name, _)| name.as_deref().unwrap()).collect();
        assert_eq!(names, ["b:v1", "b:v2"]);
        let manifest: serde_json::Value = serde_json::from_slice(&contents.documents[&contents.images[0].1]).unwrap();
        assert_eq!(manifest["config"]["digest"], digest(b"{}"));
        let kinds: Vec<_> =
            manifest["layers"].as_array().unwrap().iter().map(|layer| layer["mediaType"].as_str().unwrap()).collect();
        assert!(kinds[0].ends_with(".tar") && kinds[1].ends_with(".tar.gzip"), "{kinds:?}");
        assert!(read_archive(&files[..3]).unwrap_err().contains("\"2/layer.tar\" is not in the archive"));
    }

    #[test]
    fn broken_archives_have_a_reason() {
        let blob = format!("blobs/sha256/{}", "0".repeat(64));
        for (files, says) in [
            (&[("x", &b"y"[..])][..], "neither index.json"),
            (&[("index.json", b"{")], "index.json: "),
            (&[("manifest.json", b"[{}]")], "manifest.json: "),
            (&[("index.json", b"{}"), (&blob, b"another")], "digest"),
        ] {
            let error = read_archive(files).unwrap_err();
            assert!(error.contains(says), "{says}: {error}");
        }
        let large = vec![b' '; MANIFEST_BYTES_MAX as usize + 1];
        assert!(read_archive(&[("index.json", &large)]).unwrap_err().contains("too large"));
        let tag =
            br#"{"manifests": [{"digest": "d", "annotations": {"org.opencontainers.image.ref.name": "latest"}}]}"#;
        assert_eq!(read_archive(&[("index.json", tag)]).unwrap().images, [(None, "d".to_owned())]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2000), index in "[\\[\\]{}a-z\":,]{0,40}") {
            let (_dir, store) = store();
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            let _ = read(&mut file, &store, &store.pins());
            let _ = read_archive(&[("index.json", index.as_bytes())]);
            let _ = read_archive(&[("manifest.json", index.as_bytes())]);
        }
    }
}

//! Parses a manifest for a volume: the layers of a container image, one over the other, or the blobs of an artifact as
//! files (KEP-4639). Pure.

use serde::{Deserialize, Serialize};

use super::manifest::{Compression, Descriptor, LISTED_MAX, Manifest, Refusal, check_layers, short};
use super::tar_layer::parts;

/// The annotation with the name of an artifact's blob (OCI image specification).
const TITLE: &str = "org.opencontainers.image.title";

/// The content that a layer adds to a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// Packed files.
    Tar(Compression),
    /// A file of that name.
    File(String),
}

/// A layer of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeLayer {
    /// Its blob.
    pub digest: String,
    /// The blob's content.
    pub content: Content,
}

/// How a manifest is processed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum VolumePlan {
    /// A volume of these layers.
    Layers { config: Descriptor, layers: Vec<(Descriptor, VolumeLayer)> },
    /// An index: continue with this child.
    Child(Descriptor),
}

/// Parses a manifest for a machine of that architecture, in Go's words.
pub(super) fn plan(bytes: &[u8], architecture: &str) -> Result<VolumePlan, Refusal> {
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(|error| Refusal::Malformed(error.to_string()))?;
    if let Some(children) = manifest.manifests {
        return choose(children, architecture).map(VolumePlan::Child);
    }
    let Some(config) = manifest.config else {
        return Err(Refusal::Malformed("it has neither a config nor manifests".into()));
    };
    check_layers(&manifest.layers)?;
    let layers = manifest.layers.into_iter().map(|layer| {
        let digest = layer.digest.clone();
        let content = match Compression::of_tar(&layer.media_type) {
            Some(compression) => Content::Tar(compression),
            None => Content::File(file_name(&layer)?),
        };
        Ok((layer, VolumeLayer { digest, content }))
    });
    Ok(VolumePlan::Layers { config, layers: layers.collect::<Result<_, _>>()? })
}

/// Returns the blob's title, or its digest if it has none.
fn file_name(layer: &Descriptor) -> Result<String, Refusal> {
    let Some(title) = layer.annotations.get(TITLE).filter(|title| !title.is_empty()) else {
        return Ok(layer.digest.replace(':', "-"));
    };
    match parts(std::path::Path::new(title)) {
        Some(name) if !name.is_empty() && title.len() <= 4096 => Ok(name.join("/")),
        _ => Err(Refusal::Layers(format!("the title {:?} leads out of the volume", short(title)))),
    }
}

/// Prefers WebAssembly's child, then this machine's, then one without a platform.
fn choose(children: Vec<Descriptor>, architecture: &str) -> Result<Descriptor, Refusal> {
    let (mut own, mut plain, mut found) = (None, None, Vec::new());
    for child in children {
        match &child.platform {
            Some(platform) if platform.is_wasm() => return Ok(child),
            // Attestations of a builder.
            Some(platform) if platform.os == "unknown" => {}
            Some(platform) if platform.os == "linux" && platform.architecture == architecture => {
                own = own.or(Some(child));
            }
            Some(platform) => found.push(format!("{}/{}", short(&platform.os), short(&platform.architecture))),
            None => plain = plain.or(Some(child)),
        }
    }
    own.or(plain).ok_or_else(|| {
        found.sort();
        found.dedup();
        found.truncate(LISTED_MAX);
        let found = if found.is_empty() { "none at all".into() } else { found.join(", ") };
        Refusal::NoPlatform { wanted: format!("linux/{architecture}"), found }
    })
}

/// Returns this machine's architecture in Go's words, as used in indexes.
pub(super) fn own_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::manifest::LAYERS_MAX;
    use super::*;

    fn layer(media_type: &str, title: Option<&str>) -> Value {
        let annotations = title.map_or_else(|| json!({}), |title| json!({TITLE: title}));
        let digest = format!("sha256:{}", "0".repeat(64));
        json!({"mediaType": media_type, "digest": digest, "size": 1, "annotations": annotations})
    }

    fn contents(layers: Vec<Value>) -> Result<Vec<Content>, String> {
        let config = json!({"mediaType": "application/vnd.oci.empty.v1+json", "digest": "d"});
        let manifest = json!({"config": config, "layers": layers});
        match plan(manifest.to_string().as_bytes(), "amd64") {
            Ok(VolumePlan::Layers { layers, .. }) => Ok(layers.into_iter().map(|(_, layer)| layer.content).collect()),
            other => Err(other.unwrap_err().to_string()),
        }
    }

    #[test]
    fn layers_are_folders_or_files() {
        let file = |name: &str| Content::File(name.to_owned());
        let found = contents(vec![
            layer("application/vnd.oci.image.layer.v1.tar+zstd", Some("ignored")),
            layer("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", None),
            layer("application/vnd.docker.image.rootfs.diff.tar", None),
            layer("application/octet-stream", Some("/weights//model.gguf")),
            layer("text/plain", None),
        ]);
        let digest = format!("sha256-{}", "0".repeat(64));
        let tars = [Compression::Zstd, Compression::Gzip, Compression::None].map(Content::Tar);
        assert_eq!(found.unwrap(), [&tars[..], &[file("weights/model.gguf"), file(&digest)]].concat());
        for title in ["../x", "a/../../x", "/", ".."] {
            let error = contents(vec![layer("text/plain", Some(title))]).unwrap_err();
            assert!(error.contains("leads out of the volume"), "{title}: {error}");
        }
        let mut large = layer("text/plain", None);
        large["size"] = json!(u64::MAX);
        assert!(contents(vec![large.clone(), large]).unwrap_err().contains("too large"));
        assert!(contents(vec![layer("text/plain", None); LAYERS_MAX + 1]).unwrap_err().contains("513 layers"));
    }

    #[test]
    fn an_index_gives_this_machines_image() {
        let child = |os: &str, architecture: &str, size: u64| {
            let mut child = layer("application/vnd.oci.image.manifest.v1+json", None);
            child["platform"] = json!({"os": os, "architecture": architecture});
            child["size"] = json!(size);
            child
        };
        let chosen = |children: Vec<Value>| match plan(json!({"manifests": children}).to_string().as_bytes(), "arm64") {
            Ok(VolumePlan::Child(child)) => Ok(child.size),
            other => Err(other.unwrap_err().to_string()),
        };
        let (amd, arm) = (child("linux", "amd64", 1), child("linux", "arm64", 2));
        assert_eq!(chosen(vec![amd.clone(), arm.clone(), child("wasi", "wasm", 3)]), Ok(3));
        assert_eq!(chosen(vec![amd.clone(), arm]), Ok(2));
        let error = chosen(vec![amd, child("unknown", "unknown", 4)]).unwrap_err();
        assert_eq!(error, "its index has no image for wasi/wasm nor for linux/arm64: linux/amd64");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = plan(&bytes, "amd64");
        }
    }
}

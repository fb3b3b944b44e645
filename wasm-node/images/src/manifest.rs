//! Parses manifests, and selects the parts that this node runs. Pure: bytes in; a plan, or the reason for rejection,
//! out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The CNCF layout's config type.
pub(crate) const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
/// The CNCF layout's layer type.
pub(crate) const WASM_LAYER: &str = "application/wasm";
/// Manifest of an image.
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// A Spin application: the locked application is the artifact's config or, since Spin 2, a layer of an image.
const SPIN_APPLICATION: &str = "application/vnd.fermyon.spin.application.v1+config";
/// Layer types that are a module: the CNCF layout's, and those of older tools (Spin and wasm-to-oci, wash, runwasi).
const MODULE_LAYERS: [&str; 4] = [
    WASM_LAYER,
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.module.wasm.content.layer.v1+wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
];
/// Config types of artifacts that are one module, besides the CNCF layout's: wasm-to-oci's and wash's.
const OLDER_MODULE_CONFIGS: [&str; 2] =
    ["application/vnd.wasm.config.v1+json", "application/vnd.wasmcloud.actor.archive.config"];
/// The manifest types of a pull's `Accept` header.
pub(crate) const ACCEPTED: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX];
/// Maximum layers of an image: Spin gives each file of an application its own, up to 500 (the limit of the smallest
/// registries).
pub(super) const LAYERS_MAX: usize = 512;
/// Maximum bytes of all layers together, by the sizes in the manifest.
const LAYERS_BYTES_MAX: u64 = 2 << 30;
/// Maximum platforms that an error lists.
pub(super) const LISTED_MAX: usize = 8;

/// A reference to a blob.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    #[serde(default)]
    pub(crate) size: u64,
    #[serde(default)]
    pub(super) platform: Option<Platform>,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Default)]
pub(super) struct Platform {
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    pub(super) architecture: String,
}

impl Platform {
    pub(super) fn is_wasm(&self) -> bool {
        is_wasm(&self.os, &self.architecture)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Manifest {
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    pub(super) config: Option<Descriptor>,
    #[serde(default)]
    pub(super) layers: Vec<Descriptor>,
    #[serde(default)]
    pub(super) manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    pub(super) annotations: Option<BTreeMap<String, String>>,
}

/// How a manifest is processed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// This layer is the module; `is_image` = the config is a container image's.
    Module { config: Descriptor, layer: Descriptor, is_image: bool },
    /// A Spin application, whose document describes these layers.
    Spin { application: Descriptor, layers: Vec<Descriptor> },
    /// A container image, whose config selects the module.
    Image { config: Descriptor, layers: Vec<Layer> },
    /// An index: continue with this child.
    Child(Descriptor),
}

/// A layer of a container image.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) descriptor: Descriptor,
    pub(crate) compression: Compression,
}

/// The compression of a layer's tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// No compression.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    /// Returns the compression of a layer that is a tar; `None` for other layers.
    pub(super) fn of_tar(media_type: &str) -> Option<Self> {
        let oci = media_type.strip_prefix("application/vnd.oci.image.layer.");
        let oci = oci.map(|rest| rest.strip_prefix("nondistributable.").unwrap_or(rest));
        match (oci, media_type) {
            (Some("v1.tar"), _) | (_, "application/vnd.docker.image.rootfs.diff.tar") => Some(Self::None),
            (Some("v1.tar+gzip"), _) | (_, "application/vnd.docker.image.rootfs.diff.tar.gzip") => Some(Self::Gzip),
            (Some("v1.tar+zstd"), _) | (_, "application/vnd.docker.image.rootfs.diff.tar.zstd") => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Why an image isn't run, with what was found instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not a manifest.
    #[error("not an image manifest: {0}")]
    Malformed(String),
    /// An image for Linux or another system.
    #[error(
        "the image is built for {found}, not for WebAssembly, so it can't run here (README, \"deploy your own module\", \
         shows how to build and push one)"
    )]
    Platform {
        /// `linux/amd64` and the like.
        found: String,
    },
    /// The media types are of no supported layout.
    #[error(
        "{what}: found config {config:?} with layers {layers}; taken are {WASM_CONFIG:?} with one {WASM_LAYER:?} layer, \
         FROM scratch images whose entrypoint is a .wasm file, and Spin applications of one component (README, \"deploy \
         your own module\")"
    )]
    Layout {
        /// A short description.
        what: &'static str,
        /// The config's type.
        config: String,
        /// The layers' types.
        layers: String,
    },
    /// A scratch image whose entrypoint isn't a module.
    #[error("the image's entrypoint {found} is no .wasm file of its layers (README, \"deploy your own module\")")]
    Entrypoint {
        /// The entrypoint, or what is wrong with it.
        found: String,
    },
    /// A layer that can't be read, or exceeds a bound.
    #[error("the image's layers can't be read: {0}")]
    Layers(String),
    /// A volume's index has images for other platforms only.
    #[error("its index has no image for wasi/wasm nor for {wanted}: {found}")]
    NoPlatform {
        /// This machine's platform.
        wanted: String,
        /// The platforms in the index.
        found: String,
    },
    /// A Spin application that needs more than one HTTP component.
    #[error("the Spin application can't run here: {0}")]
    Spin(String),
    /// A size above its bound.
    #[error("the image is too large: {0}")]
    TooLarge(String),
}

impl Refusal {
    /// Returns whether the image may be valid although it can't be run.
    pub(super) fn is_no_module(&self) -> bool {
        matches!(self, Self::Platform { .. } | Self::Layout { .. } | Self::Entrypoint { .. })
    }
}

pub(super) fn is_wasm(os: &str, architecture: &str) -> bool {
    let (os, architecture) = (os.to_ascii_lowercase(), architecture.to_ascii_lowercase());
    os.starts_with("wasi") && matches!(architecture.as_str(), "wasm" | "wasm32")
}

/// Parses a manifest.
pub(crate) fn plan(bytes: &[u8]) -> Result<Plan, Refusal> {
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(|error| Refusal::Malformed(error.to_string()))?;
    if let Some(children) = manifest.manifests {
        return choose(children).map(Plan::Child);
    }
    let Some(config) = manifest.config else {
        return Err(Refusal::Malformed("it has neither a config nor manifests".into()));
    };
    let layers = manifest.layers;
    check_layers(&layers)?;
    let layout =
        |what| Refusal::Layout { what, config: config_type(&config, &manifest.artifact_type), layers: types(&layers) };
    let is_module = |layer: &Descriptor| MODULE_LAYERS.contains(&layer.media_type.as_str());
    match config.media_type.as_str() {
        WASM_CONFIG => match layers.as_slice() {
            [layer] if is_module(layer) => Ok(Plan::Module { layer: layer.clone(), config, is_image: false }),
            [_] => Err(layout("the one layer of a Wasm artifact must be a module")),
            _ => Err(layout("a Wasm artifact has exactly one layer")),
        },
        older if OLDER_MODULE_CONFIGS.contains(&older) => match layers.as_slice() {
            [layer] if is_module(layer) => Ok(Plan::Module { layer: layer.clone(), config, is_image: false }),
            _ => Err(layout("an artifact of this type has exactly one layer, a module")),
        },
        SPIN_APPLICATION => Ok(Plan::Spin { application: config, layers }),
        OCI_CONFIG | DOCKER_CONFIG => {
            if let Some(at) = layers.iter().position(|layer| layer.media_type == SPIN_APPLICATION) {
                return Ok(Plan::Spin { application: layers[at].clone(), layers });
            }
            match layers.as_slice() {
                [layer] if is_module(layer) => Ok(Plan::Module { layer: layer.clone(), config, is_image: true }),
                _ => image(&layers, &layout).map(|layers| Plan::Image { config, layers }),
            }
        }
        _ => Err(layout("an artifact of another layout")),
    }
}

/// Checks the number and size of layers against an image's bounds.
pub(super) fn check_layers(layers: &[Descriptor]) -> Result<(), Refusal> {
    if layers.len() > LAYERS_MAX {
        return Err(Refusal::TooLarge(format!("{} layers, at most {LAYERS_MAX} are accepted", layers.len())));
    }
    let announced = layers.iter().fold(0u64, |sum, layer| sum.saturating_add(layer.size));
    if announced > LAYERS_BYTES_MAX {
        let text = format!("its layers have {announced} bytes, at most {LAYERS_BYTES_MAX} are accepted");
        return Err(Refusal::TooLarge(text));
    }
    Ok(())
}

/// Returns the layers of a container image with their compression.
fn image(layers: &[Descriptor], layout: &dyn Fn(&'static str) -> Refusal) -> Result<Vec<Layer>, Refusal> {
    let read = |layer: &Descriptor| match Compression::of_tar(&layer.media_type) {
        Some(compression) => Ok(Layer { descriptor: layer.clone(), compression }),
        None if MODULE_LAYERS.contains(&layer.media_type.as_str()) => {
            Err(layout("a module as a layer must be the only layer"))
        }
        None => Err(layout("an artifact of another layout")),
    };
    layers.iter().map(read).collect()
}

fn config_type(config: &Descriptor, artifact_type: &Option<String>) -> String {
    match artifact_type {
        Some(artifact_type) => format!("{} (artifact type {artifact_type})", short(&config.media_type)),
        None => short(&config.media_type),
    }
}

fn types(layers: &[Descriptor]) -> String {
    if layers.is_empty() {
        return "none".into();
    }
    let mut all: Vec<String> =
        layers.iter().take(LISTED_MAX).map(|layer| format!("{:?}", short(&layer.media_type))).collect();
    if layers.len() > LISTED_MAX {
        all.push("…".into());
    }
    all.join(", ")
}

pub(super) fn short(text: &str) -> String {
    text.chars().take(120).collect()
}

/// Selects an index's child for WebAssembly. If there is none, it selects one whose config may still name a module: a
/// scratch image built without a platform is labelled with the builder's.
fn choose(children: Vec<Descriptor>) -> Result<Descriptor, Refusal> {
    let mut found = Vec::new();
    let (mut plain, mut linux) = (None, None);
    for child in children {
        match &child.platform {
            Some(platform) if platform.is_wasm() => return Ok(child),
            // Attestations of a builder.
            Some(platform) if platform.os == "unknown" => {}
            Some(platform) => {
                found.push(format!("{}/{}", short(&platform.os), short(&platform.architecture)));
                if platform.os == "linux" {
                    linux = linux.or(Some(child));
                }
            }
            // An artifact or a nested index has no platform.
            None => plain = plain.or(Some(child)),
        }
    }
    found.sort();
    found.dedup();
    match (plain, linux) {
        (Some(child), _) if found.is_empty() => Ok(child),
        // An index of several systems without WebAssembly is never a scratch image of a module.
        (_, Some(child)) if found.len() == 1 => Ok(child),
        _ => {
            found.truncate(LISTED_MAX);
            let found = if found.is_empty() { "no platform at all".into() } else { found.join(", ") };
            Err(Refusal::Platform { found })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn descriptor(media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": format!("sha256:{}", "0".repeat(64)), "size": 1})
    }

    fn check(manifest: &Value) -> Result<Plan, String> {
        plan(manifest.to_string().as_bytes()).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn layouts() {
        let wasm = json!({"config": descriptor(WASM_CONFIG), "layers": [descriptor(WASM_LAYER)]});
        assert!(matches!(check(&wasm), Ok(Plan::Module { .. })));
        for (kind, packed) in
            [("tar", Compression::None), ("tar+gzip", Compression::Gzip), ("tar+zstd", Compression::Zstd)]
        {
            let layer = descriptor(&format!("application/vnd.oci.image.layer.v1.{kind}"));
            let image = json!({"config": descriptor(OCI_CONFIG), "layers": [layer]});
            assert!(
                matches!(check(&image), Ok(Plan::Image { layers, .. }) if layers[0].compression == packed),
                "{kind}"
            );
        }
        for (config, layer, as_image) in [
            ("application/vnd.wasm.config.v1+json", MODULE_LAYERS[1], false),
            ("application/vnd.wasmcloud.actor.archive.config", MODULE_LAYERS[2], false),
            (OCI_CONFIG, MODULE_LAYERS[3], true),
        ] {
            let older = json!({"config": descriptor(config), "layers": [descriptor(layer)]});
            assert!(matches!(check(&older), Ok(Plan::Module { is_image, .. }) if is_image == as_image), "{config}");
        }
        for config in [SPIN_APPLICATION, OCI_CONFIG] {
            let layers = [descriptor(MODULE_LAYERS[1]), descriptor(SPIN_APPLICATION)];
            let spin = json!({"config": descriptor(config), "layers": layers});
            assert!(
                matches!(check(&spin), Ok(Plan::Spin { application, .. }) if application.media_type == SPIN_APPLICATION)
            );
        }
        for (manifest, says) in [
            (
                json!({"config": descriptor(WASM_CONFIG), "layers": [descriptor(WASM_LAYER), descriptor(WASM_LAYER)]}),
                "exactly one layer",
            ),
            (
                json!({"config": descriptor(WASM_CONFIG), "layers": [descriptor("application/x-tar")]}),
                "application/x-tar",
            ),
            (
                json!({"config": descriptor("application/vnd.oci.empty.v1+json"), "artifactType": "application/vnd.unknown.artifact.v1", "layers": [descriptor("text/plain")]}),
                "text/plain",
            ),
            (
                json!({"config": descriptor(OCI_CONFIG), "layers": [descriptor(MODULE_LAYERS[1]), descriptor(WASM_LAYER)]}),
                "only layer",
            ),
            (json!({}), "neither"),
            (json!([]), "not an image manifest"),
        ] {
            let error = check(&manifest).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn an_index_is_chosen_from_by_platform() {
        let child = |os: &str, architecture: &str, n: u64| {
            let mut child = descriptor(OCI_MANIFEST);
            child["platform"] = json!({"os": os, "architecture": architecture});
            child["size"] = json!(n);
            child
        };
        let index = json!({"manifests": [child("linux", "amd64", 1), child("unknown", "unknown", 2), child("wasip1", "wasm32", 3)]});
        let Ok(Plan::Child(chosen)) = check(&index) else { panic!("no child") };
        assert_eq!(chosen.size, 3);
        let linux = json!({"manifests": [child("linux", "arm64", 1), child("linux", "amd64", 1), child("unknown", "unknown", 2)]});
        let error = check(&linux).unwrap_err();
        assert!(error.contains("linux/amd64, linux/arm64") && error.contains("deploy your own module"), "{error}");
        // Built without a platform: its config decides whether it is a module.
        let builders = json!({"manifests": [child("linux", "amd64", 7), child("unknown", "unknown", 2)]});
        assert!(matches!(check(&builders), Ok(Plan::Child(chosen)) if chosen.size == 7));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = plan(&bytes);
        }
    }
}

//! What a manifest is, and what of it this node runs. Pure: bytes in, a plan or the reason against it out.

use serde::Deserialize;

/// The CNCF layout's config type.
pub const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
/// The CNCF layout's layer type.
pub const WASM_LAYER: &str = "application/wasm";
/// Manifest of an image.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Everything that a pull says it accepts.
pub(crate) const ACCEPTED: [&str; 4] = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX];
/// Layers of an image; the scratch images seen have one to three.
const LAYERS_MAX: usize = 64;
/// Platforms that an error lists.
const LISTED_MAX: usize = 8;

/// Points at a blob.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    #[serde(default)]
    pub(crate) size: u64,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Default)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

impl Platform {
    fn is_wasm(&self) -> bool {
        is_wasm(&self.os, &self.architecture)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
}

/// What to do with a manifest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// The CNCF layout: this layer is the module.
    Module { config: Descriptor, layer: Descriptor },
    /// A container image: its config decides.
    Image { config: Descriptor, layers: Vec<Layer> },
    /// An index: go on with this child.
    Child(Descriptor),
}

/// A layer of a container image.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) descriptor: Descriptor,
    pub(crate) compression: Compression,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
}

/// Why an image isn't run: what was found instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not a manifest.
    #[error("not an image manifest: {0}")]
    Malformed(String),
    /// A Linux image, or one of another system.
    #[error(
        "the image is built for {found}, not for WebAssembly, so it can't run here (README, \"deploy your own module\", \
         shows how to build and push one)"
    )]
    Platform {
        /// `linux/amd64` and the like.
        found: String,
    },
    /// Media types of no layout that is read.
    #[error(
        "{what}: found config {config:?} with layers {layers}; taken are {WASM_CONFIG:?} with one {WASM_LAYER:?} layer, \
         and FROM scratch images whose entrypoint is a .wasm file (README, \"deploy your own module\")"
    )]
    Layout {
        /// In a few words.
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
    /// A layer that can't be read, or a hostile one.
    #[error("the image's layers can't be read: {0}")]
    Layers(String),
    /// Over a bound.
    #[error("the image is too large: {0}")]
    TooLarge(String),
}

fn is_wasm(os: &str, architecture: &str) -> bool {
    let (os, architecture) = (os.to_ascii_lowercase(), architecture.to_ascii_lowercase());
    os.starts_with("wasi") && matches!(architecture.as_str(), "wasm" | "wasm32")
}

/// Reads a manifest.
pub(crate) fn plan(bytes: &[u8]) -> Result<Plan, Refusal> {
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(|error| Refusal::Malformed(error.to_string()))?;
    if let Some(children) = manifest.manifests {
        return choose(children).map(Plan::Child);
    }
    let Some(config) = manifest.config else {
        return Err(Refusal::Malformed("it has neither a config nor manifests".into()));
    };
    let layers = manifest.layers;
    if layers.len() > LAYERS_MAX {
        return Err(Refusal::TooLarge(format!("{} layers, at most {LAYERS_MAX} are taken", layers.len())));
    }
    let layout =
        |what| Refusal::Layout { what, config: config_type(&config, &manifest.artifact_type), layers: types(&layers) };
    match config.media_type.as_str() {
        WASM_CONFIG => match layers.as_slice() {
            [layer] if layer.media_type == WASM_LAYER => {
                let layer = layer.clone();
                Ok(Plan::Module { config, layer })
            }
            [_] => Err(layout("the one layer of a Wasm artifact must be a module")),
            _ => Err(layout("a Wasm artifact has exactly one layer")),
        },
        OCI_CONFIG | DOCKER_CONFIG => {
            let mut read = Vec::with_capacity(layers.len());
            for layer in &layers {
                let compression = match layer.media_type.as_str() {
                    "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
                        Compression::None
                    }
                    "application/vnd.oci.image.layer.v1.tar+gzip"
                    | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Compression::Gzip,
                    "application/vnd.oci.image.layer.v1.tar+zstd" => {
                        return Err(layout("layers compressed with zstd are not read by this version"));
                    }
                    kind if kind.contains("fermyon") || kind.contains("vnd.wasm.content") => {
                        return Err(layout("a Spin application is not run by this version"));
                    }
                    _ => return Err(layout("an artifact of another layout")),
                };
                read.push(Layer { descriptor: layer.clone(), compression });
            }
            Ok(Plan::Image { config, layers: read })
        }
        _ => Err(layout("an artifact of another layout")),
    }
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

fn short(text: &str) -> String {
    text.chars().take(120).collect()
}

fn choose(children: Vec<Descriptor>) -> Result<Descriptor, Refusal> {
    let mut found = Vec::new();
    let mut fallback = None;
    for child in children {
        match &child.platform {
            Some(platform) if platform.is_wasm() => return Ok(child),
            // Attestations of a builder.
            Some(platform) if platform.os == "unknown" => {}
            Some(platform) => found.push(format!("{}/{}", short(&platform.os), short(&platform.architecture))),
            // An artifact or a nested index says nothing of platforms.
            None => fallback = fallback.or(Some(child)),
        }
    }
    match fallback {
        Some(child) if found.is_empty() => Ok(child),
        _ => {
            found.sort();
            found.dedup();
            found.truncate(LISTED_MAX);
            let found = if found.is_empty() { "no platform at all".into() } else { found.join(", ") };
            Err(Refusal::Platform { found })
        }
    }
}

/// What a container image's config says of running it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ImageConfig {
    /// The module's path in the layers, no leading slash.
    pub(crate) module: String,
    pub(crate) argv: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) working_dir: Option<String>,
}

#[derive(Deserialize, Default)]
struct RawConfig {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    config: Option<RawRun>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct RawRun {
    #[serde(default)]
    entrypoint: Option<Vec<String>>,
    #[serde(default)]
    cmd: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<String>>,
    #[serde(default)]
    working_dir: Option<String>,
}

/// Reads a container image's config: a module where its argv[0] is one, else what it is built for.
pub(crate) fn image_config(bytes: &[u8]) -> Result<ImageConfig, Refusal> {
    let raw: RawConfig =
        serde_json::from_slice(bytes).map_err(|error| Refusal::Malformed(format!("its config: {error}")))?;
    let run = raw.config.unwrap_or_default();
    let argv: Vec<String> = run.entrypoint.into_iter().flatten().chain(run.cmd.into_iter().flatten()).collect();
    let is_module = argv.first().is_some_and(|first| first.ends_with(".wasm"));
    if !is_module && !is_wasm(&raw.os, &raw.architecture) {
        return Err(Refusal::Platform { found: format!("{}/{}", short(&raw.os), short(&raw.architecture)) });
    }
    let Some(first) = argv.first() else { return Err(Refusal::Entrypoint { found: "(none)".into() }) };
    if !is_module {
        return Err(Refusal::Entrypoint { found: format!("{:?}", short(first)) });
    }
    let working_dir = run.working_dir.filter(|dir| !dir.is_empty());
    // A relative argv[0] is looked up where the image starts.
    let module = match (&working_dir, first.starts_with('/')) {
        (Some(dir), false) => format!("{}/{first}", dir.trim_matches('/')),
        _ => first.clone(),
    };
    let env = run.env.into_iter().flatten();
    let env = env.filter_map(|pair| pair.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()))).collect();
    Ok(ImageConfig { module, argv, env, working_dir })
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
        let gzip = descriptor("application/vnd.oci.image.layer.v1.tar+gzip");
        let image = json!({"config": descriptor(OCI_CONFIG), "layers": [gzip]});
        assert!(matches!(check(&image), Ok(Plan::Image { .. })));
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
                json!({"config": descriptor(OCI_CONFIG), "layers": [descriptor("application/vnd.wasm.content.layer.v1+wasm")]}),
                "Spin",
            ),
            (
                json!({"config": descriptor(OCI_CONFIG), "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+zstd")]}),
                "zstd",
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
    }

    #[test]
    fn configs() {
        let config = |os: &str, run: Value| {
            image_config(
                json!({"os": os, "architecture": if os == "linux" {"amd64"} else {"wasm"}, "config": run})
                    .to_string()
                    .as_bytes(),
            )
        };
        let read = config(
            "wasi",
            json!({"Entrypoint": ["/app.wasm"], "Cmd": ["x"], "Env": ["A=1=2", "bad"], "WorkingDir": "/w"}),
        )
        .unwrap();
        assert_eq!(read.argv, ["/app.wasm", "x"]);
        assert_eq!(read.env, [("A".to_owned(), "1=2".to_owned())]);
        assert_eq!(
            config("linux", json!({"Entrypoint": ["app.wasm"], "WorkingDir": "/w"})).unwrap().module,
            "w/app.wasm"
        );
        assert_eq!(
            config("linux", json!({"Entrypoint": ["/bin/sh"]})).unwrap_err(),
            Refusal::Platform { found: "linux/amd64".into() }
        );
        assert_eq!(config("wasi", json!({})).unwrap_err(), Refusal::Entrypoint { found: "(none)".into() });
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = plan(&bytes);
            let _ = image_config(&bytes);
        }
    }
}

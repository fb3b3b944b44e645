//! Spin applications: selects the part of a locked application (Spin's `spin_locked_app`) that runs here. That is one
//! HTTP component that is a layer of the artifact, with its files. Other requirements of an application are named and
//! rejected. Pure.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::image_config::ImageConfig;
use super::manifest::{Compression, Descriptor, Refusal, short};
use super::tar_layer::parts;
use super::volume_manifest::Content;

/// The layer type of an archive with all files of an application. Spin writes it if they are too many for layers of
/// their own.
const ARCHIVE: &str = "application/vnd.wasm.content.bundle.v1.tar+gzip";
/// Maximum files of an application that are not in an archive.
const FILES_MAX: usize = 1024;

/// The part of an application that is run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Component {
    /// The layer of its module.
    pub(crate) module: Descriptor,
    /// The content of its root folder.
    pub(crate) assets: Vec<Asset>,
    pub(crate) run: ImageConfig,
}

/// Files of an application.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asset {
    /// A layer of the artifact.
    Layer(Descriptor, Content),
    /// Small files are embedded in the application itself.
    Inline(Vec<u8>, Content),
}

#[derive(Deserialize)]
struct Application<'a> {
    #[serde(default)]
    triggers: Vec<Trigger>,
    #[serde(default, borrow)]
    components: Vec<LockedComponent<'a>>,
}

#[derive(Deserialize)]
struct Trigger {
    #[serde(default)]
    trigger_type: String,
}

/// Spin's `LockedComponent`.
#[derive(Deserialize)]
struct LockedComponent<'a> {
    #[serde(default)]
    id: String,
    source: ComponentSource,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    files: Vec<ContentPath>,
    /// Only presence counts, not the values.
    #[serde(default, borrow)]
    config: BTreeMap<String, &'a RawValue>,
    #[serde(default, borrow)]
    dependencies: BTreeMap<String, &'a RawValue>,
}

#[derive(Deserialize)]
struct ComponentSource {
    #[serde(default)]
    digest: Option<String>,
}

/// A file.
#[derive(Deserialize)]
struct ContentPath {
    #[serde(default)]
    digest: Option<String>,
    /// Base64.
    #[serde(default)]
    inline: Option<String>,
    #[serde(default)]
    path: String,
}

/// Selects the component to run, and its layers of the artifact.
pub(crate) fn component(bytes: &[u8], layers: &[Descriptor]) -> Result<Component, Refusal> {
    let application: Application<'_> = serde_json::from_slice(bytes)
        .map_err(|error| Refusal::Malformed(format!("its locked Spin application: {error}")))?;
    if let Some(other) = application.triggers.iter().find(|trigger| trigger.trigger_type != "http") {
        return Err(Refusal::Spin(format!("it has a trigger of type {:?}, only http is", short(&other.trigger_type))));
    }
    let [component] = application.components.as_slice() else {
        let count = application.components.len();
        return Err(Refusal::Spin(format!("it has {count} components, and a container is one: push each of its own")));
    };
    let unsupported = [
        (!component.config.is_empty(), "variables (give the container env instead)"),
        (!component.dependencies.is_empty(), "dependencies (compose the component before pushing it)"),
    ];
    if let Some((_, what)) = unsupported.iter().find(|(is_used, _)| *is_used) {
        return Err(Refusal::Spin(format!("its component {:?} wants {what}", short(&component.id))));
    }
    let digest = component.source.digest.as_deref().unwrap_or_default();
    let module = layers.iter().find(|layer| layer.digest == digest);
    let module = module.ok_or_else(|| Refusal::Spin("its component is no layer of the artifact".into()))?;
    let assets = assets(&component.files, layers)?;
    let env = component.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let argv = vec![component.id.clone()];
    Ok(Component { module: module.clone(), assets, run: ImageConfig { argv, env, ..ImageConfig::default() } })
}

/// Returns a component's files: packed together, or one by one.
fn assets(files: &[ContentPath], layers: &[Descriptor]) -> Result<Vec<Asset>, Refusal> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let archives = layers.iter().filter(|layer| layer.media_type == ARCHIVE);
    let archives: Vec<Asset> =
        archives.map(|layer| Asset::Layer(layer.clone(), Content::Tar(Compression::Gzip))).collect();
    if !archives.is_empty() {
        return Ok(archives);
    }
    if files.len() > FILES_MAX {
        return Err(Refusal::TooLarge(format!("{} files, at most {FILES_MAX} are accepted", files.len())));
    }
    files.iter().map(|file| asset(file, layers)).collect()
}

fn asset(file: &ContentPath, layers: &[Descriptor]) -> Result<Asset, Refusal> {
    let name = parts(Path::new(&file.path)).filter(|name| !name.is_empty());
    let Some(name) = name else {
        return Err(Refusal::Layers(format!("the file {:?} leads out of the application", short(&file.path))));
    };
    let content = Content::File(name.join("/"));
    if let Some(text) = &file.inline {
        let bytes = STANDARD.decode(text);
        let bytes = bytes.map_err(|_| Refusal::Malformed(format!("its file {:?} is not base64", short(&file.path))))?;
        return Ok(Asset::Inline(bytes, content));
    }
    let layer = layers.iter().find(|layer| Some(&layer.digest) == file.digest.as_ref());
    let missing = || Refusal::Spin(format!("its file {:?} is no layer of the artifact", short(&file.path)));
    Ok(Asset::Layer(layer.ok_or_else(missing)?.clone(), content))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const DIGESTS: [&str; 3] = ["sha256:a", "sha256:b", "sha256:c"];

    fn read_of(change: impl FnOnce(&mut Value), media_types: &[&str]) -> Result<Component, String> {
        let mut application = json!({
            "spin_lock_version": 1,
            "triggers": [{"id": "trigger--web", "trigger_type": "http", "trigger_config": {"component": "web", "route": "/..."}}],
            "components": [{"id": "web", "metadata": {}, "source": {"content_type": "application/wasm", "digest": DIGESTS[0]}, "env": {"A": "b"}}],
        });
        change(&mut application);
        let layers: Vec<Descriptor> = media_types
            .iter()
            .zip(DIGESTS)
            .map(|(kind, digest)| {
                serde_json::from_value(json!({"mediaType": kind, "digest": digest, "size": 1})).unwrap()
            })
            .collect();
        component(application.to_string().as_bytes(), &layers).map_err(|refusal| refusal.to_string())
    }

    fn read(change: impl FnOnce(&mut Value)) -> Result<Component, String> {
        read_of(change, &["m", "application/vnd.wasm.content.layer.v1+data"])
    }

    #[test]
    fn one_http_component_is_run_and_the_rest_named() {
        let Component { module, assets, run } = read(|_| {}).unwrap();
        assert_eq!((module.digest.as_str(), assets), (DIGESTS[0], Vec::new()));
        assert_eq!((run.argv, run.env), (vec!["web".to_owned()], vec![("A".to_owned(), "b".to_owned())]));
        type Change = fn(&mut Value);
        let cases: [(Change, &str); 9] = [
            (|app| app["triggers"][0]["trigger_type"] = json!("redis"), "\"redis\""),
            (|app| app["components"] = json!([]), "0 components"),
            (|app| app["components"][0]["config"] = json!({"a": "{{ b }}"}), "variables"),
            (|app| app["components"][0]["source"]["digest"] = json!("sha256:d"), "no layer"),
            (|app| app["components"] = json!(1), "not an image manifest"),
            (|app| app["components"][0]["files"] = json!([{"path": "../a", "digest": "sha256:b"}]), "leads out"),
            (|app| app["components"][0]["files"] = json!([{"path": "a", "digest": "sha256:d"}]), "\"a\" is no layer"),
            (|app| app["components"][0]["files"] = json!([{"path": "a", "inline": "%"}]), "not base64"),
            (|app| app["components"][0]["files"] = json!(vec![json!({"path": "a"}); FILES_MAX + 1]), "1025 files"),
        ];
        for (change, says) in cases {
            let error = read(change).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn files_come_as_layers_in_the_application_or_in_an_archive() {
        let files = json!([
            {"content_type": "x", "digest": "sha256:b", "path": "/site/index.html"},
            {"digest": "sha256:unsent", "inline": "aGVsbG8=", "path": "./site/a"},
        ]);
        let with_files = |app: &mut Value| app["components"][0]["files"] = files.clone();
        let assets = read(with_files).unwrap().assets;
        let [Asset::Layer(layer, content), Asset::Inline(bytes, inline)] = assets.as_slice() else {
            panic!("{assets:?}")
        };
        assert_eq!((layer.digest.as_str(), content), ("sha256:b", &Content::File("site/index.html".into())));
        assert_eq!((bytes.as_slice(), inline), (&b"hello"[..], &Content::File("site/a".into())));
        let packed = read_of(with_files, &["m", ARCHIVE]).unwrap().assets;
        let [Asset::Layer(layer, Content::Tar(Compression::Gzip))] = packed.as_slice() else { panic!("{packed:?}") };
        assert_eq!(layer.digest, "sha256:b");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = component(&bytes, &[]);
        }
    }
}

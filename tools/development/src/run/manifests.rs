//! Kubernetes manifests of `coracle run -f`: their objects, and the images in them that are files. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::objects::name_of;

/// Maximum objects of a file: each one is a request, and its workload is waited for.
const OBJECTS_MAX: usize = 1000;
/// Maximum distinct files that images name: each one is read and pushed.
const FILES_MAX: usize = 64;

/// The objects of a file, and the images of them that are files.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Manifests {
    pub(super) objects: Vec<Value>,
    /// The files of images as the manifests name them, each with a name for its image.
    pub(super) files: BTreeMap<String, String>,
}

impl Manifests {
    /// Reads the documents of a stream, and the items of lists in them.
    ///
    /// # Errors
    /// A document is no object of Kubernetes, or there are too many.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut objects = Vec::new();
        for (index, document) in documents(text).enumerate() {
            let document = document.strip_prefix('\u{feff}').unwrap_or(document);
            if document.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
                continue;
            }
            let wrong = |why: String| format!("document {}: {why}", index + 1);
            let object: Value = machinery_api::yaml::read(document).map_err(wrong)?;
            match object["kind"].as_str() {
                Some(kind) if kind.ends_with("List") && object["items"].is_array() => {
                    let Value::Array(items) = object["items"].clone() else { continue };
                    objects.extend(items);
                }
                _ if object.is_null() => continue,
                _ => objects.push(object),
            }
            if objects.len() > OBJECTS_MAX {
                return Err(format!("there are more than {OBJECTS_MAX} objects"));
            }
        }
        for object in &objects {
            for field in ["/apiVersion", "/kind", "/metadata/name"] {
                if object.pointer(field).and_then(Value::as_str).is_none_or(str::is_empty) {
                    let of = object["kind"].as_str().unwrap_or("an object");
                    return Err(format!("{of} has no {}", field[1..].replace('/', ".")));
                }
            }
        }
        if objects.is_empty() {
            return Err("there is no object".into());
        }
        let files = files(&mut objects)?;
        Ok(Self { objects, files })
    }

    /// Replaces the images that are files.
    pub(super) fn replace_images(&mut self, images: &BTreeMap<String, String>) {
        for image in self.objects.iter_mut().flat_map(images_mut) {
            if let Some(reference) = image.as_str().and_then(|file| images.get(file)) {
                *image = reference.clone().into();
            }
        }
    }
}

/// The documents of a stream: the texts between lines that begin with `---`, as kubectl splits manifests.
fn documents(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let all = rest.take()?;
        let mut at = 0;
        for line in all.split_inclusive('\n') {
            if line.strip_prefix("---").is_some_and(|more| more.trim().is_empty() || more.starts_with([' ', '\t'])) {
                rest = Some(&all[at + "---".len()..]);
                return Some(&all[..at]);
            }
            at += line.len();
        }
        Some(all)
    })
}

/// The distinct files of images, with names that differ.
fn files(objects: &mut [Value]) -> Result<BTreeMap<String, String>, String> {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for image in objects.iter_mut().flat_map(images_mut) {
        let Some(file) = image.as_str().filter(|image| is_file(image)) else { continue };
        if files.contains_key(file) {
            continue;
        }
        let base = name_of(Path::new(file)).ok_or_else(|| format!("image {file}: its name has no letter"))?;
        let names = std::iter::once(base.clone()).chain((2..).map(|number| format!("{base}-{number}")));
        let free = names.into_iter().find(|name| files.values().all(|other| other != name));
        files.insert(file.to_owned(), free.unwrap_or(base));
        if files.len() > FILES_MAX {
            return Err(format!("more than {FILES_MAX} images are files"));
        }
    }
    Ok(files)
}

/// Whether an image is a path: no reference of an image begins with these.
fn is_file(image: &str) -> bool {
    image.starts_with("./") || image.starts_with("../") || image.starts_with('/')
}

/// The path of an image's file, relative to the folder of its manifest.
pub(super) fn path_of(manifest: &Path, file: &str) -> PathBuf {
    manifest.parent().unwrap_or(Path::new("")).join(file.strip_prefix("./").unwrap_or(file))
}

/// The images of an object's pod template.
fn images_mut(object: &mut Value) -> Vec<&mut Value> {
    let spec = match object["kind"].as_str() {
        Some("Pod") => object.pointer_mut("/spec"),
        Some("CronJob") => object.pointer_mut("/spec/jobTemplate/spec/template/spec"),
        _ => object.pointer_mut("/spec/template/spec"),
    };
    let Some(Value::Object(spec)) = spec else { return Vec::new() };
    let lists = spec.iter_mut().filter(|(name, _)| matches!(name.as_str(), "containers" | "initContainers"));
    let containers = lists.filter_map(|(_, list)| list.as_array_mut()).flatten();
    containers.filter_map(|container| container.get_mut("image")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const APP: &str = "\
# a shop
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  template:
    spec:
      initContainers: [{name: a, image: ./a/app.wasm}]
      containers: [{name: b, image: ./b/app.wasm}, {name: c, image: 'registry.local/c:v1'}, {name: d, image: ./a/app.wasm}]
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: a, image: ../x.wasm}]}}
- {apiVersion: batch/v1, kind: CronJob, metadata: {name: j}, spec: {jobTemplate: {spec: {template: {spec: {containers: [{name: a, image: /y.wasm}]}}}}}}
---
";

    #[test]
    fn images_that_are_paths_are_replaced() {
        let mut app = Manifests::parse(APP).unwrap();
        assert_eq!(app.objects.len(), 3);
        let names: Vec<_> = app.files.iter().map(|(file, name)| (file.as_str(), name.as_str())).collect();
        assert_eq!(names, [("../x.wasm", "x"), ("./a/app.wasm", "app-2"), ("./b/app.wasm", "app"), ("/y.wasm", "y")]);
        let images = app.files.keys().map(|file| (file.clone(), format!("registry.local/{}", file.len()))).collect();
        app.replace_images(&images);
        let text = serde_json::to_string(&app.objects).unwrap();
        assert!(!text.contains(".wasm") && text.contains("registry.local/c:v1"), "{text}");
        assert_eq!(path_of(Path::new("shop/app.yaml"), "./a/app.wasm"), Path::new("shop/a/app.wasm"));
        assert_eq!(path_of(Path::new("app.yaml"), "../x.wasm"), Path::new("../x.wasm"));
        assert_eq!(path_of(Path::new("shop/app.yaml"), "/y.wasm"), Path::new("/y.wasm"));
    }

    #[test]
    fn a_stream_is_split_at_its_separators() {
        let split = |text| documents(text).collect::<Vec<_>>();
        assert_eq!(split("a: 1\n---\nb: 2\n"), ["a: 1\n", "\nb: 2\n"]);
        assert_eq!(split("--- # one\na: '---'\n--- \r\n"), ["", " # one\na: '---'\n", " \r\n"]);
        assert_eq!(split("a: |\n  ---\n  x\n----\n"), ["a: |\n  ---\n  x\n----\n"]);
        assert_eq!(split(""), [""]);
    }

    #[test]
    fn other_documents_are_errors() {
        for (text, why) in [
            ("", "no object"),
            ("---\n# nothing\n", "no object"),
            ("a: [", "document 1"),
            ("apiVersion: v1\nkind: Pod\n", "Pod has no metadata.name"),
            ("apiVersion: v1\nmetadata: {name: x}\n", "an object has no kind"),
            ("- 1", "an object has no apiVersion"),
            ("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{image: ./1.wasm}]}\n", "no letter"),
        ] {
            let error = Manifests::parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        let one = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n";
        let many = vec![one; OBJECTS_MAX + 1].join("---\n");
        assert!(Manifests::parse(&many).unwrap_err().contains("more than 1000"));
        assert_eq!(
            Manifests::parse(&format!("{one}---\nkind: [\n")).unwrap_err().split(':').next(),
            Some("document 2")
        );
    }
}

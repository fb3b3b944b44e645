//! Deploys the objects of a manifest file by server-side apply. Images that are files are pushed first.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use images::delete_pushed;
use machinery_api::ObjectKey;
use machinery_client::Kind;
use machinery_client::request::status_code;
use serde_json::{Value, json};

use super::Deployed;
use super::cluster::Cluster;
use super::manifests::{Manifests, path_of};
use super::module::read;
use super::objects::MANAGER;
use super::readiness::Workload;
use tools_cluster::api_error::api_message;

/// Maximum size of a manifest file: all its objects are in memory.
const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Timeout of a kind that a CustomResourceDefinition of the same file brings.
const KIND_TIME_MAX: Duration = Duration::from_secs(10);
/// Poll interval meanwhile.
const KIND_INTERVAL: Duration = Duration::from_millis(100);

/// A manifest file and what it has deployed.
pub(super) struct Stack {
    file: PathBuf,
    dev: bool,
    kinds: BTreeMap<(String, String), Kind>,
    /// Objects that did not exist before, in the order of their creation.
    created: Vec<(Kind, ObjectKey)>,
    /// Pushed images: name and digest.
    images: BTreeSet<(String, String)>,
    workloads: Vec<Workload>,
    services: Vec<ObjectKey>,
    /// The manifest's module files.
    modules: Vec<PathBuf>,
}

impl Stack {
    pub(super) fn new(file: PathBuf, dev: bool) -> Self {
        Self {
            file,
            dev,
            kinds: BTreeMap::new(),
            created: Vec::new(),
            images: BTreeSet::new(),
            workloads: Vec::new(),
            services: Vec::new(),
            modules: Vec::new(),
        }
    }

    /// The manifest, and the modules that it named last.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        std::iter::once(self.file.clone()).chain(self.modules.iter().cloned()).collect()
    }

    /// Pushes the modules, applies the objects and waits until the workloads are ready.
    pub(super) async fn deploy(&mut self, cluster: &Cluster) -> anyhow::Result<Deployed> {
        let file = self.file.clone();
        let text = tokio::task::spawn_blocking(move || read_text(&file)).await?;
        let text = text.with_context(|| format!("cannot read {}", self.file.display()))?;
        let in_file = |why: String| anyhow::anyhow!("{}: {why}", self.file.display());
        let mut manifests = Manifests::parse(&text).map_err(in_file)?;
        self.modules = manifests.files.keys().map(|file| path_of(&self.file, file)).collect();
        let (mut images, mut pushed) = (BTreeMap::new(), BTreeSet::new());
        for (file, name) in &manifests.files {
            let path = path_of(&self.file, file);
            let module = read(&path, self.dev).await?;
            let digest = cluster.push(&path, module, name).await?.digest;
            images.insert(file.clone(), format!("registry.local/{name}@{digest}"));
            pushed.insert((name.clone(), digest));
        }
        manifests.replace_images(&images);
        cluster.spinner.step(format!("applying {} objects", manifests.objects.len()));
        let first = self.workloads.is_empty();
        let changed = self.apply(cluster, &manifests.objects).await?;
        cluster.spinner.step(format!("waiting for {}", self.file.display()));
        cluster.wait_ready(&self.workloads).await?;
        for (name, digest) in self.images.difference(&pushed) {
            let _ = delete_pushed(&cluster.env, name, digest, &cluster.registry).await;
        }
        self.images = pushed;
        let summary = format!("{} is ready: {} objects", self.file.display(), manifests.objects.len());
        Ok(Deployed { summary, changed, addresses: first })
    }

    /// Prints the addresses of the Services.
    pub(super) async fn print_addresses(&self, cluster: &Cluster) -> anyhow::Result<()> {
        for service in &self.services {
            cluster.print_addresses(&service.namespace, &service.name).await?;
        }
        Ok(())
    }

    /// Deletes the objects that did not exist before, and the images.
    pub(super) async fn clean_up(&self, cluster: &Cluster) -> anyhow::Result<Vec<String>> {
        let mut removed = Vec::new();
        for (kind, key) in self.created.iter().rev() {
            match cluster.objects().delete::<Value>(kind, key, &json!({"propagationPolicy": "Background"})).await {
                Err(error) if status_code(&error) == 404 => {}
                Err(error) => return Err(api_message(error)),
                Ok(_) => removed.push(format!("{}/{}", kind.kind.to_lowercase(), key.name)),
            }
        }
        for (name, digest) in &self.images {
            let _ = delete_pushed(&cluster.env, name, digest, &cluster.registry).await;
        }
        Ok(removed)
    }

    /// Applies the objects in their order. Returns whether one of them has changed.
    async fn apply(&mut self, cluster: &Cluster, objects: &[Value]) -> anyhow::Result<bool> {
        let (mut changed, mut workloads, mut services) = (false, Vec::new(), Vec::new());
        for object in objects {
            let kind = self.kind(cluster, object, objects).await?;
            let namespace = object["metadata"]["namespace"].as_str().unwrap_or(&cluster.namespace);
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let key = ObjectKey::new(if kind.namespaced { namespace } else { "" }, name);
            let label = format!("{} {name}", kind.kind);
            let mut object = object.clone();
            if kind.namespaced {
                object["metadata"]["namespace"] = namespace.into();
            }
            let before = match cluster.objects().get::<Value>(&kind, &key).await {
                Err(error) if status_code(&error) == 404 => None,
                found => Some(found.map_err(api_message).with_context(|| label.clone())?),
            };
            let applied = cluster.apply(&kind, &key, MANAGER, &object).await;
            let applied = applied.map_err(|error| applying(error, &label, &self.file))?;
            if before.is_none() {
                self.created.push((kind.clone(), key.clone()));
            }
            // A status may change meanwhile. Kinds without a generation change with their version.
            let field = if applied["metadata"]["generation"].is_null() { "resourceVersion" } else { "generation" };
            changed |= before.is_none_or(|before| before["metadata"][field] != applied["metadata"][field]);
            if kind.group.is_empty() && kind.kind == "Service" {
                services.push(key.clone());
            }
            workloads.extend(Workload::of(&kind, &key, &applied));
        }
        self.workloads = workloads;
        self.services = services;
        Ok(changed)
    }

    /// The kind of an object, from the server's discovery. A kind of a definition in the same file may come a moment later.
    async fn kind(&mut self, cluster: &Cluster, object: &Value, all: &[Value]) -> anyhow::Result<Kind> {
        let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
        let (version, kind) = (text("apiVersion"), text("kind"));
        let name = (version.clone(), kind.clone());
        if let Some(kind) = self.kinds.get(&name) {
            return Ok(kind.clone());
        }
        let brought = all.iter().any(|other| {
            other["kind"] == "CustomResourceDefinition"
                && other["spec"]["names"]["kind"].as_str() == Some(kind.as_str())
        });
        let until = cluster.env.elapsed() + if brought { KIND_TIME_MAX } else { Duration::ZERO };
        loop {
            if let Some(found) = discover(cluster, &version, &kind).await? {
                self.kinds.insert(name, found.clone());
                return Ok(found);
            }
            if cluster.env.elapsed() >= until {
                bail!("{}: no matches for kind {kind:?} in version {version:?}", self.file.display());
            }
            cluster.env.sleep(KIND_INTERVAL).await;
        }
    }
}

/// The kind in a group version's discovery document; `None` if the server has none.
async fn discover(cluster: &Cluster, version: &str, kind: &str) -> anyhow::Result<Option<Kind>> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '/');
    if !version.chars().all(plain) || version.matches('/').count() > 1 {
        return Ok(None);
    }
    let (group, number) = version.rsplit_once('/').unwrap_or(("", version));
    let path = if group.is_empty() { format!("/api/{number}") } else { format!("/apis/{version}") };
    let list: Value = match cluster.objects().get_path(&path).await {
        Err(error) if status_code(&error) == 404 => return Ok(None),
        list => list.map_err(api_message)?,
    };
    let mut resources = list["resources"].as_array().into_iter().flatten();
    let resource = resources
        .find(|resource| resource["kind"] == kind && resource["name"].as_str().is_some_and(|name| !name.contains('/')));
    Ok(resource.map(|resource| Kind {
        group: group.to_owned().into(),
        version: number.to_owned().into(),
        kind: kind.to_owned().into(),
        plural: resource["name"].as_str().unwrap_or_default().to_owned().into(),
        namespaced: resource["namespaced"] == true,
    }))
}

fn applying(error: kube::Error, label: &str, file: &Path) -> anyhow::Error {
    let conflict = status_code(&error) == 409;
    let error = api_message(error).context(label.to_owned());
    if conflict {
        error.context(format!(
            "another tool owns fields of {}; `kubectl apply --server-side --force-conflicts` takes them over",
            file.display()
        ))
    } else {
        error
    }
}

fn read_text(file: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(file)?.take(MANIFEST_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(std::io::Error::other(format!("it is larger than {} MiB", MANIFEST_BYTES_MAX >> 20)));
    }
    Ok(text)
}

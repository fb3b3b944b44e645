//! Having a pod's image and making its container: what takes time, apart from what decides.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Container as ContainerSpecWire, ImageVolumeSource, Pod, ResourceRequirements, Service,
};
use machinery_api::ObjectKey;
use machinery_client::{EventRecord, reference_to};
use machinery_serve::net::Caller;
use tokio::sync::{OnceCell, Semaphore};
use tokio_util::sync::CancellationToken;

use super::attached::Attached;
use super::compiling::teller;
use super::message::MessageFile;
use super::runner::runner_class;
use super::sandbox::{Lent, SESSIONS_MAX, Sandbox};
use super::session_tmp::SessionTmp;
use super::settings::{Settings, settings};
use super::shared::Shared;
use super::state::{CellEvent, ImageOf};
use super::totals::ImageVolumes;
use super::worker::{Message, happened};
use super::{hosts_file, names};
use crate::config::env_file::{self, FileValues};
use crate::config::environment::{EnvContext, environment, expand};
use crate::config::granted::GrantedConfig;
use crate::config::keyvalue;
use crate::config::pull_secrets;
use crate::config::sources::{Known, SourceKind, named_by_environment};
use crate::config::tokens::AccountOfPod;
use crate::image::compiling::told;
use crate::image::{Image, ImageError, Keyring, PullPolicy, Pulled, Purpose};
use crate::log::ContainerLog;
use crate::mailbox::Sender;
use crate::volume::mounts::{self, MountError};
use crate::volume::paths::{folder, message_folder};
use runtime_api::disk::advice;
use runtime_api::ledger::Ledger;
use runtime_api::pipe::pipe;
use runtime_api::{
    Admitted, Container, ContainerSpec, CpuQuota, Grants, KeyvalueOwner, Kind, LoadError, MemoryFiles, Metering,
    Module, Preopen,
};

/// Upstream's default for `terminationMessagePath`.
const TERMINATION_PATH: &str = "/dev/termination-log";

/// A container that was made and not started.
pub(crate) struct Made {
    pub(crate) container: Arc<dyn Container>,
    /// A command's leave to run.
    pub(crate) admitted: Option<Admitted>,
    pub(crate) log: Arc<ContainerLog>,
    pub(crate) id: String,
    pub(crate) settings: Settings,
    /// What it has of CPU and memory.
    pub(crate) resources: Option<ResourceRequirements>,
    /// Where the guest may leave its last words.
    pub(crate) termination: Option<MessageFile>,
    /// For sessions beside it, for as long as it lives.
    pub(crate) _lent: Lent,
}

/// Variables by name.
type Variables = BTreeMap<String, String>;

/// Why there is no container: reason and message.
pub(crate) type Refused = (&'static str, String);

fn metering(node: &Shared, pod: &Pod, container: &ContainerSpecWire) -> Metering {
    match settings(pod, container, &node.parts.runtime.optional_interfaces()) {
        Ok(settings) if settings.limits.fuel.is_some() => Metering::Fuel,
        _ => Metering::Epochs,
    }
}

/// What a container is made of that registries have.
#[derive(Debug, Clone)]
pub(crate) struct Pulls {
    /// Its own image.
    pub(crate) image: Arc<Image>,
    /// Where its image's own files lie, where it has others than modules.
    pub(crate) root: Option<PathBuf>,
    /// The images that it mounts, by their volume: where they lie, for as long as they are held.
    pub(crate) volumes: Vec<(String, PathBuf, Arc<Image>)>,
}

/// Where the images lie that a container mounts, by their volume.
fn trees(volumes: &[(String, PathBuf, Arc<Image>)]) -> BTreeMap<String, PathBuf> {
    volumes.iter().map(|(name, tree, _)| (name.clone(), tree.clone())).collect()
}

/// Why there is none: whose image, and what is the matter with it.
pub(crate) type Unpulled = (ImageOf, ImageError);

/// Has the images of a container: they are there, or are pulled. `tell` hears when a pull begins.
pub(crate) async fn pull(
    node: &Shared,
    pod: &Arc<Pod>,
    (index, container): (usize, &ContainerSpecWire),
    tell: &Sender<Message>,
) -> Result<(Pulls, String), Unpulled> {
    let own = |error| (ImageOf::Container, error);
    let keyring = keyring(node, pod).await.map_err(own)?;
    let pulling = Pulling { node, pod, keyring, tell, index, container: &container.name };
    let mut volumes = Vec::new();
    for (name, source) in mounted_images(pod, container) {
        let reference = source.reference.clone().unwrap_or_default();
        let of = |error| (ImageOf::Volume(reference.clone()), error);
        let (image, message) = pulling.have(&reference, source.pull_policy.as_deref(), None).await.map_err(of)?;
        let tree = node.parts.images.tree(&image).await.map_err(of)?;
        let _ = tell.send(happened(index, CellEvent::VolumePulled { message })).await;
        volumes.extend(tree.map(|tree| (name.to_owned(), tree, image)));
    }
    let name = container.image.clone().unwrap_or_default();
    let metering = metering(node, pod, container);
    let had = pulling.have(&name, container.image_pull_policy.as_deref(), Some(metering)).await;
    let (image, message) = had.map_err(own)?;
    let root = node.parts.images.tree(&image).await.map_err(own)?;
    Ok((Pulls { image, root, volumes }, message))
}

/// The images that a container mounts, each once.
fn mounted_images<'a>(pod: &'a Pod, container: &ContainerSpecWire) -> Vec<(&'a str, &'a ImageVolumeSource)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let mounts = |name: &str| container.volume_mounts.iter().flatten().any(|mount| mount.name == name);
    let images = volumes.filter_map(|volume| Some((volume.name.as_str(), volume.image.as_ref()?)));
    images.filter(|(name, _)| mounts(name)).collect()
}

/// The pod's credentials; those that can't be had are told.
async fn keyring(node: &Shared, pod: &Arc<Pod>) -> Result<Keyring, ImageError> {
    let secrets = pull_secrets::of(&node.sources, pod).await?;
    if !secrets.missing.is_empty() {
        let message = format!(
            "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
            secrets.missing.join(", ")
        );
        let (reason, about) = ("FailedToRetrieveImagePullSecret", reference_to(&**pod));
        node.recorder.record(EventRecord { about, warning: true, reason, message, source: None });
    }
    let (client, env) = (&node.volumes.requests, &node.parts.env);
    let account = AccountOfPod::new((client.clone(), env.clone()), node.account_tokens.clone(), pod.clone());
    Ok(match account {
        Some(account) => secrets.keyring.with_account(Arc::new(account)),
        None => secrets.keyring,
    })
}

/// Who pulls for which container.
struct Pulling<'a> {
    node: &'a Shared,
    pod: &'a Pod,
    keyring: Keyring,
    tell: &'a Sender<Message>,
    index: usize,
    container: &'a str,
}

impl Pulling<'_> {
    /// The pod's credentials, and whose ServiceAccount it is where providers are told of it: what came for one is for that one.
    async fn known(&self, name: &str) -> Cow<'_, Keyring> {
        let account = self.keyring.account().filter(|_| self.node.parts.images.asks_accounts(name));
        let Some(account) = account else { return Cow::Borrowed(&self.keyring) };
        match account.account().await {
            Ok(account) => Cow::Owned(self.keyring.known_as(account.identity)),
            Err(error) => {
                tracing::warn!(image = name, %error, "failed to get the service account of a pod");
                Cow::Borrowed(&self.keyring)
            }
        }
    }

    /// Has an image, to be run with that metering or, without one, to be mounted; and what to say of it.
    async fn have(
        &self,
        name: &str,
        policy: Option<&str>,
        metering: Option<Metering>,
    ) -> Result<(Arc<Image>, String), ImageError> {
        let images = &self.node.parts.images;
        let policy = match policy {
            Some("Always") => PullPolicy::Always,
            Some("Never") => PullPolicy::Never,
            _ => PullPolicy::IfNotPresent,
        };
        let (purpose, of) = match metering {
            Some(_) => (Purpose::Module, ImageOf::Container),
            None => (Purpose::Volume, ImageOf::Volume(name.to_owned())),
        };
        let keyring = self.known(name).await;
        if let Some(image) = images.decide((name, purpose), policy, &keyring)? {
            let message = format!("Container image {name:?} already present on machine and can be accessed by the pod");
            return Ok((image, message));
        }
        let _ = self.tell.send(happened(self.index, CellEvent::PullBegan { of })).await;
        let env = &self.node.parts.env;
        let began = env.elapsed();
        let namespace = self.pod.metadata.namespace.as_deref().unwrap_or_default();
        let Pulled { image, took } = match metering {
            Some(metering) => {
                let tell = teller(self.node, self.pod, self.container, name);
                images.pull(name, &self.keyring, metering, namespace, &tell).await?
            }
            None => images.pull_volume(name, &self.keyring, namespace).await?,
        };
        let waited = env.elapsed().saturating_sub(began);
        self.node.pods.totals.pulled(image.size_bytes, waited);
        let (took, waited) = (go_duration(took), go_duration(waited));
        let size = image.size_bytes;
        let message = format!(
            "Successfully pulled image {name:?} in {took} ({waited} including waiting). Image size: {size} bytes."
        );
        Ok((image, message))
    }
}

/// The pod that a container is made for.
pub(crate) struct Home {
    pub(crate) pod: Arc<Pod>,
    pub(crate) ip: IpAddr,
    /// What its containers hold of the host together.
    pub(crate) ledger: Arc<Ledger>,
    /// What its containers may use of the CPU together.
    pub(crate) cpu: Arc<CpuQuota>,
    /// The account of its volumes in memory.
    pub(crate) memory_files: Option<Arc<MemoryFiles>>,
    /// Whose keyvalue store its containers have.
    pub(crate) keyvalue: Arc<OnceCell<KeyvalueOwner>>,
}

impl Home {
    /// Whose keyvalue store a container has that is granted that.
    async fn keyvalue_of(
        &self,
        node: &Shared,
        grants: &Grants,
        namespace: &str,
    ) -> Result<Option<KeyvalueOwner>, Refused> {
        keyvalue::granted(grants, &node.client, namespace, &self.keyvalue).await.map_err(config)
    }
}

/// Makes the container.
pub(crate) async fn make(
    node: &Arc<Shared>,
    home: &Home,
    wire: &ContainerSpecWire,
    pulls: &Pulls,
    attempt: u32,
) -> Result<Made, Refused> {
    let made = made(node, home, wire, pulls, attempt).await;
    if !pulls.volumes.is_empty() {
        let is_image = |name: &str| pulls.volumes.iter().any(|(volume, ..)| volume == name);
        let mounts = wire.volume_mounts.iter().flatten().filter(|mount| is_image(&mount.name)).count() as u64;
        let is_unmounted = |(_, message): &Refused| message.starts_with(mounts::IMAGE_VOLUME_MOUNT_FAILED);
        let failed = made.as_ref().err().is_some_and(is_unmounted);
        let (mounted, failed) = if failed { (0, mounts) } else { (mounts, 0) };
        let requested = pulls.volumes.len() as u64;
        node.pods.totals.image_volumes(ImageVolumes { requested, mounted, failed });
    }
    made
}

/// The image's module, as what the container's annotations say that it is. It is compiled already, unless another version of the program
/// or another metering wants it.
async fn loaded(
    node: &Shared,
    image: &Image,
    (settings, container): (&Settings, &ContainerSpecWire),
    metering: Metering,
    pod: &Pod,
) -> Result<Arc<dyn Module>, Refused> {
    let (images, env) = (&node.parts.images, &node.parts.env);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let tell = teller(node, pod, &container.name, container.image.as_deref().unwrap_or_default());
    if !settings.as_command {
        let loading = images.load(image, metering, namespace);
        return told(env, &tell, loading).await.map_err(|error| refused(&error));
    }
    let loading = images.load_command(image, metering, namespace);
    let command = told(env, &tell, loading).await.map_err(|error| refused(&error))?;
    command.ok_or_else(|| config(Settings::no_command(&container.name)))
}

async fn made(
    node: &Arc<Shared>,
    home: &Home,
    wire: &ContainerSpecWire,
    Pulls { image, root, volumes }: &Pulls,
    attempt: u32,
) -> Result<Made, Refused> {
    let (pod, ip) = (&home.pod, home.ip);
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let pod_name = pod.metadata.name.clone().unwrap_or_default();
    let settings = settings(pod, wire, &node.parts.runtime.optional_interfaces()).map_err(config)?;
    let variables = variables(node, pod, wire, ip).await?;
    let metering = if settings.limits.fuel.is_some() { Metering::Fuel } else { Metering::Epochs };
    let loaded = loaded(node, image, (&settings, wire), metering, pod).await?;
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let dir = node.pod_dir(&uid);
    let mut preopens = mounted(node, home, wire, (&dir, attempt), (volumes, &variables))?;
    let runner_class = runner_class(settings.suit(&wire.name, loaded.kind()).map_err(config)?);
    let termination = termination(&dir, wire, attempt, runner_class.leaves_message, &mut preopens).map_err(config)?;
    preopens.extend(image_root(root.as_deref(), &preopens));
    let tmp = SessionTmp::new(node, &uid, (&wire.name, attempt), &preopens);
    let log = log_of(node, &uid, (&wire.name, attempt))?;
    let attached = Arc::new(Attached::new(log.clone()));
    // A server makes an instance for each request, and these read nothing.
    let reads = wire.stdin == Some(true) && loaded.kind() == Kind::Command;
    let (to_stdin, stdin) = if reads { Some(pipe()).unzip() } else { (None, None) };
    let spec = ContainerSpec {
        name: format!("{namespace}/{pod_name}/{}", wire.name),
        argv: argv(wire, image, &variables),
        env: env(names::host_name(pod).map_err(config)?, image, variables),
        cwd: wire.working_dir.clone().filter(|dir| !dir.is_empty()).or_else(|| image.working_dir.clone()),
        preopens,
        limits: settings.limits.clone(),
        config: GrantedConfig::granted(&settings.grants, &node.sources, &namespace, wire),
        keyvalue: home.keyvalue_of(node, &settings.grants, &namespace).await?,
        grants: settings.grants.clone().toolbox(node.parts.images.is_toolbox(&image.module)),
        imports: settings.imports.clone(),
        log: attached.clone(),
        stdin,
        terminal: wire.tty == Some(true),
        pod: home.ledger.clone(),
        pod_cpu: Some(home.cpu.clone()),
        memory_files: home.memory_files.clone(),
        quotas: node.volumes.local.quotas(&uid),
        caller: caller(node, pod, ip),
        dial: Some(node.parts.dial.clone()),
    };
    let container = loaded.container(spec).map_err(|error| refused(&error))?;
    // A command that waits for this is not running yet.
    let admitted = if runner_class.is_admitted { Some(container.admit().await) } else { None };
    let id = container_id(node);
    let sandbox = Sandbox {
        container: container.clone(),
        image: image.clone(),
        images: node.parts.images.clone(),
        metering,
        namespace,
        access: settings.exec,
        gone: CancellationToken::new(),
        attached,
        stdin: Mutex::new(to_stdin),
        stdin_once: wire.stdin_once == Some(true),
        tty: wire.tty == Some(true),
        tmp,
        places: Arc::new(Semaphore::new(SESSIONS_MAX)),
    };
    let lent = node.pods.sandboxes.lend(&uid, &wire.name, sandbox);
    Ok(Made { container, admitted, log, id, settings, resources: wire.resources.clone(), termination, _lent: lent })
}

/// The log of a start.
fn log_of(node: &Shared, uid: &str, (container, attempt): (&str, u32)) -> Result<Arc<ContainerLog>, Refused> {
    let opened = node.logs.open(node.log_path(uid, container, attempt));
    opened.map_err(|error| ("CreateContainerError", format!("the log cannot be written: {error}{}", advice(&error))))
}

/// Who calls when the container calls out.
pub(super) fn caller(node: &Shared, pod: &Pod, ip: IpAddr) -> Caller {
    let text = |text: &Option<String>| Arc::from(text.as_deref().unwrap_or_default());
    Caller {
        node: node.identity.name.as_str().into(),
        namespace: text(&pod.metadata.namespace),
        pod: text(&pod.metadata.name),
        ip: Some(ip),
        names: Arc::new(names::of(pod, ip)),
    }
}

/// A duration as upstream's events have it: whole milliseconds in Go's form (`1m2.3s`, `45ms`).
fn go_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis < 1000 {
        return if millis == 0 { "0s".into() } else { format!("{millis}ms") };
    }
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    let fraction = format!("{:03}", rest % 1000);
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    let seconds = format!("{}{point}{fraction}s", rest / 1000);
    match (minutes / 60, minutes % 60) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

fn config(error: impl std::fmt::Display) -> Refused {
    ("CreateContainerConfigError", error.to_string())
}

/// Images that are volumes: the volume's name, its folder and the image.
type OfImages = [(String, PathBuf, Arc<Image>)];

/// What the container finds open of the pod's volumes.
fn mounted(
    node: &Shared,
    Home { pod, ip, .. }: &Home,
    wire: &ContainerSpecWire,
    run: (&Path, u32),
    (images, variables): (&OfImages, &Variables),
) -> Result<Vec<Preopen>, Refused> {
    let (images, volumes) = (trees(images), &node.volumes);
    let (allowed, local, hosts) = (&volumes.host_paths, &volumes.local, hosts_file::text(pod, *ip));
    let elsewhere = mounts::Elsewhere { images: &images, allowed, local, hosts: hosts.as_deref() };
    let variable = |name: &str| variables.get(name).cloned();
    mounts::preopens(pod, wire, run, &elsewhere, &variable).map_err(unmounted)
}

/// The files of the container's own image, unless a volume takes their place.
fn image_root(tree: Option<&Path>, mounted: &[Preopen]) -> Option<Preopen> {
    let is_taken = mounted.iter().any(|preopen| preopen.guest == "/");
    let host = tree.filter(|_| !is_taken)?.to_owned();
    Some(Preopen { host, sub_paths: Vec::new(), guest: "/".into(), writable: false })
}

fn unmounted(error: MountError) -> Refused {
    let reason = match error {
        MountError::Config(_) => "CreateContainerConfigError",
        MountError::Image(_) => "CreateContainerError",
    };
    (reason, error.to_string())
}

fn container_id(node: &Shared) -> String {
    let mut id = [0u8; 32];
    node.parts.env.fill(&mut id);
    format!("{}://{}", node.parts.runtime.version().0, hex::encode(id))
}

/// The variables that the pod gives the container, from its spec, its sources and the Services of its namespace.
async fn variables(node: &Shared, pod: &Arc<Pod>, wire: &ContainerSpecWire, ip: IpAddr) -> Result<Variables, Refused> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut known = BTreeMap::new();
    for (kind, name) in named_by_environment(wire) {
        match node.sources.get(kind, namespace, &name).read().await {
            Known::Present(content) => {
                known.insert((kind, name), content);
            }
            Known::Failed(error) => return Err(config(format!("failed to sync {} cache: {error}", kind.word()))),
            Known::Missing | Known::Unknown => {}
        }
    }
    node.services.synced().await;
    let services: Vec<Arc<Service>> = node.services.read(|view| {
        let own = view.list::<Service>(namespace).filter_map(|service| {
            let key = ObjectKey::new(namespace, service.metadata.name.clone()?);
            view.get_arc(&key)
        });
        own.chain(view.get_arc(&ObjectKey::new("default", "kubernetes"))).collect()
    });
    let files = file_values(node, pod, wire).await?;
    let lookup = |kind: SourceKind, name: &str| known.get(&(kind, name.to_owned())).cloned();
    let given = EnvContext {
        pod,
        host_ip: node.identity.internal_ip,
        pod_ip: Some(ip),
        allocatable: &node.allocatable,
        services: &services,
        lookup: &lookup,
        files: &files,
    };
    environment(&given, wire).map_err(config)
}

/// What its variables are in files.
async fn file_values(node: &Shared, pod: &Arc<Pod>, wire: &ContainerSpecWire) -> Result<FileValues, Refused> {
    if !wire.env.iter().flatten().any(|of| of.value_from.as_ref().is_some_and(|from| from.file_key_ref.is_some())) {
        return Ok(FileValues::new());
    }
    let dir = node.pod_dir(pod.metadata.uid.as_deref().unwrap_or_default());
    let (pod, wire) = (pod.clone(), wire.clone());
    let read = tokio::task::spawn_blocking(move || {
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let volumes: Vec<&str> = volumes.map(|volume| volume.name.as_str()).collect();
        env_file::read(&|name| folder(&dir, name), &volumes, &wire)
    });
    read.await.map_err(config)?.map_err(config)
}

/// The container's whole environment.
fn env(host_name: String, image: &Image, variables: Variables) -> Vec<(String, String)> {
    // As a container runtime does: the host's name comes first, so that the image and the pod may say otherwise.
    let mut env: Vec<(String, String)> = vec![("HOSTNAME".into(), host_name)];
    env.extend(image.env.clone());
    env.retain(|(name, _)| !variables.contains_key(name));
    env.extend(variables);
    env
}

/// `command` and `args`, or the image's.
fn argv(wire: &ContainerSpecWire, image: &Image, variables: &Variables) -> Vec<String> {
    let expanded = |text: &String| expand(text, &|name| variables.get(name).cloned());
    let given_command = wire.command.as_deref().unwrap_or_default();
    let given_args = wire.args.as_deref().unwrap_or_default();
    let mut argv: Vec<String> = match given_command {
        [] if given_args.is_empty() => image.argv.clone(),
        [] => image.argv.first().cloned().into_iter().collect(),
        command => command.iter().map(expanded).collect(),
    };
    argv.extend(given_args.iter().map(expanded));
    if argv.is_empty() {
        argv.push(wire.name.clone());
    }
    argv
}

fn refused(error: &LoadError) -> Refused {
    match error {
        LoadError::Io { .. } | LoadError::Engine(_) => ("CreateContainerError", error.to_string()),
        _ => ("RunContainerError", error.to_string()),
    }
}

/// Where the guest finds the file of its termination message, and where that lies on the host. `by_default`: also where the
/// pod names none.
fn termination(
    dir: &Path,
    container: &ContainerSpecWire,
    attempt: u32,
    by_default: bool,
    preopens: &mut Vec<Preopen>,
) -> std::io::Result<Option<MessageFile>> {
    let named = container.termination_message_path.as_deref().filter(|path| !path.is_empty());
    let path = named.unwrap_or(TERMINATION_PATH);
    if !by_default && path == TERMINATION_PATH {
        return Ok(None);
    }
    let guest = Path::new(path);
    let (Some(parent), Some(name)) = (guest.parent().and_then(|parent| parent.to_str()), guest.file_name()) else {
        return Ok(None);
    };
    // A volume that is mounted there already takes the file.
    let within = preopens.iter().filter(|preopen| guest.starts_with(&preopen.guest));
    if let Some(preopen) = within.max_by_key(|preopen| preopen.guest.len()) {
        let named = preopen.rest(guest).map(ToOwned::to_owned);
        return Ok(named.map(|name| MessageFile { folder: preopen.clone(), name }));
    }
    let host = message_folder(dir).join(&container.name).join(attempt.to_string());
    std::fs::create_dir_all(&host)?;
    // There from the start, as upstream's, for guests that only append.
    std::fs::write(host.join(name), b"")?;
    let folder = Preopen { host, sub_paths: Vec::new(), guest: parent.to_owned(), writable: true };
    preopens.push(folder.clone());
    Ok(Some(MessageFile { folder, name: name.into() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_files_are_the_root_unless_a_volume_is() {
        let tree = Path::new("/trees/a");
        let root = image_root(Some(tree), &[]).unwrap();
        assert_eq!((root.guest.as_str(), root.host.as_path(), root.writable), ("/", tree, false));
        let below = Preopen { guest: "/data".into(), writable: true, ..root.clone() };
        assert_eq!(image_root(Some(tree), &[below]).as_ref(), Some(&root));
        assert_eq!(image_root(Some(tree), &[root]), None);
    }

    #[test]
    fn durations_are_written_as_gos() {
        for (millis, text) in [
            (0, "0s"),
            (45, "45ms"),
            (1000, "1s"),
            (1230, "1.23s"),
            (62_300, "1m2.3s"),
            (120_000, "2m0s"),
            (3_661_005, "1h1m1.005s"),
        ] {
            assert_eq!(go_duration(Duration::from_millis(millis)), text);
        }
    }
}

//! Pulls a pod's images and creates its containers: the slow operations, separate from the decisions.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use images::{Image, ImageError, Keyring, PullPolicy, Pulled, Purpose, report_compilation};
use k8s_openapi::api::core::v1::{Container as ContainerSpecWire, ImageVolumeSource, Pod, ResourceRequirements};
use machinery_client::{EventRecord, reference_to};
use machinery_serve::net::Caller;
use tokio::sync::{OnceCell, Semaphore};
use tokio_util::sync::CancellationToken;

use super::attached::Attached;
use super::compiling::compile_reporter;
use super::lifecycle::settings::{Settings, settings};
use super::lifecycle::state::{ContainerEvent, ImageOwner};
use super::message::MessageFile;
use super::runner::runner_class;
use super::sandbox::{SESSIONS_MAX, Sandbox, SandboxLease};
use super::session_tmp::SessionTmp;
use super::shared::NodeContext;
use super::totals::ImageVolumes;
use super::variables::{Variables, variables};
use super::worker::{Message, container_message};
use super::{hosts_file, names};
use crate::config::environment::expand;
use crate::config::granted::GrantedConfig;
use crate::config::keyvalue;
use crate::config::pull_secrets;
use crate::config::tokens::PodServiceAccount;
use crate::log::ContainerLog;
use crate::mailbox::Sender;
use crate::responses::ResponseMeter;
use crate::volume::mounts::{self, MountError};
use crate::volume::paths::message_folder;
use runtime_api::disk::advice;
use runtime_api::ledger::Ledger;
use runtime_api::pipe::{PipeReader, PipeWriter, pipe};
use runtime_api::{
    Admitted, Container, ContainerSpec, CpuQuota, Grants, KeyvalueOwner, Kind, LoadError, MemoryFiles, Metering,
    Module, Preopen,
};

/// Upstream's default for `terminationMessagePath`.
const TERMINATION_PATH: &str = "/dev/termination-log";
/// The null device of guests, which have the folder because of the termination message.
const NULL_DEVICE: &str = "/dev/null";

/// A created container that is not started.
pub(crate) struct CreatedContainer {
    pub(crate) container: Arc<dyn Container>,
    /// A command's admission.
    pub(crate) admitted: Option<Admitted>,
    /// Measures its responses, if it serves.
    pub(crate) responses: Option<Arc<ResponseMeter>>,
    pub(crate) log: Arc<ContainerLog>,
    pub(crate) id: String,
    pub(crate) settings: Settings,
    pub(crate) image: Arc<Image>,
    /// Its CPU and memory resources.
    pub(crate) resources: Option<ResourceRequirements>,
    /// The file of the guest's termination message.
    pub(crate) termination: Option<MessageFile>,
    /// Keeps the sandbox registered for sessions.
    pub(crate) _lease: SandboxLease,
}

/// The reason and message of a failed creation.
pub(crate) type StartError = (&'static str, String);

fn metering(node: &NodeContext, pod: &Pod, container: &ContainerSpecWire) -> Metering {
    match settings(pod, container, &node.parts.runtime.optional_interfaces()) {
        Ok(settings) if settings.limits.fuel.is_some() => Metering::Fuel,
        _ => Metering::Epochs,
    }
}

/// The pulled images of a container.
#[derive(Debug, Clone)]
pub(crate) struct PulledImages {
    /// The container's own image.
    pub(crate) image: Arc<Image>,
    /// The folder of the image's files, if it has files besides modules.
    pub(crate) root: Option<PathBuf>,
    /// The mounted images: the volume's name, its folder, and the image, which holds the folder.
    pub(crate) volumes: Vec<(String, PathBuf, Arc<Image>)>,
}

/// The folders of mounted images, by volume.
fn image_folders(volumes: &[(String, PathBuf, Arc<Image>)]) -> BTreeMap<String, PathBuf> {
    volumes.iter().map(|(name, tree, _)| (name.clone(), tree.clone())).collect()
}

/// A failed pull: the image's owner and the error.
pub(crate) type PullError = (ImageOwner, ImageError);

/// Pulls the images of a container that are not present. `messages` receives an event when a pull begins.
pub(crate) async fn pull(
    node: &NodeContext,
    pod: &Arc<Pod>,
    (index, container): (usize, &ContainerSpecWire),
    messages: &Sender<Message>,
) -> Result<(PulledImages, String), PullError> {
    let own = |error| (ImageOwner::Container, error);
    let keyring = keyring(node, pod).await.map_err(own)?;
    let pulling = Pulling { node, pod, keyring, messages, index, container: &container.name };
    let mut volumes = Vec::new();
    for (name, source) in mounted_images(pod, container) {
        let reference = source.reference.clone().unwrap_or_default();
        let of = |error| (ImageOwner::Volume(reference.clone()), error);
        let (image, message) = pulling.ensure(&reference, source.pull_policy.as_deref(), None).await.map_err(of)?;
        let tree = node.parts.images.tree(&image).await.map_err(of)?;
        let _ = messages.send(container_message(index, ContainerEvent::VolumePulled { message })).await;
        volumes.extend(tree.map(|tree| (name.to_owned(), tree, image)));
    }
    let name = container.image.clone().unwrap_or_default();
    let metering = metering(node, pod, container);
    let ensured = pulling.ensure(&name, container.image_pull_policy.as_deref(), Some(metering)).await;
    let (image, message) = ensured.map_err(own)?;
    let root = node.parts.images.tree(&image).await.map_err(own)?;
    Ok((PulledImages { image, root, volumes }, message))
}

/// The images that a container mounts, without duplicates.
fn mounted_images<'a>(pod: &'a Pod, container: &ContainerSpecWire) -> Vec<(&'a str, &'a ImageVolumeSource)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let mounts = |name: &str| container.volume_mounts.iter().flatten().any(|mount| mount.name == name);
    let images = volumes.filter_map(|volume| Some((volume.name.as_str(), volume.image.as_ref()?)));
    images.filter(|(name, _)| mounts(name)).collect()
}

/// The pod's pull credentials. Secrets that can't be read are reported by an event.
async fn keyring(node: &NodeContext, pod: &Arc<Pod>) -> Result<Keyring, ImageError> {
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
    let account = PodServiceAccount::new((client.clone(), env.clone()), node.account_tokens.clone(), pod.clone());
    Ok(match account {
        Some(account) => secrets.keyring.with_account(Arc::new(account)),
        None => secrets.keyring,
    })
}

/// The pull of one container's images.
struct Pulling<'a> {
    node: &'a NodeContext,
    pod: &'a Pod,
    keyring: Keyring,
    messages: &'a Sender<Message>,
    index: usize,
    container: &'a str,
}

impl Pulling<'_> {
    /// The keyring for this image. If a credential provider uses ServiceAccounts, cached credentials are bound to the pod's account.
    async fn keyring_for(&self, name: &str) -> Cow<'_, Keyring> {
        let account = self.keyring.account().filter(|_| self.node.parts.images.uses_service_account(name));
        let Some(account) = account else { return Cow::Borrowed(&self.keyring) };
        match account.account().await {
            Ok(account) => Cow::Owned(self.keyring.with_identity(account.identity)),
            Err(error) => {
                tracing::warn!(image = name, %error, "failed to get the service account of a pod");
                Cow::Borrowed(&self.keyring)
            }
        }
    }

    /// Pulls an image unless it is present: a module for `metering`, or without one an image volume. Returns the event's message too.
    async fn ensure(
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
            Some(_) => (Purpose::Module, ImageOwner::Container),
            None => (Purpose::Volume, ImageOwner::Volume(name.to_owned())),
        };
        let keyring = self.keyring_for(name).await;
        if let Some(image) = images.decide((name, purpose), policy, &keyring)? {
            let message = format!("Container image {name:?} already present on machine and can be accessed by the pod");
            return Ok((image, message));
        }
        let _ = self.messages.send(container_message(self.index, ContainerEvent::PullBegan { of })).await;
        let env = &self.node.parts.env;
        let began = env.elapsed();
        let namespace = self.pod.metadata.namespace.as_deref().unwrap_or_default();
        let Pulled { image, took } = match metering {
            Some(metering) => {
                let report = compile_reporter(self.node, self.pod, self.container, name);
                images.pull(name, &self.keyring, metering, namespace, &report).await?
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

/// The pod-level inputs of a container's creation.
pub(crate) struct PodContext {
    pub(crate) pod: Arc<Pod>,
    pub(crate) ip: IpAddr,
    /// The host resources that its containers hold together.
    pub(crate) ledger: Arc<Ledger>,
    /// The CPU quota of its containers.
    pub(crate) cpu: Arc<CpuQuota>,
    /// The memory account of its in-memory volumes.
    pub(crate) memory_files: Option<Arc<MemoryFiles>>,
    /// The owner of its containers' keyvalue store.
    pub(crate) keyvalue: Arc<OnceCell<KeyvalueOwner>>,
}

impl PodContext {
    /// The owner of the keyvalue store, if the container is granted it.
    async fn keyvalue_of(
        &self,
        node: &NodeContext,
        grants: &Grants,
        namespace: &str,
    ) -> Result<Option<KeyvalueOwner>, StartError> {
        let is_shared = node.parts.runtime.is_keyvalue_shared();
        keyvalue::granted(grants, &node.client, namespace, &self.keyvalue, is_shared).await.map_err(config_error)
    }
}

/// Creates a container, and counts its image volumes.
pub(crate) async fn create(
    node: &Arc<NodeContext>,
    context: &PodContext,
    wire: &ContainerSpecWire,
    pulls: &PulledImages,
    attempt: u32,
) -> Result<CreatedContainer, StartError> {
    let created = assemble(node, context, wire, pulls, attempt).await;
    if !pulls.volumes.is_empty() {
        let is_image = |name: &str| pulls.volumes.iter().any(|(volume, ..)| volume == name);
        let mounts = wire.volume_mounts.iter().flatten().filter(|mount| is_image(&mount.name)).count() as u64;
        let is_unmounted = |(_, message): &StartError| message.starts_with(mounts::IMAGE_VOLUME_MOUNT_FAILED);
        let failed = created.as_ref().err().is_some_and(is_unmounted);
        let (mounted, failed) = if failed { (0, mounts) } else { (mounts, 0) };
        let requested = pulls.volumes.len() as u64;
        node.pods.totals.image_volumes(ImageVolumes { requested, mounted, failed });
    }
    created
}

/// Loads the image's module, as a command if the annotations say so. It is already compiled, unless by another version
/// of the program or for another metering.
async fn load_module(
    node: &NodeContext,
    image: &Image,
    (settings, container): (&Settings, &ContainerSpecWire),
    metering: Metering,
    pod: &Pod,
) -> Result<Arc<dyn Module>, StartError> {
    let (images, env) = (&node.parts.images, &node.parts.env);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let report = compile_reporter(node, pod, &container.name, container.image.as_deref().unwrap_or_default());
    if !settings.as_command {
        let loading = images.load(image, metering, namespace);
        return report_compilation(env, &report, loading).await.map_err(|error| load_error(&error));
    }
    let loading = images.load_command(image, metering, namespace);
    let command = report_compilation(env, &report, loading).await.map_err(|error| load_error(&error))?;
    command.ok_or_else(|| config_error(Settings::no_command(&container.name)))
}

async fn assemble(
    node: &Arc<NodeContext>,
    context: &PodContext,
    wire: &ContainerSpecWire,
    PulledImages { image, root, volumes }: &PulledImages,
    attempt: u32,
) -> Result<CreatedContainer, StartError> {
    let (pod, ip) = (&context.pod, context.ip);
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let pod_name = pod.metadata.name.clone().unwrap_or_default();
    let settings = settings(pod, wire, &node.parts.runtime.optional_interfaces()).map_err(config_error)?;
    let variables = variables(node, pod, wire, ip).await?;
    let metering = if settings.limits.fuel.is_some() { Metering::Fuel } else { Metering::Epochs };
    let loaded = load_module(node, image, (&settings, wire), metering, pod).await?;
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let dir = node.pod_dir(&uid);
    let mut preopens = volume_preopens(node, context, wire, (&dir, attempt), (volumes, &variables))?;
    let class = runner_class(settings.suit(&wire.name, loaded.kind()).map_err(config_error)?);
    let termination = termination(&dir, wire, attempt, class.leaves_message, &mut preopens).map_err(config_error)?;
    preopens.extend(image_root(root.as_deref(), &preopens));
    let tmp = SessionTmp::new(node, &uid, (&wire.name, attempt), &preopens);
    let log = open_log(node, &uid, (&wire.name, attempt))?;
    let attached = Arc::new(Attached::new(log.clone()));
    let (to_stdin, stdin) = input(wire, loaded.kind());
    let spec = ContainerSpec {
        name: format!("{namespace}/{pod_name}/{}", wire.name),
        argv: argv(wire, image, &variables),
        env: env(names::host_name(pod).map_err(config_error)?, image, variables),
        cwd: wire.working_dir.clone().filter(|dir| !dir.is_empty()).or_else(|| image.working_dir.clone()),
        preopens,
        limits: settings.limits.clone(),
        config: GrantedConfig::granted(&settings.grants, &node.sources, &namespace, wire),
        keyvalue: context.keyvalue_of(node, &settings.grants, &namespace).await?,
        grants: settings.grants.clone().toolbox(node.parts.images.is_toolbox(&image.module)),
        imports: settings.imports.clone(),
        log: attached.clone(),
        stdin,
        terminal: wire.tty == Some(true),
        pod: context.ledger.clone(),
        pod_cpu: Some(context.cpu.clone()),
        memory_files: context.memory_files.clone(),
        quotas: node.volumes.local.quotas(&uid),
        caller: caller(node, pod, ip),
        dial: Some(node.parts.dial.clone()),
        network: Some(node.parts.network.clone()),
    };
    let container = loaded.container(spec).map_err(|error| load_error(&error))?;
    // A command that waits for admission is not running yet.
    let admitted = if class.is_admitted { Some(container.admit().await) } else { None };
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
    let _lease = node.pods.sandboxes.register(&uid, &wire.name, sandbox);
    let (resources, responses, image) = (wire.resources.clone(), meter(node, &*container), image.clone());
    Ok(CreatedContainer { container, admitted, responses, log, id, settings, image, resources, termination, _lease })
}

/// The two ends of a container's input, if it reads any. A server creates an instance per request, and those read none.
fn input(wire: &ContainerSpecWire, kind: Kind) -> (Option<PipeWriter>, Option<PipeReader>) {
    let reads = wire.stdin == Some(true) && kind == Kind::Command;
    if reads { Some(pipe()).unzip() } else { (None, None) }
}

/// The meter of a container that serves.
fn meter(node: &NodeContext, container: &dyn Container) -> Option<Arc<ResponseMeter>> {
    (container.kind() != Kind::Command).then(|| Arc::new(ResponseMeter::new(node.parts.env.elapsed())))
}

/// Opens the log of a start.
fn open_log(node: &NodeContext, uid: &str, (container, attempt): (&str, u32)) -> Result<Arc<ContainerLog>, StartError> {
    let opened = node.logs.open(node.log_path(uid, container, attempt));
    opened.map_err(|error| ("CreateContainerError", format!("the log cannot be written: {error}{}", advice(&error))))
}

/// The identity of the container's outgoing calls.
pub(super) fn caller(node: &NodeContext, pod: &Pod, ip: IpAddr) -> Caller {
    let text = |text: &Option<String>| Arc::from(text.as_deref().unwrap_or_default());
    Caller {
        node: node.identity.name.as_str().into(),
        namespace: text(&pod.metadata.namespace),
        pod: text(&pod.metadata.name),
        ip: Some(ip),
        names: Arc::new(names::of(pod, ip)),
    }
}

/// A duration in upstream's event format: whole milliseconds in Go's form (`1m2.3s`, `45ms`).
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

pub(super) fn config_error(error: impl std::fmt::Display) -> StartError {
    ("CreateContainerConfigError", error.to_string())
}

/// Image volumes: the volume's name, its folder and the image.
type ImageVolumeList = [(String, PathBuf, Arc<Image>)];

/// The container's preopens of the pod's volumes.
fn volume_preopens(
    node: &NodeContext,
    PodContext { pod, ip, .. }: &PodContext,
    wire: &ContainerSpecWire,
    run: (&Path, u32),
    (images, variables): (&ImageVolumeList, &Variables),
) -> Result<Vec<Preopen>, StartError> {
    let (images, volumes) = (image_folders(images), &node.volumes);
    let (allowed, local, hosts) = (&volumes.host_paths, &volumes.local, hosts_file::text(pod, *ip));
    let external = mounts::ExternalVolumes { images: &images, allowed, local, hosts: hosts.as_deref() };
    let variable = |name: &str| variables.get(name).cloned();
    mounts::preopens(pod, wire, run, &external, &variable).map_err(mount_error)
}

/// The root preopen of the image's files, unless a volume is mounted there.
fn image_root(tree: Option<&Path>, mounted: &[Preopen]) -> Option<Preopen> {
    let is_taken = mounted.iter().any(|preopen| preopen.guest == "/");
    let host = tree.filter(|_| !is_taken)?.to_owned();
    Some(Preopen { host, sub_paths: Vec::new(), guest: "/".into(), writable: false })
}

fn mount_error(error: MountError) -> StartError {
    let reason = match error {
        MountError::Config(_) => "CreateContainerConfigError",
        MountError::Image(_) => "CreateContainerError",
    };
    (reason, error.to_string())
}

fn container_id(node: &NodeContext) -> String {
    let mut id = [0u8; 32];
    node.parts.env.fill(&mut id);
    format!("{}://{}", node.parts.runtime.version().0, hex::encode(id))
}

/// The container's complete environment.
fn env(host_name: String, image: &Image, variables: Variables) -> Vec<(String, String)> {
    // As in container runtimes, HOSTNAME comes first, so that the image and the pod can override it.
    let mut env: Vec<(String, String)> = vec![("HOSTNAME".into(), host_name)];
    env.extend(image.env.clone());
    env.retain(|(name, _)| !variables.contains_key(name));
    env.extend(variables);
    env
}

/// `command` and `args`, with the image's as defaults.
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

fn load_error(error: &LoadError) -> StartError {
    match error {
        LoadError::Io { .. } | LoadError::Engine(_) => ("CreateContainerError", error.to_string()),
        _ => ("RunContainerError", error.to_string()),
    }
}

/// The file of the termination message on the host, with its preopen for the guest. `by_default`: also if the pod names
/// none.
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
    // A volume that is mounted there contains the file.
    let within = preopens.iter().filter(|preopen| guest.starts_with(&preopen.guest));
    if let Some(preopen) = within.max_by_key(|preopen| preopen.guest.len()) {
        let named = preopen.rest(guest).map(ToOwned::to_owned);
        return Ok(named.map(|name| MessageFile { folder: preopen.clone(), name }));
    }
    let host = message_folder(dir).join(&container.name).join(attempt.to_string());
    std::fs::create_dir_all(&host)?;
    // The file exists from the start, as upstream's, for guests that only append.
    make_empty(&host.join(name))?;
    if guest.parent() == Path::new(NULL_DEVICE).parent() {
        // The runtime discards what a guest writes to it.
        make_empty(&host.join("null"))?;
    }
    let folder = Preopen { host, sub_paths: Vec::new(), guest: parent.to_owned(), writable: true };
    preopens.push(folder.clone());
    Ok(Some(MessageFile { folder, name: name.into() }))
}

/// Makes an empty file in place of one that an earlier start may have left, which may be a guest's link to anywhere.
fn make_empty(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::File::create_new(path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_message_file_replaces_a_guests_link() {
        let dir = tempfile::tempdir().unwrap();
        let (victim, link) = (dir.path().join("victim"), dir.path().join("termination-log"));
        std::fs::write(&victim, "kept").unwrap();
        std::os::unix::fs::symlink("victim", &link).unwrap();
        make_empty(&link).unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "kept");
        assert!(std::fs::symlink_metadata(&link).unwrap().is_file());
        std::fs::write(&link, "an earlier message").unwrap();
        make_empty(&link).unwrap();
        assert_eq!(std::fs::read(&link).unwrap(), b"");
    }

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

//! Fills a pod's volumes, and determines when they have to be filled again to follow changes of the API.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;
use machinery_client::claims::NodeTopology;
use machinery_client::request::ApiClient;
use machinery_env::Env;
use tokio::sync::watch;

use super::atomic;
use super::claims::{BoundVolume, ClaimVolumes};
use super::files::{Files, FilesError, Tokens, files, projections, token_key, wanted_tokens};
use super::local::LocalVolumes;
use super::memory::{MemoryFolder, is_in_memory};
use super::{claims, host_path, is_empty_dir, is_from_api, is_of_claim};
use crate::checkpoint::API_WAIT;
use crate::config::env_file::FileValues;
use crate::config::environment::EnvContext;
use crate::config::sources::{ConfigSource, ConfigSourceManager, SourceKind, SourceState, named_by_volumes};
use crate::config::tokens::{self as token_requests, Token, TokenError, TokenParams, is_refresh_due};
use crate::latest::{Receiver, Wake};
use crate::mailbox::Sender;
use crate::spec::compressed::Compressed;

/// Retry backoff for filling a volume: doubled from the first to the maximum, as upstream's.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(122);

/// The minimum token refresh interval.
const REFRESH_MIN: SignedDuration = SignedDuration::from_secs(1);

/// The sources of the volumes of a node's pods.
pub(crate) struct VolumeManager {
    pub(crate) requests: ApiClient,
    pub(crate) env: Env,
    pub(crate) sources: Arc<ConfigSourceManager>,
    pub(crate) host_ip: IpAddr,
    pub(crate) allocatable: Arc<BTreeMap<String, Wire>>,
    /// Folders that hostPath volumes may refer to.
    pub(crate) host_paths: Arc<[PathBuf]>,
    /// Volumes that outlive pods.
    pub(crate) local: Arc<LocalVolumes>,
    /// Returns the node's name and labels, for the node affinity of volumes.
    pub(crate) place: Box<dyn Fn() -> (String, BTreeMap<String, String>) + Send + Sync>,
    /// The folder of volumes in memory, or why there is none.
    pub(crate) memory: Result<Arc<MemoryFolder>, String>,
}

/// The objects that a pod's volumes refer to, with the versions used for filling.
type WatchedSources = Box<[((SourceKind, String), Arc<ConfigSource>, watch::Receiver<SourceState>)]>;

/// A token of the pod.
struct PodToken {
    /// Audience and lifetime.
    wanted: (String, i64),
    refresh_at: Timestamp,
    /// The token until it is written to the pod's files: keeping it would cost a kilobyte for each pod.
    value: Option<String>,
}

/// The names of the claims whose volumes are created.
type PlacedClaims = BTreeSet<String>;

/// The result of filling a pod's volumes.
pub(crate) enum MountEvent {
    /// All are filled. The value is kept for the next change; `None` if no volume can change.
    Filled(Option<Box<Filled>>),
    /// A volume can't be filled now, for this reason.
    Failed(String),
}

/// The inputs of a pod's filled volumes. Nothing else exists for them while nothing changes: no task waits.
pub(crate) struct Filled {
    watched: WatchedSources,
    tokens: Vec<PodToken>,
    claimed: PlacedClaims,
    /// See [`input_hash`].
    input_hash: u64,
}

impl Filled {
    /// Creates the inputs before the first fill. `waker` is notified when an object changes that the volumes refer to.
    fn unfilled(node: &VolumeManager, pod: &Pod, waker: &Weak<dyn Wake>) -> Self {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let named = named_by_volumes(volumes_of(pod)).into_iter();
        let watched = named.map(|(kind, name)| {
            let source = node.sources.get(kind, namespace, &name);
            source.wake_on_change(waker.clone());
            let known = source.known.clone();
            ((kind, name), source, known)
        });
        Self { watched: watched.collect(), tokens: Vec::new(), claimed: PlacedClaims::new(), input_hash: 0 }
    }

    /// Returns whether the volumes have to be filled again independently of the pod: an object has changed, or a token
    /// has to be refreshed.
    pub(crate) fn is_due(&self, now: Timestamp) -> bool {
        let changed = self.watched.iter().any(|(_, _, known)| known.has_changed().unwrap_or_default());
        changed || self.tokens.iter().any(|token| is_refresh_due(token.refresh_at, now))
    }

    /// Returns whether the volumes are filled for this version of the pod. Status updates, which are more frequent,
    /// don't count.
    pub(crate) fn is_of(&self, pod: &Pod) -> bool {
        self.input_hash == input_hash(pod)
    }

    /// Returns when a token has to be refreshed.
    pub(crate) fn refresh_at(&self) -> Option<Timestamp> {
        self.tokens.iter().map(|token| token.refresh_at).min()
    }
}

/// Fills all volumes of the pod in `input` below `dir`, with retries until success; `before` has the inputs of the last
/// fill.
pub(crate) async fn fill<I, M>(
    node: Arc<VolumeManager>,
    mut input: Receiver<I>,
    (dir, ip): (PathBuf, IpAddr),
    (before, claims): (Option<Box<Filled>>, Option<Arc<ClaimVolumes>>),
    events: Sender<M>,
) where
    I: AsRef<Arc<Compressed<Pod>>> + Send + 'static,
    M: From<MountEvent>,
{
    let waker = input.waker();
    let mut filled =
        before.unwrap_or_else(|| Box::new(Filled::unfilled(&node, &current_pod(&mut input).get(), &waker)));
    let (mut wait, mut last_message) = (RETRY_FIRST, String::new());
    loop {
        let message = match fill_once(&node, &current_pod(&mut input), (&mut filled, claims.as_deref()), &dir, ip).await
        {
            Ok(changes) => {
                let _ = events.send(MountEvent::Filled(changes.then_some(filled)).into()).await;
                return;
            }
            Err(message) => message,
        };
        if message != last_message {
            last_message.clone_from(&message);
            if events.send(MountEvent::Failed(message).into()).await.is_err() {
                return;
            }
        }
        tokio::select! {
            changed = input.changed() => if changed.is_err() {
                return;
            },
            () = node.env.sleep(wait) => {}
        }
        wait = (wait * 2).min(RETRY_MAX);
    }
}

/// Fills a pod's volumes once; returns whether the API can change any of them.
async fn fill_once(
    node: &VolumeManager,
    resting: &Compressed<Pod>,
    (filled, claims): (&mut Filled, Option<&ClaimVolumes>),
    dir: &Path,
    ip: IpAddr,
) -> Result<bool, String> {
    let pod = resting.get();
    for (_, _, known) in &mut filled.watched {
        known.mark_unchanged();
    }
    let done = match create_claim_volumes(node, &pod, (&mut filled.claimed, claims), dir).await {
        Ok(()) => write(node, &pod, &filled.watched, &mut filled.tokens, dir, ip).await,
        Err(why) => Err(why),
    };
    filled.input_hash = input_hash(&pod);
    if done.is_ok() {
        filled.tokens.iter_mut().for_each(|token| token.value = None);
    }
    let changes = volumes_of(&pod).iter().any(is_from_api);
    drop(pod);
    resting.settle();
    done.map(|()| changes)
}

/// Returns the current pod.
fn current_pod<I: AsRef<Arc<Compressed<Pod>>>>(input: &mut Receiver<I>) -> Arc<Compressed<Pod>> {
    input.read(|input| input.as_ref().clone())
}

/// Hashes the parts of a pod that determine its files: its spec, and the metadata that downwardAPI volumes may use.
fn input_hash(pod: &Pod) -> u64 {
    json_hash(&(&pod.metadata.labels, &pod.metadata.annotations, &pod.spec))
}

/// Hashes a pod without its status: its spec, its labels and annotations, and its deletion.
pub(crate) fn object_hash(pod: &Pod) -> u64 {
    let metadata = &pod.metadata;
    let deletion = (&metadata.deletion_timestamp, metadata.deletion_grace_period_seconds);
    json_hash(&(&metadata.labels, &metadata.annotations, deletion, &pod.spec))
}

fn json_hash(of: &impl serde::Serialize) -> u64 {
    struct Hashed(DefaultHasher);
    impl std::io::Write for Hashed {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.write(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut hashed = Hashed(DefaultHasher::new());
    // Writing into a hash can't fail, and the API's types have string keys.
    let _ = serde_json::to_writer(&mut hashed, of);
    hashed.0.finish()
}

fn volumes_of(pod: &Pod) -> &[Volume] {
    pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default()
}

/// Creates the volumes of claims, once: a claim's volume doesn't change.
async fn create_claim_volumes(
    node: &VolumeManager,
    pod: &Arc<Pod>,
    (claimed, known): (&mut PlacedClaims, Option<&ClaimVolumes>),
    dir: &Path,
) -> Result<(), String> {
    for volume in volumes_of(pod).iter().filter(|volume| is_of_claim(volume)) {
        if claimed.contains(&volume.name) {
            continue;
        }
        let (node_name, labels) = (node.place)();
        let (place, name) = (NodeTopology { name: &node_name, labels: &labels }, &volume.name);
        let found = resolve_claim(node, pod, (volume, known), place).await.map_err(|why| {
            format!("Unable to attach or mount volumes: unmounted volumes=[{name}], unattached volumes=[], failed to process volumes=[{name}]: {why}")
        })?;
        let (folder, uid) = (super::paths::folder(dir, name), pod.metadata.uid.clone().unwrap_or_default());
        let (local, allowed) = (node.local.clone(), node.host_paths.clone());
        let put = tokio::task::spawn_blocking(move || match found {
            Some(found) => claims::create(&found, &folder, &uid, (&local, &allowed)),
            None => Ok(()),
        });
        put.await.unwrap_or_else(|error| Err(error.to_string())).map_err(|why| failed(name, &why))?;
        claimed.insert(name.clone());
    }
    Ok(())
}

/// Resolves a volume's claim, or uses the last result while the API doesn't answer.
async fn resolve_claim(
    node: &VolumeManager,
    pod: &Pod,
    (volume, known): (&Volume, Option<&ClaimVolumes>),
    place: NodeTopology<'_>,
) -> Result<Option<BoundVolume>, String> {
    let last = known.and_then(|known| known.get(&volume.name));
    let resolving = claims::resolve(&node.requests, pod, volume, place);
    let resolved = match &last {
        None => resolving.await,
        Some(last) => match node.env.timeout(API_WAIT, resolving).await {
            Ok(Err(error)) if error.unanswered => Ok(Some(last.clone())),
            Ok(resolved) => resolved,
            Err(_) => Ok(Some(last.clone())),
        },
    };
    if let (Ok(Some(bound)), Some(known)) = (&resolved, known) {
        known.set(&volume.name, bound.clone());
    }
    resolved.map_err(|error| error.to_string())
}

async fn write(
    node: &VolumeManager,
    pod: &Arc<Pod>,
    watched: &WatchedSources,
    tokens: &mut Vec<PodToken>,
    dir: &Path,
    ip: IpAddr,
) -> Result<(), String> {
    let volumes = volumes_of(pod);
    let from_api = || volumes.iter().filter(|volume| is_from_api(volume));
    let mut known = BTreeMap::new();
    for (key, source, _) in watched {
        match source.read().await {
            SourceState::Present(content) => {
                known.insert(key.clone(), content);
            }
            SourceState::Failed(error) => {
                let first = volume_of(from_api(), key).unwrap_or_default();
                return Err(failed(first, &format!("failed to sync {} cache: {error}", key.0.word())));
            }
            SourceState::Missing | SourceState::Unknown => {}
        }
    }
    let values = current_tokens(node, pod, tokens, dir).await?;
    let lookup = |kind: SourceKind, name: &str| known.get(&(kind, name.to_owned())).cloned();
    let given = EnvContext {
        pod,
        host_ip: node.host_ip,
        pod_ip: Some(ip),
        allocatable: &node.allocatable,
        services: &[],
        lookup: &lookup,
        files: &FileValues::new(),
    };
    let mut writes: Vec<(String, Files)> = Vec::new();
    for volume in from_api() {
        let files =
            files(&given, volume, &values).map_err(|error: FilesError| failed(&volume.name, &error.to_string()))?;
        writes.push((volume.name.clone(), files));
    }
    let plain: Vec<(String, bool)> =
        volumes.iter().filter(|volume| is_empty_dir(volume)).map(|v| (v.name.clone(), is_in_memory(v))).collect();
    let of_host = volumes.iter().filter_map(|volume| Some((volume.name.clone(), volume.host_path.clone()?)));
    let of_host: Vec<_> = of_host.collect();
    let (dir, stamp, allowed) = (dir.to_owned(), stamp(node), node.host_paths.clone());
    let (memory, uid) = (node.memory.clone(), pod.metadata.uid.clone().unwrap_or_default());
    let written = tokio::task::spawn_blocking(move || {
        for (name, in_memory) in plain {
            let folder = super::paths::folder(&dir, &name);
            let made = match &memory {
                _ if !in_memory => make_empty_dir(&folder).map_err(|error| describe_error(&error)),
                Ok(memory) => memory.link(&folder, &uid, &name).map_err(|error| describe_error(&error)),
                Err(why) => Err(why.clone()),
            };
            made.map_err(|error| failed(&name, &error))?;
        }
        for (name, source) in of_host {
            let folder = super::paths::folder(&dir, &name);
            host_path::link(&folder, &source, &allowed).map_err(|error| failed(&name, &error))?;
        }
        for (name, files) in writes {
            let folder = super::paths::folder(&dir, &name);
            atomic::write(&folder, &files, &stamp).map_err(|error| failed(&name, &describe_error(&error)))?;
        }
        Ok(())
    });
    written.await.unwrap_or_else(|error| Err(error.to_string()))
}

/// Returns the tokens of the pod's volumes: those in its files, and new ones for those that are due.
async fn current_tokens(
    node: &VolumeManager,
    pod: &Arc<Pod>,
    held: &mut Vec<PodToken>,
    dir: &Path,
) -> Result<Tokens, String> {
    let volumes = volumes_of(pod);
    let mut values = Tokens::new();
    for wanted in wanted_tokens(volumes) {
        let now = node.env.now();
        let had = held.iter().position(|token| token.wanted == wanted);
        let current = match had.map(|at| &held[at]) {
            Some(PodToken { value: Some(value), .. }) => Some(value.clone()),
            // Without one in memory, it is that of the agent's earlier run.
            Some(_) | None => written_token(volumes, &wanted, dir).await,
        };
        let due = had.is_none_or(|at| is_refresh_due(held[at].refresh_at, now));
        if let Some(current) = current.clone().filter(|_| !due) {
            values.insert(wanted, current);
            continue;
        }
        match (request_token(node, pod, &wanted, current.is_some()).await, had, current) {
            (Ok(token), had, _) => {
                // Bounds the request rate if the server's clock is behind.
                let refresh_at = token.refresh_at.max(now + REFRESH_MIN);
                let value = Some(token.value.clone());
                let token_held = PodToken { wanted: wanted.clone(), refresh_at, value };
                match had {
                    Some(at) => held[at] = token_held,
                    None => {
                        held.reserve_exact(1);
                        held.push(token_held);
                    }
                }
                values.insert(wanted, token.value);
            }
            // An old one is valid until it expires.
            (Err(error), Some(at), Some(current)) => {
                tracing::warn!(%error, "a service account token cannot be refreshed");
                held[at].refresh_at = now.saturating_add(RETRY_MAX).unwrap_or(Timestamp::MAX);
                values.insert(wanted, current);
            }
            (Err(error), None, Some(current)) if error.unanswered => {
                tracing::warn!(%error, "a service account token of an earlier run is used");
                let refresh_at = now.saturating_add(RETRY_MAX).unwrap_or(Timestamp::MAX);
                held.push(PodToken { wanted: wanted.clone(), refresh_at, value: Some(current.clone()) });
                values.insert(wanted, current);
            }
            (Err(error), ..) => {
                let name = projections(volumes).next().map(|(volume, _)| volume.name.clone()).unwrap_or_default();
                return Err(failed(&name, &format!("failed to fetch token: {error}")));
            }
        }
    }
    Ok(values)
}

/// Requests a token. With a current one, the API's answer isn't awaited for long.
async fn request_token(
    node: &VolumeManager,
    pod: &Pod,
    wanted: &(String, i64),
    has_current: bool,
) -> Result<Token, TokenError> {
    let params = TokenParams { audience: &wanted.0, seconds: Some(wanted.1), account_uid: None };
    let request = token_requests::request(&node.requests, pod, params, node.env.now());
    if !has_current {
        return request.await;
    }
    node.env.timeout(API_WAIT, request).await.unwrap_or_else(|_| Err(TokenError::late(API_WAIT)))
}

/// Reads a token from the volume that contains it; `None` if the volume's files have changed.
async fn written_token(volumes: &[Volume], wanted: &(String, i64), dir: &Path) -> Option<String> {
    let (volume, token) = projections(volumes).find(|(_, token)| token_key(token) == *wanted)?;
    let file = super::paths::folder(dir, &volume.name).join(&token.path);
    tokio::fs::read_to_string(file).await.ok().filter(|token| !token.is_empty())
}

/// Formats an error with advice.
fn describe_error(error: &std::io::Error) -> String {
    format!("{error}{}", runtime_api::disk::advice(error))
}

fn failed(volume: &str, why: &str) -> String {
    format!("MountVolume.SetUp failed for volume {volume:?} : {why}")
}

fn volume_of<'a>(mut volumes: impl Iterator<Item = &'a Volume>, key: &(SourceKind, String)) -> Option<&'a str> {
    let names = |volume: &&Volume| named_by_volumes(std::slice::from_ref(*volume)).contains(key);
    volumes.find(names).map(|volume| volume.name.as_str())
}

/// Returns a name that differs at each call; names are ordered.
fn stamp(node: &VolumeManager) -> String {
    let random = node.env.below(1 << 32);
    format!("{}.{random}", node.env.now().strftime("%Y_%m_%d_%H_%M_%S"))
}

fn make_empty_dir(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({
            "metadata": {"name": "p", "labels": {"a": "1"}, "annotations": {"b": "2"}, "resourceVersion": "1"},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"memory": "1Mi"}}}]},
            "status": {"phase": "Pending"},
        });
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    }

    fn running(pod: &mut Value) {
        (pod["status"]["phase"], pod["metadata"]["resourceVersion"]) = ("Running".into(), "2".into());
    }

    #[test]
    fn files_of_a_pod_depend_on_its_spec_and_exposed_metadata() {
        let before = input_hash(&pod(|_| ()));
        assert_eq!(input_hash(&pod(running)), before);
        for path in ["/metadata/labels/a", "/metadata/annotations/b", "/spec/containers/0/resources/limits/memory"] {
            let changed = pod(|pod| *pod.pointer_mut(path).unwrap() = "3".into());
            assert_ne!(input_hash(&changed), before, "{path}");
        }
    }

    #[test]
    fn volumes_that_are_filled_are_not_looked_at_for_a_status() {
        let (source, known) = watch::channel(SourceState::Unknown);
        let mut filled = Filled {
            watched: Box::default(),
            tokens: Vec::new(),
            claimed: PlacedClaims::new(),
            input_hash: input_hash(&pod(|_| ())),
        };
        let at = |second| Timestamp::from_second(second).unwrap();
        assert!(filled.is_of(&pod(running)) && !filled.is_due(at(0)));
        assert!(!filled.is_of(&pod(|pod| pod["metadata"]["labels"]["a"] = "3".into())));
        let due = |second| PodToken { wanted: (String::new(), 0), refresh_at: at(second), value: None };
        filled.tokens = vec![due(9), due(5)];
        assert_eq!((filled.refresh_at(), filled.is_due(at(4))), (Some(at(5)), false));
        assert!(filled.is_due(at(5)));
        assert!(filled.is_due(at(5 - 100_000)), "the clock was set back by more than a token's age");
        let stop = tokio_util::sync::CancellationToken::new();
        let of = Arc::new(ConfigSource::of(known.clone(), stop));
        filled =
            Filled { watched: [((SourceKind::Secret, "s".into()), of, known)].into(), tokens: Vec::new(), ..filled };
        assert!(!filled.is_due(at(9)));
        source.send_replace(SourceState::Missing);
        assert!(filled.is_due(at(9)));
        drop(source);
        assert!(!filled.is_due(at(9)), "a node that is being stopped fills nothing");
    }
}

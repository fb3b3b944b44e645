//! Fills a pod's volumes, and says when they are to be filled again to stay in step with the API.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, Volume};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;
use machinery_client::claims::NodePlace;
use machinery_client::request::ApiClient;
use machinery_env::Env;
use tokio::sync::watch;

use super::atomic;
use super::files::{Files, FilesError, Tokens, files, projections, token_key, wanted_tokens};
use super::local::LocalVolumes;
use super::memory::{MemoryFolder, is_in_memory};
use super::{claims, host_path, is_empty_dir, is_from_api, is_of_claim};
use crate::config::env_file::FileValues;
use crate::config::environment::EnvContext;
use crate::config::sources::{ConfigSourceManager, Known, Source, SourceKind, named_by_volumes};
use crate::config::tokens::{self as token_requests, Wanted};
use crate::latest::{Bell, Receiver};
use crate::mailbox::Sender;
use crate::spec::resting::Resting;

/// Between tries to fill a volume: doubled, as upstream's.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(122);

/// A token is not had anew sooner.
const REFRESH_MIN: SignedDuration = SignedDuration::from_secs(1);

/// What the volumes of a node's pods are filled with.
pub(crate) struct VolumeManager {
    pub(crate) requests: ApiClient,
    pub(crate) env: Env,
    pub(crate) sources: Arc<ConfigSourceManager>,
    pub(crate) host_ip: IpAddr,
    pub(crate) allocatable: Arc<BTreeMap<String, Wire>>,
    /// Folders of which pods may have what lies below.
    pub(crate) host_paths: Arc<[PathBuf]>,
    /// Volumes that outlive pods.
    pub(crate) local: Arc<LocalVolumes>,
    /// The node's name and labels, as volumes are near it.
    pub(crate) place: Box<dyn Fn() -> (String, BTreeMap<String, String>) + Send + Sync>,
    /// Where volumes in memory lie, or why there are none.
    pub(crate) memory: Result<Arc<MemoryFolder>, String>,
}

/// What a pod's volumes name, each with what was known of it when they were filled.
type Watched = Box<[((SourceKind, String), Arc<Source>, watch::Receiver<Known>)]>;

/// A token of the pod.
struct HeldToken {
    /// Audience and lifetime.
    wanted: (String, i64),
    refresh_at: Timestamp,
    /// Until it lies in the pod's files: it is a kilobyte of each pod.
    value: Option<String>,
}

/// The volumes of claims that are in their places.
type Claimed = BTreeSet<String>;

/// What is said of a pod's volumes.
pub(crate) enum MountEvent {
    /// All are filled: what they are filled with, until they have to be filled again; none where nothing of them changes.
    Filled(Option<Box<Filled>>),
    /// One can't be filled now: why.
    Failed(String),
}

/// What a pod's volumes are filled with. It is all that there is of them while nothing changes: no task waits.
pub(crate) struct Filled {
    watched: Watched,
    tokens: Vec<HeldToken>,
    claimed: Claimed,
    /// See [`basis`].
    basis: u64,
}

impl Filled {
    /// What is to be filled; `bell` is rung where an object changes that they name.
    fn nothing(node: &VolumeManager, pod: &Pod, bell: &Weak<dyn Bell>) -> Self {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let named = named_by_volumes(volumes_of(pod)).into_iter();
        let watched = named.map(|(kind, name)| {
            let source = node.sources.get(kind, namespace, &name);
            source.rings(bell.clone());
            let known = source.known.clone();
            ((kind, name), source, known)
        });
        Self { watched: watched.collect(), tokens: Vec::new(), claimed: Claimed::new(), basis: 0 }
    }

    /// Whether they are to be filled again, whatever the pod is: an object of theirs is another one, or a token's time has come.
    pub(crate) fn is_due(&self, now: Timestamp) -> bool {
        let changed = self.watched.iter().any(|(_, _, known)| known.has_changed().unwrap_or_default());
        changed || self.refresh_at().is_some_and(|at| at <= now)
    }

    /// Whether they are what this pod's volumes are filled with. Statuses change more often.
    pub(crate) fn is_of(&self, pod: &Pod) -> bool {
        self.basis == basis(pod)
    }

    /// When a token is to be had anew.
    pub(crate) fn refresh_at(&self) -> Option<Timestamp> {
        self.tokens.iter().map(|token| token.refresh_at).min()
    }
}

/// Fills all volumes of the pod that `input` tells of, below `dir`, until that is done; `before` is what they are filled with already.
pub(crate) async fn fill<I, M>(
    node: Arc<VolumeManager>,
    mut input: Receiver<I>,
    (dir, ip): (PathBuf, IpAddr),
    before: Option<Box<Filled>>,
    events: Sender<M>,
) where
    I: AsRef<Arc<Resting<Pod>>> + Send + 'static,
    M: From<MountEvent>,
{
    let bell = input.bell();
    let mut filled = before.unwrap_or_else(|| Box::new(Filled::nothing(&node, &resting(&mut input).get(), &bell)));
    let (mut wait, mut told) = (RETRY_FIRST, String::new());
    loop {
        let message = match round(&node, &resting(&mut input), &mut filled, &dir, ip).await {
            Ok(changes) => {
                let _ = events.send(MountEvent::Filled(changes.then_some(filled)).into()).await;
                return;
            }
            Err(message) => message,
        };
        if message != told {
            told.clone_from(&message);
            if events.send(MountEvent::Failed(message).into()).await.is_err() {
                return;
            }
        }
        tokio::select! {
            changed = input.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep(wait) => {}
        }
        wait = (wait * 2).min(RETRY_MAX);
    }
}

/// Fills a pod's volumes once; says whether any of them changes with the API.
async fn round(
    node: &VolumeManager,
    resting: &Resting<Pod>,
    filled: &mut Filled,
    dir: &Path,
    ip: IpAddr,
) -> Result<bool, String> {
    let pod = resting.get();
    for (_, _, known) in &mut filled.watched {
        known.mark_unchanged();
    }
    let done = match claim(node, &pod, &mut filled.claimed, dir).await {
        Ok(()) => write(node, &pod, &filled.watched, &mut filled.tokens, dir, ip).await,
        Err(why) => Err(why),
    };
    filled.basis = basis(&pod);
    if done.is_ok() {
        filled.tokens.iter_mut().for_each(|token| token.value = None);
    }
    let changes = volumes_of(&pod).iter().any(is_from_api);
    drop(pod);
    resting.settle();
    done.map(|()| changes)
}

/// The pod as it is now.
fn resting<I: AsRef<Arc<Resting<Pod>>>>(input: &mut Receiver<I>) -> Arc<Resting<Pod>> {
    input.read(|input| input.as_ref().clone())
}

/// What a pod's files are made of, of the pod itself: its spec, and the metadata that it may show itself in a volume.
fn basis(pod: &Pod) -> u64 {
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
    let of = (&pod.metadata.labels, &pod.metadata.annotations, &pod.spec);
    // Writing into a hash does not fail, and the API's types have keys of text.
    let _ = serde_json::to_writer(&mut hashed, &of);
    hashed.0.finish()
}

fn volumes_of(pod: &Pod) -> &[Volume] {
    pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default()
}

/// Puts the volumes of claims in their places: once, as what a claim stands for doesn't change.
async fn claim(node: &VolumeManager, pod: &Arc<Pod>, claimed: &mut Claimed, dir: &Path) -> Result<(), String> {
    for volume in volumes_of(pod).iter().filter(|volume| is_of_claim(volume)) {
        if claimed.contains(&volume.name) {
            continue;
        }
        let (node_name, labels) = (node.place)();
        let (place, name) = (NodePlace { name: &node_name, labels: &labels }, &volume.name);
        let found = claims::find(&node.requests, pod, volume, place).await.map_err(|why| {
            format!("Unable to attach or mount volumes: unmounted volumes=[{name}], unattached volumes=[], failed to process volumes=[{name}]: {why}")
        })?;
        let (folder, uid) = (super::paths::folder(dir, name), pod.metadata.uid.clone().unwrap_or_default());
        let (local, allowed) = (node.local.clone(), node.host_paths.clone());
        let put = tokio::task::spawn_blocking(move || match found {
            Some(found) => claims::put(&found, &folder, &uid, (&local, &allowed)),
            None => Ok(()),
        });
        put.await.unwrap_or_else(|error| Err(error.to_string())).map_err(|why| failed(name, &why))?;
        claimed.insert(name.clone());
    }
    Ok(())
}

async fn write(
    node: &VolumeManager,
    pod: &Arc<Pod>,
    watched: &Watched,
    tokens: &mut Vec<HeldToken>,
    dir: &Path,
    ip: IpAddr,
) -> Result<(), String> {
    let volumes = volumes_of(pod);
    let from_api = || volumes.iter().filter(|volume| is_from_api(volume));
    let mut known = BTreeMap::new();
    for (key, source, _) in watched {
        match source.read().await {
            Known::Present(content) => {
                known.insert(key.clone(), content);
            }
            Known::Failed(error) => {
                let first = volume_of(from_api(), key).unwrap_or_default();
                return Err(failed(first, &format!("failed to sync {} cache: {error}", key.0.word())));
            }
            Known::Missing | Known::Unknown => {}
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
                _ if !in_memory => make_empty_dir(&folder).map_err(|error| told(&error)),
                Ok(memory) => memory.link(&folder, &uid, &name).map_err(|error| told(&error)),
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
            atomic::write(&folder, &files, &stamp).map_err(|error| failed(&name, &told(&error)))?;
        }
        Ok(())
    });
    written.await.unwrap_or_else(|error| Err(error.to_string()))
}

/// The tokens that the pod's volumes show: those in its files, and new ones for those that are due.
async fn current_tokens(
    node: &VolumeManager,
    pod: &Arc<Pod>,
    held: &mut Vec<HeldToken>,
    dir: &Path,
) -> Result<Tokens, String> {
    let volumes = volumes_of(pod);
    let mut values = Tokens::new();
    for wanted in wanted_tokens(volumes) {
        let now = node.env.now();
        let had = held.iter().position(|token| token.wanted == wanted);
        let current = match had.map(|at| &held[at]) {
            Some(HeldToken { value: Some(value), .. }) => Some(value.clone()),
            Some(_) => written_token(volumes, &wanted, dir).await,
            None => None,
        };
        let due = had.is_none_or(|at| held[at].refresh_at <= now);
        if let Some(current) = current.clone().filter(|_| !due) {
            values.insert(wanted, current);
            continue;
        }
        let asked = Wanted { audience: &wanted.0, seconds: Some(wanted.1), account_uid: None };
        match (token_requests::request(&node.requests, pod, asked, now).await, had, current) {
            (Ok(token), had, _) => {
                // A server whose clock is behind is not asked without end.
                let refresh_at = token.refresh_at.max(now + REFRESH_MIN);
                let value = Some(token.value.clone());
                let token_held = HeldToken { wanted: wanted.clone(), refresh_at, value };
                match had {
                    Some(at) => held[at] = token_held,
                    None => {
                        held.reserve_exact(1);
                        held.push(token_held);
                    }
                }
                values.insert(wanted, token.value);
            }
            // An old one does until its end.
            (Err(error), Some(at), Some(current)) => {
                tracing::warn!(%error, "a service account token cannot be had anew");
                held[at].refresh_at = now.saturating_add(RETRY_MAX).unwrap_or(Timestamp::MAX);
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

/// A token as the volume that shows it has it; none where its files are not as they were filled.
async fn written_token(volumes: &[Volume], wanted: &(String, i64), dir: &Path) -> Option<String> {
    let (volume, token) = projections(volumes).find(|(_, token)| token_key(token) == *wanted)?;
    let file = super::paths::folder(dir, &volume.name).join(&token.path);
    tokio::fs::read_to_string(file).await.ok().filter(|token| !token.is_empty())
}

/// With what to do about it.
fn told(error: &std::io::Error) -> String {
    format!("{error}{}", runtime_api::disk::advice(error))
}

fn failed(volume: &str, why: &str) -> String {
    format!("MountVolume.SetUp failed for volume {volume:?} : {why}")
}

fn volume_of<'a>(mut volumes: impl Iterator<Item = &'a Volume>, key: &(SourceKind, String)) -> Option<&'a str> {
    let names = |volume: &&Volume| named_by_volumes(std::slice::from_ref(*volume)).contains(key);
    volumes.find(names).map(|volume| volume.name.as_str())
}

/// Different at each call, and in order.
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
    fn a_pods_files_are_made_of_its_spec_and_what_it_may_show_of_its_metadata() {
        let before = basis(&pod(|_| ()));
        assert_eq!(basis(&pod(running)), before);
        for path in ["/metadata/labels/a", "/metadata/annotations/b", "/spec/containers/0/resources/limits/memory"] {
            let changed = pod(|pod| *pod.pointer_mut(path).unwrap() = "3".into());
            assert_ne!(basis(&changed), before, "{path}");
        }
    }

    #[test]
    fn volumes_that_are_filled_are_not_looked_at_for_a_status() {
        let (source, known) = watch::channel(Known::Unknown);
        let mut filled =
            Filled { watched: Box::default(), tokens: Vec::new(), claimed: Claimed::new(), basis: basis(&pod(|_| ())) };
        let at = |second| Timestamp::from_second(second).unwrap();
        assert!(filled.is_of(&pod(running)) && !filled.is_due(at(0)));
        assert!(!filled.is_of(&pod(|pod| pod["metadata"]["labels"]["a"] = "3".into())));
        let due = |second| HeldToken { wanted: (String::new(), 0), refresh_at: at(second), value: None };
        filled.tokens = vec![due(9), due(5)];
        assert_eq!((filled.refresh_at(), filled.is_due(at(4))), (Some(at(5)), false));
        assert!(filled.is_due(at(5)));
        let stop = tokio_util::sync::CancellationToken::new();
        let of = Arc::new(Source::of(known.clone(), stop));
        filled =
            Filled { watched: [((SourceKind::Secret, "s".into()), of, known)].into(), tokens: Vec::new(), ..filled };
        assert!(!filled.is_due(at(9)));
        source.send_replace(Known::Missing);
        assert!(filled.is_due(at(9)));
        drop(source);
        assert!(!filled.is_due(at(9)), "a node that is being stopped fills nothing");
    }
}

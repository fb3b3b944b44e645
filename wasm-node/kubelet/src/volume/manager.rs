//! Fills a pod's volumes and keeps them in step with the API for as long as the pod lives.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{OptionFuture, select_all};
use jiff::Timestamp;
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
use crate::latest::Receiver;
use crate::mailbox::Sender;
use crate::spec::resting::Resting;

/// Between tries to fill a volume: doubled, as upstream's.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(122);

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

/// What volumes name, in the least room: a task of each pod holds it for the pod's life.
type Watched = Box<[((SourceKind, String), Arc<Source>)]>;
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MountEvent {
    /// All are filled, for the first time.
    Mounted,
    /// One can't be filled now: why.
    Failed(String),
}

/// Fills all volumes of the pod that `input` tells of, below `dir`; says so, and goes on until it is dropped.
#[expect(clippy::manual_async_fn, reason = "an async fn holds its arguments twice, and this one waits in every pod")]
pub(crate) fn keep<I, M>(
    node: Arc<VolumeManager>,
    mut input: Receiver<I>,
    dir: PathBuf,
    ip: IpAddr,
    events: Sender<M>,
) -> impl Future<Output = ()> + Send
where
    I: AsRef<Arc<Resting<Pod>>> + Send + Sync,
    M: From<MountEvent> + Send,
{
    async move {
        // What waits here waits for the pod's life: nothing of its spec is held twice.
        let (from_api, watched) = watched(&node, &resting(&mut input).get());
        let mut changes: Vec<watch::Receiver<Known>> = watched.iter().map(|(_, source)| source.known.clone()).collect();
        let (mut tokens, mut claimed) = (Vec::<HeldToken>::new(), Claimed::new());
        let (mut mounted, mut wait, mut told) = (false, RETRY_FIRST, String::new());
        loop {
            for change in &mut changes {
                change.mark_unchanged();
            }
            // On the heap while it lasts: what waits is as large as the largest of its states.
            let held = (&mut claimed, &mut tokens);
            let (filled, basis) = Box::pin(round(&node, resting(&mut input), &watched, held, &dir, ip)).await;
            let mut again = None;
            match filled {
                Ok(()) => {
                    wait = RETRY_FIRST;
                    told.clear();
                    tokens.iter_mut().for_each(|token| token.value = None);
                    if !std::mem::replace(&mut mounted, true) && events.send(MountEvent::Mounted.into()).await.is_err()
                    {
                        return;
                    }
                }
                Err(message) => {
                    again = Some(wait);
                    wait = (wait * 2).min(RETRY_MAX);
                    if message != told {
                        told.clone_from(&message);
                        if events.send(MountEvent::Failed(message).into()).await.is_err() {
                            return;
                        }
                    }
                }
            }
            if !from_api && again.is_none() {
                return;
            }
            let now = node.env.now();
            let refresh = tokens.iter().map(|token| token.refresh_at).min();
            let refresh =
                refresh.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or(Duration::from_secs(1)));
            let sleep = again.into_iter().chain(refresh).min();
            // What is filled stays so until it would be filled with something else: statuses change more often.
            let filled_with = again.is_none().then_some(basis);
            if !until_due(&mut changes, &mut input, sleep, filled_with).await {
                return;
            }
        }
    }
}

/// Fills a pod's volumes once; with what they were filled with.
async fn round(
    node: &VolumeManager,
    resting: Arc<Resting<Pod>>,
    watched: &Watched,
    (claimed, tokens): (&mut Claimed, &mut Vec<HeldToken>),
    dir: &Path,
    ip: IpAddr,
) -> (Result<(), String>, u64) {
    let pod = resting.get();
    let filled = match claim(node, &pod, claimed, dir).await {
        Ok(()) => fill(node, &pod, watched, tokens, dir, ip).await,
        Err(why) => Err(why),
    };
    let basis = basis(&pod);
    drop(pod);
    resting.settle();
    (filled, basis)
}

/// The pod as it is now.
fn resting<I: AsRef<Arc<Resting<Pod>>>>(input: &mut Receiver<I>) -> Arc<Resting<Pod>> {
    input.read(|input| input.as_ref().clone())
}

/// Whether the pod has volumes that the API fills, and what they name.
fn watched(node: &VolumeManager, pod: &Pod) -> (bool, Watched) {
    let volumes = volumes_of(pod);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let named = named_by_volumes(volumes).into_iter();
    let watched = named.map(|(kind, name)| {
        let source = node.sources.get(kind, namespace, &name);
        ((kind, name), source)
    });
    (volumes.iter().any(is_from_api), watched.collect())
}

/// Waits until the volumes are to be filled again: an object of theirs is another one, the pod is, or the time has come. False
/// where nobody tells of the pod any more.
async fn until_due<I: AsRef<Arc<Resting<Pod>>>>(
    changes: &mut [watch::Receiver<Known>],
    input: &mut Receiver<I>,
    sleep: Option<Duration>,
    filled_with: Option<u64>,
) -> bool {
    let watches = !changes.is_empty();
    let any: Vec<_> = changes.iter_mut().map(|change| change.changed().boxed()).collect();
    let mut any = OptionFuture::from(watches.then(|| select_all(any)));
    let mut due = std::pin::pin!(async { tokio::time::sleep(sleep.unwrap_or_default()).await });
    loop {
        tokio::select! {
            _ = &mut any, if watches => return true,
            changed = input.changed() => {
                if changed.is_err() {
                    return false;
                }
                let resting = resting(input);
                let basis = basis(&resting.get());
                resting.settle();
                if filled_with != Some(basis) {
                    return true;
                }
            }
            () = &mut due, if sleep.is_some() => return true,
        }
    }
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

async fn fill(
    node: &VolumeManager,
    pod: &Arc<Pod>,
    watched: &[((SourceKind, String), Arc<Source>)],
    tokens: &mut Vec<HeldToken>,
    dir: &Path,
    ip: IpAddr,
) -> Result<(), String> {
    let volumes = volumes_of(pod);
    let from_api = || volumes.iter().filter(|volume| is_from_api(volume));
    let mut known = BTreeMap::new();
    for (key, source) in watched {
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
                let (refresh_at, value) = (token.refresh_at, Some(token.value.clone()));
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
    use crate::latest::latest;
    use serde_json::{Value, json};

    struct Told(Arc<Resting<Pod>>);

    impl AsRef<Arc<Resting<Pod>>> for Told {
        fn as_ref(&self) -> &Arc<Resting<Pod>> {
            &self.0
        }
    }

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

    #[tokio::test]
    async fn volumes_that_are_filled_are_not_looked_at_for_a_status() {
        let told = |change: fn(&mut Value)| Told(Arc::new(pod(change).into()));
        let filled_with = Some(basis(&pod(|_| ())));
        let (sender, mut input) = latest(told(|_| ()));
        {
            let mut due = std::pin::pin!(until_due(&mut [], &mut input, None, filled_with));
            sender.set(|now| *now = told(running));
            assert!(futures::poll!(&mut due).is_pending());
            sender.set(|now| *now = told(|pod| pod["metadata"]["labels"]["a"] = "3".into()));
            assert!(due.await);
        }
        sender.set(|now| *now = told(running));
        assert!(until_due(&mut [], &mut input, None, None).await, "what could not be filled is tried again");
        drop(sender);
        assert!(!until_due(&mut [], &mut input, None, filled_with).await);
    }

    #[tokio::test]
    async fn a_source_that_changes_has_volumes_filled_again() {
        let (source, known) = watch::channel(Known::Unknown);
        let (_sender, mut input) = latest(Told(Arc::new(pod(|_| ()).into())));
        source.send_replace(Known::Missing);
        assert!(until_due(&mut [known], &mut input, None, Some(basis(&pod(|_| ())))).await);
    }
}

//! Feeds the table from the API: one watch of Services, one of EndpointSlices.

use std::collections::{BTreeSet, HashMap};
use std::pin::pin;
use std::sync::PoisonError;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use machinery_api::ObjectKey;
use tokio_util::sync::CancellationToken;

use crate::events::Events;
use crate::listen::Listeners;
use crate::plane::DataPlane;
use crate::table::Change;
use crate::unsupported;

/// How often a port that could not be bound is tried again: soon enough that a neighbour that ends is hardly noticed.
const BIND_RETRY: Duration = Duration::from_secs(2);

/// Runs until `stop`: keeps table and listeners what the API says. `synced` is called once the first state is in.
pub async fn run(plane: DataPlane, client: Client, stop: CancellationToken, synced: impl FnOnce() + Send) {
    let mut listeners = Listeners::new(plane.inner.clone(), stop.child_token());
    let events = Events::start(client.clone(), plane.inner.env.clone(), &plane.inner.config.node, &stop);
    let mut services = pin!(changes::<Service>(&client));
    let mut slices = pin!(changes::<EndpointSlice>(&client));
    let mut known = Known::default();
    let mut retry = tokio::time::interval(BIND_RETRY);
    let mut synced = Some(synced);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = retry.tick() => listeners.retry(),
            Some(event) = services.next() => {
                tell_unsupported(&events, &known, &event);
                for (key, service) in known.services.follow(event) {
                    match &service {
                        Some(service) => known.objects.insert(key.clone(), service.clone()),
                        None => known.objects.remove(&key),
                    };
                    let change = plane.inner.table.write().unwrap_or_else(PoisonError::into_inner).service(&key, service);
                    install(&plane, &mut listeners, &events, &known, vec![change]);
                }
            }
            Some(event) = slices.next() => {
                for (key, slice) in known.slices.follow(event) {
                    let changes = plane.inner.table.write().unwrap_or_else(PoisonError::into_inner).slice(&key, slice);
                    install(&plane, &mut listeners, &events, &known, changes);
                }
            }
            else => return,
        }
        if known.services.complete
            && known.slices.complete
            && let Some(synced) = synced.take()
        {
            synced();
        }
    }
}

/// The changes of a kind. Objects come untyped and are read one by one, so that one which cannot be read is left out alone
/// and doesn't break the watch of all others.
fn changes<K>(client: &Client) -> impl Stream<Item = watcher::Event<K>> + use<K>
where
    K: Resource<DynamicType = ()> + serde::de::DeserializeOwned,
{
    let kind = ApiResource::erase::<K>(&());
    let api = Api::<DynamicObject>::all_with(client.clone(), &kind);
    watcher(api, watcher::Config::default()).default_backoff().filter_map(async |event| match event {
        Ok(event) => typed(event),
        Err(error) => {
            tracing::warn!(%error, kind = %K::kind(&()), "watch interrupted; it is taken up again");
            None
        }
    })
}

/// A change of an object in its type.
fn typed<K: Resource<DynamicType = ()> + serde::de::DeserializeOwned>(
    event: watcher::Event<DynamicObject>,
) -> Option<watcher::Event<K>> {
    let read = |object: DynamicObject| {
        let name = key_of(&object);
        serde_json::to_value(object)
            .and_then(machinery_client::read)
            .inspect_err(|error| tracing::warn!(%error, kind = %K::kind(&()), %name, "an object cannot be read"))
            .ok()
    };
    Some(match event {
        watcher::Event::Init => watcher::Event::Init,
        watcher::Event::InitDone => watcher::Event::InitDone,
        watcher::Event::InitApply(object) => watcher::Event::InitApply(read(object)?),
        watcher::Event::Apply(object) => watcher::Event::Apply(read(object)?),
        watcher::Event::Delete(object) => watcher::Event::Delete(read(object)?),
    })
}

fn install(plane: &DataPlane, listeners: &mut Listeners, events: &Events, known: &Known, changes: Vec<Change>) {
    for change in changes {
        plane.inner.network.publish_routes(&change.begun, &change.ceased);
        for failure in listeners.apply(change) {
            tracing::warn!(service = %failure.service, address = %failure.address, error = %failure.error, "cannot listen");
            if let Some(service) = known.objects.get(&failure.service) {
                events.not_bound(service, &failure);
            }
        }
    }
}

/// What the watches have shown so far.
#[derive(Default)]
struct Known {
    services: Kind,
    slices: Kind,
    objects: HashMap<ObjectKey, Service>,
}

/// Follows a watch over its restarts: what a new first state no longer names is gone.
#[derive(Default)]
struct Kind {
    keys: BTreeSet<ObjectKey>,
    /// Keys of the first state that is coming in.
    arriving: BTreeSet<ObjectKey>,
    complete: bool,
}

impl Kind {
    fn follow<K: Resource>(&mut self, event: watcher::Event<K>) -> Vec<(ObjectKey, Option<K>)> {
        match event {
            watcher::Event::Init => {
                self.arriving.clear();
                Vec::new()
            }
            watcher::Event::InitApply(object) => {
                let key = key_of(&object);
                self.arriving.insert(key.clone());
                self.keys.insert(key.clone());
                vec![(key, Some(object))]
            }
            watcher::Event::InitDone => {
                self.complete = true;
                let arrived = std::mem::take(&mut self.arriving);
                let gone: Vec<_> = self.keys.difference(&arrived).cloned().collect();
                self.keys = arrived;
                gone.into_iter().map(|key| (key, None)).collect()
            }
            watcher::Event::Apply(object) => {
                let key = key_of(&object);
                self.keys.insert(key.clone());
                vec![(key, Some(object))]
            }
            watcher::Event::Delete(object) => {
                let key = key_of(&object);
                self.keys.remove(&key);
                vec![(key, None)]
            }
        }
    }
}

fn key_of(object: &impl Resource) -> ObjectKey {
    ObjectKey::new(object.namespace().unwrap_or_default(), object.name_any())
}

/// Tells of fields that a Service has just got and that nothing acts on.
fn tell_unsupported(events: &Events, known: &Known, event: &watcher::Event<Service>) {
    let (watcher::Event::Apply(service) | watcher::Event::InitApply(service)) = event else { return };
    let before = known.objects.get(&key_of(service)).map(unsupported::fields).unwrap_or_default();
    let now = unsupported::fields(service);
    if !now.is_empty() && now != before {
        events.unsupported(service, &now);
    }
}

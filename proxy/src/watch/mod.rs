//! Feeds the table from the API: reflectors of Services, EndpointSlices and HorizontalPodAutoscalers. A start without an
//! answer begins with the checkpoint, and the first list of each kind replaces it.

pub(crate) mod checkpoint;
pub(crate) mod events;

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hasher as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use machinery_api::ObjectKey;
use machinery_client::{Object, Reflector, ReflectorEvent, Typed, key_of, typed};
use machinery_env::Env;
use tokio_util::sync::CancellationToken;

use crate::listen::Listeners;
use crate::plane::DataPlane;
use crate::routing::table::{Change, Table};
use crate::routing::unsupported;
use crate::state::activation;
use crate::watch::checkpoint::{RouteRecord, WriteSchedule, reduce_service, reduce_slice};
use crate::watch::events::Events;

/// Interval of retries for ports that could not be bound: short, so that a port freed by another process is taken soon.
const BIND_RETRY: Duration = Duration::from_secs(2);

/// The number of Services that are encoded at once, so that no event waits for long.
const ENCODED_AT_ONCE: usize = 64;

/// Keeps routes and listeners in step with the API until `stop`. Calls `synced` after the first complete state, which
/// may be that of the checkpoint.
pub async fn run(plane: DataPlane, client: Client, stop: CancellationToken, synced: impl FnOnce() + Send) {
    let env = plane.state.env.clone();
    let feed = Mutex::new(TableFeed {
        listeners: Listeners::new(plane.state.clone(), stop.child_token()),
        events: Events::start(client.clone(), env.clone(), &plane.state.config.node, &stop),
        table: Table::of(plane.state.config.load_balancer_pool.clone(), plane.state.config.nodes.clone()),
        plane,
        services: KnownKeys::default(),
        slices: KnownKeys::default(),
        autoscalers: KnownKeys::default(),
        scalable_services: HashMap::new(),
        autoscalers_refused: false,
        objects: HashMap::new(),
        schedule: WriteSchedule::default(),
        synced: Some(synced),
    });
    // Locked for one event at a time; requests never take this lock.
    let feed = || -> MutexGuard<'_, _> { feed.lock().unwrap_or_else(PoisonError::into_inner) };
    let services = Reflector::of::<Service>(client.clone(), env.clone());
    let slices = Reflector::of::<EndpointSlice>(client.clone(), env.clone());
    let autoscalers = Reflector::of::<HorizontalPodAutoscaler>(client.clone(), env.clone());
    let state = feed().plane.state.clone();
    let retry = async {
        loop {
            env.sleep(BIND_RETRY).await;
            feed().listeners.retry();
        }
    };
    let feed = &feed;
    let keep = async {
        restore(feed, &env, state.config.checkpoint.as_deref()).await;
        let mut wait = WriteSchedule::IDLE;
        loop {
            env.sleep(wait).await;
            wait = write(feed, state.config.checkpoint.as_deref()).await;
        }
    };
    let is_frozen = tokio::select! {
        () = stop.cancelled() => false,
        () = state.freeze.requested() => true,
        () = keep => false,
        () = services.run(|event| feed().service_event(event)) => false,
        () = slices.run(|event| feed().slice_event(event)) => false,
        () = autoscalers.run(|event| feed().autoscaler_event(event)) => false,
        () = activation::write_conditions(&state.activation, client, &env, &stop) => false,
        () = retry => false,
    };
    // The last changes.
    write(feed, state.config.checkpoint.as_deref()).await;
    if is_frozen {
        stop.run_until_cancelled(state.freeze.run(|| feed().listeners.close_unreachable())).await;
    }
}

/// Uses the routes of the earlier run unless the API answers in time.
async fn restore<'a, F: FnOnce() + 'a>(
    feed: impl Fn() -> MutexGuard<'a, TableFeed<F>>,
    env: &Env,
    path: Option<&Path>,
) {
    let Some(path) = path.map(Path::to_owned) else { return };
    let loaded = tokio::task::spawn_blocking(move || checkpoint::load(&path)).await.unwrap_or_default();
    env.sleep(checkpoint::API_WAIT).await;
    feed().restore(loaded);
}

/// Writes the checkpoint if the routes have changed. Returns the delay of the next check.
async fn write<'a, F: FnOnce() + 'a>(feed: impl Fn() -> MutexGuard<'a, TableFeed<F>>, path: Option<&Path>) -> Duration {
    let Some(path) = path.map(Path::to_owned) else { return WriteSchedule::IDLE };
    let keys = feed().changed_services();
    let Some(keys) = keys else { return WriteSchedule::IDLE };
    let mut body = Vec::new();
    for some in keys.chunks(ENCODED_AT_ONCE) {
        let records = feed().records(some);
        records.iter().for_each(|record| checkpoint::encode(record, &mut body));
        tokio::task::yield_now().await;
    }
    let mut hash = DefaultHasher::new();
    hash.write(&body);
    let (hash, bytes) = (hash.finish(), body.len());
    if !feed().schedule.differs(hash) {
        return WriteSchedule::IDLE;
    }
    let file = path.clone();
    let stored = tokio::task::spawn_blocking(move || checkpoint::store(&file, &body)).await;
    let stored = stored.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    if let Err(error) = &stored {
        tracing::warn!(file = %path.display(), %error, "the routes cannot be written: a start without an API server would use older ones");
    }
    feed().schedule.record_write(hash, bytes, stored.is_ok())
}

/// Turns the API's events into changes of table, listeners and activation queues.
struct TableFeed<F> {
    plane: DataPlane,
    table: Table,
    listeners: Listeners,
    events: Events,
    services: KnownKeys,
    slices: KnownKeys,
    autoscalers: KnownKeys,
    /// The Services that may be scaled to zero, by their autoscaler.
    scalable_services: HashMap<ObjectKey, Vec<ObjectKey>>,
    /// The API server refuses the watch of autoscalers.
    autoscalers_refused: bool,
    /// The Services, for events on them.
    objects: HashMap<ObjectKey, Service>,
    schedule: WriteSchedule,
    synced: Option<F>,
}

impl<F: FnOnce()> TableFeed<F> {
    fn service_event(&mut self, event: ReflectorEvent) -> ControlFlow<()> {
        warn_of_interruption("Services", &event);
        for (key, service) in self.services.changes::<Service>(event) {
            self.record_unsupported_fields(&key, service.as_ref());
            match &service {
                Some(service) => self.objects.insert(key.clone(), service.clone()),
                None => self.objects.remove(&key),
            };
            let change = self.table.service(&key, service);
            self.install(change);
        }
        self.report_synced()
    }

    fn slice_event(&mut self, event: ReflectorEvent) -> ControlFlow<()> {
        warn_of_interruption("EndpointSlices", &event);
        for (key, slice) in self.slices.changes::<EndpointSlice>(event) {
            let changes = self.table.slice(&key, slice);
            changes.into_iter().for_each(|change| self.install(change));
        }
        self.report_synced()
    }

    /// Reports once that the API server refuses the watch, as in a cluster that isn't Coracle's. Returns whether it does.
    fn reports_refused_autoscalers(&mut self, event: &ReflectorEvent) -> bool {
        let ReflectorEvent::Interrupted(why) = event else { return false };
        let refused = why.contains("is forbidden: ");
        if refused && !std::mem::replace(&mut self.autoscalers_refused, true) {
            tracing::warn!(
                "this user may not watch HorizontalPodAutoscalers: workloads don't scale from zero by requests"
            );
        }
        refused
    }

    /// Updates the Services whose requests may be queued. Routes don't depend on it.
    fn autoscaler_event(&mut self, event: ReflectorEvent) -> ControlFlow<()> {
        if !self.reports_refused_autoscalers(&event) {
            warn_of_interruption("HorizontalPodAutoscalers", &event);
        }
        let mut changed = false;
        for (key, hpa) in self.autoscalers.changes::<HorizontalPodAutoscaler>(event) {
            let services = hpa.as_ref().map(activation::scalable_services).unwrap_or_default();
            changed |= match services.is_empty() {
                true => self.scalable_services.remove(&key).is_some(),
                false => self.scalable_services.insert(key, services.clone()) != Some(services),
            };
        }
        if changed {
            self.plane
                .state
                .activation
                .set_scalable_services(self.scalable_services.values().flatten().cloned().collect());
        }
        ControlFlow::Continue(())
    }

    /// Applies the state of the earlier run, as far as the API's isn't known.
    fn restore(&mut self, records: Vec<RouteRecord>) {
        let (of_services, of_slices) = (!self.services.complete, !self.slices.complete);
        if !of_services && !of_slices || records.is_empty() {
            return;
        }
        tracing::warn!(services = records.len(), "the API server does not answer: routes are those of the checkpoint");
        for (service, slices) in records {
            for slice in slices.into_iter().filter(|_| of_slices) {
                let key = key_of(&slice.metadata);
                self.slices.keys.insert(key.clone());
                self.table.slice(&key, Some(slice)).into_iter().for_each(|change| self.install(change));
            }
            if of_services {
                let key = key_of(&service.metadata);
                self.services.keys.insert(key.clone());
                self.objects.insert(key.clone(), service.clone());
                let change = self.table.service(&key, Some(service));
                self.install(change);
            }
        }
        if let Some(synced) = self.synced.take() {
            synced();
        }
    }

    /// All Services, if any route has changed since the last call and the API's state is complete.
    fn changed_services(&mut self) -> Option<Vec<ObjectKey>> {
        if !(self.services.complete && self.slices.complete && self.schedule.take_change()) {
            return None;
        }
        let mut keys: Vec<ObjectKey> = self.table.services().cloned().collect();
        keys.sort();
        Some(keys)
    }

    /// The records of these Services, as far as they exist.
    fn records(&self, keys: &[ObjectKey]) -> Vec<RouteRecord> {
        let objects = keys.iter().filter_map(|key| self.table.objects(key));
        objects.map(|(service, slices)| (reduce_service(service), slices.map(reduce_slice).collect())).collect()
    }

    fn install(&mut self, change: Change) {
        self.schedule.record_change();
        let state = &self.plane.state;
        state.install(&change);
        state.network.publish_routes(&change.begun, &change.ceased);
        for failure in self.listeners.apply(change) {
            tracing::warn!(service = %failure.service, address = %failure.address, error = %failure.error, "cannot listen");
            if let Some(service) = self.objects.get(&failure.service) {
                self.events.not_bound(service, &failure);
            }
        }
    }

    /// Records events for fields without effect that a Service has newly got.
    fn record_unsupported_fields(&self, key: &ObjectKey, service: Option<&Service>) {
        let Some(service) = service else { return };
        let pool = &self.plane.state.config.load_balancer_pool;
        let before = self.objects.get(key);
        let is_new = |fields: &dyn Fn(&Service) -> Vec<String>| {
            let now = fields(service);
            (!now.is_empty() && before.map(fields).unwrap_or_default() != now).then_some(now)
        };
        if let Some(fields) = is_new(&unsupported::fields) {
            self.events.unsupported(service, &fields);
        }
        if let Some(fields) = is_new(&|service| unsupported::without_address(service, pool)) {
            self.events.without_address(service, &fields);
        }
    }

    fn report_synced(&mut self) -> ControlFlow<()> {
        if self.services.complete
            && self.slices.complete
            && let Some(synced) = self.synced.take()
        {
            self.plane.state.set_synced();
            synced();
        }
        ControlFlow::Continue(())
    }
}

pub(crate) fn warn_of_interruption(kind: &str, event: &ReflectorEvent) {
    if let ReflectorEvent::Interrupted(why) = event {
        tracing::warn!(kind, why, "watch interrupted; restarting it");
    }
}

/// The present keys of a kind, to derive deletions from a new complete state.
#[derive(Default)]
pub(crate) struct KnownKeys {
    keys: BTreeSet<ObjectKey>,
    complete: bool,
}

impl KnownKeys {
    /// Splits an event into changes of single objects, deletions last.
    pub(crate) fn changes<K: Typed>(&mut self, event: ReflectorEvent) -> Vec<(ObjectKey, Option<K>)> {
        let present = |object: Arc<dyn Object>| {
            let key = key_of(object.metadata());
            typed::<K>(&*object).map(|object| (key, Some(object.clone())))
        };
        match event {
            ReflectorEvent::Replaced(objects, _) => {
                self.complete = true;
                let mut changes: Vec<_> = objects.into_iter().filter_map(present).collect();
                let keys: BTreeSet<ObjectKey> = changes.iter().map(|(key, _)| key.clone()).collect();
                changes.extend(self.keys.difference(&keys).map(|gone| (gone.clone(), None)));
                self.keys = keys;
                changes
            }
            ReflectorEvent::Applied(object) => {
                let change = present(object);
                self.keys.extend(change.iter().map(|(key, _)| key.clone()));
                change.into_iter().collect()
            }
            ReflectorEvent::Deleted(object) => {
                let key = key_of(object.metadata());
                self.keys.remove(&key);
                vec![(key, None)]
            }
            ReflectorEvent::Progress(_) | ReflectorEvent::Interrupted(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod outage;
#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn objects_missing_in_a_new_list_are_removed() {
        let service = |name: &str| -> Arc<dyn Object> {
            let service = json!({"metadata": {"name": name, "namespace": "shop", "resourceVersion": "1"}});
            Arc::new(serde_json::from_value::<Service>(service).unwrap())
        };
        let mut known = KnownKeys::default();
        let mut names = |event| {
            let changes = known.changes::<Service>(event);
            changes.into_iter().map(|(key, service)| (key.name, service.is_some())).collect::<Vec<_>>()
        };
        let is = |name: &str, there| (name.to_owned(), there);
        assert_eq!(
            names(ReflectorEvent::Replaced(vec![service("a"), service("b")], 1)),
            [is("a", true), is("b", true)]
        );
        assert_eq!(names(ReflectorEvent::Applied(service("c"))), [is("c", true)]);
        assert_eq!(names(ReflectorEvent::Deleted(service("a"))), [is("a", false)]);
        assert_eq!(
            names(ReflectorEvent::Replaced(vec![service("c"), service("d")], 9)),
            [is("c", true), is("d", true), is("b", false)],
            "what is new comes before what is gone"
        );
        assert!(names(ReflectorEvent::Progress(10)).is_empty());
    }
}

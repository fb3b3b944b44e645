//! Feeds the table from the API: reflectors of Services, EndpointSlices and HorizontalPodAutoscalers.

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use machinery_api::ObjectKey;
use machinery_client::{Object, Reflector, ReflectorEvent, Typed, key_of, typed};
use tokio_util::sync::CancellationToken;

use crate::events::Events;
use crate::listen::Listeners;
use crate::plane::DataPlane;
use crate::table::{Change, Table};
use crate::{activation, unsupported};

/// Interval of retries for ports that could not be bound: short, so that a port freed by another process is taken soon.
const BIND_RETRY: Duration = Duration::from_secs(2);

/// Keeps routes and listeners in step with the API until `stop`. Calls `synced` after the first complete state.
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
        objects: HashMap::new(),
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
    tokio::select! {
        () = stop.cancelled() => {}
        () = services.run(|event| feed().service_event(event)) => {}
        () = slices.run(|event| feed().slice_event(event)) => {}
        () = autoscalers.run(|event| feed().autoscaler_event(event)) => {}
        () = activation::write_conditions(&state.activation, client, &env, &stop) => {}
        () = retry => {}
    }
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
    /// The Services, for events on them.
    objects: HashMap<ObjectKey, Service>,
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

    /// Updates the Services whose requests may be queued. Routes don't depend on it.
    fn autoscaler_event(&mut self, event: ReflectorEvent) -> ControlFlow<()> {
        warn_of_interruption("HorizontalPodAutoscalers", &event);
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

    fn install(&mut self, change: Change) {
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

    /// Records an event for unsupported fields that a Service has newly got.
    fn record_unsupported_fields(&self, key: &ObjectKey, service: Option<&Service>) {
        let Some(service) = service else { return };
        let pool = &self.plane.state.config.load_balancer_pool;
        let fields = |service| unsupported::fields(service, !pool.is_empty());
        let before = self.objects.get(key).map(fields).unwrap_or_default();
        let now = fields(service);
        if !now.is_empty() && now != before {
            self.events.unsupported(service, &now);
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

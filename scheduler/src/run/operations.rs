//! The operations of a scheduling cycle: the decision and its effects on the snapshot, the binding, and the writes for a
//! pod that was not scheduled. They decide nothing: each performs one action of [`crate::cycle`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use machinery_client::{EventRecord, Pod};
use tokio::sync::OwnedSemaphorePermit;

use super::calls::bind_with_extender;
use super::{Performed, Scheduler};
use crate::bind::{Report, bind, condition, pre_bind, report, until_bound};
use crate::cycle::{Event, Preemption, SchedulingCycle, SchedulingFailure};
use crate::decide::{Nomination, decide_with};
use crate::extender::Verdicts;
use crate::plugins::{Point, PreBindPatch, Profile};
use crate::pod::PodInfo;
use crate::preempt::{self, Cleared, Victim};
use crate::snapshot::Snapshot;
use crate::wasm::Failed;

/// The message of a pod's event and condition after a panic in its decision.
const DECISION_PANICKED: &str = "the scheduler panicked while it decided on this pod; its log has the panic";

impl Scheduler {
    pub(super) fn decide(&self, cycle: &SchedulingCycle, start: usize, verdicts: Option<&Verdicts>) -> Event {
        let (pod, profile) = (&cycle.queued.pod, &self.config.profiles[cycle.profile]);
        let begun = self.env.elapsed();
        let seed = self.env.random_u64();
        // A bug that one pod triggers must not end the scheduler: the pod is retried after its back-off.
        let decided = AssertUnwindSafe(|| decide_with(&self.snapshot, pod, profile, start, seed, verdicts));
        let Ok(decision) = catch_unwind(decided) else {
            tracing::error!(pod = %pod.key, "the decision panicked; it is retried");
            return Event::Failed(DECISION_PANICKED.to_owned());
        };
        Event::Decided { decision, took: self.env.elapsed().saturating_sub(begun) }
    }

    /// Adds the pod to the node in the snapshot, and runs the `Reserve` plugins.
    pub(super) fn assume(&mut self, cycle: &SchedulingCycle, node: &Arc<str>) -> Event {
        let pod = &cycle.queued.pod;
        self.snapshot.nominated.clear(&pod.key);
        let assumed = PodInfo { node: Some(node.clone()), ..(**pod).clone() };
        self.snapshot.put_pod(Arc::new(assumed), node, true);
        match reserve(&mut self.snapshot, &self.config.profiles[cycle.profile], pod, node) {
            Ok(patches) => Event::Reserved(patches),
            Err(why) => {
                tracing::info!(pod = %pod.key, %why, "a reservation failed");
                Event::Failed(why)
            }
        }
    }

    /// Undoes [`assume`](Self::assume).
    pub(super) fn forget(&mut self, cycle: &SchedulingCycle, node: &str) {
        let pod = &cycle.queued.pod;
        unreserve(&mut self.snapshot, &self.config.profiles[cycle.profile], pod, node);
        self.remove_placed(&pod.key);
    }

    /// Writes the `PreBind` patches, and the binding.
    pub(super) fn bind(
        &mut self,
        cycle: SchedulingCycle,
        node: Arc<str>,
        patches: Vec<(&'static str, PreBindPatch)>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Performed {
        let (client, pod) = (self.client.clone(), cycle.queued.pod.clone());
        let events = self.events[cycle.profile].clone();
        let about = self.reference(&pod);
        let binder = self.calls.binder(&pod);
        let (informer, env) = (self.informer.clone(), self.env.clone());
        self.spawn(cycle, async move {
            let mut permit = permit;
            let written = async {
                pre_bind(&client, patches).await?;
                if pod.claims.is_some() {
                    // Provisioning takes time, and other pods are bound meanwhile.
                    permit = None;
                    until_bound(&env, &informer, &pod, &node).await?;
                }
                match bind_with_extender(binder, &pod, &node).await {
                    Some(bound) => bound,
                    None => bind(&client, &pod.key, &pod.uid, &node).await,
                }
            };
            let event = match written.await {
                Ok(()) => {
                    let message = format!("Successfully assigned {} to {node}", pod.key);
                    let note = EventRecord { about, warning: false, reason: "Scheduled", message, source: None };
                    events.record_action(note, "Binding");
                    Event::Bound
                }
                Err(why) => {
                    tracing::info!(pod = %pod.key, %why, "a binding failed");
                    Event::Failed(why)
                }
            };
            drop(permit);
            event
        })
    }

    /// An object reference for events, with the resource version in the informer's view.
    fn reference(&self, pod: &PodInfo) -> ObjectReference {
        let version = |object: &Pod| object.metadata.resource_version.clone();
        ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(pod.key.namespace.clone()),
            name: Some(pod.key.name.clone()),
            uid: Some(pod.uid.to_string()),
            resource_version: self.read_object(&pod.key, version).flatten(),
            field_path: None,
        }
    }

    /// Records the failures of ignored plugins, once per back-off.
    pub(super) fn record_plugin_failures(&self, cycle: &SchedulingCycle, failed: &[Failed]) {
        let pod = &cycle.queued.pod;
        for Failed { plugin, extension_point, why, .. } in failed.iter().filter(|failed| failed.was_called) {
            tracing::warn!(plugin, extension_point, pod = %pod.key, why, "a scheduler plugin failed and is ignored");
            let message =
                format!("Scheduler plugin {plugin:?} failed at {extension_point} and was done without: {why}");
            let about = self.reference(pod);
            let note = EventRecord { about, warning: true, reason: "SchedulerPluginFailed", message, source: None };
            self.events[cycle.profile].record_action(note, "Scheduling");
        }
    }

    /// Records the `FailedScheduling` event of a pod, and returns the status to write.
    fn record_failure(&self, cycle: &SchedulingCycle, failure: SchedulingFailure) -> Option<Report> {
        let SchedulingFailure { reason, message, nomination } = failure;
        let pod = &cycle.queued.pod;
        let about = self.reference(pod);
        let note =
            EventRecord { about, warning: true, reason: "FailedScheduling", message: message.clone(), source: None };
        self.events[cycle.profile].record_action(note, "Scheduling");
        let now = self.env.now();
        let report = self.read_object(&pod.key, |object: &Pod| {
            let status = object.status.as_ref();
            let conditions = status.and_then(|status| status.conditions.as_ref());
            let present =
                conditions.into_iter().flat_map(|all| all.iter()).find(|condition| condition.type_ == "PodScheduled");
            let condition = condition(present, object.metadata.generation, reason, &message, now);
            let current = status.and_then(|status| status.nominated_node_name.as_deref()).unwrap_or_default();
            let nominated = match &nomination {
                Nomination::Keep => None,
                Nomination::Clear => Some(String::new()),
                Nomination::Node(name) => Some(name.clone()),
            };
            Report { condition, nominated: nominated.filter(|name| name != current) }
        });
        report.filter(|report| *report != Report::default())
    }

    /// Writes the event and the status of a pod that was not scheduled, with its nomination.
    pub(super) fn report_failure(
        &mut self,
        cycle: SchedulingCycle,
        failure: SchedulingFailure,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Performed {
        let Some(status) = self.record_failure(&cycle, failure) else {
            return Performed::Completed(cycle, Event::Reported);
        };
        let (client, pod) = (self.client.clone(), cycle.queued.pod.clone());
        self.spawn(cycle, async move {
            if let Err(error) = report(&client, &pod.key, &pod.uid, status).await {
                tracing::debug!(pod = %pod.key, %error, "a condition was not written; the next try writes it");
            }
            drop(permit);
            Event::Reported
        })
    }

    /// Nominates the pod in the snapshot, and retries the displaced pods.
    pub(super) fn nominate(&mut self, cycle: &SchedulingCycle, node: &str, displaced: &[Arc<PodInfo>]) {
        for other in displaced {
            self.snapshot.nominated.clear(&other.key);
            self.queue.activate(&other.key, self.env.elapsed());
        }
        self.snapshot.nominated.set(cycle.queued.pod.clone(), node);
    }

    /// Writes the nomination, and deletes the victims.
    pub(super) fn preempt(
        &mut self,
        cycle: SchedulingCycle,
        preemption: Preemption,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Performed {
        let Preemption { node, victims, displaced, failure } = preemption;
        let victims = victims.iter().map(|victim| Victim {
            key: victim.key.clone(),
            uid: victim.uid.clone(),
            generation: self.read_object(&victim.key, |pod: &Pod| pod.metadata.generation).flatten(),
            about: self.reference(victim),
        });
        let victims: Vec<Victim> = victims.collect();
        let cleared =
            displaced.iter().map(|other| Cleared { key: other.key.clone(), uid: other.uid.clone() }).collect();
        let (client, env, pod) = (self.client.clone(), self.env.clone(), cycle.queued.pod.clone());
        let events = self.events[cycle.profile].clone();
        let status = self.record_failure(&cycle, failure);
        self.spawn(cycle, async move {
            if let Some(status) = status
                && let Err(error) = report(&client, &pod.key, &pod.uid, status).await
            {
                tracing::debug!(pod = %pod.key, %error, "a nomination was not written; the next try writes it");
            }
            preempt::clear(&client, cleared).await;
            let scheduler = &pod.requirements.scheduler;
            let result = preempt::delete_victims(&client, env.now(), scheduler, victims, |about| {
                let message = format!("Preempted by pod {} on node {node}", pod.uid);
                let note = EventRecord { about, warning: false, reason: "Preempted", message, source: None };
                events.record_action(note, "Preempting");
            });
            let result = result.await;
            if let Err(why) = &result {
                tracing::info!(pod = %pod.key, why, "a preemption failed");
            }
            drop(permit);
            Event::Preempted(result)
        })
    }
}

/// Runs the `Reserve` plugins, and returns the `PreBind` patches, each with its plugin's name; or the reason why a
/// reservation failed.
fn reserve(
    snapshot: &mut Snapshot,
    profile: &Profile,
    pod: &PodInfo,
    node: &str,
) -> Result<Vec<(&'static str, PreBindPatch)>, String> {
    for (plugin, _) in profile.at(Point::Reserve) {
        if let Some(reserve) = &plugin.reserve {
            let name = plugin.name;
            (reserve.reserve)(snapshot, pod, node).map_err(|why| format!("running Reserve plugin {name:?}: {why}"))?;
        }
    }
    let plugins = profile.at(Point::PreBind).filter_map(|(plugin, _)| Some((plugin.name, plugin.pre_bind?)));
    let patches =
        plugins.flat_map(|(name, pre_bind)| pre_bind(snapshot, pod, node).into_iter().map(move |p| (name, p)));
    Ok(patches.collect())
}

/// Undoes the reservations, in reverse order.
fn unreserve(snapshot: &mut Snapshot, profile: &Profile, pod: &PodInfo, node: &str) {
    let reserves: Vec<_> = profile.at(Point::Reserve).filter_map(|(plugin, _)| plugin.reserve.as_ref()).collect();
    for reserve in reserves.into_iter().rev() {
        (reserve.unreserve)(snapshot, pod, node);
    }
}

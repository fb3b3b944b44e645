//! The worker of one pod: passes events to [`PodState`], performs the returned actions, and writes the resulting status.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, PodCondition, PodStatus};
use machinery_api::ObjectKey;
use machinery_client::{EventRecord, Kind, reference_to, version_of};
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;

use super::admit::{Claim, Rejection};
use super::clock::ClockStepDetector;
use super::settings::{self, grace, rules};
use super::shared::NodeContext;
use super::start::{self, CreatedContainer};
use super::state::{
    Action, Admission, Class, ContainerEvent, ContainerMachine, ContainerStage, Event, LifecyclePolicy, PodState,
    ProbeKind, Stage, StopReason,
};
use super::{probe, resize, status, unsupported};
use crate::config::sources::{Source, SourceKind};
use crate::latest::Receiver;
use crate::mailbox::{self, Sender, mailbox};
use crate::spec::compressed::{Compressed, Decompressed};
use crate::spec::{containers, requests};
use crate::volume::measure::{MeasureGuard, MeasuredPod};
use crate::volume::usage::{self, VolumeLimits};
use runtime_api::ledger::{Ledger, Resource};
use runtime_api::{CpuQuota, KeyvalueOwner, MemoryFiles};
use slot::{ContainerSlot, LiveContainer};
use volumes::PodVolumes;

mod admission;
mod message;
mod perform;
mod report;
mod resized;
mod slot;
mod view;
mod volumes;

pub(crate) use message::{Message, container_message};
pub(crate) use view::{ContainerSnapshot, Packers, PodSnapshot, PodView};

/// The capacity of a worker's mailbox. Its tasks send few messages, and wait when the mailbox is full.
const MESSAGES_MAX: usize = 32;
/// The first delay before a failed write to the API is retried; it doubles up to the maximum.
const WRITE_RETRY_FIRST: Duration = Duration::from_millis(200);
const WRITE_RETRY_MAX: Duration = Duration::from_secs(15);
/// The maximum time that a resumed pod waits for the API to accept Ready=False, so that clients observe the restart. A
/// slower API counts as unavailable; a pod that this node already ran starts without it.
const RESUME_HELD_MAX: Duration = Duration::from_secs(5);
/// The minimum interval between two repairs of a status that others keep overwriting (upstream's reconcile period).
const REPAIR_INTERVAL: Duration = Duration::from_secs(10);
/// The delay of the first repair after a foreign status write, so that controllers can react to that write.
const REPAIR_FIRST: Duration = Duration::from_secs(5);

/// The pod as the API holds it.
#[derive(Debug, Clone)]
pub(crate) struct PodInput {
    /// The newest state.
    pub(crate) pod: Arc<Compressed<Pod>>,
    /// The node's resources and ports that the pod occupies.
    pub(crate) claim: Claim,
    /// The pod was removed from the API.
    pub(crate) removed: bool,
    /// The requested CPU and memory amounts, if they differ from the allocated amounts in `pod`.
    pub(crate) pending_resize: Option<resize::PendingResize>,
    /// The API object that receives the status.
    pub(crate) status_target: StatusTarget,
}

/// The API object that receives a pod's status.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum StatusTarget {
    /// The pod itself.
    #[default]
    Pod,
    /// The mirror of a static pod, by uid; `None` while there is no mirror.
    Mirror(Option<String>),
}

impl AsRef<Arc<Compressed<Pod>>> for PodInput {
    fn as_ref(&self) -> &Arc<Compressed<Pod>> {
        &self.pod
    }
}

impl PodInput {
    pub(crate) fn new(pod: Arc<Pod>, status_target: StatusTarget) -> Self {
        let claim = Claim::of(&pod);
        Self { pod: Arc::new(pod.into()), claim, removed: false, pending_resize: None, status_target }
    }

    /// Replaces the pod by a newer state.
    pub(crate) fn update(&mut self, pod: Arc<Pod>) {
        self.claim = Claim::of(&pod);
        self.pod = Arc::new(pod.into());
    }
}

/// A task that is aborted when this is dropped.
pub(crate) struct Task(pub(crate) JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(crate) struct PodWorker {
    node: Arc<NodeContext>,
    view: Arc<PodView>,
    input: Receiver<PodInput>,
    pod: Arc<Compressed<Pod>>,
    decompressed: Decompressed<Pod>,
    about: Arc<ObjectReference>,
    rules: LifecyclePolicy,
    state: PodState,
    ip: Option<IpAddr>,
    host_ports: Vec<Task>,
    sender: Sender<Message>,
    messages: mailbox::Receiver<Message>,
    /// The containers, in the order of the state's list.
    slots: Vec<ContainerSlot>,
    /// The host resources that the containers hold together.
    ledger: Arc<Ledger>,
    /// The CPU quota that the containers share.
    cpu: Arc<CpuQuota>,
    /// A resize that can't be granted now, and the progress of a granted one.
    pending_resize: Option<resize::PendingResize>,
    /// The API object that receives the status.
    status_target: StatusTarget,
    resize_progress: Option<resize::ResizeProgress>,
    /// Retries the rest of a resize.
    resize_retry: Option<Task>,
    /// The memory account of the pod's in-memory volumes, if it has any.
    memory_files: Option<Arc<MemoryFiles>>,
    /// The ConfigMaps and Secrets of the containers. They are held from the first start on, so that restarts work while
    /// the API is unavailable.
    sources: BTreeMap<(SourceKind, String), Arc<Source>>,
    /// The owner of the pod's keyvalue store, once it was resolved.
    keyvalue: Arc<OnceCell<KeyvalueOwner>>,
    volumes: Option<PodVolumes>,
    /// Waits for an address or a host port.
    mount_retry: Option<Task>,
    /// The missing resource of the last event.
    last_mount_error: Option<String>,
    measure: Option<(VolumeLimits, MeasureGuard)>,
    /// The conditions at adoption, for their transition times, until the first status is projected.
    first_conditions: Option<Vec<PodCondition>>,
    desired_status: Arc<Compressed<PodStatus>>,
    /// The state has changed since `desired_status` was projected. The next projection is due at `next_projection_at`.
    stale: bool,
    next_projection_at: Option<Duration>,
    reported: report::ReportedStatus,
    /// Whether the status has to be written; `None` until this is computed.
    dirty: Option<bool>,
    /// The first actions of a resumed pod, held back until the API has its status.
    held_actions: Option<HeldActions>,
    delete_pending: bool,
    /// The number of consecutive failed writes.
    failures: u32,
    /// The event for a status above the API's size limit was recorded.
    too_large: bool,
    adopted_at: Duration,
    /// The pod was ready once, so its start latency is recorded.
    was_ready: bool,
    clock: ClockStepDetector,
    /// The final status that an earlier run of the agent wrote.
    final_status_before_restart: Option<Compressed<PodStatus>>,
}

/// A write to the API. Yields the written status (`None` for a delete) and the pod's version after the write.
type Write = BoxFuture<'static, (Option<Arc<Compressed<PodStatus>>>, Result<u64, kube::Error>)>;

/// Actions that wait for a status write.
struct HeldActions {
    actions: Vec<Action>,
    /// The deadline, by the monotonic clock.
    until: Duration,
}

impl PodWorker {
    /// A worker for a pod of this node. `ip` is the address of an earlier run.
    pub(crate) fn new(
        node: Arc<NodeContext>,
        view: Arc<PodView>,
        mut input: Receiver<PodInput>,
        ip: Option<IpAddr>,
    ) -> Self {
        let (compressed, status_target) = input.read(|input| (input.pod.clone(), input.status_target.clone()));
        let pod = compressed.get();
        let (sender, messages) = mailbox(MESSAGES_MAX);
        view.set_worker(sender.clone());
        let now = node.parts.env.now();
        let clock = ClockStepDetector::new(now, node.parts.env.elapsed());
        let rules = rules(&pod);
        let ledger = Ledger::pod(node.parts.runtime.ledger());
        ledger.set_limit(Resource::Memory, requests::memory_bound(&pod).unwrap_or(u64::MAX));
        let cpu = Arc::new(CpuQuota::new(requests::pod_limit(&pod, "cpu"), node.parts.env.elapsed()));
        let state = status::recall(&pod, &rules, now);
        Self {
            about: Arc::new(reference_to(&*pod)),
            rules,
            state,
            slots: ContainerSlot::all(&pod),
            ledger,
            cpu,
            pending_resize: None,
            status_target,
            resize_progress: None,
            resize_retry: None,
            memory_files: None,
            sources: BTreeMap::new(),
            keyvalue: Arc::default(),
            first_conditions: pod.status.as_ref().and_then(|status| status.conditions.clone()),
            desired_status: Arc::default(),
            stale: false,
            next_projection_at: None,
            reported: report::ReportedStatus::default(),
            dirty: None,
            held_actions: None,
            adopted_at: node.parts.env.elapsed(),
            node,
            view,
            input,
            pod: compressed,
            decompressed: Decompressed::default(),
            ip,
            host_ports: Vec::new(),
            sender,
            messages,
            volumes: None,
            mount_retry: None,
            last_mount_error: None,
            measure: None,
            delete_pending: false,
            failures: 0,
            too_large: false,
            was_ready: false,
            clock,
            final_status_before_restart: None,
        }
    }

    fn now(&self) -> Timestamp {
        self.node.parts.env.now()
    }

    /// Runs the pod until it is removed. A stopping node drops the future. `rejection` is the admission failure.
    pub(crate) async fn run(mut self: Box<Self>, rejection: Option<Rejection>) {
        let now = self.now();
        // On the heap for its duration: the size of a pod's task is that of its largest state.
        let admission = Box::pin(self.admit(rejection)).await;
        self.begin(admission, now);
        let mut writing: Option<Write> = None;
        // The earliest monotonic time of the next write after a failed one.
        let mut retry_at: Option<Duration> = None;
        loop {
            if self.state.is_removed() && *self.state.stage() == Stage::Ended {
                return;
            }
            self.detect_clock_step();
            let elapsed = self.node.parts.env.elapsed();
            retry_at = retry_at.filter(|at| elapsed < *at);
            if self.held_actions.as_ref().is_some_and(|held| held.until <= elapsed) {
                self.perform_held();
            }
            let dirty = self.dirty();
            if !dirty && self.held_actions.is_some() {
                // The API already has the status that was to be written first.
                self.perform_held();
            }
            let settles = self.settle_delay();
            if writing.is_none() && retry_at.is_none() && !self.state.is_removed() {
                if dirty && settles.is_none() {
                    writing = Some(self.write_status());
                } else if !dirty && !self.stale && self.delete_pending {
                    writing = Some(self.write_delete());
                }
            }
            let prepares = self.slots.iter().any(|slot| slot.preparing.is_some());
            if writing.is_none() && retry_at.is_none() && self.held_actions.is_none() && !dirty && !prepares {
                self.compress();
            }
            let held = self.held_actions.as_ref().map(|held| held.until.saturating_sub(elapsed));
            let projects = self.next_projection_at.filter(|_| self.stale).map(|from| from.saturating_sub(elapsed));
            let settles = settles.filter(|_| dirty && writing.is_none());
            let ticks =
                [self.next_tick_in(), settles, held, projects, self.next_refill_in()].into_iter().flatten().min();
            // One timer for all deadlines: each further timer would enlarge every pod's task.
            let wake = ticks.into_iter().chain(retry_at.map(|at| at.saturating_sub(elapsed))).min();
            tokio::select! {
                changed = self.input.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.handle_input();
                }
                message = self.messages.recv() => self.handle_message(message),
                (status, result) = async { writing.as_mut().expect("guarded").await }, if writing.is_some() => {
                    writing = None;
                    let wait = self.handle_write_result(status, result);
                    retry_at = wait.map(|wait| self.node.parts.env.elapsed() + wait);
                }
                () = async { self.node.parts.env.sleep(wake.unwrap_or_default()).await }, if wake.is_some() => {
                    if wake == ticks {
                        self.apply(Event::Tick);
                        self.refresh_volumes(false);
                    }
                }
            }
        }
    }

    /// The first step of the pod's state.
    fn begin(&mut self, admission: Admission, now: Timestamp) {
        let ended_before = self.state.succeeded().is_some();
        let (state, actions) = self.state.clone().begin(&self.rules, admission, now);
        self.state = state;
        if ended_before {
            // The written status is complete, and this run has less information than the one that wrote it.
            self.final_status_before_restart =
                self.pod().status.clone().filter(status::tells_the_end).map(Compressed::from);
        }
        self.project();
        if ended_before && self.state.deleted().is_none() {
            self.reported.suppress_writes(self.desired_status.clone());
            self.dirty = None;
        }
        if self.state.is_resumed() {
            // Ready goes through False before anything runs again, and the API must have observed it.
            self.held_actions = Some(HeldActions { actions, until: self.node.parts.env.elapsed() + RESUME_HELD_MAX });
        } else {
            self.perform(actions);
        }
    }

    /// Passes a step of the wall clock to the pod's state.
    fn detect_clock_step(&mut self) {
        if let Some(by) = self.clock.step(self.now(), self.node.parts.env.elapsed()) {
            self.apply(Event::ClockStepped(by));
        }
    }

    /// The time until the state's next [`Event::Tick`].
    fn next_tick_in(&self) -> Option<Duration> {
        let at = self.state.wake_at(&self.rules)?;
        Some(Duration::try_from(at.duration_since(self.now())).unwrap_or_default())
    }

    fn set_pod(&mut self, pod: Arc<Compressed<Pod>>) {
        let pod = containers::in_stable_order(self.pod(), &pod.get()).map_or(pod, |ordered| Arc::new(ordered.into()));
        self.view.update(|snapshot| snapshot.pod = pod.clone());
        self.decompressed.clear();
        self.pod = pod;
    }

    /// The newest state of the pod.
    fn pod(&self) -> &Arc<Pod> {
        self.decompressed.get(&self.pod)
    }

    /// Drops the decompressed forms once no step needs them.
    fn compress(&mut self) {
        if self.decompressed.clear() {
            self.pod.compress();
            [Some(&*self.desired_status), self.final_status_before_restart.as_ref()]
                .into_iter()
                .flatten()
                .for_each(Compressed::compress);
            self.slots.iter().for_each(|slot| slot.container.compress());
        }
    }

    /// The state of a container.
    fn machine(&self, container: usize) -> Option<&ContainerMachine> {
        self.state.machines().get(container)
    }

    /// Whether `preparation` is the number of the container's newest pull or start. Results of older ones are dropped.
    fn awaits(&self, container: usize, preparation: u32) -> bool {
        self.machine(container).is_some_and(|machine| machine.awaits(preparation))
    }

    // --- inputs -------------------------------------------------------------------------------------------------------

    fn handle_input(&mut self) {
        let PodInput { pod, removed, pending_resize, status_target, .. } = self.input.read(PodInput::clone);
        if status_target != self.status_target {
            // Another object, whose contents are unknown.
            self.reported = report::ReportedStatus::default();
            self.status_target = status_target;
        }
        let had = self.pod().clone();
        let before = grace(&had);
        self.set_pod(pod);
        self.dirty = None;
        self.reported.observe(version_of(&self.pod().metadata));
        if removed {
            if !self.state.is_removed() {
                self.apply(Event::Removed);
            }
            return;
        }
        self.refresh_volumes(true);
        // `activeDeadlineSeconds` may have been set or shortened, and images changed.
        let pod = self.pod().clone();
        self.rules = rules(&pod);
        self.handle_resize(&had, pending_resize);
        for container in ContainerSlot::update(&mut self.slots, &pod) {
            self.apply(Event::Container(container, ContainerEvent::ImageChanged));
        }
        if self.slots.len() > self.state.machines().len() {
            // New ephemeral containers join the state in the next step.
            self.apply(Event::Tick);
        }
        match grace(&pod) {
            Some(grace) if before != Some(grace) => self.apply(Event::Deleted(grace)),
            _ => self.project(),
        }
    }

    fn handle_message(&mut self, message: Message) {
        match message {
            Message::Event(event) => self.apply(*event),
            // Another pod may have taken the resource meanwhile, and this pod may have ended.
            Message::Mount if *self.state.stage() == Stage::Mounting && self.volumes.is_none() => self.mount(),
            Message::Mount => {}
            Message::Filled(filled) => self.handle_filled(filled),
            Message::Pulled(pulled) => {
                let ((container, preparation), pulls, message) = *pulled;
                if !self.awaits(container, preparation) {
                    return;
                }
                let image_id = pulls.image.image_id.clone();
                if let Some(slot) = self.slots.get_mut(container) {
                    slot.pulls = Some(pulls);
                    // A finished task stays allocated while its handle is held.
                    slot.preparing = None;
                }
                self.apply(Event::Container(container, ContainerEvent::Pulled { preparation, image_id, message }));
            }
            Message::Actuate => {
                self.actuate();
                self.project();
            }
            Message::Created(created) => {
                let ((container, preparation), created) = *created;
                if self.awaits(container, preparation) {
                    self.handle_created(container, created);
                }
            }
        }
    }

    fn apply(&mut self, event: Event) {
        let now = self.now();
        // Repeated probe results without a change are frequent.
        let steady = matches!(event, Event::Container(_, ContainerEvent::Probed { .. })) && !self.stale;
        let before = (steady || self.held_actions.is_some()).then(|| self.state.clone());
        let actions = self.state.apply(&self.rules, event, now);
        if steady && actions.is_empty() && before.as_ref() == Some(&self.state) {
            return;
        }
        if before.is_some_and(|before| self.state.stage_differs_from(&before))
            && let Some(held) = &mut self.held_actions
        {
            // The held actions are obsolete, but their events are still true.
            held.actions.retain(|action| matches!(action, Action::EventRecord { .. }));
            self.perform_held();
        }
        self.perform(actions);
        self.project();
    }

    /// Performs the held actions.
    fn perform_held(&mut self) {
        if let Some(held) = self.held_actions.take() {
            self.perform(held.actions);
        }
    }
}

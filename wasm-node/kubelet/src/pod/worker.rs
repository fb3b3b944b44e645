//! The worker of one pod: passes the events of its sources to the pod's machines and performs the actions that they
//! return. [`PodState`] decides the lifecycle, [`StatusWriter`] the writes to the API, [`StatusProjection`] the status,
//! [`ResizeTracker`] a resize. The worker itself decides nothing, and changes their state only by their steps.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, PodStatus};
use machinery_api::ObjectKey;
use machinery_client::{EventRecord, Kind, version_of};
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;

use super::admit::{Claim, Rejection};
use super::lifecycle::clock::ClockStepDetector;
use super::lifecycle::first_actions::{FirstActions, ReleaseEvent};
use super::lifecycle::object::PodObject;
use super::lifecycle::projection::{ProjectionInput, StatusProjection};
use super::lifecycle::resize::{self, PendingResize, ResizeAction, ResizeEvent, ResizeTracker};
use super::lifecycle::settings::{self, grace, rules};
use super::lifecycle::start_latency::StartLatency;
use super::lifecycle::state::{
    Action, Admission, Class, ContainerEvent, ContainerMachine, ContainerStage, Event, LifecyclePolicy, PodState,
    ProbeKind, Stage, StopReason,
};
use super::lifecycle::status;
pub(crate) use super::lifecycle::status_writer::StatusTarget;
use super::lifecycle::status_writer::{
    StatusAction, StatusEvent, StatusWrite, StatusWriter, WRITE_RETRY_FIRST, WRITE_RETRY_MAX, WriteFacts, WriteOutcome,
};
use super::shared::NodeContext;
use super::start::{self, CreatedContainer};
use super::{probe, unsupported};
use crate::latest::Receiver;
use crate::mailbox::{self, Sender, mailbox};
use crate::spec::compressed::Compressed;
use crate::spec::{containers, requests};
use checkpoint::KeptState;
use runtime_api::ledger::{Ledger, Resource};
use runtime_api::{CpuQuota, KeyvalueOwner};
use sandbox::PodSandbox;
use slot::{ContainerSlot, LiveContainer};
use sources::{Deadlines, StatusRequest, WorkerEvent};

mod admission;
mod checkpoint;
mod lasting;
mod message;
mod perform;
mod report;
mod resized;
mod sandbox;
mod slot;
mod sources;
mod view;
mod volumes;

pub(crate) use checkpoint::EarlierRun;
pub(crate) use lasting::LastingPod;
pub(crate) use message::{Message, container_message};
pub(crate) use view::{ContainerSnapshot, Packers, PodSnapshot, PodView};

/// The capacity of a worker's mailbox. Its tasks send few messages, and wait when the mailbox is full.
const MESSAGES_MAX: usize = 32;

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
    pub(crate) pending_resize: Option<PendingResize>,
    /// The API object that receives the status.
    pub(crate) status_target: StatusTarget,
    /// The next process has the pod.
    pub(crate) handed_over: bool,
}

impl AsRef<Arc<Compressed<Pod>>> for PodInput {
    fn as_ref(&self) -> &Arc<Compressed<Pod>> {
        &self.pod
    }
}

impl PodInput {
    pub(crate) fn new(pod: Arc<Pod>, status_target: StatusTarget) -> Self {
        let claim = Claim::of(&pod);
        Self {
            pod: Arc::new(pod.into()),
            claim,
            removed: false,
            pending_resize: None,
            status_target,
            handed_over: false,
        }
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
    sender: Sender<Message>,
    messages: mailbox::Receiver<Message>,
    object: PodObject,
    rules: LifecyclePolicy,
    state: PodState,
    /// The containers, in the order of the state's list.
    slots: Vec<ContainerSlot>,
    /// The host resources that the containers hold together.
    ledger: Arc<Ledger>,
    /// The CPU quota that the containers share.
    cpu: Arc<CpuQuota>,
    /// The owner of the pod's keyvalue store, once it was resolved.
    keyvalue: Arc<OnceCell<KeyvalueOwner>>,
    sandbox: PodSandbox,
    resize: ResizeTracker,
    projection: StatusProjection,
    writer: StatusWriter,
    first_actions: FirstActions,
    clock: ClockStepDetector,
    start_latency: StartLatency,
    kept: KeptState,
}

impl PodWorker {
    /// A worker for a pod of this node.
    pub(crate) fn new(
        node: Arc<NodeContext>,
        view: Arc<PodView>,
        mut input: Receiver<PodInput>,
        earlier: EarlierRun,
    ) -> Self {
        let (compressed, status_target) = input.read(|input| (input.pod.clone(), input.status_target.clone()));
        let pod = compressed.get();
        let (sender, messages) = mailbox(MESSAGES_MAX);
        view.set_worker(sender.clone());
        let (now, elapsed) = (node.parts.env.now(), node.parts.env.elapsed());
        let rules = rules(&pod);
        let ledger = Ledger::pod(node.parts.runtime.ledger());
        ledger.set_limit(Resource::Memory, requests::memory_bound(&pod).unwrap_or(u64::MAX));
        let EarlierRun { ip, status: own_status, claims, namespace_uid, cluster_uid: cluster } = earlier;
        let last_status = own_status.as_deref().or(pod.status.as_ref());
        let first_conditions = last_status.and_then(|status| status.conditions.clone());
        let keyvalue = namespace_uid.map(|uid| KeyvalueOwner {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            uid,
            cluster,
        });
        Self {
            state: status::recall(last_status, &rules, now),
            kept: KeptState::new(&pod, own_status, claims, node.checkpoint.is_enabled()),
            rules,
            slots: ContainerSlot::all(&pod),
            ledger,
            cpu: Arc::new(CpuQuota::new(requests::pod_limit(&pod, "cpu"), elapsed)),
            keyvalue: Arc::new(OnceCell::new_with(keyvalue)),
            sandbox: PodSandbox { ip, ..PodSandbox::default() },
            resize: ResizeTracker::default(),
            projection: StatusProjection::new(first_conditions),
            writer: StatusWriter::new(status_target),
            first_actions: FirstActions::default(),
            clock: ClockStepDetector::new(now, elapsed),
            start_latency: StartLatency::new(elapsed),
            object: PodObject::new(compressed),
            node,
            view,
            input,
            sender,
            messages,
        }
    }

    fn now(&self) -> Timestamp {
        self.node.parts.env.now()
    }

    /// The monotonic time.
    fn elapsed(&self) -> Duration {
        self.node.parts.env.elapsed()
    }

    /// Runs the pod until it is removed, or handed over to another process: then returns its servers. A stopping node drops
    /// the future. `rejection` is the admission failure.
    pub(crate) async fn run(mut self: Box<Self>, rejection: Option<Rejection>) -> Option<LastingPod> {
        let now = self.now();
        // On the heap for its duration: the size of a pod's task is that of its largest state.
        let admission = Box::pin(self.admit(rejection)).await;
        self.begin(admission, now);
        let mut request: Option<StatusRequest> = None;
        while !(self.state.is_removed() && *self.state.stage() == Stage::Ended) {
            if self.input.peek(|input| input.handed_over) {
                return self.leave();
            }
            let deadlines = self.prepare_wait(&mut request);
            match self.next_event(&mut request, deadlines).await {
                WorkerEvent::InputClosed => return None,
                event => self.handle(event),
            }
        }
        None
    }

    /// The first step of the pod's state.
    fn begin(&mut self, admission: Admission, now: Timestamp) {
        let ended_before = self.state.succeeded().is_some();
        let (state, actions) = self.state.clone().begin(&self.rules, admission, now);
        self.state = state;
        let own_status = self.kept.take_earlier_status();
        let unreported = own_status.is_some();
        let last_status = own_status.map(|status| *status).or_else(|| self.pod().status.clone());
        if ended_before && let Some(status) = last_status.filter(status::tells_the_end) {
            self.projection.keep_final_status(status);
        }
        self.project();
        if ended_before && self.state.deleted().is_none() && !unreported {
            self.step_writer(StatusEvent::WrittenBefore);
        }
        // Without an API server, no client can observe the step over Ready=False.
        if self.state.is_resumed() && !self.kept.is_restored() {
            self.first_actions.hold(actions, self.elapsed());
        } else {
            self.perform(actions);
        }
    }

    /// The steps before each wait: the clock, passed deadlines, the next write. Returns the deadlines of the wait.
    fn prepare_wait(&mut self, request: &mut Option<StatusRequest>) -> Deadlines {
        if let Some(by) = self.clock.step(self.now(), self.elapsed()) {
            self.apply(Event::ClockStepped(by));
        }
        let elapsed = self.elapsed();
        self.step_resize(ResizeEvent::Elapsed);
        self.release_first_actions(ReleaseEvent::Elapsed(elapsed));
        let now = self.now();
        let wait_until = |at: Timestamp| Duration::try_from(at.duration_since(now));
        let facts = WriteFacts {
            elapsed,
            settles_in: self.state.settles_at().map(wait_until).and_then(Result::ok),
            stale: self.projection.is_stale(),
            removed: self.state.is_removed(),
        };
        let next = self.writer.next(&facts, || self.object.get().status.as_ref());
        if !next.dirty {
            // The API already has the status that was to be written first.
            self.release_first_actions(ReleaseEvent::StatusReported);
        }
        if let Some(write) = next.start {
            *request = Some(self.request(write));
        }
        let prepares = self.slots.iter().any(|slot| slot.preparing.is_some());
        if next.idle && !self.first_actions.is_holding() && !prepares {
            self.compress();
        }
        let ticks = [
            self.state.wake_at(&self.rules).map(|at| wait_until(at).unwrap_or_default()),
            next.settles_in,
            self.first_actions.wake_in(elapsed),
            self.projection.wake_in(elapsed),
            self.next_refill_in(),
        ];
        let retries = [next.retry_in, self.resize.retry_in(elapsed)];
        Deadlines { tick_in: ticks.into_iter().flatten().min(), retry_in: retries.into_iter().flatten().min() }
    }

    fn set_pod(&mut self, pod: Arc<Compressed<Pod>>) {
        let pod = self.object.replace(pod);
        self.keep_pod();
        self.view.update(|snapshot| snapshot.pod = pod);
    }

    /// The newest state of the pod.
    fn pod(&self) -> &Arc<Pod> {
        self.object.get()
    }

    /// Compresses the objects once no step needs them.
    fn compress(&mut self) {
        if self.object.compress() {
            self.writer.desired().compress();
            self.projection.compress();
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

    /// Handles an event of a source.
    fn handle(&mut self, event: WorkerEvent) {
        match event {
            WorkerEvent::InputChanged => self.handle_input(),
            WorkerEvent::Message(message) => self.handle_message(message),
            WorkerEvent::WriteEnded(result) => self.handle_write_result(result),
            WorkerEvent::TickDue => {
                self.apply(Event::Tick);
                self.refresh_volumes(false);
            }
            // The next preparation of the wait retries; a closed input ends the loop.
            WorkerEvent::RetryDue | WorkerEvent::InputClosed => {}
        }
    }

    fn handle_input(&mut self) {
        let PodInput { pod, removed, pending_resize, status_target, .. } = self.input.read(PodInput::clone);
        let before = self.pod().clone();
        self.set_pod(pod);
        let version = version_of(&self.pod().metadata);
        self.step_writer(StatusEvent::Observed { target: status_target, version });
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
        self.handle_resize(&before, pending_resize);
        for container in ContainerSlot::update(&mut self.slots, &pod) {
            self.apply(Event::Container(container, ContainerEvent::ImageChanged));
        }
        if self.slots.len() > self.state.machines().len() {
            // New ephemeral containers join the state in the next step.
            self.apply(Event::Tick);
        }
        match grace(&pod) {
            Some(new) if grace(&before) != Some(new) => self.apply(Event::Deleted(new)),
            _ => self.project(),
        }
    }

    fn handle_message(&mut self, message: Message) {
        match message {
            Message::Event(event) => self.apply(*event),
            // Another pod may have taken the resource meanwhile, and this pod may have ended.
            Message::Mount if *self.state.stage() == Stage::Mounting && self.sandbox.volumes.is_none() => self.mount(),
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
            Message::Created(created) => {
                let ((container, preparation), created) = *created;
                if self.awaits(container, preparation) {
                    self.handle_created(container, created);
                }
            }
        }
    }

    /// Applies an event to the pod's state, performs its actions, and projects the status.
    fn apply(&mut self, event: Event) {
        let now = self.now();
        // Repeated probe results without a change are frequent.
        let steady = matches!(event, Event::Container(_, ContainerEvent::Probed { .. })) && !self.projection.is_stale();
        let before = (steady || self.first_actions.is_holding()).then(|| self.state.clone());
        let actions = self.state.apply(&self.rules, event, now);
        if steady && actions.is_empty() && before.as_ref() == Some(&self.state) {
            return;
        }
        if before.is_some_and(|before| self.state.stage_differs_from(&before)) {
            self.release_first_actions(ReleaseEvent::StageChanged);
        }
        self.perform(actions);
        self.project();
    }

    /// Passes an event to the first actions, and performs those that it releases.
    fn release_first_actions(&mut self, event: ReleaseEvent) {
        let actions = self.first_actions.step(event);
        self.perform(actions);
    }
}

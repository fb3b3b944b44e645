//! One pod's worker: says what happens to [`State`], does what it answers, and writes the status that follows.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Node, ObjectReference, Pod, PodCondition, PodStatus};
use k8s_openapi::api::node::v1::RuntimeClass;
use machinery_api::ObjectKey;
use machinery_client::{EventRecord, Kind, reference_to, version_of};
use machinery_env::Env;
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;

use super::admit::{Claim, Rejection};
use super::node_facts::NodeFacts;
use super::settings::{self, grace, rules};
use super::shared::Shared;
use super::start::{self, Made};
use super::state::{
    Action, Cell, CellEvent, CellStage, Class, Event, LifecyclePolicy, ProbeKind, Stage, State, StopReason,
    TerminalReason,
};
use super::{probe, resize, status, unsupported};
use crate::config::sources::{Source, SourceKind};
use crate::latest::Receiver;
use crate::mailbox::{self, Sender, mailbox};
use crate::spec::resting::{Resting, Turn};
use crate::spec::{containers, requests};
use crate::volume::measure::{Subject, Watched};
use crate::volume::usage::{self, Bounds};
use filled::Volumes;
use runtime_api::ledger::{Ledger, Resource};
use runtime_api::{CpuQuota, KeyvalueOwner, MemoryFiles};
use slot::{Live, Slot};

mod filled;
mod heard;
mod perform;
mod report;
mod resized;
mod slot;
mod view;

pub(crate) use heard::{Message, happened};
pub(crate) use view::{Packers, PodView, Seen, SeenContainer};

/// Messages that wait for a worker: its tasks send few, and wait where it is slow.
const MESSAGES_MAX: usize = 32;
/// Before a write to the API is tried again: doubled up to the longest.
const WRITE_RETRY_FIRST: Duration = Duration::from_millis(200);
const WRITE_RETRY_MAX: Duration = Duration::from_secs(15);
/// The handler of RuntimeClasses that this node has.
const HANDLER: &str = "wasm";
/// How long a node is waited for that the API is asked for.
const NODE_ASKED_MAX: Duration = Duration::from_secs(10);
/// How long a resumed pod waits for the API to take that its Ready is False: clients see a restart go through False. An
/// API that takes longer is away, and a pod that this node knows runs without it.
const RESUME_HELD_MAX: Duration = Duration::from_secs(5);
/// How often a status is mended at most that others write over and over (upstream's period of reconciling).
const MEND_INTERVAL: Duration = Duration::from_secs(10);
/// How long others have to act on what somebody wrote into the status, before it is mended for the first time.
const MEND_FIRST: Duration = Duration::from_secs(5);
/// A wall clock that is off by more was set; less is what two readings one after the other differ by, or its slewing.
const CLOCK_STEP_MIN: SignedDuration = SignedDuration::from_secs(1);

/// What the API says of the pod.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    /// Its newest state.
    pub(crate) pod: Arc<Resting<Pod>>,
    /// What it holds of the node.
    pub(crate) claim: Claim,
    /// It is gone.
    pub(crate) removed: bool,
    /// It wishes for other amounts of CPU and memory than those that `pod` shows, which were given to it.
    pub(crate) pending: Option<resize::Pending>,
    /// Whose status is written.
    pub(crate) shown: Shown,
}

/// What shows a pod in the API.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Shown {
    /// It is the API's.
    #[default]
    Itself,
    /// A static pod: its mirror, of that uid, while there is one.
    Mirror(Option<String>),
}

impl AsRef<Arc<Resting<Pod>>> for Input {
    fn as_ref(&self) -> &Arc<Resting<Pod>> {
        &self.pod
    }
}

impl Input {
    pub(crate) fn new(pod: Arc<Pod>, shown: Shown) -> Self {
        let claim = Claim::of(&pod);
        Self { pod: Arc::new(pod.into()), claim, removed: false, pending: None, shown }
    }

    /// A newer state of it.
    pub(crate) fn is_now(&mut self, pod: Arc<Pod>) {
        self.claim = Claim::of(&pod);
        self.pod = Arc::new(pod.into());
    }
}

/// A task that ends with its owner.
pub(crate) struct Task(pub(crate) JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(crate) struct Worker {
    node: Arc<Shared>,
    view: Arc<PodView>,
    input: Receiver<Input>,
    pod: Arc<Resting<Pod>>,
    turn: Turn<Pod>,
    about: Arc<ObjectReference>,
    rules: LifecyclePolicy,
    state: State,
    ip: Option<IpAddr>,
    host_ports: Vec<Task>,
    sender: Sender<Message>,
    messages: mailbox::Receiver<Message>,
    /// Its containers, as the state has them.
    slots: Vec<Slot>,
    /// What they hold of the host together.
    ledger: Arc<Ledger>,
    /// What its containers may use of the CPU together.
    cpu: Arc<CpuQuota>,
    /// A wish for other amounts, and what is not in use yet of what was given.
    pending: Option<resize::Pending>,
    /// Whose status is written.
    shown: Shown,
    progress: Option<resize::Progress>,
    /// Tries again to use it.
    resizing: Option<Task>,
    /// The account of its volumes in memory, while it has any.
    memory_files: Option<Arc<MemoryFiles>>,
    /// The ConfigMaps and Secrets that its containers are made of: held from the first start on, so that they are started again also
    /// while the API is away.
    sources: BTreeMap<(SourceKind, String), Arc<Source>>,
    /// Whose keyvalue store it has, once that was asked for.
    keyvalue: Arc<OnceCell<KeyvalueOwner>>,
    volumes: Option<Volumes>,
    /// Waits for an address, or a host port.
    waiting: Option<Task>,
    /// Which of them it was told last that it lacks.
    lacked: Option<String>,
    measure: Option<(Bounds, Watched)>,
    /// The conditions that it was taken up with, until a status is projected, for their times.
    first_conditions: Option<Vec<PodCondition>>,
    wanted: Arc<Resting<PodStatus>>,
    /// The state has moved on since `wanted` was projected, which is done anew from then on, by the monotonic clock.
    stale: bool,
    projects_from: Option<Duration>,
    api: report::Api,
    /// Whether the API is to be told, where that is known.
    dirty: Option<bool>,
    /// What the pod begins with, held back until the API has the status of a pod that is resumed.
    held: Option<Held>,
    delete: bool,
    /// Writes that failed in a row.
    failures: u32,
    /// It has been told that its status is too large for the API.
    too_large: bool,
    taken_up: Duration,
    /// It was ready once: how long that took is counted.
    was_ready: bool,
    /// Of the wall clock from the monotonic one, as it was minded last.
    clock_offset: SignedDuration,
    /// What an earlier run of the agent told of its end.
    told_before: Option<Resting<PodStatus>>,
    /// It was turned away for the node's labels as they are known here.
    by_labels: bool,
}

/// A write to the API: the status that it wrote, none for the delete; and the pod's version after it.
type Write = BoxFuture<'static, (Option<Arc<Resting<PodStatus>>>, Result<u64, kube::Error>)>;

/// Actions that wait for a write.
struct Held {
    actions: Vec<Action>,
    /// No longer than until then, by the monotonic clock.
    until: Duration,
}

impl Worker {
    /// A worker for a pod of this node; `ip` is the address that it keeps from before, `rejected` why it has no room.
    pub(crate) fn new(
        node: Arc<Shared>,
        view: Arc<PodView>,
        mut input: Receiver<Input>,
        ip: Option<IpAddr>,
        rejected: Option<Rejection>,
    ) -> Self {
        let (resting, shown) = input.read(|input| (input.pod.clone(), input.shown.clone()));
        let pod = resting.get();
        let (sender, messages) = mailbox(MESSAGES_MAX);
        view.listen(sender.clone());
        let now = node.parts.env.now();
        let clock_offset = offset(&node.parts.env);
        let rules = rules(&pod);
        let ledger = Ledger::pod(node.parts.runtime.ledger());
        ledger.set_limit(Resource::Memory, requests::memory_bound(&pod).unwrap_or(u64::MAX));
        let cpu = Arc::new(CpuQuota::new(requests::pod_limit(&pod, "cpu"), node.parts.env.elapsed()));
        let mut state = status::recall(&pod, &rules, now);
        let by_labels = rejected.as_ref().is_some_and(|rejected| rejected.by_labels);
        if let Some(Rejection { reason, message, .. }) = rejected {
            state.terminal_reason =
                Some(TerminalReason { reason: Some(reason), message: Some(message), rejected: true });
        }
        Self {
            about: Arc::new(reference_to(&*pod)),
            rules,
            state,
            slots: Slot::all(&pod),
            ledger,
            cpu,
            pending: None,
            shown,
            progress: None,
            resizing: None,
            memory_files: None,
            sources: BTreeMap::new(),
            keyvalue: Arc::default(),
            first_conditions: pod.status.as_ref().and_then(|status| status.conditions.clone()),
            wanted: Arc::default(),
            stale: false,
            projects_from: None,
            api: report::Api::default(),
            dirty: None,
            held: None,
            taken_up: node.parts.env.elapsed(),
            node,
            view,
            input,
            pod: resting,
            turn: Turn::default(),
            ip,
            host_ports: Vec::new(),
            sender,
            messages,
            volumes: None,
            waiting: None,
            lacked: None,
            measure: None,
            delete: false,
            failures: 0,
            too_large: false,
            was_ready: false,
            clock_offset,
            told_before: None,
            by_labels,
        }
    }

    fn now(&self) -> Timestamp {
        self.node.parts.env.now()
    }

    /// Runs the pod until nothing is left of it. A node that stops drops it.
    pub(crate) async fn run(mut self: Box<Self>) {
        let now = self.now();
        if let Some(grace) = grace(self.pod()) {
            self.state.deleted = Some(grace);
        }
        let refused = unsupported::fields(self.pod());
        // On the heap while it lasts: a pod's task is as large as the largest of its states.
        Box::pin(async {
            self.reconsider().await;
            self.until_runnable().await;
        })
        .await;
        let refused = (!refused.is_empty()).then(|| {
            let each = refused.iter().map(|field| format!("{}: {}", field.path, field.why)).collect();
            (unsupported::sentence(&refused), each)
        });
        let ended_before = self.state.succeeded.is_some();
        let (state, actions) = self.state.clone().begin(&self.rules, refused, now);
        self.state = state;
        if ended_before {
            // Its status tells all there is, and this run knows less of it than the one that wrote it.
            self.told_before = self.pod().status.clone().filter(status::tells_the_end).map(Resting::from);
        }
        self.project();
        if ended_before && self.state.deleted.is_none() {
            self.api.leave(self.wanted.clone());
            self.dirty = None;
        }
        if self.state.resumed {
            // Its Ready goes through False before anything runs again: the API must have seen that.
            self.held = Some(Held { actions, until: self.node.parts.env.elapsed() + RESUME_HELD_MAX });
        } else {
            self.perform(actions);
        }
        let mut writing: Option<Write> = None;
        // No write before then, by the monotonic clock, as the last one failed.
        let mut retry_at: Option<Duration> = None;
        loop {
            if self.state.removed && self.state.stage == Stage::Ended {
                return;
            }
            self.mind_the_clock();
            let elapsed = self.node.parts.env.elapsed();
            retry_at = retry_at.filter(|at| elapsed < *at);
            if self.held.as_ref().is_some_and(|held| held.until <= elapsed) {
                self.release();
            }
            let dirty = self.dirty();
            if !dirty && self.held.is_some() {
                // The API shows already what was to be written first.
                self.release();
            }
            let settles = self.settles_in();
            if writing.is_none() && retry_at.is_none() && !self.state.removed {
                if dirty && settles.is_none() {
                    writing = Some(self.write_status());
                } else if !dirty && !self.stale && self.delete {
                    writing = Some(self.write_delete());
                }
            }
            let prepares = self.slots.iter().any(|slot| slot.preparing.is_some());
            if writing.is_none() && retry_at.is_none() && self.held.is_none() && !dirty && !prepares {
                self.rest();
            }
            let held = self.held.as_ref().map(|held| held.until.saturating_sub(elapsed));
            let projects = self.projects_from.filter(|_| self.stale).map(|from| from.saturating_sub(elapsed));
            let settles = settles.filter(|_| dirty && writing.is_none());
            let ticks = [self.ticks_in(), settles, held, projects, self.refills_in()].into_iter().flatten().min();
            // One timer for all: a pod's task is as large as all that it may wait for.
            let wake = ticks.into_iter().chain(retry_at.map(|at| at.saturating_sub(elapsed))).min();
            tokio::select! {
                changed = self.input.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.take_input();
                }
                message = self.messages.recv() => self.take(message),
                (status, result) = async { writing.as_mut().expect("guarded").await }, if writing.is_some() => {
                    writing = None;
                    let wait = self.took(status, result);
                    retry_at = wait.map(|wait| self.node.parts.env.elapsed() + wait);
                }
                () = async { tokio::time::sleep(wake.unwrap_or_default()).await }, if wake.is_some() => {
                    if wake == ticks {
                        self.apply(Event::Tick);
                        self.mind_volumes(false);
                    }
                }
            }
        }
    }

    /// Sees whether the wall clock was set, against the monotonic one.
    fn mind_the_clock(&mut self) {
        let offset = offset(&self.node.parts.env);
        let by = offset - self.clock_offset;
        if by.abs() > CLOCK_STEP_MIN {
            self.clock_offset = offset;
            self.state.clock_was_set(by);
        }
    }

    /// How long until the state wants a [`Event::Tick`].
    fn ticks_in(&self) -> Option<Duration> {
        let at = self.state.wake_at(&self.rules)?;
        Some(Duration::try_from(at.duration_since(self.now())).unwrap_or_default())
    }

    /// Labels may have changed a moment before a pod was bound for them: as upstream, the API is asked before a pod is turned away for
    /// what the node knows of them.
    async fn reconsider(&mut self) {
        if !self.by_labels {
            return;
        }
        let (requests, key) = (self.requests(), ObjectKey::new("", self.node.identity.name.clone()));
        let node = tokio::time::timeout(NODE_ASKED_MAX, requests.get::<Node>(&Kind::of::<Node>(), &key)).await;
        if let Ok(Ok(node)) = node
            && NodeFacts::of(&node).are_selected_by(self.pod())
        {
            self.state.terminal_reason = None;
        }
    }

    /// Waits until the pod's RuntimeClass names a handler that this node has, or the pod is to end.
    async fn until_runnable(&mut self) {
        let spec = self.pod().spec.as_ref();
        let Some(name) = spec.and_then(|spec| spec.runtime_class_name.clone()).filter(|name| name != HANDLER) else {
            return;
        };
        let classes: machinery_client::Api<RuntimeClass> = machinery_client::Api::all(self.node.client.clone());
        let (mut wait, mut told) = (WRITE_RETRY_FIRST, String::new());
        loop {
            let answer = tokio::select! {
                answer = classes.get_opt(&name) => answer,
                () = self.until_ending() => return,
            };
            let why = match answer {
                Ok(Some(class)) if class.handler == HANDLER => return,
                Ok(Some(class)) => {
                    format!(
                        "no runtime for {:?} is configured: RuntimeClasses of this node have the handler {HANDLER:?}",
                        class.handler
                    )
                }
                Ok(None) => format!("runtimeclass.node.k8s.io {name:?} not found"),
                Err(error) => format!("RuntimeClass {name:?} cannot be read, trying again: {error}"),
            };
            if why != told {
                let message = format!("Failed to create pod sandbox: {why}");
                self.note(true, "FailedCreatePodSandBox", message, None);
                told = why;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.until_ending() => return,
            }
            wait = (wait * 2).min(WRITE_RETRY_MAX);
        }
    }

    /// Takes in what the API says of a pod that has not begun, until it says that the pod is to end.
    async fn until_ending(&mut self) {
        while !self.state.ending() {
            if self.input.changed().await.is_err() {
                return std::future::pending().await;
            }
            let Input { pod, removed, shown, .. } = self.input.read(Input::clone);
            self.shown = shown;
            self.state.deleted = grace(&pod.get());
            self.state.removed = removed;
            self.look_at(pod);
        }
    }

    fn look_at(&mut self, pod: Arc<Resting<Pod>>) {
        let pod = containers::in_known_order(self.pod(), &pod.get()).map_or(pod, |ordered| Arc::new(ordered.into()));
        self.view.change(|seen| seen.pod = pod.clone());
        self.turn.end();
        self.pod = pod;
    }

    /// Its newest state.
    fn pod(&self) -> &Arc<Pod> {
        self.turn.of(&self.pod)
    }

    /// Nothing of it goes on that looks at it.
    fn rest(&mut self) {
        if self.turn.end() {
            self.pod.rest();
            [Some(&*self.wanted), self.told_before.as_ref()].into_iter().flatten().for_each(Resting::rest);
            self.slots.iter().for_each(|slot| slot.container.rest());
        }
    }

    /// A container, as the state knows it.
    fn cell(&self, container: usize) -> Option<&Cell> {
        self.state.cells.get(container)
    }

    /// Whether the pull or start of that number is the container's newest: the result of an older one is dropped.
    fn awaits(&self, container: usize, preparation: u32) -> bool {
        self.cell(container).is_some_and(|cell| cell.awaits(preparation))
    }

    // --- what happens ------------------------------------------------------------------------------------------------

    fn take_input(&mut self) {
        let Input { pod, removed, pending, shown, .. } = self.input.read(Input::clone);
        if shown != self.shown {
            // Another object, of which nothing is known.
            self.api = report::Api::default();
            self.shown = shown;
        }
        let had = self.pod().clone();
        let before = grace(&had);
        self.look_at(pod);
        self.dirty = None;
        self.api.saw(version_of(&self.pod().metadata));
        if removed {
            if !self.state.removed {
                self.apply(Event::Removed);
            }
            return;
        }
        self.mind_volumes(true);
        // `activeDeadlineSeconds` may be set and shortened, and the image changed.
        let pod = self.pod().clone();
        self.rules = rules(&pod);
        self.take_resize(&had, pending);
        for container in Slot::update(&mut self.slots, &pod) {
            self.apply(Event::Container(container, CellEvent::ImageChanged));
        }
        if self.slots.len() > self.state.cells.len() {
            // It has ephemeral containers more, which join it in the next step.
            self.apply(Event::Tick);
        }
        match grace(&pod) {
            Some(grace) if before != Some(grace) => self.apply(Event::Deleted(grace)),
            _ => self.project(),
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Event(event) => self.apply(*event),
            // It may have been taken by another meanwhile, and the pod may have ended.
            Message::Mount if self.state.stage == Stage::Mounting && self.volumes.is_none() => self.mount(),
            Message::Mount => {}
            Message::Filled(filled) => self.filled(filled),
            Message::Pulled(pulled) => {
                let ((container, preparation), pulls, message) = *pulled;
                if !self.awaits(container, preparation) {
                    return;
                }
                let image_id = pulls.image.image_id.clone();
                if let Some(slot) = self.slots.get_mut(container) {
                    slot.pulls = Some(pulls);
                    // What has ended is held as long as it could be waited for.
                    slot.preparing = None;
                }
                self.apply(Event::Container(container, CellEvent::Pulled { preparation, image_id, message }));
            }
            Message::Actuate => {
                self.actuate();
                self.project();
            }
            Message::Made(made) => {
                let ((container, preparation), made) = *made;
                if self.awaits(container, preparation) {
                    self.started(container, made);
                }
            }
        }
    }

    fn apply(&mut self, event: Event) {
        let now = self.now();
        // Probes that say the same again come all the time.
        let steady = matches!(event, Event::Container(_, CellEvent::Probed { .. })) && !self.stale;
        let before = (steady || self.held.is_some()).then(|| self.state.clone());
        let actions = self.state.happen(&self.rules, event, now);
        if steady && actions.is_empty() && before.as_ref() == Some(&self.state) {
            return;
        }
        if before.is_some_and(|before| self.state.moved_from(&before))
            && let Some(held) = &mut self.held
        {
            // What the pod was to begin with is overtaken; what was to be said of it is still true.
            held.actions.retain(|action| matches!(action, Action::EventRecord { .. }));
            self.release();
        }
        self.perform(actions);
        self.project();
    }

    /// Begins what was held back.
    fn release(&mut self) {
        if let Some(held) = self.held.take() {
            self.perform(held.actions);
        }
    }
}

fn offset(env: &Env) -> SignedDuration {
    let elapsed = SignedDuration::try_from(env.elapsed()).unwrap_or(SignedDuration::MAX);
    env.now().duration_since(Timestamp::UNIX_EPOCH).saturating_sub(elapsed)
}

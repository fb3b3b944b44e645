//! One pod's worker: says what happens to [`State`], does what it answers, and writes the status that follows.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::future::BoxFuture;
use http::Request;
use http::header::CONTENT_TYPE;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, PodCondition, PodStatus};
use k8s_openapi::api::node::v1::RuntimeClass;
use machinery::runtime::{Note, reference_to};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::serve::Gate;
use super::settings::{self, rules, server_port};
use super::start::{self, Made};
use super::state::{Action, Event, ProbeKind, Rules, Stage, State, Verdict, Why};
use super::stop;
use super::{message, probe, status, unsupported};
use crate::engine::{self, Kind};
use crate::image::Image;
use crate::log::ContainerLog;
use crate::node::Shared;
use crate::volume::keep::keep;
use crate::volume::usage;

mod perform;
mod report;

/// Messages that wait for a worker: its tasks send few, and wait where it is slow.
const MESSAGES_MAX: usize = 32;
/// Before a write to the API is tried again: doubled up to the longest.
const WRITE_RETRY_FIRST: Duration = Duration::from_millis(200);
const WRITE_RETRY_MAX: Duration = Duration::from_secs(15);
/// The handler of RuntimeClasses that this node has.
const HANDLER: &str = "wasm";
/// How often the emptyDirs of a pod are measured while it runs guests.
const MEASURE_INTERVAL: Duration = Duration::from_secs(1);

/// What the API says of the pod.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    /// Its newest state.
    pub(crate) pod: Arc<Pod>,
    /// It is gone.
    pub(crate) removed: bool,
}

/// What a worker hears from its tasks.
pub(crate) enum Message {
    Event(Event),
    Address(IpAddr),
    Image(Arc<Image>, String),
    Made(Box<Made>),
}

/// What the kubelet API shows of a pod.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) pod: Arc<Pod>,
    pub(crate) status: Arc<PodStatus>,
    /// The container that runs, with its start.
    pub(crate) container: Option<(engine::Container, Timestamp)>,
    /// Its log.
    pub(crate) log: Option<Arc<ContainerLog>>,
    /// The newest start.
    pub(crate) attempt: Option<u32>,
    /// When the pod was seen first, and when it was first ready, by the monotonic clock.
    pub(crate) ready_after: Option<Duration>,
}

/// A pod of this node, for whoever looks at it from outside of its worker.
#[derive(Debug)]
pub(crate) struct PodView {
    seen: RwLock<Seen>,
}

impl PodView {
    pub(crate) fn new(pod: Arc<Pod>) -> Self {
        let status = Arc::new(pod.status.clone().unwrap_or_default());
        Self { seen: RwLock::new(Seen { pod, status, container: None, log: None, attempt: None, ready_after: None }) }
    }

    pub(crate) fn look(&self) -> Seen {
        self.seen.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, act: impl FnOnce(&mut Seen)) {
        act(&mut self.seen.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A task that ends with its owner.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A container that runs.
struct Live {
    made: Made,
    server: Option<engine::HttpServer>,
    /// Its address, where it has one.
    door: Option<super::serve::Door>,
    /// The command's run, or nothing.
    _run: Option<Task>,
    _measure: Option<Task>,
    _listener: Option<Task>,
    /// Tells a command to stop.
    signal: Option<oneshot::Sender<engine::StopSignal>>,
    /// The stop under way, with its end.
    stopping: Option<(Task, watch::Sender<tokio::time::Instant>)>,
}

pub(crate) struct Worker {
    node: Arc<Shared>,
    view: Arc<PodView>,
    input: watch::Receiver<Input>,
    pod: Arc<Pod>,
    container: Arc<Container>,
    about: ObjectReference,
    rules: Rules,
    state: State,
    ip: Option<IpAddr>,
    sender: mpsc::Sender<Message>,
    messages: mpsc::Receiver<Message>,
    image: Option<Arc<Image>>,
    live: Option<Live>,
    volumes: Option<Task>,
    preparing: Option<Task>,
    probes: Vec<Task>,
    sources: Option<Task>,
    /// The conditions as they were projected last, for their times.
    conditions: Vec<PodCondition>,
    wanted: Arc<PodStatus>,
    written: Option<Arc<PodStatus>>,
    delete: bool,
    /// Writes that failed in a row.
    failures: u32,
    taken_up: Duration,
}

type Write = BoxFuture<'static, (Option<Arc<PodStatus>>, Result<(), kube::Error>)>;

impl Worker {
    /// A worker for a pod of this node; `ip` is the address that it keeps from before, `rejected` why it has no room.
    pub(crate) fn new(
        node: Arc<Shared>,
        view: Arc<PodView>,
        mut input: watch::Receiver<Input>,
        ip: Option<IpAddr>,
        rejected: Option<(&'static str, String)>,
    ) -> Self {
        let pod = input.borrow_and_update().pod.clone();
        let (sender, messages) = mpsc::channel(MESSAGES_MAX);
        let now = node.parts.env.now();
        let written = pod.status.clone().map(Arc::new);
        let mut state = status::recall(&pod, now);
        if let Some((reason, message)) = rejected {
            state.verdict = Some(Verdict { reason: Some(reason), message: Some(message), rejected: true });
        }
        Self {
            about: reference_to(&*pod),
            rules: rules(&pod),
            state,
            container: Arc::new(settings::container(&pod).cloned().unwrap_or_default()),
            conditions: written.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default(),
            wanted: Arc::default(),
            written,
            taken_up: node.parts.env.elapsed(),
            node,
            view,
            input,
            pod,
            ip,
            sender,
            messages,
            image: None,
            live: None,
            volumes: None,
            preparing: None,
            probes: Vec::new(),
            sources: None,
            delete: false,
            failures: 0,
        }
    }

    fn now(&self) -> Timestamp {
        self.node.parts.env.now()
    }

    /// Runs the pod until nothing is left of it, or the node stops.
    pub(crate) async fn run(mut self: Box<Self>) {
        let stop = self.node.stop.clone();
        let now = self.now();
        if let Some(grace) = grace(&self.pod) {
            self.state.deleted = Some(grace);
        }
        let mut refused = unsupported::fields(&self.pod);
        tokio::select! {
            () = stop.cancelled() => return,
            other = self.other_runtime() => refused.extend(other),
        }
        let refused = (!refused.is_empty()).then(|| {
            let each = refused.iter().map(|field| format!("{}: {}", field.path, field.why)).collect();
            (unsupported::sentence(&refused), each)
        });
        let ended_before = self.state.succeeded.is_some();
        let (state, actions) = self.state.clone().begin(&self.rules, refused, now);
        self.state = state;
        self.project();
        if ended_before && self.state.deleted.is_none() {
            // It had ended before: its status tells all there is.
            self.written = Some(self.wanted.clone());
        }
        let mut writing: Option<Write> = None;
        let mut retry: Option<Duration> = None;
        if self.state.resumed {
            // Its Ready goes through False before anything runs again: the API must have seen that.
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.write_now() => {}
            }
        }
        self.perform(actions);
        loop {
            if self.state.removed && self.state.stage == Stage::Ended {
                return;
            }
            let now = self.now();
            let settles = self.state.settles_at().filter(|at| *at > now);
            let dirty = self.dirty();
            if writing.is_none() && retry.is_none() && !self.state.removed {
                if dirty && settles.is_none() {
                    writing = Some(self.write_status());
                } else if !dirty && self.delete {
                    writing = Some(self.write_delete());
                }
            }
            let wake = self.state.wake_at(&self.rules).into_iter().chain(settles.filter(|_| dirty)).min();
            let wake = wake.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
            tokio::select! {
                () = stop.cancelled() => return,
                changed = self.input.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.take_input();
                }
                Some(message) = self.messages.recv() => self.take(message),
                (status, result) = async { writing.as_mut().expect("guarded").await }, if writing.is_some() => {
                    writing = None;
                    retry = self.took(status, result);
                }
                () = async { tokio::time::sleep(retry.unwrap_or_default()).await }, if retry.is_some() => retry = None,
                () = async { tokio::time::sleep(wake.unwrap_or_default()).await }, if wake.is_some() => {
                    self.apply(Event::Tick);
                }
            }
        }
    }

    /// A RuntimeClass whose handler this node doesn't have.
    async fn other_runtime(&self) -> Option<unsupported::Unsupported> {
        let name = self.pod.spec.as_ref()?.runtime_class_name.as_deref().filter(|name| *name != HANDLER)?;
        let classes: kube::Api<RuntimeClass> = kube::Api::all(self.node.client.clone());
        let mut wait = WRITE_RETRY_FIRST;
        loop {
            match classes.get_opt(name).await {
                Ok(Some(class)) if class.handler == HANDLER => return None,
                Ok(_) => {
                    let why = "the class's handler is not \"wasm\", the only one of this node";
                    return Some(unsupported::Unsupported { path: "spec.runtimeClassName".into(), why });
                }
                Err(error) => tracing::debug!(pod = self.rules.pod, %error, "a RuntimeClass cannot be read"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(WRITE_RETRY_MAX);
        }
    }

    // --- what happens ------------------------------------------------------------------------------------------------

    fn take_input(&mut self) {
        let Input { pod, removed } = self.input.borrow_and_update().clone();
        self.view.change(|seen| seen.pod = pod.clone());
        let before = grace(&self.pod);
        self.pod = pod;
        if removed {
            if !self.state.removed {
                self.apply(Event::Removed);
            }
            return;
        }
        // `activeDeadlineSeconds` may be set and shortened, and the image changed.
        self.rules = rules(&self.pod);
        if let Some(container) = settings::container(&self.pod)
            && container.image != self.container.image
        {
            self.container = Arc::new(container.clone());
            self.apply(Event::ImageChanged);
        }
        match grace(&self.pod) {
            Some(grace) if before != Some(grace) => self.apply(Event::Deleted(grace)),
            _ => self.project(),
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Event(event) => self.apply(event),
            Message::Address(ip) => {
                // The pod may have ended meanwhile.
                if self.state.stage == Stage::Mounting && self.ip.is_none() {
                    self.ip = Some(ip);
                    self.mount();
                } else {
                    self.node.addresses.free(ip);
                }
            }
            Message::Image(image, message) => {
                let image_id = image.image_id.clone();
                self.image = Some(image);
                self.apply(Event::Pulled { image_id, message });
            }
            Message::Made(made) => {
                if self.state.stage == Stage::Starting {
                    self.started(*made);
                }
            }
        }
    }

    fn apply(&mut self, event: Event) {
        let (state, actions) = self.state.clone().step(&self.rules, event, self.now());
        self.state = state;
        self.perform(actions);
        self.project();
    }
}

/// The grace with which the API wants the pod gone.
fn grace(pod: &Pod) -> Option<Duration> {
    pod.metadata.deletion_timestamp.as_ref()?;
    let seconds = pod.metadata.deletion_grace_period_seconds.unwrap_or(30);
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

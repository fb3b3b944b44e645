//! One pod's worker: says what happens to [`State`], does what it answers, and writes the status that follows.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::future::BoxFuture;
use http::Request;
use http::header::CONTENT_TYPE;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, PodCondition, PodStatus};
use machinery::runtime::{Note, reference_to};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::serve::Gate;
use super::settings::{self, rules, server_port};
use super::start::{self, Made};
use super::state::{Action, Event, ProbeKind, Rules, Stage, State};
use super::stop;
use super::{message, probe, status, unsupported};
use crate::engine::{self, Kind};
use crate::image::Image;
use crate::log::ContainerLog;
use crate::node::Shared;
use crate::volume::keep::keep;
use crate::volume::usage;

/// Messages that wait for a worker: its tasks send few, and wait where it is slow.
const MESSAGES_MAX: usize = 32;
/// Before a write to the API is tried again: doubled up to the longest.
const WRITE_RETRY_FIRST: Duration = Duration::from_millis(200);
const WRITE_RETRY_MAX: Duration = Duration::from_secs(15);
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
    pub(crate) status: PodStatus,
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
        let status = pod.status.clone().unwrap_or_default();
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
    server: Option<(engine::HttpServer, u16)>,
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
    container: Container,
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
    wanted: PodStatus,
    written: Option<PodStatus>,
    delete: bool,
    taken_up: Duration,
}

type Write = BoxFuture<'static, (Option<PodStatus>, Result<(), kube::Error>)>;

impl Worker {
    /// A worker for a pod of this node; `ip` is the address that it keeps from before.
    pub(crate) fn new(
        node: Arc<Shared>,
        view: Arc<PodView>,
        mut input: watch::Receiver<Input>,
        ip: Option<IpAddr>,
    ) -> Self {
        let pod = input.borrow_and_update().pod.clone();
        let (sender, messages) = mpsc::channel(MESSAGES_MAX);
        let now = node.parts.env.now();
        let written = pod.status.clone();
        Self {
            about: reference_to(&*pod),
            rules: rules(&pod),
            state: status::recall(&pod, now),
            container: settings::container(&pod).cloned().unwrap_or_default(),
            conditions: written.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default(),
            wanted: PodStatus::default(),
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
        }
    }

    fn now(&self) -> Timestamp {
        self.node.parts.env.now()
    }

    /// Runs the pod until nothing is left of it, or the node stops.
    pub(crate) async fn run(mut self) {
        let stop = self.node.stop.clone();
        let now = self.now();
        if let Some(grace) = grace(&self.pod) {
            self.state.deleted = Some(grace);
        }
        let refused = unsupported::fields(&self.pod);
        let refused = (!refused.is_empty()).then(|| {
            let each = refused.iter().map(|field| format!("{}: {}", field.path, field.why)).collect();
            (unsupported::sentence(&refused), each)
        });
        let (state, actions) = self.state.clone().begin(&self.rules, refused, now);
        self.state = state;
        self.project();
        if self.state.succeeded.is_some() && self.state.deleted.is_none() {
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
        // `activeDeadlineSeconds` may be set and shortened.
        self.rules = rules(&self.pod);
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

    // --- what is done ------------------------------------------------------------------------------------------------

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Note { warning, reason, message, container } => self.note(warning, reason, message, container),
                Action::Mount => self.mount(),
                Action::Pull => self.pull(),
                Action::Start { attempt } => self.start(attempt),
                Action::Probe(kind) => self.probe(kind),
                Action::Stop { grace } => self.stop(grace),
                Action::Kill => self.kill(),
                Action::Clean => self.clean(),
                Action::Delete => self.delete = true,
            }
        }
    }

    fn note(&self, warning: bool, reason: &'static str, message: String, container: bool) {
        let mut about = self.about.clone();
        if container {
            about.field_path = Some(format!("spec.containers{{{}}}", self.container.name));
        }
        self.node.recorder.record(Note { about, warning, reason, message, source: None });
    }

    fn mount(&mut self) {
        let ip = self.ip.or_else(|| self.node.addresses.take());
        self.ip = ip;
        let Some(ip) = ip else {
            self.note(
                true,
                "FailedCreatePodSandBox",
                "Failed to create pod sandbox: the node's podCIDR has no free address".into(),
                false,
            );
            // Addresses come back as pods go.
            let (sender, node) = (self.sender.clone(), self.node.clone());
            self.preparing = Some(Task(tokio::spawn(async move {
                let ip = loop {
                    let freed = node.addresses_freed.notified();
                    match node.addresses.take() {
                        Some(ip) => break ip,
                        None => freed.await,
                    }
                };
                let _ = sender.send(Message::Address(ip)).await;
            })));
            return;
        };
        self.volumes = Some(Task(tokio::spawn(keep(self.node.clone(), self.input.clone(), ip, self.sender.clone()))));
    }

    fn pull(&mut self) {
        let (node, pod, container) = (self.node.clone(), self.pod.clone(), self.container.clone());
        let sender = self.sender.clone();
        self.preparing = Some(Task(tokio::spawn(async move {
            let message = match start::pull(&node, &pod, &container, &sender).await {
                Ok((image, message)) => Message::Image(image, message),
                Err(error) => Message::Event(Event::PullFailed { reason: error.reason(), message: error.to_string() }),
            };
            let _ = sender.send(message).await;
        })));
    }

    fn start(&mut self, attempt: u32) {
        let (Some(image), Some(ip)) = (self.image.clone(), self.ip) else { return };
        self.watch_sources();
        let (node, pod, container) = (self.node.clone(), self.pod.clone(), self.container.clone());
        let sender = self.sender.clone();
        self.preparing = Some(Task(tokio::spawn(async move {
            let message = match start::make(&node, &pod, &container, &image, ip, attempt).await {
                Ok(made) => Message::Made(Box::new(made)),
                Err((reason, message)) => Message::Event(Event::StartFailed { reason, message }),
            };
            let _ = sender.send(message).await;
        })));
    }

    /// Says when an object changes that the environment is made of, so that what failed for it is tried at once.
    fn watch_sources(&mut self) {
        let namespace = self.pod.metadata.namespace.as_deref().unwrap_or_default();
        let named = super::sources::named_by_environment(&self.container);
        let held: Vec<_> = named.iter().map(|(kind, name)| self.node.sources.get(*kind, namespace, name)).collect();
        if held.is_empty() || self.sources.is_some() {
            return;
        }
        let sender = self.sender.clone();
        self.sources = Some(Task(tokio::spawn(async move {
            let mut known: Vec<_> = held.iter().map(|source| source.known.clone()).collect();
            loop {
                let any = known.iter_mut().map(|known| Box::pin(known.changed()));
                let (changed, _, _) = futures::future::select_all(any.collect::<Vec<_>>()).await;
                if changed.is_err() || sender.send(Message::Event(Event::SourcesChanged)).await.is_err() {
                    return;
                }
            }
        })));
    }

    fn started(&mut self, made: Made) {
        // What it is made of is read only once; a later start reads it anew.
        self.sources = None;
        let attempt = self.state.next_attempt();
        let id = made.id.clone();
        let container = made.container.clone();
        let log = made.log.clone();
        let mut live = Live {
            server: None,
            _run: None,
            _measure: self.measure(&container),
            _listener: None,
            signal: None,
            stopping: None,
            made,
        };
        let ip = self.ip;
        match container.kind() {
            Kind::HttpServer => {
                let server = match container.serve() {
                    Ok(server) => server,
                    Err(error) => {
                        self.apply(Event::StartFailed { reason: "RunContainerError", message: error.to_string() });
                        return;
                    }
                };
                let port = server_port(&self.container);
                let gate = Gate::new(server.clone(), attempt, self.sender.clone());
                if let Some(ip) = ip {
                    self.node.parts.network.attach(ip, port, gate.clone());
                    if self.node.config.host_pod_listeners {
                        let listening = super::listen::listen(
                            ip,
                            port,
                            gate.clone(),
                            self.node.recorder.clone(),
                            self.about.clone(),
                        );
                        live._listener = Some(Task(tokio::spawn(listening)));
                    }
                }
                if self.rules.readiness.is_none() && self.rules.startup.is_none() {
                    gate.look();
                }
                live.server = Some((server, port));
            }
            Kind::Command => {
                let (signal, stopped) = oneshot::channel();
                live.signal = Some(signal);
                live._run = Some(self.run_command(&live.made, attempt, stopped));
            }
        }
        let since = self.now();
        self.view.change(|seen| {
            seen.container = Some((container, since));
            seen.log = Some(log);
            seen.attempt = Some(attempt);
        });
        self.live = Some(live);
        self.forget_old_logs(attempt);
        self.apply(Event::Started { container_id: id });
    }

    fn run_command(&self, made: &Made, attempt: u32, stopped: oneshot::Receiver<engine::StopSignal>) -> Task {
        let (container, log, file) = (made.container.clone(), made.log.clone(), made.termination.clone());
        let from_log = self.container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        let sender = self.sender.clone();
        Task(tokio::spawn(async move {
            let stop = async move {
                match stopped.await {
                    Ok(signal) => signal,
                    // Nobody will say anything any more: the task itself is dropped to end the run.
                    Err(_) => std::future::pending().await,
                }
            };
            let outcome = container.run(stop).await;
            let failed = outcome.exit_code != 0;
            let read = tokio::task::spawn_blocking(move || {
                log.close();
                message::read(file.as_deref(), log.path(), from_log, failed)
            });
            let message = read.await.ok().flatten().or(outcome.message);
            let reason = outcome.reason.as_str().to_owned();
            let exited = Event::Exited { attempt, code: outcome.exit_code, reason, message };
            let _ = sender.send(Message::Event(exited)).await;
        }))
    }

    fn measure(&self, container: &engine::Container) -> Option<Task> {
        let bounds = usage::bounds(&self.pod, &self.container);
        if bounds.is_empty() {
            return None;
        }
        let dir = self.node.pod_dir(self.pod.metadata.uid.as_deref().unwrap_or_default());
        let (container, sender) = (container.clone(), self.sender.clone());
        Some(Task(tokio::spawn(async move {
            let mut started_before = 0;
            loop {
                tokio::time::sleep(MEASURE_INTERVAL).await;
                let stats = container.stats();
                // Nothing is written while no guest runs.
                if stats.instances_started == started_before && stats.instances_live == 0 {
                    continue;
                }
                started_before = stats.instances_started;
                let (bounds, dir) = (bounds.clone(), dir.clone());
                let over = tokio::task::spawn_blocking(move || bounds.exceeded(&dir)).await.ok().flatten();
                if let Some(message) = over {
                    let _ = sender.send(Message::Event(Event::Evicted(message))).await;
                    return;
                }
            }
        })))
    }

    fn probe(&mut self, kind: ProbeKind) {
        let (Some(spec), Some(ip)) = (settings::probe(&self.container, kind), self.ip) else { return };
        let since = match &self.state.stage {
            Stage::Running(running) => running.since,
            _ => return,
        };
        let attempt = self.state.current();
        let task = probe::run(self.node.clone(), spec, kind, attempt, since, ip, self.sender.clone());
        self.probes.push(Task(tokio::spawn(task)));
    }

    fn stop(&mut self, grace: Duration) {
        self.probes.clear();
        let deadline = tokio::time::Instant::now() + grace;
        let attempt = self.state.current();
        let Some(live) = &mut self.live else { return };
        if let Some((_, end)) = &live.stopping {
            end.send_replace(deadline);
            return;
        }
        let (end, ends) = watch::channel(deadline);
        let hook = stop::Hook::of(&self.container);
        let task = match (&live.server, live.signal.take()) {
            (Some((server, port)), _) => {
                let killed_by_probe =
                    matches!(&self.state.stage, Stage::Stopping { why: super::state::Why::Probe, .. });
                let what = stop::Server { server: server.clone(), port: *port, restart: killed_by_probe };
                tokio::spawn(stop::server(self.node.clone(), what, self.ip, hook, ends, attempt, self.sender.clone()))
            }
            (None, Some(signal)) => {
                let at_grace = live.made.settings.stop_at_grace;
                tokio::spawn(stop::command(self.node.clone(), signal, at_grace, self.ip, hook, ends))
            }
            (None, None) => return,
        };
        live.stopping = Some((Task(task), end));
    }

    /// Ends whatever runs or is being prepared.
    fn kill(&mut self) {
        self.probes.clear();
        self.preparing = None;
        self.sources = None;
        if let Some(live) = self.live.take() {
            if let (Some((server, port)), Some(ip)) = (&live.server, self.ip) {
                self.node.parts.network.detach(ip, *port);
                server.shut();
            }
            let log = live.made.log.clone();
            tokio::task::spawn_blocking(move || log.close());
            drop(live);
        }
        self.view.change(|seen| seen.container = None);
    }

    fn clean(&mut self) {
        self.volumes = None;
        self.image = None;
        if let Some(ip) = self.ip.take() {
            self.node.addresses.free(ip);
            self.node.addresses_freed.notify_waiters();
        }
        let uid = self.pod.metadata.uid.clone().unwrap_or_default();
        let dir = self.node.pod_dir(&uid);
        let logs = self.state.removed.then(|| self.node.log_dir(&uid));
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let removed = tokio::task::spawn_blocking(move || {
                for dir in [Some(dir), logs].into_iter().flatten() {
                    if let Err(error) = std::fs::remove_dir_all(&dir)
                        && error.kind() != std::io::ErrorKind::NotFound
                    {
                        tracing::warn!(dir = %dir.display(), %error, "a pod's folder cannot be removed");
                    }
                }
            });
            let _ = removed.await;
            let _ = sender.send(Message::Event(Event::Cleaned)).await;
        });
    }

    /// The logs of this start and the one before are kept, as upstream does.
    fn forget_old_logs(&self, attempt: u32) {
        let Some(old) = attempt.checked_sub(2) else { return };
        let path = self.node.log_path(self.pod.metadata.uid.as_deref().unwrap_or_default(), &self.container.name, old);
        tokio::task::spawn_blocking(move || {
            for index in 0..crate::log::FILES_MAX {
                let _ = std::fs::remove_file(crate::log::older(&path, index));
            }
        });
    }

    // --- the status --------------------------------------------------------------------------------------------------

    fn project(&mut self) {
        let facts = status::Facts { host_ip: self.node.config.internal_ip, pod_ip: self.ip.or(self.last_ip()) };
        let own: Vec<PodCondition> = self.conditions.clone();
        let others = self.pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        let known: Vec<PodCondition> = own
            .iter()
            .cloned()
            .chain(others.into_iter().filter(|other| own.iter().all(|own| own.type_ != other.type_)))
            .collect();
        let mut wanted = status::project(&self.state, &self.pod, &facts, &known, self.now());
        if let Some(conditions) = &mut wanted.conditions
            && self.pod.status.iter().any(|s| s.conditions.iter().flatten().any(|c| c.type_ == "PodScheduled"))
        {
            // The scheduler has written it; it stays as it is.
            conditions.retain(|condition| condition.type_ != "PodScheduled");
        }
        self.conditions = wanted.conditions.clone().unwrap_or_default();
        if wanted != self.wanted {
            let ready = self.state.ready();
            let after = self.node.parts.env.elapsed().saturating_sub(self.taken_up);
            self.view.change(|seen| {
                seen.status = wanted.clone();
                if ready && seen.ready_after.is_none() {
                    seen.ready_after = Some(after);
                }
            });
            self.wanted = wanted;
        }
    }

    /// The address stays in the status of a pod that has ended.
    fn last_ip(&self) -> Option<IpAddr> {
        self.wanted.pod_ip.as_deref()?.parse().ok()
    }

    fn dirty(&self) -> bool {
        self.written.as_ref() != Some(&self.wanted)
    }

    fn write_status(&self) -> Write {
        let (client, wanted) = (self.node.client.clone(), self.wanted.clone());
        let patch = status::patch(&self.pod, &wanted).to_string();
        let path = format!("{}/status", self.path());
        Box::pin(async move {
            let request = Request::patch(path)
                .header(CONTENT_TYPE, "application/strategic-merge-patch+json")
                .body(patch.into_bytes());
            let result = match request {
                Ok(request) => client.request_text(request).await.map(drop),
                Err(error) => Err(kube::Error::HttpError(error)),
            };
            (Some(wanted), result)
        })
    }

    fn write_delete(&self) -> Write {
        let client = self.node.client.clone();
        let body = serde_json::json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
            "preconditions": {"uid": self.pod.metadata.uid},
        });
        let request =
            Request::delete(self.path()).header(CONTENT_TYPE, "application/json").body(body.to_string().into_bytes());
        Box::pin(async move {
            let result = match request {
                Ok(request) => client.request_text(request).await.map(drop),
                Err(error) => Err(kube::Error::HttpError(error)),
            };
            (None, result)
        })
    }

    fn path(&self) -> String {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let metadata = &self.pod.metadata;
        format!("/api/v1/namespaces/{}/pods/{}", text(&metadata.namespace), text(&metadata.name))
    }

    /// Takes in a write's answer: how long to wait before the next one, if it failed.
    fn took(&mut self, status: Option<PodStatus>, result: Result<(), kube::Error>) -> Option<Duration> {
        let gone = matches!(&result, Err(kube::Error::Api(answer)) if answer.code == 404 || answer.code == 409);
        match (status, result) {
            (Some(status), Ok(())) => self.written = Some(status),
            (None, Ok(())) => self.delete = false,
            (None, Err(_)) if gone => self.delete = false,
            (Some(status), Err(error)) => {
                tracing::debug!(pod = self.rules.pod, %error, "the status cannot be written");
                if gone {
                    // It was deleted, or another has its name: the watch says so soon.
                    self.written = Some(status);
                } else {
                    return Some(self.retry_after());
                }
            }
            (None, Err(error)) => {
                tracing::debug!(pod = self.rules.pod, %error, "the pod cannot be deleted");
                return Some(self.retry_after());
            }
        }
        None
    }

    fn retry_after(&self) -> Duration {
        WRITE_RETRY_FIRST + Duration::from_millis(self.node.parts.env.below(1000))
    }

    async fn write_now(&mut self) {
        let mut wait = WRITE_RETRY_FIRST;
        loop {
            let (status, result) = self.write_status().await;
            if self.took(status, result).is_none() {
                return;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(WRITE_RETRY_MAX);
        }
    }
}

/// The grace with which the API wants the pod gone.
fn grace(pod: &Pod) -> Option<Duration> {
    pod.metadata.deletion_timestamp.as_ref()?;
    let seconds = pod.metadata.deletion_grace_period_seconds.unwrap_or(30);
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

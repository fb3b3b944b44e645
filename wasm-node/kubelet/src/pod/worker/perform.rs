//! Doing what [`State`](super::State) answers.

use tokio::sync::watch;

use super::*;
use crate::config::pull_secrets;
use crate::config::sources::named_by_environment;
use crate::pod::ask::Asker;
use crate::pod::check;
use crate::pod::host_ports;
use crate::pod::runner::{self, Context};
use crate::pod::start::Home;

/// Nobody says when a port of the machine comes free.
const HOST_PORT_RETRY: Duration = Duration::from_secs(1);

impl Worker {
    pub(super) fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::EventRecord { warning, reason, message, container } => {
                    self.note(warning, reason, message, container)
                }
                Action::Mount => self.mount(),
                Action::Pull(container) => self.pull(container),
                Action::Start { container, attempt } => self.start(container, attempt),
                Action::Probe(container, kind) => self.probe(container, kind),
                Action::Hook(container) => self.hook(container),
                Action::Stop { container, grace } => self.stop(container, grace),
                Action::Kill(container) => self.kill(container),
                Action::Clean => self.clean(),
                // Its mirror goes by itself, once nothing is behind it.
                Action::Delete if self.shown != Shown::Itself => self.apply(Event::Removed),
                Action::Delete => self.delete = true,
            }
        }
    }

    pub(super) fn note(&self, warning: bool, reason: &'static str, message: String, container: Option<usize>) {
        let mut about = ObjectReference::clone(&self.about);
        if let Some(slot) = container.and_then(|index| self.slots.get(index)) {
            about.field_path = Some(slot.field_path.to_string());
        }
        self.node.recorder.record(EventRecord { about, warning, reason, message, source: None });
    }

    /// Takes an address and host ports, and fills the volumes.
    pub(super) fn mount(&mut self) {
        let ip = self.ip.or_else(|| self.node.addresses.take());
        self.ip = ip;
        let Some(ip) = ip else {
            let node = self.node.clone();
            // Addresses come back as pods go.
            let room = async move {
                loop {
                    let freed = node.addresses_freed.notified();
                    if node.addresses.any_free() {
                        break;
                    }
                    freed.await;
                }
            };
            return self.mount_later("the node's podCIDR has no free address".into(), room);
        };
        if self.host_ports.is_empty() {
            match host_ports::open(self.pod(), ip, self.node.identity.bind, &self.node.parts.network) {
                Ok(opened) => self.host_ports = opened,
                Err(why) => {
                    let why = format!("{why}; it is tried again");
                    return self.mount_later(why, tokio::time::sleep(HOST_PORT_RETRY));
                }
            }
        }
        if self.memory_files.is_none()
            && let Ok(folder) = &self.node.volumes.memory
        {
            let (node_bytes, env) = (self.node.guest_memory_bytes, &self.node.parts.env);
            self.memory_files = folder.account(self.pod(), node_bytes, &self.ledger, env);
            self.view.change(|seen| seen.memory_files = self.memory_files.clone());
        }
        self.fill(None);
    }

    /// There is no room for it now: says why, unless that was said, and tries again after `room`. The task takes nothing itself, as
    /// it may be dropped at any time.
    fn mount_later(&mut self, why: String, room: impl Future<Output = ()> + Send + 'static) {
        if self.lacked.as_ref() != Some(&why) {
            let message = format!("Failed to create pod sandbox: {why}");
            self.note(true, "FailedCreatePodSandBox", message, None);
            self.lacked = Some(why);
        }
        let sender = self.sender.clone();
        self.waiting = Some(Task(tokio::spawn(async move {
            room.await;
            let _ = sender.send(Message::Mount).await;
        })));
    }

    pub(super) fn pull(&mut self, index: usize) {
        let pod = self.pod().clone();
        let preparation = self.cell(index).map_or(0, |cell| cell.preparation);
        let Some(slot) = self.slots.get_mut(index) else { return };
        let (node, container) = (self.node.clone(), slot.container.get());
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        for named in named_by_environment(&container).into_iter().chain(pull_secrets::named(&pod)) {
            // Replaces the source of an immutable object that was deleted and made again.
            let source = node.sources.get(named.0, namespace, &named.1);
            self.sources.insert(named, source);
        }
        let sender = self.sender.clone();
        slot.preparing = Some(Task(tokio::spawn(async move {
            let message = match start::pull(&node, &pod, (index, &container), &sender).await {
                Ok((pulls, message)) => Message::Pulled(Box::new(((index, preparation), pulls, message))),
                Err((of, error)) => {
                    let (reason, message) = (error.reason(), error.to_string());
                    happened(index, CellEvent::PullFailed { preparation, of, reason, message })
                }
            };
            let _ = sender.send(message).await;
        })));
    }

    pub(super) fn start(&mut self, index: usize, attempt: u32) {
        self.watch_sources(index);
        let asks = |slot: &Slot| match slot.class {
            Class::Ephemeral => unsupported::ephemeral_fields(self.pod(), &slot.name),
            _ => Vec::new(),
        };
        let unsupported = self.slots.get(index).map(asks).unwrap_or_default();
        for field in &unsupported {
            self.note(true, "Unsupported", format!("{}: {}", field.path, field.why), Some(index));
        }
        let pod = self.pod().clone();
        let preparation = self.cell(index).map_or(0, |cell| cell.preparation);
        let (Some(slot), Some(ip)) = (self.slots.get_mut(index), self.ip) else { return };
        let Some(pulls) = slot.pulls.clone() else { return };
        let (node, container, sender) = (self.node.clone(), slot.container.get(), self.sender.clone());
        if !unsupported.is_empty() {
            let message = unsupported::sentence(&unsupported);
            let failed = CellEvent::StartFailed { preparation, reason: "CreateContainerConfigError", message };
            slot.preparing = Some(Task(tokio::spawn(async move {
                let _ = sender.send(happened(index, failed)).await;
            })));
            return;
        }
        let home = Home {
            pod,
            ip,
            ledger: self.ledger.clone(),
            cpu: self.cpu.clone(),
            memory_files: self.memory_files.clone(),
            keyvalue: self.keyvalue.clone(),
        };
        slot.preparing = Some(Task(tokio::spawn(async move {
            let message = match start::make(&node, &home, &container, &pulls, attempt).await {
                Ok(made) => Message::Made(Box::new(((index, preparation), made))),
                Err((reason, message)) => happened(index, CellEvent::StartFailed { preparation, reason, message }),
            };
            let _ = sender.send(message).await;
        })));
    }

    /// Says when an object changes that the environment is made of, so that what failed for it is tried at once.
    fn watch_sources(&mut self, index: usize) {
        let pod = self.pod().clone();
        let Some(slot) = self.slots.get_mut(index) else { return };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let named = named_by_environment(&slot.container.get());
        let held: Vec<_> = named.iter().map(|(kind, name)| self.node.sources.get(*kind, namespace, name)).collect();
        if held.is_empty() || slot.sources.is_some() {
            return;
        }
        let sender = self.sender.clone();
        slot.sources = Some(Task(tokio::spawn(async move {
            let mut known: Vec<_> = held.iter().map(|source| source.known.clone()).collect();
            loop {
                let any = known.iter_mut().map(|known| Box::pin(known.changed()));
                let (changed, _, _) = futures::future::select_all(any.collect::<Vec<_>>()).await;
                if changed.is_err() || sender.send(happened(index, CellEvent::SourcesChanged)).await.is_err() {
                    return;
                }
            }
        })));
    }

    pub(super) fn started(&mut self, index: usize, mut made: Made) {
        let attempt = self.cell(index).map_or(0, Cell::next_attempt);
        let Some(slot) = self.slots.get_mut(index) else { return };
        // What it is made of is read only once; a later start reads it anew.
        (slot.sources, slot.preparing) = (None, None);
        // The former one's address, where it still has it.
        slot.live = None;
        let context = Context {
            node: self.node.clone(),
            view: self.view.clone(),
            class: slot.class,
            container: slot.container.clone(),
            about: (self.about.clone(), slot.field_path.clone()),
            ip: self.ip,
            index,
            attempt,
            messages: self.sender.clone(),
        };
        let seen = SeenContainer {
            name: slot.name.clone(),
            running: Some((made.container.clone(), self.node.parts.env.now())),
            log: made.log.clone(),
            attempt,
            spec: slot.container.clone(),
        };
        let container_id = made.id.clone();
        let runner = match (runner::runner_class(made.container.kind()).start)(context, &mut made) {
            Ok(runner) => runner,
            Err((reason, message)) => {
                let preparation = self.cell(index).map_or(0, |cell| cell.preparation);
                self.apply(Event::Container(index, CellEvent::StartFailed { preparation, reason, message }));
                return;
            }
        };
        self.view.started(seen);
        slot.live = Some(Live { runner, stopping: None, made });
        self.forget_old_logs(index, attempt);
        self.measure();
        self.apply(Event::Container(index, CellEvent::Started { container_id }));
        if self.progress.is_some() || !self.is_actuated(index) {
            self.actuate();
            self.project();
        }
    }

    /// Has what the pod writes measured, while any of its containers lives.
    fn measure(&mut self) {
        let mut live = self.slots.iter().filter_map(|slot| slot.live.as_ref()).peekable();
        if live.peek().is_none() {
            self.measure = None;
            return;
        }
        let messages = live.any(|live| live.made.termination.is_some());
        let bounds = usage::bounds(self.pod(), messages || self.measure.as_ref().is_some_and(|(of, _)| of.messages));
        if bounds.is_empty() || self.measure.as_ref().is_some_and(|(of, _)| *of == bounds) {
            return;
        }
        let uid = self.pod().metadata.uid.as_deref().unwrap_or_default();
        let (view, sender) = (self.view.clone(), self.sender.clone());
        let settle = self.memory_files.clone().zip(self.node.volumes.memory.as_ref().ok().cloned());
        let settle = settle.map(|of| (of, uid.to_owned()));
        let watched = self.node.measurer.watch(Subject {
            pod_dir: self.node.pod_dir(uid),
            log_dir: self.node.log_dir(uid),
            bounds: bounds.clone(),
            changes: Box::new(move || view.writes()),
            settle: Box::new(move || {
                if let Some(((files, folder), uid)) = &settle {
                    files.settle(folder.measured(uid));
                }
            }),
            exceeded: Box::new(move |message| sender.try_send(Event::Evicted(message).into())),
        });
        self.measure = Some((bounds, watched));
    }

    fn probe(&mut self, index: usize, kind: ProbeKind) {
        let pod = self.pod().clone();
        let (Some(cell), Some(slot), Some(ip)) = (self.state.cells.get(index), self.slots.get_mut(index), self.ip)
        else {
            return;
        };
        let (Some(spec), CellStage::Running(running)) = (check::probe(&slot.container.get(), kind), &cell.stage) else {
            return;
        };
        let of = probe::Probed { container: index, attempt: cell.current(), kind, since: running.since };
        let asker = Asker::new(&self.node, &pod, &slot.name, ip);
        let env = self.node.parts.env.clone();
        slot.probes.push(Task(tokio::spawn(probe::run(env, asker, spec, of, self.sender.clone()))));
    }

    /// Calls the hook after a container's start, until it ends or the container is stopped.
    fn hook(&mut self, index: usize) {
        let attempt = self.cell(index).map_or(0, Cell::current);
        let pod = self.pod().clone();
        let (Some(slot), Some(ip)) = (self.slots.get_mut(index), self.ip) else { return };
        let Some(hook) = check::HookSpec::post_start(&slot.container.get()) else { return };
        let asker = Asker::new(&self.node, &pod, &slot.name, ip);
        let sender = self.sender.clone();
        slot.probes.push(Task(tokio::spawn(async move {
            let hooked = asker.hook(&hook).await;
            if let Some(host) = hooked.fell_back {
                let _ = sender.send(happened(index, CellEvent::HookFellBack { host })).await;
            }
            let _ = sender.send(happened(index, CellEvent::Hooked { attempt, failure: hooked.failure })).await;
        })));
    }

    fn stop(&mut self, index: usize, grace: Duration) {
        let again = |cell: &Cell| match &cell.stage {
            CellStage::Stopping { why, .. } => !matches!(why, StopReason::Pod),
            _ => false,
        };
        let restart = self.cell(index).is_some_and(again);
        let Some(slot) = self.slots.get_mut(index) else { return };
        slot.probes.clear();
        let deadline = tokio::time::Instant::now() + grace;
        let Some(live) = &mut slot.live else { return };
        if let Some((_, end)) = &live.stopping {
            end.send_replace(deadline);
            return;
        }
        let (end, ends) = watch::channel(deadline);
        live.stopping = live.runner.stop(restart, ends).map(|task| (task, end));
    }

    /// Ends whatever of a container runs or is being prepared.
    fn kill(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        slot.probes.clear();
        slot.preparing = None;
        slot.sources = None;
        if let Some(mut live) = slot.live.take() {
            live.runner.kill();
            let log = live.made.log.clone();
            tokio::task::spawn_blocking(move || log.close());
            let used = live.made.container.stats();
            drop(live);
            self.view.ended(&slot.name, used);
            self.resizing = self.resizing.take().filter(|_| self.progress.is_some());
            self.node.pods.totals.ended(used.cpu);
            self.measure();
        }
    }

    pub(super) fn clean(&mut self) {
        (self.volumes, self.waiting, self.measure) = (None, None, None);
        (self.resizing, self.progress) = (None, None);
        self.host_ports.clear();
        self.memory_files = None;
        self.sources.clear();
        self.view.change(|seen| seen.memory_files = None);
        for slot in &mut self.slots {
            slot.pulls = None;
        }
        if let Some(ip) = self.ip.take() {
            self.node.free_address(ip);
        }
        let uid = self.pod().metadata.uid.clone().unwrap_or_default();
        let dir = self.node.pod_dir(&uid);
        let logs = self.state.removed.then(|| self.node.log_dir(&uid));
        let memory = self.node.volumes.memory.clone().ok();
        self.node.volumes.local.release(&uid);
        let writer = self.node.logs.clone();
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let removed = tokio::task::spawn_blocking(move || {
                if let Some(Err(error)) = memory.map(|memory| memory.remove(&uid)) {
                    tracing::warn!(uid, %error, "a pod's volumes in memory cannot be removed");
                }
                for dir in [Some(dir), logs].into_iter().flatten() {
                    if let Err(error) = std::fs::remove_dir_all(&dir)
                        && error.kind() != std::io::ErrorKind::NotFound
                    {
                        tracing::warn!(dir = %dir.display(), %error, "a pod's folder cannot be removed");
                    }
                    writer.forget(&dir);
                }
            });
            let _ = removed.await;
            let _ = sender.send(Event::Cleaned.into()).await;
        });
    }

    /// The logs of this start and the one before are kept, as upstream does.
    fn forget_old_logs(&self, index: usize, attempt: u32) {
        let (Some(old), Some(slot)) = (attempt.checked_sub(2), self.slots.get(index)) else { return };
        let path = self.node.log_path(self.pod().metadata.uid.as_deref().unwrap_or_default(), &slot.name, old);
        let logs = self.node.logs.clone();
        tokio::task::spawn_blocking(move || logs.remove(&path));
    }
}

//! Doing what [`State`](super::State) answers.

use super::*;
use crate::pod::runner::{self, Context};

impl Worker {
    pub(super) fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::EventRecord { warning, reason, message, container } => {
                    self.note(warning, reason, message, container)
                }
                Action::Mount => self.mount(false),
                Action::Pull(_) => self.pull(),
                Action::Start { attempt, .. } => self.start(attempt),
                Action::Probe(_, kind) => self.probe(kind),
                Action::Stop { grace, .. } => self.stop(grace),
                Action::Kill(_) => self.kill(),
                Action::Clean => self.clean(),
                Action::Delete => self.delete = true,
            }
        }
    }

    pub(super) fn note(&self, warning: bool, reason: &'static str, message: String, container: Option<usize>) {
        let mut about = self.about.clone();
        if let Some(container) = container.and_then(|index| self.rules.containers.get(index)) {
            about.field_path = Some(format!("spec.containers{{{}}}", container.name));
        }
        self.node.recorder.record(EventRecord { about, warning, reason, message, source: None });
    }

    /// Takes an address and fills the volumes. `again`: it has been said that there is no address.
    pub(super) fn mount(&mut self, again: bool) {
        let ip = self.ip.or_else(|| self.node.addresses.take());
        self.ip = ip;
        let Some(ip) = ip else {
            if !again {
                let message = "Failed to create pod sandbox: the node's podCIDR has no free address";
                self.note(true, "FailedCreatePodSandBox", message.into(), None);
            }
            // Addresses come back as pods go. The task takes none itself: it may be dropped at any time.
            let (sender, node) = (self.sender.clone(), self.node.clone());
            self.preparing = Some(Task(tokio::spawn(async move {
                loop {
                    let freed = node.addresses_freed.notified();
                    if node.addresses.any_free() {
                        break;
                    }
                    freed.await;
                }
                let _ = sender.send(Message::AddressFree).await;
            })));
            return;
        };
        let dir = self.node.pod_dir(self.pod.metadata.uid.as_deref().unwrap_or_default());
        let (volumes, input, sender) = (self.node.volumes.clone(), self.input.clone(), self.sender.clone());
        self.volumes = Some(Task(tokio::spawn(keep(volumes, input, (dir, ip), sender))));
    }

    pub(super) fn pull(&mut self) {
        let (node, pod, container) = (self.node.clone(), self.pod.clone(), self.container.clone());
        let sender = self.sender.clone();
        self.preparing = Some(Task(tokio::spawn(async move {
            let message = match start::pull(&node, &pod, &container, &sender).await {
                Ok((image, message)) => Message::Image(image, message),
                Err(error) => happened(CellEvent::PullFailed { reason: error.reason(), message: error.to_string() }),
            };
            let _ = sender.send(message).await;
        })));
    }

    pub(super) fn start(&mut self, attempt: u32) {
        let (Some(image), Some(ip)) = (self.image.clone(), self.ip) else { return };
        self.watch_sources();
        let (node, pod, container) = (self.node.clone(), self.pod.clone(), self.container.clone());
        let sender = self.sender.clone();
        self.preparing = Some(Task(tokio::spawn(async move {
            let message = match start::make(&node, &pod, &container, &image, ip, attempt).await {
                Ok(made) => Message::Made(Box::new(made)),
                Err((reason, message)) => happened(CellEvent::StartFailed { reason, message }),
            };
            let _ = sender.send(message).await;
        })));
    }

    /// Says when an object changes that the environment is made of, so that what failed for it is tried at once.
    pub(super) fn watch_sources(&mut self) {
        let namespace = self.pod.metadata.namespace.as_deref().unwrap_or_default();
        let named = crate::config::sources::named_by_environment(&self.container);
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
                if changed.is_err() || sender.send(happened(CellEvent::SourcesChanged)).await.is_err() {
                    return;
                }
            }
        })));
    }

    pub(super) fn started(&mut self, made: Made) {
        // What it is made of is read only once; a later start reads it anew.
        self.sources = None;
        let attempt = self.cell().map_or(0, Cell::next_attempt);
        let id = made.id.clone();
        let container = made.container.clone();
        let log = made.log.clone();
        // The former one's address, where it still has it.
        self.live = None;
        let context = Context {
            node: self.node.clone(),
            pod: self.pod.clone(),
            container: self.container.clone(),
            about: self.about.clone(),
            ip: self.ip,
            attempt,
            messages: self.sender.clone(),
        };
        let mut made = made;
        let runner = match (runner::runner_class(container.kind()).start)(context, &mut made) {
            Ok(runner) => runner,
            Err((reason, message)) => {
                self.apply(Event::Container(ONLY, CellEvent::StartFailed { reason, message }));
                return;
            }
        };
        let live = Live { runner, _measure: self.measure(&made), stopping: None, made };
        let since = self.now();
        self.view.change(|seen| {
            seen.container = Some((container, since));
            seen.log = Some(log);
            seen.attempt = Some(attempt);
        });
        self.live = Some(live);
        self.forget_old_logs(attempt);
        self.apply(Event::Container(ONLY, CellEvent::Started { container_id: id }));
    }

    /// Has what the pod writes measured, while the container lives.
    pub(super) fn measure(&self, made: &Made) -> Option<Watched> {
        let bounds = usage::bounds(&self.pod, &self.container, made.termination.is_some());
        if bounds.is_empty() {
            return None;
        }
        let uid = self.pod.metadata.uid.as_deref().unwrap_or_default();
        let (container, log, sender) = (made.container.clone(), made.log.clone(), self.sender.clone());
        Some(self.node.measurer.watch(Subject {
            pod_dir: self.node.pod_dir(uid),
            log_dir: self.node.log_dir(uid),
            bounds,
            changes: Box::new(move || container.stats().disk_changes.wrapping_add(log.written())),
            exceeded: Box::new(move |message| sender.try_send(Message::Event(Event::Evicted(message))).is_ok()),
        }))
    }

    pub(super) fn probe(&mut self, kind: ProbeKind) {
        let (Some(spec), Some(ip)) = (settings::probe(&self.container, kind), self.ip) else { return };
        let since = match self.cell().map(|cell| &cell.stage) {
            Some(CellStage::Running(running)) => running.since,
            _ => return,
        };
        let attempt = self.cell().map_or(0, Cell::current);
        let task = probe::run(self.node.clone(), spec, kind, attempt, since, ip, self.sender.clone());
        self.probes.push(Task(tokio::spawn(task)));
    }

    pub(super) fn stop(&mut self, grace: Duration) {
        self.probes.clear();
        let deadline = tokio::time::Instant::now() + grace;
        let stage = self.cell().map(|cell| &cell.stage);
        let restart = matches!(stage, Some(CellStage::Stopping { why: StopReason::Probe | StopReason::Changed, .. }));
        let Some(live) = &mut self.live else { return };
        if let Some((_, end)) = &live.stopping {
            end.send_replace(deadline);
            return;
        }
        let (end, ends) = watch::channel(deadline);
        live.stopping = live.runner.stop(restart, ends).map(|task| (task, end));
    }

    /// Ends whatever runs or is being prepared.
    pub(super) fn kill(&mut self) {
        self.probes.clear();
        self.preparing = None;
        self.sources = None;
        if let Some(mut live) = self.live.take() {
            live.runner.kill();
            let log = live.made.log.clone();
            tokio::task::spawn_blocking(move || log.close());
            let cpu = live.made.container.stats().cpu;
            drop(live);
            self.view.change(|seen| {
                seen.container = None;
                seen.cpu_before += cpu;
            });
            self.node.pods.totals.ended(cpu);
        }
    }

    pub(super) fn clean(&mut self) {
        self.volumes = None;
        self.image = None;
        if let Some(ip) = self.ip.take() {
            self.node.free_address(ip);
        }
        let uid = self.pod.metadata.uid.clone().unwrap_or_default();
        let dir = self.node.pod_dir(&uid);
        let logs = self.state.removed.then(|| self.node.log_dir(&uid));
        let writer = self.node.logs.clone();
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let removed = tokio::task::spawn_blocking(move || {
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
            let _ = sender.send(Message::Event(Event::Cleaned)).await;
        });
    }

    /// The logs of this start and the one before are kept, as upstream does.
    pub(super) fn forget_old_logs(&self, attempt: u32) {
        let Some(old) = attempt.checked_sub(2) else { return };
        let path = self.node.log_path(self.pod.metadata.uid.as_deref().unwrap_or_default(), &self.container.name, old);
        let logs = self.node.logs.clone();
        tokio::task::spawn_blocking(move || logs.remove(&path));
    }
}

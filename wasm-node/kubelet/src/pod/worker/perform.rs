//! Doing what [`State`](super::State) answers.

use super::*;
use crate::pod::serve::Door;
use machinery_serve::net::Listen;

impl Worker {
    pub(super) fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Note { warning, reason, message, container } => self.note(warning, reason, message, container),
                Action::Mount => self.mount(false),
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

    pub(super) fn note(&self, warning: bool, reason: &'static str, message: String, container: bool) {
        let mut about = self.about.clone();
        if container {
            about.field_path = Some(format!("spec.containers{{{}}}", self.container.name));
        }
        self.node.recorder.record(Note { about, warning, reason, message, source: None });
    }

    /// Takes an address and fills the volumes. `again`: it has been said that there is no address.
    pub(super) fn mount(&mut self, again: bool) {
        let ip = self.ip.or_else(|| self.node.addresses.take());
        self.ip = ip;
        let Some(ip) = ip else {
            if !again {
                let message = "Failed to create pod sandbox: the node's podCIDR has no free address";
                self.note(true, "FailedCreatePodSandBox", message.into(), false);
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
        self.volumes = Some(Task(tokio::spawn(keep(self.node.clone(), self.input.clone(), ip, self.sender.clone()))));
    }

    pub(super) fn pull(&mut self) {
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

    pub(super) fn start(&mut self, attempt: u32) {
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
    pub(super) fn watch_sources(&mut self) {
        let namespace = self.pod.metadata.namespace.as_deref().unwrap_or_default();
        let named = crate::pod::sources::named_by_environment(&self.container);
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

    pub(super) fn started(&mut self, made: Made) {
        // What it is made of is read only once; a later start reads it anew.
        self.sources = None;
        let attempt = self.state.next_attempt();
        let id = made.id.clone();
        let container = made.container.clone();
        let log = made.log.clone();
        // The former one's address, where it still has it.
        self.live = None;
        let mut live = Live {
            server: None,
            door: None,
            _run: None,
            _measure: self.measure(&made),
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
                if attempt == 0 && settings::of_job(&self.pod) {
                    self.note(true, "NeverCompletes", settings::server_in_job(&self.container.name), true);
                }
                let port = server_port(&self.container);
                let gate = Gate::new(container.clone(), server.clone(), attempt, self.sender.clone());
                if let Some(ip) = ip {
                    match self.node.parts.network.attach(Listen::tcp(ip, port), gate.clone()) {
                        Ok(attached) => live.door = Some(Door::new(attached)),
                        Err(taken) => {
                            self.apply(Event::StartFailed { reason: "RunContainerError", message: taken.to_string() });
                            return;
                        }
                    }
                    if self.node.config.host_pod_listeners {
                        let listening = crate::pod::listen::listen(
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
                live.server = Some(server);
            }
            Kind::Command => {
                let (signal, stopped) = oneshot::channel();
                live.signal = Some(signal);
                live._run = Some(self.run_command(&mut live.made, attempt, stopped));
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

    pub(super) fn run_command(&self, made: &mut Made, attempt: u32, stopped: oneshot::Receiver<StopSignal>) -> Task {
        let (container, log, file) = (made.container.clone(), made.log.clone(), made.termination.clone());
        let from_log = self.container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        let admitted = made.admitted.take();
        let sender = self.sender.clone();
        Task(tokio::spawn(async move {
            let stop = async move {
                match stopped.await {
                    Ok(signal) => signal,
                    // Nobody will say anything any more: the task itself is dropped to end the run.
                    Err(_) => std::future::pending().await,
                }
            };
            let admitted = match admitted {
                Some(admitted) => admitted,
                None => container.admit().await,
            };
            let outcome = container.run(admitted, Box::pin(stop)).await;
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
        let since = match &self.state.stage {
            Stage::Running(running) => running.since,
            _ => return,
        };
        let attempt = self.state.current();
        let task = probe::run(self.node.clone(), spec, kind, attempt, since, ip, self.sender.clone());
        self.probes.push(Task(tokio::spawn(task)));
    }

    pub(super) fn stop(&mut self, grace: Duration) {
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
            (Some(server), _) => {
                let killed_by_probe =
                    matches!(&self.state.stage, Stage::Stopping { why: Why::Probe | Why::Changed, .. });
                let (log, file) = (live.made.log.clone(), live.made.termination.clone());
                let from_log = self.container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
                let last_words = Box::new(move |failed| {
                    log.close();
                    message::read(file.as_deref(), log.path(), from_log, failed)
                });
                let (server, door) = (server.clone(), live.door.clone());
                let what = stop::Server { server, door, restart: killed_by_probe, last_words };
                tokio::spawn(stop::server(self.node.clone(), what, self.ip, hook, ends, attempt, self.sender.clone()))
            }
            (None, Some(signal)) => {
                let at_grace = live.made.settings.stop_at_grace;
                tokio::spawn(stop::command(
                    self.node.clone(),
                    signal,
                    at_grace,
                    self.ip,
                    hook,
                    ends,
                    self.sender.clone(),
                ))
            }
            (None, None) => return,
        };
        live.stopping = Some((Task(task), end));
    }

    /// Ends whatever runs or is being prepared.
    pub(super) fn kill(&mut self) {
        self.probes.clear();
        self.preparing = None;
        self.sources = None;
        if let Some(live) = self.live.take() {
            if let Some(door) = &live.door {
                door.close();
            }
            if let Some(server) = &live.server {
                server.shut();
            }
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

//! Performs the actions that [`PodState`](super::PodState) returns: starts tasks, whose results come back as messages.

use tokio::sync::watch;

use super::*;
use crate::config::pull_secrets;
use crate::config::sources::named_by_environment;
use crate::pod::handler::HandlerRunner;
use crate::pod::host_ports;
use crate::pod::lifecycle::check;
use crate::pod::runner::{self, RunContext};
use crate::pod::start::PodContext;
use crate::volume::measure::MeasuredPod;
use crate::volume::usage;

/// The retry interval for host ports: the release of one isn't signalled.
const HOST_PORT_RETRY: Duration = Duration::from_secs(1);

impl PodWorker {
    pub(super) fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::EventRecord { warning, reason, message, container } => {
                    self.record_event(warning, reason, message, container)
                }
                Action::Mount => self.mount(),
                Action::Pull(container) => self.pull(container),
                Action::Start { container, attempt } => self.start(container, attempt),
                Action::Probe(container, kind) => self.probe(container, kind),
                Action::Hook(container) => self.hook(container),
                Action::Stop { container, grace } => self.stop(container, grace),
                Action::Kill(container) => self.kill(container),
                Action::Clean => self.clean(),
                // The mirror is removed by its own reconciler, once its static pod is gone.
                Action::Delete if *self.writer.target() != StatusTarget::Pod => self.apply(Event::Removed),
                Action::Delete => self.step_writer(StatusEvent::DeleteRequested),
            }
        }
    }

    pub(super) fn record_event(&self, warning: bool, reason: &'static str, message: String, container: Option<usize>) {
        let mut about = ObjectReference::clone(self.object.reference());
        if let Some(slot) = container.and_then(|index| self.slots.get(index)) {
            about.field_path = Some(slot.field_path.to_string());
        }
        self.node.recorder.record(EventRecord { about, warning, reason, message, source: None });
    }

    /// Allocates an address and host ports, and fills the volumes.
    pub(super) fn mount(&mut self) {
        let ip = self.sandbox.ip.or_else(|| self.node.addresses.take());
        self.sandbox.ip = ip;
        let Some(ip) = ip else {
            let node = self.node.clone();
            // Addresses are freed when pods end.
            let available = async move {
                loop {
                    let freed = node.addresses_freed.notified();
                    if node.addresses.any_free() {
                        break;
                    }
                    freed.await;
                }
            };
            return self.mount_later("the node's podCIDR has no free address".into(), available);
        };
        if self.sandbox.host_ports.is_empty() {
            match host_ports::open(
                &self.node.parts.env,
                self.pod(),
                ip,
                self.node.identity.bind,
                &self.node.parts.network,
            ) {
                Ok(opened) => self.sandbox.host_ports = opened,
                Err(why) => {
                    let why = format!("{why}; it is tried again");
                    return self.mount_later(why, self.node.parts.env.sleep(HOST_PORT_RETRY));
                }
            }
        }
        if self.sandbox.memory_files.is_none()
            && let Ok(folder) = &self.node.volumes.memory
        {
            let (node_bytes, env) = (self.node.guest_memory_bytes, &self.node.parts.env);
            self.sandbox.memory_files = folder.account(self.pod(), node_bytes, &self.ledger, env);
            self.view.update(|snapshot| snapshot.memory_files = self.sandbox.memory_files.clone());
        }
        self.fill_volumes(None);
    }

    /// Records an event unless the same one was recorded, and retries once the resource is `available`. The task itself allocates nothing,
    /// as it may be dropped at any time.
    fn mount_later(&mut self, why: String, available: impl Future<Output = ()> + Send + 'static) {
        if self.sandbox.last_mount_error.as_ref() != Some(&why) {
            let message = format!("Failed to create pod sandbox: {why}");
            self.record_event(true, "FailedCreatePodSandBox", message, None);
            self.sandbox.last_mount_error = Some(why);
        }
        let sender = self.sender.clone();
        self.sandbox.mount_retry = Some(Task(tokio::spawn(async move {
            available.await;
            let _ = sender.send(Message::Mount).await;
        })));
    }

    pub(super) fn pull(&mut self, index: usize) {
        let pod = self.pod().clone();
        let preparation = self.machine(index).map_or(0, |machine| machine.preparation);
        let Some(slot) = self.slots.get_mut(index) else { return };
        let (node, container) = (self.node.clone(), slot.container.get());
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        for named in named_by_environment(&container).into_iter().chain(pull_secrets::named(&pod)) {
            // Replaces the source of an immutable object that was deleted and created again.
            let source = node.sources.get(named.0, namespace, &named.1);
            self.sandbox.sources.insert(named, source);
        }
        let sender = self.sender.clone();
        slot.preparing = Some(Task(tokio::spawn(async move {
            let message = match start::pull(&node, &pod, (index, &container), &sender).await {
                Ok((pulls, message)) => Message::Pulled(Box::new(((index, preparation), pulls, message))),
                Err((of, error)) => {
                    let (reason, message) = (error.reason(), error.to_string());
                    container_message(index, ContainerEvent::PullFailed { preparation, of, reason, message })
                }
            };
            let _ = sender.send(message).await;
        })));
    }

    pub(super) fn start(&mut self, index: usize, attempt: u32) {
        self.watch_sources(index);
        let unsupported_fields = |slot: &ContainerSlot| match slot.class {
            Class::Ephemeral => unsupported::ephemeral_fields(self.pod(), &slot.name),
            _ => Vec::new(),
        };
        let unsupported = self.slots.get(index).map(unsupported_fields).unwrap_or_default();
        for field in &unsupported {
            self.record_event(true, "Unsupported", format!("{}: {}", field.path, field.why), Some(index));
        }
        let pod = self.pod().clone();
        let preparation = self.machine(index).map_or(0, |machine| machine.preparation);
        let (Some(slot), Some(ip)) = (self.slots.get_mut(index), self.sandbox.ip) else { return };
        let Some(pulls) = slot.pulls.clone() else { return };
        let (node, container, sender) = (self.node.clone(), slot.container.get(), self.sender.clone());
        if !unsupported.is_empty() {
            let message = unsupported::sentence(&unsupported);
            let failed = ContainerEvent::StartFailed { preparation, reason: "CreateContainerConfigError", message };
            slot.preparing = Some(Task(tokio::spawn(async move {
                let _ = sender.send(container_message(index, failed)).await;
            })));
            return;
        }
        let context = PodContext {
            pod,
            ip,
            ledger: self.ledger.clone(),
            cpu: self.cpu.clone(),
            memory_files: self.sandbox.memory_files.clone(),
            keyvalue: self.keyvalue.clone(),
        };
        slot.preparing = Some(Task(tokio::spawn(async move {
            let message = match start::create(&node, &context, &container, &pulls, attempt).await {
                Ok(created) => Message::Created(Box::new(((index, preparation), created))),
                Err((reason, message)) => {
                    container_message(index, ContainerEvent::StartFailed { preparation, reason, message })
                }
            };
            let _ = sender.send(message).await;
        })));
    }

    /// Reports changes of the objects behind the environment, so that a failed start is retried at once.
    fn watch_sources(&mut self, index: usize) {
        let pod = self.pod().clone();
        let Some(slot) = self.slots.get_mut(index) else { return };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let named = named_by_environment(&slot.container.get());
        let sources: Vec<_> = named.iter().map(|(kind, name)| self.node.sources.get(*kind, namespace, name)).collect();
        if sources.is_empty() || slot.sources.is_some() {
            return;
        }
        let sender = self.sender.clone();
        slot.sources = Some(Task(tokio::spawn(async move {
            let mut receivers: Vec<_> = sources.iter().map(|source| source.known.clone()).collect();
            loop {
                let any = receivers.iter_mut().map(|receiver| Box::pin(receiver.changed()));
                let (changed, _, _) = futures::future::select_all(any.collect::<Vec<_>>()).await;
                if changed.is_err()
                    || sender.send(container_message(index, ContainerEvent::SourcesChanged)).await.is_err()
                {
                    return;
                }
            }
        })));
    }

    pub(super) fn handle_created(&mut self, index: usize, mut created: CreatedContainer) {
        let attempt = self.machine(index).map_or(0, ContainerMachine::next_attempt);
        let Some(slot) = self.slots.get_mut(index) else { return };
        // The sources are read once per start; a later start reads them again.
        (slot.sources, slot.preparing) = (None, None);
        // Frees the address of the previous run, if it still holds it.
        slot.live = None;
        let context = RunContext {
            node: self.node.clone(),
            view: self.view.clone(),
            class: slot.class,
            container: slot.container.clone(),
            about: (self.object.reference().clone(), slot.field_path.clone()),
            ip: self.sandbox.ip,
            index,
            attempt,
            messages: self.sender.clone(),
        };
        let snapshot = ContainerSnapshot {
            name: slot.name.clone(),
            running: Some((created.container.clone(), self.node.parts.env.now())),
            responses: created.responses.clone(),
            log: created.log.clone(),
            attempt,
            spec: slot.container.clone(),
        };
        let container_id = created.id.clone();
        let runner = match (runner::runner_class(created.container.kind()).start)(context, &mut created) {
            Ok(runner) => runner,
            Err((reason, message)) => {
                let preparation = self.machine(index).map_or(0, |machine| machine.preparation);
                self.apply(Event::Container(index, ContainerEvent::StartFailed { preparation, reason, message }));
                return;
            }
        };
        self.view.container_started(snapshot);
        slot.live = Some(LiveContainer { runner, stopping: None, created });
        self.forget_old_logs(index, attempt);
        self.measure();
        self.apply(Event::Container(index, ContainerEvent::Started { container_id }));
        if self.resize.is_in_progress() || !self.is_actuated(index) {
            self.actuate();
            self.project();
        }
    }

    /// Measures the pod's disk writes while any of its containers runs.
    fn measure(&mut self) {
        let mut live = self.slots.iter().filter_map(|slot| slot.live.as_ref()).peekable();
        if live.peek().is_none() {
            self.sandbox.measure = None;
            return;
        }
        let messages = live.any(|live| live.created.termination.is_some());
        let bounds =
            usage::limits(self.pod(), messages || self.sandbox.measure.as_ref().is_some_and(|(of, _)| of.messages));
        if bounds.is_empty() || self.sandbox.measure.as_ref().is_some_and(|(of, _)| *of == bounds) {
            return;
        }
        let uid = self.pod().metadata.uid.as_deref().unwrap_or_default();
        let (view, sender) = (self.view.clone(), self.sender.clone());
        let settle = self.sandbox.memory_files.clone().zip(self.node.volumes.memory.as_ref().ok().cloned());
        let settle = settle.map(|of| (of, uid.to_owned()));
        let watched = self.node.measurer.watch(MeasuredPod {
            pod_dir: self.node.pod_dir(uid),
            log_dir: self.node.log_dir(uid),
            bounds: bounds.clone(),
            changes: Box::new(move || view.change_count()),
            settle: Box::new(move || {
                if let Some(((files, folder), uid)) = &settle {
                    files.settle(folder.measured(uid));
                }
            }),
            exceeded: Box::new(move |message| sender.try_send(Event::Evicted(message).into())),
        });
        self.sandbox.measure = Some((bounds, watched));
    }

    fn probe(&mut self, index: usize, kind: ProbeKind) {
        let pod = self.pod().clone();
        let (Some(machine), Some(slot), Some(ip)) =
            (self.state.machines().get(index), self.slots.get_mut(index), self.sandbox.ip)
        else {
            return;
        };
        let (Some(spec), ContainerStage::Running(running)) =
            (check::probe(&slot.container.get(), kind), &machine.stage)
        else {
            return;
        };
        let of = probe::ProbeTarget { container: index, attempt: machine.current(), kind, since: running.since };
        let handlers = HandlerRunner::new(&self.node, &pod, &slot.name, ip);
        let env = self.node.parts.env.clone();
        slot.probes.push((kind, Task(tokio::spawn(probe::run(env, handlers, spec, of, self.sender.clone())))));
    }

    /// Runs the `postStart` hook, until it ends or the container is stopped.
    fn hook(&mut self, index: usize) {
        let attempt = self.machine(index).map_or(0, ContainerMachine::current);
        let pod = self.pod().clone();
        let (Some(slot), Some(ip)) = (self.slots.get_mut(index), self.sandbox.ip) else { return };
        let Some(hook) = check::HookSpec::post_start(&slot.container.get()) else { return };
        let handlers = HandlerRunner::new(&self.node, &pod, &slot.name, ip);
        let sender = self.sender.clone();
        slot.hook = Some(Task(tokio::spawn(async move {
            let hooked = handlers.hook(&hook).await;
            if let Some(host) = hooked.fell_back {
                let _ = sender.send(container_message(index, ContainerEvent::HookFellBack { host })).await;
            }
            let _ = sender
                .send(container_message(index, ContainerEvent::HookEnded { attempt, failure: hooked.failure }))
                .await;
        })));
    }

    fn stop(&mut self, index: usize, grace: Duration) {
        let restart = self.machine(index).is_some_and(
            |machine| matches!(&machine.stage, ContainerStage::Stopping { why, .. } if *why != StopReason::Pod),
        );
        let Some(slot) = self.slots.get_mut(index) else { return };
        slot.hook = None;
        slot.probes.retain(|(kind, _)| !restart && *kind == ProbeKind::Readiness);
        let deadline = self.node.parts.env.deadline(grace);
        let Some(live) = &mut slot.live else { return };
        if let Some((_, end)) = &live.stopping {
            end.send_replace(deadline);
            return;
        }
        let (end, ends) = watch::channel(deadline);
        live.stopping = live.runner.stop(restart, ends).map(|task| (task, end));
    }

    /// Ends a running container, or its preparation.
    fn kill(&mut self, index: usize) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        slot.probes.clear();
        slot.hook = None;
        slot.preparing = None;
        slot.sources = None;
        if let Some(mut live) = slot.live.take() {
            live.runner.kill();
            let log = live.created.log.clone();
            tokio::task::spawn_blocking(move || log.close());
            let used = live.created.container.stats();
            drop(live);
            self.view.container_ended(&slot.name, used);
            self.node.pods.totals.ended(used.cpu);
            self.measure();
        }
    }

    pub(super) fn clean(&mut self) {
        let ip = std::mem::take(&mut self.sandbox).ip;
        self.step_resize(ResizeEvent::Cleaned);
        self.view.update(|snapshot| snapshot.memory_files = None);
        for slot in &mut self.slots {
            slot.pulls = None;
        }
        if let Some(ip) = ip {
            self.node.free_address(ip);
        }
        let uid = self.pod().metadata.uid.clone().unwrap_or_default();
        let dir = self.node.pod_dir(&uid);
        let logs = self.state.is_removed().then(|| self.node.log_dir(&uid));
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

    /// As upstream, keeps the logs of this start and of the previous one.
    fn forget_old_logs(&self, index: usize, attempt: u32) {
        let (Some(old), Some(slot)) = (attempt.checked_sub(2), self.slots.get(index)) else { return };
        let path = self.node.log_path(self.pod().metadata.uid.as_deref().unwrap_or_default(), &slot.name, old);
        let logs = self.node.logs.clone();
        tokio::task::spawn_blocking(move || logs.remove(&path));
    }
}

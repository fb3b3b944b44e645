//! Sessions: an additional command in a container's sandbox. It shares the container's volumes, environment, network
//! identity, grants, and budgets of memory and CPU, and has no access to the memory of other instances.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::future::BoxFuture;
use runtime_api::{Admitted, ExecError, ExecSpec, Kind, NodeCall, Outcome, Session as ApiSession, StopSignal};

use super::admission::AdmissionQueue;
use super::container::{Container, ContainerState, Counters, with_working_directory, working_folder};
use super::load::PreparedModule;
use crate::bounds::growth::COMMAND_GROWTH_WAIT_MAX;
use crate::bounds::slots::Slot;
use crate::host::guest::{Guest, GuestGrowth, Outputs};
use runtime_api::{LoadError, Metering};

/// A session that has its slot, or that waits for one of the node's.
pub struct Session {
    container: Container,
    slot_source: SessionSlot,
}

/// How a session gets its slot.
enum SessionSlot {
    /// Acquired at once: the caller is waiting.
    Acquired(Slot),
    /// Acquired when it runs, from the node's own slots, with memory beside the live instances.
    Pending(NodeCall),
}

impl Container {
    /// An additional command in this container's sandbox. It gets a slot at once or fails: the caller is waiting. A node's
    /// session waits for one of the node's slots.
    ///
    /// # Errors
    /// All session slots are in use, or `command` is no command.
    pub fn exec(&self, command: Arc<PreparedModule>, spec: ExecSpec) -> Result<Session, ExecError> {
        let of = &self.shared;
        if command.kind() != Kind::Command {
            return Err(LoadError::Unsupported("the module was not loaded as a command".into()).into());
        }
        let name = of.name.rsplit('/').next().unwrap_or_default();
        let grants = of.grants.clone().toolbox(spec.is_toolbox);
        command.check_imports(name, of.imports.as_deref())?;
        let pre = command.prepare(name, &grants)?;
        let (share, slot_source) = match spec.node_call {
            Some(call) => (of.node_sessions.clone(), SessionSlot::Pending(call)),
            None => {
                let share = of.sessions.clone();
                let slot = share.try_take(command.weight).ok_or(ExecError::Busy)?;
                (share, SessionSlot::Acquired(slot))
            }
        };
        let mut env = of.guest.env.to_vec();
        env.retain(|(known, _)| spec.env.iter().all(|(name, _)| name != known));
        env.extend(spec.env);
        let (mut disk, mut cwd_dir) = (of.guest.disk.clone(), of.guest.cwd_dir.clone());
        if !spec.folders.is_empty() {
            let own = disk.with_folders(spec.folders);
            cwd_dir = cwd_dir.or_else(|| working_folder(own.preopens(), of.guest.cwd.as_deref()?));
            disk = Arc::new(own.with_cwd(of.guest.cwd.clone().zip(cwd_dir.clone())));
        }
        let env = with_working_directory(env, of.guest.cwd.as_deref().filter(|_| cwd_dir.is_some()));
        let guest = Guest {
            argv: spec.argv.into(),
            env: env.into(),
            cwd_dir,
            disk,
            log: spec.log.clone(),
            stdin: spec.stdio.stdin,
            terminal: spec.stdio.terminal,
            outputs: Some(Outputs(spec.stdio.stdout, spec.stdio.stderr)),
            growth: GuestGrowth { wait_max: COMMAND_GROWTH_WAIT_MAX, ..of.guest.growth.clone() },
            fuel: (command.metering == Metering::Fuel).then(|| of.limits.fuel.unwrap_or(u64::MAX)),
            engine: command.linked().wasmtime.clone(),
            ..Guest::clone(&of.guest)
        };
        let shared = ContainerState {
            engine: of.engine.clone(),
            pre,
            // It creates no more instances.
            admission: AdmissionQueue::new(share.clone(), share, command.start_bytes),
            sessions: of.sessions.clone(),
            node_sessions: of.node_sessions.clone(),
            loaded: command,
            name: format!("{} (exec)", of.name),
            guest: Arc::new(guest),
            limits: of.limits.clone(),
            grants,
            imports: of.imports.clone(),
            log: spec.log,
            ledger: of.ledger.clone(),
            cpu: of.cpu.clone(),
            counters: Counters::default(),
            broken: Mutex::default(),
        };
        Ok(Session { container: Container { shared: Arc::new(shared) }, slot_source })
    }
}

impl Session {
    /// Runs it to its end, or until `stop` resolves.
    pub async fn run(self, stop: impl Future<Output = StopSignal> + Send + 'static) -> Outcome {
        let Self { container, slot_source } = self;
        let mut stop = Box::pin(stop);
        let admitted = match slot_source {
            SessionSlot::Acquired(slot) => Admitted::new(slot),
            SessionSlot::Pending(call) => tokio::select! {
                admission = container.shared.admit(Some(&call), 0) => Admitted::new(admission),
                signal = &mut stop => return Outcome::stopped(signal),
            },
        };
        container.run_admitted(admitted, stop).await
    }
}

#[async_trait]
impl ApiSession for Session {
    async fn run(self: Box<Self>, stop: BoxFuture<'static, StopSignal>) -> Outcome {
        Self::run(*self, stop).await
    }
}

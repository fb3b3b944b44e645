//! Sessions: one more command in a container's sandbox. It shares the container's volumes, environment, network identity,
//! grants, and its budgets of memory and CPU, and sees nothing of the memory of what runs there.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::future::BoxFuture;
use runtime_api::{Admitted, ExecError, ExecSpec, Kind, NodeCall, Outcome, Session as ApiSession, StopSignal};

use super::admission::AdmissionQueue;
use super::container::{Container, Counters, Shared, working_folder};
use super::load::Loaded;
use crate::bounds::growth::COMMAND_GROWTH_WAIT_MAX;
use crate::bounds::slots::Slot;
use crate::host::guest::{Guest, Outputs};
use runtime_api::{LoadError, Metering};

/// One that was let in, or that waits to be as one of the node's own.
pub struct Session {
    container: Container,
    place: Place,
}

/// Where a session has its place from.
enum Place {
    /// It has it: whoever asks for it is waiting.
    Taken(Slot),
    /// It takes one of those of the node's own, when it is run, and memory beside what lives.
    Waits(NodeCall),
}

impl Container {
    /// One more command in this container's sandbox. It has a place at once or is refused: whoever asks is waiting. One of
    /// the node's own waits for one of other places.
    ///
    /// # Errors
    /// As many sessions live as may, or `command` is none.
    pub fn exec(&self, command: Arc<Loaded>, spec: ExecSpec) -> Result<Session, ExecError> {
        let of = &self.shared;
        if command.kind() != Kind::Command {
            return Err(LoadError::Unsupported("the module was not loaded as a command".into()).into());
        }
        let name = of.name.rsplit('/').next().unwrap_or_default();
        let grants = of.grants.clone().toolbox(spec.is_toolbox);
        command.confined(name, of.imports.as_deref())?;
        let pre = command.prepare(name, &grants)?;
        let (share, place) = match spec.node_call {
            Some(call) => (of.node_sessions.clone(), Place::Waits(call)),
            None => {
                let share = of.sessions.clone();
                let slot = share.try_take(command.weight).ok_or(ExecError::Busy)?;
                (share, Place::Taken(slot))
            }
        };
        let mut env = of.guest.env.to_vec();
        env.retain(|(known, _)| spec.env.iter().all(|(name, _)| name != known));
        env.extend(spec.env);
        let disk = match spec.folders.is_empty() {
            true => of.guest.disk.clone(),
            false => Arc::new(of.guest.disk.with_folders(spec.folders)),
        };
        let in_session = || working_folder(disk.preopens(), of.guest.cwd.as_deref()?);
        let guest = Guest {
            argv: spec.argv.into(),
            env: env.into(),
            cwd_dir: of.guest.cwd_dir.clone().or_else(in_session),
            disk,
            log: spec.log.clone(),
            stdin: spec.stdio.stdin,
            terminal: spec.stdio.terminal,
            outputs: Some(Outputs(spec.stdio.stdout, spec.stdio.stderr)),
            growth_wait_max: COMMAND_GROWTH_WAIT_MAX,
            fuel: (command.metering == Metering::Fuel).then(|| of.limits.fuel.unwrap_or(u64::MAX)),
            engine: command.linked().wasmtime.clone(),
            ..Guest::clone(&of.guest)
        };
        let shared = Shared {
            engine: of.engine.clone(),
            pre,
            // It makes no more instances.
            door: AdmissionQueue::new(share.clone(), share, command.start_bytes),
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
        Ok(Session { container: Container { shared: Arc::new(shared) }, place })
    }
}

impl Session {
    /// Runs it to its end, or until `stop` resolves.
    pub async fn run(self, stop: impl Future<Output = StopSignal> + Send + 'static) -> Outcome {
        let Self { container, place } = self;
        let mut stop = Box::pin(stop);
        let admitted = match place {
            Place::Taken(slot) => Admitted::new(slot),
            Place::Waits(call) => tokio::select! {
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

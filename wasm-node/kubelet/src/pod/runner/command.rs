//! Commands: they run to their end by themselves.

use std::time::Duration;

use runtime_api::{Kind, StopSignal};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::{Context, Runner, RunnerClass};
use crate::pod::start::{Made, Refused};
use crate::pod::state::CellEvent;
use crate::pod::stop::{over, pre_stop};
use crate::pod::worker::{Task, happened};

/// What a command gets after its hook even where the hook has used up the grace period (upstream's).
const AFTER_HOOK_MIN: Duration = Duration::from_secs(2);

pub(super) const CLASS: RunnerClass =
    RunnerClass { kind: Kind::Command, is_admitted: true, leaves_message: true, start };

struct Command {
    context: Context,
    /// Stops at the end of its grace period, and not by a signal before.
    at_grace: bool,
    /// Tells it to stop.
    signal: Option<oneshot::Sender<StopSignal>>,
    run: Option<Task>,
}

fn start(context: Context, made: &mut Made) -> Result<Box<dyn Runner>, Refused> {
    let (signal, stopped) = oneshot::channel();
    let (container, admitted) = (made.container.clone(), made.admitted.take());
    let (index, attempt, messages) = (context.index, context.attempt, context.messages.clone());
    let last_words = context.last_words(made);
    let run = Task(tokio::spawn(async move {
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
        let read = tokio::task::spawn_blocking(move || last_words(failed));
        let message = read.await.ok().flatten().or(outcome.message);
        let reason = outcome.reason.as_str().to_owned();
        let exited = CellEvent::Exited { attempt, code: outcome.exit_code, reason, message };
        let _ = messages.send(happened(index, exited)).await;
    }));
    let at_grace = made.settings.stop_at_grace;
    Ok(Box::new(Command { context, at_grace, signal: Some(signal), run: Some(run) }))
}

impl Runner for Command {
    fn stop(&mut self, _: bool, ends: watch::Receiver<Instant>) -> Option<Task> {
        let signal = self.signal.take()?;
        Some(Task(tokio::spawn(interrupt(self.context.clone(), signal, self.at_grace, ends))))
    }

    fn kill(&mut self) {
        self.run = None;
    }
}

/// Interrupts a command; its run tells its end.
async fn interrupt(
    context: Context,
    signal: oneshot::Sender<StopSignal>,
    at_grace: bool,
    ends: watch::Receiver<Instant>,
) {
    let hooked = pre_stop(&context, &ends).await;
    if at_grace {
        over(ends).await;
        if hooked {
            tokio::time::sleep(AFTER_HOOK_MIN).await;
        }
        let _ = signal.send(StopSignal::Kill);
    } else {
        let _ = signal.send(StopSignal::Terminate);
    }
}

//! The sources of a worker's events: the pod's input, the mailbox of its tasks, the write in flight, and one timer for
//! all deadlines. Each wait yields one event; no source is drained before another.

use std::time::Duration;

use futures::future::BoxFuture;

use super::{Message, PodWorker};

/// A write to the API. Yields the pod's version after the write.
pub(super) type StatusRequest = BoxFuture<'static, Result<u64, kube::Error>>;

/// An event of a source.
pub(super) enum WorkerEvent {
    /// The pod's input: a newer state, a resize decision, or the removal from the API.
    InputChanged,
    /// The node has dropped the pod's input.
    InputClosed,
    /// The mailbox: a task of the pod.
    Message(Message),
    /// The write in flight has ended.
    WriteEnded(Result<u64, kube::Error>),
    /// The timer: a deadline of the pod's state or of its status.
    TickDue,
    /// The timer: a retry.
    RetryDue,
}

/// The times until the next deadlines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deadlines {
    /// Until the next step of the pod's state.
    pub(super) tick_in: Option<Duration>,
    /// Until the next retry, which needs no step of the state.
    pub(super) retry_in: Option<Duration>,
}

impl Deadlines {
    /// The earliest deadline, and whether it is one of the pod's state.
    fn earliest(self) -> Option<(Duration, bool)> {
        let wait = self.tick_in.into_iter().chain(self.retry_in).min()?;
        Some((wait, self.tick_in == Some(wait)))
    }
}

impl PodWorker {
    /// Waits for the next event of any source.
    pub(super) async fn next_event(
        &mut self,
        request: &mut Option<StatusRequest>,
        deadlines: Deadlines,
    ) -> WorkerEvent {
        // One timer for all deadlines: each further timer would enlarge every pod's task.
        let earliest = deadlines.earliest();
        let (wait, ticks) = earliest.unwrap_or_default();
        tokio::select! {
            changed = self.input.changed() => match changed {
                Ok(()) => WorkerEvent::InputChanged,
                Err(_) => WorkerEvent::InputClosed,
            },
            message = self.messages.recv() => WorkerEvent::Message(message),
            result = async { request.as_mut().expect("guarded").await }, if request.is_some() => {
                *request = None;
                WorkerEvent::WriteEnded(result)
            }
            () = async { self.node.parts.env.sleep(wait).await }, if earliest.is_some() => {
                if ticks { WorkerEvent::TickDue } else { WorkerEvent::RetryDue }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_deadline_decides_and_a_step_of_the_state_comes_before_a_retry() {
        let second = |seconds: Option<u64>| seconds.map(Duration::from_secs);
        for (tick, retry, earliest) in [
            (None, None, None),
            (Some(2), None, Some((2, true))),
            (None, Some(2), Some((2, false))),
            (Some(3), Some(2), Some((2, false))),
            (Some(2), Some(3), Some((2, true))),
            (Some(2), Some(2), Some((2, true))),
            (Some(0), Some(2), Some((0, true))),
        ] {
            let deadlines = Deadlines { tick_in: second(tick), retry_in: second(retry) };
            let earliest = earliest.map(|(wait, ticks)| (Duration::from_secs(wait), ticks));
            assert_eq!(deadlines.earliest(), earliest, "{deadlines:?}");
        }
    }
}

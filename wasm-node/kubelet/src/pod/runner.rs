//! The runners: one file and one row of [`CLASSES`] per kind of module. The module's exports decide the kind.

mod command;
mod plugin;
mod server;

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, ObjectReference};
use machinery_client::EventRecord;
use machinery_env::Deadline;
use runtime_api::Kind;
use tokio::sync::watch;

use super::handler::HandlerRunner;
use super::lifecycle::state::Class;
use super::message;
use super::shared::NodeContext;
use super::start::{CreatedContainer, StartError};
use super::worker::{Message, PodView, Task};
use crate::mailbox::Sender;
use crate::spec::compressed::Compressed;

/// Starts a created container.
type Start = fn(RunContext, &mut CreatedContainer) -> Result<Box<dyn Runner>, StartError>;

/// A runner class.
pub(crate) struct RunnerClass {
    kind: Kind,
    /// The container must be admitted before it runs, as it holds its resources for its whole life.
    pub(crate) is_admitted: bool,
    /// Each request has an instance, so that two processes may serve at once ([`super::handover`]).
    is_server: bool,
    /// The guest gets the file of its termination message even if the pod names none.
    pub(crate) leaves_message: bool,
    /// Starts the container.
    pub(crate) start: Start,
}

/// All runner classes.
static CLASSES: [RunnerClass; 3] = [command::CLASS, server::CLASS, plugin::CLASS];

/// The runner class of a kind of module.
pub(crate) fn runner_class(kind: Kind) -> &'static RunnerClass {
    CLASSES.iter().find(|runner_class| runner_class.kind == kind).unwrap_or(&CLASSES[0])
}

/// Whether a pod whose running containers are of these kinds serves on at a takeover: all of them are servers, as a server
/// may need a command beside it.
pub(crate) fn outlives_agent(running: impl IntoIterator<Item = Kind>) -> bool {
    let mut running = running.into_iter().peekable();
    running.peek().is_some() && running.all(|kind| runner_class(kind).is_server)
}

/// A running container. Dropping it ends the run.
pub(crate) trait Runner: Send {
    /// Stops the container gracefully by `ends`, which may change, and reports the exit to the worker. `restart`: the
    /// exit code is that of a killed process. `None` if a stop is in progress.
    fn stop(&mut self, restart: bool, ends: watch::Receiver<Deadline>) -> Option<Task>;

    /// Ends the run at once.
    fn kill(&mut self);
}

/// The environment of a container's run.
#[derive(Clone)]
pub(crate) struct RunContext {
    pub(crate) node: Arc<NodeContext>,
    pub(crate) view: Arc<PodView>,
    /// The container's class.
    pub(crate) class: Class,
    pub(crate) container: Arc<Compressed<Container>>,
    /// The pod's reference for events, and the container's field path.
    pub(crate) about: (Arc<ObjectReference>, Arc<str>),
    pub(crate) ip: Option<IpAddr>,
    /// The container's index in the pod.
    pub(crate) index: usize,
    pub(crate) attempt: u32,
    pub(crate) messages: Sender<Message>,
}

impl RunContext {
    /// The container's reference for events.
    fn about(&self) -> ObjectReference {
        let (pod, field_path) = &self.about;
        ObjectReference { field_path: Some(field_path.to_string()), ..ObjectReference::clone(pod) }
    }

    pub(super) fn warn(&self, reason: &'static str, message: String) {
        self.node.recorder.record(EventRecord { about: self.about(), warning: true, reason, message, source: None });
    }

    /// The handler for the container's probes and hooks, if the pod has an address.
    pub(crate) fn handlers(&self) -> Option<HandlerRunner> {
        Some(HandlerRunner::new(&self.node, &self.view.snapshot().pod.get(), &self.container.get().name, self.ip?))
    }

    /// Returns a function that reads the termination message after the exit (blocking); its argument is whether the run failed.
    fn read_message(&self, created: &CreatedContainer) -> MessageReader {
        let (log, file) = (created.log.clone(), created.termination.clone());
        let from_log = self.container.get().termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        Box::new(move |failed| {
            log.close();
            message::read(file.as_ref(), log.path(), from_log, failed)
        })
    }
}

/// Reads a termination message.
type MessageReader = Box<dyn FnOnce(bool) -> Option<String> + Send>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_module_has_its_way() {
        for kind in [Kind::Command, Kind::HttpServer, Kind::Plugin] {
            assert_eq!(runner_class(kind).kind, kind);
        }
        assert!(runner_class(Kind::Command).is_admitted && !runner_class(Kind::HttpServer).is_admitted);
    }

    #[test]
    fn a_pod_of_servers_alone_outlives_its_agent() {
        for (running, outlives) in [
            (&[][..], false),
            (&[Kind::HttpServer], true),
            (&[Kind::HttpServer, Kind::Plugin], true),
            (&[Kind::Command], false),
            (&[Kind::HttpServer, Kind::Command], false),
        ] {
            assert_eq!(outlives_agent(running.iter().copied()), outlives, "{running:?}");
        }
    }
}

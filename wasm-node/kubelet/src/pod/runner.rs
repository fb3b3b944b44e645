//! The ways to run a container, one file and one row of [`CLASSES`] each: what its module exports decides which.

mod command;
mod plugin;
mod server;

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, ObjectReference};
use machinery_client::EventRecord;
use runtime_api::Kind;
use tokio::sync::watch;
use tokio::time::Instant;

use super::ask::Asker;
use super::message;
use super::shared::Shared;
use super::start::{Made, Refused};
use super::state::Class;
use super::worker::{Message, PodView, Task};
use crate::mailbox::Sender;
use crate::spec::resting::Resting;

/// Starts a container that was made.
type Start = fn(Context, &mut Made) -> Result<Box<dyn Runner>, Refused>;

/// One way.
pub(crate) struct RunnerClass {
    kind: Kind,
    /// It must be let in before it counts as running, as it holds what it takes for as long as it lives.
    pub(crate) is_admitted: bool,
    /// Its guest finds the file of its termination message also where the pod names none.
    pub(crate) leaves_message: bool,
    /// Starts it.
    pub(crate) start: Start,
}

/// Every way that there is.
static CLASSES: [RunnerClass; 3] = [command::CLASS, server::CLASS, plugin::CLASS];

/// The way of a kind of module.
pub(crate) fn runner_class(kind: Kind) -> &'static RunnerClass {
    CLASSES.iter().find(|runner_class| runner_class.kind == kind).unwrap_or(&CLASSES[0])
}

/// A container that runs. Dropping it ends it.
pub(crate) trait Runner: Send {
    /// Stops it in order until `ends`, which may move; its end is told to the worker. `restart`: it is to run again, so its
    /// end is none of its own. None where it is being stopped already.
    fn stop(&mut self, restart: bool, ends: watch::Receiver<Instant>) -> Option<Task>;

    /// Ends it now.
    fn kill(&mut self);
}

/// Where and for whom a container runs.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) node: Arc<Shared>,
    pub(crate) view: Arc<PodView>,
    /// What the container is to the pod.
    pub(crate) class: Class,
    pub(crate) container: Arc<Resting<Container>>,
    /// Its pod as events name it, and what it is there.
    pub(crate) about: (Arc<ObjectReference>, Arc<str>),
    pub(crate) ip: Option<IpAddr>,
    /// Which container of the pod it is.
    pub(crate) index: usize,
    pub(crate) attempt: u32,
    pub(crate) messages: Sender<Message>,
}

impl Context {
    /// The container, as events name it.
    fn about(&self) -> ObjectReference {
        let (pod, field_path) = &self.about;
        ObjectReference { field_path: Some(field_path.to_string()), ..ObjectReference::clone(pod) }
    }

    fn warn(&self, reason: &'static str, message: String) {
        self.node.recorder.record(EventRecord { about: self.about(), warning: true, reason, message, source: None });
    }

    /// Asks the container, where its pod has an address.
    pub(crate) fn asker(&self) -> Option<Asker> {
        Some(Asker::new(&self.node, &self.view.look().pod.get(), &self.container.get().name, self.ip?))
    }

    /// Reads what the container leaves when it has ended; told whether it failed. Reads files.
    fn last_words(&self, made: &Made) -> LastWords {
        let (log, file) = (made.log.clone(), made.termination.clone());
        let from_log = self.container.get().termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        Box::new(move |failed| {
            log.close();
            message::read(file.as_ref(), log.path(), from_log, failed)
        })
    }
}

/// Reads a termination message.
type LastWords = Box<dyn FnOnce(bool) -> Option<String> + Send>;

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
}

//! The messages from a pod's tasks to its worker.

use crate::pod::lifecycle::state::{ContainerEvent, Event};
use crate::pod::start::{CreatedContainer, PulledImages};
use crate::volume::manager::{Filled, MountEvent};

/// The message for a container's event.
pub(crate) fn container_message(container: usize, event: ContainerEvent) -> Message {
    Event::Container(container, event).into()
}

/// A message from a task to its worker.
pub(crate) enum Message {
    Event(Box<Event>),
    /// A missing address or host port may be free now.
    Mount,
    /// The volumes are filled from these sources; `None` if they never change.
    Filled(Option<Box<Filled>>),
    /// A container's images, with the container's index, the number of the pull, and the event text for its own image.
    Pulled(Box<((usize, u32), PulledImages, String)>),
    /// A created container, with its index and the number of the start.
    Created(Box<((usize, u32), CreatedContainer)>),
}

impl From<Event> for Message {
    fn from(event: Event) -> Self {
        Self::Event(Box::new(event))
    }
}

impl From<MountEvent> for Message {
    fn from(event: MountEvent) -> Self {
        match event {
            MountEvent::Filled(filled) => Self::Filled(filled),
            MountEvent::Failed(why) => Event::MountFailed(why).into(),
        }
    }
}

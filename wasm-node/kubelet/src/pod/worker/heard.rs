//! What a worker hears from its tasks.

use crate::pod::start::{Made, Pulls};
use crate::pod::state::{CellEvent, Event};
use crate::volume::manager::{Filled, MountEvent};

/// What a task of a container tells its worker.
pub(crate) fn happened(container: usize, event: CellEvent) -> Message {
    Event::Container(container, event).into()
}

/// What a worker hears from its tasks.
pub(crate) enum Message {
    Event(Box<Event>),
    /// What it lacked of the node may be free: an address, a host port.
    Mount,
    /// Its volumes are filled, with that; none where they stay so.
    Filled(Option<Box<Filled>>),
    /// A container's images, with the container's index and the number of the pull; and what to say of its own image.
    Pulled(Box<((usize, u32), Pulls, String)>),
    /// A container that was made, with its index and the number of the start.
    Made(Box<((usize, u32), Made)>),
    /// Amounts of memory that could not be lowered may be now.
    Actuate,
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

//! Ports that a socket gets where the guest names none.

use std::sync::atomic::{AtomicU16, Ordering};

/// The first of these ports (Linux' `ip_local_port_range`).
const FIRST: u16 = 32_768;
/// Their number: up to 60,999.
const COUNT: u16 = 28_232;

/// Takes the ports in turn, so that a port which was just closed isn't the next one.
#[derive(Debug, Default)]
pub(crate) struct Ports(AtomicU16);

impl Ports {
    /// The next port.
    pub(crate) fn next(&self) -> u16 {
        FIRST + self.0.fetch_add(1, Ordering::Relaxed) % COUNT
    }

    /// What `take` makes of the next port that it takes; `None` if it takes none.
    pub(crate) fn find<T>(&self, take: impl FnMut(u16) -> Option<T>) -> Option<T> {
        (0..COUNT).map(|_| self.next()).find_map(take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_taken_in_turn_and_all_are_tried() {
        let ports = Ports::default();
        assert_eq!((ports.next(), ports.next()), (32_768, 32_769));
        assert_eq!(ports.find(|port| (port == 60_999).then_some(port)), Some(60_999));
        assert_eq!(ports.find(|_| None::<u16>), None);
    }
}

//! The log of events in order: the same for the same seed, byte for byte.

use std::fmt::{Arguments, Write as _};
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use crate::clock;

/// The log of one run.
pub(crate) struct Log {
    start: Instant,
    text: Mutex<String>,
}

impl Log {
    /// An empty log that starts now.
    pub(crate) fn new() -> Self {
        Self { start: clock::now(), text: Mutex::default() }
    }

    /// Adds a line, with the virtual time.
    pub(crate) fn line(&self, line: Arguments<'_>) {
        let at = (clock::now() - self.start).as_millis();
        let mut text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a string does not fail.
        let _ = writeln!(text, "{:>6}.{:03} {line}", at / 1000, at % 1000);
    }

    /// Takes the whole text out.
    pub(crate) fn take(&self) -> String {
        std::mem::take(&mut *self.text.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Adds a line to a world's log.
macro_rules! log {
    ($world:expr, $($format:tt)*) => { $world.log.line(format_args!($($format)*)) };
}
pub(crate) use log;

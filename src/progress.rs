//! Says on a terminal what is going on while something takes its time; silent where nobody watches.

use std::io::IsTerminal as _;

use crate::output::aside;

/// The last line of a terminal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    terminal: bool,
}

impl Progress {
    /// On stderr, where it is a terminal.
    pub(crate) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal() }
    }

    /// Replaces the line by what is being done now.
    pub(crate) fn doing(self, what: &str) {
        if self.terminal {
            aside(format_args!("\r\x1b[2K… {what}"));
        }
    }

    /// Clears the line: what follows is a result.
    pub(crate) fn done(self) {
        if self.terminal {
            aside(format_args!("\r\x1b[2K"));
        }
    }
}

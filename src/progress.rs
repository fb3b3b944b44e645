//! Reports a verb's progress on stderr: as the last line of a terminal; without a terminal only long waits.

use std::io::IsTerminal as _;

use crate::output::{aside, print_stderr};

/// The last line of a terminal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    terminal: bool,
}

impl Progress {
    /// Progress on stderr, if that is a terminal.
    pub(crate) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal() }
    }

    /// Replaces the line by the current step.
    pub(crate) fn doing(self, what: &str) {
        if self.terminal {
            aside(format_args!("\r\x1b[2K… {what}"));
        }
    }

    /// Reports a long wait, even if stderr is no terminal.
    pub(crate) fn still(self, what: &str) {
        if self.terminal {
            self.doing(what);
        } else {
            print_stderr!("coracle: {what}");
        }
    }

    /// Clears the line before a result.
    pub(crate) fn done(self) {
        if self.terminal {
            aside(format_args!("\r\x1b[2K"));
        }
    }
}

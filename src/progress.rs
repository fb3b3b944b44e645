//! Reports on stderr what a verb is doing: as the last line of a terminal, and elsewhere only what is reported as long.

use std::io::IsTerminal as _;

use crate::output::{aside, tell};

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

    /// Reports what has been waited for longer than a reader expects: also where stderr is no terminal.
    pub(crate) fn still(self, what: &str) {
        if self.terminal {
            self.doing(what);
        } else {
            tell!("coracle: {what}");
        }
    }

    /// Clears the line: what follows is a result.
    pub(crate) fn done(self) {
        if self.terminal {
            aside(format_args!("\r\x1b[2K"));
        }
    }
}

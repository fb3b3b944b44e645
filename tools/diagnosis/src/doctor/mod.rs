//! `coracle doctor`: what of this machine keeps a cluster from working well, each with the command that mends it.
//!
//! [`gather`] reads the machine; the other parts are pure.
//!
//! - [`facts`]: what was read. A fact that the system doesn't report is `None`, and its check isn't applicable.
//! - [`checks`]: the table of checks, each a function from facts to findings: [`machine`], [`clock`], [`folder`], [`tools`].
//! - [`proc_files`]: parsers of Linux' files below `/proc`.
//! - [`report`]: the results as data and as text.

pub(crate) mod checks;
mod clock;
pub(crate) mod facts;
mod folder;
pub(crate) mod gather;
mod machine;
#[cfg(any(target_os = "linux", test))]
mod proc_files;
pub(crate) mod report;
#[cfg(test)]
mod tests;
mod tools;
pub mod verb;

//! Options of components: what each component's `options.rs` shares, and the layer that reads a flag, its `CORACLE_…`
//! variable and its key in the file of `--config` from one definition.
//!
//! An option's name, default, range and help stand in the attributes of one field ([`clap::Args`]); the file, its JSON
//! Schema, the manual pages and the reference page are made of them (docs/decisions/0136-options.md).

pub mod duration;
pub mod election;
pub mod feature_gates;
pub mod file;
pub mod page;
pub mod rejected;
pub mod schema;

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{LazyLock, Mutex, PoisonError};

use clap::builder::Resettable;
use clap::{Args, Command};

/// Options that can't be used: their values contradict each other, or a file that they name is unusable. The program ends
/// with exit code 2 for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct OptionError(String);

impl OptionError {
    /// An error whose text begins with the flag, as in `--name VALUE: why`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// Defaults of each type of options, made once: they are made by parsing.
static DEFAULTS: LazyLock<Mutex<HashMap<TypeId, Box<dyn Any + Send>>>> = LazyLock::new(Mutex::default);

/// The options of a command line without flags, whatever the environment is.
///
/// # Panics
/// If an option is required: such options have no default.
#[must_use]
pub fn defaults<T: Args + Clone + Send + 'static>() -> T {
    let known = |all: &HashMap<_, Box<dyn Any + Send>>| all.get(&TypeId::of::<T>())?.downcast_ref::<T>().cloned();
    if let Some(known) = known(&DEFAULTS.lock().unwrap_or_else(PoisonError::into_inner)) {
        return known;
    }
    // Without the lock: a definition may contain others, with defaults of their own.
    let parsed = parse_defaults::<T>();
    DEFAULTS.lock().unwrap_or_else(PoisonError::into_inner).insert(TypeId::of::<T>(), Box::new(parsed.clone()));
    parsed
}

#[expect(clippy::expect_used, reason = "tests find a definition with a required option")]
fn parse_defaults<T: Args>() -> T {
    let command = T::augment_args(Command::new("defaults")).mut_args(|arg| arg.env(Resettable::Reset));
    let matches = command.try_get_matches_from(["defaults"]).expect("no option is required");
    T::from_arg_matches(&matches).expect("defaults are valid values")
}

/// Reads the text of an option's file.
///
/// # Errors
/// If the file can't be read.
pub fn read_text(flag: &str, file: &Path) -> Result<String, OptionError> {
    std::fs::read_to_string(file).map_err(|error| OptionError(format!("--{flag} {}: {error}", file.display())))
}

/// Reads the bytes of an option's file.
///
/// # Errors
/// If the file can't be read.
pub fn read_bytes(flag: &str, file: &Path) -> Result<Vec<u8>, OptionError> {
    std::fs::read(file).map_err(|error| OptionError(format!("--{flag} {}: {error}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Args)]
    struct Boat {
        /// The number of seats
        #[arg(long, env = "PATH", default_value_t = 2)]
        seats: u32,
        /// The name
        #[arg(long)]
        name: Option<String>,
    }

    #[test]
    fn defaults_ignore_the_environment() {
        assert_eq!(defaults::<Boat>(), Boat { seats: 2, name: None });
    }
}

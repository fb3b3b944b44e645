//! Flags of upstream's programs that mean nothing here: a command line that has one is refused with the reason, so that
//! nobody believes that it does something.

use std::marker::PhantomData;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::cmd::Failure;

/// A program's flags, each with the reason.
pub(in crate::cmd) trait Table {
    const FLAGS: &'static [(&'static str, &'static str)];
}

/// The first of them that was given.
#[derive(Debug, Clone)]
pub(in crate::cmd) struct Refused<T> {
    given: Option<(&'static str, &'static str)>,
    of: PhantomData<T>,
}

impl<T> Refused<T> {
    /// # Errors
    /// One was given.
    pub(in crate::cmd) fn check(&self) -> Result<(), Failure> {
        match self.given {
            Some((name, reason)) => Err(Failure::Usage(format!("--{name}: {reason}"))),
            None => Ok(()),
        }
    }
}

impl<T: Table> FromArgMatches for Refused<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let was = |name: &str| matches.value_source(name) == Some(ValueSource::CommandLine);
        Ok(Self { given: T::FLAGS.iter().copied().find(|(name, _)| was(name)), of: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<T: Table> Args for Refused<T> {
    fn augment_args(command: Command) -> Command {
        T::FLAGS.iter().fold(command, |command, (name, _)| {
            let arg = Arg::new(*name).long(*name).hide(true).num_args(0..=1).action(ArgAction::Append);
            command.arg(arg.default_missing_value(""))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

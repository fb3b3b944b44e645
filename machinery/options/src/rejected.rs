//! Flags of upstream's programs that have no effect here: a command line with one is rejected with the reason, so that
//! no user relies on it.

use std::marker::PhantomData;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::OptionError;

const CLIENT: &str = "requests have no rate of their own, the API server bounds them, and are JSON; leave it out";
pub const SERVING: &str = "figures are shown over plain HTTP where --metrics-bind says; leave it out";
const PROFILER: &str = "there is no profiler; leave it out";

/// Flags of all of upstream's programs.
const COMMON: &[(&str, &str)] = &[
    ("authentication-kubeconfig", SERVING),
    ("authorization-kubeconfig", SERVING),
    ("bind-address", SERVING),
    ("cert-dir", SERVING),
    ("client-ca-file", SERVING),
    ("contention-profiling", PROFILER),
    ("kube-api-burst", CLIENT),
    ("kube-api-content-type", CLIENT),
    ("kube-api-qps", CLIENT),
    ("master", "name the server in the kubeconfig"),
    ("profiling", PROFILER),
    ("secure-port", SERVING),
    ("tls-cert-file", SERVING),
    ("tls-private-key-file", SERVING),
];

/// A program's rejected flags beside the common ones, each with the reason.
pub trait Table {
    const OWN: &'static [(&'static str, &'static str)];

    fn flags() -> impl Iterator<Item = (&'static str, &'static str)> {
        COMMON.iter().chain(Self::OWN).copied()
    }
}

/// The first given flag of a table.
#[derive(Debug, Clone)]
pub struct RejectedFlags<T> {
    given: Option<(&'static str, &'static str)>,
    of: PhantomData<T>,
}

impl<T> RejectedFlags<T> {
    /// # Errors
    /// If such a flag was given.
    pub fn check(&self) -> Result<(), OptionError> {
        match self.given {
            Some((name, reason)) => Err(OptionError::new(format!("--{name}: {reason}"))),
            None => Ok(()),
        }
    }
}

impl<T: Table> FromArgMatches for RejectedFlags<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let was = |name: &str| matches.value_source(name) == Some(ValueSource::CommandLine);
        Ok(Self { given: T::flags().find(|(name, _)| was(name)), of: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<T: Table> Args for RejectedFlags<T> {
    fn augment_args(command: Command) -> Command {
        T::flags().fold(command, |command, (name, _)| {
            let arg = Arg::new(name).long(name).hide(true).num_args(0..=1).action(ArgAction::Append);
            command.arg(arg.default_missing_value(""))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

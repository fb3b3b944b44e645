//! The output format of verbs that print for a person or for a program.

use clap::{Args, ValueEnum};

/// The flag of `status` and `doctor`.
#[derive(Debug, Clone, Args)]
pub struct OutputFlags {
    /// Output format
    #[arg(
        short = 'o',
        long = "output",
        alias = "format",
        env = "CORACLE_FORMAT",
        default_value = "table",
        value_name = "FORMAT"
    )]
    pub format: Format,
}

/// Output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For a person.
    Table,
    /// JSON: an object, or an array for a list.
    Json,
}

//! Flags of every verb.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Flags of every verb.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Log level: error, warn, info, debug, trace, or a filter such as warn,proxy=debug
    #[arg(long, global = true, env = "CORACLE_LOG_LEVEL", default_value = "warn", value_name = "LEVEL")]
    pub log_level: String,
    /// Format of log lines on stderr
    #[arg(long, global = true, env = "CORACLE_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// YAML file of this verb's flags: their names without dashes in front, and their values. Flags on the command line and
    /// variables take precedence
    #[arg(long, global = true, env = "CORACLE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Folder of the cluster [default: the platform's data folder for coracle]
    #[arg(long, global = true, env = "CORACLE_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Human-readable.
    Text,
    /// One JSON object a line.
    Json,
}

//! Stop signals and the outcome of a command, with the exit codes and reasons of a container status.

/// Signal that stops a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopSignal {
    /// As by an unhandled SIGTERM: exit code 143.
    Terminate,
    /// As by SIGKILL: exit code 137.
    Kill,
    /// As by an unhandled SIGINT, from a terminal: exit code 130.
    Interrupt,
}

impl StopSignal {
    /// The exit code of a command stopped by it, as in a shell: 128 plus the signal's number.
    #[must_use]
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Terminate => 143,
            Self::Kill => 137,
            Self::Interrupt => 130,
        }
    }
}

/// Reason of a command's end, as in a container status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutcomeReason {
    /// Exit code 0.
    Completed,
    /// Any other exit, a trap (134) and a stop (143, 137).
    Error,
    /// Over the memory limit: 137.
    OomKilled,
    /// Over the fuel limit: 137.
    FuelExhausted,
}

impl OutcomeReason {
    /// The reason's text in a container status.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OomKilled => "OOMKilled",
            Self::FuelExhausted => "FuelExhausted",
        }
    }
}

/// Result of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Its exit code.
    pub exit_code: i32,
    /// Its reason.
    pub reason: OutcomeReason,
    /// One line on a trap or a limit; `None` for an ordinary exit. The backtrace is in the container's log.
    pub message: Option<String>,
}

impl Outcome {
    /// The outcome of an exit with `code`.
    #[must_use]
    pub fn exit(code: i32) -> Self {
        // As on any Unix, 8 bits remain, but a failure never becomes a success.
        let exit_code = if code != 0 && code & 0xff == 0 { 1 } else { code & 0xff };
        let reason = if exit_code == 0 { OutcomeReason::Completed } else { OutcomeReason::Error };
        Self { exit_code, reason, message: None }
    }

    /// The outcome of a stop by a signal.
    #[must_use]
    pub fn stopped(signal: StopSignal) -> Self {
        Self { exit_code: signal.exit_code(), reason: OutcomeReason::Error, message: None }
    }

    /// The outcome of an end by the runtime.
    #[must_use]
    pub fn ended(exit_code: i32, reason: OutcomeReason, message: impl Into<String>) -> Self {
        Self { exit_code, reason, message: Some(message.into()) }
    }
}

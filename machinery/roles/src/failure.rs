//! The errors of a process of roles.

/// A component's own error.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Why a process of roles can't start, or ends before its stop.
#[derive(Debug, thiserror::Error)]
pub enum RoleError {
    /// A role can't be built.
    #[error("the {name} cannot be built")]
    Unbuilt {
        /// The role.
        name: &'static str,
        /// Its error.
        source: Failure,
    },
    /// A component failed.
    #[error("the {name} ended; start again, with --log-level info to see why")]
    Failed {
        /// The component.
        name: &'static str,
        /// Its error.
        source: Failure,
    },
    /// A component ended without an error, or panicked.
    #[error("the {name} ended; start again, with --log-level info to see why")]
    Ended {
        /// The component.
        name: &'static str,
        /// How it ended.
        source: Ending,
    },
    /// A condition of the start isn't met.
    #[error(transparent)]
    Unmet(Failure),
}

/// How a component ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ending {
    /// Its task returned.
    #[error("it ended")]
    Returned,
    /// Its task panicked.
    #[error("it panicked")]
    Panicked,
}

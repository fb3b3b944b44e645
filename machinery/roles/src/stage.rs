//! The stages of a process: what starts first, what stops last, and the stop tokens.

use tokio_util::sync::CancellationToken;

/// A group of components with one stop token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Servers that the others use: they start first, and stop last.
    Servers,
    /// Their clients.
    Components,
    /// What serves the pods. At a takeover it outlives the others.
    Pods,
}

/// Stop tokens, one a stage.
#[derive(Debug, Clone, Default)]
pub struct Stops {
    /// Of [`Stage::Servers`].
    pub servers: CancellationToken,
    /// Of [`Stage::Components`].
    pub components: CancellationToken,
    /// Of [`Stage::Pods`].
    pub pods: CancellationToken,
}

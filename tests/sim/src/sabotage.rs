//! Components that are broken on purpose: proof that the checkers see it.

/// What is broken in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// Nothing.
    None,
    /// The watch cache never hears of one of the changes of pods.
    CacheMissesChange,
    /// One event of a watch of pods never reaches its client.
    WatchDropsEvent,
    /// One event of a watch of pods reaches its client twice.
    WatchDoublesEvent,
    /// The scheduler doesn't see what pods ask for.
    SchedulerSeesNoRequests,
    /// The store forgets one transaction that it has acknowledged.
    StoreForgets,
    /// A deployment's controller doesn't run.
    NoDeployments,
    /// Users do by hand, in a rollout, what its strategy doesn't allow.
    UserMeddles,
    /// Nobody collects what has lost its owner.
    NoGarbageCollection,
}

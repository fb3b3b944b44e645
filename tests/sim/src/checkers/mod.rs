//! Checkers of rules, independent of workloads and faults: they use the store's history, the network's messages and the
//! components' caches.

pub(crate) mod autoscaling;
pub(crate) mod claims;
pub(crate) mod convergence;
pub(crate) mod counts;
mod grants;
pub(crate) mod identities;
pub(crate) mod invariants;
pub(crate) mod mounts;
pub(crate) mod orphans;
pub(crate) mod reads;
mod storage;
mod terms;
pub(crate) mod waits;
pub(crate) mod watches;

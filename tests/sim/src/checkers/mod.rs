//! What must hold, apart from what happens: checkers look at the store's history, at what goes over the network and at the
//! components' caches, and know nothing of workloads and faults.

pub(crate) mod autoscaling;
pub(crate) mod claims;
pub(crate) mod convergence;
pub(crate) mod counts;
mod grants;
pub(crate) mod identities;
pub(crate) mod invariants;
mod kept;
pub(crate) mod mounts;
pub(crate) mod orphans;
pub(crate) mod reads;
mod terms;
pub(crate) mod waits;
pub(crate) mod watches;

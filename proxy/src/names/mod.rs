//! Names of the cluster, one reading for guests' calls ([`resolve`]), their look-ups, and cluster DNS on the wire. Pure.

pub(crate) mod cluster_name;
pub mod published;
pub mod resolve;

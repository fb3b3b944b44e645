//! Functions of a pod's spec: the list of its containers, the sums of their resources, what it refers to
//! ([`referred`]), and compressed objects ([`compressed`]). No module of this crate is below this one.

pub(crate) mod compressed;
pub mod containers;
pub mod referred;
pub mod requests;

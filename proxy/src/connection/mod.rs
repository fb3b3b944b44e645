//! A connection of a host process as a stream of bytes: how long it lasts ([`lifetime`]), its copy to another one ([`join`]),
//! and the stream to a pod ([`open`]).

pub(crate) mod join;
pub(crate) mod lifetime;
pub(crate) mod open;

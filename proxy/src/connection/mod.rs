//! A connection of a host process as a stream of bytes: how long it lasts ([`lifetime`]), and its copy to another one ([`join`]).

pub(crate) mod join;
pub(crate) mod lifetime;

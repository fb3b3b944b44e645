//! Streams of bytes that are not parsed: of guests to pods ([`open`]), and of host processes to endpoints ([`l4`]).

pub(crate) mod l4;
pub(crate) mod open;

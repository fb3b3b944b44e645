//! Streams of bytes that are not parsed: of guests to pods ([`open`]), and of host processes to endpoints ([`l4`]) that
//! aren't HTTP servers ([`protocol`]).

pub(crate) mod l4;
pub(crate) mod open;
pub(crate) mod protocol;
#[cfg(test)]
pub(crate) mod tests;

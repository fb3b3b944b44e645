//! Routes: Services and EndpointSlices in ([`table`]), the endpoint of a call out ([`balance`]). Readers take no lock
//! ([`snapshot`]). Decides only: no socket, no client, no clock.

pub mod balance;
pub(crate) mod destination;
pub mod endpoint;
pub mod in_flight;
pub mod learned;
pub(crate) mod snapshot;
pub mod table;
pub mod unsupported;

//! Datagrams: of host processes to Services ([`listener`], with a flow for each client), and of guests (`dial`).

mod dial;
pub(crate) mod listener;
mod relay;

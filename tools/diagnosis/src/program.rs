//! What the program knows of itself, for reports and comparisons.

use std::net::SocketAddrV4;

use jiff::Timestamp;

/// The program that is run.
#[derive(Debug, Clone)]
pub struct Program {
    /// The commit that it is built from.
    pub commit: &'static str,
    /// The time of that commit; `None` if it is built outside of a working tree.
    pub committed_at: Option<Timestamp>,
    /// The socket of each block of addresses that a cluster takes: it has a listener while a cluster has the block.
    pub block_claims: Vec<SocketAddrV4>,
}

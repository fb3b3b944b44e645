//! The data plane: reaches Services and pods for guests ([`machinery_serve::net::Dial`]) and for processes of the host
//! (one listener per ClusterIP and port, and per NodePort).
//!
//! [`table`], [`balance`], [`resolve`] and [`unsupported`] decide and are pure; `state` and `snapshot` hold what they
//! decide on, [`plane`], [`http`], `l4` and `listen` act, [`watch`] feeds the table from the API.
//!
//! Absent on purpose: kernel rules, routes, privileges, and any knowledge of how a pod runs.

pub mod balance;
pub mod egress;
pub mod endpoint;
mod events;
pub mod http;
mod join;
mod l4;
mod listen;
mod look_up;
pub mod metrics;
mod names;
pub mod pending;
pub mod plane;
mod pool;
pub mod resolve;
mod shares;
mod snapshot;
mod special;
mod state;
pub mod table;
mod tenure;
pub mod unsupported;
mod waiting;
pub mod watch;

pub use plane::{Config, DataPlane};
pub use watch::run;

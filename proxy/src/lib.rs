//! The data plane: reaches Services and pods for guests ([`machinery_serve::net::Dial`]) and for processes of the host
//! (one listener per ClusterIP and port, and per NodePort).
//!
//! [`table`], [`balance`] (the endpoint picker), [`resolve`] and [`unsupported`] are pure; `state` and `snapshot` hold
//! their input. [`plane`], [`http`] (with the activator), `l4`, `listen` and [`tunnel`] (to other nodes) perform IO;
//! [`watch`] feeds the table from the API, or from `checkpoint` while that is away.
//!
//! Absent on purpose: kernel rules, routes, privileges, and any knowledge of how a pod runs.

mod activation;
pub mod balance;
mod checkpoint;
mod cluster_name;
mod datagram_dial;
mod datagram_relay;
mod datagrams;
mod destination;
pub mod dns;
mod dns_metrics;
pub mod egress;
pub mod endpoint;
mod events;
mod flow_target;
mod flows;
pub mod http;
mod http1;
pub mod in_flight;
mod join;
mod l4;
mod lifetime;
mod listen;
mod look_up;
pub mod metrics;
mod names;
pub mod plane;
mod pod_limit;
mod pool;
pub mod published;
mod read_ahead;
pub mod resolve;
mod snapshot;
mod special;
mod state;
mod streams;
pub mod table;
pub mod tunnel;
pub mod unsupported;
pub mod watch;

pub use plane::{Config, DataPlane};
pub use watch::run;

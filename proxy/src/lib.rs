//! The data plane: reaches Services and pods for guests ([`machinery_serve::net::Dial`]) and for processes of the host
//! (one listener per ClusterIP and port, and per NodePort).
//!
//! - [`routing`]: the table, the endpoint picker, the routes that readers see. Pure.
//! - [`names`]: cluster DNS as data. Pure. [`dns`]: the same on the wire.
//! - [`watch`]: feeds the table from the API, or from its checkpoint while that is away.
//! - [`plane`]: `Dial` for guests; `listen`: the listeners for the host; [`state`]: what they share.
//! - [`http`] (with the activator), `streams`, `udp`: calls by kind, over a `connection` of the host. [`egress`]: connections to destinations that are no pod.
//! - [`tunnel`]: calls to and from other nodes.
//!
//! Absent on purpose: kernel rules, routes, privileges, and any knowledge of how a pod runs.

mod connection;
pub mod dns;
pub mod egress;
pub mod http;
mod listen;
pub mod names;
pub mod options;
pub mod plane;
pub mod routing;
pub mod state;
mod streams;
pub mod tunnel;
mod udp;
pub mod watch;

pub use plane::{Config, DataPlane};
pub use watch::run;

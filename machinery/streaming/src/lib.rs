//! The upgraded protocols of `kubectl exec`, `attach` and `port-forward`: many streams over one connection.
//!
//! - [`spdy`]: SPDY/3.1 as far as Kubernetes uses it: the port-forward protocol of every kubectl.
//! - [`websocket`]: the handshake of RFC 6455, subprotocol negotiation, a byte tunnel in binary messages
//!   (`SPDY/3.1+portforward.k8s.io`, KEP-4006), and numbered channels (`v4.channel.k8s.io`).
//!
//! Excluded by design: HTTP servers and clients, and the destinations of streams.
#![warn(missing_docs)]

mod empty_messages;
pub mod spdy;
pub mod websocket;

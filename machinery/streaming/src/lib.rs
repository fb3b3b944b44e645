//! What `kubectl exec`, `attach` and `port-forward` speak once a connection is upgraded: many streams over one connection.
//!
//! - [`spdy`]: SPDY/3.1 as far as Kubernetes uses it: the port-forward protocol of every kubectl.
//! - [`websocket`]: the handshake of RFC 6455, the choice of a subprotocol, a tunnel of bytes in binary messages
//!   (`SPDY/3.1+portforward.k8s.io`, KEP-4006), and numbered channels (`v4.channel.k8s.io`).
//!
//! Absent on purpose: HTTP servers and clients, and what a stream leads to.
#![warn(missing_docs)]

pub mod spdy;
pub mod websocket;

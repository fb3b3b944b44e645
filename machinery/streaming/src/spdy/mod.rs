//! SPDY/3.1 (draft-mbelshe-httpbis-spdy-00), server side, as far as Kubernetes' clients use it.
//!
//! Absent, as in Kubernetes' own implementation: flow control by windows (the connection's back-pressure stops all
//! streams), streams opened by the server, priorities.

mod dictionary;
mod frame;
#[cfg(test)]
mod fuzz;
mod session;

pub use frame::{DATA_BYTES_MAX, Decoder, Encoder, Frame, HEADERS_BYTES_MAX, Headers, SpdyError, status};
pub use session::{STREAMS_MAX, SpdyStream, SpdyWriter, serve};

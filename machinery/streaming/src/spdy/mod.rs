//! SPDY/3.1 (draft-mbelshe-httpbis-spdy-00), the server's side, as far as Kubernetes' clients use it.
//!
//! Absent, as in their own implementation: flow control by windows (the connection's back-pressure holds all streams up),
//! streams that the server opens, priorities.

mod dictionary;
mod frame;
#[cfg(test)]
mod fuzz;
mod session;

pub use frame::{DATA_BYTES_MAX, Decoder, Encoder, Frame, HEADERS_BYTES_MAX, Headers, SpdyError, status};
pub use session::{STREAMS_MAX, SpdyStream, SpdyWriter, serve};

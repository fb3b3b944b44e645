//! Watches over a WebSocket, as upstream: each event is a message of its own, text for JSON and binary for protobuf.
//! Browsers, and Headlamp's server, watch so.

use std::io;

use axum::body::Body;
use futures::{Stream, StreamExt as _, TryStreamExt as _, future};
use http::{Response, header};
use machinery_api::ApiError;
use machinery_streaming::websocket::{OutgoingMessage, wants_websocket};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec, LinesCodec};
use tokio_util::io::StreamReader;

use super::handle::{RequestContext, RequestHandler};

/// The subprotocols that a client may name. None of them changes the messages, as upstream: browsers name one because they
/// put their token into another one.
const SUBPROTOCOLS: [&str; 3] = ["base64.binary.k8s.io", "binary.k8s.io", ""];
/// Maximum bytes of one event: far above the largest stored object with its table row, so only a defect reaches it.
const EVENT_BYTES_MAX: usize = 16 << 20;

impl RequestHandler {
    /// Serves a watch's response over a WebSocket if the client asks for one.
    pub(super) fn upgrade_watch(
        &self,
        ctx: &mut RequestContext<'_>,
        watch: Response<Body>,
    ) -> Result<Response<Body>, ApiError> {
        if !wants_websocket(ctx.head.headers) {
            return Ok(watch);
        }
        let is_text = watch.headers().get(header::CONTENT_TYPE).is_some_and(|media| media == "application/json");
        if is_text {
            self.serve_messages(ctx, &SUBPROTOCOLS, |_| text_messages(watch.into_body()))
        } else {
            self.serve_messages(ctx, &SUBPROTOCOLS, |_| binary_messages(watch.into_body()))
        }
    }
}

/// Yields a message for each line, with its line break, as upstream.
fn text_messages(body: Body) -> impl Stream<Item = io::Result<OutgoingMessage>> + Send {
    let reader = StreamReader::new(body.into_data_stream().map_err(io::Error::other));
    let lines = FramedRead::new(reader, LinesCodec::new_with_max_length(EVENT_BYTES_MAX));
    lines.map(|line| line.map(|line| OutgoingMessage::Text(line + "\n")).map_err(io::Error::other))
}

/// Yields a message for each frame behind its length.
fn binary_messages(body: Body) -> impl Stream<Item = io::Result<OutgoingMessage>> + Send {
    let reader = StreamReader::new(body.into_data_stream().map_err(io::Error::other));
    let codec = LengthDelimitedCodec::builder().max_frame_length(EVENT_BYTES_MAX).new_read(reader);
    codec.and_then(|frame| future::ok(OutgoingMessage::Binary(frame.freeze())))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn body(pieces: &'static [&'static [u8]]) -> Body {
        let pieces = pieces.iter().map(|piece| Ok::<_, io::Error>(Bytes::from_static(piece)));
        Body::from_stream(futures::stream::iter(pieces))
    }

    #[tokio::test]
    async fn each_event_is_a_message() {
        let texts = text_messages(body(&[b"{\"type\":", b"\"A\"}\n{\"type\":\"B\"}\n{}", b"\n"]));
        let texts: Vec<_> = texts.map(Result::unwrap).collect().await;
        let text = |text: &str| OutgoingMessage::Text(text.to_owned());
        assert_eq!(texts, [text("{\"type\":\"A\"}\n"), text("{\"type\":\"B\"}\n"), text("{}\n")]);
        let frames = binary_messages(body(&[&[0, 0, 0, 2, 7, 8, 0, 0], &[0, 1, 9]]));
        let frames: Vec<_> = frames.map(Result::unwrap).collect().await;
        let binary = |bytes: &'static [u8]| OutgoingMessage::Binary(Bytes::from_static(bytes));
        assert_eq!(frames, [binary(&[7, 8]), binary(&[9])]);
    }
}

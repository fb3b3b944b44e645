//! Sends this node's compiled modules to other nodes.

use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use machinery_env::{Deadline, Env};
use machinery_serve::net::{Body, BoxError, empty_body};
use proxy::tunnel::NodeService;
use tokio::io::AsyncReadExt as _;
use tokio::sync::OwnedSemaphorePermit;
use wasm_runtime::engine::CompiledModule;

use crate::Exchange;
use crate::message::{Offer, named, signed_bytes};

/// Time for sending a module: its reader has the same for receiving it.
const SEND_MAX: Duration = Duration::from_secs(30);
/// Bytes of one piece of a file.
const PIECE_BYTES: usize = 64 << 10;

/// Why a module isn't sent.
fn refused(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(empty_body());
    *response.status_mut() = status;
    response
}

#[async_trait]
impl NodeService for Exchange {
    async fn call(&self, node: &str, request: Request<()>) -> Response<Body> {
        let name = match named(request.uri().path()) {
            Some(name) if *request.method() == Method::GET => name,
            _ => return refused(StatusCode::NOT_FOUND),
        };
        let Ok(permit) = self.sends.clone().try_acquire_owned() else {
            return refused(StatusCode::TOO_MANY_REQUESTS);
        };
        let (engine, wanted) = (self.engine.clone(), name.clone());
        let module = match tokio::task::spawn_blocking(move || engine.compiled_module(&wanted)).await {
            Ok(Ok(Some(module))) => module,
            Ok(Ok(None)) => return refused(StatusCode::NOT_FOUND),
            Ok(Err(error)) => {
                tracing::warn!(digest = name.digest(), %error, "a compiled module cannot be read for another node");
                return refused(StatusCode::INTERNAL_SERVER_ERROR);
            }
            Err(_) => return refused(StatusCode::INTERNAL_SERVER_ERROR),
        };
        let message = signed_bytes(&self.key, &name, &module.sum, module.description.as_deref());
        let signed = self.tunnel.sign(&message).and_then(|signature| {
            let description_bytes = module.description.as_ref().map(Vec::len);
            Offer { sum: module.sum.clone(), signature, description_bytes }.headers()
        });
        let Some(headers) = signed else {
            tracing::warn!("this node's key signs no compiled modules");
            return refused(StatusCode::NOT_IMPLEMENTED);
        };
        tracing::debug!(node, digest = name.digest(), "a compiled module is sent to another node");
        self.metrics.count("sent");
        let mut response = Response::new(content(module, &self.env, permit));
        *response.headers_mut() = headers;
        response
    }
}

/// What is still to be sent.
struct Content {
    description: Option<Vec<u8>>,
    file: tokio::fs::File,
    by: Deadline,
    env: Env,
    _permit: OwnedSemaphorePermit,
}

/// The description, then the artifact. It breaks off at its deadline: a slow reader holds no place of others.
fn content(module: CompiledModule, env: &Env, permit: OwnedSemaphorePermit) -> Body {
    let content = Content {
        description: module.description,
        file: tokio::fs::File::from_std(module.file),
        by: env.deadline(SEND_MAX),
        env: env.clone(),
        _permit: permit,
    };
    let pieces = stream::try_unfold(content, async |mut content| {
        if content.by.passed(&content.env) {
            return Err::<_, BoxError>("the other node reads too slowly".into());
        }
        if let Some(description) = content.description.take().filter(|description| !description.is_empty()) {
            return Ok(Some((Frame::data(Bytes::from(description)), content)));
        }
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        let read = content.file.read_buf(&mut piece).await?;
        Ok((read > 0).then(|| (Frame::data(piece.freeze()), content)))
    });
    StreamBody::new(pieces).boxed_unsync()
}

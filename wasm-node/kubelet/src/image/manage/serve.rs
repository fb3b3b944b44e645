//! The images of a node over HTTP, for `coracle image`: beside the built-in registry, on its address and with its account.

use std::io::{self, Seek as _, Write};
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{StatusCode, Uri};
use serde_json::json;
use tokio::sync::mpsc;

use super::{Images, Unmanaged};

/// Where they are.
pub(super) const PATH: &str = "/_coracle/images";
pub(super) const EXPORT_PATH: &str = "/_coracle/images/export";
/// An archive: several images, each within the bounds of a volume.
const ARCHIVE_BYTES_MAX: u64 = 8 << 30;
/// Pieces of an archive that wait for who reads it.
const PIECES_MAX: usize = 4;
const PIECE_BYTES: usize = 256 << 10;
/// How often the disk's free space is looked at.
const SPACE_CHECK_BYTES: u64 = 16 << 20;

/// The image that a request names.
fn named(uri: &Uri) -> Option<String> {
    let url = reqwest::Url::parse(&format!("http://node/?{}", uri.query()?)).ok()?;
    url.query_pairs().find(|(key, _)| key == "name").map(|(_, name)| name.into_owned())
}

impl IntoResponse for Unmanaged {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::InUse(_) => StatusCode::CONFLICT,
            Self::Bad(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Disk(_) => StatusCode::INSUFFICIENT_STORAGE,
        };
        (status, json!({"message": self.to_string()}).to_string()).into_response()
    }
}

/// What is served; who may call is decided around it.
pub fn router(images: Arc<Images>) -> Router {
    Router::new()
        .route(PATH, get(list).delete(remove).post(bring_in))
        .route(EXPORT_PATH, get(take_out))
        .with_state(images)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Unmanaged> + Send + 'static,
) -> Result<T, Unmanaged> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(Unmanaged::Disk(error.to_string())))
}

fn disk(error: &io::Error) -> Unmanaged {
    Unmanaged::Disk(error.to_string())
}

fn json_of(value: &impl serde::Serialize) -> Response {
    let text = serde_json::to_string(value).unwrap_or_default();
    ([(http::header::CONTENT_TYPE, "application/json")], text).into_response()
}

async fn list(State(images): State<Arc<Images>>) -> Result<Response, Unmanaged> {
    let all = blocking(move || images.listed().map_err(|error| disk(&error))).await?;
    Ok(json_of(&all))
}

fn wanted(uri: &Uri) -> Result<String, Unmanaged> {
    named(uri).ok_or_else(|| Unmanaged::Bad("which image? give its name".into()))
}

async fn remove(State(images): State<Arc<Images>>, uri: Uri) -> Result<Response, Unmanaged> {
    let name = wanted(&uri)?;
    let removed = blocking(move || images.remove(&name)).await?;
    Ok(json_of(&removed))
}

async fn bring_in(State(images): State<Arc<Images>>, uri: Uri, body: Body) -> Result<Response, Unmanaged> {
    let partial = images.blobs.partial();
    let mut file = blocking(move || tempfile::tempfile_in(partial).map_err(|error| disk(&error))).await?;
    let (mut pieces, mut bytes, mut checked) = (body.into_data_stream(), 0u64, None);
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| Unmanaged::Bad(format!("the archive broke off: {error}")))?;
        bytes += piece.len() as u64;
        if bytes > ARCHIVE_BYTES_MAX {
            return Err(Unmanaged::Bad(format!("the archive has more than {ARCHIVE_BYTES_MAX} bytes")));
        }
        let check = checked.is_none_or(|checked| bytes - checked > SPACE_CHECK_BYTES);
        if check {
            checked = Some(bytes);
        }
        let blobs = images.blobs.clone();
        file = blocking(move || {
            if check {
                blobs.check_space()?;
            }
            file.write_all(&piece).map_err(|error| disk(&error))?;
            Ok(file)
        })
        .await?;
    }
    file.rewind().map_err(|error| disk(&error))?;
    let kept = images.bring_in(file, named(&uri)).await?;
    Ok(json_of(&kept))
}

async fn take_out(State(images): State<Arc<Images>>, uri: Uri) -> Result<Response, Unmanaged> {
    let name = wanted(&uri)?;
    let (image, manifest) = images.to_take_out(&name)?;
    let (pieces, taken) = mpsc::channel(PIECES_MAX);
    tokio::task::spawn_blocking(move || {
        let mut to = io::BufWriter::with_capacity(PIECE_BYTES, Pieces(pieces.clone()));
        let written = images.take_out(&image, &manifest, &mut to).map_err(io::Error::other);
        if let Err(error) = written.and_then(|()| to.flush()) {
            // The head is sent: what breaks off is no archive.
            let _ = pieces.blocking_send(Err(error));
        }
    });
    let taken = futures::stream::unfold(taken, |mut taken| async { taken.recv().await.map(|piece| (piece, taken)) });
    Ok(([(http::header::CONTENT_TYPE, "application/x-tar")], Body::from_stream(taken)).into_response())
}

/// What is written goes to whoever reads the answer.
struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

//! The HTTP API of `coracle image`: served at the built-in registry's address, with the registry's account.

use std::io::{self, Seek as _, Write};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use http::{StatusCode, Uri};
use serde_json::json;
use tokio::runtime::Handle;
use tokio::sync::mpsc::error::SendTimeoutError;
use tokio::sync::{mpsc, oneshot};

use super::{ImageRequestError, Images};

/// The path of the API.
pub(super) const PATH: &str = "/_coracle/images";
pub(super) const EXPORT_PATH: &str = "/_coracle/images/export";
/// Maximum bytes of an archive: it may hold several images, each within the bounds of a volume.
const ARCHIVE_BYTES_MAX: u64 = 8 << 30;
/// Maximum buffered chunks of an archive that the client has not read.
const CHUNKS_QUEUED_MAX: usize = 4;
const CHUNK_BYTES: usize = 256 << 10;
/// An export whose client reads no chunk for this long fails, so that its thread is released.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes written between two checks of the disk's free space.
const SPACE_CHECK_BYTES: u64 = 16 << 20;

/// Returns the image that a request names.
fn image_parameter(uri: &Uri) -> Option<String> {
    let url = reqwest::Url::parse(&format!("http://node/?{}", uri.query()?)).ok()?;
    url.query_pairs().find(|(key, _)| key == "name").map(|(_, name)| name.into_owned())
}

impl IntoResponse for ImageRequestError {
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

/// Returns the router. The caller adds authentication.
pub fn router(images: Arc<Images>) -> Router {
    Router::new().route(PATH, get(list).delete(remove).post(import)).route(EXPORT_PATH, get(export)).with_state(images)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageRequestError> + Send + 'static,
) -> Result<T, ImageRequestError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(ImageRequestError::Disk(error.to_string())))
}

fn disk(error: &io::Error) -> ImageRequestError {
    ImageRequestError::Disk(error.to_string())
}

fn json_of(value: &impl serde::Serialize) -> Response {
    let text = serde_json::to_string(value).unwrap_or_default();
    ([(http::header::CONTENT_TYPE, "application/json")], text).into_response()
}

async fn list(State(images): State<Arc<Images>>) -> Result<Response, ImageRequestError> {
    let all = blocking(move || images.list_images().map_err(|error| disk(&error))).await?;
    Ok(json_of(&all))
}

fn required_image(uri: &Uri) -> Result<String, ImageRequestError> {
    image_parameter(uri).ok_or_else(|| ImageRequestError::Bad("which image? give its name".into()))
}

async fn remove(State(images): State<Arc<Images>>, uri: Uri) -> Result<Response, ImageRequestError> {
    let name = required_image(&uri)?;
    let removed = blocking(move || images.remove(&name)).await?;
    Ok(json_of(&removed))
}

async fn import(State(images): State<Arc<Images>>, uri: Uri, body: Body) -> Result<Response, ImageRequestError> {
    let partial = images.blobs.partial();
    let mut file = blocking(move || tempfile::tempfile_in(partial).map_err(|error| disk(&error))).await?;
    let (mut pieces, mut bytes, mut checked) = (body.into_data_stream(), 0u64, None);
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| ImageRequestError::Bad(format!("the archive was truncated: {error}")))?;
        bytes += piece.len() as u64;
        if bytes > ARCHIVE_BYTES_MAX {
            return Err(ImageRequestError::Bad(format!("the archive has more than {ARCHIVE_BYTES_MAX} bytes")));
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
    let kept = images.import_archive(file, image_parameter(&uri)).await?;
    Ok(json_of(&kept))
}

async fn export(State(images): State<Arc<Images>>, uri: Uri) -> Result<Response, ImageRequestError> {
    let name = required_image(&uri)?;
    let (image, manifest) = images.find_export(&name)?;
    let pieces =
        stream_output(move |to| images.export_archive(&image, &manifest, to).map_err(io::Error::other), CHUNK_TIMEOUT);
    Ok(([(http::header::CONTENT_TYPE, "application/x-tar")], Body::from_stream(pieces)).into_response())
}

/// Streams the output of `write`, which runs on a blocking thread. The stream ends with the error of `write`, so that a
/// client detects a truncated archive.
fn stream_output(
    write: impl FnOnce(&mut io::BufWriter<ChunkWriter>) -> io::Result<()> + Send + 'static,
    chunk_timeout: Duration,
) -> impl Stream<Item = io::Result<Bytes>> {
    let (to, taken) = mpsc::channel(CHUNKS_QUEUED_MAX);
    let (result_sender, ended) = oneshot::channel();
    let pieces = ChunkWriter { to, chunk_timeout, runtime: Handle::current() };
    tokio::task::spawn_blocking(move || {
        let mut to = io::BufWriter::with_capacity(CHUNK_BYTES, pieces);
        let written = write(&mut to).and_then(|()| to.flush());
        // Drops the buffer without a flush: after an error nothing reads it.
        drop(to.into_parts());
        let _ = result_sender.send(written);
    });
    futures::stream::unfold((taken, Some(ended)), |(mut taken, ended)| async {
        if let Some(piece) = taken.recv().await {
            return Some((Ok(piece), (taken, ended)));
        }
        let written = ended?.await.unwrap_or_else(|_| Err(io::Error::other("the thread that writes it has ended")));
        Some((Err(written.err()?), (taken, None)))
    })
}

/// Sends written bytes to the response stream.
struct ChunkWriter {
    to: mpsc::Sender<Bytes>,
    chunk_timeout: Duration,
    runtime: Handle,
}

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sends = self.to.send_timeout(Bytes::copy_from_slice(bytes), self.chunk_timeout);
        match self.runtime.block_on(sends) {
            Ok(()) => Ok(bytes.len()),
            Err(SendTimeoutError::Timeout(_)) => Err(io::ErrorKind::TimedOut.into()),
            Err(SendTimeoutError::Closed(_)) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use machinery_env::Env;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Starts an endless writer, and returns a receiver of the error that ended it.
    fn endless(chunk_timeout: Duration) -> (impl Stream<Item = io::Result<Bytes>>, oneshot::Receiver<io::ErrorKind>) {
        let (result_sender, ended) = oneshot::channel();
        let write = move |to: &mut io::BufWriter<ChunkWriter>| loop {
            if let Err(error) = to.write_all(&[7; CHUNK_BYTES]) {
                let _ = result_sender.send(error.kind());
                return Err(error);
            }
        };
        (stream_output(write, chunk_timeout), ended)
    }

    #[tokio::test]
    async fn a_client_that_stops_reading_holds_no_thread() {
        let (pieces, ended) = endless(Duration::from_millis(50));
        let ended =
            Env::real().timeout(PATIENCE, ended).await.expect("the thread waits for a client that doesn't read");
        assert_eq!(ended.unwrap(), io::ErrorKind::TimedOut);
        let all: Vec<_> = pieces.collect().await;
        let (last, whole) = all.split_last().unwrap();
        assert!(last.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut), "what broke off has no end");
        assert!(whole.len() == CHUNKS_QUEUED_MAX && whole.iter().all(Result::is_ok));
    }

    #[tokio::test]
    async fn a_client_that_goes_ends_it_and_one_that_reads_gets_the_whole() {
        let (pieces, ended) = endless(PATIENCE);
        drop(pieces);
        assert_eq!(ended.await.unwrap(), io::ErrorKind::BrokenPipe);
        let write = |to: &mut io::BufWriter<ChunkWriter>| to.write_all(&vec![7; 10 * CHUNK_BYTES + 1]);
        let pieces = stream_output(write, PATIENCE);
        let bytes = pieces.fold(0, async |bytes, piece| bytes + piece.unwrap().len()).await;
        assert_eq!(bytes, 10 * CHUNK_BYTES + 1);
    }
}

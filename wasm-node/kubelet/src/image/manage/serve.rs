//! The images of a node over HTTP, for `coracle image`: beside the built-in registry, on its address and with its account.

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

use super::{Images, Unmanaged};

/// Where they are.
pub(super) const PATH: &str = "/_coracle/images";
pub(super) const EXPORT_PATH: &str = "/_coracle/images/export";
/// An archive: several images, each within the bounds of a volume.
const ARCHIVE_BYTES_MAX: u64 = 8 << 30;
/// Pieces of an archive that wait for who reads it.
const PIECES_MAX: usize = 4;
const PIECE_BYTES: usize = 256 << 10;
/// An export whose client takes no piece for this long ends with an error, so that its thread is free again.
const TAKEN_WITHIN: Duration = Duration::from_secs(60);
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
    let pieces = pieces_of(move |to| images.take_out(&image, &manifest, to).map_err(io::Error::other), TAKEN_WITHIN);
    Ok(([(http::header::CONTENT_TYPE, "application/x-tar")], Body::from_stream(pieces)).into_response())
}

/// Streams what `write` writes on a blocking thread. The stream ends with the error of `write`, so that a client sees a broken archive as such.
fn pieces_of(
    write: impl FnOnce(&mut io::BufWriter<Pieces>) -> io::Result<()> + Send + 'static,
    taken_within: Duration,
) -> impl Stream<Item = io::Result<Bytes>> {
    let (to, taken) = mpsc::channel(PIECES_MAX);
    let (tell, ended) = oneshot::channel();
    let pieces = Pieces { to, taken_within, runtime: Handle::current() };
    tokio::task::spawn_blocking(move || {
        let mut to = io::BufWriter::with_capacity(PIECE_BYTES, pieces);
        let written = write(&mut to).and_then(|()| to.flush());
        // Drops the buffer unwritten: after an error nobody takes it.
        drop(to.into_parts());
        let _ = tell.send(written);
    });
    futures::stream::unfold((taken, Some(ended)), |(mut taken, ended)| async {
        if let Some(piece) = taken.recv().await {
            return Some((Ok(piece), (taken, ended)));
        }
        let written = ended?.await.unwrap_or_else(|_| Err(io::Error::other("the thread that writes it has ended")));
        Some((Err(written.err()?), (taken, None)))
    })
}

/// What is written goes to whoever reads the answer.
struct Pieces {
    to: mpsc::Sender<Bytes>,
    taken_within: Duration,
    runtime: Handle,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sends = self.to.send_timeout(Bytes::copy_from_slice(bytes), self.taken_within);
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
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// Writes without end; answers how that ended.
    fn endless(taken_within: Duration) -> (impl Stream<Item = io::Result<Bytes>>, oneshot::Receiver<io::ErrorKind>) {
        let (tell, ended) = oneshot::channel();
        let write = move |to: &mut io::BufWriter<Pieces>| loop {
            if let Err(error) = to.write_all(&[7; PIECE_BYTES]) {
                let _ = tell.send(error.kind());
                return Err(error);
            }
        };
        (pieces_of(write, taken_within), ended)
    }

    #[tokio::test]
    async fn a_client_that_stops_reading_holds_no_thread() {
        let (pieces, ended) = endless(Duration::from_millis(50));
        let ended =
            tokio::time::timeout(PATIENCE, ended).await.expect("the thread waits for a client that doesn't read");
        assert_eq!(ended.unwrap(), io::ErrorKind::TimedOut);
        let all: Vec<_> = pieces.collect().await;
        let (last, whole) = all.split_last().unwrap();
        assert!(last.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut), "what broke off has no end");
        assert!(whole.len() == PIECES_MAX && whole.iter().all(Result::is_ok));
    }

    #[tokio::test]
    async fn a_client_that_goes_ends_it_and_one_that_reads_gets_the_whole() {
        let (pieces, ended) = endless(PATIENCE);
        drop(pieces);
        assert_eq!(ended.await.unwrap(), io::ErrorKind::BrokenPipe);
        let write = |to: &mut io::BufWriter<Pieces>| to.write_all(&vec![7; 10 * PIECE_BYTES + 1]);
        let pieces = pieces_of(write, PATIENCE);
        let bytes = pieces.fold(0, async |bytes, piece| bytes + piece.unwrap().len()).await;
        assert_eq!(bytes, 10 * PIECE_BYTES + 1);
    }
}

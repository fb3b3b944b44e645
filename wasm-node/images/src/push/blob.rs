//! The content of a push: bytes in memory or a file, read in chunks while they are sent. A part can be sent again from
//! its beginning, so that a request can be repeated. A file is never in memory as a whole.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use machinery_env::Env;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use oci_registry::blobs::digest;

/// Bytes read and passed to a connection at once.
const PIECE_BYTES: usize = 64 << 10;

/// A blob to push.
#[derive(Debug, Clone)]
pub struct Blob {
    digest: String,
    size_bytes: u64,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    Bytes(Bytes),
    File(PathBuf),
}

impl Blob {
    /// Creates a blob of bytes in memory.
    #[must_use]
    pub fn of_bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { digest: digest(&bytes), size_bytes: bytes.len() as u64, content: Content::Bytes(bytes) }
    }

    /// Creates a blob of a file, which must not change until it is pushed. Reads the file once for its digest.
    ///
    /// # Errors
    /// The file can't be read.
    pub async fn of_file(path: &Path) -> std::io::Result<Self> {
        let mut file = tokio::fs::File::open(path).await?;
        let (mut hash, mut size_bytes, mut buffer) = (Sha256::new(), 0, vec![0; PIECE_BYTES]);
        loop {
            let read = file.read(&mut buffer).await?;
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
            size_bytes += read as u64;
        }
        let digest = format!("sha256:{}", hex::encode(hash.finalize()));
        Ok(Self { digest, size_bytes, content: Content::File(path.to_owned()) })
    }

    /// Returns the digest.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Its size.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Returns the whole content.
    pub(in super::super) fn whole(&self) -> Part<'_> {
        self.part(0..self.size_bytes)
    }

    /// Returns a range of the content.
    pub(in super::super) fn part(&self, range: Range<u64>) -> Part<'_> {
        let end = range.end.min(self.size_bytes);
        Part { blob: self, range: range.start.min(end)..end }
    }
}

/// A range of a blob's bytes.
#[derive(Debug, Clone)]
pub(in super::super) struct Part<'b> {
    blob: &'b Blob,
    range: Range<u64>,
}

impl Part<'_> {
    /// Returns its size in bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Returns its position in the blob.
    pub(super) fn range(&self) -> &Range<u64> {
        &self.range
    }

    /// Returns a request body that is read as fast as the connection accepts it.
    pub(in super::super) fn body(&self, progress: &Arc<Progress>) -> reqwest::Body {
        reqwest::Body::wrap_stream(self.pieces(progress))
    }

    fn pieces(&self, progress: &Arc<Progress>) -> BoxStream<'static, std::io::Result<Bytes>> {
        let progress = progress.clone();
        let pieces = match &self.blob.content {
            Content::Bytes(bytes) => pieces_of_bytes(bytes.clone(), self.range.clone()).boxed(),
            Content::File(path) => pieces_of_file(path.clone(), self.range.clone()).boxed(),
        };
        pieces
            .inspect(move |piece| match piece {
                Ok(piece) => progress.sent(piece.len()),
                Err(error) => progress.fail(format!("cannot read what is pushed: {error}")),
            })
            .boxed()
    }
}

fn pieces_of_bytes(bytes: Bytes, range: Range<u64>) -> impl futures::Stream<Item = std::io::Result<Bytes>> + Send {
    // Offsets of bytes in memory fit.
    let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
    let (start, end) = (at(range.start), at(range.end));
    let pieces = (start..end).step_by(PIECE_BYTES);
    futures::stream::iter(pieces.map(move |from| Ok(bytes.slice(from..end.min(from + PIECE_BYTES)))))
}

fn pieces_of_file(path: PathBuf, range: Range<u64>) -> impl futures::Stream<Item = std::io::Result<Bytes>> + Send {
    let open = async move {
        let mut file = tokio::fs::File::open(path).await?;
        file.seek(std::io::SeekFrom::Start(range.start)).await?;
        Ok::<_, std::io::Error>((file, range.end - range.start))
    };
    let pieces = |(file, left): (tokio::fs::File, u64)| {
        futures::stream::try_unfold((file, left), |(mut file, left)| async move {
            if left == 0 {
                return Ok(None);
            }
            let mut piece = bytes::BytesMut::with_capacity(PIECE_BYTES);
            let read = (&mut file).take(left.min(PIECE_BYTES as u64)).read_buf(&mut piece).await?;
            if read == 0 {
                let why = "the file has become shorter";
                return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, why));
            }
            Ok(Some((piece.freeze(), (file, left - read as u64))))
        })
    };
    futures::TryStreamExt::try_flatten(futures::stream::once(futures::TryFutureExt::map_ok(open, pieces)))
}

/// The progress of one request's body.
#[derive(Debug, Default)]
pub(in super::super) struct Progress {
    sent_bytes: AtomicU64,
    failed: OnceLock<String>,
}

impl Progress {
    /// Returns the bytes that the connection has accepted.
    #[cfg(test)]
    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    fn sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn fail(&self, why: String) {
        let _ = self.failed.set(why);
    }

    /// Returns the local reason why the body ended early.
    pub(in super::super) fn failure(&self) -> Option<String> {
        self.failed.get().cloned()
    }

    /// Awaits a request; `None` if nothing was sent for `timeout`, after at most twice that time.
    pub(in super::super) async fn within<T>(
        &self,
        env: &Env,
        timeout: Duration,
        request: impl Future<Output = T>,
    ) -> Option<T> {
        let mut request = std::pin::pin!(request);
        let mut before = None;
        loop {
            let now = self.sent_bytes.load(Ordering::Relaxed);
            if before == Some(now) {
                return None;
            }
            before = Some(now);
            if let Ok(done) = env.timeout(timeout, &mut request).await {
                return Some(done);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;
    use proptest::prelude::*;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    async fn read(blob: &Blob, range: Range<u64>) -> Vec<Bytes> {
        blob.part(range).pieces(&Arc::default()).try_collect().await.unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_file_and_memory_send_the_same(size in 0..300_000_usize, start in 0..300_000_u64, length in 0..300_000_u64) {
            let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("blob");
            std::fs::write(&path, &bytes).unwrap();
            let check = async {
                let (memory, file) = (Blob::of_bytes(bytes.clone()), Blob::of_file(&path).await.unwrap());
                assert_eq!((file.digest(), file.size_bytes()), (digest(&bytes).as_str(), size as u64));
                assert_eq!(memory.digest(), file.digest());
                let range = start..start.saturating_add(length);
                let wanted = &bytes[size.min(start as usize)..size.min(range.end as usize)];
                for blob in [&memory, &file] {
                    let pieces = read(blob, range.clone()).await;
                    assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.len() <= PIECE_BYTES));
                    assert_eq!(pieces.concat(), wanted);
                    assert_eq!(blob.part(range.clone()).size_bytes(), wanted.len() as u64);
                }
            };
            runtime().block_on(check);
        }
    }

    #[tokio::test]
    async fn a_file_that_shrinks_is_an_error_of_this_side() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        std::fs::write(&path, [7; 100]).unwrap();
        let blob = Blob::of_file(&path).await.unwrap();
        std::fs::write(&path, [7; 50]).unwrap();
        let progress = Arc::new(Progress::default());
        let sent: Result<Vec<Bytes>, _> = blob.whole().pieces(&progress).try_collect().await;
        assert!(sent.is_err());
        assert_eq!(progress.failure().unwrap(), "cannot read what is pushed: the file has become shorter");
        std::fs::remove_file(&path).unwrap();
        assert!(blob.whole().pieces(&progress).try_collect::<Vec<_>>().await.is_err());
        assert!(Blob::of_file(&path).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_counts_from_the_last_progress() {
        let (env, timeout) = (Env::real(), Duration::from_secs(60));
        let progress = Arc::new(Progress::default());
        let slow = async {
            for _ in 0..100 {
                env.sleep(Duration::from_secs(50)).await;
                progress.sent(1);
            }
            "done"
        };
        assert_eq!(progress.within(&env, timeout, slow).await, Some("done"), "slow, and never idle for 60 s");
        let began = env.instant();
        let hangs = async {
            progress.sent(1);
            std::future::pending::<()>().await;
        };
        assert_eq!(progress.within(&env, timeout, hangs).await, None);
        let elapsed = env.instant() - began;
        assert!(elapsed >= timeout && elapsed <= 2 * timeout, "{elapsed:?}");
    }
}

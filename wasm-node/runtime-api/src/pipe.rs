//! A bounded pipe between a guest and its peer: a writer waits for the reader, and nothing is dropped.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// Capacity in bytes, as in Linux. A writer that has seen room may exceed it by one piece.
pub const PIPE_BYTES_MAX: usize = 64 << 10;
/// Maximum bytes with writers that didn't check for room: several writers of one guest may each have seen room.
const OVERRUN_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, Default)]
struct PipeState {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    no_writer: bool,
    no_reader: bool,
}

#[derive(Debug, Default)]
struct PipeShared {
    state: Mutex<PipeState>,
    changed: Notify,
}

impl PipeShared {
    fn lock(&self) -> MutexGuard<'_, PipeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn until<T>(&self, look: impl Fn(&mut PipeState) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            if let Some(found) = look(&mut self.lock()) {
                return found;
            }
            changed.await;
        }
    }
}

#[derive(Debug)]
struct WriterEnd(Arc<PipeShared>);

impl Drop for WriterEnd {
    fn drop(&mut self) {
        self.0.lock().no_writer = true;
        self.0.changed.notify_waiters();
    }
}

#[derive(Debug)]
struct ReaderEnd(Arc<PipeShared>);

impl Drop for ReaderEnd {
    fn drop(&mut self) {
        let rest = {
            let mut state = self.0.lock();
            state.no_reader = true;
            state.bytes = 0;
            std::mem::take(&mut state.pieces)
        };
        drop(rest);
        self.0.changed.notify_waiters();
    }
}

/// The write end; the pipe ends when its last clone is dropped.
#[derive(Debug, Clone)]
pub struct PipeWriter(Arc<WriterEnd>);

/// The read end; its clones share the data.
#[derive(Debug, Clone)]
pub struct PipeReader(Arc<ReaderEnd>);

/// Reason of a failed write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PipeError {
    /// All read ends are closed.
    #[error("this pipe has no reader any more")]
    Closed,
    /// Much was written without checking for room.
    #[error("the pipe is full")]
    Full,
}

/// Creates a pipe.
#[must_use]
pub fn pipe() -> (PipeWriter, PipeReader) {
    let shared = Arc::new(PipeShared::default());
    (PipeWriter(Arc::new(WriterEnd(shared.clone()))), PipeReader(Arc::new(ReaderEnd(shared))))
}

impl PipeWriter {
    /// Whether the pipe is below its capacity.
    ///
    /// # Errors
    /// All read ends are closed.
    pub fn has_capacity(&self) -> Result<bool, PipeError> {
        let state = self.0.0.lock();
        if state.no_reader { Err(PipeError::Closed) } else { Ok(state.bytes < PIPE_BYTES_MAX) }
    }

    /// Bytes that are written and unread.
    #[must_use]
    pub fn unread(&self) -> usize {
        self.0.0.lock().bytes
    }

    /// Writes without waiting, for callers that have checked for room.
    ///
    /// # Errors
    /// See [`PipeError`].
    pub fn write(&self, bytes: Bytes) -> Result<(), PipeError> {
        {
            let mut state = self.0.0.lock();
            if state.no_reader {
                return Err(PipeError::Closed);
            }
            if state.bytes > OVERRUN_BYTES_MAX {
                return Err(PipeError::Full);
            }
            if bytes.is_empty() {
                return Ok(());
            }
            state.bytes += bytes.len();
            state.pieces.push_back(bytes);
        }
        self.0.0.changed.notify_waiters();
        Ok(())
    }

    /// Waits until there is room, or all read ends are closed.
    pub async fn writable(&self) {
        self.0.0.until(|state| (state.no_reader || state.bytes < PIPE_BYTES_MAX).then_some(())).await;
    }

    /// Waits for room, and writes.
    ///
    /// # Errors
    /// All read ends are closed.
    pub async fn send(&self, bytes: Bytes) -> Result<(), PipeError> {
        self.writable().await;
        self.write(bytes)
    }

    /// Resolves when all read ends are closed.
    pub async fn closed(&self) {
        self.0.0.until(|state| state.no_reader.then_some(())).await;
    }
}

impl PipeReader {
    /// Takes at most this many bytes; empty if there are none yet, `None` at the end.
    #[must_use]
    pub fn take(&self, bytes_max: usize) -> Option<Bytes> {
        let taken = {
            let mut state = self.0.0.lock();
            let Some(mut piece) = state.pieces.pop_front() else {
                return if state.no_writer { None } else { Some(Bytes::new()) };
            };
            let taken = piece.split_to(bytes_max.min(piece.len()));
            if !piece.is_empty() {
                state.pieces.push_front(piece);
            }
            state.bytes -= taken.len();
            taken
        };
        self.0.0.changed.notify_waiters();
        Some(taken)
    }

    /// Waits for data or the end.
    pub async fn readable(&self) {
        self.0.0.until(|state| (state.no_writer || !state.pieces.is_empty()).then_some(())).await;
    }

    /// Waits for the next piece; `None` at the end.
    pub async fn recv(&self) -> Option<Bytes> {
        loop {
            self.readable().await;
            match self.take(usize::MAX) {
                // Another clone took it.
                Some(taken) if taken.is_empty() => {}
                taken => return taken,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn bytes_come_in_order_and_the_end_after_them() {
        let (writer, reader) = pipe();
        assert_eq!(reader.take(9), Some(Bytes::new()));
        writer.send("hello".into()).await.unwrap();
        writer.send("world".into()).await.unwrap();
        assert_eq!(reader.take(3).unwrap(), "hel");
        assert_eq!(writer.unread(), 7);
        assert_eq!(reader.recv().await.unwrap(), "lo");
        let other = writer.clone();
        drop(writer);
        assert_eq!(reader.take(9).unwrap(), "world");
        assert_eq!(reader.take(9), Some(Bytes::new()));
        drop(other);
        assert_eq!((reader.take(9), reader.recv().await), (None, None));
    }

    #[tokio::test]
    async fn a_full_pipe_holds_its_writer_back_until_it_is_read() {
        let (writer, reader) = pipe();
        writer.send(vec![1; PIPE_BYTES_MAX].into()).await.unwrap();
        assert_eq!(writer.has_capacity(), Ok(false));
        let waiting = tokio::spawn(async move { writer.send("x".into()).await });
        assert!(machinery_env::Env::real().timeout(Duration::from_millis(20), reader.readable()).await.is_ok());
        assert!(!waiting.is_finished());
        assert_eq!(reader.take(1).unwrap().len(), 1);
        waiting.await.unwrap().unwrap();
        assert_eq!(reader.recv().await.unwrap().len(), PIPE_BYTES_MAX - 1);
        assert_eq!(reader.recv().await.unwrap(), "x");
    }

    #[test]
    fn unconditional_writes_are_bounded() {
        let (writer, reader) = pipe();
        let written = (0..100).take_while(|_| writer.write(vec![0; PIPE_BYTES_MAX].into()).is_ok()).count();
        assert_eq!((written, writer.write("x".into())), (17, Err(PipeError::Full)));
        drop(reader);
    }

    #[tokio::test]
    async fn a_writer_detects_a_closed_reader() {
        let (writer, reader) = pipe();
        writer.send(vec![1; PIPE_BYTES_MAX].into()).await.unwrap();
        let waiting = tokio::spawn({
            let writer = writer.clone();
            async move { writer.send("x".into()).await }
        });
        drop(reader);
        assert_eq!(waiting.await.unwrap(), Err(PipeError::Closed));
        writer.closed().await;
        assert_eq!((writer.has_capacity(), writer.write("y".into())), (Err(PipeError::Closed), Err(PipeError::Closed)));
    }
}

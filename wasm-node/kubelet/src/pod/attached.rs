//! A container's output for attached clients, beside its log.
//!
//! The container never waits for a client. A slow client misses output, and gets a notice with the number of bytes, as in the log.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use runtime_api::pipe::{PipeError, PipeReader, PipeWriter, pipe};
use runtime_api::{LogSink, StdStream};

/// The maximum number of clients attached to one container.
const WATCHERS_MAX: usize = 16;

struct Watcher {
    stdout: Option<PipeWriter>,
    stderr: Option<PipeWriter>,
    missed_bytes: u64,
}

impl Watcher {
    /// Forwards output; false if the client has closed the stream.
    fn take(&mut self, stream: StdStream, bytes: &[u8]) -> bool {
        let to = match stream {
            StdStream::Stdout => &self.stdout,
            StdStream::Stderr => &self.stderr,
        };
        let Some(to) = to else { return true };
        match to.has_capacity() {
            Err(_) => return false,
            Ok(false) => {
                self.missed_bytes += bytes.len() as u64;
                return true;
            }
            Ok(true) => {}
        }
        if self.missed_bytes > 0 {
            let missed = std::mem::take(&mut self.missed_bytes);
            let notice = format!("[coracle] {missed} bytes were not shown: they came faster than they were read\n");
            let _ = to.write(notice.into());
        }
        !matches!(to.write(Bytes::copy_from_slice(bytes)), Err(PipeError::Closed))
    }
}

/// A log sink that copies a container's output to attached clients.
pub(crate) struct Attached {
    log: Arc<dyn LogSink>,
    /// `None` once the container has ended.
    watchers: Mutex<Option<Vec<Watcher>>>,
}

impl Attached {
    pub(crate) fn new(log: Arc<dyn LogSink>) -> Self {
        Self { log, watchers: Mutex::new(Some(Vec::new())) }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Option<Vec<Watcher>>) -> T) -> T {
        act(&mut self.watchers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The output from now on to the container's end. `None` if too many clients are attached, or it has ended.
    pub(crate) fn watch(&self, stdout: bool, stderr: bool) -> Option<(Option<PipeReader>, Option<PipeReader>)> {
        let when = |wanted: bool| if wanted { Some(pipe()).unzip() } else { (None, None) };
        let ((stdout, out), (stderr, err)) = (when(stdout), when(stderr));
        self.with(|watchers| {
            let watchers = watchers.as_mut()?;
            watchers.retain(|watcher| {
                let reads = |to: &Option<PipeWriter>| to.as_ref().is_none_or(|to| to.has_capacity().is_ok());
                reads(&watcher.stdout) && reads(&watcher.stderr)
            });
            if watchers.len() >= WATCHERS_MAX {
                return None;
            }
            watchers.push(Watcher { stdout, stderr, missed_bytes: 0 });
            Some((out, err))
        })
    }

    /// Closes all streams: the container has ended.
    pub(crate) fn end(&self) {
        drop(self.with(Option::take));
    }
}

impl LogSink for Attached {
    fn write(&self, stream: StdStream, bytes: &[u8]) {
        self.log.write(stream, bytes);
        self.with(|watchers| {
            if let Some(watchers) = watchers.as_mut().filter(|watchers| !watchers.is_empty()) {
                watchers.retain_mut(|watcher| watcher.take(stream, bytes));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use runtime_api::pipe::PIPE_BYTES_MAX;

    use super::*;

    struct NoLog;

    impl LogSink for NoLog {
        fn write(&self, _: StdStream, _: &[u8]) {}
    }

    #[tokio::test]
    async fn attached_output_begins_at_the_attach_and_is_complete() {
        let attached = Attached::new(Arc::new(NoLog));
        attached.write(StdStream::Stdout, b"before");
        let (out, err) = attached.watch(true, true).unwrap();
        let (both, none) = attached.watch(true, false).unwrap();
        attached.write(StdStream::Stdout, b"out");
        attached.write(StdStream::Stderr, b"err");
        let (out, err, both) = (out.unwrap(), err.unwrap(), both.unwrap());
        assert!(none.is_none());
        assert_eq!((out.recv().await.unwrap(), err.recv().await.unwrap()), ("out".into(), "err".into()));
        attached.end();
        assert_eq!((out.recv().await, err.recv().await), (None, None));
        assert_eq!((both.recv().await.unwrap(), both.recv().await), ("out".into(), None));
        assert!(attached.watch(true, true).is_none());
    }

    #[tokio::test]
    async fn slow_readers_get_the_number_of_lost_bytes() {
        let attached = Attached::new(Arc::new(NoLog));
        let (out, _) = attached.watch(true, false).unwrap();
        let out = out.unwrap();
        attached.write(StdStream::Stdout, &vec![b'x'; PIPE_BYTES_MAX]);
        attached.write(StdStream::Stdout, b"12345");
        assert_eq!(out.recv().await.unwrap().len(), PIPE_BYTES_MAX);
        attached.write(StdStream::Stdout, b"more");
        assert_eq!(
            out.recv().await.unwrap(),
            "[coracle] 5 bytes were not shown: they came faster than they were read\n"
        );
        assert_eq!(out.recv().await.unwrap(), "more");
    }

    #[tokio::test]
    async fn watchers_are_bounded_until_one_ends() {
        let attached = Attached::new(Arc::new(NoLog));
        let mut all: Vec<_> = std::iter::from_fn(|| attached.watch(true, false)).take(100).collect();
        assert_eq!(all.len(), WATCHERS_MAX);
        all.pop();
        assert!(attached.watch(true, false).is_some());
    }
}

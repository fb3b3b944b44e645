//! A bounded queue of records, and the thread that sends them in batches. A full queue drops and counts: a dead or slow
//! collector delays no request and takes no further memory.
//!
//! Nothing that the thread does is exported itself: it runs with OpenTelemetry suppressed, and its runtime has no other thread
//! than itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use machinery_env::Env;
use opentelemetry::Context;
use prometheus_client::metrics::counter::Counter;

use crate::settings::BatchSettings;

/// Sends batches to the collector.
pub(crate) trait Export: Send + 'static {
    /// A span or a log record.
    type Record: Send + 'static;

    /// Sends a batch, retries included.
    fn export(&self, batch: Vec<Self::Record>) -> impl Future<Output = Result<(), String>>;
}

enum Message<T> {
    Record(Box<T>),
    /// Wakes the thread to end.
    Stop,
}

/// The queue of one signal; cheap to clone.
pub(crate) struct Queue<T> {
    sender: SyncSender<Message<T>>,
    dropped: Counter,
    stopping: Arc<AtomicBool>,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), dropped: self.dropped.clone(), stopping: self.stopping.clone() }
    }
}

impl<T> std::fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

/// The thread of a signal.
pub(crate) struct BatchThread {
    stop: Box<dyn Fn() + Send + Sync>,
    done: Receiver<()>,
}

impl<T: Send + 'static> Queue<T> {
    /// Queues a record, or drops and counts it.
    pub(crate) fn push(&self, record: T) {
        if self.sender.try_send(Message::Record(Box::new(record))).is_err() {
            self.dropped.inc();
        }
    }

    /// Counts a record that is not queued.
    pub(crate) fn reject(&self) {
        self.dropped.inc();
    }
}

/// Starts the thread of a signal: `name` is `traces` or `logs`. Dropped records are counted in `dropped`.
///
/// # Errors
/// If the system creates no thread.
pub(crate) fn start<E: Export>(
    env: Env,
    name: &'static str,
    settings: BatchSettings,
    dropped: Counter,
    exporter: E,
) -> std::io::Result<(Queue<E::Record>, BatchThread)> {
    let (sender, receiver) = sync_channel(settings.queue_max);
    let stopping = Arc::new(AtomicBool::new(false));
    let (ended, done) = sync_channel(1);
    let queue = Queue { sender, dropped: dropped.clone(), stopping: stopping.clone() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let worker = Worker { env, name, settings, receiver, stopping, dropped, is_failing: false };
    let work = move || {
        let _quiet = Context::enter_telemetry_suppressed_scope();
        worker.run(&runtime, &exporter);
        let _ = ended.send(());
    };
    std::thread::Builder::new().name(format!("otlp-{name}")).spawn(work)?;
    let own = queue.clone();
    let stop = move || {
        own.stopping.store(true, Ordering::Release);
        // A full queue has a thread that is awake and reads the flag after its batch.
        let _ = own.sender.try_send(Message::Stop);
    };
    Ok((queue, BatchThread { stop: Box::new(stop), done }))
}

impl BatchThread {
    /// Begins to send what is queued, and ends the thread.
    pub(crate) fn stop(&self) {
        (self.stop)();
    }

    /// Waits for the end after [`Self::stop`], at most this long.
    pub(crate) fn wait(&self, timeout: Duration) {
        let _ = self.done.recv_timeout(timeout);
    }
}

struct Worker<T> {
    env: Env,
    name: &'static str,
    settings: BatchSettings,
    receiver: Receiver<Message<T>>,
    stopping: Arc<AtomicBool>,
    dropped: Counter,
    is_failing: bool,
}

impl<T: Send + 'static> Worker<T> {
    fn run(mut self, runtime: &tokio::runtime::Runtime, exporter: &impl Export<Record = T>) {
        loop {
            let batch = self.next_batch();
            if batch.is_empty() {
                return;
            }
            let count = batch.len() as u64;
            let (env, timeout) = (self.env.clone(), self.settings.timeout);
            let sent = runtime.block_on(async { env.timeout(timeout, exporter.export(batch)).await });
            self.report(count, sent.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}"))));
        }
    }

    /// The next records: as many as there are within the delay. Empty at the end.
    fn next_batch(&self) -> Vec<T> {
        let mut batch = Vec::new();
        let mut until = None;
        while batch.len() < self.settings.batch_max {
            let wait = match until {
                _ if self.stopping.load(Ordering::Acquire) => Duration::ZERO,
                // Without a record there is nothing to wait for but the first one.
                None => Duration::MAX,
                Some(until) => Duration::saturating_sub(until, self.env.elapsed()),
            };
            match self.receiver.recv_timeout(wait) {
                Ok(Message::Record(record)) => batch.push(*record),
                Ok(Message::Stop) => continue,
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
            until.get_or_insert_with(|| self.env.elapsed() + self.settings.delay);
        }
        batch
    }

    /// Counts the records of a failed batch; logs the first failure and the end of failures.
    fn report(&mut self, count: u64, sent: Result<(), String>) {
        match sent {
            Ok(()) if std::mem::take(&mut self.is_failing) => {
                tracing::info!(signal = self.name, "the OTLP collector takes records again");
            }
            Ok(()) => {}
            Err(error) => {
                self.dropped.inc_by(count);
                if !std::mem::replace(&mut self.is_failing, true) {
                    tracing::warn!(
                        signal = self.name,
                        error,
                        "the OTLP collector takes no records: they are dropped, and counted in coracle_otlp_dropped_total"
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Sender;
    use std::sync::{Mutex, PoisonError};

    use super::*;

    const SETTINGS: BatchSettings = BatchSettings {
        queue_max: 4,
        batch_max: 2,
        delay: Duration::from_millis(1),
        timeout: Duration::from_millis(50),
    };

    type CollectorReply = Option<Result<(), String>>;

    /// Sends batches to the test, and does with each what the test says.
    struct TestCollector {
        batches: Sender<Vec<u32>>,
        /// Taken before each batch; `None`: it never answers.
        answers: Mutex<Receiver<CollectorReply>>,
    }

    impl Export for TestCollector {
        type Record = u32;

        async fn export(&self, batch: Vec<u32>) -> Result<(), String> {
            let _ = self.batches.send(batch);
            let answer = self.answers.lock().unwrap_or_else(PoisonError::into_inner).recv();
            match answer {
                Ok(Some(answer)) => answer,
                Ok(None) => std::future::pending().await,
                Err(_) => Ok(()),
            }
        }
    }

    fn collector() -> (TestCollector, Receiver<Vec<u32>>, Sender<CollectorReply>) {
        let ((batches, received), (answer, answers)) = (std::sync::mpsc::channel(), std::sync::mpsc::channel());
        (TestCollector { batches, answers: Mutex::new(answers) }, received, answer)
    }

    #[test]
    fn a_stuck_collector_drops_and_counts() {
        let dropped = Counter::default();
        let (exporter, received, answer) = collector();
        let (queue, thread) = start(Env::real(), "traces", SETTINGS, dropped.clone(), exporter).unwrap();
        queue.push(0);
        // The thread waits in the collector from here on: its queue takes four.
        assert_eq!(received.recv().unwrap(), [0]);
        (1..10).for_each(|record| queue.push(record));
        assert_eq!(dropped.get(), 5);
        answer.send(None).unwrap();
        // The first batch has timed out.
        assert_eq!(received.recv().unwrap(), [1, 2]);
        assert_eq!(dropped.get(), 6);
        answer.send(Some(Err("refused".into()))).unwrap();
        assert_eq!(received.recv().unwrap(), [3, 4]);
        assert_eq!(dropped.get(), 8);
        drop(answer);
        thread.stop();
        thread.done.recv().unwrap();
        queue.reject();
        assert_eq!(dropped.get(), 9);
    }

    #[test]
    fn a_stop_sends_the_queue() {
        let dropped = Counter::default();
        let (exporter, received, answer) = collector();
        let settings = BatchSettings { delay: Duration::from_secs(3600), batch_max: 3, ..SETTINGS };
        let (queue, thread) = start(Env::real(), "logs", settings, dropped.clone(), exporter).unwrap();
        drop(answer);
        (0..4).for_each(|record| queue.push(record));
        assert_eq!(received.recv().unwrap(), [0, 1, 2]);
        thread.stop();
        assert_eq!(received.recv().unwrap(), [3]);
        thread.done.recv().unwrap();
        // The thread has ended: it is counted.
        queue.push(5);
        assert_eq!(dropped.get(), 1);
    }

    #[test]
    fn a_stop_does_not_wait_for_a_stuck_collector() {
        let (exporter, received, answer) = collector();
        let settings = BatchSettings { timeout: Duration::from_secs(3600), ..SETTINGS };
        let (queue, thread) = start(Env::real(), "logs", settings, Counter::default(), exporter).unwrap();
        queue.push(0);
        answer.send(None).unwrap();
        received.recv().unwrap();
        thread.stop();
        thread.wait(Duration::from_millis(1));
    }
}

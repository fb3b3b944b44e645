//! A row of the table of components: how one is built, and what running and draining it takes.

use std::pin::Pin;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::ground::Ground;

/// What a component does, or waits for.
type Work = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// When a role's components end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Last: what others use while they end.
    Servers,
    /// First.
    Components,
}

/// One row.
pub(super) struct Role {
    pub(super) name: &'static str,
    pub(super) stage: Stage,
    /// Makes the role's components; none of them runs yet. With another configuration there may be none.
    pub(super) build: fn(&Ground) -> anyhow::Result<Vec<Component>>,
}

/// What is built and not started.
pub(super) struct Component {
    name: &'static str,
    run: Work,
    on: Option<Handle>,
    wait: Option<Wait>,
}

/// Something that a start waits for.
pub(super) struct Wait {
    /// As a person is told.
    pub(super) what: &'static str,
    pub(super) ready: Work,
}

impl Component {
    /// Runs until the stop; its end before is a failure of the whole.
    pub(super) fn new(name: &'static str, run: impl Future<Output = anyhow::Result<()>> + Send + 'static) -> Self {
        Self { name, run: Box::pin(run), on: None, wait: None }
    }

    /// On other threads than the control plane's.
    pub(super) fn on(self, threads: Option<Handle>) -> Self {
        Self { on: threads, ..self }
    }

    /// A start waits until this is there.
    pub(super) fn ready(
        self,
        what: &'static str,
        ready: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) -> Self {
        Self { wait: Some(Wait { what, ready: Box::pin(ready) }), ..self }
    }
}

/// The components of a stage at work.
pub(super) struct Running {
    tasks: JoinSet<()>,
    stop: CancellationToken,
    failed: mpsc::Sender<anyhow::Error>,
}

impl Running {
    pub(super) fn new(stop: CancellationToken, failed: mpsc::Sender<anyhow::Error>) -> Self {
        Self { tasks: JoinSet::new(), stop, failed }
    }

    /// Starts a component; the end of one before the stop is told as a failure.
    pub(super) fn start(&mut self, component: Component) -> Option<Wait> {
        let Component { name, run, on, wait } = component;
        let alarm = Alarm { name, stop: self.stop.clone(), failed: self.failed.clone() };
        let supervised = async move {
            let ended = run.await;
            alarm.ring(ended.err().unwrap_or_else(|| anyhow::anyhow!("it ended")));
        };
        self.tasks.spawn_on(supervised, &on.unwrap_or_else(Handle::current));
        wait
    }

    /// Asks all to end, and answers whether they did in time.
    pub(super) async fn drain(&mut self, time_max: Duration) -> bool {
        self.stop.cancel();
        tokio::time::timeout(time_max, async { while self.tasks.join_next().await.is_some() {} }).await.is_ok()
    }

    /// Ends what is still running.
    pub(super) async fn cut(&mut self) {
        self.tasks.shutdown().await;
    }
}

/// Tells that a component ended though nobody asked it to, also where it panicked.
struct Alarm {
    name: &'static str,
    stop: CancellationToken,
    failed: mpsc::Sender<anyhow::Error>,
}

impl Alarm {
    fn ring(&self, error: anyhow::Error) {
        if !self.stop.is_cancelled() {
            let told = format!("the {} ended; start again, with --log-level info to see why", self.name);
            // One failure ends the whole: later ones say nothing new.
            let _ = self.failed.try_send(error.context(told));
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.ring(anyhow::anyhow!("it panicked"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_component_that_ends_by_itself_fails_the_whole_and_one_that_is_stopped_does_not() {
        let (failed, mut failures) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let mut running = Running::new(stop.clone(), failed);
        let until = stop.clone();
        running.start(Component::new("patient one", async move {
            until.cancelled().await;
            Ok(())
        }));
        running.start(Component::new("hasty one", async { anyhow::bail!("out of boats") }));
        let told = format!("{:#}", failures.recv().await.unwrap());
        assert!(told.starts_with("the hasty one ended") && told.ends_with("out of boats"), "{told}");
        assert!(running.drain(Duration::from_secs(10)).await);
        assert!(failures.try_recv().is_err(), "the patient one was asked to");
    }

    #[tokio::test]
    async fn a_panic_fails_the_whole() {
        let (failed, mut failures) = mpsc::channel(1);
        let mut running = Running::new(CancellationToken::new(), failed);
        running.start(Component::new("clumsy one", async { panic!("it was meant to") }));
        assert!(format!("{:#}", failures.recv().await.unwrap()).ends_with("it panicked"));
    }

    #[tokio::test]
    async fn what_does_not_end_is_cut_off() {
        let (failed, _failures) = mpsc::channel(1);
        let mut running = Running::new(CancellationToken::new(), failed);
        running.start(Component::new("stubborn one", std::future::pending()));
        assert!(!running.drain(Duration::from_millis(10)).await);
        running.cut().await;
        assert!(running.drain(Duration::from_millis(10)).await);
    }
}

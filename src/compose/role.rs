//! A row of the table of components: how a component is built, awaited, run and drained.

use std::pin::Pin;
use std::time::Duration;

use machinery_env::Env;
use machinery_serve::sockets::Layer;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Part;
use super::ground::Ground;

/// The time between the end of a component and its report.
const FAILURE_WITHIN: Duration = Duration::from_secs(1);

/// A component's task or wait.
type Work = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// One row.
pub(super) struct Role {
    pub(super) name: &'static str,
    /// Servers stop last: others use them during their own stop.
    pub(super) part: Part,
    /// Builds the role's components without starting them. Some configurations have none.
    pub(super) build: fn(&Ground) -> anyhow::Result<Vec<Component>>,
}

/// A component that is built and not started.
pub(super) struct Component {
    name: &'static str,
    run: Work,
    on: Option<Handle>,
    wait: Option<StartCondition>,
    /// One of the layer of pods outlives the others at a takeover.
    pub(super) layer: Layer,
}

/// A condition that the start waits for.
pub(super) struct StartCondition {
    /// Description for people.
    pub(super) what: &'static str,
    ready: Work,
}

impl StartCondition {
    /// Waits for the condition.
    ///
    /// # Errors
    /// The failure of a component that ends before: it is the reason why the condition can't be met.
    pub(super) async fn met(self, env: &Env, failures: &mut mpsc::Receiver<anyhow::Error>) -> anyhow::Result<()> {
        let unmet = tokio::select! {
            biased;
            Some(failure) = failures.recv() => return Err(failure),
            ready = self.ready => match ready {
                Ok(()) => return Ok(()),
                Err(unmet) => unmet,
            },
        };
        // A component that ends drops its conditions first.
        match env.timeout(FAILURE_WITHIN, failures.recv()).await {
            Ok(Some(failure)) => Err(failure),
            _ => Err(unmet),
        }
    }
}

impl Component {
    /// A component that runs until the stop; an earlier end fails the process.
    pub(super) fn new(name: &'static str, run: impl Future<Output = anyhow::Result<()>> + Send + 'static) -> Self {
        Self { name, run: Box::pin(run), on: None, wait: None, layer: Layer::Control }
    }

    /// A component without an end of its own: it runs until `stop`.
    pub(super) fn until(
        stop: &CancellationToken,
        name: &'static str,
        run: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let stop = stop.clone();
        Self::new(name, async move {
            stop.run_until_cancelled(run).await;
            Ok(())
        })
    }

    /// Runs it on other threads than the control plane's.
    pub(super) fn on(self, threads: Option<Handle>) -> Self {
        Self { on: threads, ..self }
    }

    /// Moves it to the layer of pods, which has a stop of its own.
    pub(super) fn of_pods(self) -> Self {
        Self { layer: Layer::Pods, ..self }
    }

    /// Adds a condition that the start waits for.
    pub(super) fn ready(
        self,
        what: &'static str,
        ready: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) -> Self {
        Self { wait: Some(StartCondition { what, ready: Box::pin(ready) }), ..self }
    }
}

/// The running components of a stage.
pub(super) struct RunningComponents {
    tasks: JoinSet<()>,
    stop: CancellationToken,
    failed: mpsc::Sender<anyhow::Error>,
}

impl RunningComponents {
    pub(super) fn new(stop: CancellationToken, failed: mpsc::Sender<anyhow::Error>) -> Self {
        Self { tasks: JoinSet::new(), stop, failed }
    }

    /// Starts a component; its end before the stop is reported as a failure.
    pub(super) fn start(&mut self, component: Component) -> Option<StartCondition> {
        let Component { name, run, on, wait, .. } = component;
        let reporter = FailureReporter { name, stop: self.stop.clone(), failed: self.failed.clone() };
        let supervised = async move {
            let ended = run.await;
            reporter.report(ended.err().unwrap_or_else(|| anyhow::anyhow!("it ended")));
        };
        self.tasks.spawn_on(supervised, &on.unwrap_or_else(Handle::current));
        wait
    }

    /// Whether none was started.
    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Stops all components; returns whether they ended in time.
    pub(super) async fn drain(&mut self, env: &Env, time_max: Duration) -> bool {
        self.stop.cancel();
        env.timeout(time_max, async { while self.tasks.join_next().await.is_some() {} }).await.is_ok()
    }

    /// Aborts the components that still run.
    pub(super) async fn abort(&mut self) {
        self.tasks.shutdown().await;
    }
}

/// Reports a component that ended before the stop, or panicked.
struct FailureReporter {
    name: &'static str,
    stop: CancellationToken,
    failed: mpsc::Sender<anyhow::Error>,
}

impl FailureReporter {
    fn report(&self, error: anyhow::Error) {
        if !self.stop.is_cancelled() {
            let emitted = format!("the {} ended; start again, with --log-level info to see why", self.name);
            // The first failure stops the process: later ones are ignored.
            let _ = self.failed.try_send(error.context(emitted));
        }
    }
}

impl Drop for FailureReporter {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.report(anyhow::anyhow!("it panicked"));
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
        let mut running = RunningComponents::new(stop.clone(), failed);
        let until = stop.clone();
        running.start(Component::new("patient one", async move {
            until.cancelled().await;
            Ok(())
        }));
        running.start(Component::new("hasty one", async { anyhow::bail!("out of boats") }));
        let emitted = format!("{:#}", failures.recv().await.unwrap());
        assert!(emitted.starts_with("the hasty one ended") && emitted.ends_with("out of boats"), "{emitted}");
        assert!(running.drain(&Env::real(), Duration::from_secs(10)).await);
        assert!(failures.try_recv().is_err(), "the patient one was asked to");
    }

    #[tokio::test]
    async fn a_panic_fails_the_whole() {
        let (failed, mut failures) = mpsc::channel(1);
        let mut running = RunningComponents::new(CancellationToken::new(), failed);
        running.start(Component::new("clumsy one", async { panic!("it was meant to") }));
        assert!(format!("{:#}", failures.recv().await.unwrap()).ends_with("it panicked"));
    }

    #[tokio::test]
    async fn the_failure_of_a_component_is_why_a_condition_is_not_met() {
        let (failed, mut failures) = mpsc::channel(1);
        let mut running = RunningComponents::new(CancellationToken::new(), failed);
        let (ready, waits) = tokio::sync::oneshot::channel::<()>();
        let component = Component::new("sunk one", async move {
            let _ready = ready;
            anyhow::bail!("its name is taken")
        });
        let component = component.ready("waiting for it", async move { Ok(waits.await?) });
        let condition = running.start(component).unwrap();
        let error = condition.met(&Env::real(), &mut failures).await.unwrap_err();
        assert!(format!("{error:#}").ends_with("its name is taken"), "{error:#}");
    }

    #[tokio::test]
    async fn components_that_do_not_end_are_cut_off() {
        let (failed, _failures) = mpsc::channel(1);
        let mut running = RunningComponents::new(CancellationToken::new(), failed);
        running.start(Component::new("stubborn one", std::future::pending()));
        assert!(!running.drain(&Env::real(), Duration::from_millis(10)).await);
        running.abort().await;
        assert!(running.drain(&Env::real(), Duration::from_millis(10)).await);
    }
}

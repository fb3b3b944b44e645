//! The running components of a process by stage: their start, their failures and their drain.

use std::future::poll_fn;
use std::sync::{Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use machinery_env::Env;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::component::{Component, StartCondition};
use crate::failure::{Ending, Failure, RoleError};
use crate::stage::{Stage, Stops};

/// The running components of a process.
#[derive(Debug)]
pub struct RunningStages {
    servers: RunningStage,
    components: RunningStage,
    pods: RunningStage,
    waits: Vec<StartCondition>,
    failures: Mutex<mpsc::Receiver<RoleError>>,
}

impl RunningStages {
    /// No component, with the tokens that stop those of each stage.
    #[must_use]
    pub fn new(stops: &Stops) -> Self {
        let (failed, failures) = mpsc::channel(1);
        let stage = |stop: &CancellationToken| RunningStage::new(stop.clone(), failed.clone());
        Self {
            servers: stage(&stops.servers),
            components: stage(&stops.components),
            pods: stage(&stops.pods),
            waits: Vec::new(),
            failures: Mutex::new(failures),
        }
    }

    /// Starts a component. Its end before the stop is a failure.
    pub fn start(&mut self, stage: Stage, component: Component) {
        let wait = self.stage(stage).start(component);
        self.waits.extend(wait);
    }

    /// Adds a condition of the whole.
    pub fn wait_for(&mut self, condition: StartCondition) {
        self.waits.push(condition);
    }

    /// Waits for the conditions, in the order of the start. `report` gets each one's description.
    ///
    /// # Errors
    /// The first component that failed, or the first condition that isn't met.
    pub async fn ready(&mut self, env: &Env, report: impl Fn(&str)) -> Result<(), RoleError> {
        let failures = self.failures.get_mut().unwrap_or_else(PoisonError::into_inner);
        for wait in self.waits.drain(..) {
            report(wait.what);
            wait.met(env, failures).await?;
        }
        Ok(())
    }

    /// Waits for a component that ended before the stop.
    pub async fn failed(&self) -> RoleError {
        poll_fn(|context| {
            let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
            match failures.poll_recv(context) {
                Poll::Ready(Some(error)) => Poll::Ready(error),
                _ => Poll::Pending,
            }
        })
        .await
    }

    /// Separates the stages, of which each is drained on its own.
    #[must_use]
    pub fn into_stages(self) -> (RunningStage, RunningStage, RunningStage) {
        (self.servers, self.components, self.pods)
    }

    fn stage(&mut self, stage: Stage) -> &mut RunningStage {
        match stage {
            Stage::Servers => &mut self.servers,
            Stage::Components => &mut self.components,
            Stage::Pods => &mut self.pods,
        }
    }
}

/// The running components of a stage.
#[derive(Debug)]
pub struct RunningStage {
    tasks: JoinSet<()>,
    stop: CancellationToken,
    failed: mpsc::Sender<RoleError>,
}

impl RunningStage {
    fn new(stop: CancellationToken, failed: mpsc::Sender<RoleError>) -> Self {
        Self { tasks: JoinSet::new(), stop, failed }
    }

    /// Starts a component; its end before the stop is reported as a failure.
    fn start(&mut self, component: Component) -> Option<StartCondition> {
        let Component { name, run, on, wait, .. } = component;
        let reporter = FailureReporter { name, stop: self.stop.clone(), failed: self.failed.clone() };
        let supervised = async move { reporter.report_end(run.await) };
        self.tasks.spawn_on(supervised, &on.unwrap_or_else(Handle::current));
        wait
    }

    /// Whether none was started.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Stops all components; returns whether they ended in time.
    pub async fn drain(&mut self, env: &Env, time_max: Duration) -> bool {
        self.stop.cancel();
        env.timeout(time_max, async { while self.tasks.join_next().await.is_some() {} }).await.is_ok()
    }

    /// Aborts the components that still run.
    pub async fn abort(&mut self) {
        self.tasks.shutdown().await;
    }
}

/// Reports a component that ended before the stop, or panicked.
struct FailureReporter {
    name: &'static str,
    stop: CancellationToken,
    failed: mpsc::Sender<RoleError>,
}

impl FailureReporter {
    fn report_end(&self, ended: Result<(), Failure>) {
        let name = self.name;
        self.report(match ended {
            Ok(()) => RoleError::Ended { name, source: Ending::Returned },
            Err(source) => RoleError::Failed { name, source },
        });
    }

    fn report(&self, error: RoleError) {
        if !self.stop.is_cancelled() {
            // The first failure stops the process: later ones are ignored.
            let _ = self.failed.try_send(error);
        }
    }
}

impl Drop for FailureReporter {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.report(RoleError::Ended { name: self.name, source: Ending::Panicked });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    fn stages() -> (RunningStages, Stops) {
        let stops = Stops::default();
        (RunningStages::new(&stops), stops)
    }

    fn failing(name: &'static str, why: &'static str) -> Component {
        Component::new(name, async move { Err(why) })
    }

    #[tokio::test]
    async fn a_component_that_ends_by_itself_fails_the_whole_and_one_that_is_stopped_does_not() {
        let (mut running, stops) = stages();
        let until = stops.components.clone();
        running.start(Stage::Components, Component::stopping("patient one", async move { until.cancelled().await }));
        running.start(Stage::Components, failing("hasty one", "out of boats"));
        let error = running.failed().await;
        assert!(error.to_string().starts_with("the hasty one ended"), "{error}");
        assert_eq!(error.source().unwrap().to_string(), "out of boats");
        let RunningStages { mut components, failures, .. } = running;
        assert!(components.drain(&Env::real(), Duration::from_secs(10)).await);
        let mut failures = failures.into_inner().unwrap();
        assert!(failures.try_recv().is_err(), "the patient one was asked to");
    }

    #[tokio::test]
    async fn a_panic_fails_the_whole() {
        let (mut running, _) = stages();
        running.start(Stage::Pods, Component::stopping("clumsy one", async { panic!("it was meant to") }));
        assert_eq!(running.failed().await.source().unwrap().to_string(), "it panicked");
    }

    #[tokio::test]
    async fn the_failure_of_a_component_is_why_a_condition_is_not_met() {
        let (mut running, _) = stages();
        let (ready, waits) = tokio::sync::oneshot::channel::<()>();
        let component = Component::new("sunk one", async move {
            let _ready = ready;
            Err("its name is taken")
        });
        running.start(Stage::Components, component.ready("waiting for it", waits));
        let reported = Mutex::new(Vec::new());
        let report = |what: &str| reported.lock().unwrap().push(what.to_owned());
        let error = running.ready(&Env::real(), report).await.unwrap_err();
        assert_eq!(error.source().unwrap().to_string(), "its name is taken");
        assert_eq!(*reported.lock().unwrap(), ["waiting for it"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_condition_that_is_not_met_fails_the_start() {
        let (mut running, _) = stages();
        let patient = Component::stopping("patient one", std::future::pending());
        running.start(Stage::Servers, patient.ready("waiting for it", async { Ok::<_, Failure>(()) }));
        running.wait_for(StartCondition::new("waiting for the rest", async { Err("too late") }));
        assert_eq!(running.ready(&Env::real(), |_| ()).await.unwrap_err().to_string(), "too late");
    }

    #[tokio::test]
    async fn components_that_do_not_end_are_cut_off() {
        let (mut running, stops) = stages();
        running.start(Stage::Servers, Component::stopping("stubborn one", std::future::pending()));
        let (mut servers, components, pods) = running.into_stages();
        assert!(components.is_empty() && pods.is_empty() && !servers.is_empty());
        assert!(!servers.drain(&Env::real(), Duration::from_millis(10)).await);
        assert!(stops.servers.is_cancelled() && !stops.components.is_cancelled());
        servers.abort().await;
        assert!(servers.drain(&Env::real(), Duration::from_millis(10)).await);
    }
}

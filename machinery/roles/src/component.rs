//! A component that is built and not started, and a condition that the start waits for.

use std::pin::Pin;
use std::time::Duration;

use machinery_env::Env;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::failure::{Failure, RoleError};
use crate::stage::Stage;

/// The time between the end of a component and its report.
const FAILURE_WITHIN: Duration = Duration::from_secs(1);

/// A component's task or wait.
pub(crate) type Work = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

fn work<E: Into<Failure>>(work: impl Future<Output = Result<(), E>> + Send + 'static) -> Work {
    Box::pin(async move { work.await.map_err(Into::into) })
}

/// A component that is built and not started.
pub struct Component {
    pub(crate) name: &'static str,
    pub(crate) run: Work,
    pub(crate) on: Option<Handle>,
    pub(crate) wait: Option<StartCondition>,
    stage: Option<Stage>,
}

impl Component {
    /// A component that runs until the stop. The process fails if it ends before.
    pub fn new<E: Into<Failure>>(
        name: &'static str,
        run: impl Future<Output = Result<(), E>> + Send + 'static,
    ) -> Self {
        Self { name, run: work(run), on: None, wait: None, stage: None }
    }

    /// A component without an end of its own: it runs until `stop`.
    pub fn until(stop: &CancellationToken, name: &'static str, run: impl Future<Output = ()> + Send + 'static) -> Self {
        let stop = stop.clone();
        Self::new(name, async move {
            stop.run_until_cancelled(run).await;
            Ok::<_, Failure>(())
        })
    }

    /// A component that returns after its stop, without an error.
    pub fn stopping(name: &'static str, run: impl Future<Output = ()> + Send + 'static) -> Self {
        Self::new(name, async move {
            run.await;
            Ok::<_, Failure>(())
        })
    }

    /// Runs it on other threads than those of the caller of the start.
    #[must_use]
    pub fn on(self, threads: Option<Handle>) -> Self {
        Self { on: threads, ..self }
    }

    /// Moves it to another stage than that of its role.
    #[must_use]
    pub fn in_stage(self, stage: Stage) -> Self {
        Self { stage: Some(stage), ..self }
    }

    /// Adds a condition that the start waits for. `what` is for people.
    #[must_use]
    pub fn ready<E: Into<Failure>>(
        self,
        what: &'static str,
        ready: impl Future<Output = Result<(), E>> + Send + 'static,
    ) -> Self {
        Self { wait: Some(StartCondition::new(what, ready)), ..self }
    }

    /// The name in error messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The stage, if it isn't the role's.
    #[must_use]
    pub fn stage(&self) -> Option<Stage> {
        self.stage
    }
}

/// A condition that the start waits for.
pub struct StartCondition {
    /// Description for people.
    pub what: &'static str,
    ready: Work,
}

impl StartCondition {
    /// A condition that holds when `ready` returns.
    pub fn new<E: Into<Failure>>(
        what: &'static str,
        ready: impl Future<Output = Result<(), E>> + Send + 'static,
    ) -> Self {
        Self { what, ready: work(ready) }
    }

    /// Waits for the condition.
    ///
    /// # Errors
    /// The failure of a component that ends before: it is the reason why the condition can't be met.
    pub(crate) async fn met(self, env: &Env, failures: &mut mpsc::Receiver<RoleError>) -> Result<(), RoleError> {
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
            _ => Err(RoleError::Unmet(unmet)),
        }
    }
}

impl std::fmt::Debug for StartCondition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StartCondition").field("what", &self.what).finish_non_exhaustive()
    }
}

//! Runs a command to its end and maps the end to an [`Outcome`] for the pod's status.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use wasmtime::component::Accessor;
use wasmtime::{Store, Trap};
use wasmtime_wasi::I32Exit;

use super::container::{Container, ContainerState, LiveInstance, with_advice};
use super::load::Pre;
use super::metered::MeteredFuture;
use super::panics;
use crate::bounds::growth::StoreLimiter;
use crate::host::state::{ComponentState, CoreState};
use runtime_api::{Admitted, Metering, Outcome, OutcomeReason, StopSignal};

impl Container {
    /// Runs the command on the guests' threads to its end, or until `stop` resolves. Dropping the future ends it too.
    pub async fn run(&self, stop: impl Future<Output = StopSignal> + Send + 'static) -> Outcome {
        self.run_admitted(self.admit().await, stop).await
    }

    /// Waits until the command may run: commands hold their resources for life, so their number is limited.
    pub async fn admit(&self) -> Admitted {
        let shared = &self.shared;
        Admitted::new(shared.admission.share.take(shared.loaded.weight).await)
    }

    /// As [`Container::run`], with an acquired admission.
    pub async fn run_admitted(
        &self,
        admitted: Admitted,
        stop: impl Future<Output = StopSignal> + Send + 'static,
    ) -> Outcome {
        let shared = self.shared.clone();
        let engine = shared.engine.clone();
        let guest = MeteredFuture::new(run(shared.clone(), admitted), shared.clone());
        let task = engine.guest_runtime().spawn(async move {
            tokio::select! {
                outcome = guest => outcome,
                signal = stop => Outcome::stopped(signal),
            }
        });
        let task = super::server::AbortOnDrop(task);
        match task.await {
            Ok(outcome) => outcome,
            Err(error) => Outcome::ended(134, OutcomeReason::Error, format!("the node ended the run: {error}")),
        }
    }
}

async fn run(shared: Arc<ContainerState>, _admitted: Admitted) -> Outcome {
    let _live = LiveInstance::new(&shared);
    match &*shared.pre {
        Pre::Core(pre) => {
            let mut store = match CoreState::store(&shared.guest) {
                Ok(store) => store,
                Err(error) => return refused(&shared, &error),
            };
            let result = async {
                let instance = pre.instantiate_async(&mut store).await?;
                let start = instance.get_typed_func::<(), ()>(&mut store, "_start")?;
                start.call_async(&mut store, ()).await
            }
            .await;
            count_fuel(&shared, &store);
            if result.is_err() {
                store.data_mut().count_handles();
            }
            settle(&shared, result.map(|()| 0), &store.data().limiter)
        }
        Pre::Command(pre) => {
            let mut store = match ComponentState::store(&shared.guest) {
                Ok(store) => store,
                Err(error) => return refused(&shared, &error),
            };
            let result = async {
                let command = pre.instantiate_async(&mut store).await?;
                command.wasi_cli_run().call_run(&mut store).await
            }
            .await;
            end_component(&shared, store, result)
        }
        Pre::ConcurrentCommand(pre) => {
            let mut store = match ComponentState::store(&shared.guest) {
                Ok(store) => store,
                Err(error) => return refused(&shared, &error),
            };
            let end = store.data().end_on_drop();
            let result = panics::as_errors(async {
                let command = pre.instantiate_async(&mut store).await?;
                let run = async move |accessor: &Accessor<ComponentState>| {
                    let ran = command.wasi_cli_run().call_run(accessor).await?;
                    // A task may go on after `run` has returned, as a thread of a process may.
                    poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
                    Ok(ran)
                };
                store.run_concurrent(run).await?
            })
            .await;
            drop(end);
            end_component(&shared, store, result)
        }
        Pre::Server(_) | Pre::Plugin(_) => {
            Outcome::ended(134, OutcomeReason::Error, "a container that serves was run as a command")
        }
    }
}

fn end_component(
    shared: &ContainerState,
    mut store: Store<ComponentState>,
    result: wasmtime::Result<Result<(), ()>>,
) -> Outcome {
    count_fuel(shared, &store);
    if result.is_err() {
        store.data_mut().count_handles();
    }
    settle(shared, result.map(|ran| i32::from(ran.is_err())), &store.data().limiter)
}

fn refused(shared: &ContainerState, error: &wasmtime::Error) -> Outcome {
    shared.log_error(error);
    Outcome::ended(134, OutcomeReason::Error, format!("{error:#}"))
}

pub(crate) fn count_fuel<T: 'static>(shared: &ContainerState, store: &Store<T>) -> Option<u64> {
    if shared.loaded.metering == Metering::Fuel
        && let Ok(left) = store.get_fuel()
    {
        let used = shared.limits.fuel.unwrap_or(u64::MAX).saturating_sub(left);
        shared.counters.fuel_used.fetch_add(used, Ordering::Relaxed);
        return Some(used);
    }
    None
}

fn settle(shared: &ContainerState, result: wasmtime::Result<i32>, limiter: &StoreLimiter) -> Outcome {
    let error = match result {
        Ok(code) => return Outcome::exit(code),
        Err(error) => error,
    };
    if let Some(exit) = error.downcast_ref::<I32Exit>() {
        return Outcome::exit(exit.0);
    }
    let counters = &shared.counters;
    let advice = shared.log_end(&error, limiter);
    if let Some(exceeded) = limiter.exceeded() {
        counters.memory.fetch_add(1, Ordering::Relaxed);
        return Outcome::ended(137, OutcomeReason::OomKilled, with_advice(exceeded.to_string(), advice));
    }
    if matches!(error.downcast_ref::<Trap>(), Some(Trap::OutOfFuel)) {
        counters.fuel.fetch_add(1, Ordering::Relaxed);
        let fuel = shared.limits.fuel.unwrap_or_default();
        return Outcome::ended(137, OutcomeReason::FuelExhausted, format!("all {fuel} units of fuel are used up"));
    }
    counters.trap.fetch_add(1, Ordering::Relaxed);
    Outcome::ended(134, OutcomeReason::Error, with_advice(error.root_cause().to_string(), advice))
}

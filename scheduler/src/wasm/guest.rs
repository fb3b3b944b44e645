//! A running plugin: its instance, the nodes that the instance has cached, and its back-off after repeated failures.
//! Calls run one after the other, each with a timeout.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use machinery_env::Env;
use tokio::sync::Mutex;

use super::{CallError, CallPoint, Candidate, Failure, PluginHost, PluginMetrics, PluginModule, WasmPlugin, wire};

/// The number of consecutive failures before the back-off.
const FAILURES_MAX: u32 = 3;
/// The first back-off; doubles.
const BACK_OFF_FIRST: Duration = Duration::from_secs(1);
/// The maximum back-off.
const BACK_OFF_MAX: Duration = Duration::from_secs(60);

/// A plugin and its instance.
pub struct Guest {
    pub plugin: Arc<WasmPlugin>,
    host: Arc<dyn PluginHost>,
    env: Env,
    metrics: Arc<dyn PluginMetrics>,
    state: Mutex<GuestState>,
}

#[derive(Default)]
struct GuestState {
    module: Option<Arc<dyn PluginModule>>,
    instance: Option<Instance>,
    /// The number of instances so far.
    opened: u64,
    /// Consecutive failures.
    failures: u32,
    backed_off_until: Duration,
    last: String,
}

struct Instance {
    session: String,
    /// The handle of the instance's resource.
    handle: String,
    /// The cached nodes, with their resource versions.
    cached_nodes: HashMap<String, String>,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("plugin", &self.plugin.name).finish_non_exhaustive()
    }
}

/// The arguments of a call, and the parser of its answer.
struct Call<'a, T> {
    at: CallPoint,
    pod: &'a str,
    candidates: &'a [&'a Candidate],
    /// The number of nodes in the cluster.
    nodes: usize,
    read: fn(&[u8], usize) -> Result<T, Failure>,
}

impl Guest {
    /// Loads nothing yet.
    #[must_use]
    pub fn new(plugin: Arc<WasmPlugin>, host: Arc<dyn PluginHost>, env: Env, metrics: Arc<dyn PluginMetrics>) -> Self {
        Self { plugin, host, env, metrics, state: Mutex::default() }
    }

    /// Loads the plugin in advance, so that the first pod doesn't wait for it.
    pub async fn preload(&self) {
        let mut state = self.state.lock().await;
        if let Err(failure) = self.module(&mut state).await {
            tracing::warn!(
                plugin = self.plugin.name,
                why = failure.why,
                "a scheduler plugin failed to load; the next call retries"
            );
        }
    }

    /// The rejected candidates for a pod. `nodes` is the number of nodes in the cluster.
    ///
    /// # Errors
    /// The call failed.
    pub async fn filter(
        &self,
        pod: &str,
        candidates: &[&Candidate],
        nodes: usize,
    ) -> Result<Vec<wire::Refusal>, Failure> {
        let call = Call { at: CallPoint::Filter, pod, candidates, nodes, read: wire::refusals };
        self.answer(&call, |refusals| if refusals.is_empty() { "Success" } else { "Unschedulable" }).await
    }

    /// The scores of the candidates.
    ///
    /// # Errors
    /// The call failed.
    pub async fn score(&self, pod: &str, candidates: &[&Candidate], nodes: usize) -> Result<Vec<i64>, Failure> {
        let call = Call { at: CallPoint::Score, pod, candidates, nodes, read: wire::scores };
        self.answer(&call, |_| "Success").await
    }

    async fn answer<T>(&self, call: &Call<'_, T>, status: fn(&T) -> &'static str) -> Result<T, Failure> {
        let mut state = self.state.lock().await;
        let begun = self.env.elapsed();
        if begun < state.backed_off_until {
            let why =
                format!("it is left alone for a while: {} failures in a row, the last: {}", state.failures, state.last);
            return Err(Failure::new("resting", why));
        }
        let mut answer = self.attempt(&mut state, call).await;
        // An idle instance may have ended.
        if let Err(CallError::Arguments(_)) = answer {
            state.instance = None;
            answer = self.attempt(&mut state, call).await;
        }
        let answer = answer.map_err(|error| match error {
            CallError::Failed(failure) => failure,
            CallError::Arguments(why) => Failure::new("load", format!("it rejects its arguments: {why}")),
        });
        let now = self.env.elapsed();
        let took = now.saturating_sub(begun);
        self.metrics.observe_call(self.plugin.name, call.at, answer.as_ref().map_or("Error", status), took);
        match &answer {
            Ok(_) => state.failures = 0,
            Err(failure) => {
                self.metrics.observe_failure(self.plugin.name, failure.kind);
                state.fail(failure, now);
            }
        }
        answer
    }

    async fn module(&self, state: &mut GuestState) -> Result<Arc<dyn PluginModule>, Failure> {
        if let Some(module) = &state.module {
            return Ok(module.clone());
        }
        let loaded = self.host.load(&self.plugin).await.map_err(|why| Failure::new("load", why))?;
        state.module = Some(loaded.clone());
        Ok(loaded)
    }

    async fn attempt<T>(&self, state: &mut GuestState, call: &Call<'_, T>) -> Result<T, CallError> {
        let module = self.module(state).await?;
        // The instance is dropped if the call fails, or if the caller is cancelled, so that no other call uses it.
        let mut instance = match state.instance.take() {
            Some(instance) => instance,
            None => {
                let session = format!("{}-{}", self.plugin.name, state.opened);
                let opened = module.call(&session, wire::OPEN, wire::open(&self.plugin.config)).await?;
                let handle = wire::opened(&opened)?;
                state.opened += 1;
                Instance { session, handle, cached_nodes: HashMap::new() }
            }
        };
        let function = match call.at {
            CallPoint::Filter => wire::FILTER,
            CallPoint::Score => wire::SCORE,
        };
        instance.send_nodes(&*module, call.candidates, call.nodes).await?;
        let request = wire::request(&instance.handle, call.pod, call.candidates);
        let answer = module.call(&instance.session, function, request).await?;
        state.instance = Some(instance);
        Ok((call.read)(&answer, call.candidates.len())?)
    }
}

impl From<Failure> for CallError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Instance {
    /// Sends the candidates that the instance doesn't have in their current version.
    async fn send_nodes(
        &mut self,
        module: &dyn PluginModule,
        candidates: &[&Candidate],
        nodes: usize,
    ) -> Result<(), CallError> {
        let version = |candidate: &Candidate| candidate.node.metadata.resource_version.clone().unwrap_or_default();
        let unknown = |candidate: &&&Candidate| self.cached_nodes.get(candidate.name()) != Some(&version(candidate));
        let news: Vec<&Candidate> = candidates.iter().filter(unknown).copied().collect();
        let mut unsent = &news[..];
        while !unsent.is_empty() {
            let (call, sent) = wire::set_nodes(&self.handle, unsent);
            module.call(&self.session, wire::SET_NODES, call).await?;
            unsent = &unsent[sent..];
        }
        self.cached_nodes.extend(news.iter().map(|candidate| (candidate.name().to_owned(), version(candidate))));
        // The instance has cached more nodes than exist: some are gone.
        if self.cached_nodes.len() > nodes.max(candidates.len()) {
            let candidates: std::collections::HashSet<&str> =
                candidates.iter().map(|candidate| candidate.name()).collect();
            let gone: Vec<String> =
                self.cached_nodes.keys().filter(|name| !candidates.contains(name.as_str())).cloned().collect();
            module.call(&self.session, wire::REMOVE_NODES, wire::remove_nodes(&self.handle, &gone)).await?;
            self.cached_nodes.retain(|name, _| candidates.contains(name.as_str()));
        }
        Ok(())
    }
}

impl GuestState {
    fn fail(&mut self, failure: &Failure, now: Duration) {
        self.failures = self.failures.saturating_add(1);
        self.last.clone_from(&failure.why);
        if let Some(more) = self.failures.checked_sub(FAILURES_MAX) {
            self.backed_off_until = now + BACK_OFF_FIRST.saturating_mul(1 << more.min(16)).min(BACK_OFF_MAX);
        }
    }
}

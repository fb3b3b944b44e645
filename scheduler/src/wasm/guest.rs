//! One plugin as it runs: the instance, the nodes that it was told of, and the rest that it gets when it keeps failing. Calls
//! come one after the other; each has its time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use machinery_env::Env;
use tokio::sync::Mutex;

use super::{At, CallError, Candidate, Failure, Figures, PluginHost, PluginModule, WasmPlugin, wire};

/// So many failures in a row, and it is left alone for a while.
const FAILURES_MAX: u32 = 3;
/// The first while; doubles.
const REST: Duration = Duration::from_secs(1);
/// The longest.
const REST_MAX: Duration = Duration::from_secs(60);

/// See the module.
pub struct Guest {
    /// What it is.
    pub plugin: Arc<WasmPlugin>,
    host: Arc<dyn PluginHost>,
    env: Env,
    figures: Arc<dyn Figures>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    module: Option<Arc<dyn PluginModule>>,
    instance: Option<Instance>,
    /// Instances that there were.
    opened: u64,
    /// In a row.
    failures: u32,
    rests_until: Duration,
    last: String,
}

struct Instance {
    session: String,
    /// What stands for it in calls.
    handle: String,
    /// The nodes that it knows, and in which version.
    known: HashMap<String, String>,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("plugin", &self.plugin.name).finish_non_exhaustive()
    }
}

/// What a plugin is asked, and how its answer is read.
struct Call<'a, T> {
    at: At,
    pod: &'a str,
    candidates: &'a [&'a Candidate],
    /// Nodes of the whole cluster.
    nodes: usize,
    read: fn(&[u8], usize) -> Result<T, Failure>,
}

impl Guest {
    /// Nothing is loaded yet.
    #[must_use]
    pub fn new(plugin: Arc<WasmPlugin>, host: Arc<dyn PluginHost>, env: Env, figures: Arc<dyn Figures>) -> Self {
        Self { plugin, host, env, figures, state: Mutex::default() }
    }

    /// Loads it, so that the first pod need not wait for that.
    pub async fn warm(&self) {
        let mut state = self.state.lock().await;
        if let Err(failure) = self.module(&mut state).await {
            tracing::warn!(
                plugin = self.plugin.name,
                why = failure.why,
                "a scheduler plugin can't be loaded; pods try again"
            );
        }
    }

    /// Which nodes won't do for a pod. `nodes` is how many the cluster has.
    ///
    /// # Errors
    /// It failed.
    pub async fn filter(
        &self,
        pod: &str,
        candidates: &[&Candidate],
        nodes: usize,
    ) -> Result<Vec<wire::Refusal>, Failure> {
        let call = Call { at: At::Filter, pod, candidates, nodes, read: wire::refusals };
        self.answer(&call, |refusals| if refusals.is_empty() { "Success" } else { "Unschedulable" }).await
    }

    /// How good they are.
    ///
    /// # Errors
    /// It failed.
    pub async fn score(&self, pod: &str, candidates: &[&Candidate], nodes: usize) -> Result<Vec<i64>, Failure> {
        let call = Call { at: At::Score, pod, candidates, nodes, read: wire::scores };
        self.answer(&call, |_| "Success").await
    }

    async fn answer<T>(&self, call: &Call<'_, T>, status: fn(&T) -> &'static str) -> Result<T, Failure> {
        let mut state = self.state.lock().await;
        let begun = self.env.elapsed();
        if begun < state.rests_until {
            let why =
                format!("it is left alone for a while: {} failures in a row, the last: {}", state.failures, state.last);
            return Err(Failure::new("resting", why));
        }
        let mut answer = self.attempt(&mut state, call).await;
        // The instance may have ended for want of calls.
        if let Err(CallError::Arguments(_)) = answer {
            state.instance = None;
            answer = self.attempt(&mut state, call).await;
        }
        let answer = answer.map_err(|error| match error {
            CallError::Failed(failure) => failure,
            CallError::Arguments(why) => Failure::new("load", format!("it doesn't take what it is asked: {why}")),
        });
        let now = self.env.elapsed();
        let took = now.saturating_sub(begun);
        self.figures.asked(self.plugin.name, call.at, answer.as_ref().map_or("Error", status), took);
        match &answer {
            Ok(_) => state.failures = 0,
            Err(failure) => {
                self.figures.failed(self.plugin.name, failure.kind);
                state.fail(failure, now);
            }
        }
        answer
    }

    async fn module(&self, state: &mut State) -> Result<Arc<dyn PluginModule>, Failure> {
        if let Some(module) = &state.module {
            return Ok(module.clone());
        }
        let loaded = self.host.load(&self.plugin).await.map_err(|why| Failure::new("load", why))?;
        state.module = Some(loaded.clone());
        Ok(loaded)
    }

    async fn attempt<T>(&self, state: &mut State, call: &Call<'_, T>) -> Result<T, CallError> {
        let module = self.module(state).await?;
        // Whatever ends this early, even that nobody waits for it any more, leaves no instance that others would ask.
        let mut instance = match state.instance.take() {
            Some(instance) => instance,
            None => {
                let session = format!("{}-{}", self.plugin.name, state.opened);
                let opened = module.call(&session, wire::OPEN, wire::open(&self.plugin.config)).await?;
                let handle = wire::opened(&opened)?;
                state.opened += 1;
                Instance { session, handle, known: HashMap::new() }
            }
        };
        let function = match call.at {
            At::Filter => wire::FILTER,
            At::Score => wire::SCORE,
        };
        instance.tell(&*module, call.candidates, call.nodes).await?;
        let question = wire::question(&instance.handle, call.pod, call.candidates);
        let answer = module.call(&instance.session, function, question).await?;
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
    /// Tells it of the nodes that it doesn't know as they are.
    async fn tell(&mut self, module: &dyn PluginModule, asked: &[&Candidate], nodes: usize) -> Result<(), CallError> {
        let version = |candidate: &Candidate| candidate.node.metadata.resource_version.clone().unwrap_or_default();
        let unknown = |candidate: &&&Candidate| self.known.get(candidate.name()) != Some(&version(candidate));
        let news: Vec<&Candidate> = asked.iter().filter(unknown).copied().collect();
        let mut untold = &news[..];
        while !untold.is_empty() {
            let (call, told) = wire::set_nodes(&self.handle, untold);
            module.call(&self.session, wire::SET_NODES, call).await?;
            untold = &untold[told..];
        }
        self.known.extend(news.iter().map(|candidate| (candidate.name().to_owned(), version(candidate))));
        // It knows more than there are: some are gone.
        if self.known.len() > nodes.max(asked.len()) {
            let asked: std::collections::HashSet<&str> = asked.iter().map(|candidate| candidate.name()).collect();
            let gone: Vec<String> = self.known.keys().filter(|name| !asked.contains(name.as_str())).cloned().collect();
            module.call(&self.session, wire::REMOVE_NODES, wire::remove_nodes(&self.handle, &gone)).await?;
            self.known.retain(|name, _| asked.contains(name.as_str()));
        }
        Ok(())
    }
}

impl State {
    fn fail(&mut self, failure: &Failure, now: Duration) {
        self.failures = self.failures.saturating_add(1);
        self.last.clone_from(&failure.why);
        if let Some(more) = self.failures.checked_sub(FAILURES_MAX) {
            self.rests_until = now + REST.saturating_mul(1 << more.min(16)).min(REST_MAX);
        }
    }
}

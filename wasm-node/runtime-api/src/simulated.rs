//! A container runtime for tests: a module is a script with durations and results. It waits by an [`Env`]'s timers alone, so
//! a paused clock makes every run the same; there are no threads and no randomness.
//!
//! A script is a line of words. `command exit=3 after=250` ends with code 3 after 250 ms; without `after=` it runs until it is
//! stopped. `server status=204 takes=10` responds to each request with 204 after 10 ms, and so does `plugin`. `compiles=N` is
//! the compile time in ms; `broken` and `no-capacity` are the result of a trial instance; `memory=N` is the reported memory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use machinery_env::Env;
use machinery_serve::net::{Body, CallRejected, Origin, Serve, empty_body};
use tokio::sync::Notify;

use super::ledger::Ledger;
use super::{
    Admitted, Container, ContainerSpec, ExecError, ExecSpec, KeyvalueOwner, Kind, Limits, LoadError, Metering, Module,
    Outcome, Runtime, Server, Session, Stats, StdStream, StopSignal, TrialOutcome,
};

/// A parsed script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    kind: Kind,
    exit: i32,
    after: Option<Duration>,
    status: StatusCode,
    takes: Duration,
    compiles: Duration,
    trial: TrialOutcome,
    memory_bytes: u64,
    says: Option<String>,
}

impl Script {
    /// Parses a script.
    ///
    /// # Errors
    /// An unknown word.
    pub fn parse(text: &str) -> Result<Self, LoadError> {
        let mut words = text.split_whitespace();
        let kind = match words.next() {
            Some("command") => Kind::Command,
            Some("server") => Kind::HttpServer,
            Some("plugin") => Kind::Plugin,
            other => return Err(LoadError::NotWasm(format!("a simulated module does not begin with {other:?}"))),
        };
        let mut script = Self {
            kind,
            exit: 0,
            after: None,
            status: StatusCode::OK,
            takes: Duration::ZERO,
            compiles: Duration::ZERO,
            trial: TrialOutcome::Sound,
            memory_bytes: 0,
            says: None,
        };
        for word in words {
            let bad = || LoadError::NotWasm(format!("a simulated module does not know {word:?}"));
            match word.split_once('=') {
                Some(("exit", code)) => script.exit = code.parse().map_err(|_| bad())?,
                Some(("after", millis)) => script.after = Some(parse_millis(millis).ok_or_else(bad)?),
                Some(("takes", millis)) => script.takes = parse_millis(millis).ok_or_else(bad)?,
                Some(("compiles", millis)) => script.compiles = parse_millis(millis).ok_or_else(bad)?,
                Some(("status", status)) => script.status = status.parse().map_err(|_| bad())?,
                Some(("memory", bytes)) => script.memory_bytes = bytes.parse().map_err(|_| bad())?,
                Some(("says", text)) => script.says = Some(text.to_owned()),
                None if word == "broken" => script.trial = TrialOutcome::Broken("the script says so".into()),
                None if word == "no-capacity" => script.trial = TrialOutcome::NoCapacity,
                _ => return Err(bad()),
            }
        }
        Ok(script)
    }
}

fn parse_millis(text: &str) -> Option<Duration> {
    text.parse().ok().map(Duration::from_millis)
}

/// The simulated runtime.
pub struct SimulatedRuntime {
    env: Env,
    ledger: Arc<Ledger>,
    /// Modules by digest.
    compiled: Mutex<BTreeMap<String, u64>>,
    /// Owners of key-value data.
    pub keyvalue: Mutex<Vec<KeyvalueOwner>>,
}

impl SimulatedRuntime {
    /// Creates a runtime without modules.
    #[must_use]
    pub fn new(env: Env) -> Self {
        Self { env, ledger: Ledger::node(), compiled: Mutex::default(), keyvalue: Mutex::default() }
    }
}

#[async_trait]
impl Runtime for SimulatedRuntime {
    fn version(&self) -> (&'static str, &'static str) {
        ("simulated", "1")
    }

    fn optional_interfaces(&self) -> Vec<&'static str> {
        Vec::new()
    }

    async fn compile(&self, digest: &str, file: &Path, _: Metering, _: &str) -> Result<(), LoadError> {
        let text = std::fs::read_to_string(file).map_err(LoadError::io("reading the module"))?;
        let script = Script::parse(&text)?;
        if self.compiled.lock().unwrap_or_else(PoisonError::into_inner).contains_key(digest) {
            return Ok(());
        }
        self.env.sleep(script.compiles).await;
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        compiled.insert(digest.to_owned(), text.len() as u64);
        Ok(())
    }

    async fn compile_when_idle(&self, digest: &str, file: &Path, metering: Metering) -> Result<(), LoadError> {
        self.compile(digest, file, metering, "").await
    }

    fn compile_time_max(&self) -> Option<Duration> {
        Some(Duration::from_secs(120))
    }

    async fn load(&self, digest: &str, file: &Path, of: Metering, for_: &str) -> Result<Arc<dyn Module>, LoadError> {
        self.compile(digest, file, of, for_).await?;
        let text = std::fs::read_to_string(file).map_err(LoadError::io("reading the module"))?;
        let (script, env) = (Script::parse(&text)?, self.env.clone());
        Ok(Arc::new(ScriptedModule { digest: digest.to_owned(), script, env }))
    }

    /// Whatever its kind, its arguments are its script.
    async fn load_command(
        &self,
        digest: &str,
        _: &Path,
        _: Metering,
        _: &str,
    ) -> Result<Option<Arc<dyn Module>>, LoadError> {
        let (script, env) = (Script::parse("command")?, self.env.clone());
        Ok(Some(Arc::new(ScriptedModule { digest: digest.to_owned(), script, env })))
    }

    fn compiled(&self) -> std::io::Result<BTreeMap<String, u64>> {
        Ok(self.compiled.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn sweep(&self, in_use: &dyn Fn(&str) -> bool) -> std::io::Result<u64> {
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let before: u64 = compiled.values().sum();
        compiled.retain(|digest, _| in_use(digest));
        Ok(before - compiled.values().sum::<u64>())
    }

    fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    fn is_keyvalue_shared(&self) -> bool {
        false
    }

    async fn keyvalue_owners(&self, cluster: Option<&str>) -> std::io::Result<Vec<KeyvalueOwner>> {
        let known = self.keyvalue.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(known.iter().filter(|owner| owner.cluster.as_deref() == cluster).cloned().collect())
    }

    async fn remove_keyvalue(&self, owner: &KeyvalueOwner) -> std::io::Result<()> {
        self.keyvalue.lock().unwrap_or_else(PoisonError::into_inner).retain(|known| known != owner);
        Ok(())
    }
}

struct ScriptedModule {
    digest: String,
    script: Script,
    env: Env,
}

impl Module for ScriptedModule {
    fn digest(&self) -> &str {
        &self.digest
    }

    fn kind(&self) -> Kind {
        self.script.kind
    }

    fn container(&self, spec: ContainerSpec) -> Result<Arc<dyn Container>, LoadError> {
        Ok(Arc::new(SimulatedContainer(Arc::new(SimulatedState {
            script: self.script.clone(),
            env: self.env.clone(),
            spec,
            started: AtomicU64::new(0),
            live: AtomicUsize::new(0),
            requests: AtomicU64::new(0),
            changed: Notify::new(),
            shut: Notify::new(),
            is_shut: std::sync::atomic::AtomicBool::new(false),
        }))))
    }
}

struct SimulatedState {
    script: Script,
    env: Env,
    spec: ContainerSpec,
    started: AtomicU64,
    live: AtomicUsize,
    requests: AtomicU64,
    changed: Notify,
    shut: Notify,
    is_shut: std::sync::atomic::AtomicBool,
}

/// A live instance.
struct LiveInstance<'a>(&'a SimulatedState);

impl<'a> LiveInstance<'a> {
    fn begin(inner: &'a SimulatedState) -> Self {
        inner.started.fetch_add(1, Ordering::Relaxed);
        inner.live.fetch_add(1, Ordering::AcqRel);
        if let Some(says) = &inner.script.says {
            inner.spec.log.write(StdStream::Stdout, format!("{says}\n").as_bytes());
        }
        Self(inner)
    }
}

impl Drop for LiveInstance<'_> {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.notify_waiters();
    }
}

/// A container and its server.
#[derive(Clone)]
struct SimulatedContainer(Arc<SimulatedState>);

impl std::fmt::Debug for SimulatedContainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Simulated").field("name", &self.0.spec.name).field("script", &self.0.script).finish()
    }
}

#[async_trait]
impl Container for SimulatedContainer {
    fn kind(&self) -> Kind {
        self.0.script.kind
    }

    fn stats(&self) -> Stats {
        let live = self.0.live.load(Ordering::Acquire) as u64;
        Stats {
            instances_started: self.0.started.load(Ordering::Relaxed),
            instances_live: live,
            memory_bytes: live * self.0.script.memory_bytes,
            requests: self.0.requests.load(Ordering::Relaxed),
            ..Stats::default()
        }
    }

    // Nothing runs, so there is nothing to limit.
    fn resize(&self, _: &Limits) {}

    fn broken(&self) -> Option<String> {
        match &self.0.script.trial {
            TrialOutcome::Broken(why) => Some(why.clone()),
            TrialOutcome::Sound | TrialOutcome::NoCapacity => None,
        }
    }

    async fn admit(&self) -> Admitted {
        Admitted::new(())
    }

    async fn run(&self, _admitted: Admitted, stop: BoxFuture<'static, StopSignal>) -> Outcome {
        let _live = LiveInstance::begin(&self.0);
        run_script(&self.0.env, &self.0.script, stop).await
    }

    fn exec(&self, _: &Arc<dyn Module>, spec: ExecSpec) -> Result<Box<dyn Session>, ExecError> {
        let words = spec.argv.get(1..).unwrap_or_default();
        let script = Script::parse(&format!("command {}", words.join(" ")))?;
        Ok(Box::new(ScriptedSession { script, env: self.0.env.clone(), spec }))
    }

    fn serve(&self) -> Result<Arc<dyn Server>, LoadError> {
        match self.0.script.kind {
            Kind::HttpServer | Kind::Plugin => Ok(Arc::new(self.clone())),
            Kind::Command => Err(LoadError::Unsupported("the module is a command, not an HTTP server".into())),
        }
    }

    async fn try_instantiate(&self) -> TrialOutcome {
        self.0.script.trial.clone()
    }
}

/// A command beside a container: `NAME exit=1 after=10 says=x` ends with 1 and writes `x` to its stdout.
struct ScriptedSession {
    script: Script,
    env: Env,
    spec: ExecSpec,
}

#[async_trait]
impl Session for ScriptedSession {
    async fn run(self: Box<Self>, stop: BoxFuture<'static, StopSignal>) -> Outcome {
        if let (Some(says), Some(stdout)) = (&self.script.says, &self.spec.stdio.stdout) {
            let _ = stdout.write(format!("{says}\n").into());
        }
        run_script(&self.env, &self.script, stop).await
    }
}

/// Runs a command to its end by its script, or by `stop`.
async fn run_script(env: &Env, script: &Script, stop: BoxFuture<'static, StopSignal>) -> Outcome {
    let ends = async {
        match script.after {
            Some(after) => env.sleep(after).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = ends => Outcome::exit(script.exit),
        signal = stop => Outcome::stopped(signal),
    }
}

#[async_trait]
impl Serve for SimulatedContainer {
    async fn http(&self, _: &Origin, request: Request<Body>) -> Result<Response<Body>, CallRejected<Request<Body>>> {
        // Registered before the check, so that no shutdown is missed.
        let shut = self.0.shut.notified();
        if self.0.is_shut.load(Ordering::Acquire) {
            return Err(CallRejected::gone(request));
        }
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        let _live = LiveInstance::begin(&self.0);
        let mut response = Response::new(empty_body());
        *response.status_mut() = tokio::select! {
            () = self.0.env.sleep(self.0.script.takes) => self.0.script.status,
            () = shut => StatusCode::SERVICE_UNAVAILABLE,
        };
        Ok(response)
    }
}

#[async_trait]
impl Server for SimulatedContainer {
    async fn drained(&self) {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.0.live.load(Ordering::Acquire) == 0 {
                return;
            }
            changed.await;
        }
    }

    fn shut(&self) {
        self.0.is_shut.store(true, Ordering::Release);
        self.0.shut.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use machinery_serve::net::{Caller, Peer};

    use super::*;
    use crate::{Grants, LogSink};

    struct NoLog;

    impl LogSink for NoLog {
        fn write(&self, _: StdStream, _: &[u8]) {}
    }

    async fn container(script: &str) -> Result<Arc<dyn Container>, LoadError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m");
        std::fs::write(&file, script).unwrap();
        let runtime = SimulatedRuntime::new(Env::real());
        let module = runtime.load("sha256:0", &file, Metering::Epochs, "default").await?;
        module.container(ContainerSpec {
            name: "default/p/c".into(),
            argv: Vec::new(),
            env: Vec::new(),
            cwd: None,
            preopens: Vec::new(),
            limits: Limits::default(),
            grants: Grants::default(),
            imports: None,
            config: None,
            keyvalue: None,
            stdin: None,
            terminal: false,
            log: Arc::new(NoLog),
            pod: Ledger::pod(runtime.ledger()),
            pod_cpu: None,
            memory_files: None,
            quotas: Vec::new(),
            caller: Caller {
                node: "n".into(),
                namespace: "default".into(),
                pod: "p".into(),
                ip: None,
                names: Arc::default(),
            },
            dial: None,
            network: None,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn commands_end_by_their_scripts() {
        let env = Env::real();
        let one = container("command exit=3 after=250").await.unwrap();
        let before = env.instant();
        let outcome = one.run(one.admit().await, Box::pin(std::future::pending())).await;
        assert_eq!((outcome.exit_code, env.instant() - before), (3, Duration::from_millis(250)));
        let endless = container("command").await.unwrap();
        let stop = Box::pin(async move {
            env.sleep(Duration::from_secs(5)).await;
            StopSignal::Terminate
        });
        assert_eq!(endless.run(endless.admit().await, stop).await.exit_code, 143);
        assert_eq!((endless.stats().instances_started, endless.stats().instances_live), (1, 0));
        for bad in ["", "daemon", "command exit=x", "server nonsense"] {
            assert!(container(bad).await.is_err(), "{bad}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn servers_answer_drain_and_shut() {
        let env = Env::real();
        let one = container("server status=204 takes=1000").await.unwrap();
        let server = one.serve().unwrap();
        let origin = Origin { peer: Peer::Node, local: SocketAddr::from(([127, 0, 0, 1], 80)), via: None };
        let request = || {
            let body: Body = empty_body();
            Request::get("http://p/").body(body).unwrap()
        };
        let ask = || async { server.http(&origin, request()).await.map(|response| response.status().as_u16()) };
        let drained = async {
            env.sleep(Duration::from_millis(1)).await;
            server.drained().await;
            env.instant()
        };
        let before = env.instant();
        let (status, at) = tokio::join!(ask(), drained);
        assert_eq!((status.unwrap(), at - before), (204, Duration::from_secs(1)));
        let cut = async {
            env.sleep(Duration::from_millis(1)).await;
            server.shut();
        };
        let (status, ()) = tokio::join!(ask(), cut);
        assert_eq!(status.unwrap(), 503);
        assert!(matches!(ask().await, Err(CallRejected::Gone(_))));
    }
}

//! Runs the scheduler's plugins that are WebAssembly components: each is a container of its own without a pod, with no files, no
//! network and no environment. Docs: docs/scheduler-plugins.md.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use machinery_api::names::REASON_HEADER;
use machinery_env::Env;
use machinery_serve::net::{Caller, Origin, Peer, PodNames};
use oci_registry::blobs;
use runtime_api::{
    ContainerSpec, Grants, Limits, LogSink, MODULE_BYTES_MAX, Metering, NodeCall, Runtime, Server, StdStream,
};
use scheduler::plugins::Profile;
use scheduler::wasm::wire::{INTERFACE, shown};
use scheduler::wasm::{CallError, Failure, PluginHost, PluginModule, WasmPlugin};
use tempfile::{NamedTempFile, TempDir};
use wasm_runtime::engine::{CompileProcess, Engine, EngineConfig, GuestThreads, inspect};

use crate::config::GuestsConfig;

/// By whose share of compilers and places they run.
const NAMESPACE: &str = "kube-system";
/// Characters of a guest's own words that are kept of a call.
const WORDS_MAX: usize = 1024;
/// Lines of a plugin that the log takes in a second.
const LINES_MAX: u32 = 20;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Plugins {
    engine: Engine,
    env: Env,
    /// What is compiled, where no node keeps that.
    _folder: Option<TempDir>,
}

impl Plugins {
    /// On the engine of a process that has one.
    pub(crate) fn on(engine: Engine, env: &Env) -> Arc<dyn PluginHost> {
        Arc::new(Self { engine, env: env.clone(), _folder: None })
    }

    /// Those of some profiles, with an engine of their own; none where there are none.
    ///
    /// # Errors
    /// As [`alone`](Self::alone).
    pub(crate) fn of(
        profiles: &[Profile],
        guests: GuestsConfig,
        env: &Env,
    ) -> anyhow::Result<Option<Arc<dyn PluginHost>>> {
        let plugins: Vec<_> = profiles.iter().flat_map(|profile| profile.wasm.clone()).collect();
        if plugins.is_empty() { Ok(None) } else { Self::alone(&plugins, guests, env).map(Some) }
    }

    /// With an engine of their own.
    ///
    /// # Errors
    /// The system gives no threads or no folder.
    pub(crate) fn alone(
        plugins: &[Arc<WasmPlugin>],
        guests: GuestsConfig,
        env: &Env,
    ) -> anyhow::Result<Arc<dyn PluginHost>> {
        let folder = tempfile::tempdir().context("cannot make a folder for compiled plugins")?;
        let config = EngineConfig {
            cache_dir: folder.path().join("compiled"),
            memory_max_bytes: plugins.iter().map(|plugin| plugin.memory_bytes).sum(),
            compile_process: Some(CompileProcess::current().context("cannot find this program's file")?),
            compile_bounds: guests.compile,
            guest_bounds: guests.instance,
            keyvalue_dir: folder.path().join("keyvalue"),
        };
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let threads = GuestThreads::start(cores, env).context("cannot start the plugins' threads")?;
        let engine = Engine::new(config, threads, env.clone())?;
        Ok(Arc::new(Self { engine, env: env.clone(), _folder: Some(folder) }))
    }

    async fn load(&self, plugin: &WasmPlugin) -> Result<Arc<dyn PluginModule>, String> {
        let path = plugin.module.clone();
        let read = tokio::task::spawn_blocking(move || {
            let bytes = read(&path)?;
            // What is compiled under a digest has that digest, whatever becomes of the file.
            let mut copy = NamedTempFile::new().map_err(|error| error.to_string())?;
            copy.write_all(&bytes).map_err(|error| error.to_string())?;
            Ok::<_, String>((blobs::digest(&bytes), copy))
        });
        let (digest, copy) = read.await.map_err(|error| error.to_string())??;
        let metering = if plugin.fuel.is_some() { Metering::Fuel } else { Metering::Epochs };
        let module = Runtime::load(&self.engine, &digest, copy.path(), metering, NAMESPACE).await;
        let module = module.map_err(|error| error.to_string())?;
        let words = Arc::new(Words { plugin: plugin.name, env: self.env.clone(), said: Mutex::default() });
        let container = module.container(self.spec(plugin, words.clone())).map_err(|error| error.to_string())?;
        let server = container.serve().map_err(|error| error.to_string())?;
        Ok(Arc::new(Module { server, words, plugin: plugin.clone() }))
    }

    fn spec(&self, plugin: &WasmPlugin, log: Arc<Words>) -> ContainerSpec {
        let limits = Limits {
            memory_bytes: Some(plugin.memory_bytes),
            fuel: plugin.fuel,
            timeout: plugin.timeout,
            ..Limits::default()
        };
        ContainerSpec {
            name: format!("{NAMESPACE}/scheduler/{}", plugin.name),
            argv: vec![plugin.name.to_owned()],
            env: Vec::new(),
            cwd: None,
            preopens: Vec::new(),
            limits,
            grants: Grants::default(),
            imports: None,
            config: None,
            keyvalue: None,
            log,
            stdin: None,
            terminal: false,
            pod: runtime_api::ledger::Ledger::pod(self.engine.ledger()),
            pod_cpu: None,
            memory_files: None,
            quotas: Vec::new(),
            caller: Caller {
                node: "".into(),
                namespace: NAMESPACE.into(),
                pod: plugin.name.into(),
                ip: None,
                names: Arc::new(PodNames::default()),
            },
            dial: None,
        }
    }
}

impl PluginHost for Plugins {
    fn load<'a>(&'a self, plugin: &'a WasmPlugin) -> Boxed<'a, Result<Arc<dyn PluginModule>, String>> {
        Box::pin(self.load(plugin))
    }
}

/// Looks at a plugin's file without running it.
///
/// # Errors
/// There is none, or it is no plugin.
pub(crate) fn check(plugin: &WasmPlugin) -> Result<(), String> {
    read(&plugin.module).map(|_| ()).map_err(|why| format!("plugin {:?}: {why}", plugin.name))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let of_file = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let found = std::fs::metadata(path).map_err(|error| of_file(&error))?;
    if !found.is_file() {
        return Err(of_file(&"it is no file"));
    }
    let bytes = found.len();
    if bytes > MODULE_BYTES_MAX {
        return Err(of_file(&format_args!("it has {bytes} bytes, at most {MODULE_BYTES_MAX} are taken")));
    }
    let bytes = std::fs::read(path).map_err(|error| of_file(&error))?;
    let found = inspect(&bytes).map_err(|error| of_file(&error))?;
    if !found.exports.iter().any(|name| name.starts_with(INTERFACE)) {
        return Err(of_file(&format_args!("it doesn't export {INTERFACE}x (scheduler/wit/plugin.wit)")));
    }
    Ok(bytes)
}

/// A plugin that was loaded.
struct Module {
    server: Arc<dyn Server>,
    words: Arc<Words>,
    plugin: WasmPlugin,
}

impl Drop for Module {
    fn drop(&mut self) {
        self.server.shut();
    }
}

impl PluginModule for Module {
    fn call<'a>(
        &'a self,
        session: &'a str,
        function: &'static str,
        arguments: Vec<u8>,
    ) -> Boxed<'a, Result<Vec<u8>, CallError>> {
        Box::pin(self.call(session, function, arguments))
    }
}

impl Module {
    async fn call(&self, session: &str, function: &'static str, arguments: Vec<u8>) -> Result<Vec<u8>, CallError> {
        self.words.begin();
        let body = Full::new(arguments.into()).map_err(|never| match never {}).boxed_unsync();
        let request = Request::post(format!("/{function}")).header(machinery_api::names::SESSION_HEADER, session);
        let mut request = request.body(body).map_err(|error| failed("error", error.to_string()))?;
        // It waits for no pod's requests.
        request.extensions_mut().insert(NodeCall::default());
        let from = Origin { peer: Peer::Node, local: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), via: None };
        let Ok(response) = self.server.http(&from, request).await else {
            return Err(failed("unavailable", "it is not taken".to_owned()));
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|error| failed("error", error.to_string()))?.to_bytes();
        if head.status == StatusCode::OK {
            return Ok(body.into());
        }
        match head.headers.get(REASON_HEADER).and_then(|reason| reason.to_str().ok()) {
            Some(reason) => Err(self.failure(reason)),
            None => Err(CallError::Arguments(shown(&String::from_utf8_lossy(&body)))),
        }
    }

    /// Why a call has no result, for people.
    fn failure(&self, reason: &str) -> CallError {
        let WasmPlugin { timeout, memory_bytes, fuel, .. } = &self.plugin;
        let said = |why: &str| match self.words.said() {
            words if words.is_empty() => why.to_owned(),
            words => format!("{why}: {words}"),
        };
        match reason {
            "trap" => failed("trap", said("it trapped")),
            "memory" => failed("memory", format!("it needs more memory than its {memory_bytes} bytes")),
            "fuel" => failed("fuel", format!("a call used more fuel than its {}", fuel.unwrap_or_default())),
            "timeout" => failed("timeout", format!("no answer within {timeout:?}")),
            "no-response" => failed("exit", said("it exited")),
            "result-too-large" => failed("answer", "its answer is larger than what is taken".to_owned()),
            other => failed("unavailable", format!("it can't be called now: {other}")),
        }
    }
}

fn failed(kind: &'static str, why: String) -> CallError {
    CallError::Failed(Failure { kind, why })
}

/// What a plugin says beside its answers: for the log, and of a call that fails for whoever asked.
struct Words {
    plugin: &'static str,
    env: Env,
    said: Mutex<Said>,
}

#[derive(Default)]
struct Said {
    of_call: String,
    /// The second that is counted, and its lines.
    second: Duration,
    lines: u32,
}

impl Words {
    fn begin(&self) {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).of_call.clear();
    }

    fn said(&self) -> String {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<&str> = said.of_call.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        shown(&lines.join("; "))
    }
}

impl LogSink for Words {
    fn write(&self, stream: StdStream, bytes: &[u8]) {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(bytes);
        let room = WORDS_MAX.saturating_sub(said.of_call.len());
        if stream == StdStream::Stderr {
            said.of_call.extend(text.chars().take(room));
        }
        let now = self.env.elapsed();
        if now.saturating_sub(said.second) >= Duration::from_secs(1) {
            (said.second, said.lines) = (now, 0);
        }
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            said.lines = said.lines.saturating_add(1);
            if said.lines > LINES_MAX {
                return;
            }
            tracing::info!(plugin = self.plugin, "{}", shown(line));
        }
    }
}

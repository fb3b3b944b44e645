//! Runs the scheduler's WebAssembly plugins: each is a container without a pod, files, network and environment. Docs:
//! docs/scheduler-plugins.md.

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
use machinery_options::OptionError;
use machinery_serve::net::{Caller, Origin, Peer, PodNames};
use oci_registry::blobs;
use runtime_api::{
    ContainerSpec, Grants, Limits, LogSink, MODULE_BYTES_MAX, Metering, NodeCall, Runtime, Server, StdStream,
};
use scheduler::configuration::Configuration;
use scheduler::plugins::Profile;
use scheduler::wasm::wire::{INTERFACE, single_line};
use scheduler::wasm::{CallError, Failure, PluginHost, PluginModule, WasmPlugin};
use tempfile::{NamedTempFile, TempDir};
use wasm_runtime::engine::{CompileProcess, Engine, EngineConfig, GuestThreads, inspect};
use wasm_runtime::options::guests::GuestOptions;

/// The namespace whose share of compilers and instance slots the plugins use.
const NAMESPACE: &str = "kube-system";
/// Maximum characters of a guest's output that are kept for a call.
const CALL_OUTPUT_MAX: usize = 1024;
/// Maximum log lines of a plugin per second.
const LINES_MAX: u32 = 20;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The scheduler's configuration, whose plugins this process can run.
///
/// # Errors
/// If the file can't be read or is invalid, or a plugin's module is.
pub fn configuration(options: &scheduler::SchedulerOptions) -> Result<Configuration, OptionError> {
    options.configuration(|profile| profile.wasm.iter().try_for_each(|plugin| check(plugin)))
}

/// The plugin host of a scheduler.
#[derive(Debug)]
pub struct Plugins {
    engine: Engine,
    env: Env,
    /// Folder of compiled modules, if there is no node to keep them.
    _folder: Option<TempDir>,
}

impl Plugins {
    /// Plugins on the engine of this process.
    pub fn on(engine: Engine, env: &Env) -> Arc<dyn PluginHost> {
        Arc::new(Self { engine, env: env.clone(), _folder: None })
    }

    /// The plugins of some profiles, on an engine of their own; `None` if the profiles have none.
    ///
    /// # Errors
    /// As [`alone`](Self::alone).
    pub fn of(profiles: &[Profile], guests: &GuestOptions, env: &Env) -> anyhow::Result<Option<Arc<dyn PluginHost>>> {
        let plugins: Vec<_> = profiles.iter().flat_map(|profile| profile.wasm.clone()).collect();
        if plugins.is_empty() { Ok(None) } else { Self::alone(&plugins, guests, env).map(Some) }
    }

    /// Plugins on an engine of their own.
    ///
    /// # Errors
    /// If no threads or no folder can be created.
    pub fn alone(plugins: &[Arc<WasmPlugin>], guests: &GuestOptions, env: &Env) -> anyhow::Result<Arc<dyn PluginHost>> {
        let folder = tempfile::tempdir().context("cannot make a folder for compiled plugins")?;
        let config = EngineConfig {
            cache_dir: folder.path().join("compiled"),
            memory_max_bytes: plugins.iter().map(|plugin| plugin.memory_bytes).sum(),
            compile_process: Some(CompileProcess::current().context("cannot find this program's file")?),
            compile_bounds: guests.compile(),
            guest_bounds: guests.instance(),
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
            // The copy has the digest under which it is compiled, whatever happens to the file.
            let mut copy = NamedTempFile::new().map_err(|error| error.to_string())?;
            copy.write_all(&bytes).map_err(|error| error.to_string())?;
            Ok::<_, String>((blobs::digest(&bytes), copy))
        });
        let (digest, copy) = read.await.map_err(|error| error.to_string())??;
        let metering = if plugin.fuel.is_some() { Metering::Fuel } else { Metering::Epochs };
        let module = Runtime::load(&self.engine, &digest, copy.path(), metering, NAMESPACE).await;
        let module = module.map_err(|error| error.to_string())?;
        let log = Arc::new(PluginLog { plugin: plugin.name, env: self.env.clone(), state: Mutex::default() });
        let container = module.container(self.spec(plugin, log.clone())).map_err(|error| error.to_string())?;
        let server = container.serve().map_err(|error| error.to_string())?;
        Ok(Arc::new(LoadedPlugin { server, log, plugin: plugin.clone() }))
    }

    fn spec(&self, plugin: &WasmPlugin, log: Arc<PluginLog>) -> ContainerSpec {
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
            network: None,
        }
    }
}

impl PluginHost for Plugins {
    fn load<'a>(&'a self, plugin: &'a WasmPlugin) -> Boxed<'a, Result<Arc<dyn PluginModule>, String>> {
        Box::pin(self.load(plugin))
    }
}

/// Validates a plugin's file without running it.
///
/// # Errors
/// If the file is missing or no plugin.
pub fn check(plugin: &WasmPlugin) -> Result<(), String> {
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

/// A loaded plugin.
struct LoadedPlugin {
    server: Arc<dyn Server>,
    log: Arc<PluginLog>,
    plugin: WasmPlugin,
}

impl Drop for LoadedPlugin {
    fn drop(&mut self) {
        self.server.shut();
    }
}

impl PluginModule for LoadedPlugin {
    fn call<'a>(
        &'a self,
        session: &'a str,
        function: &'static str,
        arguments: Vec<u8>,
    ) -> Boxed<'a, Result<Vec<u8>, CallError>> {
        Box::pin(self.call(session, function, arguments))
    }
}

impl LoadedPlugin {
    async fn call(&self, session: &str, function: &'static str, arguments: Vec<u8>) -> Result<Vec<u8>, CallError> {
        self.log.begin_call();
        let body = Full::new(arguments.into()).map_err(|never| match never {}).boxed_unsync();
        let request = Request::post(format!("/{function}")).header(machinery_api::names::SESSION_HEADER, session);
        let mut request = request.body(body).map_err(|error| failed("error", error.to_string()))?;
        // The request doesn't wait in a pod's queue.
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
            None => Err(CallError::Arguments(single_line(&String::from_utf8_lossy(&body)))),
        }
    }

    /// A failed call's message for people.
    fn failure(&self, reason: &str) -> CallError {
        let WasmPlugin { timeout, memory_bytes, fuel, .. } = &self.plugin;
        let with_output = |why: &str| match self.log.call_output() {
            words if words.is_empty() => why.to_owned(),
            words => format!("{why}: {words}"),
        };
        match reason {
            "trap" => failed("trap", with_output("it trapped")),
            "memory" => failed("memory", format!("it needs more memory than its {memory_bytes} bytes")),
            "fuel" => failed("fuel", format!("a call used more fuel than its {}", fuel.unwrap_or_default())),
            "timeout" => failed("timeout", format!("no answer within {timeout:?}")),
            "no-response" => failed("exit", with_output("it exited")),
            "result-too-large" => failed("answer", "its answer is larger than what is taken".to_owned()),
            other => failed("unavailable", format!("it can't be called now: {other}")),
        }
    }
}

fn failed(kind: &'static str, why: String) -> CallError {
    CallError::Failed(Failure { kind, why })
}

/// A plugin's output beside its responses: logged, and added to the message of a failed call.
struct PluginLog {
    plugin: &'static str,
    env: Env,
    state: Mutex<PluginLogState>,
}

#[derive(Default)]
struct PluginLogState {
    of_call: String,
    /// The current second and its number of lines.
    second: Duration,
    lines: u32,
}

impl PluginLog {
    fn begin_call(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).of_call.clear();
    }

    fn call_output(&self) -> String {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: Vec<&str> = state.of_call.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        single_line(&lines.join("; "))
    }
}

impl LogSink for PluginLog {
    fn write(&self, stream: StdStream, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(bytes);
        let free = CALL_OUTPUT_MAX.saturating_sub(state.of_call.len());
        if stream == StdStream::Stderr {
            state.of_call.extend(text.chars().take(free));
        }
        let now = self.env.elapsed();
        if now.saturating_sub(state.second) >= Duration::from_secs(1) {
            (state.second, state.lines) = (now, 0);
        }
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            state.lines = state.lines.saturating_add(1);
            if state.lines > LINES_MAX {
                return;
            }
            tracing::info!(plugin = self.plugin, "{}", single_line(line));
        }
    }
}

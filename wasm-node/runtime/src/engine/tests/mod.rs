//! The engine against real and hostile modules: the samples, and modules written as text here.

mod bounds;
mod commands;
mod compiler;
mod concurrent;
mod concurrent_attacks;
mod empties;
mod exchange;
mod features;
mod files;
mod files_p2;
mod files_p3;
mod guest;
mod keyvalue;
mod plugins;
mod servers;
mod service_guest;
mod sessions;
mod sharing;
mod warm;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Empty, Full};
use machinery_env::Env;
use machinery_serve::net::{Body, Caller, Dial};

use super::*;
use ::keyvalue::NodeStores;
use oci_registry::blobs::digest;
use runtime_api::ledger;
use runtime_api::{
    ContainerSpec, Kind, Limits, LogSink, NodeCall, OutcomeReason, Preopen, StdStream, StopSignal, TrialOutcome,
};

/// Records a guest's output.
#[derive(Default)]
pub(super) struct Log(Mutex<Vec<u8>>);

impl Log {
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl LogSink for Log {
    fn write(&self, _stream: StdStream, bytes: &[u8]) {
        let mut log = self.0.lock().unwrap();
        // Bounded, like the real one.
        if log.len() < 1 << 20 {
            log.extend_from_slice(bytes);
        }
    }
}

pub(super) struct Bench {
    pub(super) engine: Engine,
    pub(super) dir: tempfile::TempDir,
}

impl Bench {
    /// Compiled modules are cached beside the test program: an unoptimized compiler takes seconds per sample.
    pub(super) fn new() -> Self {
        let program = std::env::current_exe().unwrap();
        Self::with_cache(tempfile::tempdir().unwrap(), program.with_file_name("coracle-test-artifacts"))
    }

    pub(super) fn with_own_cache() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cache_dir = dir.path().join("compiled");
        Self::with_cache(dir, cache_dir)
    }

    fn with_cache(dir: tempfile::TempDir, cache_dir: PathBuf) -> Self {
        Self::with(dir, cache_dir, None, CompileBounds::default())
    }

    /// With other guest bounds.
    pub(super) fn bounded(guest_bounds: GuestBounds) -> Self {
        let program = std::env::current_exe().unwrap();
        let (dir, cache_dir) = (tempfile::tempdir().unwrap(), program.with_file_name("coracle-test-artifacts"));
        Self::made(dir, |config| {
            config.cache_dir = cache_dir;
            config.guest_bounds = guest_bounds;
        })
    }

    pub(super) fn with(
        dir: tempfile::TempDir,
        cache_dir: PathBuf,
        compile_process: Option<CompileProcess>,
        compile_bounds: CompileBounds,
    ) -> Self {
        Self::made(dir, |config| {
            config.cache_dir = cache_dir;
            config.compile_process = compile_process;
            config.compile_bounds = compile_bounds;
        })
    }

    fn made(dir: tempfile::TempDir, change: impl FnOnce(&mut EngineConfig)) -> Self {
        let mut config = EngineConfig {
            cache_dir: dir.path().join("compiled"),
            memory_max_bytes: 1 << 30,
            compile_process: None,
            compile_bounds: CompileBounds::default(),
            guest_bounds: GuestBounds::default(),
        };
        change(&mut config);
        let threads = GuestThreads::start(2, &Env::real()).unwrap();
        let engine = Engine::new(config, threads, Env::real()).unwrap();
        let (folder, handle) = (dir.path().join("keyvalue"), engine.guest_runtime());
        engine.set_keyvalue(Arc::new(NodeStores::new(folder, None, engine.ledger(), engine.env(), handle)));
        Self { engine, dir }
    }

    pub(super) async fn load_bytes(&self, bytes: &[u8], metering: Metering) -> Result<Arc<PreparedModule>, LoadError> {
        // Each call has a file of its own, since calls run side by side.
        let file = tempfile::NamedTempFile::new_in(self.dir.path()).unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        self.engine.load(&digest(bytes), file.path(), metering, "default").await
    }

    pub(super) async fn load_text(&self, text: &str, metering: Metering) -> Result<Arc<PreparedModule>, LoadError> {
        self.load_bytes(&wat::parse_str(text).unwrap(), metering).await
    }

    pub(super) async fn load_sample(&self, name: &str, metering: Metering) -> Arc<PreparedModule> {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../../sample-workloads/bin/{name}.wasm"));
        self.load_bytes(&std::fs::read(path).unwrap(), metering).await.unwrap()
    }

    pub(super) fn container(
        &self,
        loaded: Arc<PreparedModule>,
        change: impl FnOnce(&mut ContainerSpec),
    ) -> (Container, Arc<Log>) {
        let log = Arc::new(Log::default());
        let mut spec = self.spec();
        spec.log = log.clone();
        change(&mut spec);
        (self.engine.container(loaded, spec).unwrap(), log)
    }

    pub(super) fn spec(&self) -> ContainerSpec {
        ContainerSpec {
            name: "default/test/test".into(),
            argv: vec!["test".into()],
            env: Vec::new(),
            cwd: None,
            preopens: Vec::new(),
            limits: Limits::default(),
            grants: runtime_api::Grants::default(),
            imports: None,
            config: None,
            keyvalue: None,
            log: Arc::new(Log::default()),
            stdin: None,
            terminal: false,
            pod: self.engine.pod_ledger(),
            pod_cpu: None,
            memory_files: None,
            quotas: Vec::new(),
            caller: Caller {
                node: "n".into(),
                namespace: "default".into(),
                pod: "test".into(),
                ip: None,
                names: Arc::default(),
            },
            dial: None,
            network: None,
        }
    }
}

pub(super) fn get(path: &str) -> http::Request<Body> {
    let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
    http::Request::get(format!("http://test.default{path}")).body(body).unwrap()
}

pub(super) fn post(path: &str, body: impl Into<bytes::Bytes>) -> http::Request<Body> {
    let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
    http::Request::post(format!("http://test.default{path}")).body(body).unwrap()
}

pub(super) async fn text(response: http::Response<Body>) -> Result<String, machinery_serve::net::BoxError> {
    let bytes = response.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

pub(super) fn reason(response: &http::Response<Body>) -> (u16, &str) {
    let reason = response.headers().get("coracle-reason").and_then(|value| value.to_str().ok());
    (response.status().as_u16(), reason.unwrap_or_default())
}

pub(super) fn dial(dial: impl Dial + 'static) -> Option<Arc<dyn Dial>> {
    Some(Arc::new(dial))
}

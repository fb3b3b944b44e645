//! Nodes exchange compiled modules over the tunnel (docs/decisions/0115-compiled-modules.md): a node asks others of the same
//! version and CPU features before it compiles, and takes what the asked node has signed.

mod fetch;
mod message;
mod metrics;
mod offer;

use std::sync::Arc;

use clap::Args;
use machinery_env::Env;
use proxy::tunnel::Tunnel;
use tokio::sync::Semaphore;
use wasm_runtime::engine::Engine;

pub use metrics::ExchangeMetrics;

/// The option of the exchange.
#[derive(Debug, Clone, Args)]
pub struct ExchangeOptions {
    /// Exchanges compiled modules with other nodes of the same version and CPU features that have this flag, instead of
    /// compiling each module once per node. Compiled code is trusted: each of these nodes can run code of its own on all
    /// of them
    #[arg(long, env = "CORACLE_SHARE_COMPILED_MODULES")]
    pub share_compiled_modules: bool,
}

impl Default for ExchangeOptions {
    /// The command line without flags, whatever the environment is.
    fn default() -> Self {
        machinery_options::defaults()
    }
}

/// Modules that are sent at once; other requests are refused, and their nodes compile.
const SENDS_MAX: usize = 4;

/// A node's exchange.
struct Exchange {
    env: Env,
    engine: Engine,
    tunnel: Arc<Tunnel>,
    key: String,
    sends: Arc<Semaphore>,
    metrics: ExchangeMetrics,
}

/// The value of the Node's annotation: nodes of the same one use each other's artifacts.
pub fn key(engine: &Engine) -> String {
    format!("{}/{}", env!("CARGO_PKG_VERSION"), engine.fingerprint())
}

/// Starts to offer this node's compiled modules, and to ask for others'.
pub fn start(env: &Env, engine: &Engine, tunnel: &Arc<Tunnel>) -> ExchangeMetrics {
    let metrics = ExchangeMetrics::default();
    let exchange = Arc::new(Exchange {
        env: env.clone(),
        engine: engine.clone(),
        tunnel: tunnel.clone(),
        key: key(engine),
        sends: Arc::new(Semaphore::new(SENDS_MAX)),
        metrics: metrics.clone(),
    });
    tunnel.set_node_service(exchange.clone());
    engine.set_compiled_source(exchange);
    metrics
}

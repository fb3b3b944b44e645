//! Nodes exchange compiled modules over the tunnel (docs/decisions/0115-compiled-modules.md): a node asks others of the same
//! version and CPU features before it compiles, and takes what the asked node has signed.

mod fetch;
mod message;
mod metrics;
mod offer;

use std::sync::Arc;

use machinery_env::Env;
use proxy::tunnel::Tunnel;
use tokio::sync::Semaphore;
use wasm_runtime::engine::Engine;

pub(crate) use metrics::ExchangeMetrics;

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
pub(crate) fn key(engine: &Engine) -> String {
    format!("{}/{}", env!("CARGO_PKG_VERSION"), engine.fingerprint())
}

/// Starts to offer this node's compiled modules, and to ask for others'.
pub(crate) fn start(env: &Env, engine: &Engine, tunnel: &Arc<Tunnel>) -> ExchangeMetrics {
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

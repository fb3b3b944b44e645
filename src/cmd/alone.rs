//! A component as a process of its own: it reaches the API server by a kubeconfig, and shows its figures where it is told to.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use apiserver::http::metrics::OPEN_METRICS;
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use clap::Args;
use hyper_util::service::TowerToHyperService;
use kube::Client;
use machinery_env::Env;
use machinery_serve::plain;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Failure;
use crate::compose;
use crate::output::result;

/// What is still running when the runtime ends is dropped after this long.
const LAST_MOMENT: Duration = Duration::from_millis(500);
/// How long a component may take to end: as in `up`, with the time in which it gives back its leadership.
const DRAIN: Duration = Duration::from_secs(4);

/// Flags of each such process.
#[derive(Debug, Clone, Args)]
pub(super) struct AloneFlags {
    /// How the API server is reached, and as whom
    #[arg(long, env = "CORACLE_KUBECONFIG", value_name = "FILE")]
    pub(super) kubeconfig: PathBuf,
    /// Where GET /metrics and /healthz answer, over plain HTTP to anybody [default: nowhere]
    #[arg(long, env = "CORACLE_METRICS_BIND", value_name = "ADDR:PORT")]
    metrics_bind: Option<SocketAddr>,
}

/// What a component has to work with.
pub(super) struct Given {
    pub(super) client: Client,
    pub(super) env: Env,
    pub(super) stop: CancellationToken,
}

/// Runs a component under upstream's name for it until SIGINT or SIGTERM. `register` makes its figures visible.
///
/// # Errors
/// The kubeconfig can't be used, the address is taken, or the component ended by itself, such as by losing its leadership.
pub(super) fn run<F>(
    flags: &AloneFlags,
    agent: &'static str,
    env: Env,
    register: impl FnOnce(&mut Registry),
    start: impl FnOnce(Given) -> F,
) -> Result<(), Failure>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let mut registry = Registry::default();
    register(&mut registry);
    let runtime = compose::runtime()?;
    let done: anyhow::Result<()> = runtime.block_on(async {
        let signal = compose::stop_signal();
        let client = connect(&flags.kubeconfig, agent).await?;
        let stop = CancellationToken::new();
        let told = figures(flags.metrics_bind, registry, &env, &stop).await?;
        result(format_args!("ready kubeconfig={}{told}\n", flags.kubeconfig.display()))?;
        let component = start(Given { client, env, stop: stop.clone() });
        tokio::pin!(signal, component);
        tokio::select! {
            () = &mut signal => {}
            ended = &mut component => {
                ended?;
                anyhow::bail!("the {agent} ended; start again, with --log-level info to see why");
            }
        }
        stop.cancel();
        // What it loses while it ends is nobody's business any more.
        let _ = tokio::time::timeout(DRAIN, component).await;
        Ok(())
    });
    runtime.shutdown_timeout(LAST_MOMENT);
    Ok(done?)
}

async fn connect(kubeconfig: &Path, agent: &'static str) -> anyhow::Result<Client> {
    let client = machinery_client::from_kubeconfig_as(kubeconfig, agent).await;
    client.with_context(|| format!("--kubeconfig {}", kubeconfig.display()))
}

/// Shows the figures, if they shall be; answers what the line `ready` says of it.
async fn figures(
    bind: Option<SocketAddr>,
    registry: Registry,
    env: &Env,
    stop: &CancellationToken,
) -> anyhow::Result<String> {
    let Some(bind) = bind else { return Ok(String::new()) };
    let listener =
        TcpListener::bind(bind).await.with_context(|| format!("--metrics-bind {bind}: cannot listen there"))?;
    let address = listener.local_addr()?;
    let registry = Arc::new(Mutex::new(registry));
    let page = move || {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(
            &mut text,
            &registry.lock().unwrap_or_else(PoisonError::into_inner),
        );
        async move { ([(CONTENT_TYPE, OPEN_METRICS)], text) }
    };
    let router = Router::new().route("/metrics", get(page)).route("/healthz", get(|| async { "ok" }));
    let (env, stop) = (env.clone(), stop.clone());
    tokio::spawn(async move {
        let service = |permit| TowerToHyperService::new(router.clone().layer(axum::Extension(permit)));
        plain::serve(listener, Some(Duration::ZERO), &env, &stop, service).await;
    });
    Ok(format!(" metrics=http://{address}/metrics"))
}

//! Runs a component as a process of its own: API access by a kubeconfig, metrics and health on `--metrics-bind`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use apiserver::http::prometheus_text;
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use clap::Args;
use http::HeaderValue;
use http::header::USER_AGENT;
use hyper_util::service::TowerToHyperService;
use kube::{Client, Config};
use machinery_api::ObjectKey;
use machinery_client::election::Election;
use machinery_env::Env;
use machinery_options::OptionError;
use machinery_options::election::{ElectionFlags, ElectionOptions};
use machinery_serve::accept::Listener;
use machinery_serve::plain;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use crate::compose;
use tools_command::environment::host_name;
use tools_command::failure::Failure;
use tools_command::notify;
use tools_telemetry::metrics::register_dropped;

/// Grace period of tasks that still run when the runtime ends.
const LAST_MOMENT: Duration = Duration::from_millis(500);
/// Drain timeout of a component: as in `up`, plus the release of its leadership.
const DRAIN: Duration = Duration::from_secs(4);

/// Flags of each such process.
#[derive(Debug, Clone, Args)]
pub(super) struct StandaloneFlags {
    /// Kubeconfig of the API server
    #[arg(long, env = "CORACLE_KUBECONFIG", value_name = "FILE")]
    pub(super) kubeconfig: PathBuf,
    #[command(flatten)]
    metrics: MetricsFlags,
}

/// Where a process shows its metrics and health.
#[derive(Debug, Clone, Args)]
pub(super) struct MetricsFlags {
    /// Address of GET /metrics and /healthz, over plain HTTP without authentication [default: none]
    #[arg(long, env = "CORACLE_METRICS_BIND", value_name = "ADDR:PORT")]
    metrics_bind: Option<SocketAddr>,
}

/// Dependencies of a component.
pub(super) struct ComponentDeps {
    /// What the kubeconfig says, with the component's user agent.
    pub(super) config: Config,
    pub(super) client: Client,
    pub(super) env: Env,
    pub(super) stop: CancellationToken,
}

/// Runs a component under upstream's name until SIGINT or SIGTERM. `prepare` builds it and adds its metrics to the registry.
///
/// # Errors
/// If the kubeconfig can't be used, the address is taken, or the component ended by itself, such as by losing its
/// leadership.
pub(super) fn run<F>(
    flags: &StandaloneFlags,
    agent: &'static str,
    env: Env,
    prepare: impl AsyncFnOnce(ComponentDeps, &mut Registry) -> anyhow::Result<F>,
) -> Result<(), Failure>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let runtime = compose::runtime()?;
    let done: anyhow::Result<()> = runtime.block_on(async {
        let signal = compose::stop_signal();
        let (config, client) = connect(&env, &flags.kubeconfig, agent).await?;
        let stop = CancellationToken::new();
        let mut registry = Registry::default();
        let deps = ComponentDeps { config, client, env: env.clone(), stop: stop.clone() };
        let component = prepare(deps, &mut registry).await?;
        let metrics = flags.metrics.serve(registry, &env, &stop).await?;
        notify::ready(format_args!("ready kubeconfig={}{metrics}", flags.kubeconfig.display()))?;
        compose::memory::release_after_start(&env);
        tokio::pin!(signal, component);
        tokio::select! {
            () = &mut signal => {}
            ended = &mut component => {
                ended?;
                anyhow::bail!("the {agent} ended; start again, with --log-level info to see why");
            }
        }
        stop.cancel();
        // A late failure is ignored: the process is stopping.
        let _ = env.timeout(DRAIN, component).await;
        Ok(())
    });
    runtime.shutdown_timeout(LAST_MOMENT);
    Ok(done?)
}

/// A component's election under upstream's name; `None` if it is disabled.
///
/// # Errors
/// If the durations contradict each other.
pub(super) fn election(flags: &ElectionFlags, component: &str, env: &Env) -> Result<Option<Election>, OptionError> {
    let of = |options: ElectionOptions| {
        let ElectionOptions { name, namespace, lease_duration, renew_deadline, retry_period } = options;
        let lease = ObjectKey::new(&*namespace, name.as_deref().unwrap_or(component));
        let usual = Election::new(lease, format!("{}_{}", host_name(), env.uid()));
        Election { lease_duration, renew_deadline, retry_period, ..usual }
    };
    Ok(flags.options()?.map(of))
}

async fn connect(env: &Env, kubeconfig: &Path, agent: &'static str) -> anyhow::Result<(Config, Client)> {
    let context = || format!("--kubeconfig {}", kubeconfig.display());
    let mut config = machinery_client::read_kubeconfig(kubeconfig).await.with_context(context)?;
    config.headers.push((USER_AGENT, HeaderValue::from_static(agent)));
    let client = machinery_client::from_config(env, config.clone()).with_context(context)?;
    Ok((config, client))
}

impl MetricsFlags {
    /// The address, if there is one.
    pub(super) fn bind(&self) -> Option<SocketAddr> {
        self.metrics_bind
    }

    /// Serves the metrics if enabled; returns the `ready` line's text about them.
    ///
    /// # Errors
    /// If the address is taken.
    pub(super) async fn serve(
        &self,
        mut registry: Registry,
        env: &Env,
        stop: &CancellationToken,
    ) -> anyhow::Result<String> {
        let Some(bind) = self.metrics_bind else { return Ok(String::new()) };
        let listener = Listener::bind_own("metrics", bind)
            .with_context(|| format!("--metrics-bind {bind}: cannot listen there"))?;
        let address = listener.local_addr()?;
        register_dropped(&mut registry);
        let registry = Arc::new(Mutex::new(registry));
        let page = move || {
            let text = prometheus_text::encode(&registry.lock().unwrap_or_else(PoisonError::into_inner));
            async move { ([(CONTENT_TYPE, prometheus_text::MEDIA_TYPE)], text) }
        };
        let router = Router::new().route("/metrics", get(page)).route("/healthz", get(|| async { "ok" }));
        let (env, stop) = (env.clone(), stop.clone());
        tokio::spawn(async move {
            let service = |permit| TowerToHyperService::new(router.clone().layer(axum::Extension(permit)));
            plain::serve((listener, "metrics"), Some(Duration::ZERO), &env, &stop, service).await;
        });
        Ok(format!(" metrics=http://{address}/metrics"))
    }
}

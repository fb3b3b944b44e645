//! A role as a process of its own: its API server is that of a kubeconfig.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use http::HeaderValue;
use http::header::USER_AGENT;
use kube::{Client, Config};
use machinery_api::ObjectKey;
use machinery_api::features::Features;
use machinery_client::election::Election;
use machinery_env::Env;
use machinery_options::OptionError;
use machinery_options::election::{ElectionFlags, ElectionOptions};
use machinery_roles::Stops;
use tokio_util::sync::CancellationToken;
use tools_command::environment::host_name;
use tools_command::failure::Failure;

use super::ProcessRoles;
use super::foreground::{ReadyProcess, until_stopped};
use super::metrics::{Metrics, MetricsFlags};
use super::process::{Lifecycle, Process};

/// Drain timeout of a component: as in `up`, plus the release of its leadership.
const DRAIN: Duration = Duration::from_secs(4);

/// Flags of each such process.
#[derive(Debug, Clone, Args)]
pub(crate) struct KubeconfigFlags {
    /// Kubeconfig of the API server
    #[arg(long, env = "CORACLE_KUBECONFIG", value_name = "FILE")]
    pub(crate) kubeconfig: PathBuf,
    #[command(flatten)]
    pub(crate) metrics: MetricsFlags,
}

/// What the role of such a process is made of.
pub(crate) struct KubeconfigParts {
    pub(crate) env: Env,
    /// What the kubeconfig says, with the component's user agent.
    pub(crate) config: Config,
    pub(crate) client: Client,
    pub(crate) metrics: Metrics,
    pub(crate) stops: Stops,
}

/// Runs the roles of `build` under upstream's name `program` until SIGINT or SIGTERM.
///
/// # Errors
/// If the kubeconfig can't be used, the address is taken, or the component ended by itself, such as by losing its
/// leadership.
pub(crate) fn run(
    flags: &KubeconfigFlags,
    program: &'static str,
    (env, gates): (&Env, &Features),
    build: impl AsyncFnOnce(KubeconfigParts) -> anyhow::Result<ProcessRoles>,
) -> Result<(), Failure> {
    until_stopped(env, None, async |progress| {
        let (config, client) = connect(env, &flags.kubeconfig, program).await?;
        let (metrics, stops) = (Metrics::new(gates), Stops::default());
        let parts =
            KubeconfigParts { env: env.clone(), config, client, metrics: metrics.clone(), stops: stops.clone() };
        let roles = build(parts).await?;
        let lifecycle = Lifecycle {
            env: env.clone(),
            stops,
            ready: CancellationToken::new(),
            drain_max: DRAIN,
            conditions: Vec::new(),
            pods: None,
            server: None,
            held: Vec::new(),
            only: Some(program),
        };
        Ok(ReadyProcess {
            process: Process::start(lifecycle, roles, progress).await?,
            taken: None,
            metrics: flags.metrics.endpoint(metrics),
            report: format!("kubeconfig={}", flags.kubeconfig.display()),
        })
    })
}

async fn connect(env: &Env, kubeconfig: &Path, program: &'static str) -> anyhow::Result<(Config, Client)> {
    let context = || format!("--kubeconfig {}", kubeconfig.display());
    let mut config = machinery_client::read_kubeconfig(kubeconfig).await.with_context(context)?;
    config.headers.push((USER_AGENT, HeaderValue::from_static(program)));
    let client = machinery_client::from_config(env, config.clone()).with_context(context)?;
    Ok((config, client))
}

/// A component's election under upstream's name; `None` if it is disabled.
///
/// # Errors
/// If the durations contradict each other.
pub(crate) fn election(flags: &ElectionFlags, component: &str, env: &Env) -> Result<Option<Election>, OptionError> {
    let of = |options: ElectionOptions| {
        let ElectionOptions { name, namespace, lease_duration, renew_deadline, retry_period } = options;
        let lease = ObjectKey::new(&*namespace, name.as_deref().unwrap_or(component));
        let usual = Election::new(lease, format!("{}_{}", host_name(), env.uid()));
        Election { lease_duration, renew_deadline, retry_period, ..usual }
    };
    Ok(flags.options()?.map(of))
}

//! `coracle dashboard`: opens the dashboard in a browser, with the credentials of a kubeconfig, until ^C.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use machinery_env::Env;
use tokio_util::sync::CancellationToken;

use crate::compose;
use dashboard_server::browser::RedirectPage;
use dashboard_server::server::DashboardServer;
use tools_cluster::kubeconfig::KubeconfigSource;
use tools_cluster::probe::ApiProbe;
use tools_command::data_dir::DataDir;
use tools_command::failure::Failure;
use tools_command::flags::Common;
use tools_command::output::{print_stderr, print_stdout};
use tools_command::signals::stop_signal;

/// Flags of `coracle dashboard`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Dashboard {
    /// Kubeconfig of the cluster [default: the one of --data-dir, else kubectl's]
    #[arg(long, env = "CORACLE_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Prints the address with its secret, and opens no browser
    #[arg(long, env = "CORACLE_PRINT")]
    print: bool,
    /// Port of the dashboard on 127.0.0.1; 0 picks a free one
    #[arg(long, env = "CORACLE_DASHBOARD_PORT", default_value_t = 0, value_name = "PORT")]
    port: u16,
}

/// Serves the dashboard until SIGINT or SIGTERM.
///
/// # Errors
/// If the kubeconfig can't be used, its API server doesn't answer, or the port is taken.
pub(crate) fn run(flags: &Dashboard, common: &Common) -> Result<(), Failure> {
    let env = Env::real();
    let source = KubeconfigSource::choose(flags.kubeconfig.as_deref(), &DataDir::of(common)?)?;
    let runtime = compose::runtime()?;
    let done = runtime.block_on(async {
        // Installed before the start, so that a signal during it is not lost.
        let signal = stop_signal();
        tokio::pin!(signal);
        tokio::select! {
            done = serve(flags, &env, source) => done,
            () = &mut signal => Ok(()),
        }
    });
    // A program for credentials that doesn't end isn't waited for.
    runtime.shutdown_background();
    Ok(done?)
}

async fn serve(flags: &Dashboard, env: &Env, source: KubeconfigSource) -> anyhow::Result<()> {
    let probe = ApiProbe::of(env, source).await?;
    probe.request("/version").await.with_context(|| {
        format!("the API server {} doesn't answer: start the cluster, or name another kubeconfig", probe.server)
    })?;
    // Cancelled when this future is dropped, at a signal.
    let stop = CancellationToken::new();
    let _stopped = stop.clone().drop_guard();
    let server = DashboardServer::bind(env, probe.client().clone(), flags.port, &stop)?;
    let (address, page) = (server.address(), server.page.clone());
    let serving = server.serve();
    tokio::pin!(serving);
    let opened = async {
        if flags.print {
            return print_stdout!("{address}").map(|()| None);
        }
        let redirect = RedirectPage::write(&address)?;
        match redirect.open(env).await {
            Ok(()) => print_stderr!(
                "the dashboard of {} is at {page} until ^C; `coracle dashboard --print` prints its whole address",
                probe.server
            ),
            Err(why) => print_stderr!("{why}; open the dashboard at {address} (until ^C)"),
        }
        anyhow::Ok(Some(redirect))
    };
    let _redirect = tokio::select! {
        opened = opened => opened?,
        () = &mut serving => return Ok(()),
    };
    serving.await;
    Ok(())
}

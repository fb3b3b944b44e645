//! `coracle run`: deploys a file and prints its address; with `--dev`, again on every change of the file.

mod objects;
mod watch;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use images::{RegistryAccess, delete_pushed, push};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Pod, Service};
use kube::Client;
use machinery_client::request::PatchType;
use machinery_client::{Api, ListOptions};
use machinery_env::Env;

use self::objects::{App, MANAGER};
use self::watch::WatchedFile;
use super::Failure;
use crate::compose;
use crate::compose::image_metadata::MODULE_INSPECTOR;
use crate::config::Common;
use crate::data_dir::DataDir;
use crate::local;
use crate::module_file;
use crate::output::{print_stderr, print_stdout};
use crate::progress::Progress;
use crate::rollout::is_rolled_out;

/// Timeout of compilation and pod readiness: the largest JavaScript modules take half a minute on a busy machine.
const READY_TIME_MAX: Duration = Duration::from_secs(180);
/// Poll interval meanwhile.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Interval of reports on a long wait.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// Timeout of a Service's address, after which another one is used.
const ADDRESS_TIME_MAX: Duration = Duration::from_secs(3);

/// Arguments of `coracle run`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Run {
    /// The module or component
    #[arg(value_name = "FILE.wasm")]
    pub(crate) file: PathBuf,
    /// Name of the Deployment, the Service and the image [default: the file's]
    #[arg(long, env = "CORACLE_NAME", value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Port of the Service, if the module serves HTTP
    #[arg(long, env = "CORACLE_SERVICE_PORT", default_value_t = 8080, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: u16,
    /// Number of pods
    #[arg(long, env = "CORACLE_REPLICAS", default_value_t = 1, value_name = "N")]
    pub(crate) replicas: u16,
    /// Watches the file and deploys each change, until it is stopped
    #[arg(long, env = "CORACLE_DEV")]
    pub(crate) dev: bool,
}

/// Runs the file.
///
/// # Errors
/// If the file can't be read or is no module, there is no running cluster, or the pods don't become ready.
pub(crate) fn run(flags: &Run, common: &Common) -> Result<(), Failure> {
    let data = DataDir::of(common)?;
    let name = match &flags.name {
        Some(name) if objects::is_label(name) => name.clone(),
        Some(name) => return Err(Failure::Usage(format!("--name {name}: lower-case letters, digits and dashes"))),
        None => objects::name_of(&flags.file).ok_or_else(|| {
            Failure::Usage(format!("{}: no name can be made of it, give --name", flags.file.display()))
        })?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let stop = {
        let _entered = runtime.enter();
        compose::stop_signal()
    };
    let done = runtime.block_on(async {
        let runner = Runner::new(flags, name, &data).await?;
        tokio::select! {
            done = runner.run(flags.dev) => done,
            () = stop => Ok(()),
        }
    });
    // A pending file read must not delay the exit.
    runtime.shutdown_background();
    Ok(done?)
}

/// A deployment of a module.
struct Deployed {
    app: App,
    /// Whether it differs from the last one.
    changed: bool,
}

/// Deploys one file.
struct Runner<'a> {
    flags: &'a Run,
    name: String,
    registry: RegistryAccess,
    client: Client,
    /// The host of NodePorts.
    host: String,
    env: Env,
}

impl<'a> Runner<'a> {
    async fn new(flags: &'a Run, name: String, data: &DataDir) -> anyhow::Result<Self> {
        let registry = local::registry(data)?;
        let (client, host) = local::client(data).await?;
        Ok(Self { flags, name, registry, client, host, env: Env::real() })
    }

    async fn run(&self, dev: bool) -> anyhow::Result<()> {
        let file = &self.flags.file;
        let mut watched = WatchedFile::default();
        let cannot = || format!("cannot read {}; give the path of a .wasm file", file.display());
        let module = if dev {
            watched.read(file).await
        } else {
            let file = file.clone();
            tokio::task::spawn_blocking(move || module_file::read(&file)).await?
        };
        let Deployed { mut app, .. } = self.deploy(module.with_context(cannot)?).await?;
        self.print_address(&app).await?;
        if !dev {
            return Ok(());
        }
        loop {
            let still = format!("{} runs on", app.image);
            let module = watched
                .changed(&self.env, file, &|why| {
                    print_stderr!("coracle: cannot read {}: {why}; {still}", file.display())
                })
                .await;
            let seen = self.env.elapsed();
            // A build may still be writing the file, and a partial file is no module: the next change has the rest.
            match self.deploy(module).await {
                Ok(Deployed { app: next, changed: true }) => {
                    let took = self.env.elapsed().saturating_sub(seen);
                    let does = if next.serves { "serves" } else { "runs" };
                    print_stdout!("{} {does} {} after {} ms", next.name, next.image, took.as_millis())?;
                    if next.serves != app.serves
                        && let Err(error) = self.print_address(&next).await
                    {
                        print_stderr!("coracle: {error:#}");
                    }
                    let before = std::mem::replace(&mut app, next);
                    // Delete old images: a day's changes would fill the disk.
                    let _ = delete_pushed(&self.env, &before.name, before.digest(), &self.registry).await;
                }
                Ok(_) => {}
                Err(error) => print_stderr!("coracle: {error:#}; {still}"),
            }
        }
    }

    /// Pushes a module and deploys it.
    async fn deploy(&self, module: Vec<u8>) -> anyhow::Result<Deployed> {
        let progress = Progress::new();
        progress.doing(&format!("pushing {} ({} bytes)", self.flags.file.display(), module.len()));
        let name = format!("registry.local/{}:run", self.name);
        let pushed = push(&self.env, module, MODULE_INSPECTOR, &name, &self.registry).await?;
        let app =
            App::new(&self.name, (&pushed.digest, &pushed.inspection.exports), self.flags.port, self.flags.replicas);
        progress.doing(&format!("waiting for {}", self.name));
        let changed = self.apply(&app).await?;
        self.ready(&app, progress).await?;
        if !app.serves {
            // Only now: the old server responds until the new one runs.
            self.delete_service().await?;
        }
        progress.done();
        Ok(Deployed { app, changed })
    }

    /// Creates the objects, or updates those of an earlier `coracle run`.
    async fn apply(&self, app: &App) -> anyhow::Result<bool> {
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), self.client.default_namespace());
        let services: Api<Service> = Api::namespaced(self.client.clone(), self.client.default_namespace());
        // Checked before any object is created.
        let service = services.get_opt(&app.name).await?;
        let ours = service.as_ref().is_none_or(|there| objects::is_ours(&there.metadata));
        if app.serves && !ours {
            bail!("there is a Service {:?} that `coracle run` has not made: give another name with --name", app.name)
        }
        let wanted = app.deployment();
        let (deployments, services) = (deployments.managed_by(MANAGER), services.managed_by(MANAGER));
        let changed = match deployments.get_opt(&app.name).await? {
            None => {
                deployments.create(&wanted).await?;
                true
            }
            Some(there) if !objects::is_ours(&there.metadata) => {
                bail!(
                    "there is a Deployment {:?} that `coracle run` has not made: give another name with --name",
                    app.name
                )
            }
            Some(there) => {
                let before = there.metadata.generation;
                let now = deployments.patch(&app.name, PatchType::Merge, &wanted).await?;
                now.metadata.generation != before
            }
        };
        match service {
            _ if !app.serves => {}
            Some(_) => drop(services.patch(&app.name, PatchType::Merge, &app.service()).await?),
            None => {
                services.create(&app.service()).await?;
            }
        }
        Ok(changed)
    }

    /// Deletes a server's Service of an earlier `coracle run`.
    async fn delete_service(&self) -> anyhow::Result<()> {
        let services: Api<Service> = Api::namespaced(self.client.clone(), self.client.default_namespace());
        let there = services.get_opt(&self.name).await?;
        if there.is_some_and(|there| objects::is_ours(&there.metadata)) {
            services.delete(&self.name).await?;
        }
        Ok(())
    }

    /// Waits until all pods have this image and are available.
    async fn ready(&self, app: &App, progress: Progress) -> anyhow::Result<()> {
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), self.client.default_namespace());
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), self.client.default_namespace());
        let began = self.env.elapsed();
        let mut report_at = began + REPORT_INTERVAL;
        loop {
            if deployments.get(&app.name).await.is_ok_and(|deployment| is_rolled_out(&deployment)) {
                return Ok(());
            }
            let all = pods.list(&ListOptions { labels: format!("app={}", app.name), ..ListOptions::default() }).await?;
            if let Some(why) = all.items.iter().find_map(|pod| app.permanent_failure(pod)) {
                bail!("{} does not run: {why}", app.name);
            }
            if self.env.elapsed() >= report_at {
                let waited = report_at.saturating_sub(began).as_secs();
                let reason = self.wait_reason(&all.items).await.map(|reason| format!(": {reason}"));
                progress.still(&format!("{} is not ready after {waited} s{}", app.name, reason.unwrap_or_default()));
                report_at += REPORT_INTERVAL;
            }
            if self.env.elapsed().saturating_sub(began) > READY_TIME_MAX {
                let seconds = READY_TIME_MAX.as_secs();
                bail!("{} is not ready after {seconds} s: see `kubectl describe pods -l app={}`", app.name, app.name);
            }
            self.env.sleep(POLL_INTERVAL).await;
        }
    }

    /// The node's last event about a compilation for these pods, if any.
    async fn wait_reason(&self, pods: &[Pod]) -> Option<String> {
        let fields = "reason=Compiling,involvedObject.kind=Pod".to_owned();
        let events = Api::<Event>::namespaced(self.client.clone(), self.client.default_namespace());
        let events = events.list(&ListOptions { fields, ..ListOptions::default() }).await.ok()?.items;
        objects::newest_message(&events, pods)
    }

    /// Prints the server's address.
    async fn print_address(&self, app: &App) -> anyhow::Result<()> {
        if !app.serves {
            print_stdout!("deployment/{} runs; its output: kubectl logs deployment/{}", app.name, app.name)?;
            return Ok(());
        }
        let service =
            Api::<Service>::namespaced(self.client.clone(), self.client.default_namespace()).get(&app.name).await?;
        let spec = service.spec.context("the Service has no spec")?;
        let address = spec.cluster_ip.and_then(|ip| ip.parse().ok()).map(|ip| SocketAddr::new(ip, self.flags.port));
        let node_port = spec.ports.and_then(|ports| ports.first()?.node_port);
        match (address, node_port) {
            (Some(address), _) if accepts_connections(&self.env, address).await => print_stdout!("http://{address}/")?,
            (_, Some(port)) => print_stdout!("http://{}:{port}/", self.host)?,
            _ => bail!("the Service has no address: see `kubectl describe service {}`", app.name),
        }
        Ok(())
    }
}

/// Whether the address accepts connections. The data plane may open it a moment later.
async fn accepts_connections(env: &Env, address: SocketAddr) -> bool {
    let connects = async {
        while tokio::net::TcpStream::connect(address).await.is_err() {
            env.sleep(POLL_INTERVAL).await;
        }
    };
    env.timeout(ADDRESS_TIME_MAX, connects).await.is_ok()
}

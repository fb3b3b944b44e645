//! The cluster of `coracle run`, as far as all its forms share it: pushing a module, waiting for workloads, addresses.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use images::{Pushed, RegistryAccess, push};
use k8s_openapi::api::core::v1::{Event, Namespace, Pod, Service};
use kube::Client;
use machinery_api::ObjectKey;
use machinery_client::request::{ApiClient, query_string, status_code};
use machinery_client::{Api, Kind, ListOptions, ReadWire as _};
use machinery_env::Env;
use serde_json::Value;
use tokio::sync::watch;
use wasm_runtime::engine::MODULE_INSPECTOR;

use super::readiness::{Workload, newest_message};
use crate::registry;
use tools_cluster::api_error::api_message;
use tools_cluster::local;
use tools_command::data_dir::DataDir;
use tools_command::output::print_stdout;
use tools_command::progress::Spinner;

/// Content type of server-side apply.
const APPLY: &str = "application/apply-patch+yaml";
/// Timeout of compilation and pod readiness: the largest JavaScript modules take half a minute on a busy machine.
const READY_TIME_MAX: Duration = Duration::from_secs(180);
/// Poll interval meanwhile.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Interval of requests for the events of a wait.
const EVENTS_INTERVAL: Duration = Duration::from_secs(1);
/// Timeout of an address's first connection: the data plane may open it a moment later.
const ADDRESS_TIME_MAX: Duration = Duration::from_secs(3);

/// Where a run deploys to.
pub(super) struct Cluster {
    pub(super) namespace: String,
    pub(super) client: Client,
    pub(super) registry: RegistryAccess,
    /// The host of NodePorts.
    host: String,
    pub(super) env: Env,
    pub(super) spinner: Spinner,
    /// What was deployed last, for the logs.
    pub(super) workloads: watch::Sender<Vec<Workload>>,
}

impl Cluster {
    /// The cluster of a data folder.
    ///
    /// # Errors
    /// There is no such cluster, or no such namespace in it.
    pub(super) async fn connect(data: &DataDir, namespace: &str) -> anyhow::Result<Self> {
        let registry = registry::access(data)?;
        let (client, host) = local::client(data).await?;
        let env = Env::real();
        if let Err(error) = Api::<Namespace>::all(client.clone()).get(namespace).await {
            let is_missing = status_code(&error) == 404;
            let error = api_message(error);
            return Err(if is_missing {
                error.context(format!("create it with `kubectl create namespace {namespace}`"))
            } else {
                error
            });
        }
        let (spinner, workloads) = (Spinner::new(&env), watch::Sender::default());
        Ok(Self { namespace: namespace.to_owned(), client, registry, host, env, spinner, workloads })
    }

    pub(super) fn objects(&self) -> ApiClient {
        self.client.clone().into()
    }

    /// Server-side apply of an object by a field manager. Creates the object if it is missing.
    pub(super) async fn apply(
        &self,
        kind: &Kind,
        key: &ObjectKey,
        manager: &str,
        object: &Value,
    ) -> Result<Value, kube::Error> {
        let path = format!("{}?{}", kind.path(key), query_string(&[("fieldManager", manager)]));
        let request = http::Request::patch(path).header(http::header::CONTENT_TYPE, APPLY);
        let request = request.body(object.to_string().into_bytes()).map_err(kube::Error::HttpError)?;
        let text = self.client.request_text(request).await?;
        Value::from_json(&text).map_err(kube::Error::SerdeError)
    }

    /// Pushes a module's bytes as `registry.local/NAME:run`.
    pub(super) async fn push(&self, file: &Path, module: Vec<u8>, name: &str) -> anyhow::Result<Pushed> {
        let (megabytes, tenths) = (module.len() / 1_000_000, module.len() % 1_000_000 / 100_000);
        self.spinner.step(format!("pushing {} ({megabytes}.{tenths} MB)", file.display()));
        Ok(push(&self.env, module, MODULE_INSPECTOR, &format!("registry.local/{name}:run"), &self.registry).await?)
    }

    /// Waits until all pods of the workloads have their images and are available.
    ///
    /// # Errors
    /// A pod can't run, a workload has failed, or the time is over.
    pub(super) async fn wait_ready(&self, workloads: &[Workload]) -> anyhow::Result<()> {
        self.workloads.send_replace(workloads.to_vec());
        let began = self.env.elapsed();
        let (mut done, mut events_at) = (0, began + EVENTS_INTERVAL);
        while let Some(workload) = workloads.get(done) {
            if self.is_ready(workload).await? {
                done += 1;
                continue;
            }
            // One that waits may be waiting for another one that can't run.
            let mut pods = Vec::new();
            for waiting in &workloads[done..] {
                let all = self.pods(waiting).await?;
                if let Some(why) = all.iter().find_map(|pod| waiting.permanent_failure(pod)) {
                    bail!("{} does not run: {why}", waiting.key.name);
                }
                pods.extend(all);
            }
            let now = self.env.elapsed();
            if now >= events_at {
                events_at = now + EVENTS_INTERVAL;
                self.spinner.detail(self.wait_reason(&pods).await);
            }
            if now.saturating_sub(began) > READY_TIME_MAX {
                let seconds = READY_TIME_MAX.as_secs();
                let why = self.wait_reason(&pods).await.map(|why| format!(" ({why})")).unwrap_or_default();
                let label = workload.label();
                bail!("{label} is not ready after {seconds} s{why}: see `kubectl describe {label}` and its pods");
            }
            self.env.sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    async fn is_ready(&self, workload: &Workload) -> anyhow::Result<bool> {
        let object: Value = match self.objects().get(&workload.kind, &workload.key).await {
            Ok(object) => object,
            Err(error) if status_code(&error) == 404 => bail!("{} is deleted", workload.label()),
            // The server may be restarting.
            Err(_) => return Ok(false),
        };
        workload.is_ready(&object).map_err(|why| anyhow!("{}: {why}", workload.label()))
    }

    /// The pods of a workload.
    pub(super) async fn pods(&self, workload: &Workload) -> anyhow::Result<Vec<Pod>> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &workload.key.namespace);
        if workload.selector.is_empty() {
            return Ok(pods.get_opt(&workload.key.name).await?.into_iter().collect());
        }
        Ok(pods.list(&ListOptions { labels: workload.selector.clone(), ..ListOptions::default() }).await?.items)
    }

    /// The newest event that says what the pods wait for, if any.
    async fn wait_reason(&self, pods: &[Pod]) -> Option<String> {
        let namespace = pods.first()?.metadata.namespace.as_deref()?;
        let fields = "involvedObject.kind=Pod".to_owned();
        let events = Api::<Event>::namespaced(self.client.clone(), namespace);
        let events = events.list(&ListOptions { fields, ..ListOptions::default() }).await.ok()?.items;
        newest_message(&events, pods)
    }

    /// Prints the addresses of a Service: first its NodePort, which stays, then its ClusterIP.
    pub(super) async fn print_addresses(&self, namespace: &str, name: &str) -> anyhow::Result<()> {
        let service = Api::<Service>::namespaced(self.client.clone(), namespace).get(name).await?;
        let spec = service.spec.context("the Service has no spec")?;
        let Some(port) = spec.ports.as_deref().and_then(|ports| ports.first()) else { return Ok(()) };
        let service_port = u16::try_from(port.port).unwrap_or_default();
        let inside = spec.cluster_ip.and_then(|ip| ip.parse().ok()).map(|ip| SocketAddr::new(ip, service_port));
        if let Some(node_port) = port.node_port.and_then(|port| u16::try_from(port).ok()) {
            accepts_connections(&self.env, (&self.host, node_port)).await;
            print_stdout!("http://{}:{node_port}/", self.host)?;
        }
        if let Some(address) = inside {
            print_stdout!("http://{address}/ (service/{name} in the cluster)")?;
        }
        Ok(())
    }
}

/// Waits until an address accepts connections, for a bounded time.
async fn accepts_connections(env: &Env, address: (&str, u16)) {
    let connects = async {
        while tokio::net::TcpStream::connect(address).await.is_err() {
            env.sleep(POLL_INTERVAL).await;
        }
    };
    let _ = env.timeout(ADDRESS_TIME_MAX, connects).await;
}

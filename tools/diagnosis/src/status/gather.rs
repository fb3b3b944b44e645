//! Reads a cluster's state from its API server and its data folder. All requests have deadlines (`tools_cluster::probe`), and the
//! lists of pods one together.

use std::path::{Path, PathBuf};
use std::time::Duration;

use apiserver_catalog::discovery::VERSION as KUBERNETES;
use jiff::Timestamp;
use k8s_openapi::List;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use machinery_api::yaml;
use machinery_client::request::query_string;
use machinery_env::Env;
use serde::Deserialize;
use serde_json::Value;

use super::nodes::{self, NodeMetricsList};
use super::pods::{LISTED_MAX, PodTally};
use super::problems::{self, Elsewhere};
use super::report::{
    Addresses, ClusterState, ControlPlane, NotReady, ProgramVersions, ReadyCheck, Section, StatusReport, Workloads,
};
use super::workloads;
use crate::inspection::certificates;
use crate::inspection::disk::DiskUse;
use crate::inspection::lock::{ProcessFacts, holder};
use crate::program::Program;
use tools_cluster::kubeconfig::KubeconfigSource;
use tools_cluster::probe::{ApiProbe, ProbeError, ProbeResponse};
use tools_command::data_dir::DataDir;
use tools_command::packaged;

/// Deadline of all pages of pods together.
const PODS_TIMEOUT: Duration = Duration::from_secs(20);
/// Pods of one page.
const PAGE: &str = "500";

/// The cluster to look at.
pub(crate) enum Source {
    /// The one of a data folder.
    Folder(DataDir),
    /// The one of a kubeconfig, which may be anywhere.
    Kubeconfig(PathBuf),
}

impl Source {
    fn kubeconfig(&self) -> (PathBuf, KubeconfigSource) {
        match self {
            Self::Folder(data) => (data.kubeconfig(), KubeconfigSource::Folder(data.kubeconfig())),
            Self::Kubeconfig(file) => (file.clone(), KubeconfigSource::File(file.clone())),
        }
    }

    pub(super) fn folder(&self) -> Option<&DataDir> {
        match self {
            Self::Folder(data) => Some(data),
            Self::Kubeconfig(_) => None,
        }
    }
}

/// What the data folder shows.
struct FolderFacts {
    process: Option<ProcessFacts>,
    disk: Option<DiskUse>,
    certificates: Vec<certificates::CertificateEnd>,
    store: Option<String>,
    addresses: Addresses,
    /// Whether a cluster has run here.
    has_cluster: bool,
    /// Where the cluster is, if none has run here.
    elsewhere: Option<Elsewhere>,
}

/// Reads everything.
pub(crate) async fn read(env: &Env, source: &Source, program: &Program) -> StatusReport {
    let folder = source.folder().cloned();
    let now = env.now();
    let folder = tokio::task::spawn_blocking(move || folder.map(|data| read_folder(&data, now)));
    let (file, kubeconfig) = source.kubeconfig();
    let api = async {
        if source.folder().is_some() && !file.exists() {
            return (ControlPlane::default(), None);
        }
        read_api(env, &file, kubeconfig).await
    };
    let (folder, (mut control_plane, content)) = tokio::join!(folder, api);
    let folder = folder.ok().flatten();
    control_plane.store = folder.as_ref().and_then(|facts| facts.store.clone());
    let state = state(content.is_some(), folder.as_ref());
    let mut report = StatusReport {
        state,
        healthy: false,
        problems: Vec::new(),
        program: ProgramVersions {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: program.commit.to_owned(),
            kubernetes: KUBERNETES.to_owned(),
        },
        control_plane,
        process: None,
        addresses: Addresses::default(),
        nodes: None,
        workloads: None,
        data_folder: None,
        certificates: Vec::new(),
    };
    let elsewhere = folder.as_ref().and_then(|facts| facts.elsewhere.clone());
    if let Some(facts) = folder {
        report.process = facts.process;
        report.addresses = facts.addresses;
        report.data_folder = facts.disk;
        report.certificates = facts.certificates;
    }
    if let Some(content) = content {
        report.addresses = content.addresses(report.addresses);
        report.nodes = Some(content.nodes);
        report.workloads = Some(content.workloads);
    }
    report.problems = problems::find(&report, source.folder(), elsewhere.as_ref());
    report.healthy = report.problems.is_empty();
    report
}

fn state(answers: bool, folder: Option<&FolderFacts>) -> ClusterState {
    match folder {
        _ if answers => ClusterState::Running,
        None => ClusterState::Unreachable,
        Some(facts) if facts.process.is_some() => ClusterState::Unreachable,
        Some(facts) if facts.has_cluster => ClusterState::Stopped,
        Some(_) => ClusterState::Absent,
    }
}

/// Blocks: walks the data folder.
fn read_folder(data: &DataDir, now: Timestamp) -> FolderFacts {
    let line = |path: PathBuf| {
        let text = std::fs::read_to_string(path).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let has_cluster = data.kubeconfig().exists();
    let elsewhere = if data.node_configuration().exists() {
        Some(Elsewhere::OfNode)
    } else {
        packaged::other_service(data.path()).map(Elsewhere::OfService)
    };
    let store = if data.store().join("format").exists() {
        Some(format!("embedded, in {}", data.store().display()))
    } else {
        has_cluster.then(|| "outside of the data folder (--store)".to_owned())
    };
    FolderFacts {
        process: holder(&data.lock_file()),
        disk: DiskUse::of(data),
        certificates: certificates::of_folder(data, now),
        store,
        addresses: Addresses {
            registry: line(data.registry_address()),
            dns: line(data.dns_address()),
            ..Addresses::default()
        },
        has_cluster,
        elsewhere,
    }
}

/// The content of a cluster whose API server answers.
struct ApiContent {
    nodes: Section<Vec<super::report::NodeRow>>,
    workloads: Section<Workloads>,
    published: Result<ConfigMap, ProbeError>,
    hosting: Result<ConfigMap, ProbeError>,
}

impl ApiContent {
    /// The addresses that the cluster publishes, with those of the data folder.
    fn addresses(&self, folder: Addresses) -> Addresses {
        let published = |name: &str| {
            let data = self.published.as_ref().ok()?.data.as_ref()?;
            data.get(name).filter(|value| !value.is_empty()).cloned()
        };
        Addresses {
            registry: folder.registry.or_else(|| self.registry()),
            dns: folder.dns,
            cluster_dns: published("clusterDNS"),
            service_cidr: published("serviceCIDR"),
            pod_cidr: published("clusterCIDR"),
        }
    }

    /// The advertised registry (KEP-1755).
    fn registry(&self) -> Option<String> {
        let hosting = self.hosting.as_ref().ok()?.data.as_ref()?.get("localRegistryHosting.v1")?;
        let hosting: Value = yaml::read(hosting).ok()?;
        hosting["host"].as_str().map(str::to_owned)
    }
}

#[derive(Deserialize)]
struct ApiVersion {
    #[serde(rename = "gitVersion")]
    git_version: String,
}

async fn read_api(env: &Env, file: &Path, kubeconfig: KubeconfigSource) -> (ControlPlane, Option<ApiContent>) {
    let mut control_plane = ControlPlane { kubeconfig: Some(file.display().to_string()), ..ControlPlane::default() };
    let probe = match ApiProbe::of(env, kubeconfig).await {
        Ok(probe) => probe,
        Err(error) => {
            control_plane.error = Some(error.to_string());
            return (control_plane, None);
        }
    };
    control_plane.server = Some(probe.server.clone());
    // Alone: a server that doesn't answer costs one deadline.
    match probe.get::<ApiVersion>("/version").await {
        Ok(version) => control_plane.version = Some(version.git_version),
        Err(error) => {
            control_plane.error = Some(error.to_string());
            return (control_plane, None);
        }
    }
    let config_map = |name: &str| format!("/api/v1/namespaces/kube-public/configmaps/{name}");
    let (published_path, hosting_path) = (config_map("coracle-node"), config_map("local-registry-hosting"));
    let (checks, nodes, metrics, pods, not_ready, published, hosting) = tokio::join!(
        probe.request("/readyz?verbose"),
        probe.get::<List<Node>>("/api/v1/nodes"),
        probe.get::<NodeMetricsList>("/apis/metrics.k8s.io/v1beta1/nodes"),
        pods(env, &probe),
        not_ready_workloads(&probe),
        probe.get::<ConfigMap>(&published_path),
        probe.get::<ConfigMap>(&hosting_path),
    );
    match checks {
        Ok(response) => control_plane.checks = ready_checks(&response),
        Err(error) => control_plane.error = Some(format!("/readyz: {error}")),
    }
    let by_node = pods.as_ref().ok().map(|tally| tally.by_node.clone());
    // Without metrics the rows have no usage.
    let metrics = metrics.unwrap_or_default();
    let nodes = nodes.map(|nodes| nodes::rows(&nodes.items, &metrics, by_node.as_ref()));
    let workloads = pods.and_then(|tally| Ok(with_not_ready(tally.workloads, not_ready?)));
    let content = ApiContent { nodes: Section::of(nodes), workloads: Section::of(workloads), published, hosting };
    (control_plane, Some(content))
}

/// Parses the verbose answer of `/readyz`: `[+]NAME ok` and `[-]NAME failed: …`.
fn ready_checks(response: &ProbeResponse) -> Vec<ReadyCheck> {
    let text = String::from_utf8_lossy(&response.body);
    let check = |line: &str| {
        let passes = line.starts_with("[+]");
        let name = line.strip_prefix("[+]").or_else(|| line.strip_prefix("[-]"))?.split_whitespace().next()?;
        Some(ReadyCheck { name: name.to_owned(), passes })
    };
    let checks: Vec<ReadyCheck> = text.lines().filter_map(check).collect();
    // Another server's answer may have no checks; its status counts.
    if checks.is_empty() {
        return vec![ReadyCheck { name: "readyz".to_owned(), passes: response.status.is_success() }];
    }
    checks
}

/// All pods, page by page, as far as they come in time.
async fn pods(env: &Env, probe: &ApiProbe) -> Result<PodTally, ProbeError> {
    let (mut tally, mut next, now) = (PodTally::default(), String::new(), env.now());
    let deadline = env.elapsed() + PODS_TIMEOUT;
    loop {
        let query = query_string(&[("limit", PAGE), ("continue", &next)]);
        let page = probe.get::<List<Pod>>(&format!("/api/v1/pods?{}", query.trim_start_matches('?'))).await?;
        page.items.iter().for_each(|pod| tally.add(pod, now));
        next = page.metadata.continue_.unwrap_or_default();
        if next.is_empty() {
            return Ok(tally);
        }
        if env.elapsed() > deadline {
            tally.workloads.truncated = true;
            return Ok(tally);
        }
    }
}

/// Deployments, StatefulSets and DaemonSets that aren't ready.
async fn not_ready_workloads(probe: &ApiProbe) -> Result<Vec<NotReady>, ProbeError> {
    let (deployments, stateful_sets, daemon_sets) = tokio::join!(
        probe.get::<List<Deployment>>("/apis/apps/v1/deployments"),
        probe.get::<List<StatefulSet>>("/apis/apps/v1/statefulsets"),
        probe.get::<List<DaemonSet>>("/apis/apps/v1/daemonsets"),
    );
    let mut found: Vec<NotReady> = deployments?.items.iter().filter_map(workloads::deployment).collect();
    found.extend(stateful_sets?.items.iter().filter_map(workloads::stateful_set));
    found.extend(daemon_sets?.items.iter().filter_map(workloads::daemon_set));
    found.sort();
    Ok(found)
}

fn with_not_ready(workloads: Workloads, mut not_ready: Vec<NotReady>) -> Workloads {
    let not_ready_count = not_ready.len() as u64;
    not_ready.truncate(LISTED_MAX);
    Workloads { not_ready, not_ready_count, ..workloads }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};

    use super::*;

    #[test]
    fn checks_of_readyz_are_read() {
        let of = |status, text: &'static str| {
            let checks = ready_checks(&ProbeResponse { status, headers: HeaderMap::new(), body: text.into() });
            checks.into_iter().map(|check| (check.name, check.passes)).collect::<Vec<_>>()
        };
        let text = "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n";
        let found = of(StatusCode::INTERNAL_SERVER_ERROR, text);
        assert_eq!(found, [("ping".to_owned(), true), ("etcd".to_owned(), false)]);
        assert_eq!(of(StatusCode::OK, "ok"), [("readyz".to_owned(), true)]);
        assert_eq!(of(StatusCode::SERVICE_UNAVAILABLE, ""), [("readyz".to_owned(), false)]);
    }
}

//! The Node object of an agent. Pure, except for the observation of the machine.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;

use images::Images;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeStatus, Taint};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;
use machinery_api::{names, time};
use runtime_api::ledger::{Ledger, Resource};
use serde_json::{Value, json};

use super::NodeConfig;
use super::pressure::{ActivePressures, MachineReading, Pressure, ResourceAmount, Shortage};
use super::thresholds::EvictionThresholds;
use crate::pod::node_facts::NodeFacts;

/// The version that the nodes report.
pub const KUBELET_VERSION: &str = "v1.36.0+coracle";
/// The default maximum number of pods, if the pod CIDR has as many addresses. Upstream's default is 110. An idle pod
/// needs no process and less than 100 KiB here, so that memory of busy pods is the first limit.
pub const MAX_PODS_DEFAULT: u32 = 2000;
/// The maximum number of entries in `status.images` (upstream's).
const IMAGES_MAX: usize = 50;
/// The conditions that an agent reports.
const CONDITIONS: [&str; 4] = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];
/// The resources that an agent reports.
const RESOURCES: [&str; 4] = ["cpu", "memory", "ephemeral-storage", "pods"];

/// The resources of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// CPU, in thousandths of a core.
    pub cpu_millis: u64,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// The guests' memory in bytes, which requests are allocated from.
    pub guest_memory_bytes: u64,
    /// The disk for volumes and logs, in bytes.
    pub ephemeral_bytes: u64,
    /// The maximum number of pods.
    pub pods: u32,
}

impl Capacity {
    /// The machine's resources divided by `nodes`; `guest_memory_bytes` is the bound of all guests.
    #[must_use]
    pub fn of_machine(nodes: u32, data_dir: &Path, guest_memory_bytes: u64) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let nodes = u64::from(nodes.max(1));
        Self {
            cpu_millis: cores * 1000 / nodes,
            memory_bytes: memory().map_or(0, |(total, _)| total) / nodes,
            guest_memory_bytes: guest_memory_bytes / nodes,
            ephemeral_bytes: disk(data_dir).map_or(0, |(total, _)| total) / nodes,
            pods: MAX_PODS_DEFAULT,
        }
    }

    fn resources(self) -> BTreeMap<String, Wire> {
        let cpu = if self.cpu_millis.is_multiple_of(1000) {
            (self.cpu_millis / 1000).to_string()
        } else {
            format!("{}m", self.cpu_millis)
        };
        [
            ("cpu", cpu),
            ("memory", format!("{}Ki", self.memory_bytes >> 10)),
            ("ephemeral-storage", format!("{}Ki", self.ephemeral_bytes >> 10)),
            ("pods", self.pods.to_string()),
        ]
        .into_iter()
        .map(|(name, amount)| (name.to_owned(), Wire(amount)))
        .collect()
    }

    /// The amounts that pods can request.
    #[must_use]
    pub fn allocatable(self) -> BTreeMap<String, Wire> {
        Self { memory_bytes: self.guest_memory_bytes.min(self.memory_bytes), ..self }.resources()
    }
}

/// The total and the free memory, in bytes.
fn memory() -> Option<(u64, u64)> {
    let mut system = sysinfo::System::new().ok()?;
    system.refresh_memory();
    Some((system.total_memory(), system.available_memory()))
}

/// The space of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    /// Its size, in bytes.
    pub total_bytes: u64,
    /// The bytes that this user may still write.
    pub free_bytes: u64,
}

impl FileSystem {
    /// The file system of an existing folder, as the eviction manager reads it; `None` if the system doesn't report it.
    #[must_use]
    pub fn of(folder: &Path) -> Option<Self> {
        disk(folder).map(|(total_bytes, free_bytes)| Self { total_bytes, free_bytes })
    }
}

/// The total and free bytes of the disk of a folder. Queries no other disk: an unreachable network disk would block.
#[cfg(unix)]
pub(super) fn disk(folder: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    Some((stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize)))
}

/// The total and free bytes of the disk of a folder.
#[cfg(not(unix))]
pub(super) fn disk(folder: &Path) -> Option<(u64, u64)> {
    let folder = folder.canonicalize().ok()?;
    let disks = sysinfo::Disks::new_with_refreshed_list().ok()?;
    let on = disks.iter().filter(|disk| folder.starts_with(disk.mount_point()));
    let disk = on.max_by_key(|disk| disk.mount_point().as_os_str().len())?;
    Some((disk.total_space(), disk.available_space()))
}

/// The inodes of a folder's file system; `None` if they are unbounded.
#[cfg(unix)]
fn inodes(folder: &Path) -> Option<ResourceAmount> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    Some(ResourceAmount { total: stat.f_files, free: stat.f_favail })
}

/// The inodes of a folder's file system, which are unknown on this system.
#[cfg(not(unix))]
fn inodes(_: &Path) -> Option<ResourceAmount> {
    None
}

fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The labels of docs/contract.md §3, and the configured ones.
pub(super) fn labels(config: &NodeConfig) -> BTreeMap<String, String> {
    let mut labels = config.labels.clone();
    for (name, value) in [
        // Charts select this label; a module runs on any host.
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch()),
        (names::HOSTNAME, &config.name),
        (names::HOST_OS, std::env::consts::OS),
        (names::RUNTIME, "wasm"),
    ] {
        labels.insert(name.to_owned(), value.to_owned());
    }
    labels
}

/// The Node's admission facts before the first response of the API.
pub(super) fn facts(config: &NodeConfig) -> NodeFacts {
    let taint = |(key, value, effect): &(String, String, String)| Taint {
        key: key.clone(),
        value: Some(value.clone()),
        effect: effect.clone(),
        time_added: None,
    };
    NodeFacts { name: config.name.clone(), labels: labels(config), taints: config.taints.iter().map(taint).collect() }
}

/// The configured annotations, and the address that a provider has to know.
pub(super) fn annotations(config: &NodeConfig) -> BTreeMap<String, String> {
    let provided = config.external_provider.then(|| (names::PROVIDED_IP.to_owned(), config.internal_ip.to_string()));
    config.annotations.clone().into_iter().chain(provided).collect()
}

/// The Node object at registration; `cidr` is the pod CIDR of an earlier registration.
pub(super) fn node(config: &NodeConfig, cidr: Option<&str>) -> Value {
    let taint = |key: &str, value: &str, effect: &str| json!({"key": key, "value": value, "effect": effect});
    let own = config.taints.iter().map(|(key, value, effect)| taint(key, value, effect));
    let waits = config.external_provider.then(|| taint(names::UNINITIALIZED, "true", "NoSchedule"));
    let taints: Vec<Value> = own.chain(waits).collect();
    let mut node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": config.name, "labels": labels(config)},
        "spec": {},
    });
    if !taints.is_empty() {
        node["spec"]["taints"] = json!(taints);
    }
    let annotations = annotations(config);
    if !annotations.is_empty() {
        node["metadata"]["annotations"] = json!(annotations);
    }
    if let Some(cidr) = cidr {
        node["spec"]["podCIDR"] = json!(cidr);
        node["spec"]["podCIDRs"] = json!([cidr]);
    }
    node
}

/// The agent's own part of a Node's status, without times: the conditions and resources that it reports.
pub(super) fn own(node: Option<&Node>) -> Option<NodeStatus> {
    let status = node?.status.clone()?;
    let mut conditions: Vec<NodeCondition> = status
        .conditions
        .into_iter()
        .flatten()
        .filter(|condition| CONDITIONS.contains(&condition.type_.as_str()))
        .map(|condition| NodeCondition { last_heartbeat_time: None, last_transition_time: None, ..condition })
        .collect();
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    let counted = |amounts: Option<BTreeMap<String, Wire>>| {
        amounts.map(|amounts| amounts.into_iter().filter(|(name, _)| RESOURCES.contains(&name.as_str())).collect())
    };
    Some(NodeStatus {
        conditions: Some(conditions),
        capacity: counted(status.capacity),
        allocatable: counted(status.allocatable),
        addresses: status.addresses,
        daemon_endpoints: status.daemon_endpoints,
        images: status.images,
        node_info: status.node_info,
        runtime_handlers: status.runtime_handlers,
        ..NodeStatus::default()
    })
}

/// The changing part of a node's status.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Health {
    /// The node has a pod CIDR.
    pub(super) networked: bool,
    /// The node is shutting down.
    pub(super) shutting_down: bool,
    pub(super) pressures: ActivePressures,
    /// Names and sizes of images.
    pub(super) images: Vec<(Vec<String>, u64)>,
}

/// The result of an observation.
#[derive(Debug, Clone, Default)]
pub(super) struct Observation {
    /// Names and sizes of images.
    pub(super) images: Vec<(Vec<String>, u64)>,
    pub(super) shortages: Vec<Shortage>,
}

/// Observes the machine. `guest_memory` is that of this node's guests, `ledger` counts all guests of the process. May block.
pub(super) fn observe(
    images: &Images,
    data_dir: &Path,
    guest_memory: ResourceAmount,
    ledger: &Ledger,
    thresholds: &EvictionThresholds,
) -> Observation {
    let amount = |(total, free): (u64, u64)| ResourceAmount { total, free };
    let mut images: Vec<(Vec<String>, u64)> =
        images.list().iter().map(|i| (vec![i.image_id.clone(), i.name.clone()], i.size_bytes)).collect();
    images.sort();
    images.sort_by_key(|(_, bytes)| Reverse(*bytes));
    images.truncate(IMAGES_MAX);
    let (open, most) = (ledger.used(Resource::Descriptors), ledger.limit(Resource::Descriptors));
    let reading = MachineReading {
        memory_bytes: memory().map(amount),
        guest_memory_bytes: Some(guest_memory),
        disk_bytes: disk(data_dir).map(amount),
        inodes: inodes(data_dir),
        descriptors: Some(ResourceAmount { total: most, free: most.saturating_sub(open) }),
    };
    Observation { images, shortages: reading.shortages(thresholds) }
}

/// The conditions: type, status, reason, message.
pub(super) fn conditions(health: &Health) -> [(&'static str, bool, &'static str, &'static str); 4] {
    let ready = if health.shutting_down {
        ("Ready", false, "KubeletNotReady", "node is shutting down")
    } else if health.networked {
        ("Ready", true, "KubeletReady", "kubelet is posting ready status")
    } else {
        (
            "Ready",
            false,
            "KubeletNotReady",
            "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:the node has \
             no podCIDR yet",
        )
    };
    let [memory, disk, pid] = [Pressure::Memory, Pressure::Disk, Pressure::Pid]
        .map(|pressure| pressure.condition(health.pressures.has(pressure)));
    [memory, disk, pid, ready]
}

/// The status as a strategic merge patch. `known` is the last known Node, for its transition times.
pub(super) fn status(config: &NodeConfig, port: u16, health: &Health, known: Option<&Node>, now: Timestamp) -> Value {
    let node = known;
    let known = known.and_then(|node| node.status.as_ref()?.conditions.as_deref()).unwrap_or_default();
    let stamp = time::seconds(now);
    let conditions: Vec<Value> = conditions(health)
        .into_iter()
        .map(|(kind, status, reason, message)| {
            let status = if status { "True" } else { "False" };
            let before = known.iter().find(|before| before.type_ == kind && before.status == status);
            let since = before.and_then(|before| Some(time::seconds(before.last_transition_time.as_ref()?.0)));
            json!({
                "type": kind, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": stamp, "lastTransitionTime": since.as_ref().unwrap_or(&stamp),
            })
        })
        .collect();
    let images: Vec<Value> =
        health.images.iter().map(|(names, bytes)| json!({"names": names, "sizeBytes": bytes})).collect();
    let mut patch = json!({"status": {
        "capacity": config.capacity.resources(),
        "allocatable": config.capacity.allocatable(),
        "conditions": conditions,
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        "images": images,
        "nodeInfo": info(config),
        "runtimeHandlers": [{"name": "wasm", "features": {"recursiveReadOnlyMounts": true, "userNamespaces": false}}],
    }});
    if let Some(addresses) = own_addresses(config, node) {
        patch["status"]["addresses"] = json!(addresses);
    }
    patch
}

/// The agent's addresses as a part of the patch; `None` if a provider's ones stand, which go first as in upstream's
/// `NodeAddress`.
fn own_addresses(config: &NodeConfig, known: Option<&Node>) -> Option<Vec<Value>> {
    let is_provided = !config.external_provider && known.is_some_and(is_provided);
    let addresses = known.and_then(|node| node.status.as_ref()?.addresses.as_deref()).unwrap_or_default();
    if is_provided && addresses.iter().any(|address| address.type_ != "Hostname") {
        return None;
    }
    let own = [("InternalIP", config.internal_ip.to_string()), ("Hostname", config.name.clone())];
    let own = own.map(|(kind, address)| json!({"type": kind, "address": address}));
    // In place of all addresses, so that foreign ones go, which the serving certificate would wait for. A cloud provider's
    // own ones stay (upstream's `fixupPatchForNodeStatusAddresses`).
    let replaces = (!config.external_provider).then(|| json!({"$patch": "replace"}));
    Some(replaces.into_iter().chain(own).collect())
}

/// Whether a provider has described the Node, or is to do so.
fn is_provided(node: &Node) -> bool {
    let has_id = node.spec.as_ref().and_then(|spec| spec.provider_id.as_ref()).is_some_and(|id| !id.is_empty());
    has_id || node.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(names::PROVIDED_IP))
}

/// The boot of this machine; empty where the system has no identifier of it.
pub(super) fn boot_id() -> String {
    file("/proc/sys/kernel/random/boot_id")
}

fn file(path: &str) -> String {
    std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

fn info(config: &NodeConfig) -> Value {
    let machine = file("/etc/machine-id");
    json!({
        "architecture": arch(),
        "bootID": boot_id(),
        "containerRuntimeVersion": config.runtime_version,
        "kernelVersion": sysinfo::System::kernel_version().unwrap_or_default(),
        "kubeProxyVersion": "",
        "kubeletVersion": KUBELET_VERSION,
        // Several nodes of one machine need different ids.
        "machineID": format!("{machine}-{}", config.name).trim_start_matches('-'),
        "operatingSystem": "linux",
        "osImage": sysinfo::System::long_os_version().unwrap_or_default(),
        "systemUUID": format!("{machine}-{}", config.name).trim_start_matches('-'),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_status_fields_are_kept() {
        let of = |status: Value| own(Some(&serde_json::from_value(json!({"metadata": {}, "status": status})).unwrap()));
        let ready = |status: &str, at: &str| json!({"type": "Ready", "status": status, "lastHeartbeatTime": at});
        let plain = |conditions: Value| of(json!({"conditions": conditions, "capacity": {"cpu": "1"}}));
        let before = plain(json!([ready("True", "2026-01-01T00:00:00Z")]));
        assert_eq!(before, plain(json!([ready("True", "2026-01-01T00:05:00Z")])));
        let network = json!({"type": "NetworkUnavailable", "status": "False"});
        assert_eq!(before, plain(json!([network, ready("True", "2026-01-01T00:05:00Z")])));
        let dongle = json!({"conditions": [ready("True", "2026-01-01T00:00:00Z")],
            "capacity": {"cpu": "1", "example.com/dongle": "4"}, "volumesInUse": ["x"]});
        assert_eq!(before, of(dongle));
        assert_ne!(before, plain(json!([ready("Unknown", "2026-01-01T00:00:00Z")])));
        assert_ne!(
            before,
            of(json!({"conditions": [ready("True", "2026-01-01T00:00:00Z")], "capacity": {"cpu": "2"}}))
        );
        assert_eq!(own(None), None);
    }

    #[test]
    fn capacity_is_written_as_upstream_does() {
        let capacity = Capacity {
            cpu_millis: 1500,
            memory_bytes: 8 << 30,
            guest_memory_bytes: 6 << 30,
            ephemeral_bytes: 1 << 30,
            pods: 110,
        };
        let text = |of: BTreeMap<String, Wire>| serde_json::to_string(&of).unwrap();
        assert_eq!(
            text(capacity.resources()),
            r#"{"cpu":"1500m","ephemeral-storage":"1048576Ki","memory":"8388608Ki","pods":"110"}"#
        );
        assert!(text(capacity.allocatable()).contains(r#""memory":"6291456Ki""#));
    }
}

//! The data plane's checkpoint: the last known Services with their EndpointSlices, in one file. A start that gets no
//! answer from the API server routes by it until the first list.
//!
//! [`encode`] and [`decode`] are pure. The body has one line of JSON per Service, `[SERVICE, [SLICE, …]]`, with the fields
//! that the table reads. Invariant: routing never waits for the file.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Service, ServiceStatus};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery_api::names;
use machinery_client::checkpoint::{self, CheckpointError};

use crate::routing::table::SOURCE_RANGES;

/// How long a start waits for the API server before it uses the checkpoint: as the node agent's.
pub(crate) const API_WAIT: Duration = Duration::from_secs(5);
/// The minimum interval of writes: a rollout changes slices several times a second.
const INTERVAL_MIN: Duration = Duration::from_secs(5);
/// The maximum rate of writes in bytes per second, so that constant changes of a large cluster don't wear the disk.
const BYTES_PER_SECOND: u64 = 1 << 20;
/// The delay before a failed write is retried, doubled up to the maximum.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// The maximum length of the file in bytes: above 1,000,000 endpoints of some 120 bytes.
pub(crate) const BYTES_MAX: usize = 128 << 20;
/// The kind of the file, in its header.
const KIND: &str = "routes";

/// A Service and its slices.
pub(crate) type RouteRecord = (Service, Vec<EndpointSlice>);

/// The part of a Service that routes depend on.
pub(crate) fn reduce_service(service: &Service) -> Service {
    let metadata = &service.metadata;
    let ranges = metadata.annotations.as_ref().and_then(|all| all.get_key_value(SOURCE_RANGES));
    Service {
        metadata: ObjectMeta {
            annotations: ranges.map(|(key, value)| [(key.clone(), value.clone())].into()),
            uid: metadata.uid.clone(),
            ..named(metadata)
        },
        spec: service.spec.clone(),
        status: service
            .status
            .as_ref()
            .and_then(|status| status.load_balancer.clone())
            .map(|balancer| ServiceStatus { load_balancer: Some(balancer), conditions: None }),
    }
}

/// The part of a slice that routes depend on.
pub(crate) fn reduce_slice(slice: &EndpointSlice) -> EndpointSlice {
    let owner = slice.metadata.labels.as_ref().and_then(|labels| labels.get_key_value(names::SERVICE_NAME));
    let endpoint = |endpoint: &Endpoint| Endpoint {
        addresses: endpoint.addresses.iter().take(1).cloned().collect(),
        conditions: endpoint.conditions.clone(),
        hints: endpoint.hints.clone(),
        hostname: endpoint.hostname.clone(),
        node_name: endpoint.node_name.clone(),
        zone: endpoint.zone.clone(),
        ..Endpoint::default()
    };
    EndpointSlice {
        metadata: ObjectMeta {
            labels: owner.map(|(key, value)| [(key.clone(), value.clone())].into()),
            ..named(&slice.metadata)
        },
        address_type: slice.address_type.clone(),
        endpoints: slice.endpoints.as_ref().map(|all| all.iter().map(endpoint).collect()),
        ports: slice.ports.clone(),
    }
}

fn named(metadata: &ObjectMeta) -> ObjectMeta {
    ObjectMeta { name: metadata.name.clone(), namespace: metadata.namespace.clone(), ..ObjectMeta::default() }
}

/// Appends a record to a body.
pub(crate) fn encode(record: &RouteRecord, body: &mut Vec<u8>) {
    let length = body.len();
    match serde_json::to_writer(&mut *body, record) {
        Ok(()) => body.push(b'\n'),
        // Kubernetes' types have string keys only, so that this doesn't happen; a part of a line isn't kept.
        Err(error) => {
            tracing::error!(%error, "a Service cannot be encoded");
            body.truncate(length);
        }
    }
}

/// The records of a body.
///
/// # Errors
/// A line is invalid.
pub(crate) fn decode(body: &[u8]) -> Result<Vec<RouteRecord>, CheckpointError> {
    let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).map_err(CheckpointError::damaged)).collect()
}

/// Reads the file of an earlier run; without a usable one, there are no records. Blocks.
pub(crate) fn load(path: &Path) -> Vec<RouteRecord> {
    let read = checkpoint::read(path, KIND, BYTES_MAX).and_then(|body| body.map(|body| decode(&body)).transpose());
    read.unwrap_or_else(|error| {
        checkpoint::discard(path, &error);
        None
    })
    .unwrap_or_default()
}

/// Replaces the file, in a folder that only this user can read, which is created if it is missing. Blocks.
///
/// # Errors
/// The system's error.
pub(crate) fn store(path: &Path, body: &[u8]) -> std::io::Result<()> {
    if body.len() > BYTES_MAX - checkpoint::HEADER_BYTES_MAX {
        return Err(std::io::Error::other(format!("it would have {} bytes, of at most {BYTES_MAX}", body.len())));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.exists() {
        std::fs::create_dir_all(folder)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700))?;
        }
    }
    checkpoint::write(path, KIND, body)?;
    checkpoint::sync_folder(folder)
}

/// Decides when the file is written. Pure.
#[derive(Debug, Default)]
pub(crate) struct WriteSchedule {
    /// The routes have changed since the last body.
    changed: bool,
    /// The last stored body's hash.
    stored: Option<u64>,
    failures: u32,
}

impl WriteSchedule {
    pub(crate) fn record_change(&mut self) {
        self.changed = true;
    }

    /// Whether a body is to be made now. It contains all changes so far.
    pub(crate) fn take_change(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Whether this body differs from the stored one.
    pub(crate) fn differs(&self, hash: u64) -> bool {
        self.stored != Some(hash)
    }

    /// Records a write of that hash. Returns the delay of the next one.
    pub(crate) fn record_write(&mut self, hash: u64, bytes: usize, succeeded: bool) -> Duration {
        if succeeded {
            (self.stored, self.failures) = (Some(hash), 0);
            return INTERVAL_MIN.max(Duration::from_secs(bytes as u64 / BYTES_PER_SECOND));
        }
        self.changed = true;
        self.failures = self.failures.saturating_add(1);
        INTERVAL_MIN.saturating_mul(1 << self.failures.min(8)).min(RETRY_MAX)
    }
}

impl WriteSchedule {
    /// The delay of the first write and after a check without a change.
    pub(crate) const IDLE: Duration = INTERVAL_MIN;
}

#[cfg(test)]
mod tests {
    use bolero::check;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn record(name: &str, ip: &str, port: i32) -> RouteRecord {
        let service = json!({"metadata": {"name": name, "namespace": "shop", "uid": "1", "resourceVersion": "7",
                "labels": {"a": "b"}, "annotations": {SOURCE_RANGES: "10.0.0.0/8", "other": "x"}},
            "spec": {"clusterIP": ip, "ports": [{"port": port}]},
            "status": {"loadBalancer": {"ingress": [{"ip": ip}]}, "conditions": []}});
        let slice = json!({"metadata": {"name": format!("{name}-1"), "namespace": "shop",
                "labels": {names::SERVICE_NAME: name, "other": "x"}},
            "addressType": "IPv4", "ports": [{"name": "", "port": port}],
            "endpoints": [{"addresses": [ip, "10.0.0.9"], "nodeName": "n", "zone": "z", "targetRef": {"kind": "Pod"},
                "hints": {"forZones": [{"name": "z"}]}, "conditions": {"ready": true}}]});
        (serde_json::from_value(service).unwrap(), vec![serde_json::from_value(slice).unwrap()])
    }

    fn reduced((service, slices): &RouteRecord) -> RouteRecord {
        (reduce_service(service), slices.iter().map(reduce_slice).collect())
    }

    #[test]
    fn only_inputs_of_routes_are_kept() {
        let (service, slices) = reduced(&record("catalog", "127.64.0.7", 80));
        assert_eq!(service.metadata.annotations.unwrap().len(), 1);
        assert!(service.metadata.labels.is_none() && service.metadata.resource_version.is_none());
        assert!(service.status.unwrap().load_balancer.is_some());
        let endpoint = &slices[0].endpoints.as_ref().unwrap()[0];
        assert_eq!((endpoint.addresses.len(), endpoint.node_name.as_deref()), (1, Some("n")));
        assert!(endpoint.target_ref.is_none() && endpoint.hints.is_some());
        assert_eq!(endpoint.zone.as_deref(), Some("z"));
        assert_eq!(slices[0].metadata.labels.as_ref().unwrap().len(), 1);
    }

    proptest! {
        #[test]
        fn records_come_back(names in proptest::collection::vec((any::<String>(), any::<i32>()), 0..5)) {
            let records: Vec<_> =
                names.iter().map(|(name, port)| reduced(&record(name, "127.64.0.7", *port))).collect();
            let mut body = Vec::new();
            records.iter().for_each(|record| encode(record, &mut body));
            prop_assert_eq!(decode(&body).unwrap(), records);
        }
    }

    #[test]
    fn any_bytes_are_records_or_an_error() {
        let pieces: &[&[u8]] =
            &[b"[", b"]", b"{", b"}", b",", b"\n", b"null", b"{\"metadata\":{}}", b"[]", b"\"", b"\xff"];
        check!().with_type::<Vec<u8>>().for_each(|picks| {
            let _ = decode(picks);
            let body: Vec<u8> =
                picks.iter().flat_map(|pick| pieces[usize::from(*pick) % pieces.len()]).copied().collect();
            let _ = decode(&body);
        });
    }

    #[test]
    fn a_damaged_file_has_no_records_and_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy/routes.json");
        assert!(load(&path).is_empty());
        let mut body = Vec::new();
        encode(&reduced(&record("catalog", "127.64.0.7", 80)), &mut body);
        store(&path, &body).unwrap();
        assert_eq!(load(&path).len(), 1);
        store(&path, b"[1]\n").unwrap();
        assert!(load(&path).is_empty() && !path.exists());
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(store(&dir.path().join("file/routes.json"), &body).is_err());
    }

    #[test]
    fn writes_are_few_and_failed_ones_are_tried_again() {
        let mut schedule = WriteSchedule::default();
        assert!(!schedule.take_change());
        schedule.record_change();
        schedule.record_change();
        assert!(schedule.take_change() && !schedule.take_change() && schedule.differs(7));
        let seconds = |wait: Duration| wait.as_secs();
        let waits: Vec<_> = (0..6).map(|_| seconds(schedule.record_write(7, 10, false))).collect();
        assert_eq!(waits, [10, 20, 40, 60, 60, 60]);
        assert!(schedule.take_change() && schedule.differs(7));
        assert_eq!(seconds(schedule.record_write(7, 10, true)), 5);
        assert!(!schedule.differs(7) && schedule.differs(8));
        assert_eq!(seconds(schedule.record_write(8, 12 << 20, true)), 12, "1 MiB a second");
    }
}

//! Lease.

use serde_json::Value;

use super::field::FieldError;
use super::{Context, Row, Storage, Strategy};

/// Leases.
pub(super) static ROW: Row = Row {
    group: "coordination.k8s.io",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    schema: "io.k8s.api.coordination.v1.Lease",
    storage: Storage::Stored("leases"),
    strategy: &Lease,
    example: r#"apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {name: example}
spec: {holderIdentity: node-1, leaseDurationSeconds: 40, renewTime: "2026-01-01T00:00:00.000000Z"}
"#,
    ..Row::NAMESPACED
};

struct Lease;

impl Strategy for Lease {
    fn validate(&self, _: &Context<'_>, _: &Value) -> Vec<FieldError> {
        Vec::new()
    }
}

//! Leases: written most often of all kinds (per node every 10 s), with few rules. A PUT may create one, and may omit
//! the resourceVersion.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cells::{AGE, NAME, age, column, name};
use crate::field::{ErrorList, NOT_NEGATIVE, Path};
use crate::read::{get, has, int, object_mut, put, text};
use crate::{Column, Context, Row, Storage, Strategy};

pub(crate) static ROW: Row = Row {
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

const COLUMNS: &[Column] = &[NAME, column("Holder", "string"), AGE];

/// Drops fields of coordinated leader election, which upstream v1.36 disables.
fn drop_disabled(object: &mut Value, old: &Value) {
    let Some(spec) = object.get_mut("spec") else { return };
    for key in ["strategy", "preferredHolder"] {
        if !has(get(old, "spec"), key) {
            put(spec, key, Value::Null);
        }
    }
}

impl Strategy for Lease {
    fn default(&self, object: &mut Value) {
        object_mut(object, "spec");
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        drop_disabled(object, &Value::Null);
    }

    fn prepare_update(&self, _: &Context<'_>, new: &mut Value, old: &Value) {
        drop_disabled(new, old);
    }

    fn checks_finalizers(&self) -> bool {
        false
    }

    fn validate(&self, _: &Context<'_>, object: &Value, _: Option<&Value>, errors: &mut ErrorList) {
        let spec = get(object, "spec");
        let at = Path::root("spec");
        if let Some(seconds) = int(spec, "leaseDurationSeconds").filter(|s| *s <= 0) {
            errors.invalid(&at.child("leaseDurationSeconds"), seconds, "must be greater than 0");
        }
        if let Some(count) = int(spec, "leaseTransitions").filter(|n| *n < 0) {
            errors.invalid(&at.child("leaseTransitions"), count, NOT_NEGATIVE);
        }
    }

    fn create_on_update(&self) -> bool {
        true
    }

    fn unconditional_update(&self) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![name(object), json!(text(get(object, "spec"), "holderIdentity")), age(object, now)]
    }
}

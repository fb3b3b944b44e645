//! CSIDrivers: capabilities and requirements of a volume driver.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cells::{AGE, NAME, age, column, name};
use crate::choices::optional_choice;
use crate::field::{ErrorList, Path};
use crate::read::{at, default_to, flag, get, has, int, items, put, remove, spec_of, text, texts};
use crate::{Column, Context, Row, Storage, Strategy};

pub(crate) static ROW: Row = Row {
    group: "storage.k8s.io",
    kind: "CSIDriver",
    plural: "csidrivers",
    singular: "csidriver",
    schema: "io.k8s.api.storage.v1.CSIDriver",
    storage: Storage::Stored("csidrivers"),
    inert: Some("nothing runs CSI drivers here"),
    strategy: &CsiDriver,
    example: r#"apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: disks.example.com}
spec: {attachRequired: false}
"#,
    ..Row::CLUSTER
};

struct CsiDriver;

const COLUMNS: &[Column] = &[
    NAME,
    column("AttachRequired", "boolean"),
    column("PodInfoOnMount", "boolean"),
    column("StorageCapacity", "boolean"),
    column("TokenRequests", "string"),
    column("RequiresRepublish", "boolean"),
    column("Modes", "string"),
    AGE,
];
const SPEC: Path<'static> = Path::root("spec");
const GROUP_POLICIES: &[&str] = &["File", "None", "ReadWriteOnceWithFSType"];
const MODES: &[&str] = &["Persistent", "Ephemeral"];
const PERIOD_SECONDS_MIN: i64 = 10;
const TOKEN_SECONDS_MIN: i64 = 600;
const TOKEN_SECONDS_MAX: i64 = 1 << 32;
/// A field of a disabled feature.
const NOT_YET: &str = "preventPodSchedulingIfMissing";
const TOKENS_IN_ATTRIBUTES: &str = "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible logging of tokens in volume attributes";

fn tokens(errors: &mut ErrorList, spec: &Value) {
    let list_at = SPEC.child("tokenRequests");
    let mut audiences = BTreeSet::new();
    for (i, request) in items(spec, "tokenRequests").iter().enumerate() {
        let at = list_at.index(i);
        let audience = text(request, "audience");
        if !audiences.insert(audience) {
            errors.duplicate(&at.child("audience"), audience);
            continue;
        }
        let seconds_at = at.child("expirationSeconds");
        match int(request, "expirationSeconds") {
            Some(seconds) if seconds < TOKEN_SECONDS_MIN => {
                errors.invalid(&seconds_at, seconds, "may not specify a duration less than 10 minutes");
            }
            Some(seconds) if seconds > TOKEN_SECONDS_MAX => {
                errors.invalid(&seconds_at, seconds, "may not specify a duration larger than 2^32 seconds");
            }
            _ => {}
        }
    }
}

fn validate(errors: &mut ErrorList, spec: &Value) {
    // Upstream's path of the first differs from the field.
    for (key, shown) in [
        ("attachRequired", "attachedRequired"),
        ("podInfoOnMount", "podInfoOnMount"),
        ("storageCapacity", "storageCapacity"),
    ] {
        if !has(spec, key) {
            errors.required(&SPEC.child(shown), "");
        }
    }
    optional_choice(errors, spec, "fsGroupPolicy", GROUP_POLICIES, &SPEC);
    tokens(errors, spec);
    for mode in texts(spec, "volumeLifecycleModes").filter(|mode| !MODES.contains(mode)) {
        errors.not_supported(&SPEC.child("volumeLifecycleModes"), mode, MODES);
    }
    if !has(spec, "seLinuxMount") {
        errors.required(&SPEC.child("seLinuxMount"), "");
    }
    let period = "nodeAllocatableUpdatePeriodSeconds";
    if let Some(seconds) = int(spec, period).filter(|seconds| *seconds < PERIOD_SECONDS_MIN) {
        errors.invalid(&SPEC.child(period), seconds, "must be greater than or equal to 10 seconds");
    }
    let in_secrets = "serviceAccountTokenInSecrets";
    if has(spec, in_secrets) && items(spec, "tokenRequests").is_empty() {
        let why = "serviceAccountTokenInSecrets is set but no tokenRequests are specified";
        errors.invalid(&SPEC.child(in_secrets), get(spec, in_secrets).clone(), why);
    }
}

impl Strategy for CsiDriver {
    fn default(&self, object: &mut Value) {
        let spec = spec_of(object);
        default_to(spec, "attachRequired", true);
        for key in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
            default_to(spec, key, false);
        }
        default_to(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
        if items(spec, "volumeLifecycleModes").is_empty() {
            put(spec, "volumeLifecycleModes", json!(["Persistent"]));
        }
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        remove(spec_of(object), NOT_YET);
    }

    fn prepare_update(&self, _: &Context<'_>, new: &mut Value, old: &Value) {
        if !has(get(old, "spec"), NOT_YET) {
            remove(spec_of(new), NOT_YET);
        }
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn starts_generation(&self) -> bool {
        false
    }

    fn delete_answers_object(&self) -> bool {
        true
    }

    fn validate(&self, _: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        validate(errors, get(object, "spec"));
        if let Some(old) = old {
            for (key, shown) in
                [("attachRequired", "attachedRequired"), ("volumeLifecycleModes", "volumeLifecycleModes")]
            {
                errors.immutable(&SPEC.child(shown), at(object, &["spec", key]), at(old, &["spec", key]));
            }
        }
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let requests = at(object, &["spec", "tokenRequests"]);
        let changed = old.is_none_or(|old| at(old, &["spec", "tokenRequests"]) != requests);
        let unsafe_now = !items(get(object, "spec"), "tokenRequests").is_empty()
            && !has(get(object, "spec"), "serviceAccountTokenInSecrets");
        (changed && unsafe_now).then(|| TOKENS_IN_ATTRIBUTES.to_owned()).into_iter().collect()
    }

    fn unconditional_update(&self) -> bool {
        false
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = get(object, "spec");
        let modes: Vec<&str> = texts(spec, "volumeLifecycleModes").collect();
        let audiences: Vec<&str> = items(spec, "tokenRequests").iter().map(|r| text(r, "audience")).collect();
        let requests = if has(spec, "tokenRequests") { audiences.join(",") } else { "<unset>".into() };
        vec![
            name(object),
            json!(!has(spec, "attachRequired") || flag(spec, "attachRequired")),
            json!(flag(spec, "podInfoOnMount")),
            json!(flag(spec, "storageCapacity")),
            json!(requests),
            json!(flag(spec, "requiresRepublish")),
            json!(if modes.is_empty() { "<none>".into() } else { modes.join(",") }),
            age(object, now),
        ]
    }
}

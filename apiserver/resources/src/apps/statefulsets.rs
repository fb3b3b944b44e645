//! StatefulSets: pods with stable names and volumes. Most of the spec is immutable.

use std::collections::BTreeSet;

use jiff::Timestamp;
use machinery_api::features::{Feature, Features};
use machinery_api::selector::LabelSelector;
use serde_json::{Map, Value, json};

use crate::cells::{AGE, NAME, age, column, containers_and_images, name, wide};
use crate::choices::choice;
use crate::core::pods::{claims, spec as pod_spec, update::semantically_equal, warnings};
use crate::core::workloads::{
    self, SPEC, STATUS as STATUS_AT, amount, counts_are_bounded, not_negative, number_or_percent,
    percentage_is_bounded, template_matches,
};
use crate::field::{ErrorList, FieldError, Path, go_struct, quoted};
use crate::metadata::{annotations, label_selector, labels};
use crate::read::{
    default_to, default_zero_to, get, has, int, items, items_mut, object_mut, put, remove, spec_of, text,
};
use crate::rules::{self, NameRule};
use crate::{Column, Context, Row, SCALE, STATUS, Storage, Strategy, prepare_update_by_default};

pub(crate) static ROW: Row = Row {
    group: "apps",
    kind: "StatefulSet",
    plural: "statefulsets",
    singular: "statefulset",
    short_names: &["sts"],
    categories: &["all"],
    schema: "io.k8s.api.apps.v1.StatefulSet",
    subresources: &[SCALE, STATUS],
    storage: Storage::Stored("statefulsets"),
    shows_empty: true,
    strategy: &StatefulSet { takes_max_unavailable: false },
    example: r#"apiVersion: apps/v1
kind: StatefulSet
metadata: {name: example}
spec:
  serviceName: example
  selector: {matchLabels: {app: example}}
  template:
    metadata: {labels: {app: example}}
    spec:
      containers: [{name: db, image: registry.local/hello:v1, volumeMounts: [{name: data, mountPath: /data}]}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec:
      accessModes: [ReadWriteOnce]
      resources: {requests: {storage: 1Gi}}
"#,
    ..Row::NAMESPACED
};

struct StatefulSet {
    /// The gate `MaxUnavailableStatefulSet`: keeps and defaults `updateStrategy.rollingUpdate.maxUnavailable`.
    takes_max_unavailable: bool,
}

const COLUMNS: &[Column] =
    &[NAME, column("Ready", "string"), AGE, wide("Containers", "string"), wide("Images", "string")];

const MAY_CHANGE: &[&str] = &[
    "replicas",
    "template",
    "updateStrategy",
    "minReadySeconds",
    "ordinals",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
];

/// The conditional parts of the validation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ValidationScope {
    /// All rules, on create.
    All,
    /// All rules but those of immutable fields, on update.
    Changes,
    /// As `Changes`, for an old object whose template is no longer valid.
    ChangesBesideTemplate,
}

fn validate(errors: &mut ErrorList, spec: &Value, checks: ValidationScope) {
    match text(spec, "podManagementPolicy") {
        "" => errors.required(&SPEC.child("podManagementPolicy"), ""),
        "OrderedReady" | "Parallel" => {}
        other => {
            errors.invalid(&SPEC.child("podManagementPolicy"), other, "must be 'OrderedReady' or 'Parallel'");
        }
    }
    strategy(errors, get(spec, "updateStrategy"), &SPEC.child("updateStrategy"));
    let retention = get(spec, "persistentVolumeClaimRetentionPolicy");
    let retention_at = SPEC.child("persistentVolumeClaimRetentionPolicy");
    for key in ["whenDeleted", "whenScaled"] {
        if !retention.is_null() {
            choice(errors, retention, key, &["Retain", "Delete"], &retention_at);
        }
    }
    if checks == ValidationScope::All {
        let claims_at = SPEC.child("volumeClaimTemplates");
        for (i, claim) in items(spec, "volumeClaimTemplates").iter().enumerate() {
            claims::spec(errors, get(claim, "spec"), &claims_at.index(i).child("spec"));
        }
    }
    not_negative(errors, spec, &["replicas", "minReadySeconds"], &SPEC);
    errors.non_negative(&SPEC.child("ordinals.start"), int(get(spec, "ordinals"), "start"));
    let service = text(spec, "serviceName");
    if checks == ValidationScope::All && !service.is_empty() {
        errors.invalid_each(&SPEC.child("serviceName"), service, rules::dns_label(service));
    }
    selector_and_template(errors, spec, checks);
}

fn selector_and_template(errors: &mut ErrorList, spec: &Value, checks: ValidationScope) {
    let given = get(spec, "selector");
    let selector_at = SPEC.child("selector");
    if given.is_null() {
        errors.required(&selector_at, "");
    } else {
        label_selector(errors, given, &selector_at);
        workloads::selector_is_not_empty(errors, given, "statefulset", &selector_at);
    }
    let template = get(spec, "template");
    let at = SPEC.child("template");
    let parsed = if given.is_null() { Ok(LabelSelector::nothing()) } else { LabelSelector::from_value(Some(given)) };
    match parsed {
        Err(_) => errors.add(|| FieldError::invalid_shown(&selector_at, &workloads::go_selector(given), "")),
        Ok(selector) => {
            template_matches(errors, &selector, template, &at);
            if checks != ValidationScope::ChangesBesideTemplate {
                pod_spec::template(errors, &effective_template(spec), &at);
            }
            let meta = get(template, "metadata");
            labels(errors, get(meta, "labels"), &at.child("labels"));
            annotations(errors, get(meta, "annotations"), &at.child("annotations"));
            let notes = get(meta, "annotations");
            pod_spec::pod_annotations(errors, notes, get(template, "spec"), &at.child("annotations"));
        }
    }
    workloads::restart_policy_always(errors, template, "StatefulSet", &at);
}

/// The template with the claims' volumes, and without the names that each pod gets.
fn effective_template(spec: &Value) -> Value {
    let mut template = get(spec, "template").clone();
    let claims: BTreeSet<&str> =
        items(spec, "volumeClaimTemplates").iter().map(|claim| text(get(claim, "metadata"), "name")).collect();
    let pod = object_mut(&mut template, "spec");
    for key in ["subdomain", "hostname"] {
        remove(pod, key);
    }
    if claims.is_empty() {
        return template;
    }
    let own = items(pod, "volumes").iter().filter(|volume| !claims.contains(text(volume, "name"))).cloned();
    let of_claims = claims.iter().map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
    let volumes: Vec<Value> = of_claims.chain(own).collect();
    put(pod, "volumes", Value::Array(volumes));
    template
}

/// Upstream's internal struct as JSON.
fn go_rolling_update(rolling: &Value) -> String {
    if rolling.is_null() {
        return "null".into();
    }
    let partition = json!(int(rolling, "partition").unwrap_or(0));
    let inner = json!({"Partition": partition, "MaxUnavailable": get(rolling, "maxUnavailable")});
    go_struct(&inner, &["Partition", "MaxUnavailable"])
}

fn strategy(errors: &mut ErrorList, strategy: &Value, path: &Path<'_>) {
    let rolling = get(strategy, "rollingUpdate");
    let rolling_at = path.child("rollingUpdate");
    match text(strategy, "type") {
        "" => errors.required(path, ""),
        "OnDelete" => {
            if !rolling.is_null() {
                let why = "only allowed for updateStrategy 'RollingUpdate'";
                errors.add(|| FieldError::invalid_shown(&rolling_at, &go_rolling_update(rolling), why));
            }
        }
        "RollingUpdate" => {
            errors.non_negative(&rolling_at.child("partition"), int(rolling, "partition"));
            if has(rolling, "maxUnavailable") {
                let (most, at) = (get(rolling, "maxUnavailable"), rolling_at.child("maxUnavailable"));
                number_or_percent(errors, most, &at);
                if amount(most) == 0 {
                    errors.invalid(&at, most.clone(), "cannot be 0");
                }
                percentage_is_bounded(errors, most, &at);
            }
        }
        other => {
            let shown = format!("{{\"Type\":{},\"RollingUpdate\":{}}}", quoted(other), go_rolling_update(rolling));
            errors.add(|| FieldError::invalid_shown(path, &shown, "must be 'RollingUpdate' or 'OnDelete'"));
        }
    }
}

fn validate_status(errors: &mut ErrorList, status: &Value) {
    let counts = [
        "replicas",
        "readyReplicas",
        "currentReplicas",
        "updatedReplicas",
        "availableReplicas",
        "observedGeneration",
        "collisionCount",
    ];
    not_negative(errors, status, &counts, &STATUS_AT);
    let why = "cannot be greater than status.replicas";
    counts_are_bounded(
        errors,
        status,
        &[
            ("readyReplicas", "replicas", why),
            ("currentReplicas", "replicas", why),
            ("updatedReplicas", "replicas", why),
            ("availableReplicas", "replicas", why),
            ("availableReplicas", "readyReplicas", "cannot be greater than status.readyReplicas"),
        ],
    );
}

/// Drops `maxUnavailable` unless the old object has it, while its gate is off.
fn drop_max_unavailable(new: &mut Value, old: Option<&Value>) {
    let rolling = |of: &Value| has(get(get(get(of, "spec"), "updateStrategy"), "rollingUpdate"), "maxUnavailable");
    if !old.is_some_and(rolling)
        && let Some(rolling) = new.pointer_mut("/spec/updateStrategy/rollingUpdate")
    {
        remove(rolling, "maxUnavailable");
    }
}

/// The spec without its mutable fields.
fn immutable_fields(spec: &Value) -> Value {
    let kept: Map<String, Value> = spec
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| !MAY_CHANGE.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    Value::Object(kept)
}

fn default_claim(claim: &mut Value) {
    put(claim, "apiVersion", json!("v1"));
    put(claim, "kind", json!("PersistentVolumeClaim"));
    object_mut(claim, "metadata");
    default_to(spec_of(claim), "volumeMode", "Filesystem");
    default_zero_to(object_mut(claim, "status"), "phase", "Pending");
}

impl Strategy for StatefulSet {
    fn under(&self, features: &Features) -> Option<&'static dyn Strategy> {
        Some(match features.has(Feature::MaxUnavailableStatefulSet) {
            true => &Self { takes_max_unavailable: true },
            false => &Self { takes_max_unavailable: false },
        })
    }

    fn fill_empty_object(&self, object: &mut Value) {
        object["spec"]["replicas"] = 0.into();
    }

    fn default(&self, object: &mut Value) {
        let spec = spec_of(object);
        default_zero_to(spec, "podManagementPolicy", "OrderedReady");
        let strategy = object_mut(spec, "updateStrategy");
        if text(strategy, "type").is_empty() {
            put(strategy, "type", json!("RollingUpdate"));
            object_mut(strategy, "rollingUpdate");
        }
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = strategy.get_mut("rollingUpdate").filter(|rolling| rolling.is_object())
        {
            default_to(rolling, "partition", 0);
            if self.takes_max_unavailable {
                default_to(rolling, "maxUnavailable", 1);
            }
        }
        let retention = object_mut(spec, "persistentVolumeClaimRetentionPolicy");
        default_zero_to(retention, "whenDeleted", "Retain");
        default_zero_to(retention, "whenScaled", "Retain");
        default_to(spec, "replicas", 1);
        default_to(spec, "revisionHistoryLimit", 10);
        workloads::default_template(spec);
        for claim in items_mut(spec, "volumeClaimTemplates") {
            default_claim(claim);
        }
        object_mut(object, "status");
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        workloads::clear_status(object);
        if !self.takes_max_unavailable {
            drop_max_unavailable(object, None);
        }
        workloads::drop_disabled(object, None);
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        prepare_update_by_default(context, new, old);
        if context.subresource != "status" {
            if !self.takes_max_unavailable {
                drop_max_unavailable(new, Some(old));
            }
            workloads::drop_disabled(new, Some(old));
        }
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Label
    }

    fn validate(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        let spec = get(object, "spec");
        let Some(old) = old else { return validate(errors, spec, ValidationScope::All) };
        if context.subresource == "status" {
            validate_status(errors, get(object, "status"));
            return workloads::collision_count_is_monotonic(errors, get(object, "status"), get(old, "status"));
        }
        let old = get(old, "spec");
        let mut of_old = ErrorList::new();
        validate(&mut of_old, old, ValidationScope::Changes);
        let checks = if of_old.is_empty() { ValidationScope::Changes } else { ValidationScope::ChangesBesideTemplate };
        validate(errors, spec, checks);
        if !semantically_equal(&immutable_fields(spec), &immutable_fields(old)) {
            let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
            errors.forbidden(&SPEC, why);
        }
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let spec = get(object, "spec");
        let mut found = Vec::new();
        if old.is_none_or(|old| self.generation_changes(object, old)) {
            warnings::template(&mut found, get(spec, "template"), &SPEC.child("template"));
        }
        let claims_at = SPEC.child("volumeClaimTemplates");
        for (i, claim) in items(spec, "volumeClaimTemplates").iter().enumerate() {
            let at = claims_at.index(i);
            // Upstream's path is the claim's on create, and Go's field name on update.
            let in_claim = at.child("Spec");
            claims::warnings(&mut found, get(claim, "spec"), if old.is_some() { &in_claim } else { &at });
        }
        if int(spec, "revisionHistoryLimit").is_some_and(|limit| limit < 0) {
            found.push("spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended".into());
        }
        found
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (get(object, "spec"), get(object, "status"));
        let count = |of: &Value, key: &str| int(of, key).unwrap_or(0);
        let (containers, images) = containers_and_images(get(spec, "template"));
        let ready = format!("{}/{}", count(status, "readyReplicas"), count(spec, "replicas"));
        vec![name(object), json!(ready), age(object, now), containers, images]
    }
}

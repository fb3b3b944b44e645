//! Validation of a Job's spec, and of its updates.

use serde_json::{Value, json};

use super::policies::{failure_policy, go_failure_rule, go_policy, go_success_rule, success_policy};
use super::{NAME_LABELS, UID_LABELS, is_true};
use crate::choices::optional_choice;
use crate::core::pods::{spec, update::inner_spec, update::semantically_equal};
use crate::core::workloads::{self, SPEC, go_selector, matches, not_negative};
use crate::field::{ErrorList, FieldError, IMMUTABLE, Path};
use crate::go_structs;
use crate::read::{get, has, int, is_zero, items, items_mut, object_mut, put, text};
use crate::rules;

const INDEXED_PARALLELISM_MAX: i64 = 100_000;
const FAILED_INDEXES_MAX: i64 = 100_000;
const COMPLETIONS_MANY: i64 = 100_000;
const PARALLELISM_OF_MANY_MAX: i64 = 10_000;
const FAILED_INDEXES_OF_MANY_MAX: i64 = 10_000;
const MANAGED_BY_BYTES_MAX: usize = 63;

/// An error that omits the value.
pub(super) fn error_without_value(path: &Path<'_>, why: &str) -> FieldError {
    FieldError::new("FieldValueInvalid", path, format!("Invalid value: {why}"))
}

/// Validates a Job.
pub(super) fn job(errors: &mut ErrorList, job: &Value, prefixed_labels: bool) {
    generated_selector(errors, job, prefixed_labels);
    selected_spec(errors, get(job, "spec"));
    let spec = get(job, "spec");
    let name = crate::read::name(job);
    let completions = int(spec, "completions").unwrap_or(0);
    if text(spec, "completionMode") == "Indexed" && completions > 0 {
        let host = format!("{name}-{}", completions - 1);
        if !rules::dns_label(&host).is_empty() {
            let why = format!("will not able to create pod with invalid DNS label: {host}");
            errors.invalid(&Path::root("metadata").child("name"), name, &why);
        }
    }
}

fn generated_selector(errors: &mut ErrorList, job: &Value, prefixed: bool) {
    let (meta, spec) = (get(job, "metadata"), get(job, "spec"));
    let selector = get(spec, "selector");
    if get(spec, "manualSelector") == &Value::Bool(true) || selector.is_null() {
        return;
    }
    let (name, uid) = (text(meta, "name"), text(meta, "uid"));
    if uid.is_empty() {
        errors.required(&Path::root("metadata").child("uid"), "");
    }
    let labels = get(get(get(spec, "template"), "metadata"), "labels");
    let at = SPEC.child("template.metadata.labels");
    let mut expected = serde_json::Map::new();
    for (i, prefix) in [(0, true), (1, prefixed)] {
        if !prefix {
            continue;
        }
        for (key, value) in [(UID_LABELS[i], uid), (NAME_LABELS[i], name)] {
            expected.insert(key.into(), value.into());
            let why = format!("must be '{value}'");
            match labels.get(key).and_then(Value::as_str) {
                None => errors.required(&at.key(key), &why),
                Some(given) if given != value => errors.invalid(&at.key(key), labels.clone(), &why),
                Some(_) => {}
            }
        }
    }
    if let Ok(parsed) = machinery_api::selector::LabelSelector::from_value(Some(selector))
        && !matches(&parsed, &Value::Object(expected))
    {
        let why = "`selector` not auto-generated";
        errors.add(|| FieldError::invalid_shown(&SPEC.child("selector"), &go_selector(selector), why));
    }
}

/// Validates a Job's spec, or that of a CronJob's Job template.
pub(in crate::batch) fn job_spec(errors: &mut ErrorList, spec: &Value, path: &Path<'_>) {
    counts(errors, spec, path);
    if has(spec, "podFailurePolicy") {
        failure_policy(errors, spec, path);
    }
    if has(spec, "successPolicy") {
        success_policy(errors, spec, path);
    }
    let allowed: &[&str] = if has(spec, "podFailurePolicy") { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    optional_choice(errors, spec, "podReplacementPolicy", allowed, path);
    let template = get(spec, "template");
    let template_at = path.child("template");
    spec::template(errors, template, &template_at);
    let policy_at = template_at.child("spec.restartPolicy");
    match text(get(template, "spec"), "restartPolicy") {
        "Always" | "" => errors.required(&policy_at, "valid values: \"OnFailure\", \"Never\""),
        "Never" => {}
        "OnFailure" => {
            if has(spec, "podFailurePolicy") {
                let why = "only \"Never\" is supported when podFailurePolicy is specified";
                errors.invalid(&policy_at, "OnFailure", why);
            }
        }
        other => errors.not_supported(&policy_at, other, &["OnFailure", "Never"]),
    }
}

/// Validates a Job's spec with its selector, which a Job template lacks.
fn selected_spec(errors: &mut ErrorList, spec: &Value) {
    job_spec(errors, spec, &SPEC);
    if let Some(selector) = workloads::selector(errors, spec, None, &SPEC) {
        workloads::template_matches(errors, &selector, get(spec, "template"), &SPEC.child("template"));
    }
}

fn counts(errors: &mut ErrorList, spec: &Value, path: &Path<'_>) {
    let keys = [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ];
    not_negative(errors, spec, &keys, path);
    let (completions, parallelism) = (int(spec, "completions"), int(spec, "parallelism"));
    let (per_index, failed) = (int(spec, "backoffLimitPerIndex"), int(spec, "maxFailedIndexes"));
    if failed.is_some() && per_index.is_none() {
        errors.required(&path.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    if has(spec, "managedBy") {
        managed_by(errors, text(spec, "managedBy"), path);
    }
    let mode = text(spec, "completionMode");
    optional_choice(errors, spec, "completionMode", &["NonIndexed", "Indexed"], path);
    let at = |key| path.child(key);
    if mode == "Indexed" {
        if completions.is_none() {
            errors.required(&at("completions"), "when completion mode is Indexed");
        }
        if let Some(parallelism) = parallelism.filter(|p| *p > INDEXED_PARALLELISM_MAX) {
            let why =
                format!("must be less than or equal to {INDEXED_PARALLELISM_MAX} when completion mode is Indexed");
            errors.invalid(&at("parallelism"), parallelism, &why);
        }
        if let (Some(all), Some(failed)) = (completions, failed)
            && failed > all
        {
            errors.invalid(&at("maxFailedIndexes"), failed, "must be less than or equal to completions");
        }
        if let Some(failed) = failed.filter(|f| *f > FAILED_INDEXES_MAX) {
            let why = format!("must be less than or equal to {FAILED_INDEXES_MAX}");
            errors.invalid(&at("maxFailedIndexes"), failed, &why);
        }
        if completions.is_some_and(|c| c > COMPLETIONS_MANY) && per_index.is_some() {
            let tail = format!("when completions are above {COMPLETIONS_MANY} and used with backoff limit per index");
            if failed.is_none() {
                let why = format!("must be specified when completions is above {COMPLETIONS_MANY}");
                errors.required(&at("maxFailedIndexes"), &why);
            }
            for (key, value, max) in [
                ("parallelism", parallelism, PARALLELISM_OF_MANY_MAX),
                ("maxFailedIndexes", failed, FAILED_INDEXES_OF_MANY_MAX),
            ] {
                if let Some(value) = value.filter(|v| *v > max) {
                    errors.invalid(&at(key), value, &format!("must be less than or equal to {max} {tail}"));
                }
            }
        }
    } else if !has(spec, "completionMode") || mode == "NonIndexed" {
        for (key, value) in [("backoffLimitPerIndex", per_index), ("maxFailedIndexes", failed)] {
            if let Some(value) = value {
                errors.invalid(&at(key), value, "requires indexed completion mode");
            }
        }
    }
}

fn managed_by(errors: &mut ErrorList, name: &str, path: &Path<'_>) {
    let at = path.child("managedBy");
    match name.split_once('/') {
        _ if name.is_empty() => errors.required(&at, ""),
        Some((host, path)) if !host.is_empty() && !path.is_empty() => {
            errors.invalid_each(&at, host, rules::dns_subdomain(host));
            let letter = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b);
            if !path.bytes().all(letter) {
                let why = rules::regex_sentence("Invalid path", r"[A-Za-z0-9/\-._~%!$&'()*+,;=:]+", &[]);
                errors.invalid(&at, path, &why);
            }
        }
        _ => errors.invalid(&at, name, "must be a domain-prefixed path (such as \"acme.io/foo\")"),
    }
    if name.len() > MANAGED_BY_BYTES_MAX {
        errors.too_long(&at, MANAGED_BY_BYTES_MAX);
    }
}

/// Validates an update of a Job.
pub(super) fn update(errors: &mut ErrorList, new: &Value, old_job: &Value) {
    let (spec, old) = (get(new, "spec"), get(old_job, "spec"));
    selected_spec(errors, spec);
    let completions_at = SPEC.child("completions");
    let (now, was) = (int(spec, "completions"), int(old, "completions"));
    if text(spec, "completionMode") != "Indexed" {
        field_is_immutable(errors, spec, old, "completions");
    } else if now != was
        && let Some(now) = now
        && Some(now) != int(spec, "parallelism")
    {
        errors.invalid(&completions_at, now, "can only be modified in tandem with spec.parallelism");
    }
    workloads::selector_is_immutable(errors, new, old_job);
    template(errors, spec, old_job);
    for key in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        field_is_immutable(errors, spec, old, key);
    }
}

fn field_is_immutable(errors: &mut ErrorList, new: &Value, old: &Value, key: &str) {
    if !semantically_equal(get(new, key), get(old, key)) {
        let at = SPEC.child(key);
        let now = get(new, key);
        match key {
            "podFailurePolicy" => {
                errors.add(|| FieldError::invalid_shown(&at, &go_policy(now, go_failure_rule), IMMUTABLE));
            }
            "successPolicy" => {
                errors.add(|| FieldError::invalid_shown(&at, &go_policy(now, go_success_rule), IMMUTABLE));
            }
            _ => errors.invalid(&at, now.clone(), IMMUTABLE),
        }
    }
}

/// The template is immutable, except for placement and resources of a suspended Job.
fn template(errors: &mut ErrorList, spec: &Value, old_job: &Value) {
    let old_spec = get(old_job, "spec");
    let (new, mut old) = (get(spec, "template"), get(old_spec, "template").clone());
    let suspended = get(old_spec, "suspend") == &Value::Bool(true);
    let status = get(old_job, "status");
    let idle = int(status, "active").unwrap_or(0) == 0;
    let open = suspended && idle && (!has(status, "startTime") || is_true(old_job, "Suspended"));
    if open {
        let now = get(get(new, "spec"), "affinity");
        let pod = object_mut(&mut old, "spec");
        let mut affinity = get(pod, "affinity").clone();
        if !affinity.is_null() || !now.is_null() {
            if affinity.is_null() {
                affinity = json!({});
            }
            put(&mut affinity, "nodeAffinity", get(now, "nodeAffinity").clone());
            // A present empty struct differs from an absent one.
            let gone = now.is_null() && is_zero(&affinity);
            put(pod, "affinity", if gone { Value::Null } else { affinity });
        }
        for key in ["nodeSelector", "tolerations", "schedulingGates"] {
            put(pod, key, get(get(new, "spec"), key).clone());
        }
        let meta = object_mut(&mut old, "metadata");
        for key in ["annotations", "labels"] {
            put(meta, key, get(get(new, "metadata"), key).clone());
        }
    }
    if open {
        let (new_pod, pod) = (get(new, "spec"), object_mut(&mut old, "spec"));
        for list in ["containers", "initContainers"] {
            let now = items(new_pod, list);
            if now.len() != items(pod, list).len() {
                continue;
            }
            for (old, new) in items_mut(pod, list).iter_mut().zip(now) {
                if text(old, "name") == text(new, "name") {
                    put(old, "resources", get(new, "resources").clone());
                }
            }
        }
        if !semantically_equal(new_pod, pod) {
            go_structs::invalid(errors, &SPEC.child("template.spec"), &inner_spec(new_pod), "PodSpec", IMMUTABLE);
        }
    } else if !semantically_equal(new, &old) {
        let mut shown = new.clone();
        put(&mut shown, "spec", inner_spec(get(new, "spec")));
        go_structs::invalid(errors, &SPEC.child("template"), &shown, "PodTemplateSpec", IMMUTABLE);
    }
}

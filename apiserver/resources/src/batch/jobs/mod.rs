//! Jobs: selector and template labels are generated from the object's new uid unless the client sets
//! `manualSelector`. A deletion orphans the pods by default, as upstream does for old clients.

use std::borrow::Cow;

use apiserver_schema::types::Text;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cells::{AGE, NAME, age, column, containers_and_images, human_duration, name, selector, wide};
use crate::core::pods::warnings;
use crate::core::workloads::{self, SPEC};
use crate::field::{ErrorList, Path};
use crate::read::{default_to, get, has, int, is_zero, items, items_mut, object_mut, put, spec_of, text, time};
use crate::rules;
use crate::{Column, Context, MetadataChecks, Row, STATUS, Storage, Strategy};

mod policies;
mod status;
pub(super) mod validate;

pub(crate) static ROW: Row = Row {
    group: "batch",
    kind: "Job",
    plural: "jobs",
    singular: "job",
    categories: &["all"],
    schema: "io.k8s.api.batch.v1.Job",
    subresources: &[STATUS],
    storage: Storage::Stored("jobs"),
    shows_empty: true,
    strategy: &Job,
    example: r#"apiVersion: batch/v1
kind: Job
metadata: {name: example}
spec:
  template:
    spec:
      restartPolicy: Never
      containers: [{name: work, image: registry.local/wordcount:v1}]
"#,
    ..Row::NAMESPACED
};

struct Job;

const COLUMNS: &[Column] = &[
    NAME,
    column("Status", "string"),
    column("Completions", "string"),
    column("Duration", "string"),
    AGE,
    wide("Containers", "string"),
    wide("Images", "string"),
    wide("Selector", "string"),
];

const NAME_LABELS: [&str; 2] = ["job-name", "batch.kubernetes.io/job-name"];
const UID_LABELS: [&str; 2] = ["controller-uid", "batch.kubernetes.io/controller-uid"];
const COMPLETIONS_MANY: i64 = 100_000;
const PARALLELISM_MANY: i64 = 10_000;

/// Defaults of the template and the policies, which a CronJob's Job template shares.
pub(super) fn default_parts(spec: &mut Value) {
    workloads::default_template(spec);
    if let Some(policy) = spec.get_mut("podFailurePolicy") {
        for rule in items_mut(policy, "rules") {
            for pattern in items_mut(rule, "onPodConditions") {
                crate::read::default_zero_to(pattern, "status", "True");
            }
        }
    }
}

/// Whether a condition is `True`.
fn is_true(job: &Value, kind: &str) -> bool {
    let conditions = items(get(job, "status"), "conditions");
    conditions.iter().any(|c| text(c, "type") == kind && text(c, "status") == "True")
}

fn is_finished(job: &Value) -> bool {
    is_true(job, "Complete") || is_true(job, "Failed")
}

/// Warnings about a Job's spec, or that of a CronJob's Job template.
pub(super) fn spec_warnings(found: &mut Vec<String>, spec: &Value, path: &Path<'_>) {
    let many = int(spec, "completions").unwrap_or(0) > COMPLETIONS_MANY
        && int(spec, "parallelism").unwrap_or(0) > PARALLELISM_MANY;
    if text(spec, "completionMode") == "Indexed" && many {
        found.push(format!("{path}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail"));
    }
    warnings::template(found, get(spec, "template"), &path.child("template"));
}

/// Generates the template's labels and the selector from the object's name and uid.
fn generate_selector(object: &mut Value) {
    let meta = get(object, "metadata");
    let (name, uid) = (text(meta, "name").to_owned(), text(meta, "uid").to_owned());
    let spec = spec_of(object);
    let labels = object_mut(object_mut(object_mut(spec, "template"), "metadata"), "labels");
    for key in NAME_LABELS {
        default_to(labels, key, name.as_str());
    }
    for key in UID_LABELS {
        default_to(labels, key, uid.as_str());
    }
    default_to(object_mut(object_mut(spec, "selector"), "matchLabels"), UID_LABELS[1], uid);
}

/// Copies the template's labels to a Job without labels.
fn copy_labels(object: &mut Value) {
    let labels = get(get(get(get(object, "spec"), "template"), "metadata"), "labels").clone();
    let meta = object_mut(object, "metadata");
    if is_zero(get(meta, "labels")) && !is_zero(&labels) {
        put(meta, "labels", labels);
    }
}

const SELECTABLE: &[Text] = &[Text::Borrowed("status.successful")];

impl Strategy for Job {
    fn default(&self, object: &mut Value) {
        let spec = spec_of(object);
        if !has(spec, "completions") && !has(spec, "parallelism") {
            put(spec, "completions", json!(1));
        }
        default_to(spec, "parallelism", 1);
        let limit = if has(spec, "backoffLimitPerIndex") { i64::from(i32::MAX) } else { 6 };
        default_to(spec, "backoffLimit", limit);
        default_to(spec, "completionMode", "NonIndexed");
        default_to(spec, "suspend", false);
        let policy = if has(spec, "podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
        default_to(spec, "podReplacementPolicy", policy);
        default_to(spec, "manualSelector", false);
        default_parts(spec);
        object_mut(object, "status");
    }

    fn tracked_form<'a>(&self, object: &'a Value) -> Cow<'a, Value> {
        let template = get(get(get(get(object, "spec"), "template"), "metadata"), "labels");
        if !is_zero(get(get(object, "metadata"), "labels")) || is_zero(template) {
            return Cow::Borrowed(object);
        }
        let mut tracked = object.clone();
        copy_labels(&mut tracked);
        Cow::Owned(tracked)
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        // In upstream a Job without labels shares its map with the template, so generated labels appear in both.
        let template = get(get(get(get(object, "spec"), "template"), "metadata"), "labels");
        let shared = is_zero(get(get(object, "metadata"), "labels")) && !is_zero(template);
        if get(get(object, "spec"), "manualSelector") != &json!(true) {
            generate_selector(object);
        }
        // Upstream sets defaults again when it reads the stored object. That is after validation, which for a name
        // too long for a label then reports only the template.
        if shared || rules::label_value(text(get(object, "metadata"), "name")).is_empty() {
            copy_labels(object);
        }
        workloads::clear_status(object);
        workloads::drop_disabled(object, None);
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        copy_labels(new);
        workloads::prepare_update(context, new, old);
        copy_labels(new);
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn metadata_checks(&self) -> MetadataChecks {
        MetadataChecks::Whole
    }

    fn validate(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        let Some(old) = old else { return validate::job(errors, object, true) };
        if context.subresource == "status" {
            status::update(errors, object, old);
        } else {
            let labels = get(get(get(get(old, "spec"), "template"), "metadata"), "labels");
            let prefixed = has(labels, NAME_LABELS[1]) && has(labels, UID_LABELS[1]);
            validate::job(errors, object, prefixed);
            crate::metadata::validate_unchanged(errors, &ROW, object, old);
            validate::update(errors, object, old);
        }
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        if old.is_some_and(|old| !self.generation_changes(object, old)) {
            return Vec::new();
        }
        let mut found = Vec::new();
        if old.is_none() {
            workloads::name_warning(&mut found, object);
        }
        spec_warnings(&mut found, get(object, "spec"), &SPEC);
        found
    }

    fn orphans_by_default(&self) -> bool {
        true
    }

    fn warns_on_default_orphaning(&self) -> bool {
        true
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (get(object, "spec"), get(object, "status"));
        let succeeded = int(status, "succeeded").unwrap_or(0);
        let completions = match int(spec, "completions") {
            Some(all) => format!("{succeeded}/{all}"),
            None => match int(spec, "parallelism").unwrap_or(0) {
                parallelism if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
                _ => format!("{succeeded}/1"),
            },
        };
        let duration = time(status, "startTime").map_or_else(String::new, |start| {
            human_duration(time(status, "completionTime").unwrap_or(now).duration_since(start))
        });
        let word = if is_true(object, "Complete") {
            "Complete"
        } else if is_true(object, "Failed") {
            "Failed"
        } else if has(get(object, "metadata"), "deletionTimestamp") {
            "Terminating"
        } else {
            ["Suspended", "FailureTarget", "SuccessCriteriaMet"]
                .into_iter()
                .find(|kind| is_true(object, kind))
                .unwrap_or("Running")
        };
        let (containers, images) = containers_and_images(get(spec, "template"));
        vec![
            name(object),
            json!(word),
            json!(completions),
            json!(duration),
            age(object, now),
            containers,
            images,
            json!(selector(get(spec, "selector"))),
        ]
    }

    fn selectable(&self, object: &Value) -> Vec<String> {
        vec![int(get(object, "status"), "succeeded").unwrap_or(0).to_string()]
    }

    fn unknown_label(&self, label: &str) -> String {
        format!("field label {} not supported for Job", crate::field::quoted(label))
    }

    fn selectable_labels(&self) -> &[Text] {
        SELECTABLE
    }
}

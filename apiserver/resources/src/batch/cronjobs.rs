//! CronJobs: a schedule, and a template of Jobs.

use jiff::Timestamp;
use machinery_api::time::time_zone as named_zone;
use machinery_rules::cron::Schedule;
use serde_json::{Value, json};

use super::jobs::{self, validate::job_spec};
use crate::cells::{AGE, NAME, age, column, containers_and_images, name, selector, since, wide};
use crate::choices::required_choice;
use crate::core::workloads::{self, SPEC, not_negative};
use crate::field::{ErrorList, FieldError, Path};
use crate::read::{default_to, default_zero_to, flag, get, has, items, object_mut, spec_of, text, time};
use crate::{Column, Context, MetadataChecks, Row, STATUS, Storage, Strategy, prepare_update_by_default};

pub(crate) static ROW: Row = Row {
    group: "batch",
    kind: "CronJob",
    plural: "cronjobs",
    singular: "cronjob",
    short_names: &["cj"],
    categories: &["all"],
    schema: "io.k8s.api.batch.v1.CronJob",
    subresources: &[STATUS],
    storage: Storage::Stored("cronjobs"),
    shows_empty: true,
    strategy: &CronJob,
    example: r#"apiVersion: batch/v1
kind: CronJob
metadata: {name: example}
spec:
  schedule: "0 4 * * *"
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          containers: [{name: work, image: registry.local/wordcount:v1}]
"#,
    ..Row::NAMESPACED
};

struct CronJob;

const COLUMNS: &[Column] = &[
    NAME,
    column("Schedule", "string"),
    column("Timezone", "string"),
    column("Suspend", "boolean"),
    column("Active", "integer"),
    column("Last Schedule", "string"),
    AGE,
    wide("Containers", "string"),
    wide("Images", "string"),
    wide("Selector", "string"),
];

/// A Job's name is its CronJob's name plus 11 characters.
const NAME_BYTES_MAX: usize = 52;
const POLICIES: &[&str] = &["Allow", "Forbid", "Replace"];

fn job_of(object: &Value) -> &Value {
    get(get(get(object, "spec"), "jobTemplate"), "spec")
}

fn validate(errors: &mut ErrorList, spec: &Value, old: Option<&Value>) {
    when(errors, spec, old);
    not_negative(errors, spec, &["startingDeadlineSeconds"], &SPEC);
    if old.is_none_or(|old| get(old, "timeZone") != get(spec, "timeZone")) && has(spec, "timeZone") {
        time_zone(errors, text(spec, "timeZone"), &SPEC.child("timeZone"));
    }
    required_choice(errors, spec, "concurrencyPolicy", POLICIES, &SPEC);
    let job = get(get(spec, "jobTemplate"), "spec");
    let job_at = SPEC.child("jobTemplate.spec");
    job_spec(errors, job, &job_at);
    let chosen = get(job, "selector");
    if !chosen.is_null() {
        let shown = workloads::go_selector(chosen);
        errors
            .add(|| FieldError::invalid_shown(&job_at.child("selector"), &shown, "`selector` will be auto-generated"));
    }
    if flag(job, "manualSelector") {
        errors.not_supported(&job_at.child("manualSelector"), true, &["nil", "false"]);
    }
    not_negative(errors, spec, &["successfulJobsHistoryLimit", "failedJobsHistoryLimit"], &SPEC);
}

fn when(errors: &mut ErrorList, spec: &Value, old: Option<&Value>) {
    let (given, at) = (text(spec, "schedule"), SPEC.child("schedule"));
    if given.is_empty() {
        errors.required(&at, "");
        return;
    }
    if let Err(why) = Schedule::parse(given) {
        errors.invalid(&at, given, &why);
    }
    let had_zone = old.is_some_and(|old| text(old, "schedule").contains("TZ"));
    match (had_zone, given.contains("TZ")) {
        (true, true) if has(spec, "timeZone") => {
            errors.invalid(&at, given, "cannot use both timeZone field and TZ or CRON_TZ in schedule");
        }
        (false, true) => {
            errors.invalid(&at, given, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
        }
        _ => {}
    }
}

fn time_zone(errors: &mut ErrorList, zone: &str, at: &Path<'_>) {
    if zone.is_empty() {
        errors.invalid(at, zone, "timeZone must be nil or non-empty string");
        return;
    }
    let letter = |b: u8| b.is_ascii_alphanumeric() || b"._-+".contains(&b);
    let part = |part: &str| {
        !matches!(part, "." | "..")
            && !part.starts_with('-')
            && (1..=14).contains(&part.len())
            && part.bytes().all(letter)
    };
    if !zone.split('/').all(part) {
        errors.invalid(at, zone, &format!("unknown time zone {zone}"));
        return;
    }
    if zone.eq_ignore_ascii_case("Local") {
        let why = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        errors.invalid(at, zone, why);
    }
    if let Err(why) = named_zone(zone) {
        errors.invalid(at, zone, &why);
    }
}

impl Strategy for CronJob {
    fn default(&self, object: &mut Value) {
        let spec = spec_of(object);
        default_zero_to(spec, "concurrencyPolicy", "Allow");
        default_to(spec, "suspend", false);
        default_to(spec, "successfulJobsHistoryLimit", 3);
        default_to(spec, "failedJobsHistoryLimit", 1);
        let job = object_mut(spec, "jobTemplate");
        object_mut(job, "metadata");
        jobs::default_parts(object_mut(job, "spec"));
        object_mut(object, "status");
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) {
        workloads::clear_status(object);
        if let Some(job) = object.pointer_mut("/spec/jobTemplate/spec") {
            workloads::drop_disabled_template(job, None);
        }
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        prepare_update_by_default(context, new, old);
        if context.subresource != "status"
            && let Some(job) = new.pointer_mut("/spec/jobTemplate/spec")
        {
            workloads::drop_disabled_template(job, Some(job_of(old)));
        }
    }

    fn counts_generation(&self) -> bool {
        true
    }

    fn metadata_checks_of(&self, subresource: &str) -> MetadataChecks {
        // Upstream doesn't validate the metadata of a CronJob's status update.
        if subresource == "status" { MetadataChecks::None } else { MetadataChecks::Change }
    }

    fn validate(&self, context: &Context<'_>, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
        if context.subresource == "status" {
            return;
        }
        validate(errors, get(object, "spec"), old.map(|old| get(old, "spec")));
        let name = crate::read::name(object);
        if old.is_none() && name.len() > NAME_BYTES_MAX {
            let why = format!("must be no more than {NAME_BYTES_MAX} characters");
            errors.invalid(&Path::root("metadata").child("name"), name, &why);
        }
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut found = Vec::new();
        if old.is_none() {
            workloads::name_warning(&mut found, object);
        }
        if old.is_none_or(|old| self.generation_changes(object, old)) {
            jobs::spec_warnings(&mut found, job_of(object), &SPEC.child("jobTemplate.spec"));
        }
        if old.is_some() && text(get(object, "spec"), "schedule").contains("TZ") {
            found.push("cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details".into());
        }
        found
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (get(object, "spec"), get(object, "status"));
        let zone = if has(spec, "timeZone") { text(spec, "timeZone") } else { "<none>" };
        let last = match time(status, "lastScheduleTime") {
            Some(last) => since(Some(last), now),
            None => "<none>".into(),
        };
        let suspend = match get(spec, "suspend").as_bool() {
            Some(true) => "True",
            Some(false) => "False",
            None => "<unset>",
        };
        let job = job_of(object);
        let (containers, images) = containers_and_images(get(job, "template"));
        vec![
            name(object),
            json!(text(spec, "schedule")),
            json!(zone),
            json!(suspend),
            json!(items(status, "active").len()),
            json!(last),
            age(object, now),
            containers,
            images,
            json!(selector(get(job, "selector"))),
        ]
    }
}

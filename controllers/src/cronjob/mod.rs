//! `cronjob-controller`: creates Jobs at the times of a schedule.
//!
//! A Job's name derives from its scheduled minute, so that none is created twice. Names and annotations identify the
//! CronJob's own Jobs, so that a status that wasn't written is reconstructed.

mod due;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use machinery_api::ObjectKey;
use machinery_api::time::time_zone;
use machinery_client::driver::own_key;
use machinery_client::{
    Action, BackOff, Change, Context, Controller, EventRecord, Input, Kind, ObjectCache, Plan, Propagation,
    controlled_by, controller_of, reference_to,
};
use machinery_rules::cron::Schedule;

use self::due::{CronSchedule, MissedRun};
use crate::{Settings, pods};

/// The annotation with a Job's scheduled time.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "cronjob-controller",
    account: "cronjob-controller",
    workers: 5,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<CronJob>(own_key), Input::of::<Job>(of_job)],
    reconcile,
};

/// The CronJobs that own or owned the Job.
fn of_job(_: &ObjectCache, change: &Change) -> Vec<ObjectKey> {
    let owners = change.states().filter_map(controller_of).filter(|owner| owner.kind == "CronJob");
    let mut keys: Vec<ObjectKey> = owners.map(|o| ObjectKey::new(&*change.key.namespace, &*o.name)).collect();
    keys.dedup();
    keys
}

/// A CronJob in this pass, with its new status.
struct CronJobPass<'a> {
    view: &'a ObjectCache,
    of: &'a CronJob,
    spec: &'a CronJobSpec,
    /// Its Jobs.
    jobs: Vec<&'a Job>,
    status: CronJobStatus,
    now: Timestamp,
    plan: Plan,
}

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let Some(of) = view.get::<CronJob>(key) else { return Plan::nothing() };
    let spec = &of.spec;
    let jobs = view.controlled::<Job>(of.metadata.uid.as_deref().unwrap_or_default()).collect();
    let status = of.status.clone().unwrap_or_default();
    let mut pass = CronJobPass { view, of, spec, jobs, status, now: context.now, plan: Plan::nothing() };
    pass.clean_up();
    pass.update_from_jobs();
    pass.remove_missing_jobs();
    let create = if of.metadata.deletion_timestamp.is_none() { pass.start() } else { None };
    pass.plan.actions.extend(create);
    // Last: if the creation fails, the scheduled time is still due.
    let active = |status: &CronJobStatus| status.active.clone().unwrap_or_default();
    let known = of.status.clone().unwrap_or_default();
    let status = pass.status;
    let times = |s: &CronJobStatus| (s.last_schedule_time.clone(), s.last_successful_time.clone());
    if active(&known) != active(&status) || times(&known) != times(&status) {
        let status = CronJobStatus { active: status.active.filter(|active| !active.is_empty()), ..status };
        pass.plan.push(Action::update_status(&CronJob { status: Some(status), ..of.clone() }));
    }
    pass.plan
}

/// The condition that ended a Job, if it has ended.
fn end(job: &Job) -> Option<&str> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let ended = |type_: &str| matches!(type_, "Complete" | "Failed");
    conditions.iter().find(|c| ended(&c.type_) && c.status == "True").map(|c| c.type_.as_str())
}

fn name(of: &ObjectMeta) -> &str {
    of.name.as_deref().unwrap_or_default()
}

impl<'a> CronJobPass<'a> {
    fn note(&mut self, reason: &'static str, message: String) {
        self.plan.push(Action::Event(EventRecord::normal(self.of, reason, message)));
    }

    fn warn(&mut self, reason: &'static str, message: String) {
        self.plan.push(Action::Event(EventRecord::warning(self.of, reason, message)));
    }

    fn is_active(&self, uid: Option<&str>) -> bool {
        self.status.active.iter().flatten().any(|job| job.uid.as_deref() == uid)
    }

    fn forget(&mut self, uid: Option<&str>) {
        self.status.active.get_or_insert_default().retain(|job| job.uid.as_deref() != uid);
    }

    /// The name of the Job for a scheduled time.
    fn job_name(&self, at: Timestamp) -> String {
        format!("{}-{}", name(&self.of.metadata), at.as_second().div_euclid(60))
    }

    /// The scheduled time of a Job of this controller.
    fn scheduled(&self, job: &Job) -> Option<Timestamp> {
        let at: Timestamp = job.metadata.annotations.as_ref()?.get(SCHEDULED)?.parse().ok()?;
        (self.job_name(at) == name(&job.metadata)).then_some(at)
    }

    fn delete(&mut self, job: &Job) {
        let job_name = name(&job.metadata);
        let done = EventRecord::normal(self.of, "SuccessfulDelete", format!("Deleted job {job_name}"));
        let failed = EventRecord::warning(self.of, "FailedDelete", "Deleted job: {error}");
        self.plan.push(Action::delete(job).propagating(Propagation::Background).noted(Some(done), Some(failed)));
        self.forget(job.metadata.uid.as_deref());
    }

    /// Deletes the oldest finished Jobs beyond the limits.
    fn clean_up(&mut self) {
        let limits =
            [("Complete", self.spec.successful_jobs_history_limit), ("Failed", self.spec.failed_jobs_history_limit)];
        for (how, limit) in limits {
            let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else { continue };
            let mut ended: Vec<&'a Job> = self.jobs.iter().copied().filter(|job| end(job) == Some(how)).collect();
            let started = |job: &Job| job.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|at| at.0);
            let order = |job: &'a Job| (started(job).is_none(), started(job), name(&job.metadata));
            ended.sort_by(|a, b| order(a).cmp(&order(b)));
            let surplus = ended.len().saturating_sub(limit);
            for job in ended.into_iter().take(surplus).filter(|job| job.metadata.deletion_timestamp.is_none()) {
                self.delete(job);
            }
        }
    }

    /// Updates the status from the Jobs: active ones, and the last successful time.
    fn update_from_jobs(&mut self) {
        for job in self.jobs.clone() {
            let uid = job.metadata.uid.as_deref();
            let active = self.is_active(uid);
            let scheduled = self.scheduled(job);
            if let Some(at) = scheduled
                && self.status.last_schedule_time.as_ref().is_none_or(|last| last.0 < at)
            {
                // The Job was created, and the status wasn't written.
                self.status.last_schedule_time = Some(pods::stamp(at));
            }
            let Some(how) = end(job) else {
                if !active {
                    self.track_active(job, scheduled.is_some());
                }
                continue;
            };
            if active {
                self.forget(uid);
                self.note("SawCompletedJob", format!("Saw completed job: {}, condition: {how}", name(&job.metadata)));
            }
            let completed = job.status.as_ref().and_then(|s| s.completion_time.clone()).filter(|_| how == "Complete");
            let last = self.status.last_successful_time.as_ref();
            if completed.as_ref().is_some_and(|at| last.is_none_or(|last| last.0 < at.0)) {
                self.status.last_successful_time = completed;
            }
        }
    }

    /// Adds an unfinished Job to the active list, or reports it as not created by this controller.
    fn track_active(&mut self, job: &Job, own: bool) {
        if !own {
            let seen = format!("Saw a job that the controller did not create or forgot: {}", name(&job.metadata));
            self.warn("UnexpectedJob", seen);
        } else if job.metadata.deletion_timestamp.is_none() {
            self.status.active.get_or_insert_default().push(reference_to(job));
        }
    }

    /// Removes active Jobs that were deleted.
    fn remove_missing_jobs(&mut self) {
        for active in self.status.active.clone().unwrap_or_default() {
            if self.jobs.iter().any(|job| job.metadata.uid == active.uid) {
                continue;
            }
            let namespace = active.namespace.clone().unwrap_or_default();
            let key = ObjectKey::new(namespace, active.name.clone().unwrap_or_default());
            // The status may be newer than the view of Jobs.
            self.plan.push(Action::ExpectGone { kind: Kind::of::<Job>(), key, uid: active.uid.clone() });
            self.note("MissingJob", format!("Active job went missing: {}", active.name.unwrap_or_default()));
            self.forget(active.uid.as_deref());
        }
    }

    /// The schedule and its time zone; an event if one is invalid.
    fn schedule(&mut self) -> Option<(Schedule, TimeZone)> {
        let spec = self.spec;
        let zone = match spec.time_zone.as_deref().map(time_zone) {
            None => TimeZone::UTC,
            Some(Ok(zone)) => zone,
            Some(Err(why)) => {
                let given = spec.time_zone.as_deref().unwrap_or_default();
                self.warn("UnknownTimeZone", format!("invalid timeZone: {given:?}: {why}"));
                return None;
            }
        };
        if spec.suspend == Some(true) {
            return None;
        }
        let text = &spec.schedule;
        if text.contains("TZ") {
            let message = format!(
                "CRON_TZ or TZ used in schedule {text:?} is not officially supported, \
                 see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details"
            );
            self.warn("UnsupportedSchedule", message);
        }
        match Schedule::parse(text) {
            Ok(schedule) => Some((schedule, zone)),
            Err(why) => {
                self.warn("UnparseableSchedule", format!("unparseable schedule: {text:?} : {why}"));
                None
            }
        }
    }

    /// Creates the Job that is due, if any.
    fn start(&mut self) -> Option<Action> {
        let (schedule, zone) = self.schedule()?;
        let created = self.of.metadata.creation_timestamp.as_ref().map_or(self.now, |at| at.0);
        let since = self.status.last_schedule_time.as_ref().map_or(created, |at| at.0);
        let due = CronSchedule { schedule: &schedule, zone: &zone, now: self.now };
        let deadline = self.spec.starting_deadline_seconds;
        let missed = match due.missed(since, deadline) {
            Ok(missed) => missed,
            Err(why) => {
                self.warn("InvalidSchedule", format!("invalid schedule: {} : {why}", self.spec.schedule));
                return None;
            }
        };
        let create = missed.and_then(|missed| self.start_at(&missed, &zone));
        // This decision counts from the scheduled time.
        let since = self.status.last_schedule_time.as_ref().map_or(created, |at| at.0);
        if let Some(at) = due.revisit(since) {
            self.plan.revisit(at);
        }
        create
    }

    /// Decides about a time that is due.
    fn start_at(&mut self, missed: &MissedRun, zone: &TimeZone) -> Option<Action> {
        if missed.too_many {
            let message =
                "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.warn("TooManyMissedTimes", message.into());
        }
        let job_name = self.job_name(missed.at);
        let known = self.status.active.iter().flatten().any(|job| job.name.as_deref() == Some(&job_name));
        if known || self.status.last_schedule_time.as_ref().is_some_and(|last| last.0 == missed.at) {
            return None;
        }
        let namespace = self.of.metadata.namespace.as_deref().unwrap_or_default();
        if self.view.get::<Job>(&ObjectKey::new(namespace, &*job_name)).is_some() {
            // Another client created it.
            return None;
        }
        let spec = self.spec;
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if self.status.active.iter().flatten().next().is_some() => {
                let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.note("JobAlreadyActive", message.into());
                return None;
            }
            Some("Replace") => {
                let active: Vec<&'a Job> =
                    self.jobs.iter().copied().filter(|job| self.is_active(job.metadata.uid.as_deref())).collect();
                active.into_iter().for_each(|job| self.delete(job));
            }
            _ => {}
        }
        let done = EventRecord::normal(self.of, "SuccessfulCreate", "Created job {name}");
        let failed = EventRecord::warning(self.of, "FailedCreate", "Error creating job: {error}");
        self.status.last_schedule_time = Some(pods::stamp(missed.at));
        Some(Action::create(&self.job(missed.at, job_name, zone)).noted(Some(done), Some(failed)))
    }

    fn job(&self, at: Timestamp, job_name: String, zone: &TimeZone) -> Job {
        let template = self.spec.job_template.clone();
        let given = template.metadata.unwrap_or_default();
        let mut annotations = given.annotations.unwrap_or_default();
        let local = at.to_zoned(zone.clone());
        let written = if local.offset().seconds() == 0 { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S%:z" };
        annotations.insert(SCHEDULED.into(), local.strftime(written).to_string());
        Job {
            metadata: ObjectMeta {
                name: Some(job_name),
                namespace: self.of.metadata.namespace.clone(),
                labels: given.labels,
                annotations: Some(annotations),
                owner_references: Some(vec![controlled_by(self.of)]),
                ..ObjectMeta::default()
            },
            spec: template.spec,
            status: None,
        }
    }
}

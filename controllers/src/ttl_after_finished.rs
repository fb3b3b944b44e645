//! `ttl-after-finished-controller`: deletes finished Jobs after `ttlSecondsAfterFinished` (KEP-592).

use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use machinery_api::ObjectKey;
use machinery_client::driver::own_key;
use machinery_client::{Action, BackOff, Context, Controller, Input, ObjectCache, Plan, Propagation};

use crate::Settings;
use crate::job::finished_at;

pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "ttl-after-finished-controller",
    account: "ttl-after-finished-controller",
    workers: 2,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<Job>(own_key)],
    reconcile,
};

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let Some(job) = view.get::<Job>(key).filter(|job| job.metadata.deletion_timestamp.is_none()) else {
        return Plan::nothing();
    };
    let ttl =
        job.spec.as_ref().and_then(|spec| spec.ttl_seconds_after_finished).and_then(|ttl| u64::try_from(ttl).ok());
    let (Some(ttl), Some(finished)) = (ttl, finished_at(job)) else { return Plan::nothing() };
    let mut plan = Plan::nothing();
    let due = finished.saturating_add(Duration::from_secs(ttl)).unwrap_or(jiff::Timestamp::MAX);
    if due <= context.now {
        // The user may have extended the time since.
        plan.push(Action::delete(job).at_version(job).propagating(Propagation::Foreground));
    } else {
        plan.revisit(due);
    }
    plan
}

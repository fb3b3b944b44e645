//! `certificatesigningrequest-cleaner-controller`: deletes finished requests after an hour, and pending ones after a
//! day.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use machinery_api::ObjectKey;
use machinery_client::driver::own_key;
use machinery_client::{Action, BackOff, Context, Controller, Input, ObjectCache, Plan};
use machinery_rules::certificate_request::ends_at;

use super::{ACCOUNT, APPROVED, DENIED, FAILED, conditions, has, issued};
use crate::Settings;

const DONE: Duration = Duration::from_hours(1);
const WAITING: Duration = Duration::from_hours(24);

/// The key is a request's.
pub(crate) const CONTROLLER: Controller<Settings> = Controller {
    name: "certificatesigningrequest-cleaner-controller",
    account: ACCOUNT,
    workers: 1,
    back_off: BackOff::DEFAULT,
    inputs: &[Input::of::<CertificateSigningRequest>(own_key)],
    reconcile,
};

fn reconcile(view: &ObjectCache, key: &ObjectKey, context: &Context<'_, Settings>) -> Plan {
    let Some(csr) = view.get::<CertificateSigningRequest>(key) else { return Plan::nothing() };
    if csr.metadata.deletion_timestamp.is_some() {
        return Plan::nothing();
    }
    let Some(due) = due(csr) else { return Plan::nothing() };
    let mut plan = Plan::nothing();
    if due < context.now {
        plan.push(Action::delete(csr));
    } else {
        // Upstream checks once an hour.
        plan.revisit(due.saturating_add(Duration::from_secs(1)).unwrap_or(Timestamp::MAX));
    }
    plan
}

/// When a request is due for deletion.
fn due(csr: &CertificateSigningRequest) -> Option<Timestamp> {
    let after = |time: Option<&Time>, wait: Duration| time.and_then(|time| time.0.saturating_add(wait).ok());
    let waits = conditions(csr).is_empty().then(|| after(csr.metadata.creation_timestamp.as_ref(), WAITING)).flatten();
    let reported = conditions(csr).iter().filter_map(|condition| {
        let wait = match condition.type_.as_str() {
            DENIED | FAILED => DONE,
            APPROVED if issued(csr).is_some() => DONE,
            APPROVED => WAITING,
            _ => return None,
        };
        after(condition.last_update_time.as_ref(), wait)
    });
    let ends = issued(csr).filter(|_| has(csr, APPROVED)).and_then(ends_at);
    reported.chain(waits).chain(ends.and_then(|ends| Timestamp::from_second(ends).ok())).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn due_of(conditions: Value, certificate: &str) -> Option<String> {
        let csr = json!({
            "metadata": {"name": "x", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"request": "", "signerName": "example.com/s"},
            "status": {"conditions": conditions, "certificate": certificate},
        });
        due(&serde_json::from_value(csr).unwrap()).map(|due| due.to_string())
    }

    #[test]
    fn finished_requests_are_deleted() {
        let reported = |kind: &str| json!([{"type": kind, "status": "True", "lastUpdateTime": "2026-01-01T05:00:00Z"}]);
        assert_eq!(due_of(json!([]), "").as_deref(), Some("2026-01-02T00:00:00Z"));
        assert_eq!(due_of(reported("Approved"), "").as_deref(), Some("2026-01-02T05:00:00Z"));
        assert_eq!(due_of(reported("Approved"), "eA==").as_deref(), Some("2026-01-01T06:00:00Z"));
        assert_eq!(due_of(reported("Denied"), "").as_deref(), Some("2026-01-01T06:00:00Z"));
        assert_eq!(due_of(reported("Failed"), "").as_deref(), Some("2026-01-01T06:00:00Z"));
        assert_eq!(due_of(reported("Other"), ""), None);
    }
}

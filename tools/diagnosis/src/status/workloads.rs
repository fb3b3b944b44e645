//! Workloads with fewer ready pods than they want. Pure.

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};

use super::report::NotReady;

/// The number of wanted pods of a workload without a number.
const REPLICAS_DEFAULT: i32 = 1;

/// The row of a Deployment that isn't ready.
pub(super) fn deployment(found: &Deployment) -> Option<NotReady> {
    let status = found.status.as_ref();
    let wanted = found.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(REPLICAS_DEFAULT);
    let ready = status.and_then(|status| status.ready_replicas).unwrap_or(0);
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let failed = conditions.iter().find(|condition| {
        condition.type_ == "ReplicaFailure" && condition.status == "True"
            || condition.type_ == "Progressing" && condition.status == "False"
    });
    let message = failed.and_then(|condition| condition.message.clone()).unwrap_or_default();
    row("Deployment", &found.metadata, (ready, wanted), message)
}

/// The row of a StatefulSet that isn't ready.
pub(super) fn stateful_set(found: &StatefulSet) -> Option<NotReady> {
    let wanted = found.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(REPLICAS_DEFAULT);
    let ready = found.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    row("StatefulSet", &found.metadata, (ready, wanted), String::new())
}

/// The row of a DaemonSet that isn't ready.
pub(super) fn daemon_set(found: &DaemonSet) -> Option<NotReady> {
    let status = found.status.as_ref()?;
    row("DaemonSet", &found.metadata, (status.number_ready, status.desired_number_scheduled), String::new())
}

fn row(
    kind: &'static str,
    metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    (ready, wanted): (i32, i32),
    message: String,
) -> Option<NotReady> {
    (ready < wanted).then(|| NotReady {
        namespace: metadata.namespace.clone().unwrap_or_default(),
        kind,
        name: metadata.name.clone().unwrap_or_default(),
        reason: format!("{ready} of {wanted} ready"),
        message,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object<K: serde::de::DeserializeOwned>(replicas: Option<i32>, status: Value) -> K {
        let mut spec = json!({"selector": {}, "template": {}, "serviceName": ""});
        if let Some(replicas) = replicas {
            spec["replicas"] = replicas.into();
        }
        let object = json!({"metadata": {"name": "a", "namespace": "n"}, "spec": spec, "status": status});
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn fewer_ready_pods_than_wanted_are_listed() {
        let reason = |row: Option<NotReady>| row.map(|row| (row.reason, row.message));
        let of = |ready: &str| Some((ready.to_owned(), String::new()));
        assert_eq!(reason(deployment(&object(Some(2), json!({"readyReplicas": 2})))), None);
        assert_eq!(reason(deployment(&object(Some(0), json!({})))), None);
        assert_eq!(reason(deployment(&object(None, json!({})))), of("0 of 1 ready"));
        let late = json!({"type": "Progressing", "status": "False", "message": "timed out"});
        let late = deployment(&object(Some(3), json!({"readyReplicas": 1, "conditions": [late]})));
        assert_eq!(reason(late), Some(("1 of 3 ready".to_owned(), "timed out".to_owned())));
        assert_eq!(
            reason(stateful_set(&object(Some(2), json!({"replicas": 2, "readyReplicas": 1})))),
            of("1 of 2 ready")
        );
        let daemons = |ready: i32| json!({"numberReady": ready, "desiredNumberScheduled": 2, "currentNumberScheduled": 2, "numberMisscheduled": 0});
        assert_eq!(reason(daemon_set(&object(None, daemons(0)))), of("0 of 2 ready"));
        assert_eq!(reason(daemon_set(&object(None, daemons(2)))), None);
    }
}

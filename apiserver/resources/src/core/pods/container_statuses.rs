//! Validation of container statuses in an update of a pod's status: the users of processes, and the health of devices.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::choices::choice;
use crate::field::{ErrorList, FieldError, Path};
use crate::read::{get, has, int, items, text};

/// Upstream's bound of the message about a device, in bytes.
const HEALTH_MESSAGE_BYTES_MAX: usize = 1024;
const HEALTH: [&str; 3] = ["Healthy", "Unhealthy", "Unknown"];

/// The lists of statuses with the containers that they describe.
const LISTS: [(&str, &str); 3] = [
    ("containerStatuses", "containers"),
    ("initContainerStatuses", "initContainers"),
    ("ephemeralContainerStatuses", "ephemeralContainers"),
];

/// Validates the statuses of all containers.
pub(super) fn validate(errors: &mut ErrorList, status: &Value, spec: &Value, at: &Path<'_>) {
    let system = text(get(spec, "os"), "name");
    for (list, _) in LISTS {
        for (i, container) in items(status, list).iter().enumerate() {
            let linux = get(get(container, "user"), "linux");
            let linux_at = at.child(list);
            let linux_at = linux_at.index(i);
            let linux_at = linux_at.child("user.linux");
            match system {
                _ if linux.is_null() => {}
                "windows" => errors.forbidden(&linux_at, "cannot be set for a windows pod"),
                _ => linux_user(errors, linux, &linux_at),
            }
        }
    }
    for (list, containers) in LISTS {
        let list_at = at.child(list);
        for (i, container) in items(status, list).iter().enumerate() {
            let one = list_at.index(i);
            let resources_at = one.child("allocatedResourcesStatus");
            let resources = items(container, "allocatedResourcesStatus");
            if containers == "ephemeralContainers" {
                if !resources.is_empty() {
                    errors.forbidden(&resources_at, "must not be specified in container status");
                }
                continue;
            }
            let described = items(spec, containers).iter().find(|c| text(c, "name") == text(container, "name"));
            for (j, resource) in resources.iter().enumerate() {
                allocated(errors, resource, described, &resources_at.index(j));
            }
        }
    }
}

fn linux_user(errors: &mut ErrorList, user: &Value, at: &Path<'_>) {
    let check = |errors: &mut ErrorList, id: i64, at: &Path<'_>| {
        if i32::try_from(id).is_ok_and(|id| id >= 0) {
            return;
        }
        errors.invalid(at, id, "must be between 0 and 2147483647, inclusive");
    };
    for key in ["uid", "gid"] {
        check(errors, int(user, key).unwrap_or(0), &at.child(key));
    }
    let groups_at = at.child("supplementalGroups");
    for (i, group) in items(user, "supplementalGroups").iter().enumerate() {
        check(errors, group.as_i64().unwrap_or(0), &groups_at.index(i));
    }
}

/// The status of one allocated resource; `container` is the described one if the pod has it.
fn allocated(errors: &mut ErrorList, resource: &Value, container: Option<&Value>, at: &Path<'_>) {
    let name = text(resource, "name");
    if let Some(container) = container {
        let of = get(container, "resources");
        let (found, why) = match name.strip_prefix("claim:") {
            Some(claim) => {
                let named = |own: &Value| match text(own, "request") {
                    "" => claim == text(own, "name"),
                    request => claim.strip_prefix(text(own, "name")).and_then(|c| c.strip_prefix('/')) == Some(request),
                };
                let why = "must match one of the container's resource claims in a format 'claim:<claimName>/<request>' or \
                           'claim:<claimName>' if request is empty";
                (items(of, "claims").iter().any(named), why)
            }
            None => (has(get(of, "requests"), name), "must match one of the container's resource requests"),
        };
        if !found {
            errors.invalid(&at.child("name"), name, why);
        }
    }
    let mut ids = BTreeSet::new();
    let devices_at = at.child("resources");
    for (k, device) in items(resource, "resources").iter().enumerate() {
        let at = devices_at.index(k);
        choice(errors, device, "health", &HEALTH, &at);
        if has(device, "message") {
            match text(device, "message").len() {
                0 => errors.required(&at.child("message"), "must be non-empty if specified"),
                bytes if bytes > HEALTH_MESSAGE_BYTES_MAX => {
                    errors.too_long(&at.child("message"), HEALTH_MESSAGE_BYTES_MAX);
                }
                _ => {}
            }
        }
        let id = text(device, "resourceID");
        if !ids.insert(id) {
            errors.add(|| FieldError::duplicate(&at.child("resourceID"), id));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(status: &Value, system: &str) -> Vec<String> {
        let spec = json!({"os": {"name": system}, "containers": [{"name": "c", "resources": {
            "requests": {"cpu": "1"}, "claims": [{"name": "d"}, {"name": "e", "request": "r"}]}}]});
        let mut errors = ErrorList::new();
        validate(&mut errors, status, &spec, &Path::root("status"));
        errors.into_causes().into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
    }

    #[test]
    fn users_and_devices_are_checked() {
        let user = json!({"linux": {"uid": -1, "gid": 1_i64 << 31, "supplementalGroups": [0, -1]}});
        let bad = json!({"containerStatuses": [{"name": "c", "user": user, "allocatedResourcesStatus": [
            {"name": "cpu", "resources": [{"resourceID": "a", "health": "Healthy"}, {"resourceID": "a", "health": "x", "message": ""}]},
            {"name": "claim:d"}, {"name": "claim:e/r"}, {"name": "claim:e"}, {"name": "gpu"}]}]});
        let range = "must be between 0 and 2147483647, inclusive";
        let user_at = "status.containerStatuses[0].user.linux";
        let of = "status.containerStatuses[0].allocatedResourcesStatus";
        assert_eq!(
            faults(&bad, "linux"),
            [
                format!("{user_at}.uid: Invalid value: -1: {range}"),
                format!("{user_at}.gid: Invalid value: 2147483648: {range}"),
                format!("{user_at}.supplementalGroups[1]: Invalid value: -1: {range}"),
                format!(
                    "{of}[0].resources[1].health: Unsupported value: \"x\": supported values: \"Healthy\", \"Unhealthy\", \"Unknown\""
                ),
                format!("{of}[0].resources[1].message: Required value: must be non-empty if specified"),
                format!("{of}[0].resources[1].resourceID: Duplicate value: \"a\""),
                format!(
                    "{of}[3].name: Invalid value: \"claim:e\": must match one of the container's resource claims in a format 'claim:<claimName>/<request>' or 'claim:<claimName>' if request is empty"
                ),
                format!("{of}[4].name: Invalid value: \"gpu\": must match one of the container's resource requests"),
            ]
        );
        let ephemeral = json!({"ephemeralContainerStatuses": [{"allocatedResourcesStatus": [{"name": "cpu"}]}]});
        let why = "Forbidden: must not be specified in container status";
        assert_eq!(
            faults(&ephemeral, ""),
            [format!("status.ephemeralContainerStatuses[0].allocatedResourcesStatus: {why}")]
        );
        let windows = json!({"initContainerStatuses": [{"user": {"linux": {}}}]});
        let at = "status.initContainerStatuses[0].user.linux";
        assert_eq!(faults(&windows, "windows"), [format!("{at}: Forbidden: cannot be set for a windows pod")]);
        let unknown = json!({"containerStatuses": [{"name": "z", "allocatedResourcesStatus": [{"name": "gpu"}]}]});
        assert!(faults(&unknown, "linux").is_empty());
    }
}

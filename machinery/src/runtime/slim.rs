//! What a view keeps of a pod: pods are the many, and most of one is for its node alone.
//!
//! No role that reads a view looks at the rest, and none writes a pod as a whole (they patch), so nothing is lost.

use std::mem::take;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec, PodStatus};

/// Takes out what only the pod's node reads, and the room that parsing left over.
pub(super) fn pod(pod: &mut Pod) {
    if let Some(spec) = &mut pod.spec {
        self::spec(spec);
    }
    if let Some(status) = &mut pod.status {
        self::status(status);
    }
}

fn shrink<T>(list: &mut Option<Vec<T>>) {
    if let Some(list) = list {
        list.shrink_to_fit();
    }
}

fn spec(spec: &mut PodSpec) {
    containers(&mut spec.containers);
    spec.init_containers.iter_mut().for_each(containers);
    spec.ephemeral_containers = None;
    // Kept as a whole where one needs a claim: refusals name it by its index.
    let claims = spec.volumes.iter().flatten().any(|v| v.persistent_volume_claim.is_some() || v.ephemeral.is_some());
    if !claims {
        spec.volumes = None;
    }
    spec.security_context = None;
    spec.dns_config = None;
    spec.host_aliases = None;
    spec.image_pull_secrets = None;
    shrink(&mut spec.tolerations);
    shrink(&mut spec.topology_spread_constraints);
}

fn containers(containers: &mut Vec<Container>) {
    for container in containers.iter_mut() {
        *container = Container {
            name: take(&mut container.name),
            ports: container.ports.take(),
            resources: container.resources.take(),
            restart_policy: container.restart_policy.take(),
            ..Container::default()
        };
        shrink(&mut container.ports);
    }
    containers.shrink_to_fit();
}

fn status(status: &mut PodStatus) {
    shrink(&mut status.conditions);
    for list in [&mut status.container_statuses, &mut status.init_container_statuses] {
        for container in list.iter_mut().flatten() {
            *container = ContainerStatus {
                name: take(&mut container.name),
                ready: container.ready,
                restart_count: container.restart_count,
                started: container.started,
                state: container.state.take(),
                last_state: container.last_state.take(),
                ..ContainerStatus::default()
            };
        }
        shrink(list);
    }
    status.ephemeral_container_statuses = None;
    shrink(&mut status.pod_ips);
    shrink(&mut status.host_ips);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn slimmed(pod: serde_json::Value) -> serde_json::Value {
        let mut pod: Pod = serde_json::from_value(pod).unwrap();
        self::pod(&mut pod);
        serde_json::to_value(&pod).unwrap()
    }

    #[test]
    fn what_decisions_read_stays() {
        let port = json!([{"containerPort": 80, "name": "http"}]);
        let resources = json!({"requests": {"cpu": "1"}});
        let slim = slimmed(json!({
            "metadata": {"name": "p", "labels": {"a": "b"}},
            "spec": {
                "nodeName": "n", "tolerations": [{"operator": "Exists"}], "volumes": [{"name": "v", "emptyDir": {}}],
                "containers": [{"name": "c", "image": "i", "env": [{"name": "E"}], "ports": port, "resources": resources}],
                "initContainers": [{"name": "i", "restartPolicy": "Always"}],
            },
            "status": {
                "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "c", "ready": true, "restartCount": 2, "image": "i", "imageID": "x",
                    "state": {"terminated": {"exitCode": 3}}}],
            },
        }));
        assert_eq!(slim["spec"]["containers"], json!([{"name": "c", "ports": port, "resources": resources}]));
        assert_eq!(slim["spec"]["initContainers"], json!([{"name": "i", "restartPolicy": "Always"}]));
        assert_eq!((&slim["spec"]["nodeName"], &slim["spec"]["volumes"]), (&json!("n"), &json!(null)));
        assert_eq!(slim["spec"]["tolerations"], json!([{"operator": "Exists"}]));
        let status = &slim["status"]["containerStatuses"][0];
        assert_eq!((&status["restartCount"], &status["state"]["terminated"]["exitCode"]), (&json!(2), &json!(3)));
        assert_eq!((&slim["metadata"]["labels"]["a"], &slim["status"]["phase"]), (&json!("b"), &json!("Running")));
    }

    #[test]
    fn volumes_with_claims_keep_their_places() {
        let volumes =
            json!([{"name": "a", "emptyDir": {}}, {"name": "b", "persistentVolumeClaim": {"claimName": "c"}}]);
        let slim = slimmed(json!({"metadata": {}, "spec": {"containers": [], "volumes": volumes}}));
        assert_eq!(slim["spec"]["volumes"], volumes);
    }
}

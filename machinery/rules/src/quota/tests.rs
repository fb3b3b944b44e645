//! Charges of quotas, as upstream's.

use serde_json::json;

use super::*;

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn quota(hard: Value, used: Value) -> Value {
    json!({"metadata": {"name": "q"}, "spec": {"hard": hard}, "status": {"hard": hard, "used": used}})
}

fn check<'a>(new: &'a Value, old: Option<&'a Value>) -> QuotaCheck<'a> {
    let write = if old.is_some() { Write::Update } else { Write::Create };
    QuotaCheck { write, resource: ("", "pods"), subresource: "", new, old, now: now(), limited: &[] }
}

fn charged(evaluator: &Evaluator, quota: &Value, new: &Value, old: Option<&Value>) -> Result<String, String> {
    let charges = charge(evaluator, [quota], check(new, old))?;
    Ok(charges.first().map(|charge| pretty(&charge.used)).unwrap_or_default())
}

fn pod(resources: Value) -> Value {
    json!({"spec": {"containers": [{"name": "c", "resources": resources}]}})
}

#[test]
fn pods_are_charged_until_nothing_is_left() {
    let pods = quota(json!({"pods": "1"}), json!({"pods": "0"}));
    assert_eq!(charged(&Evaluator::Pods, &pods, &pod(json!({})), None), Ok("pods=1".into()));
    let full = quota(json!({"pods": "1"}), json!({"pods": "1"}));
    assert_eq!(
        charged(&Evaluator::Pods, &full, &pod(json!({})), None),
        Err("exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1".into())
    );
    let ended = json!({"status": {"phase": "Failed"}});
    assert_eq!(charged(&Evaluator::Pods, &full, &ended, None), Ok(String::new()), "what has ended uses nothing");
    let unknown = quota(json!({"pods": "1"}), json!({}));
    assert_eq!(
        charged(&Evaluator::Pods, &unknown, &pod(json!({})), None),
        Err("status unknown for quota: q, resources: pods".into())
    );
}

#[test]
fn limited_resources_have_to_be_specified() {
    let limits =
        quota(json!({"requests.cpu": "1", "limits.memory": "1Gi"}), json!({"requests.cpu": "0", "limits.memory": "0"}));
    assert_eq!(
        charged(&Evaluator::Pods, &limits, &pod(json!({})), None),
        Err("failed quota: q: must specify limits.memory for: c; requests.cpu for: c".into())
    );
    let specified = pod(json!({"requests": {"cpu": "100m"}, "limits": {"memory": "64Mi"}}));
    assert_eq!(charged(&Evaluator::Pods, &limits, &specified, None), Ok("limits.memory=64Mi,requests.cpu=100m".into()));
    let whole = json!({"spec": {"resources": {"requests": {"cpu": "1"}}, "containers": [{"name": "c"}]}});
    assert_eq!(charged(&Evaluator::Pods, &limits, &whole, None), Ok("limits.memory=0,requests.cpu=1".into()));
    let much = pod(json!({"requests": {"cpu": "1100m"}, "limits": {"memory": "2Gi"}}));
    assert_eq!(
        charged(&Evaluator::Pods, &limits, &much, None),
        Err("exceeded quota: q, requested: limits.memory=2Gi,requests.cpu=1100m, used: limits.memory=0,requests.cpu=0, \
             limited: limits.memory=1Gi,requests.cpu=1"
            .into())
    );
}

#[test]
fn a_pods_usage_is_the_most_at_any_time() {
    let pod = json!({"spec": {
        "overhead": {"cpu": "1m", "memory": "1Mi"},
        "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "2", "example.com/gpu": "1"}}},
            {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "10m"}}}],
        "containers": [{"name": "c", "resources": {"requests": {"cpu": "100m", "hugepages-2Mi": "4Mi"},
            "limits": {"cpu": "1", "hugepages-2Mi": "4Mi"}}}]}});
    assert_eq!(
        pretty(&Evaluator::Pods.usage(&pod, now())),
        "count/pods=1,cpu=2001m,hugepages-2Mi=4Mi,limits.cpu=1001m,memory=1Mi,pods=1,requests.cpu=2001m,\
         requests.example.com/gpu=1,requests.hugepages-2Mi=4Mi,requests.memory=1Mi"
    );
    let resized = json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
        "status": {"containerStatuses": [{"name": "c", "allocatedResources": {"cpu": "2"}, "resources": {"requests": {"cpu": "3"}}}]}});
    assert_eq!(Evaluator::Pods.usage(&resized, now())["cpu"].to_string(), "3");
    let late = json!({"metadata": {"deletionTimestamp": "2025-12-31T23:59:00Z", "deletionGracePeriodSeconds": 30}});
    assert_eq!(pretty(&Evaluator::Pods.usage(&late, now())), "count/pods=1");
}

#[test]
fn scopes_choose_pods() {
    let scoped = |spec: Value| json!({"spec": spec});
    let best_effort = pod(json!({}));
    let asks = pod(json!({"requests": {"cpu": "1m"}}));
    let deadline = json!({"spec": {"activeDeadlineSeconds": 60, "priorityClassName": "high",
        "affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"namespaces": ["b"]}]}}}});
    let select = |operator: &str, values: Value| {
        scoped(
            json!({"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": operator, "values": values}]}}),
        )
    };
    for (quota, pod, chosen) in [
        (scoped(json!({"scopes": ["BestEffort"]})), &best_effort, true),
        (scoped(json!({"scopes": ["BestEffort"]})), &asks, false),
        (scoped(json!({"scopes": ["NotBestEffort", "NotTerminating"]})), &asks, true),
        (scoped(json!({"scopes": ["Terminating"]})), &asks, false),
        (scoped(json!({"scopes": ["Terminating", "CrossNamespacePodAffinity"]})), &deadline, true),
        (scoped(json!({"scopes": ["CrossNamespacePodAffinity"]})), &asks, false),
        (scoped(json!({"scopes": ["PriorityClass"]})), &deadline, true),
        (select("In", json!(["high"])), &deadline, true),
        (select("In", json!(["low"])), &deadline, false),
        (select("NotIn", json!(["low"])), &asks, true),
        (select("DoesNotExist", json!([])), &asks, true),
        (scoped(json!({})), &asks, true),
    ] {
        assert_eq!(Evaluator::Pods.in_scopes(&quota, pod), chosen, "{quota} {pod}");
    }
}

#[test]
fn services_and_claims() {
    let node_ports = json!({"spec": {"type": "NodePort", "ports": [{"port": 1}, {"port": 2}]}});
    let services = quota(
        json!({"services": "5", "services.nodeports": "1", "services.loadbalancers": "0"}),
        json!({"services": "0", "services.nodeports": "0", "services.loadbalancers": "0"}),
    );
    assert_eq!(
        charged(&Evaluator::Services, &services, &node_ports, None),
        Err("exceeded quota: q, requested: services.nodeports=2, used: services.nodeports=0, limited: services.nodeports=1".into())
    );
    let plain = json!({"spec": {"type": "ClusterIP", "ports": [{"port": 1}]}});
    assert_eq!(charged(&Evaluator::Services, &services, &plain, Some(&node_ports)), Ok(String::new()));
    let balanced =
        json!({"spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{"port": 1}]}});
    assert!(charged(&Evaluator::Services, &services, &balanced, Some(&plain)).unwrap_err().contains("loadbalancers=1"));

    let storage = quota(
        json!({"requests.storage": "1Gi", "fast.storageclass.storage.k8s.io/requests.storage": "0"}),
        json!({"requests.storage": "512Mi", "fast.storageclass.storage.k8s.io/requests.storage": "0"}),
    );
    let claim = |size: &str, class: &str| json!({"spec": {"storageClassName": class, "resources": {"requests": {"storage": size}}}});
    let evaluator = Evaluator::PersistentVolumeClaims;
    let used = "fast.storageclass.storage.k8s.io/requests.storage=0,requests.storage=1Gi";
    assert_eq!(charged(&evaluator, &storage, &claim("512Mi", "slow"), None), Ok(used.into()));
    assert!(
        charged(&evaluator, &storage, &claim("1Mi", "fast"), None)
            .unwrap_err()
            .contains("requested: fast.storageclass")
    );
    assert_eq!(
        charged(&evaluator, &storage, &claim("2Gi", ""), Some(&claim("1536Mi", ""))),
        Ok(used.into()),
        "what grew"
    );
}

#[test]
fn everything_else_is_counted() {
    let one = |group: &str, resource: &str| match Evaluator::of(group, resource) {
        Some(Evaluator::Count(names)) => names.join(","),
        other => format!("{other:?}"),
    };
    assert_eq!(one("apps", "deployments"), "count/deployments.apps");
    assert_eq!(one("", "secrets"), "count/secrets,secrets");
    assert_eq!(one("", "events"), "None");
    let devices = json!({"spec": {"devices": {"requests": [
        {"exactly": {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 2}},
        {"firstAvailable": [{"deviceClassName": "gpu", "allocationMode": "All"}, {"deviceClassName": "nic", "allocationMode": "ExactCount", "count": 1}]}]}}});
    assert_eq!(
        pretty(&Evaluator::ResourceClaims.usage(&devices, now())),
        "count/resourceclaims.resource.k8s.io=1,gpu.deviceclass.resource.k8s.io/devices=34,nic.deviceclass.resource.k8s.io/devices=1"
    );
}

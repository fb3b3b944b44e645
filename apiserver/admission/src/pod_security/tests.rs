//! Tests of the plugin with an in-memory map of objects.

use std::sync::Arc;

use jiff::Timestamp;
use machinery_env::Env;
use serde_json::json;

use super::*;
use crate::{AdmissionConfiguration, Chain, Options, Request};
use apiserver_auth::UserInfo;
use apiserver_resources::objects::memory::MemoryObjects;
use apiserver_resources::options::WriteOptions;
use machinery_api::GroupVersionKind;

fn namespace_of(labels: &[(&str, &str)]) -> Value {
    let labels: serde_json::Map<String, Value> =
        labels.iter().map(|(key, value)| (format!("pod-security.kubernetes.io/{key}"), json!(value))).collect();
    json!({"metadata": {"name": "ns", "labels": labels}})
}

/// Operation, group, resource and subresource of a request.
type TestRequest = (Operation, &'static str, &'static str, &'static str);

async fn admit(
    map: &MemoryObjects,
    case: TestRequest,
    object: &Value,
    old: Option<&Value>,
) -> Result<Vec<String>, String> {
    admit_configured(map, case, object, old, Configuration::default()).await.0
}

async fn admit_configured(
    map: &MemoryObjects,
    case: TestRequest,
    object: &Value,
    old: Option<&Value>,
    pod_security: Configuration,
) -> (Result<Vec<String>, String>, std::collections::BTreeMap<String, String>) {
    let (operation, group, resource, subresource) = case;
    let options = WriteOptions::default();
    let request = Request {
        user: &UserInfo::default(),
        group,
        version: "v1",
        resource,
        subresource,
        kind: GroupVersionKind::default(),
        operation,
        namespace: "ns",
        name: "x",
        path_name: "x",
        options: Options::Write(&options),
    };
    let configuration = Arc::new(AdmissionConfiguration { pod_security, ..AdmissionConfiguration::default() });
    let chain = Chain::new(&Env::seeded(1, Timestamp::UNIX_EPOCH).0, Arc::default()).with_configuration(configuration);
    let context = chain.context(&request, map, old);
    let mut effects = Effects::default();
    let step = PodSecurity.validate(&context, object, &mut effects).get().await;
    (step.map(|()| effects.warnings).map_err(|error| error.status().message), effects.audit)
}

const POD: TestRequest = (Operation::Create, "", "pods", "");

fn privileged() -> Value {
    json!({"metadata": {"name": "x"}, "spec": {"containers":
        [{"name": "c", "image": "i", "securityContext": {"privileged": true}}]}})
}

#[tokio::test]
async fn pods_are_refused_and_templates_warned_of() {
    let map = MemoryObjects::default();
    map.put("", "namespaces", namespace_of(&[("enforce", "baseline"), ("warn", "restricted")]));
    let refused = "pods \"x\" is forbidden: violates PodSecurity \"baseline:latest\": privileged (container \"c\" must not set \
                   securityContext.privileged=true)";
    assert_eq!(admit(&map, POD, &privileged(), None).await.unwrap_err(), refused);
    let plain = json!({"metadata": {"name": "x"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let warned = admit(&map, POD, &plain, None).await.unwrap();
    assert!(
        warned[0].starts_with("would violate PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false")
    );
    let deployment = json!({"spec": {"template": privileged()}});
    let warned = admit(&map, (Operation::Create, "apps", "deployments", ""), &deployment, None).await.unwrap();
    assert!(warned[0].contains("restricted:latest\": privileged"), "{warned:?}");
    let scale = (Operation::Update, "apps", "deployments", "scale");
    assert_eq!(admit(&map, scale, &deployment, None).await.unwrap(), Vec::<String>::new());
    let cron = json!({"spec": {"jobTemplate": {"spec": {"template": privileged()}}}});
    assert_eq!(admit(&map, (Operation::Update, "batch", "cronjobs", ""), &cron, None).await.unwrap().len(), 1);
    for exempt in [(Operation::Delete, "", "pods", ""), (Operation::Update, "", "pods", "status")] {
        assert_eq!(admit(&map, exempt, &privileged(), None).await.unwrap(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn pods_older_than_the_label_can_still_be_labelled() {
    let map = MemoryObjects::default();
    map.put("", "namespaces", namespace_of(&[("enforce", "baseline")]));
    let (old, mut new) = (privileged(), privileged());
    new["metadata"]["labels"] = json!({"a": "b"});
    let update = (Operation::Update, "", "pods", "");
    assert_eq!(admit(&map, update, &new, Some(&old)).await.unwrap(), Vec::<String>::new());
    new["spec"]["containers"][0]["image"] = json!("j");
    admit(&map, update, &new, Some(&old)).await.unwrap_err();
    let mut debugged = privileged();
    debugged["spec"]["ephemeralContainers"] = json!([{"name": "e", "image": "i"}]);
    admit(&map, (Operation::Update, "", "pods", "ephemeralcontainers"), &debugged, Some(&old)).await.unwrap_err();
    admit(&map, update, &debugged, Some(&debugged)).await.unwrap();
}

#[tokio::test]
async fn a_stricter_label_warns_of_pods_that_are_there() {
    let map = MemoryObjects::default();
    let pod = |name: &str, owner: Option<&str>, host: bool| {
        let owners = owner.map(|uid| json!([{"uid": uid, "controller": true}])).unwrap_or_default();
        map.put(
            "",
            "pods",
            json!({"metadata": {"namespace": "ns", "name": name, "ownerReferences": owners},
                "spec": {"hostNetwork": host, "containers": [{"name": "c", "image": "i"}]}}),
        );
    };
    pod("fine", None, false);
    pod("z", Some("u"), true);
    pod("b", Some("u"), true);
    pod("c", None, true);
    let case = (Operation::Update, "", "namespaces", "");
    let (none, baseline) = (namespace_of(&[]), namespace_of(&[("enforce", "baseline")]));
    let warned = admit(&map, case, &baseline, Some(&none)).await.unwrap();
    let head = "existing pods in namespace \"ns\" violate the new PodSecurity enforce level \"baseline:latest\"";
    assert_eq!(warned, [head, "b (and 2 other pods): host namespaces"]);
    assert!(admit(&map, case, &none, Some(&baseline)).await.unwrap().is_empty());
    assert!(admit(&map, case, &baseline, Some(&baseline)).await.unwrap().is_empty());
    let restricted = namespace_of(&[("enforce", "restricted")]);
    assert!(admit(&map, case, &baseline, Some(&restricted)).await.unwrap().is_empty());
}

#[tokio::test]
async fn wrong_labels_are_refused_once() {
    let map = MemoryObjects::default();
    let wrong = namespace_of(&[("enforce", "sometimes")]);
    let why = "Namespace \"x\" is invalid: metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"sometimes\": \
               must be one of privileged, baseline, restricted";
    let case = (Operation::Create, "", "namespaces", "");
    assert_eq!(admit(&map, case, &wrong, None).await.unwrap_err(), why);
    let update = (Operation::Update, "", "namespaces", "");
    assert_eq!(admit(&map, update, &wrong, Some(&namespace_of(&[]))).await.unwrap_err(), why);
    admit(&map, update, &wrong, Some(&wrong)).await.unwrap();
}

#[tokio::test]
async fn defaults_apply_without_labels_and_exemptions_pass() {
    let own = |exemptions: Value| {
        Configuration::parse(&json!({"apiVersion": "pod-security.admission.config.k8s.io/v1",
            "kind": "PodSecurityConfiguration", "defaults": {"enforce": "baseline"}, "exemptions": exemptions}))
        .unwrap()
    };
    let map = MemoryObjects::default();
    map.put("", "namespaces", namespace_of(&[]));
    let (refused, _) = admit_configured(&map, POD, &privileged(), None, own(Value::Null)).await;
    assert!(refused.unwrap_err().contains("violates PodSecurity \"baseline:latest\""));
    let mut classed = privileged();
    classed["spec"]["runtimeClassName"] = json!("c");
    for (exemptions, why) in
        [(json!({"namespaces": ["ns"]}), "namespace"), (json!({"runtimeClasses": ["c"]}), "runtimeClass")]
    {
        let (done, notes) = admit_configured(&map, POD, &classed, None, own(exemptions)).await;
        assert_eq!(done, Ok(Vec::new()));
        assert_eq!(notes.get("pod-security.kubernetes.io/exempt").map(String::as_str), Some(why));
    }
    let (others, _) = admit_configured(&map, POD, &classed, None, own(json!({"usernames": ["u"]}))).await;
    assert!(others.is_err(), "of another user");
    let case = (Operation::Create, "", "namespaces", "");
    let namespace = namespace_of(&[("enforce", "restricted"), ("audit", "privileged")]);
    let (warnings, _) = admit_configured(&map, case, &namespace, None, own(json!({"namespaces": ["ns"]}))).await;
    let why =
        "namespace \"ns\" is exempt from Pod Security, and the policy (enforce=restricted:latest) will be ignored";
    assert_eq!(warnings, Ok(vec![why.to_owned()]));
}

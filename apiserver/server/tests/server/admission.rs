//! The request attributes that admission plugins get: upstream's, also for subresources with bodies of their own.

use std::sync::{Arc, Mutex};

use apiserver::server::ChainExtensions;
use apiserver_admission::{Context, Effects, MaybeReady, Plugin};
use serde_json::{Value, json};

use super::server_with;

/// Records the requests of validating admission.
#[derive(Default)]
struct Recorder {
    requests: Mutex<Vec<String>>,
}

impl Plugin for Recorder {
    fn name(&self) -> &'static str {
        "Recorder"
    }

    fn validate<'a>(&'a self, context: &'a Context<'_>, object: &'a Value, _: &'a mut Effects) -> MaybeReady<'a> {
        let request = context.request;
        let kind = |object: &Value| match object["kind"].as_str() {
            Some(kind) => format!("{} {kind}", object["apiVersion"].as_str().unwrap_or_default()),
            None => "nothing".to_owned(),
        };
        let (of, path) = (request.kind, [request.resource, request.subresource].join("/"));
        self.requests.lock().unwrap().push(format!(
            "{} {} of {}/{} {path} {}/{}: {} from {}, as {} {} {}",
            request.operation.as_str(),
            if request.options.dry_run() { "dry" } else { "real" },
            request.group,
            request.version,
            request.namespace,
            request.name,
            kind(object),
            context.old.map_or_else(|| "nothing".to_owned(), kind),
            of.group,
            of.version,
            of.kind,
        ));
        MaybeReady::Ready(Ok(()))
    }
}

/// A request, and the attributes that a plugin gets.
type AdmissionCase = (&'static str, String, Value, &'static str);

fn requests() -> Vec<AdmissionCase> {
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let deployment = json!({"metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let pod = json!({"metadata": {"name": "p"}, "spec": template["spec"]});
    let review = json!({"spec": {"user": "jo", "nonResourceAttributes": {"verb": "get", "path": "/"}}});
    let (core, apps) = ("/api/v1/namespaces/default", "/apis/apps/v1/namespaces/default");
    let scale = json!({"metadata": {"name": "d"}, "spec": {"replicas": 2}});
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    let status = json!({"status": {"phase": "Running"}});
    vec![
        (
            "POST",
            format!("{core}/serviceaccounts"),
            json!({"metadata": {"name": "default"}}),
            "CREATE real of /v1 serviceaccounts/ default/default: v1 ServiceAccount from nothing, as  v1 ServiceAccount",
        ),
        (
            "POST",
            format!("{core}/serviceaccounts/default/token"),
            json!({"spec": {}}),
            "CREATE real of /v1 serviceaccounts/token default/default: authentication.k8s.io/v1 TokenRequest from nothing, \
             as authentication.k8s.io v1 TokenRequest",
        ),
        (
            "POST",
            format!("{apps}/deployments"),
            deployment,
            "CREATE real of apps/v1 deployments/ default/d: apps/v1 Deployment from nothing, as apps v1 Deployment",
        ),
        (
            "PUT",
            format!("{apps}/deployments/d/scale?dryRun=All"),
            scale.clone(),
            "UPDATE dry of apps/v1 deployments/scale default/d: autoscaling/v1 Scale from autoscaling/v1 Scale, as \
             autoscaling v1 Scale",
        ),
        ("POST", format!("{core}/pods"), pod, "CREATE real of /v1 pods/ default/p: v1 Pod from nothing, as  v1 Pod"),
        (
            "POST",
            format!("{core}/pods/p/binding"),
            binding,
            "CREATE real of /v1 pods/binding default/p: v1 Binding from nothing, as  v1 Binding",
        ),
        (
            "PATCH",
            format!("{core}/pods/p/status"),
            status,
            "UPDATE real of /v1 pods/status default/p: v1 Pod from v1 Pod, as  v1 Pod",
        ),
        (
            "POST",
            "/apis/authorization.k8s.io/v1/subjectaccessreviews".to_owned(),
            review,
            "CREATE real of authorization.k8s.io/v1 subjectaccessreviews/ /: authorization.k8s.io/v1 SubjectAccessReview \
             from nothing, as authorization.k8s.io v1 SubjectAccessReview",
        ),
        (
            "DELETE",
            format!("{core}/pods/p?gracePeriodSeconds=0"),
            Value::Null,
            "DELETE real of /v1 pods/ default/p: nothing from v1 Pod, as  v1 Pod",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn plugins_receive_upstreams_attributes() {
    let recorder = Arc::new(Recorder::default());
    let server = server_with(ChainExtensions { plugins: vec![recorder.clone()], ..ChainExtensions::default() }).await;
    for (method, path, body, reported) in requests() {
        recorder.requests.lock().unwrap().clear();
        let (code, answer) = server.ask(method, &path, &body).await;
        assert!(code < 300, "{method} {path}: {answer}");
        assert_eq!(*recorder.requests.lock().unwrap(), [reported], "{method} {path}");
    }
}

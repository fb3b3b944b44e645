//! Admission plugins with a configuration file: the identity for webhooks, and the resources that a quota must cover.

use std::path::Path;

use apiserver_admission::AdmissionConfiguration;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::webhooks::hooks;
use super::*;

fn of(plugins: &Value, kubeconfig: &Value) -> ChainExtensions {
    let version = "apiserver.config.k8s.io/v1";
    let file = json!({"apiVersion": version, "kind": "AdmissionConfiguration", "plugins": plugins}).to_string();
    let kubeconfig = kubeconfig.to_string();
    let read = |path: &Path| match path.to_str() {
        Some("/etc/kubeconfig") => Ok(kubeconfig.clone().into_bytes()),
        _ => Err("not there".to_owned()),
    };
    let admission = AdmissionConfiguration::parse(file.as_bytes(), Path::new("/etc"), &read).unwrap();
    ChainExtensions { admission: Arc::new(admission), ..ChainExtensions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_are_called_with_the_kubeconfigs_credentials() {
    let hooks = hooks().await;
    let data = |pem: &str| STANDARD.encode(pem);
    let client = hooks.pki.issue_client("asking", "apiservers").unwrap();
    let certificate = json!({"client-certificate-data": data(&client.cert_pem),
        "client-key-data": data(&client.key_pem), "token": "of-the-address"});
    let users = json!([{"name": hooks.address.to_string(), "user": certificate},
        {"name": "*.default.svc:8443", "user": {"token": "of-services"}}]);
    let configuration = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "WebhookAdmissionConfiguration",
        "kubeConfigFile": "/etc/kubeconfig"});
    let plugins = json!([{"name": "ValidatingAdmissionWebhook", "configuration": configuration}]);
    let server = server_with(of(&plugins, &json!({"users": users}))).await;
    server.hooked("Validating", "v", vec![hooks.hook("/name", "configmaps")]).await;
    server.hooked("Mutating", "m", vec![hooks.hook("/first", "configmaps")]).await;
    let (code, answer) = server.ask("POST", MAPS, &json!({"metadata": {"name": "c"}})).await;
    assert_eq!(code, 201, "{answer}");
    let reviews = hooks.reviews.lock().unwrap().clone();
    let by = |path: &str| reviews.iter().find(|review| review["path"] == path).unwrap()["by"].clone();
    assert_eq!(by("/name"), json!(["Bearer of-the-address", "asking"]));
    assert_eq!(by("/first"), json!([null, null]), "the other plugin has no configuration");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limited_resource_needs_a_quota() {
    let limited = json!([{"resource": "configmaps", "matchContains": ["count/configmaps"]}]);
    let configuration = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "ResourceQuotaConfiguration",
        "limitedResources": limited});
    let plugins = json!([{"name": "ResourceQuota", "configuration": configuration}]);
    let server = server_with(of(&plugins, &Value::Null)).await;
    let map = json!({"metadata": {"name": "c"}});
    let (code, answer) = server.ask("POST", MAPS, &map).await;
    let why = "configmaps \"c\" is forbidden: insufficient quota to consume: count/configmaps";
    assert_eq!((code, answer["message"].as_str()), (403, Some(why)));
    assert_eq!(server.ask("POST", "/api/v1/namespaces/default/secrets", &map).await.0, 201);
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"count/configmaps": "5"}}});
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    assert_eq!(server.ask("POST", quotas, &quota).await.0, 201);
    let status = json!({"status": {"hard": {"count/configmaps": "5"}, "used": {"count/configmaps": "0"}}});
    assert_eq!(server.ask("PATCH", &format!("{quotas}/q/status"), &status).await.0, 200);
    assert_eq!(server.ask("POST", MAPS, &map).await.0, 201);
}

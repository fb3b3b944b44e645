//! Quotas hold under concurrent writes.

use std::sync::Arc;

use serde_json::{Value, json};

use super::server;

const CORE: &str = "/api/v1/namespaces/default";

fn config(name: usize) -> Value {
    json!({"metadata": {"name": format!("c{name}")}})
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_creates_never_overrun_a_quota() {
    let server = Arc::new(server().await);
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"count/configmaps": "5"}}});
    assert_eq!(server.ask("POST", &format!("{CORE}/resourcequotas"), &quota).await.0, 201);
    let status = json!({"status": {"hard": {"count/configmaps": "5"}, "used": {"count/configmaps": "0"}}});
    let at = format!("{CORE}/resourcequotas/q");
    assert_eq!(server.ask("PATCH", &format!("{at}/status"), &status).await.0, 200);
    assert_eq!(server.ask("POST", &format!("{CORE}/configmaps?dryRun=All"), &config(0)).await.0, 201);
    let creates = (0..100).map(|name| {
        let server = server.clone();
        tokio::spawn(async move { server.ask("POST", &format!("{CORE}/configmaps"), &config(name)).await })
    });
    let mut created = 0;
    for answer in futures::future::join_all(creates).await {
        let (code, answer) = answer.unwrap();
        created += usize::from(code == 201);
        let full = "is forbidden: exceeded quota: q, requested: count/configmaps=1, used: count/configmaps=5, limited: \
                    count/configmaps=5";
        assert!(code == 201 || answer["message"].as_str().unwrap().ends_with(full), "{answer}");
    }
    assert_eq!(created, 5);
    let (_, quota) = server.ask("GET", &at, &Value::Null).await;
    assert_eq!(quota["status"]["used"]["count/configmaps"], "5", "a dry run is not charged");
}

//! Evictions: allowed ones delete the pod, denied ones don't, and each is counted once.

use serde_json::{Value, json};

use super::{Server, server};

const PODS: &str = "/api/v1/namespaces/default/pods";
const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";

impl Server {
    async fn pod(&self, name: &str, phase: &str, ready: &str) -> Value {
        let body = json!({"metadata": {"name": name, "labels": {"a": "b"}}, "spec": {"nodeName": "n",
            "containers": [{"name": "c", "image": "i"}]}});
        let (code, made) = self.ask("POST", PODS, &body).await;
        assert_eq!(code, 201, "{made}");
        let status = json!({"status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}});
        let (code, pod) = self.ask("PATCH", &format!("{PODS}/{name}/status"), &status).await;
        assert_eq!(code, 200, "{pod}");
        pod
    }

    async fn budget(&self, spec: Value, status: Value) {
        let body = json!({"metadata": {"name": "b"}, "spec": spec});
        let (code, made) = self.ask("POST", BUDGETS, &body).await;
        assert_eq!(code, 201, "{made}");
        let (code, made) = self.ask("PATCH", &format!("{BUDGETS}/b/status"), &json!({"status": status})).await;
        assert_eq!(code, 200, "{made}");
    }

    async fn evict(&self, name: &str, query: &str, options: Value) -> (u16, Value) {
        let body = json!({"metadata": {"name": name}, "deleteOptions": options});
        self.ask("POST", &format!("{PODS}/{name}/eviction{query}"), &body).await
    }

    async fn get(&self, path: &str) -> Value {
        self.ask("GET", path, &Value::Null).await.1
    }
}

fn selecting() -> Value {
    json!({"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}})
}

async fn prepared() -> Server {
    let server = server().await;
    let account = json!({"metadata": {"name": "default"}});
    assert_eq!(server.ask("POST", "/api/v1/namespaces/default/serviceaccounts", &account).await.0, 201);
    assert_eq!(server.ask("POST", "/api/v1/nodes", &json!({"metadata": {"name": "n"}})).await.0, 201);
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_is_counted_down_and_then_refuses() {
    let server = prepared().await;
    for name in ["p", "q"] {
        server.pod(name, "Running", "True").await;
    }
    server.budget(selecting(), json!({"observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1, "expectedPods": 2})).await;
    assert_eq!(server.evict("p", "?dryRun=All", json!({})).await.0, 201);
    let budget = server.get(&format!("{BUDGETS}/b")).await;
    assert_eq!(budget["status"]["disruptionsAllowed"], 1, "a dry run counts nothing");
    let (code, done) = server.evict("p", "", json!({"gracePeriodSeconds": 7})).await;
    assert_eq!((code, &done["status"]), (201, &json!("Success")));
    let pod = server.get(&format!("{PODS}/p")).await;
    assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 7);
    assert_eq!(pod["status"]["conditions"][1]["reason"], "EvictionByEvictionAPI", "{pod}");
    let budget = server.get(&format!("{BUDGETS}/b")).await;
    assert_eq!(budget["status"]["disruptionsAllowed"], 0);
    assert!(budget["status"]["disruptedPods"]["p"].is_string());
    assert_eq!(budget["status"]["conditions"][0]["reason"], "InsufficientPods");
    let (code, refused) = server.evict("q", "", json!({})).await;
    assert_eq!(code, 429, "{refused}");
    assert_eq!(refused["details"]["causes"][0]["reason"], "DisruptionBudget");
    assert_eq!(server.get(&format!("{PODS}/q")).await["metadata"].get("deletionTimestamp"), None);
    assert_eq!(server.evict("p", "", json!({})).await.0, 201, "what goes already is not counted again");
}

#[tokio::test(flavor = "multi_thread")]
async fn budgets_that_are_not_looked_at_yet_or_are_two_let_nothing_go() {
    let server = prepared().await;
    server.pod("p", "Running", "True").await;
    server.budget(selecting(), json!({"observedGeneration": 0, "disruptionsAllowed": 1, "currentHealthy": 1, "desiredHealthy": 0, "expectedPods": 1})).await;
    let (code, refused) = server.evict("p", "", json!({})).await;
    let message = "The disruption budget b is still being processed by the server.";
    assert_eq!((code, &refused["details"]["causes"][0]["message"]), (429, &json!(message)));
    assert_eq!(refused["details"]["retryAfterSeconds"], 10);
    let second = json!({"metadata": {"name": "c"}, "spec": {"selector": {}}});
    assert_eq!(server.ask("POST", BUDGETS, &second).await.0, 201);
    let (code, failed) = server.evict("p", "", json!({})).await;
    // As upstream: clients that evict stop here, as a retry doesn't help.
    assert_eq!((code, &failed["code"], &failed["status"]), (500, &json!(500), &json!("Failure")));
    assert_eq!(server.get(&format!("{PODS}/p")).await["metadata"].get("deletionTimestamp"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn unready_pods_are_evicted_by_the_budgets_policy() {
    let server = prepared().await;
    server.pod("p", "Running", "False").await;
    server.budget(selecting(), json!({"observedGeneration": 1, "disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 1, "expectedPods": 1})).await;
    assert_eq!(server.evict("p", "", json!({})).await.0, 429);
    let policy = json!({"spec": {"unhealthyPodEvictionPolicy": "AlwaysAllow"}});
    assert_eq!(server.ask("PATCH", &format!("{BUDGETS}/b"), &policy).await.0, 200);
    let (code, wrong) = server.evict("p", "", json!({"preconditions": {"uid": "other"}})).await;
    assert_eq!(code, 429, "a conflict with what was seen is for the client to try again: {wrong}");
    assert_eq!(server.evict("p", "", json!({})).await.0, 201);
    let budget = server.get(&format!("{BUDGETS}/b")).await;
    assert_eq!(budget["status"].get("disruptedPods"), None, "who isn't ready is not counted");
    server.pod("q", "Failed", "False").await;
    for preconditions in [json!({"uid": "other"}), json!({"resourceVersion": "1"})] {
        let (code, wrong) = server.evict("q", "", json!({"preconditions": preconditions})).await;
        assert_eq!((code, &wrong["reason"]), (409, &json!("Conflict")));
    }
    assert_eq!(server.evict("q", "", json!({"gracePeriodSeconds": 0})).await.0, 201);
    assert_eq!(server.ask("GET", &format!("{PODS}/q"), &Value::Null).await.0, 404);
    assert_eq!(server.evict("q", "", json!({})).await.0, 404);
}

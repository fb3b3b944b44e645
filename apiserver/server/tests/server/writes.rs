//! Writes whose responses were found to differ from a running upstream's.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_patch_makes_a_custom_resource_nothing_else() {
    let server = server().await;
    let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    let crd = json!({"metadata": {"name": "vals.t.example.com"}, "spec": {
        "group": "t.example.com", "scope": "Namespaced", "names": {"plural": "vals", "kind": "Val"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": schema}],
    }});
    let (code, answer) = server.ask("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &crd).await;
    assert_eq!(code, 201, "{answer}");
    let (all, object) =
        ("/apis/t.example.com/v1/namespaces/default/vals", json!({"apiVersion": "t.example.com/v1", "kind": "Val"}));
    let mut made = 404;
    for _ in 0..200 {
        let mut object = object.clone();
        object["metadata"] = json!({"name": "a"});
        made = server.ask("POST", all, &object).await.0;
        if made != 404 {
            break;
        }
        Env::real().sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(made, 201);
    let one = format!("{all}/a");
    for (patch, message) in [
        (json!({"kind": "Z"}), "Z.t.example.com \"a\" is invalid: kind: Invalid value: \"Z\": must be Val"),
        (
            json!({"apiVersion": "v2"}),
            "Val \"a\" is invalid: apiVersion: Invalid value: \"v2\": must be t.example.com/v1",
        ),
    ] {
        let (code, answer) = server.ask("PATCH", &one, &patch).await;
        assert_eq!((code, answer["message"].as_str()), (422, Some(message)), "{patch}");
    }
    assert_eq!(server.ask("GET", &one, &Value::Null).await.1["metadata"]["generation"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_of_a_policy_is_conditions_and_no_metadata() {
    let server = server().await;
    let path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    let rules =
        json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}]);
    let spec = json!({"matchConstraints": {"resourceRules": rules}, "validations": [{"expression": "true"}]});
    let policy = json!({"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": spec});
    assert_eq!(server.ask("POST", path, &policy).await.0, 201);
    let (one, status) = (format!("{path}/p"), format!("{path}/p/status"));
    let change =
        json!({"metadata": {"labels": {"c": "d"}, "finalizers": ["a.b/c"]}, "status": {"observedGeneration": 1}});
    let (code, answer) = server.ask("PATCH", &status, &change).await;
    assert_eq!((code, &answer["metadata"]["labels"]), (200, &json!({"a": "b"})), "{answer}");
    assert_eq!(answer["metadata"]["finalizers"], Value::Null);
    let (code, answer) = server.ask("PATCH", &status, &json!({"status": {"conditions": [{}]}})).await;
    assert_eq!(
        (code, &answer["details"]["causes"][0]["field"]),
        (422, &json!("status.conditions[0].type")),
        "{answer}"
    );
    // All errors in metadata are found, and each is reported once.
    let (code, answer) = server.ask("PATCH", &one, &json!({"metadata": {"uid": "x"}})).await;
    assert_eq!((code, answer["details"]["causes"].as_array().unwrap().len()), (422, 1), "{answer}");
    let (code, answer) = server.ask("PATCH", &one, &json!({"metadata": {"generateName": "Bad_"}})).await;
    assert_eq!((code, &answer["details"]["causes"][0]["field"]), (422, &json!("metadata.generateName")), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_of_a_pod_has_the_fields_of_enabled_features() {
    let server = server().await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    assert_eq!(server.ask("POST", accounts, &json!({"metadata": {"name": "default"}})).await.0, 201);
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    assert_eq!(server.ask("POST", pods, &pod).await.0, 201);
    let status = format!("{pods}/p/status");
    let mounts = json!([{"name": "v", "mountPath": "/v", "volumeStatus": {"image": {"imageRef": "i"}}}]);
    let states =
        json!([{"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "volumeMounts": mounts}]);
    let change = json!({"status": {"containerStatuses": states,
        "nodeAllocatableResourceClaimStatuses": [{"resourceClaimName": "x", "resources": {"cpu": "1"}}]}});
    let (code, answer) = server.ask("PATCH", &status, &change).await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(answer["status"]["nodeAllocatableResourceClaimStatuses"], Value::Null);
    assert_eq!(answer["status"]["containerStatuses"][0]["volumeMounts"][0]["volumeStatus"], Value::Null, "{answer}");
    let mapping = json!({"containerName": "d", "resourceName": "a.b/c", "requestName": ""});
    let change = json!({"status": {"extendedResourceClaimStatus": {"requestMappings": [mapping]}}});
    let (code, answer) = server.ask("PATCH", &status, &change).await;
    let causes = answer["details"]["causes"].as_array().cloned().unwrap_or_default();
    let fields: Vec<&str> = causes.iter().filter_map(|cause| cause["field"].as_str()).collect();
    let at = "status.extendedResourceClaimStatus";
    let expected = [
        format!("{at}.requestMappings[0].containerName"),
        format!("{at}.requestName"),
        format!("{at}.resourceClaimName"),
    ];
    assert_eq!((code, fields), (422, expected.iter().map(String::as_str).collect()), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_explicitly_empty_list_is_a_change_where_upstream_compares_exactly() {
    let server = server().await;
    let generation = |answer: &Value| answer["metadata"]["generation"].clone();
    let path = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies";
    let policy = json!({"metadata": {"name": "p"}, "spec": {"podSelector": {"matchLabels": {"a": "b"}}}});
    assert_eq!(server.ask("POST", path, &policy).await.0, 201);
    for (selector, wanted) in [
        (json!({"matchLabels": {"a": "b"}}), 1),
        (json!({"matchLabels": {"a": "b"}, "matchExpressions": null}), 1),
        (json!({"matchLabels": {"a": "b"}, "matchExpressions": []}), 2),
    ] {
        let mut policy = policy.clone();
        policy["spec"]["podSelector"] = selector;
        let answer = server.ask("PUT", &format!("{path}/p"), &policy).await.1;
        assert_eq!(generation(&answer), wanted, "{policy}");
        assert_eq!(answer["spec"]["podSelector"], json!({"matchLabels": {"a": "b"}}));
    }

    let path = "/apis/resource.k8s.io/v1/resourceslices";
    let spec = json!({"driver": "d.example.com", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
        "nodeName": "n", "devices": [{"name": "d", "attributes": {"a": {"string": "x"}}}]});
    let slice = json!({"metadata": {"name": "s"}, "spec": spec});
    assert_eq!(server.ask("POST", path, &slice).await.0, 201);
    let mut listed = slice.clone();
    listed["spec"]["devices"][0]["attributes"]["a"]["strings"] = json!(["y"]);
    for (slice, wanted) in [(&slice, 1), (&listed, 2)] {
        let answer = server.ask("PUT", &format!("{path}/s"), slice).await.1;
        assert_eq!(generation(&answer), wanted, "{answer}");
        assert_eq!(
            answer["spec"]["devices"][0]["attributes"]["a"],
            json!({"string": "x"}),
            "a disabled field is dropped"
        );
    }
}

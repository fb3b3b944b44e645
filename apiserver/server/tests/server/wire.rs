//! Responses in protobuf: equal to those in JSON, for clients that accept nothing else.

use apiserver_schema::encode;
use axum::body::Body;
use futures::StreamExt as _;
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::{Server, admin, server};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const PARTIAL: &str = ";as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

impl Server {
    /// The code, the media type and the body.
    async fn get_as(&self, path: &str, accept: &str) -> (u16, String, Vec<u8>) {
        let mut request = Request::get(path).header("accept", accept).body(Body::empty()).unwrap();
        request.extensions_mut().insert(admin());
        let response = self.send(request).await;
        let code = response.status().as_u16();
        let media = response.headers().get("content-type").map(|media| media.to_str().unwrap().to_owned());
        (code, media.unwrap_or_default(), response.into_body().collect().await.unwrap().to_bytes().to_vec())
    }

    async fn check_same(&self, path: &str, form: &str) {
        let (code, media, bytes) = self.get_as(path, &format!("{PROTOBUF}{form}")).await;
        let (of_json, _, text) = self.get_as(path, &format!("application/json{form}")).await;
        let value: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!((code, media.as_str()), (of_json, PROTOBUF), "{path}");
        let expected = encode::enveloped(encode::type_of(&value).unwrap(), &value);
        assert!(bytes == expected, "{path}{form}: {}", String::from_utf8_lossy(&bytes).escape_debug());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn protobuf_and_json_are_equal() {
    let server = server().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    for n in 0..300 {
        // Enough for several pieces.
        let object = json!({ "metadata": { "name": format!("m{n}") }, "data": { "k": "v".repeat(2000) } });
        assert_eq!(server.ask("POST", maps, &object).await.0, 201);
    }
    let one = format!("{maps}/m1");
    let page = format!("{maps}?limit=3");
    for path in
        [&one, maps, &page, "/api", "/apis", "/apis/apps", "/api/v1", "/apis/rbac.authorization.k8s.io/v1/clusterroles"]
    {
        server.check_same(path, "").await;
    }
    server.check_same(maps, PARTIAL).await;
    server.check_same(&one, &PARTIAL.replace("List", "")).await;
    // Failures, too; a type without a message is sent in another form or rejected.
    server.check_same("/api/v1/namespaces/none", "").await;
    let (code, media, _) = server.get_as("/version", PROTOBUF).await;
    assert_eq!((code, media.as_str()), (406, PROTOBUF));
    let table = format!("{PROTOBUF};as=Table;g=meta.k8s.io;v=v1");
    assert_eq!(server.get_as(&one, &table).await.0, 406);
    assert_eq!(server.get_as(&one, &format!("{PROTOBUF},application/json")).await.1, "application/json");
}

#[tokio::test(flavor = "multi_thread")]
async fn virtual_resources_have_tables_if_they_have_columns() {
    let server = server().await;
    let table = "application/json;as=Table;g=meta.k8s.io;v=v1";
    for path in ["/api/v1/componentstatuses", "/api/v1/componentstatuses/etcd-0"] {
        let (code, _, body) = server.get_as(path, table).await;
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((code, &body["rows"][0]["cells"]), (200, &json!(["etcd-0", "Healthy", "ok", ""])), "{path} {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_after_their_lengths() {
    let server = server().await;
    let path = "/api/v1/namespaces/default/configmaps";
    let object = json!({ "metadata": { "name": "a" }, "data": { "k": "v" } });
    let (_, mut made) = server.ask("POST", path, &object).await;
    let mut request = Request::get(format!("{path}?watch=true&fieldSelector=metadata.name%3Da"))
        .header("accept", PROTOBUF)
        .body(Body::empty())
        .unwrap();
    request.extensions_mut().insert(admin());
    let response = server.send(request).await;
    assert_eq!(response.headers()["content-type"], "application/vnd.kubernetes.protobuf;stream=watch");
    let mut stream = response.into_body().into_data_stream();
    let first = stream.next().await.unwrap().unwrap();
    let found = encode::type_of(&made).unwrap();
    assert_eq!(first, encode::watch_event("ADDED", found, &made));
    made["data"]["k"] = json!("w");
    let (_, changed) = server.ask("PUT", &format!("{path}/a"), &made).await;
    assert_eq!(stream.next().await.unwrap().unwrap(), encode::watch_event("MODIFIED", found, &changed));
}

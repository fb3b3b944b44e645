//! The registry's wire behaviour, tested with clients' requests.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use base64::Engine as _;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use machinery_env::Env;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::manifests::{MANIFEST_BYTES_MAX, OCI_MANIFEST};
use super::*;
use crate::blobs::digest;

const WASM_CONFIG: &str = "application/vnd.wasm.config.v0+json";
const WASM_LAYER: &str = "application/wasm";

struct Bench {
    router: Router,
    dir: tempfile::TempDir,
    authorization: String,
}

fn account() -> Credentials {
    Credentials { user: "coracle".into(), password: "secret".into() }
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let router = Self::open(dir.path());
        let encoded = base64::engine::general_purpose::STANDARD.encode("coracle:secret");
        Self { router, dir, authorization: format!("Basic {encoded}") }
    }

    fn open(dir: &std::path::Path) -> Router {
        router(Arc::new(BlobStore::open(dir).unwrap()), &account(), Env::real())
    }

    fn restart(&mut self) {
        self.router = Self::open(self.dir.path());
    }

    async fn send(&self, request: http::request::Builder, body: impl Into<Body>) -> Response<Body> {
        self.router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap()
    }

    async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Response<Body> {
        let mut request = Request::builder().method(method).uri(path).header("authorization", &self.authorization);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request, body).await
    }

    async fn push_blob(&self, name: &str, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        let path = format!("/v2/{name}/blobs/uploads/?digest={}", digest.replace(':', "%3A"));
        let response = self.ask(Method::POST, &path, &[], bytes.to_vec()).await;
        assert_eq!(response.status(), StatusCode::CREATED);
        digest
    }

    async fn push_manifest(&self, name: &str, reference: &str, manifest: &Value) -> Response<Body> {
        let path = format!("/v2/{name}/manifests/{reference}");
        self.ask(Method::PUT, &path, &[("content-type", OCI_MANIFEST)], manifest.to_string()).await
    }
}

fn header<'a>(response: &'a Response<Body>, name: &str) -> &'a str {
    response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

async fn bytes(response: Response<Body>) -> Vec<u8> {
    response.into_body().collect().await.unwrap().to_bytes().to_vec()
}

async fn code(response: Response<Body>) -> (u16, String) {
    let status = response.status().as_u16();
    let errors: Value = serde_json::from_slice(&bytes(response).await).unwrap_or_default();
    (status, errors["errors"][0]["code"].as_str().unwrap_or_default().to_owned())
}

fn image(config: &str, layer: &str) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": WASM_CONFIG, "digest": config, "size": 2},
        "layers": [{"mediaType": WASM_LAYER, "digest": layer, "size": 5}],
    })
}

#[tokio::test]
async fn every_path_wants_the_account() {
    let bench = Bench::new();
    for path in ["/v2/", "/v2", "/", "/v2/_catalog", "/v2/a/tags/list", "/v2/A/x", "/v2/a/blobs/sha256:00"] {
        for authorization in
            [None, Some("Basic"), Some("Basic !!!"), Some("Bearer x"), Some("Basic Y29yYWNsZTpvdGhlcg==")]
        {
            let mut request = Request::get(path);
            if let Some(authorization) = authorization {
                request = request.header("authorization", authorization);
            }
            let response = bench.send(request, Body::empty()).await;
            assert_eq!(header(&response, "www-authenticate"), "Basic realm=\"coracle\"", "{path} {authorization:?}");
            assert_eq!(code(response).await, (401, "UNAUTHORIZED".into()));
        }
    }
    let response = bench.ask(Method::GET, "/v2/", &[], Body::empty()).await;
    assert_eq!((response.status().as_u16(), bytes(response).await), (200, b"{}".to_vec()));
    assert_eq!(bench.ask(Method::GET, "/v2", &[], Body::empty()).await.status(), 301);
}

/// The attacker has a page that is open in a browser whose user once typed the account's password; the browser adds it.
#[tokio::test]
async fn a_page_uses_no_account() {
    let bench = Bench::new();
    let more = Router::new().route("/more", axum::routing::post(|| async { "more" }));
    let router = bench.router.clone().merge(authenticated(more, &account()));
    for (header, expected) in [
        (("origin", "https://evil.example"), 403),
        (("origin", "null"), 403),
        (("sec-fetch-site", "cross-site"), 403),
        (("sec-fetch-site", "none"), 200),
        (("user-agent", "a program"), 200),
    ] {
        for (method, path) in [(Method::GET, "/v2/"), (Method::POST, "/more")] {
            let request = Request::builder().method(method).uri(path).header("authorization", &bench.authorization);
            let request = request.header(header.0, header.1).body(Body::empty()).unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status().as_u16(), expected, "{path} {header:?}");
        }
    }
}

/// The attacker has a node's certificate, as each bearer of a bootstrap token.
#[tokio::test]
async fn a_nodes_certificate_reads_the_registry_alone() {
    let bench = Bench::new();
    let more = Router::new().route("/more", axum::routing::get(|| async { "more" }));
    let router = bench.router.clone().merge(authenticated(more, &account()));
    for (method, path, expected) in [
        (Method::GET, "/v2/", 200),
        (Method::HEAD, "/v2/", 200),
        (Method::POST, "/v2/a/blobs/uploads/", 401),
        (Method::GET, "/more", 401),
        (Method::HEAD, "/more", 401),
    ] {
        let mut request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        request.extensions_mut().insert(NodeReader);
        let response = router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status().as_u16(), expected, "{path}");
    }
    let request = Request::get("/more").header("authorization", &bench.authorization).body(Body::empty()).unwrap();
    assert_eq!(router.oneshot(request).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn blobs_come_in_every_way() {
    let mut bench = Bench::new();
    // Chunked, out of order, resumed.
    let response = bench.ask(Method::POST, "/v2/a/b/blobs/uploads/", &[], Body::empty()).await;
    assert_eq!((response.status().as_u16(), header(&response, "range")), (202, "0-0"));
    let at = header(&response, "location").to_owned();
    let response = bench.ask(Method::PATCH, &at, &[("content-range", "0-2"), ("content-length", "3")], "hel").await;
    assert_eq!((response.status().as_u16(), header(&response, "range")), (202, "0-2"));
    let wrong = bench.ask(Method::PATCH, &at, &[("content-range", "5-6")], "xx").await;
    assert_eq!((wrong.status().as_u16(), header(&wrong, "range")), (416, "0-2"));
    let status = bench.ask(Method::GET, &at, &[], Body::empty()).await;
    assert_eq!((status.status().as_u16(), header(&status, "range")), (204, "0-2"));
    let wanted = digest(b"hello");
    let response = bench.ask(Method::PUT, &format!("{at}?digest={wanted}"), &[("content-range", "3-4")], "lo").await;
    assert_eq!((response.status().as_u16(), header(&response, "docker-content-digest")), (201, wanted.as_str()));
    assert_eq!(code(bench.ask(Method::GET, &at, &[], Body::empty()).await).await, (404, "BLOB_UPLOAD_UNKNOWN".into()));
    // All at once, empty, wrong.
    assert_eq!(bench.push_blob("a/b", b"").await, digest(b""));
    let wrong = format!("/v2/a/b/blobs/uploads/?digest={}", digest(b"x"));
    assert_eq!(code(bench.ask(Method::POST, &wrong, &[], "y").await).await, (400, "DIGEST_INVALID".into()));
    // Cancelled.
    let response = bench.ask(Method::POST, "/v2/a/b/blobs/uploads/", &[], Body::empty()).await;
    let at = header(&response, "location").to_owned();
    assert_eq!(bench.ask(Method::DELETE, &at, &[], Body::empty()).await.status(), 204);
    assert_eq!(bench.ask(Method::GET, &at, &[], Body::empty()).await.status(), 404);

    bench.restart();
    let blob = format!("/v2/a/b/blobs/{wanted}");
    let response = bench.ask(Method::HEAD, &blob, &[], Body::empty()).await;
    assert_eq!((response.status().as_u16(), header(&response, "content-length")), (200, "5"));
    assert_eq!(bytes(bench.ask(Method::GET, &blob, &[], Body::empty()).await).await, b"hello");
    let part = bench.ask(Method::GET, &blob, &[("range", "bytes=1-2")], Body::empty()).await;
    assert_eq!((part.status().as_u16(), header(&part, "content-range")), (206, "bytes 1-2/5"));
    assert_eq!(bytes(part).await, b"el");
    let beyond = bench.ask(Method::GET, &blob, &[("range", "bytes=9-")], Body::empty()).await;
    assert_eq!((beyond.status().as_u16(), header(&beyond, "content-range")), (416, "bytes */5"));
    // A repository shows its own blobs only; a mount shares one, and deleting it there doesn't affect the other.
    let other = format!("/v2/other/blobs/{wanted}");
    assert_eq!(code(bench.ask(Method::GET, &other, &[], Body::empty()).await).await, (404, "BLOB_UNKNOWN".into()));
    let mount = |from: &str| format!("/v2/other/blobs/uploads/?mount={wanted}&from={from}");
    assert_eq!(bench.ask(Method::POST, &mount("nowhere"), &[], Body::empty()).await.status(), 202);
    let response = bench.ask(Method::POST, &mount("a%2Fb"), &[], Body::empty()).await;
    assert_eq!((response.status().as_u16(), header(&response, "location")), (201, other.as_str()));
    assert_eq!(bench.ask(Method::DELETE, &other, &[], Body::empty()).await.status(), 202);
    assert_eq!(bench.ask(Method::DELETE, &other, &[], Body::empty()).await.status(), 404);
    assert_eq!(bench.ask(Method::GET, &blob, &[], Body::empty()).await.status(), 200);
}

#[tokio::test]
async fn manifests_tags_and_referrers() {
    let mut bench = Bench::new();
    let (config, layer) = (bench.push_blob("app", b"{}").await, bench.push_blob("app", b"\0asm1").await);
    let manifest = image(&config, &layer);
    let name = digest(manifest.to_string().as_bytes());
    let response = bench.push_manifest("app", "v1", &manifest).await;
    assert_eq!((response.status().as_u16(), header(&response, "docker-content-digest")), (201, name.as_str()));
    for tag in ["v2", "a", "Z_9"] {
        assert_eq!(bench.push_manifest("app", tag, &manifest).await.status(), 201);
    }
    bench.restart();
    let response = bench.ask(Method::GET, "/v2/app/manifests/v1", &[], Body::empty()).await;
    assert_eq!(
        (header(&response, "content-type"), header(&response, "docker-content-digest")),
        (OCI_MANIFEST, name.as_str())
    );
    assert_eq!(bytes(response).await, manifest.to_string().into_bytes(), "bytes are sacred");
    let head = bench.ask(Method::HEAD, &format!("/v2/app/manifests/{name}"), &[], Body::empty()).await;
    assert_eq!(header(&head, "content-length"), manifest.to_string().len().to_string());
    assert!(bytes(head).await.is_empty());

    let list = bench.ask(Method::GET, "/v2/app/tags/list?n=2", &[], Body::empty()).await;
    assert_eq!(header(&list, "link"), "</v2/app/tags/list?last=a&n=2>; rel=\"next\"");
    let list: Value = serde_json::from_slice(&bytes(list).await).unwrap();
    assert_eq!(list, json!({"name": "app", "tags": ["Z_9", "a"]}));
    let none = bench.ask(Method::GET, "/v2/app/tags/list?n=0", &[], Body::empty()).await;
    assert_eq!(header(&none, "link"), "");
    let rest = bytes(bench.ask(Method::GET, "/v2/app/tags/list?last=a&n=2", &[], Body::empty()).await).await;
    assert_eq!(serde_json::from_slice::<Value>(&rest).unwrap()["tags"], json!(["v1", "v2"]));
    let catalog = bytes(bench.ask(Method::GET, "/v2/_catalog", &[], Body::empty()).await).await;
    assert_eq!(serde_json::from_slice::<Value>(&catalog).unwrap(), json!({"repositories": ["app"]}));

    // A subject, present or absent.
    let mut attached = image(&config, &layer);
    attached["subject"] = json!({"mediaType": OCI_MANIFEST, "digest": name, "size": 1});
    attached["artifactType"] = json!("application/sbom");
    let response = bench.push_manifest("app", &digest(attached.to_string().as_bytes()), &attached).await;
    assert_eq!((response.status().as_u16(), header(&response, "oci-subject")), (201, name.as_str()));
    let referrers = |query: &str| format!("/v2/app/referrers/{name}{query}");
    let found = bench.ask(Method::GET, &referrers("?artifactType=application/sbom"), &[], Body::empty()).await;
    assert_eq!(header(&found, "oci-filters-applied"), "artifactType");
    let found: Value = serde_json::from_slice(&bytes(found).await).unwrap();
    assert_eq!(found["manifests"][0]["artifactType"], "application/sbom");
    let none = bytes(bench.ask(Method::GET, &referrers("?artifactType=x"), &[], Body::empty()).await).await;
    assert_eq!(serde_json::from_slice::<Value>(&none).unwrap()["manifests"], json!([]));
    let bad = bench.ask(Method::GET, "/v2/app/referrers/sha256:0", &[], Body::empty()).await;
    assert_eq!(bad.status(), 400);

    // Deleting a tag keeps other tags; deleting a digest removes its tags.
    assert_eq!(bench.ask(Method::DELETE, "/v2/app/manifests/v1", &[], Body::empty()).await.status(), 202);
    assert_eq!(bench.ask(Method::GET, "/v2/app/manifests/v1", &[], Body::empty()).await.status(), 404);
    assert_eq!(bench.ask(Method::GET, "/v2/app/manifests/v2", &[], Body::empty()).await.status(), 200);
    assert_eq!(bench.ask(Method::DELETE, &format!("/v2/app/manifests/{name}"), &[], Body::empty()).await.status(), 202);
    let gone = bench.ask(Method::GET, "/v2/app/manifests/v2", &[], Body::empty()).await;
    assert_eq!(code(gone).await, (404, "MANIFEST_UNKNOWN".into()));
}

#[tokio::test]
async fn bad_input_has_its_codes() {
    let bench = Bench::new();
    let config = bench.push_blob("app", b"{}").await;
    let missing = digest(b"missing");
    let digest_ref = digest(b"other");
    for (reference, body, expected) in [
        ("v1", "{}".to_owned(), (400, "MANIFEST_INVALID")),
        ("v1", "[]".to_owned(), (400, "MANIFEST_INVALID")),
        ("v1", "not json".to_owned(), (400, "MANIFEST_INVALID")),
        ("v1", json!({"config": {"digest": "sha256:x"}, "layers": []}).to_string(), (400, "MANIFEST_INVALID")),
        ("v1", json!({"config": {"digest": config}, "layers": 7}).to_string(), (400, "MANIFEST_INVALID")),
        ("v1", image(&config, &missing).to_string(), (400, "MANIFEST_BLOB_UNKNOWN")),
        ("-bad", image(&config, &config).to_string(), (400, "MANIFEST_INVALID")),
        ("sha256:short", image(&config, &config).to_string(), (400, "DIGEST_INVALID")),
        (digest_ref.as_str(), image(&config, &config).to_string(), (400, "DIGEST_INVALID")),
        ("v1", " ".repeat(MANIFEST_BYTES_MAX + 1), (413, "MANIFEST_INVALID")),
    ] {
        let path = format!("/v2/app/manifests/{reference}");
        let response = bench.ask(Method::PUT, &path, &[], body.clone()).await;
        let body = &body[..body.len().min(80)];
        assert_eq!(code(response).await, (expected.0, expected.1.to_owned()), "{reference} {body}");
    }
    let long = format!("/v2/{}/tags/list", "a".repeat(300));
    for (method, path, expected) in [
        (Method::GET, "/v2/none/tags/list", (404, "NAME_UNKNOWN")),
        (Method::GET, "/v2/none/manifests/v1", (404, "NAME_UNKNOWN")),
        (Method::GET, "/v2/Bad/tags/list", (400, "NAME_INVALID")),
        (Method::GET, &long, (400, "NAME_INVALID")),
        (Method::GET, "/v2/app/blobs/sha256:../../x", (404, "UNSUPPORTED")),
        (Method::GET, "/v2/app/blobs/sha256:..%2F..%2Fx", (400, "DIGEST_INVALID")),
        (Method::GET, "/v2/app/blobs/md5:00", (400, "DIGEST_INVALID")),
        (Method::PATCH, "/v2/app/blobs/uploads/unknown", (404, "BLOB_UPLOAD_UNKNOWN")),
        (Method::POST, "/v2/app/tags/list", (405, "UNSUPPORTED")),
        (Method::GET, "/v2/nothing", (404, "UNSUPPORTED")),
        (Method::DELETE, "/v2/app/manifests/none", (404, "MANIFEST_UNKNOWN")),
    ] {
        let response = bench.ask(method, path, &[], Body::empty()).await;
        let path = &path[..path.len().min(60)];
        assert_eq!(code(response).await, (expected.0, expected.1.to_owned()), "{path}");
    }
    // A session of another repository is not found.
    let response = bench.ask(Method::POST, "/v2/app/blobs/uploads/", &[], Body::empty()).await;
    let elsewhere = header(&response, "location").replace("/app/", "/other/");
    assert_eq!(bench.ask(Method::PATCH, &elsewhere, &[], "x").await.status(), 404);
}

#[tokio::test]
async fn unreferenced_blobs_are_collected() {
    let bench = Bench::new();
    let (config, layer) = (bench.push_blob("app", b"{}").await, bench.push_blob("app", b"\0asm1").await);
    let (left, requested) = (bench.push_blob("app", b"left").await, bench.push_blob("app", b"asked for").await);
    assert_eq!(bench.push_manifest("app", "v1", &image(&config, &layer)).await.status(), 201);
    let store = Arc::new(BlobStore::open(bench.dir.path()).unwrap());
    let hour = std::time::Duration::from_secs(3600);
    let links = store.repositories().join("app/_blobs");
    let count = || std::fs::read_dir(&links).unwrap().count();
    // A push has an hour from the last check that its blob is present.
    names::unlink_unreferenced(&store, Env::real().now(), hour).unwrap();
    assert_eq!(count(), 4);
    for blob in [&left, &requested, &layer] {
        let link = std::fs::File::options().write(true).open(links.join(&blob["sha256:".len()..])).unwrap();
        link.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    }
    assert_eq!(bench.ask(Method::HEAD, &format!("/v2/app/blobs/{requested}"), &[], Body::empty()).await.status(), 200);
    names::unlink_unreferenced(&store, Env::real().now(), hour).unwrap();
    assert_eq!(count(), 3);
    assert_eq!(bench.ask(Method::HEAD, &format!("/v2/app/blobs/{left}"), &[], Body::empty()).await.status(), 404);
    assert_eq!(bench.ask(Method::HEAD, &format!("/v2/app/blobs/{layer}"), &[], Body::empty()).await.status(), 200);
    // A pushed blob that was swept has to be pushed again.
    assert_eq!(store.sweep(|| names::referenced(&store)).unwrap(), 4);
    assert_eq!(bench.push_blob("app", b"left").await, left);
    assert_eq!(bench.ask(Method::HEAD, &format!("/v2/app/blobs/{left}"), &[], Body::empty()).await.status(), 200);
    // An unreadable manifest may name any blob.
    let manifest = std::fs::read_dir(store.repositories().join("app/_manifests")).unwrap().next().unwrap().unwrap();
    let digest = format!("sha256:{}", manifest.file_name().to_string_lossy());
    std::fs::write(store.path(&digest).unwrap(), b"damaged").unwrap();
    names::unlink_unreferenced(&store, Env::real().now() + jiff::SignedDuration::from_hours(9), hour).unwrap();
    assert_eq!(count(), 4);
}

/// Writes a whole manifest before reading, like most clients: a response followed by a closed connection would be lost.
#[tokio::test]
async fn an_oversized_manifest_is_rejected_with_the_reason() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let bench = Bench::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let router = bench.router.clone();
    let server = tokio::spawn(super::serve(listener, router, Env::real(), CancellationToken::new()));
    let length = 3 * MANIFEST_BYTES_MAX;
    let head = format!(
        "PUT /v2/app/manifests/v1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: {}\r\ncontent-length: {length}\r\n\r\n",
        bench.authorization
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..length / 4096 {
        stream.write_all(&[b' '; 4096]).await.unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    server.abort();
}

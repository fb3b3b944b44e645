//! Pushes to the built-in registry, and to a scripted one that rejects, hangs, drops responses and sends wrong ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Method;
use machinery_env::Env;
use oci_registry::blobs::BlobStore;
use oci_registry::{Credentials, distribution};

use super::fake::{BASIC, FakeRegistry, PASSWORD, RecordedRequest, Reply, answer, status};
use super::*;

mod faults;

const SMALL: &[u8] = b"content";
const LARGE: &[u8] = b"content of 27 bytes in all!";

fn small() -> Blob {
    Blob::of_bytes(SMALL)
}

fn large() -> Blob {
    Blob::of_bytes(LARGE)
}

impl FakeRegistry {
    /// Returns whether a blob arrived completely.
    fn has(&self, bytes: &[u8]) -> bool {
        self.blobs.lock().unwrap().get(&digest(bytes)).is_some_and(|kept| kept[..] == *bytes)
    }
}

async fn built_in(dir: &std::path::Path) -> RegistryAccess {
    let store = Arc::new(BlobStore::open(dir.join("blobs")).unwrap());
    let credentials = Credentials { user: "coracle".into(), password: "long-password".into() };
    let router = distribution::router(store, &credentials, Env::real());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    RegistryAccess::with_account(address, credentials, None)
}

fn manifest_of(blob: &Blob) -> String {
    let descriptor = json!({"mediaType": WASM_LAYER, "digest": blob.digest(), "size": blob.size_bytes()});
    json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor, "layers": [descriptor]}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_built_in_registry_takes_each_way_of_a_push() {
    let dir = tempfile::tempdir().unwrap();
    let access = built_in(dir.path()).await;
    let path = dir.path().join("blob");
    std::fs::write(&path, vec![3; 1 << 20]).unwrap();
    let file = Blob::of_file(&path).await.unwrap();

    let mut app = PushClient::new(&Env::real(), &access, "app").unwrap();
    app.push_blob(&small(), None).await.unwrap();
    (app.bounds.whole_bytes_max, app.bounds.chunk_bytes) = (1000, 300_000);
    for blob in [&large(), &file, &file] {
        app.push_blob(blob, None).await.unwrap();
    }
    // Another repository mounts it: the file no longer exists.
    std::fs::remove_file(&path).unwrap();
    let team = PushClient::new(&Env::real(), &access, "team/app").unwrap();
    team.push_blob(&file, Some("app")).await.unwrap();
    team.push_blob(&small(), Some("no/such")).await.unwrap();

    let manifest = manifest_of(&file);
    let digest = digest(manifest.as_bytes());
    for reference in [digest.as_str(), "v1"] {
        assert_eq!(team.push_manifest(reference, OCI_MANIFEST, manifest.clone()).await.unwrap(), digest);
    }
    for (reference, says) in [
        ("sha256:0000000000000000000000000000000000000000000000000000000000000000", "the manifest has the digest"),
        ("-bad", "invalid tag name (MANIFEST_INVALID)"),
    ] {
        let error = team.push_manifest(reference, OCI_MANIFEST, manifest.clone()).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("pushing to {}: ", access.address)) && error.contains(says), "{error}");
    }
    let error = team.push_manifest("v2", OCI_MANIFEST, manifest_of(&Blob::of_bytes(&b"none"[..]))).await.unwrap_err();
    assert!(error.to_string().contains("blob unknown to registry: sha256:"), "{error}");
    let error = team.push_manifest("v2", OCI_MANIFEST, vec![b' '; (4 << 20) + 1]).await.unwrap_err();
    assert!(error.to_string().contains("more than 4194304 bytes"), "{error}");
    for _ in 0..2 {
        team.delete_manifest(&digest).await.unwrap();
    }

    let credentials = Credentials { user: "coracle".into(), password: "guess".into() };
    let other =
        PushClient::new(&Env::real(), &RegistryAccess { credentials: Some(credentials), ..access.clone() }, "app")
            .unwrap();
    let error = other.push_blob(&Blob::of_bytes(&b"new"[..]), None).await.unwrap_err().to_string();
    assert_eq!(error, format!("pushing to {}: authentication required (UNAUTHORIZED)", access.address));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changed_is_refused_by_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    let access = built_in(dir.path()).await;
    let path = dir.path().join("blob");
    std::fs::write(&path, SMALL).unwrap();
    let blob = Blob::of_file(&path).await.unwrap();
    let client = PushClient::new(&Env::real(), &access, "app").unwrap();
    std::fs::write(&path, b"another").unwrap();
    let error = client.push_blob(&blob, None).await.unwrap_err().to_string();
    assert!(error.contains("(DIGEST_INVALID)") && error.contains(blob.digest()), "{error}");
    std::fs::write(&path, b"less").unwrap();
    let error = client.push_blob(&blob, None).await.unwrap_err().to_string();
    assert!(error.contains("cannot read what is pushed: the file has become shorter"), "{error}");
}

/// Handles requests like a registry whose tokens are valid for three requests each. `tokens` counts the issued ones.
fn with_tokens(tokens: &AtomicUsize, uses: &AtomicUsize, seen: &RecordedRequest, challenge: &str) -> Reply {
    if seen.path.starts_with("/token") {
        if seen.header("authorization") != BASIC {
            return status(401);
        }
        let token = tokens.fetch_add(1, Ordering::SeqCst) + 1;
        uses.store(0, Ordering::SeqCst);
        let sent = json!({"token": format!("token-{token}"), "expires_in": 60}).to_string();
        return Reply::Answer(answer(200, &[], sent));
    }
    let good = format!("Bearer token-{}", tokens.load(Ordering::SeqCst));
    if seen.header("authorization") != good || uses.fetch_add(1, Ordering::SeqCst) >= 3 {
        return Reply::Answer(answer(401, &[("www-authenticate", challenge)], ""));
    }
    Reply::Ordinary
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_for_pushes_and_renewed_in_the_middle() {
    let (tokens, uses) = (Arc::new(AtomicUsize::new(0)), AtomicUsize::new(0));
    let realm = FakeRegistry::start({
        let tokens = tokens.clone();
        move |seen: &RecordedRequest| {
            let token = tokens.load(Ordering::SeqCst);
            assert!(seen.path.starts_with("/token"));
            let reply = with_tokens(&tokens, &AtomicUsize::new(0), seen, "");
            assert_eq!(tokens.load(Ordering::SeqCst), token + 1, "asked with the password");
            reply
        }
    })
    .await;
    let challenge = format!(
        "Bearer realm=\"http://{}/token\",service=\"s v\",scope=\"repository:app:pull repository:other:pull\"",
        realm.address
    );
    let last = AtomicUsize::new(0);
    let fake = FakeRegistry::start(move |seen| {
        // A new token has all its uses.
        let token = tokens.load(Ordering::SeqCst);
        if last.swap(token, Ordering::SeqCst) != token {
            uses.store(0, Ordering::SeqCst);
        }
        with_tokens(&tokens, &uses, seen, &challenge)
    })
    .await;
    let client = fake.client(&[&realm]);
    client.push_blob(&large(), None).await.unwrap();
    client.push_manifest("v1", OCI_MANIFEST, manifest_of(&large())).await.unwrap();
    assert!(fake.has(LARGE) && fake.manifests.lock().unwrap().contains_key("v1"));
    let requests = realm.requests(None);
    assert!(requests.len() >= 3, "{requests:?}");
    let query = "service=s+v&scope=repository%3Aapp%3Apull%2Cpush&scope=repository%3Aother%3Apull";
    assert!(requests.iter().all(|request| *request == format!("GET /token?{query}")), "{requests:?}");
    // Chunks rejected for an expired token were sent again; no accepted chunk was sent twice.
    let chunks = fake.headers(&Method::PATCH, "content-range");
    let mut different = chunks.clone();
    different.dedup();
    assert_eq!(different, ["0-3", "4-7", "8-11", "12-15", "16-19", "20-23", "24-26"]);
    assert!(chunks.len() > different.len(), "{chunks:?}");
    // The registry itself never received the password.
    assert!(fake.seen.lock().unwrap().iter().all(|seen| seen.header("authorization") != BASIC));
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_pushes_are_reported_without_the_password() {
    let says = |code: &str, message: &str| json!({"errors": [{"code": code, "message": message}]}).to_string();
    for (challenge, denied, wanted) in [
        ("Basic realm=\"x\"", says("DENIED", "not yours"), "not yours (DENIED)"),
        ("Basic realm=\"x\"", says("DENIED", &format!("u:{PASSWORD}")), "the registry answers 403 Forbidden"),
        ("Basic realm=\"x\"", says("DENIED", &BASIC[6..]), "the registry answers 403 Forbidden"),
        ("Negotiate", String::new(), "access denied: it asks for what is neither a token nor a password"),
        ("Bearer realm=\"http://169.254.169.254/t\"", String::new(), "its token realm is refused"),
    ] {
        let fake = FakeRegistry::start(move |seen| match seen.header("authorization") {
            BASIC => Reply::Answer(answer(403, &[], denied.clone())),
            _ => Reply::Answer(answer(401, &[("www-authenticate", challenge)], "")),
        })
        .await;
        let error = fake.client(&[]).push_blob(&small(), None).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("pushing to {}: {wanted}", fake.address)), "{error}");
        assert!(!error.contains("hush") && !error.contains(&BASIC[6..]), "{error}");
        assert!(fake.requests(Some(Method::POST)).len() <= 1, "tried once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn existing_blobs_are_not_sent() {
    let fake = FakeRegistry::start(|_| Reply::Ordinary).await;
    let client = fake.client(&[]);
    for _ in 0..2 {
        client.push_blob(&small(), None).await.unwrap();
    }
    let name = small().digest().to_owned();
    let put = format!("PUT /v2/app/blobs/uploads/1?round=0&digest={}", name.replace(':', "%3A"));
    let head = format!("HEAD /v2/app/blobs/{name}");
    assert_eq!(fake.requests(None), [head.as_str(), "POST /v2/app/blobs/uploads/", put.as_str(), head.as_str()]);
    // A registry that rejects the check still accepts the upload.
    for refused in [401, 403, 405] {
        let fake = FakeRegistry::start(move |seen| match seen.method {
            Method::HEAD if seen.before < 9 => {
                Reply::Answer(answer(refused, &[("www-authenticate", "Basic realm=\"x\"")], ""))
            }
            _ => Reply::Ordinary,
        })
        .await;
        fake.client(&[]).push_blob(&small(), None).await.unwrap();
        assert!(fake.has(SMALL), "{refused}");
    }
    let fake = FakeRegistry::start(|_| Reply::Ordinary).await;
    fake.client(&[]).push_blob(&Blob::of_bytes(Vec::new()), None).await.unwrap();
    assert!(fake.has(b""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_knows_one_kind_of_upload_gets_that() {
    // Chunks only.
    let fake = FakeRegistry::start(|seen| match (&seen.method, seen.header("content-length")) {
        (&Method::PUT, length) if length != "0" => status(405),
        _ => Reply::Ordinary,
    })
    .await;
    fake.client(&[]).push_blob(&small(), None).await.unwrap();
    assert!(fake.has(SMALL));
    assert_eq!(fake.headers(&Method::PATCH, "content-range"), ["0-3", "4-6"]);
    // No chunks.
    let fake =
        FakeRegistry::start(|seen| if seen.method == Method::PATCH { status(405) } else { Reply::Ordinary }).await;
    fake.client(&[]).push_blob(&large(), None).await.unwrap();
    assert!(fake.has(LARGE) && fake.requests(Some(Method::PATCH)).len() == 1);
    // Neither.
    let fake = FakeRegistry::start(|seen| match seen.method {
        Method::PATCH | Method::PUT => status(405),
        _ => Reply::Ordinary,
    })
    .await;
    let error = fake.client(&[]).push_blob(&large(), None).await.unwrap_err().to_string();
    assert!(
        error.contains("405 Method Not Allowed") && fake.requests(None).len() == 5,
        "{error} {:?}",
        fake.requests(None)
    );
    // Long chunks.
    let fake = FakeRegistry::start(|seen| match seen.method {
        Method::POST => Reply::With(vec![("oci-chunk-min-length", "10".into())]),
        _ => Reply::Ordinary,
    })
    .await;
    fake.client(&[]).push_blob(&large(), None).await.unwrap();
    assert_eq!(fake.headers(&Method::PATCH, "content-range"), ["0-9", "10-19", "20-26"]);
    assert!(fake.has(LARGE));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_follows_the_location_of_the_registry() {
    let storage = FakeRegistry::start(|_| Reply::Ordinary).await;
    let elsewhere = format!("http://{}/v2/app/blobs/uploads/9?x=1", storage.address);
    let name = small().digest().replace(':', "%3A");
    for (location, at_storage, wanted) in [
        (
            "/v2/app/blobs/uploads/7?state=a%2Fb%3D&y#part".to_owned(),
            false,
            "/v2/app/blobs/uploads/7?state=a%2Fb%3D&y&digest=",
        ),
        ("8".to_owned(), false, "/v2/app/blobs/uploads/8?digest="),
        ("?_state=z".to_owned(), false, "/v2/app/blobs/uploads/?_state=z&digest="),
        (elsewhere, true, "/v2/app/blobs/uploads/9?x=1&digest="),
    ] {
        let fake = FakeRegistry::start(move |seen| match seen.method {
            _ if seen.header("authorization").is_empty() => {
                Reply::Answer(answer(401, &[("www-authenticate", "Basic realm=\"x\"")], ""))
            }
            Method::POST => Reply::With(vec![("location", location.clone())]),
            _ => Reply::Ordinary,
        })
        .await;
        fake.client(&[&storage]).push_blob(&small(), None).await.unwrap();
        let to = if at_storage { &storage } else { &fake };
        assert!(to.has(SMALL));
        assert_eq!(to.requests(Some(Method::PUT)), [format!("PUT {wanted}{name}")]);
    }
    // Another host gets the content, but no credentials.
    assert_eq!(storage.headers(&Method::PUT, "authorization"), [""]);
    for (location, says) in [
        ("http://127.0.0.1:1/upload", "--registries"),
        ("ftp://a.test/upload", "its upload leads: not an address"),
        ("http://u:p@a.test/upload", "its upload leads: not an address"),
        ("http://[", "its upload leads to nowhere"),
    ] {
        let fake = FakeRegistry::start(move |seen| match seen.method {
            Method::POST => Reply::With(vec![("location", location.into())]),
            _ => Reply::Ordinary,
        })
        .await;
        let error = fake.client(&[]).push_blob(&small(), None).await.unwrap_err().to_string();
        assert!(error.contains(says) && fake.requests(None).len() == 2, "{error}");
    }
    let fake =
        FakeRegistry::start(|seen| if seen.method == Method::POST { status(202) } else { Reply::Ordinary }).await;
    let error = fake.client(&[]).push_blob(&small(), None).await.unwrap_err().to_string();
    assert!(error.contains("its upload leads to nowhere"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_followed_where_the_method_stays() {
    for (redirect, follows) in [(307, true), (308, true), (302, false), (303, false)] {
        let fake = FakeRegistry::start(move |seen| match seen.method {
            Method::PUT if seen.before == 0 => {
                Reply::Answer(answer(redirect, &[("location", &format!("{}&again", seen.path))], ""))
            }
            _ => Reply::Ordinary,
        })
        .await;
        let pushed = fake.client(&[]).push_blob(&small(), None).await;
        assert_eq!((pushed.is_ok(), fake.has(SMALL)), (follows, follows), "{redirect} {pushed:?}");
    }
    let fake = FakeRegistry::start(|seen| match seen.method {
        Method::PUT => Reply::Answer(answer(307, &[("location", &seen.path)], "")),
        _ => Reply::Ordinary,
    })
    .await;
    assert!(fake.client(&[]).push_blob(&small(), None).await.is_err());
    assert_eq!(fake.requests(Some(Method::PUT)).len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_saves_the_bytes_or_is_made_up_for() {
    let name = small().digest().replace(':', "%3A");
    let fake = FakeRegistry::start(|seen| match seen.method {
        Method::POST => Reply::Answer(answer(201, &[("location", "/v2/app/blobs/x")], "")),
        _ => Reply::Ordinary,
    })
    .await;
    fake.client(&[]).push_blob(&small(), Some("team/other")).await.unwrap();
    let post = format!("POST /v2/app/blobs/uploads/?mount={name}&from=team%2Fother");
    assert_eq!(&fake.requests(None)[1..], std::slice::from_ref(&post));
    // Not accepted: the upload that the response begins is used.
    let fake = FakeRegistry::start(|_| Reply::Ordinary).await;
    fake.client(&[]).push_blob(&small(), Some("team/other")).await.unwrap();
    assert_eq!(fake.requests(Some(Method::POST)), [post]);
    assert!(fake.has(SMALL));
    // Rejected or unsupported: another upload is begun.
    for refused in [400, 403, 404, 405] {
        let fake = FakeRegistry::start(
            move |seen| if seen.path.contains("mount=") { status(refused) } else { Reply::Ordinary },
        );
        let fake = fake.await;
        fake.client(&[]).push_blob(&small(), Some("team/other")).await.unwrap();
        assert!(fake.has(SMALL) && fake.requests(Some(Method::POST)).len() == 2, "{refused}");
    }
}

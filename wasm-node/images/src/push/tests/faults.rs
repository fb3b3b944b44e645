//! Registries that fail, hang, drop responses and send wrong ones: which requests are repeated, and which errors end a
//! push.

use std::time::Duration;

use super::*;

/// Long enough for a loopback response on a busy machine; a hanging registry never responds.
const PATIENCE: Duration = Duration::from_secs(1);

fn client_with_short_timeout(fake: &FakeRegistry) -> PushClient {
    let mut client = fake.client(&[]);
    client.bounds.timeout = PATIENCE;
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_failure_is_retried_and_a_long_one_is_reported() {
    for failure in [429, 500, 502, 503, 504] {
        for method in [Method::HEAD, Method::POST, Method::PUT] {
            let at = method.clone();
            let fake = FakeRegistry::start(move |seen| match seen.method == at && seen.before < 2 {
                true => status(failure),
                false => Reply::Ordinary,
            })
            .await;
            fake.client(&[]).push_blob(&small(), None).await.unwrap();
            assert!(fake.has(SMALL) && fake.requests(Some(method)).len() == 3, "{failure} {:?}", fake.requests(None));
        }
        let fake = FakeRegistry::start(move |_| status(failure)).await;
        let error = fake.client(&[]).push_blob(&small(), None).await.unwrap_err().to_string();
        assert!(error.contains(&format!("the registry answers {failure} ")), "{error}");
        assert_eq!(fake.requests(None).len(), 3);
    }
    let full = json!({"errors": [{"code": "DENIED", "message": "no space left on device"}]}).to_string();
    let fake = FakeRegistry::start(move |seen| match seen.method {
        Method::PUT => Reply::Answer(answer(507, &[], full.clone())),
        _ => Reply::Ordinary,
    })
    .await;
    let error = fake.client(&[]).push_blob(&small(), None).await.unwrap_err().to_string();
    assert_eq!(error, format!("pushing to {}: no space left on device (DENIED)", fake.address));
    assert_eq!(fake.requests(Some(Method::PUT)).len(), 1, "it doesn't pass");
    // No listener.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let credentials = Credentials { user: "u".into(), password: "p".into() };
    let client =
        PushClient::new(&Env::real(), &RegistryAccess::with_account(address, credentials, None), "app").unwrap();
    let error = client.push_blob(&small(), None).await.unwrap_err().to_string();
    assert!(error.contains("refused"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_resume_at_the_offset_of_the_registry() {
    for (kept, then) in [(0, "4-7"), (2, "6-9"), (4, "8-11")] {
        let fake = FakeRegistry::start(move |seen| match seen.method {
            Method::PATCH if seen.before == 1 => Reply::Cut(kept, 502),
            _ => Reply::Ordinary,
        })
        .await;
        fake.client(&[]).push_blob(&large(), None).await.unwrap();
        assert!(fake.has(LARGE), "{kept}");
        let ranges = fake.headers(&Method::PATCH, "content-range");
        assert_eq!(ranges[..3], ["0-3", "4-7", then], "{kept}");
        assert_eq!((fake.requests(Some(Method::GET)).len(), fake.requests(Some(Method::POST)).len()), (1, 1));
    }
    // A registry without the upload receives everything again.
    let fake = FakeRegistry::start(|seen| match seen.method {
        Method::PATCH if seen.before == 1 => Reply::Cut(0, 502),
        Method::GET => status(404),
        _ => Reply::Ordinary,
    })
    .await;
    fake.client(&[]).push_blob(&large(), None).await.unwrap();
    assert_eq!(fake.headers(&Method::PATCH, "content-range")[..4], ["0-3", "4-7", "0-3", "4-7"]);
    assert!(fake.has(LARGE) && fake.requests(Some(Method::POST)).len() == 2);
    // A chunk whose response was lost is not sent again.
    let fake = FakeRegistry::start(|seen| match seen.method {
        Method::PATCH if seen.before == 1 => Reply::Lost,
        _ => Reply::Ordinary,
    })
    .await;
    client_with_short_timeout(&fake).push_blob(&large(), None).await.unwrap();
    let ranges = fake.headers(&Method::PATCH, "content-range");
    assert_eq!(ranges, ["0-3", "4-7", "8-11", "12-15", "16-19", "20-23", "24-26"]);
    assert!(fake.has(LARGE));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_checked_after_its_last_response_is_lost() {
    let fake = FakeRegistry::start(|seen| match seen.method {
        Method::PUT if seen.before == 0 => Reply::Lost,
        _ => Reply::Ordinary,
    })
    .await;
    client_with_short_timeout(&fake).push_blob(&small(), None).await.unwrap();
    assert!(fake.has(SMALL) && fake.requests(Some(Method::PUT)).len() == 1, "{:?}", fake.requests(None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_takes_nothing_is_given_up_and_little_is_read_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("blob");
    std::fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
    let blob = Blob::of_file(&path).await.unwrap();
    let fake = FakeRegistry::start(|seen| if seen.method == Method::PUT { Reply::Hang } else { Reply::Ordinary }).await;
    let mut client = client_with_short_timeout(&fake);
    client.bounds.whole_bytes_max = blob.size_bytes();
    let env = Env::real();
    let began = env.instant();
    let error = client.push_blob(&blob, None).await.unwrap_err().to_string();
    assert_eq!(error, format!("pushing to {}: no answer within 1 s", fake.address));
    assert_eq!(fake.requests(Some(Method::PUT)).len(), 3);
    assert!(env.instant() - began >= 3 * PATIENCE);
    // The same for the part: bytes that aren't sent aren't read.
    let progress = Arc::new(Progress::default());
    let url = format!("http://{}/x", fake.address);
    let request = reqwest::Client::builder().tls_certs_only([]).no_proxy().build().unwrap().put(url);
    let sent = progress.within(&env, PATIENCE, request.body(blob.whole().body(&progress)).send()).await;
    assert!(sent.is_none());
    let read = progress.sent_bytes();
    assert!(read > 0 && read < blob.size_bytes() / 2, "{read} bytes were read for sockets' buffers");
    // No request of any method hangs longer.
    for method in [Method::HEAD, Method::POST] {
        let at = method.clone();
        let fake = FakeRegistry::start(move |seen| if seen.method == at { Reply::Hang } else { Reply::Ordinary }).await;
        let error = client_with_short_timeout(&fake).push_blob(&small(), None).await.unwrap_err().to_string();
        assert!(error.ends_with("no answer within 1 s") && fake.requests(Some(method)).len() == 3, "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_with_another_digest_is_no_success() {
    let other = digest(b"other");
    let lies = |digest: String| move |_: &RecordedRequest| Reply::With(vec![("docker-content-digest", digest.clone())]);
    let fake = FakeRegistry::start(lies(other)).await;
    let client = fake.client(&[]);
    for error in [
        client.push_blob(&small(), None).await.unwrap_err(),
        client.push_blob(&large(), None).await.unwrap_err(),
        client.push_manifest("v1", OCI_MANIFEST, manifest_of(&small())).await.unwrap_err(),
    ] {
        assert!(error.to_string().contains("it answers that it has another digest than sha256:"), "{error}");
    }
    assert_eq!(fake.requests(Some(Method::PUT)).len(), 3, "none is tried again");
    let fake = FakeRegistry::start(|seen| match seen.method {
        Method::POST => Reply::Answer(answer(201, &[("docker-content-digest", &digest(b"other"))], "")),
        _ => Reply::Ordinary,
    })
    .await;
    // A mount of other content counts as none; this registry then offers no upload.
    assert!(fake.client(&[]).push_blob(&small(), Some("team/app")).await.is_err());
    // A digest that can't be compared is ignored.
    let fake = FakeRegistry::start(lies(format!("sha512:{}", "0".repeat(128)))).await;
    fake.client(&[]).push_blob(&small(), None).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_is_set_again_only_where_nothing_was_done() {
    let manifest = manifest_of(&small());
    let name = digest(manifest.as_bytes());
    let push = |fake: Arc<FakeRegistry>, reference: String| {
        let manifest = manifest.clone();
        async move {
            let pushed = client_with_short_timeout(&fake).push_manifest(&reference, OCI_MANIFEST, manifest).await;
            (pushed, fake.requests(Some(Method::PUT)).len())
        }
    };
    let first = |reply: fn() -> Reply| {
        FakeRegistry::start(move |seen| match seen.method {
            Method::PUT if seen.before == 0 => reply(),
            _ => Reply::Ordinary,
        })
    };
    for reply in [(|| status(429)) as fn() -> Reply, || status(503)] {
        let (pushed, puts) = push(first(reply).await, "v1".into()).await;
        assert_eq!((pushed.unwrap(), puts), (name.clone(), 2));
    }
    // The tag is set, and the response is lost.
    let (pushed, puts) = push(first(|| Reply::Lost).await, "v1".into()).await;
    assert_eq!((pushed.unwrap(), puts), (name.clone(), 1));
    // The tag may or may not be set, and another client may have moved it since.
    for reply in [(|| status(500)) as fn() -> Reply, || status(504), || Reply::Hang] {
        let (pushed, puts) = push(first(reply).await, "v1".into()).await;
        assert!(pushed.is_err() && puts == 1, "{pushed:?} {puts}");
    }
    // A digest always refers to the same manifest.
    for reply in [(|| status(500)) as fn() -> Reply, || Reply::Lost] {
        let (pushed, puts) = push(first(reply).await, name.clone()).await;
        assert_eq!((pushed.unwrap(), puts), (name.clone(), 2));
    }
    let (pushed, puts) = push(FakeRegistry::start(|_| status(503)).await, "v1".into()).await;
    assert!(pushed.unwrap_err().to_string().contains("503") && puts == 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_lies_about_an_upload_costs_little() {
    // More than was sent.
    let fake = FakeRegistry::start(|seen| match seen.method {
        Method::PATCH => Reply::With(vec![("range", "0-99".into())]),
        _ => Reply::Ordinary,
    })
    .await;
    let error = fake.client(&[]).push_blob(&large(), None).await.unwrap_err().to_string();
    assert!(
        error.contains("more bytes of an upload than were sent") && fake.requests(Some(Method::PATCH)).len() == 1,
        "{error}"
    );
    // Nothing each time; a byte each time; less than before.
    for lie in [
        |_: usize| "0-0".to_owned(),
        |before: usize| format!("0-{}", before + 1),
        |before: usize| format!("0-{}", if before.is_multiple_of(2) { 3 } else { 1 }),
    ] {
        let fake = FakeRegistry::start(move |seen| match seen.method {
            Method::PATCH => Reply::With(vec![("range", lie(seen.before))]),
            _ => Reply::Ordinary,
        })
        .await;
        // It may fall back to a single request, which this registry accepts.
        if let Err(error) = fake.client(&[]).push_blob(&large(), None).await {
            assert!(error.to_string().starts_with("pushing to "), "{error}");
        }
        assert!(fake.requests(None).len() < 60, "{}", fake.requests(None).len());
    }
}

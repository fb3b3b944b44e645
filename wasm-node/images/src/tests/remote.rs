//! External registries, honest and hostile, simulated on loopback: access, the sequence of endpoints, resource limits.

use std::collections::BTreeMap;
use std::sync::Mutex;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, StatusCode, Uri};

use super::*;

/// The behaviour of a simulated registry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Behaviour {
    /// No authentication.
    Open,
    /// Requires a password.
    Basic,
    /// Requires a token of its own realm.
    Token,
    /// Its realm is the address of a metadata service.
    RealmElsewhere,
    /// Its realm sends an endless response.
    EndlessToken,
    /// Redirects blobs to an unnamed address of this machine.
    RedirectHome,
    /// Redirects blobs to itself endlessly.
    RedirectRound,
    /// An HTML page instead of a manifest.
    Page,
    /// An endless manifest.
    EndlessManifest,
    /// An endless blob.
    EndlessBlob,
    /// A blob at one byte per second.
    Drip,
    /// Another blob than requested.
    WrongBlob,
    /// Another manifest than requested.
    WrongManifest,
    /// Repeats its secrets in public messages.
    Echo,
    /// Unavailable.
    Broken,
    /// Unavailable for the first requests.
    BrokenTwice,
}

/// A simulated registry and its requests.
struct SimulatedRegistry {
    behaviour: Behaviour,
    address: String,
    manifest: Vec<u8>,
    blobs: BTreeMap<String, Vec<u8>>,
    /// Path, query and authorization of each request.
    seen: Mutex<Vec<(String, Option<String>)>>,
    /// The node's clock.
    clock: std::sync::OnceLock<Arc<machinery_env::ManualClock>>,
}

const PASSWORD: &str = "hush-hush-hush";
/// `u:hush-hush-hush`.
const BASIC: &str = "Basic dTpodXNoLWh1c2gtaHVzaA==";
const TOKEN: &str = "token-of-a-minute";

fn endless() -> Body {
    let chunk = bytes::Bytes::from(vec![b' '; 64 << 10]);
    Body::from_stream(futures::stream::repeat_with(move || Ok::<_, std::convert::Infallible>(chunk.clone())))
}

fn answer(status: u16, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

fn with(mut response: Response, name: &'static str, value: &str) -> Response {
    response.headers_mut().insert(name, value.parse().unwrap());
    response
}

impl SimulatedRegistry {
    fn answer(&self, path: &str, who: Option<&str>) -> Response {
        let challenge = |text: &str| with(answer(401, ""), "www-authenticate", text);
        let own = format!("http://{}", self.address);
        match self.behaviour {
            Behaviour::Basic | Behaviour::Echo if who != Some(BASIC) => return challenge("Basic realm=\"here\""),
            Behaviour::Echo => {
                let errors = json!({"errors": [{"code": "DENIED", "message": format!("{who:?} {PASSWORD}")}]});
                return answer(403, errors.to_string());
            }
            Behaviour::Token | Behaviour::EndlessToken if path.starts_with("/token") => {
                return match (self.behaviour, who) {
                    (Behaviour::EndlessToken, _) => answer(200, endless()),
                    (_, Some(BASIC)) => answer(200, json!({"access_token": TOKEN, "expires_in": 60}).to_string()),
                    _ => answer(401, "{}"),
                };
            }
            Behaviour::Token | Behaviour::EndlessToken if who != Some(&format!("Bearer {TOKEN}")) => {
                return challenge(&format!(
                    "Bearer realm=\"{own}/token\",service=\"s v\",scope=\"repository:app:pull\""
                ));
            }
            Behaviour::RealmElsewhere => {
                return challenge("Bearer realm=\"http://169.254.169.254/latest/meta-data\",service=\"s\"");
            }
            Behaviour::Broken => return answer(503, ""),
            Behaviour::BrokenTwice if self.seen.lock().unwrap().len() <= 2 => return answer(503, ""),
            _ => {}
        }
        if path.contains("/manifests/") {
            return match self.behaviour {
                Behaviour::EndlessManifest => answer(200, endless()),
                Behaviour::Page => answer(200, "<html>log in</html>"),
                Behaviour::WrongManifest => {
                    with(answer(200, self.manifest.clone()), "docker-content-digest", &digest(b"another"))
                }
                _ => answer(200, self.manifest.clone()),
            };
        }
        let blob = path.split('?').next().unwrap().rsplit('/').next().unwrap().to_owned();
        match self.behaviour {
            Behaviour::RedirectHome => with(answer(307, ""), "location", "http://127.0.0.1:1/blob"),
            Behaviour::RedirectRound => with(answer(307, ""), "location", path),
            Behaviour::EndlessBlob => answer(200, endless()),
            Behaviour::Drip => {
                let clock = self.clock.get().unwrap().clone();
                let bytes = futures::stream::unfold(clock, |clock| async {
                    clock.advance(std::time::Duration::from_secs(1));
                    tokio::task::yield_now().await;
                    Some((Ok::<_, std::convert::Infallible>(bytes::Bytes::from_static(b" ")), clock))
                });
                answer(200, Body::from_stream(bytes))
            }
            Behaviour::WrongBlob => answer(200, self.blobs[&blob].iter().rev().copied().collect::<Vec<u8>>()),
            _ => self.blobs.get(&blob).map_or_else(|| answer(404, ""), |bytes| answer(200, bytes.clone())),
        }
    }
}

async fn serve(State(played): State<Arc<SimulatedRegistry>>, uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path_and_query().map_or("", |path| path.as_str()).to_owned();
    let who = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    played.seen.lock().unwrap().push((path.clone(), who.clone()));
    played.answer(&path, who.as_deref())
}

async fn play(behaviour: Behaviour) -> Arc<SimulatedRegistry> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let module = numbered(7);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": manifest::OCI_MANIFEST,
        "config": {"mediaType": manifest::WASM_CONFIG, "digest": digest(b"{}"), "size": 2},
        "layers": [{"mediaType": manifest::WASM_LAYER, "digest": digest(&module), "size": module.len()}],
    });
    let blobs = [b"{}".to_vec(), module].map(|blob| (digest(&blob), blob)).into();
    let (manifest, seen) = (manifest.to_string().into_bytes(), Mutex::default());
    let clock = std::sync::OnceLock::new();
    let played = Arc::new(SimulatedRegistry { behaviour, address, manifest, blobs, seen, clock });
    let router = axum::Router::new().fallback(serve).with_state(played.clone());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    played
}

/// Creates a node whose file names these registries as `registry.test`, in their order.
async fn node(registries: &[&Arc<SimulatedRegistry>]) -> Bench {
    let endpoints: Vec<String> = registries.iter().map(|played| format!("\"http://{}\"", played.address)).collect();
    node_with(&format!("mirrors: {{registry.test: {{endpoint: [{}]}}}}", endpoints.join(", "))).await
}

async fn node_with(file: &str) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("registries.yaml"), file).unwrap();
    let registries = Registries::read(&dir.path().join("registries.yaml")).unwrap();
    Bench::with_stores("served", "pulled", registries).await
}

/// Creates a node that knows the registry under its own address, over plain HTTP.
async fn node_of(played: &Arc<SimulatedRegistry>) -> (Bench, String) {
    let at = &played.address;
    let bench = node_with(&format!("mirrors: {{\"{at}\": {{endpoint: [\"http://{at}\"]}}}}")).await;
    (bench, format!("{at}/app:v1"))
}

fn keyring(location: &str, name: &str, password: &str) -> Keyring {
    let mut keyring = Keyring::default();
    let secret = SecretIdentity { namespace: "default".into(), name: name.into(), uid: name.into() };
    let config = json!({"auths": {location: {"username": "u", "password": password}}}).to_string();
    keyring.add(&secret, ConfigForm::Json, config.as_bytes()).unwrap();
    keyring
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_with_the_secret_are_admitted_and_others_are_not() {
    for behaviour in [Behaviour::Basic, Behaviour::Token] {
        let played = play(behaviour).await;
        let (bench, image) = node_of(&played).await;
        let right = keyring(&played.address, "right", PASSWORD);
        let wrong = keyring(&played.address, "wrong", "nothing-of-it");
        for keyring in [&Keyring::default(), &wrong] {
            let error = bench.pull_with(&image, keyring).await.unwrap_err();
            assert_eq!(error.reason(), "ErrImagePull");
            assert!(error.to_string().contains("pull access denied"), "{behaviour:?} {error}");
        }
        let pulled = bench.pull_with(&image, &right).await.unwrap();
        assert_eq!(pulled.module, digest(&numbered(7)));
        // KEP-2535: on the node now, but not open to every pod.
        let decide = |keyring: &Keyring, policy| bench.images.decide((&image, Purpose::Module), policy, keyring);
        assert_eq!(decide(&right, PullPolicy::IfNotPresent).unwrap(), Some(pulled.clone()));
        assert_eq!(decide(&Keyring::default(), PullPolicy::IfNotPresent).unwrap(), None);
        assert_eq!(decide(&wrong, PullPolicy::Never).unwrap_err().reason(), "ErrImageNeverPull");
        assert!(bench.pull_with(&image, &wrong).await.is_err());
        let same = keyring(&played.address, "another", PASSWORD);
        assert_eq!(decide(&same, PullPolicy::Never).unwrap(), Some(pulled), "{behaviour:?}");
        // The record survives a restart, and the disk doesn't contain the password.
        let records: Vec<String> = std::fs::read_dir(bench.dir.path().join("pulled/images"))
            .unwrap()
            .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
            .collect();
        assert!(
            records.len() == 1 && records[0].contains("\"right\"") && !records[0].contains(PASSWORD),
            "{records:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_credential_after_the_other_is_tried() {
    let played = play(Behaviour::Basic).await;
    let (bench, image) = node_of(&played).await;
    let mut both = keyring(&format!("{}/app", played.address), "wrong", "nothing-of-it");
    let secret = SecretIdentity { namespace: "default".into(), name: "right".into(), uid: "right".into() };
    let config = json!({(played.address.as_str()): {"auth": &BASIC["Basic ".len()..]}}).to_string();
    both.add(&secret, ConfigForm::Legacy, config.as_bytes()).unwrap();
    bench.pull_with(&image, &both).await.unwrap();
    // Rejected credentials give no access to the image.
    let wrong = keyring(&format!("{}/app", played.address), "wrong", "nothing-of-it");
    assert_eq!(bench.images.decide((&image, Purpose::Module), PullPolicy::IfNotPresent, &wrong).unwrap(), None);
    let account = format!("configs: {{\"{}\": {{auth: {{username: u, password: {PASSWORD}}}}}}}", played.address);
    let at = &played.address;
    let bench = node_with(&format!("mirrors: {{\"{at}\": {{endpoint: [\"http://{at}\"]}}}}\n{account}")).await;
    bench.pull(&image).await.unwrap();
    let everybody = bench.images.decide((&image, Purpose::Module), PullPolicy::Never, &Keyring::default()).unwrap();
    assert!(everybody.is_some(), "the node's own account is every pod's");
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_tried_in_order_without_credentials() {
    let (broken, empty, good) =
        (play(Behaviour::Broken).await, play(Behaviour::WrongBlob).await, play(Behaviour::Open).await);
    let bench = node(&[&broken, &empty, &good]).await;
    let secret = keyring("registry.test", "right", PASSWORD);
    let pulled = bench.pull_with("registry.test/app:v1", &secret).await.unwrap();
    assert!(pulled.image_id.starts_with("registry.test/app@sha256:"), "{}", pulled.image_id);
    for played in [&broken, &empty, &good] {
        let seen = played.seen.lock().unwrap();
        assert!(!seen.is_empty() && seen.iter().all(|(_, who)| who.is_none()), "{seen:?}");
        assert!(seen.iter().all(|(path, _)| path.contains("ns=registry.test")), "{seen:?}");
    }
    // A login page is no image, so the next mirror is tried; the error has the messages of all.
    let (page, bench) = (play(Behaviour::Page).await, node(&[&play(Behaviour::Page).await, &good]).await);
    bench.pull("registry.test/app:v1").await.unwrap();
    let error = node(&[&page]).await.pull("registry.test/app:v1").await.unwrap_err().to_string();
    assert!(error.contains(&format!("{}: ", page.address)) && error.contains("not an image manifest"), "{error}");
    // A short outage of a registry is bridged within the pull.
    let coming = play(Behaviour::BrokenTwice).await;
    let (bench, image) = node_of(&coming).await;
    bench.pull(&image).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_registries_get_nothing_and_cost_little() {
    for (behaviour, reason, says) in [
        (Behaviour::RealmElsewhere, "ErrImagePull", "--registries"),
        (Behaviour::EndlessToken, "ErrImagePull", "its token has more than"),
        (Behaviour::RedirectHome, "ErrImagePull", "--registries"),
        (Behaviour::RedirectRound, "ErrImagePull", "more than 5 times"),
        (Behaviour::EndlessManifest, "ErrImagePull", "its manifest has more than"),
        (Behaviour::EndlessBlob, "ErrImagePull", "another blob"),
        (Behaviour::Drip, "ErrImagePull", "less than 8192 bytes a second"),
        (Behaviour::WrongBlob, "ErrImagePull", "another blob"),
        (Behaviour::WrongManifest, "ErrImagePull", "not the one that it names"),
        (Behaviour::Broken, "RegistryUnavailable", "because the registry is unavailable"),
        (Behaviour::Echo, "ErrImagePull", "pull access denied"),
    ] {
        let played = play(behaviour).await;
        let (bench, image) = node_of(&played).await;
        let _ = played.clock.set(bench.clock.clone());
        let error = bench.pull_with(&image, &keyring(&played.address, "right", PASSWORD)).await.unwrap_err();
        let text = error.to_string();
        assert_eq!(error.reason(), reason, "{behaviour:?} {text}");
        assert!(text.contains(says), "{behaviour:?} {text}");
        assert!(!text.contains("hush") && !text.contains(&BASIC[6..]), "{behaviour:?} {text}");
        assert!(bench.names().is_empty());
        let left = std::fs::read_dir(bench.dir.path().join("pulled/partial")).unwrap().count();
        assert_eq!(left, 0, "{behaviour:?} leaves nothing half done");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_are_used_as_in_the_current_file() {
    let (old, new) = (play(Behaviour::Open).await, play(Behaviour::Open).await);
    let bench = node(&[&old]).await;
    let file = |at: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.yaml");
        std::fs::write(&path, format!("mirrors: {{registry.test: {{endpoint: [\"http://{at}\"]}}}}")).unwrap();
        Registries::read(&path).unwrap()
    };
    assert_eq!(bench.images.registries(), file(&old.address));
    bench.pull("registry.test/app:v1").await.unwrap();
    bench.images.configure(file(&new.address));
    let requests = old.seen.lock().unwrap().len();
    bench.pull("registry.test/app:v1").await.unwrap();
    assert!(old.seen.lock().unwrap().len() == requests && !new.seen.lock().unwrap().is_empty());
    // An earlier client, which may call an address that is no longer named, isn't used either.
    bench.images.configure(Registries::default());
    let error = bench.pull(&format!("{}/app:v1", new.address)).await.unwrap_err();
    assert!(error.to_string().contains("--registries"), "{error}");
}

//! Push and pull through the real registry on loopback.

use std::sync::Arc;

use machinery_env::Env;
use serde_json::json;
use tower::ServiceExt as _;

use futures::FutureExt as _;

use super::*;

mod manage;
mod remote;
mod volumes;
use oci_registry::Credentials;
use oci_registry::blobs::{BlobStore, digest};
use runtime_api::{Kind, Metering};
use wasm_runtime::engine::{CompileBounds, Engine, EngineConfig, GuestBounds, GuestThreads, MODULE_INSPECTOR};

fn engine(config: EngineConfig, env: Env) -> Engine {
    Engine::new(config, GuestThreads::start(2, &env).unwrap(), env).unwrap()
}

struct Bench {
    images: Images,
    router: axum::Router,
    clock: Arc<machinery_env::ManualClock>,
    access: RegistryAccess,
    dir: tempfile::TempDir,
    server: tokio::task::JoinHandle<()>,
}

impl Bench {
    async fn new() -> Self {
        Self::with_stores("served", "pulled", Registries::default()).await
    }

    /// Registry and pulls share one store, as in `up`.
    async fn shared() -> Self {
        Self::with_stores("both", "both", Registries::default()).await
    }

    async fn with_stores(served: &str, pulled: &str, registries: Registries) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let served = Arc::new(BlobStore::open(dir.path().join(served)).unwrap());
        let credentials = Credentials { user: "coracle".into(), password: "p".into() };
        // The wall clock is the machine's: files have its timestamps.
        let (env, clock) = Env::seeded(1, Env::real().now());
        let router = oci_registry::distribution::router(served.clone(), &credentials, env.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let serving = router.clone();
        let server = tokio::spawn(async move { axum::serve(listener, serving).await.unwrap() });
        let access = RegistryAccess::with_account(address, credentials, None);
        let pulled = dir.path().join(pulled);
        let blobs = if pulled.exists() { served } else { Arc::new(BlobStore::open(pulled).unwrap()) };
        let config = EngineConfig {
            cache_dir: dir.path().join("compiled"),
            memory_max_bytes: 1 << 30,
            compile_process: None,
            compile_bounds: CompileBounds::default(),
            guest_bounds: GuestBounds::default(),
        };
        let engine = engine(config, env.clone());
        let files = dir.path().join("files");
        std::fs::create_dir(&files).unwrap();
        let built_in = vec![access.clone()];
        let config = ImagesConfig { built_in, registries, file_dirs: vec![files], ..ImagesConfig::default() };
        let images = Images::open(Arc::new(engine), env.clone(), blobs, config).unwrap();
        Self { images, router, clock, access, dir, server }
    }

    async fn pull(&self, image: &str) -> Result<Arc<Image>, ImageError> {
        self.pull_with(image, &Keyring::default()).await
    }

    async fn pull_with(&self, image: &str, keyring: &Keyring) -> Result<Arc<Image>, ImageError> {
        self.images.pull(image, keyring, Metering::Epochs, "default", &|_| ()).await.map(|pulled| pulled.image)
    }

    async fn error(&self, image: &str) -> (String, String) {
        let error = self.pull(image).await.unwrap_err();
        (error.reason().to_owned(), error.to_string())
    }

    /// Pushes blobs and a manifest like another client.
    async fn push_raw(&self, name: &str, blobs: &[&[u8]], manifest: &serde_json::Value) {
        let client = PushClient::new(&Env::real(), &self.access, name).unwrap();
        for blob in blobs {
            client.push_blob(&Blob::of_bytes(blob.to_vec()), None).await.unwrap();
        }
        client.push_manifest("v1", manifest::OCI_MANIFEST, manifest.to_string()).await.unwrap();
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn module() -> Vec<u8> {
    wat::parse_str("(module (func (export \"_start\")))").unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pushed_images_can_be_pulled() {
    let bench = Bench::new().await;
    let image = "registry.local/team/app:v1";
    assert!(
        bench.images.decide((image, Purpose::Module), PullPolicy::IfNotPresent, &Keyring::default()).unwrap().is_none()
    );
    let never = bench.images.decide((image, Purpose::Module), PullPolicy::Never, &Keyring::default()).unwrap_err();
    assert_eq!(never.reason(), "ErrImageNeverPull");
    assert_eq!(never.to_string(), format!("Container image {image:?} is not present with pull policy of Never"));

    let pushed = push(&Env::real(), module(), MODULE_INSPECTOR, image, &bench.access).await.unwrap();
    assert!(!pushed.inspection.component);
    let pulled = bench.pull(image).await.unwrap();
    assert_eq!(pulled.image_id, format!("registry.local/team/app@{}", pushed.digest));
    assert_eq!((pulled.module.as_str(), pulled.argv.as_slice()), (digest(&module()).as_str(), &["app".to_owned()][..]));
    assert!(bench.images.decide((image, Purpose::Module), PullPolicy::Always, &Keyring::default()).unwrap().is_none());
    assert_eq!(
        bench.images.decide((image, Purpose::Module), PullPolicy::Never, &Keyring::default()).unwrap(),
        Some(pulled.clone())
    );
    assert_eq!(bench.images.load(&pulled, Metering::Epochs, "default").await.unwrap().kind(), Kind::Command);
    // By digest: the same image. Another digest: absent.
    let by_digest = format!("registry.local/team/app@{}", pushed.digest);
    assert_eq!(bench.pull(&by_digest).await.unwrap().module, pulled.module);
    let other = format!("registry.local/team/app@{}", digest(b"other"));
    assert!(bench.error(&other).await.1.contains("not found"));
    // A moved tag is seen by a pull, not before.
    let moved = wat::parse_str("(module (func (export \"_start\") (nop)))").unwrap();
    push(&Env::real(), moved.clone(), MODULE_INSPECTOR, image, &bench.access).await.unwrap();
    assert_eq!(bench.images.find_usable(image, Purpose::Module, &Keyring::default()).unwrap(), Some(pulled));
    assert_eq!(bench.pull(image).await.unwrap().module, digest(&moved));
    // After its deletion, nodes that haven't pulled it can't.
    delete_pushed(&Env::real(), "team/app", &pushed.digest, &bench.access).await.unwrap();
    delete_pushed(&Env::real(), "team/app", &pushed.digest, &bench.access).await.unwrap();
    assert!(bench.error(&by_digest).await.1.contains("not found"));
    // Records survive a restart.
    assert_eq!(bench.images.list().len(), 2);
    let blobs = Arc::new(BlobStore::open(bench.dir.path().join("pulled")).unwrap());
    let config = EngineConfig {
        cache_dir: bench.dir.path().join("compiled"),
        memory_max_bytes: 1 << 30,
        compile_process: None,
        compile_bounds: CompileBounds::default(),
        guest_bounds: GuestBounds::default(),
    };
    let again =
        Images::open(Arc::new(engine(config, Env::real())), Env::real(), blobs, ImagesConfig::default()).unwrap();
    assert_eq!(again.find_usable(image, Purpose::Module, &Keyring::default()).unwrap().unwrap().module, digest(&moved));
}

#[tokio::test(flavor = "multi_thread")]
async fn several_pulls_are_one() {
    let bench = Bench::new().await;
    push(&Env::real(), module(), MODULE_INSPECTOR, "registry.local/app:v1", &bench.access).await.unwrap();
    let pulls = (0..8).map(|_| bench.pull("registry.local/app:v1"));
    for pulled in futures::future::join_all(pulls).await {
        assert_eq!(pulled.unwrap().module, digest(&module()));
    }
    // A wrong password is an error of the pull, not a hang.
    let access = RegistryAccess {
        credentials: Some(Credentials { user: "coracle".into(), password: "wrong".into() }),
        ..bench.access.clone()
    };
    let error = push(&Env::real(), module(), MODULE_INSPECTOR, "registry.local/app:v1", &access).await.unwrap_err();
    assert!(matches!(error, PushError::Registry { .. }), "{error}");
}

#[tokio::test]
async fn the_line_of_one_namespace_holds_up_no_other_that_wants_the_same() {
    let bench = Bench::new().await;
    let images = &bench.images;
    let busy = [
        images.pull_limiter.acquire("slow").await,
        images.pull_limiter.acquire("slow").await,
        images.pull_limiter.acquire("slow").await,
    ];
    let mut waits = std::pin::pin!(images.lock_pull("popular", "slow"));
    assert!(futures::poll!(&mut waits).is_pending());
    let mut behind = std::pin::pin!(images.lock_pull("popular", "slow"));
    assert!(futures::poll!(&mut behind).is_pending());
    let theirs = images.lock_pull("popular", "other").now_or_never().expect("another namespace need not wait");
    drop(busy);
    assert!(futures::poll!(&mut waits).is_pending(), "it is pulled already");
    assert_eq!(images.pull_limiter.free(), 3, "a pull that waits for the image holds no permit");
    drop(theirs);
    let first = waits.await;
    assert!(futures::poll!(&mut behind).is_pending());
    let own = first.unlock_image();
    assert!(images.lock_pull("popular", "other").now_or_never().is_some(), "only the namespace's own lock is left");
    assert!(futures::poll!(&mut behind).is_pending());
    drop(own);
    behind.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_images_are_rejected_with_a_reason() {
    let bench = Bench::new().await;
    assert_eq!(bench.error("Foo").await.0, "InvalidImageName");
    let (reason, text) = bench.error("127.0.0.1:1/nginx").await;
    assert_eq!(reason, "ErrImagePull");
    assert!(text.contains("127.0.0.1:1") && text.contains("--registries"), "{text}");
    assert!(bench.error("registry.local/none:v1").await.1.contains("not found"));

    let linux = json!({"os": "linux", "architecture": "amd64", "config": {"Entrypoint": ["/docker-entrypoint.sh"]}});
    let linux = linux.to_string().into_bytes();
    let config_type = "application/vnd.oci.image.config.v1+json";
    let layer_type = "application/vnd.oci.image.layer.v1.tar";
    let manifest = |config: &[u8], layer: &[u8]| {
        json!({
            "schemaVersion": 2,
            "mediaType": manifest::OCI_MANIFEST,
            "config": {"mediaType": config_type, "digest": digest(config), "size": config.len()},
            "layers": [{"mediaType": layer_type, "digest": digest(layer), "size": layer.len()}],
        })
    };
    bench.push_raw("nginx", &[&linux, b"tar"], &manifest(&linux, b"tar")).await;
    let (reason, text) = bench.error("registry.local/nginx:v1").await;
    assert_eq!(reason, "ErrImagePull");
    assert!(text.contains("linux/amd64") && text.contains("deploy your own module"), "{text}");

    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(module().len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "app.wasm", &module()[..]).unwrap();
    header.set_size(numbered(1).len() as u64);
    tar.append_data(&mut header, "bin/tool.wasm", &numbered(1)[..]).unwrap();
    let layer = tar.into_inner().unwrap();
    let run = json!({"Entrypoint": ["/app.wasm"], "Cmd": ["x"], "Env": ["A=b"]});
    let config = json!({"os": "wasip1", "architecture": "wasm", "config": run}).to_string().into_bytes();
    bench.push_raw("scratch", &[&config, &layer], &manifest(&config, &layer)).await;
    let scratch = bench.pull("registry.local/scratch:v1").await.unwrap();
    assert_eq!((scratch.module.as_str(), scratch.argv.len()), (digest(&module()).as_str(), 2));
    assert_eq!(scratch.env, [("A".to_owned(), "b".to_owned())]);
    let tool = digest(&numbered(1));
    assert_eq!(scratch.modules["/bin/tool.wasm"], tool);
    assert!(scratch.blobs.contains(&tool) && bench.images.blobs.size(&tool).is_some(), "kept for exec");

    let text = b"not wasm at all".to_vec();
    let error =
        push(&Env::real(), text.clone(), MODULE_INSPECTOR, "registry.local/text:v1", &bench.access).await.unwrap_err();
    assert!(error.to_string().contains("\\0asm"), "{error}");
    let artifact = json!({
        "schemaVersion": 2,
        "mediaType": manifest::OCI_MANIFEST,
        "config": {"mediaType": manifest::WASM_CONFIG, "digest": digest(b"{}"), "size": 2},
        "layers": [{"mediaType": manifest::WASM_LAYER, "digest": digest(&text), "size": text.len()}],
    });
    bench.push_raw("text", &[b"{}", &text], &artifact).await;
    let (reason, error) = bench.error("registry.local/text:v1").await;
    assert!(reason == "ErrImagePull" && error.contains("\\0asm"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_only_from_allowed_folders() {
    let bench = Bench::new().await;
    let files = bench.dir.path().join("files");
    std::fs::write(files.join("a.wasm"), module()).unwrap();
    std::fs::write(bench.dir.path().join("b.wasm"), module()).unwrap();
    let name = |path: &str| format!("file://{}", bench.dir.path().join(path).display());
    let pulled = bench.pull(&name("files/a.wasm")).await.unwrap();
    assert_eq!(pulled.module, digest(&module()));
    for outside in ["b.wasm", "files/../b.wasm"] {
        assert!(bench.error(&name(outside)).await.1.contains("--allow-file-images"), "{outside}");
    }
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(bench.dir.path().join("b.wasm"), files.join("link.wasm")).unwrap();
        assert!(bench.error(&name("files/link.wasm")).await.1.contains("--allow-file-images"));
    }
    assert!(bench.error(&name("files/none.wasm")).await.1.contains("not found"));
    assert_eq!(bench.error(&name("files")).await.0, "ErrImagePull");
}

#[cfg(unix)]
#[tokio::test]
async fn files_have_rules_by_where_they_are() {
    let bench = Bench::new().await;
    let files = bench.dir.path().join("files").canonicalize().unwrap();
    std::fs::create_dir(files.join("free")).unwrap();
    for path in ["a.wasm", "free/b.wasm"] {
        std::fs::write(files.join(path), module()).unwrap();
    }
    std::os::unix::fs::symlink(files.join("a.wasm"), files.join("free/link.wasm")).unwrap();
    let rules = json!({
        "default": [{"type": "reject"}],
        "transports": {"dir": {files.join("free").to_str().unwrap(): [{"type": "insecureAcceptAnything"}]}},
    });
    let policy = bench.dir.path().join("policy.json");
    std::fs::write(&policy, rules.to_string()).unwrap();
    bench.images.configure_signatures(SignaturePolicy::read(&policy).unwrap());
    let name = |path: &str| format!("file://{}", files.join(path).display());
    bench.pull(&name("free/b.wasm")).await.unwrap();
    for refused in ["a.wasm", "free/link.wasm", "free/../a.wasm"] {
        let (reason, why) = bench.error(&name(refused)).await;
        assert!(reason == "SignatureValidationFailed" && why.contains("rule \"default\""), "{refused}: {why}");
    }
}

/// Returns a module that differs from those of other numbers.
fn numbered(number: usize) -> Vec<u8> {
    wat::parse_str(format!("(module (func (export \"_start\") (drop (i32.const {number}))))")).unwrap()
}

const FULL: Option<Disk> = Some(Disk { total_bytes: 1 << 40, available_bytes: 0 });

impl Bench {
    fn compiled(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("compiled")).unwrap().count() / 2
    }

    fn names(&self) -> Vec<String> {
        self.images.list().into_iter().map(|image| image.name).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_removes_unused_images_and_keeps_the_registry() {
    let bench = Bench::shared().await;
    let policy = CollectPolicy::default();
    let name = |number: usize| format!("registry.local/app:v{number}");
    for number in 0..3 {
        push(&Env::real(), numbered(number), MODULE_INSPECTOR, &name(number), &bench.access).await.unwrap();
    }
    let running = bench.pull(&name(0)).await.unwrap();
    let moved = bench.pull(&name(1)).await.unwrap();
    drop(bench.pull(&name(2)).await.unwrap());
    // The tag of an image that a pod has now refers to another module, and its manifest is deleted.
    push(&Env::real(), numbered(3), MODULE_INSPECTOR, &name(1), &bench.access).await.unwrap();
    drop(bench.pull(&name(1)).await.unwrap());
    let manifest = moved.image_id.split('@').nth(1).unwrap();
    let delete = http::Request::delete(format!("/v2/app/manifests/{manifest}"))
        .header("authorization", "Basic Y29yYWNsZTpw")
        .body(axum::body::Body::empty());
    assert_eq!(bench.router.clone().oneshot(delete.unwrap()).await.unwrap().status(), 202);
    assert_eq!((bench.names().len(), bench.compiled()), (3, 4));

    // Too young, then not full, then full.
    assert_eq!(bench.images.collect(&policy, FULL).unwrap().images, 0);
    bench.clock.advance(std::time::Duration::from_secs(7200));
    let roomy = Some(Disk { total_bytes: 100, available_bytes: 50 });
    assert_eq!(bench.images.collect(&policy, roomy).unwrap().images, 0);
    assert_eq!((bench.names().len(), bench.compiled()), (3, 4));
    let collected = bench.images.collect(&policy, FULL).unwrap();
    assert_eq!((collected.images, collected.found_bytes < collected.wanted_bytes), (2, true));
    assert!(collected.freed_bytes >= collected.found_bytes, "{collected:?}");
    assert_eq!((bench.names(), bench.compiled()), (vec![name(0)], 2));
    // Pods' images can still be started, including the one without any tag.
    assert!(bench.images.load(&running, Metering::Epochs, "default").await.is_ok());
    assert!(bench.images.load(&moved, Metering::Epochs, "default").await.is_ok());
    // The registry's blobs were kept, although no image refers to them.
    for number in [1, 2] {
        let pulled = bench.pull(&name(number)).await.unwrap();
        assert_eq!(pulled.module, digest(&numbered(if number == 1 { 3 } else { number })));
    }
    // The last reference to the deleted image goes with its pod: its blob, too.
    let blob = bench.dir.path().join("both/blobs/sha256").join(&moved.module["sha256:".len()..]);
    assert!(blob.exists());
    drop(moved);
    bench.images.collect(&policy, None).unwrap();
    assert!(!blob.exists());
    // By age, on an empty disk; images in use stay at any age.
    bench.clock.advance(std::time::Duration::from_secs(7200));
    let aged = CollectPolicy { age_max: Some(std::time::Duration::from_secs(3600)), ..policy };
    assert_eq!(bench.images.collect(&aged, roomy).unwrap().images, 2);
    assert_eq!((bench.names(), bench.compiled()), (vec![name(0)], 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_and_pushes_beside_collections_find_their_blobs() {
    let bench = Arc::new(Bench::shared().await);
    let policy = CollectPolicy { age_min: std::time::Duration::ZERO, ..CollectPolicy::default() };
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let collector = {
        let (bench, stop) = (bench.clone(), stop.clone());
        std::thread::spawn(move || {
            let mut collected = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                collected += bench.images.collect(&policy, FULL).unwrap().images;
            }
            collected
        })
    };
    // Few modules, so that blobs are removed and fetched again under concurrent readers.
    let work = (0..4usize).map(|worker| {
        let bench = bench.clone();
        async move {
            for round in 0..6 {
                let name = format!("registry.local/w{worker}:v1");
                push(&Env::real(), numbered(round % 2), MODULE_INSPECTOR, &name, &bench.access).await.unwrap();
                let image = bench.pull(&name).await.unwrap();
                assert_eq!(
                    bench.images.load(&image, Metering::Epochs, "default").await.unwrap().digest(),
                    image.module
                );
                assert!(bench.names().contains(&image.name), "what a pod has stays known");
            }
        }
    });
    futures::future::join_all(work).await;
    let until = std::time::Duration::from_secs(60);
    let forgotten = Env::real().timeout(until, async {
        while !bench.names().is_empty() {
            tokio::task::yield_now().await;
        }
    });
    assert!(forgotten.await.is_ok(), "in the end nobody has any");
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(collector.join().unwrap() >= 4);
}

//! Images that are mounted: pulled, unpacked once, shared, and collected when unreferenced.

use std::io::Write as _;

use super::*;

const IMAGE: &str = "registry.local/files:v1";

fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        builder.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

impl Bench {
    /// Pushes an image with these layers, each with its media type and title.
    async fn push_layers(&self, name: &str, layers: &[(&str, &str, Vec<u8>)]) {
        self.push_image(name, layers, b"{}").await;
    }

    /// Like `push_layers`, with a config.
    async fn push_image(&self, name: &str, layers: &[(&str, &str, Vec<u8>)], config: &[u8]) {
        let described: Vec<_> = layers
            .iter()
            .map(|(kind, title, bytes)| {
                let annotations =
                    if title.is_empty() { json!({}) } else { json!({"org.opencontainers.image.title": title}) };
                json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len(), "annotations": annotations})
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": manifest::OCI_MANIFEST, "layers": described,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(config), "size": config.len()},
        });
        let blobs: Vec<&[u8]> = layers.iter().map(|(_, _, bytes)| &bytes[..]).chain([config]).collect();
        self.push_raw(name, &blobs, &manifest).await;
    }

    async fn volume(&self) -> Result<Arc<Image>, ImageError> {
        self.images.pull_volume(IMAGE, &Keyring::default(), "default").await.map(|pulled| pulled.image)
    }

    async fn tree(&self, image: &Arc<Image>) -> std::path::PathBuf {
        self.images.tree(image).await.unwrap().unwrap()
    }

    fn trees(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("both/trees")).unwrap().count()
    }
}

async fn files() -> Bench {
    let bench = Bench::shared().await;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar(&[("etc/a", "old"), ("etc/b", "b")])).unwrap();
    let zstd = zstd::bulk::compress(&tar(&[("etc/a", "new"), ("etc/.wh.b", "")]), 3).unwrap();
    let layers = [
        ("application/vnd.oci.image.layer.v1.tar+gzip", "", gzip.finish().unwrap()),
        ("application/vnd.oci.image.layer.v1.tar+zstd", "", zstd),
        ("application/octet-stream", "model.bin", b"weights".to_vec()),
    ];
    bench.push_layers("files", &layers).await;
    bench
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_unpacked_once_and_kept_while_it_is_mounted() {
    let bench = files().await;
    let decide = |policy| bench.images.decide((IMAGE, Purpose::Volume), policy, &Keyring::default());
    assert_eq!(decide(PullPolicy::Never).unwrap_err().reason(), "ErrImageNeverPull");
    let image = bench.volume().await.unwrap();
    let tree = bench.tree(&image).await;
    let read = |name: &str| std::fs::read_to_string(tree.join(name)).ok();
    assert_eq!(
        (read("etc/a").as_deref(), read("etc/b"), read("model.bin").as_deref()),
        (Some("new"), None, Some("weights"))
    );
    assert!(image.image_id.starts_with("registry.local/files@sha256:") && image.size_bytes > 0);
    // Another pod gets the same folder, and the image can't be run.
    let again = decide(PullPolicy::IfNotPresent).unwrap().unwrap();
    assert!(Arc::ptr_eq(&again, &image) && bench.tree(&again).await == tree);
    assert_eq!(
        bench.images.decide((IMAGE, Purpose::Module), PullPolicy::IfNotPresent, &Keyring::default()).unwrap(),
        None
    );
    assert_eq!(bench.error(IMAGE).await.0, "ErrImagePull");

    bench.clock.advance(std::time::Duration::from_secs(7200));
    let collect = || bench.images.collect(&CollectPolicy::default(), FULL).unwrap();
    assert_eq!((collect().images, bench.trees()), (0, 1), "pods have it");
    // The registry's store is the node's here: only the folder is removed.
    drop((image, again));
    let collected = collect();
    assert_eq!((collected.images, collected.freed_bytes, bench.trees()), (1, 3 + 1 + 3 + 7, 0));
    assert!(bench.names().is_empty() && !tree.exists());
    let tree = bench.tree(&bench.volume().await.unwrap()).await;
    assert!(tree.join("model.bin").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_run_has_its_other_files() {
    let bench = Bench::shared().await;
    let wasm = module();
    let mut module = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(wasm.len() as u64);
    module.append_data(&mut header, "app.wasm", &wasm[..]).unwrap();
    let module = module.into_inner().unwrap();
    let config = json!({"os": "wasip1", "architecture": "wasm", "config": {"Entrypoint": ["/app.wasm"]}});
    let layers = |files: &[(&str, &str)]| {
        let kind = "application/vnd.oci.image.layer.v1.tar";
        vec![(kind, "", module.clone()), (kind, "", tar(files))]
    };
    let files = [("site/index.html", "hello"), ("site/old", "")];
    bench.push_image("files", &layers(&files), config.to_string().as_bytes()).await;
    let image = bench.pull(IMAGE).await.unwrap();
    let tree = bench.tree(&image).await;
    assert_eq!(std::fs::read_to_string(tree.join("site/index.html")).unwrap(), "hello");
    assert!(tree.join("app.wasm").exists() && bench.trees() == 1);
    // Its volume may be another child of an index.
    let volume = bench.volume().await.unwrap();
    assert!(bench.tree(&volume).await != tree && bench.trees() == 2);
    drop(volume);
    bench.clock.advance(std::time::Duration::from_secs(7200));
    bench.images.collect(&CollectPolicy::default(), FULL).unwrap();
    assert!(tree.join("app.wasm").exists() && bench.trees() == 1, "a pod has it");

    // An image with a module only has no folder.
    bench.push_image("files", &layers(&[("app.wasm/.wh.none", "")])[..1], config.to_string().as_bytes()).await;
    let plain = bench.pull(IMAGE).await.unwrap();
    assert_eq!(bench.images.tree(&plain).await.unwrap(), None);
    drop(image);
    bench.images.collect(&CollectPolicy::default(), None).unwrap();
    assert_eq!(bench.trees(), 0);
    // An image whose files can't be unpacked is not run.
    bench.push_image("files", &layers(&[("a", "1"), ("a/b", "2")]), config.to_string().as_bytes()).await;
    let broken = bench.pull(IMAGE).await.unwrap();
    let error = bench.images.tree(&broken).await.unwrap_err();
    assert!(error.reason() == "ErrImagePull" && error.to_string().contains("\"a/b\" can't be unpacked"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_tag_keeps_mounted_images_and_a_restart_unpacks_again() {
    let bench = files().await;
    let old = bench.volume().await.unwrap();
    let tree = bench.tree(&old).await;
    bench.push_layers("files", &[("text/plain", "only", b"1".to_vec())]).await;
    let new = bench.volume().await.unwrap();
    let other = bench.tree(&new).await;
    assert!(other.join("only").exists() && tree.join("model.bin").exists() && bench.trees() == 2);
    bench.images.collect(&CollectPolicy::default(), None).unwrap();
    assert!(tree.join("model.bin").exists(), "a pod has it under no name");
    drop(old);
    bench.images.collect(&CollectPolicy::default(), None).unwrap();
    assert!(!tree.exists() && other.exists());

    let blobs = Arc::new(BlobStore::open(bench.dir.path().join("both")).unwrap());
    let config = ImagesConfig { built_in: vec![bench.access.clone()], ..ImagesConfig::default() };
    let restarted = Images::open(bench.images.runtime.clone(), bench.images.env.clone(), blobs, config).unwrap();
    assert!(!other.exists(), "put aside at once");
    let emptied = async {
        while bench.trees() > 0 {
            tokio::task::yield_now().await;
        }
    };
    bench.images.env.timeout(std::time::Duration::from_secs(60), emptied).await.expect("removed in the background");
    bench.server.abort();
    let known = restarted.decide((IMAGE, Purpose::Volume), PullPolicy::IfNotPresent, &Keyring::default()).unwrap();
    assert!(restarted.tree(&known.unwrap()).await.unwrap().unwrap().join("only").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_cannot_be_volumes_have_a_reason() {
    let bench = files().await;
    for (layers, says) in [
        (
            vec![("application/vnd.oci.image.layer.v1.tar", "", tar(&[("a", "1"), ("a/b", "2")]))],
            "\"a/b\" can't be unpacked",
        ),
        (vec![("application/vnd.oci.image.layer.v1.tar+zstd", "", b"no zstd".to_vec())], "layers can't be read"),
        (vec![("text/plain", "../up", b"x".to_vec())], "leads out of the volume"),
    ] {
        bench.push_layers("files", &layers).await;
        let error = bench.volume().await.unwrap_err();
        assert!(error.reason() == "ErrImagePull" && error.to_string().contains(says), "{error}");
        assert_eq!(bench.trees(), 0, "nothing is left of it");
    }
    let file = bench.images.pull_volume("file:///etc/passwd", &Keyring::default(), "default").await.unwrap_err();
    assert!(file.to_string().contains("can't be mounted"), "{file}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_beside_collections_keep_their_files() {
    let bench = Arc::new(files().await);
    let policy = CollectPolicy { age_min: std::time::Duration::ZERO, ..CollectPolicy::default() };
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let collector = {
        let (bench, stop) = (bench.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                bench.images.collect(&policy, FULL).unwrap();
            }
        })
    };
    let pods = (0..4).map(|_| {
        let bench = bench.clone();
        async move {
            for _ in 0..20 {
                let image = bench.volume().await.unwrap();
                let tree = bench.tree(&image).await;
                assert_eq!(std::fs::read(tree.join("model.bin")).unwrap(), b"weights");
            }
        }
    });
    futures::future::join_all(pods).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    collector.join().unwrap();
    bench.images.collect(&policy, FULL).unwrap();
    assert_eq!(bench.trees(), 0);
}

//! List, removal, import and export of images over the node's own HTTP.

use super::*;

/// Serves the node's router on loopback with the registry's account, and returns a client.
async fn client(bench: &Bench, images: &Arc<Images>) -> ImageClient {
    let router =
        oci_registry::distribution::authenticated(router(images.clone()), bench.access.credentials.as_ref().unwrap());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    ImageClient::new(&Env::real(), RegistryAccess { address, ..bench.access.clone() })
}

fn open(bench: &Bench, folder: &str) -> Arc<Images> {
    let blobs = Arc::new(BlobStore::open(bench.dir.path().join(folder)).unwrap());
    let config = ImagesConfig { built_in: vec![bench.access.clone()], ..ImagesConfig::default() };
    Arc::new(Images::open(bench.images.runtime.clone(), bench.images.env.clone(), blobs, config).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_taken_out_and_brought_in() {
    let bench = Bench::new().await;
    let name = "registry.local/app:v1";
    push(&Env::real(), numbered(1), MODULE_INSPECTOR, name, &bench.access).await.unwrap();
    let (here, there) = (open(&bench, "here"), open(&bench, "there"));
    let (from, to) = (client(&bench, &here).await, client(&bench, &there).await);
    let pulled = here.pull(name, &Keyring::default(), Metering::Epochs, "default", &|_| ()).await.unwrap().image;
    let all = from.list().await.unwrap();
    assert_eq!((all.len(), all[0].kind, all[0].prepared, all[0].in_use), (1, ImageKind::Module, true, true));
    assert!(all[0].created_at.is_some() && all[0].last_used_at.is_some());

    let archive = bench.dir.path().join("a.tar");
    let file = || std::fs::File::create(&archive).unwrap();
    assert!(from.export(name, file()).await.unwrap() > 0);
    let kept = to.import(&archive, None).await.unwrap();
    assert_eq!(kept.iter().map(|image| image.name.as_str()).collect::<Vec<_>>(), [name]);
    let brought = there.decide((name, Purpose::Module), PullPolicy::Never, &Keyring::default()).unwrap().unwrap();
    assert_eq!((&brought.image_id, &brought.module), (&pulled.image_id, &pulled.module));
    assert!(there.load(&brought, Metering::Epochs, "default").await.is_ok());
    let again = to.import(&archive, Some("other.test/app:v2")).await.unwrap();
    assert_eq!(again[0].name, "other.test/app:v2");
    // The same after a restart.
    assert_eq!(open(&bench, "there").list().len(), 2);

    for (error, says) in [
        (from.remove(name).await.unwrap_err(), "is in use: remove the pods"),
        (from.remove("none.test/a:v1").await.unwrap_err(), "none.test/a:v1 is not on this node"),
        (from.remove("A B").await.unwrap_err(), "invalid reference format"),
        (from.export("none.test/a:v1", file()).await.unwrap_err(), "is not on this node"),
        (to.import(&bench.dir.path().join("compiled"), None).await.unwrap_err(), "directory"),
    ] {
        assert!(error.to_string().contains(says), "{error}");
    }
    let module = pulled.module.clone();
    drop(pulled);
    let removed = from.remove(name).await.unwrap();
    assert!(removed.name == name && removed.freed_bytes > 0 && here.blobs.size(&module).is_none());
    assert_eq!(from.list().await.unwrap(), []);
    let other = ImageClient::new(
        &Env::real(),
        RegistryAccess {
            credentials: Some(Credentials { user: "coracle".into(), password: "guess".into() }),
            ..bench.access.clone()
        },
    );
    assert!(other.list().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn other_files_are_imported_for_mounts() {
    let bench = Bench::new().await;
    let layer = b"words".to_vec();
    let config = b"{}".to_vec();
    let described = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
    let manifest = json!({
        "schemaVersion": 2, "mediaType": manifest::OCI_MANIFEST,
        "config": described("application/vnd.oci.empty.v1+json", &config), "layers": [described("text/plain", &layer)],
    });
    bench.push_raw("words", &[&layer, &config], &manifest).await;
    let (here, there) = (open(&bench, "here"), open(&bench, "there"));
    let (from, to) = (client(&bench, &here).await, client(&bench, &there).await);
    let name = "registry.local/words:v1";
    here.pull_volume(name, &Keyring::default(), "default").await.unwrap();
    let archive = bench.dir.path().join("a.tar");
    from.export(name, std::fs::File::create(&archive).unwrap()).await.unwrap();
    let kept = to.import(&archive, None).await.unwrap();
    assert_eq!((kept[0].kind, kept[0].prepared), (ImageKind::Volume, false));
    let image = there.decide((name, Purpose::Volume), PullPolicy::Never, &Keyring::default()).unwrap().unwrap();
    let tree = there.tree(&image).await.unwrap().unwrap();
    let file = tree.join(digest(&layer).replace(':', "-"));
    assert_eq!(std::fs::read(file).unwrap(), layer);
}

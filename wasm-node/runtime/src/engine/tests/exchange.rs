//! Compiled modules of another engine: used instead of compiling, and only if they are what was signed.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;

use super::*;
use crate::engine::load::CodeKind;

/// A component and a core module that do nothing.
const COMPONENT: &str = "(component)";
const COMMAND: &str = r#"(module (func (export "_start")))"#;

/// Another node's modules, changed on the way.
struct Other {
    engine: Engine,
    change: fn(Vec<u8>) -> Vec<u8>,
    requests: AtomicUsize,
}

#[async_trait]
impl CompiledSource for Other {
    async fn fetch(&self, name: &CompiledName, into: &Path) -> Option<FetchedModule> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let CompiledModule { mut file, bytes, sum, description } = self.engine.compiled_module(name).unwrap()?;
        let mut artifact = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut artifact).unwrap();
        assert_eq!(artifact.len() as u64, bytes);
        std::fs::write(into, (self.change)(artifact)).unwrap();
        Some(FetchedModule { sum, description })
    }
}

/// An engine without a working compiler that asks `other`.
fn fetching(other: &Bench, change: fn(Vec<u8>) -> Vec<u8>) -> (Bench, Arc<Other>) {
    let dir = tempfile::tempdir().unwrap();
    let cache_dir = dir.path().join("compiled");
    let compiler = CompileProcess { program: dir.path().join("none"), arguments: Vec::new() };
    let bench = Bench::with(dir, cache_dir, Some(compiler), CompileBounds::default());
    let source = Arc::new(Other { engine: other.engine.clone(), change, requests: AtomicUsize::new(0) });
    bench.engine.set_compiled_source(source.clone());
    (bench, source)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_another_node_has_compiled_is_not_compiled_again() {
    let other = Bench::with_own_cache();
    let bytes = wat::parse_str(COMMAND).unwrap();
    other.load_bytes(&bytes, Metering::Epochs).await.unwrap();
    let (bench, source) = fetching(&other, |artifact| artifact);
    let (first, second) =
        tokio::join!(bench.load_bytes(&bytes, Metering::Epochs), bench.load_bytes(&bytes, Metering::Epochs));
    for loaded in [first, second] {
        loaded.unwrap();
    }
    assert_eq!(source.requests.load(Ordering::Relaxed), 1, "a second caller waits for the first one's result");
    // Code with fuel is another artifact, which the other node doesn't have.
    assert!(bench.load_bytes(&bytes, Metering::Fuel).await.unwrap_err().to_string().contains("starting the compiler"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_module_is_compiled_again() {
    let other = Bench::with_own_cache();
    let bytes = wat::parse_str(COMMAND).unwrap();
    other.load_bytes(&bytes, Metering::Epochs).await.unwrap();
    let flip = |mut artifact: Vec<u8>| {
        let middle = artifact.len() / 2;
        artifact[middle] ^= 1;
        artifact
    };
    for change in [
        flip,
        |_| Vec::new(),
        |mut artifact: Vec<u8>| {
            artifact.push(0);
            artifact
        },
    ] {
        let (bench, source) = fetching(&other, change);
        let error = bench.load_bytes(&bytes, Metering::Epochs).await.unwrap_err().to_string();
        assert!(error.contains("starting the compiler"), "{error}");
        assert_eq!(source.requests.load(Ordering::Relaxed), 1);
        let files = std::fs::read_dir(bench.dir.path().join("compiled")).unwrap().count();
        assert_eq!(files, 0, "nothing is left of it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_artifact_of_another_kind_is_not_used() {
    struct Signed(Engine, CompiledName);
    #[async_trait]
    impl CompiledSource for Signed {
        async fn fetch(&self, _: &CompiledName, into: &Path) -> Option<FetchedModule> {
            let mut found = self.0.compiled_module(&self.1).unwrap()?;
            std::io::copy(&mut found.file, &mut std::fs::File::create(into).unwrap()).unwrap();
            Some(FetchedModule { sum: found.sum, description: found.description })
        }
    }
    let other = Bench::with_own_cache();
    let (component, command) = (wat::parse_str(COMPONENT).unwrap(), wat::parse_str(COMMAND).unwrap());
    other.load_bytes(&command, Metering::Epochs).await.unwrap();
    let name = CompiledName::new(&digest(&command), other.engine.fingerprint()).unwrap();
    let bench = Bench::with_own_cache();
    bench.engine.set_compiled_source(Arc::new(Signed(other.engine.clone(), name)));
    let key = (digest(&component), bench.engine.fingerprint().to_owned());
    assert!(!bench.engine.fetch_compiled(&key, CodeKind::Component).await);
    assert!(bench.engine.fetch_compiled(&(digest(&command), key.1), CodeKind::Module).await);
}

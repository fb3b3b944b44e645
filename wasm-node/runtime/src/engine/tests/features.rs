//! Features of WebAssembly that this build leaves out are refused before a module runs. wasmtime aborts the process when a
//! guest reaches a function that the build lacks.

use super::*;

/// Calls a function of another type than the expected one, which may have subtypes.
const SUBTYPE: &str = r#"(module
    (type $open (sub (func))) (type $other (func (param i32)))
    (table funcref (elem $f)) (func $f (type $other))
    (func (export "_start") (call_indirect (type $open) (i32.const 0))))"#;
const REC_GROUP: &str = r#"(module (rec (type $a (func)) (type $b (func (param i32))))
    (table funcref (elem $f)) (func $f (type $b) (drop (local.get 0)))
    (func (export "_start") (call_indirect (type $a) (i32.const 0))))"#;
const CAST: &str = r#"(module (type $t (func)) (table 1 funcref)
    (func (export "_start") (drop (ref.test (ref $t) (table.get 0 (i32.const 0))))))"#;
const EXTERNAL: &str = r#"(module (table 1 externref) (func (export "_start")))"#;
const EXCEPTION: &str = r#"(module (tag $t) (func (export "_start") (throw $t)))"#;
const SHARED_MEMORY: &str = r#"(module (memory 1 1 shared) (func (export "_start")))"#;
const NOTIFY: &str = r#"(module (memory 1)
    (func (export "_start") (drop (memory.atomic.notify (i32.const 0) (i32.const 1)))))"#;
const WAIT: &str = r#"(module (memory 1)
    (func (export "_start") (drop (memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const 0)))))"#;
/// What is left: a call through a table of functions.
const PLAIN: &str = r#"(module (type $t (func)) (table funcref (elem $f)) (func $f)
    (func (export "_start") (call_indirect (type $t) (i32.const 0))))"#;

#[tokio::test(flavor = "multi_thread")]
async fn features_without_their_code_are_refused() {
    let bench = Bench::new();
    for text in [SUBTYPE, REC_GROUP, CAST, EXTERNAL, EXCEPTION, SHARED_MEMORY, NOTIFY, WAIT] {
        for metering in [Metering::Epochs, Metering::Fuel] {
            assert!(bench.load_text(text, metering).await.is_err(), "{text}");
        }
    }
    let loaded = bench.load_text(PLAIN, Metering::Epochs).await.unwrap();
    let (container, _) = bench.container(loaded, |_| {});
    assert_eq!(container.run(std::future::pending()).await.exit_code, 0);
}

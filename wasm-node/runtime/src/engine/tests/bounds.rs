//! Bounds that an honest guest may hit: the error names the bound and its flag, and a higher bound suffices.

use super::*;
use serde_json::json;

const STACK: &str = "the guest is at its bound of 512Ki of stack, which the node's --guest-stack-size raises";
const HANDLES: &str = "the guest is at its bound of 1024 handles, which the node's --guest-handles raises; ";

/// Recurses 40,000 calls deep: at 16 bytes or more each, 512 KiB is too little, and 8 MiB is enough.
const DEEP: &str = r#"(func $deep (param i32) (result i32)
    (if (result i32) (local.get 0)
      (then (i32.add (i32.const 1) (call $deep (i32.sub (local.get 0) (i32.const 1)))))
      (else (i32.const 0))))"#;

fn deep_command() -> String {
    format!("(module {DEEP} (func (export \"_start\") (drop (call $deep (i32.const 40000)))))")
}

/// The same as a component: a command, or a plugin with one function.
fn deep_component(exported: &str) -> String {
    format!(
        r#"(component
          (core module $m {DEEP}
            (func (export "run") (result i32) (drop (call $deep (i32.const 40000))) (i32.const 0)))
          (core instance $i (instantiate $m))
          (func $run (result (result)) (canon lift (core func $i "run")))
          {exported})"#
    )
}

const AS_COMMAND: &str = r#"(instance $cli (export "run" (func $run))) (export "wasi:cli/run@0.2.0" (instance $cli))"#;
const AS_PLUGIN: &str = r#"(export "run" (func $run))"#;

async fn run(bench: &Bench, text: &str, change: impl FnOnce(&mut ContainerSpec)) -> (runtime_api::Outcome, String) {
    let loaded = bench.load_text(text, Metering::Epochs).await.unwrap();
    let (container, log) = bench.container(loaded, change);
    let outcome = container.run(std::future::pending()).await;
    (outcome, log.text())
}

/// A server whose handler creates this many handles and then responds.
fn hoard(handles: u32) -> String {
    guest::component(&format!(
        "(loop (drop (call $headers (i32.const 0))) (local.set $n (i32.add (local.get $n) (i32.const 1)))
           (br_if 0 (i32.lt_u (local.get $n) (i32.const {handles}))))
         (call $begin (local.get 1) (i32.const 1) (i32.const 200)) (call $say) (call $end)"
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_at_its_stack_limit_names_the_flag() {
    let (usual, roomy) = (Bench::new(), Bench::bounded(GuestBounds { stack_bytes: 8 << 20, ..GuestBounds::default() }));
    for text in [deep_command(), deep_component(AS_COMMAND)] {
        let (outcome, log) = run(&usual, &text, |_| {}).await;
        assert_eq!((outcome.exit_code, outcome.reason), (134, OutcomeReason::Error), "{log}");
        assert_eq!(outcome.message.unwrap(), format!("wasm trap: call stack exhausted: {STACK}"));
        assert!(log.lines().any(|line| line == STACK), "{log}");
        let (outcome, log) = run(&roomy, &text, |_| {}).await;
        assert_eq!((outcome.exit_code, outcome.message), (0, None), "{log}");
    }
    // No bound suffices for infinite recursion; the error names the bound all the same.
    let endless = r#"(module (func $f (export "_start") (call $f)))"#;
    let (outcome, _) = run(&roomy, endless, |_| {}).await;
    let message = outcome.message.unwrap();
    assert!(message.ends_with("its bound of 8Mi of stack, which the node's --guest-stack-size raises"), "{message}");
    // Another trap names no flag.
    let (outcome, log) = run(&usual, r#"(module (func (export "_start") unreachable))"#, |_| {}).await;
    assert!(!outcome.message.unwrap().contains("--guest") && !log.contains("--guest"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fuel_has_the_same_stacks() {
    let roomy = Bench::bounded(GuestBounds { stack_bytes: 8 << 20, ..GuestBounds::default() });
    let loaded = roomy.load_text(&deep_command(), Metering::Fuel).await.unwrap();
    let (container, log) = roomy.container(loaded, |_| {});
    assert_eq!(container.run(std::future::pending()).await.exit_code, 0, "{}", log.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_at_its_stack_limit_names_the_flag() {
    let (usual, roomy) = (Bench::new(), Bench::bounded(GuestBounds { stack_bytes: 8 << 20, ..GuestBounds::default() }));
    for (bench, status) in [(&usual, 502), (&roomy, 200)] {
        let loaded = bench.load_text(&deep_component(AS_PLUGIN), Metering::Epochs).await.unwrap();
        let (container, log) = bench.container(loaded, |_| {});
        let server = container.serve_plugin().unwrap();
        let answer = plugins::call(&server, "run", json!({})).await;
        assert_eq!(answer.status, status, "{}", log.text());
        assert_eq!(log.text().lines().any(|line| line == STACK), status == 502, "{}", log.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_starts_names_its_limit() {
    let bench = Bench::new();
    let text = r#"(component
        (core module $m (func $f (call $f)) (start $f) (func (export "run")))
        (core instance $i (instantiate $m))
        (func (export "run") (canon lift (core func $i "run"))))"#;
    let loaded = bench.load_text(text, Metering::Epochs).await.unwrap();
    let (container, _) = bench.container(loaded, |_| {});
    for _ in 0..3 {
        match container.try_instantiate().await {
            TrialOutcome::Broken(why) => assert!(why.ends_with(STACK), "{why}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(container.broken().is_some_and(|why| why.ends_with(STACK)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_at_its_handle_limit_names_the_flag() {
    let usual = Bench::new();
    let small = Bench::bounded(GuestBounds { handles: 1024, ..GuestBounds::default() });
    for (bench, answered) in [(&small, (502, "trap")), (&usual, (200, ""))] {
        let loaded = bench.load_text(&hoard(1500), Metering::Epochs).await.unwrap();
        let (container, log) = bench.container(loaded, |_| {});
        let response = container.serve().unwrap().http(get("/")).await;
        assert_eq!(reason(&response), answered, "{}", log.text());
        let message = log.text().lines().find_map(|line| line.strip_prefix(HANDLES).map(ToOwned::to_owned));
        let kind =
            message.map(|message| message.rsplit_once(" of its 1024 handles are of the kind ").unwrap().1.to_owned());
        assert_eq!(kind.as_deref(), (answered.0 == 502).then_some("wasi:http/types.fields"), "{}", log.text());
    }
    // A guest out of memory gets no further handle either; the error names its memory.
    let loaded = usual.load_text(&hoard(1_000_000), Metering::Epochs).await.unwrap();
    let (container, log) = usual.container(loaded, |spec| spec.limits.memory_bytes = Some(100 << 10));
    assert_eq!(reason(&container.serve().unwrap().http(get("/")).await), (503, "memory"));
    let log = log.text();
    assert!(log.contains("resources.limits.memory raises; ") && !log.contains("--guest"), "{log}");
    assert!(log.contains(" handles are of the kind wasi:http/types.fields"), "{log}");
    // The charge of a handle: 30,000 take more than 7 MiB.
    for (limit_bytes, answered) in [(7 << 20, (503, "memory")), (12 << 20, (200, ""))] {
        let loaded = usual.load_text(&hoard(30_000), Metering::Epochs).await.unwrap();
        let (container, log) = usual.container(loaded, |spec| spec.limits.memory_bytes = Some(limit_bytes));
        assert_eq!(reason(&container.serve().unwrap().http(get("/")).await), answered, "{}", log.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_1_guest_at_its_handle_limit_names_the_flag() {
    let opens = r#"(module
        (import "wasi_snapshot_preview1" "path_open"
          (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1)
        (data (i32.const 100) "file")
        (func (export "_start") (local $n i32)
          (loop
            (if (call $open (i32.const 3) (i32.const 0) (i32.const 100) (i32.const 4) (i32.const 1)
                (i64.const 66) (i64.const 0) (i32.const 0) (i32.const 8))
              (then (call $exit (i32.const 7))))
            (local.set $n (i32.add (local.get $n) (i32.const 1)))
            (br_if 0 (i32.lt_u (local.get $n) (i32.const 100))))))"#;
    for (handles, code) in [(64, 134), (1024, 0)] {
        let bench = Bench::bounded(GuestBounds { handles, ..GuestBounds::default() });
        let host = bench.dir.path().to_owned();
        let volume = Preopen { host, sub_paths: Vec::new(), guest: "/data".into(), writable: true };
        let (outcome, log) = run(&bench, opens, |spec| spec.preopens = vec![volume]).await;
        assert_eq!(outcome.exit_code, code, "{outcome:?} {log}");
        let reported = outcome.message.is_some_and(|message| {
            message.contains("the guest is at its bound of 64 handles, which the node's --guest-handles raises; ")
                && message.ends_with(" of its 64 handles are of the kind wasi:filesystem/types.descriptor")
        });
        assert_eq!(reported, code == 134, "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_out_of_memory_command_names_the_limit() {
    let bench = Bench::new();
    let grow = r#"(module (memory 1) (table $t 1 funcref) (func (export "_start")
        (loop (drop (memory.grow (i32.const 16))) (br 0))))"#;
    let table = r#"(module (table $t 1 funcref) (func (export "_start")
        (drop (table.grow $t (ref.null func) (i32.const 100000)))))"#;
    let small = bench.engine.pod_ledger();
    small.set_limit(ledger::Resource::Memory, 4 << 20);
    for (text, pod, says) in [
        (grow, None, "the container is at its memory limit, which its resources.limits.memory raises"),
        (
            grow,
            Some(small),
            "the pod is at its memory limit, which the resources.limits.memory of its spec or containers raise",
        ),
        (table, None, "a table may have 20000 elements, which nothing raises: an optimized build has fewer"),
    ] {
        let (outcome, log) = run(&bench, text, |spec| {
            spec.limits.memory_bytes = Some(8 << 20);
            spec.pod = pod.unwrap_or_else(|| spec.pod.clone());
        })
        .await;
        assert_eq!(outcome.reason, OutcomeReason::OomKilled, "{log}");
        let message = outcome.message.unwrap();
        assert!(message.starts_with("out of memory: ") && message.ends_with(&format!(": {says}")), "{message}");
        assert!(log.lines().any(|line| line == says), "{log}");
    }
}

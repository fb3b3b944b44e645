//! Sessions: resources shared with their container, pipes, ends, and limits.

use std::time::Duration;

use runtime_api::ledger::Resource;
use runtime_api::pipe::{PIPE_BYTES_MAX, pipe};
use runtime_api::{ExecError, ExecSpec, NodeCall, Preopen, Stdio};

use super::*;

async fn never() -> StopSignal {
    std::future::pending().await
}

/// A preview 1 module with `body` as its start, which reads into and writes from the 4,096 bytes at 1024.
fn module(body: &str) -> String {
    format!(
        r#"(module
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (func $put (param $fd i32) (param $bytes i32)
              (i32.store (i32.const 0) (i32.const 1024))
              (i32.store (i32.const 4) (local.get $bytes))
              (if (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)) (then (call $exit (i32.const 9)))))
            (func $get (result i32)
              (i32.store (i32.const 0) (i32.const 1024))
              (i32.store (i32.const 4) (i32.const 4096))
              (if (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (then (call $exit (i32.const 8))))
              (i32.load (i32.const 8)))
            (func (export "_start") (local $n i32) {body}))"#
    )
}

/// Copies its input to both outputs, then exits with 3.
const CAT: &str = "(loop $again
    (local.set $n (call $get))
    (if (local.get $n) (then
      (call $put (i32.const 1) (local.get $n)) (call $put (i32.const 2) (local.get $n)) (br $again))))
  (call $exit (i32.const 3))";
const FLOOD: &str = "(loop $again (call $put (i32.const 1) (i32.const 4096)) (br $again))";

fn spec(stdio: Stdio) -> ExecSpec {
    ExecSpec {
        folders: Vec::new(),
        argv: vec!["x".into()],
        env: Vec::new(),
        stdio,
        is_toolbox: false,
        log: Arc::new(Log::default()),
        node_call: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_both_ways_and_the_end_is_signalled() {
    let bench = Bench::new();
    let cat = bench.load_text(&module(CAT), Metering::Epochs).await.unwrap();
    let server = bench.load_sample("hello", Metering::Epochs).await;
    let (container, log) = bench.container(server, |_| {});
    let ((to, stdin), (stdout, out), (stderr, err)) = (pipe(), pipe(), pipe());
    let stdio = Stdio { stdin: Some(stdin), stdout: Some(stdout), stderr: Some(stderr), terminal: false };
    let session = container.exec(cat, spec(stdio)).unwrap();
    let run = tokio::spawn(session.run(never()));
    let read = |reader: runtime_api::pipe::PipeReader| {
        tokio::spawn(async move {
            let mut all = Vec::new();
            while let Some(bytes) = reader.recv().await {
                all.extend_from_slice(&bytes);
            }
            all
        })
    };
    let (out, err) = (read(out), read(err));
    let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    for piece in sent.chunks(50_000) {
        to.send(piece.to_vec().into()).await.unwrap();
    }
    assert!(bench.engine.ledger().used(Resource::Memory) > 0 && container.stats().memory_bytes > 0);
    drop(to);
    assert_eq!(run.await.unwrap().exit_code, 3);
    assert_eq!((out.await.unwrap() == sent, err.await.unwrap() == sent), (true, true));
    assert_eq!((container.stats().memory_bytes, log.text().as_str()), (0, ""));
    assert!(container.stats().cpu > Duration::ZERO);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_finds_a_folder_that_its_container_has_not() {
    let bench = Bench::new();
    let toolbox = bench.load_sample("toolbox", Metering::Epochs).await;
    let server = bench.load_sample("hello", Metering::Epochs).await;
    let (container, _) = bench.container(server, |_| {});
    let dir = tempfile::tempdir().unwrap();
    let tmp = Preopen { host: dir.path().to_owned(), sub_paths: Vec::new(), guest: "/tmp".into(), writable: true };
    let run = async |folders: Vec<Preopen>, script: &str| {
        let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
        let spec = ExecSpec { argv, folders, is_toolbox: true, ..spec(Stdio::default()) };
        container.exec(toolbox.clone(), spec).unwrap().run(never()).await.exit_code
    };
    let changes = container.stats().disk_changes;
    assert_eq!(run(vec![tmp.clone()], "echo kept > /tmp/note").await, 0);
    assert_eq!(std::fs::read_to_string(dir.path().join("note")).unwrap(), "kept\n");
    assert!(container.stats().disk_changes > changes, "it is measured with what the container writes");
    assert_eq!(run(vec![tmp], r#"[ "$(cat /tmp/note)" = kept ]"#).await, 0, "the next session finds it");
    assert_ne!(run(Vec::new(), "cat /tmp/note").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_waits_for_its_reader_and_ends_with_its_session() {
    let bench = Bench::new();
    let flood = bench.load_text(&module(FLOOD), Metering::Epochs).await.unwrap();
    let (container, _) = bench.container(flood.clone(), |_| {});
    let (stdout, out) = pipe();
    let session =
        container.exec(flood.clone(), spec(Stdio { stdout: Some(stdout.clone()), ..Stdio::default() })).unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let run = tokio::spawn(session.run(async move { stopped.await.unwrap() }));
    while stdout.has_capacity().unwrap() {
        Env::real().sleep(Duration::from_millis(1)).await;
    }
    // A full pipe: its guest blocks without using CPU.
    let cpu = container.stats().cpu;
    Env::real().sleep(Duration::from_millis(50)).await;
    assert!(container.stats().cpu - cpu < Duration::from_millis(25), "it spins");
    let piece = out.take(usize::MAX).unwrap();
    assert!((1..=PIPE_BYTES_MAX).contains(&piece.len()));
    stop.send(StopSignal::Interrupt).unwrap();
    assert_eq!(run.await.unwrap().exit_code, 130);
    // A closed reader is an error for the guest.
    let (stdout, out) = pipe();
    let session = container.exec(flood, spec(Stdio { stdout: Some(stdout), ..Stdio::default() })).unwrap();
    drop(out);
    assert_eq!(session.run(never()).await.exit_code, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_lives_within_its_containers_memory() {
    let bench = Bench::new();
    let grow = "(loop (drop (memory.grow (i32.const 16))) (br 0))";
    let glutton = bench.load_text(&module(grow), Metering::Epochs).await.unwrap();
    let (container, _) = bench.container(glutton.clone(), |spec| spec.limits.memory_bytes = Some(8 << 20));
    let outcome = container.exec(glutton, spec(Stdio::default())).unwrap().run(never()).await;
    assert_eq!((outcome.exit_code, outcome.reason), (137, OutcomeReason::OomKilled));
    assert_eq!(container.stats().memory_bytes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn places_are_bounded_and_come_back() {
    let bench = Bench::new();
    let cat = bench.load_text(&module(CAT), Metering::Epochs).await.unwrap();
    let (container, _) = bench.container(cat.clone(), |_| {});
    let mut sessions = Vec::new();
    while let Ok(session) = container.exec(cat.clone(), spec(Stdio::default())) {
        sessions.push(session);
        assert!(sessions.len() < 1000);
    }
    assert!(sessions.len() > 4, "{}", sessions.len());
    assert!(matches!(container.exec(cat.clone(), spec(Stdio::default())), Err(ExecError::Busy)));
    // Another namespace gets a slot all the same, and commands have their own.
    let (other, _) = bench.container(cat.clone(), |spec| spec.caller.namespace = "other".into());
    assert!(other.exec(cat.clone(), spec(Stdio::default())).is_ok());
    drop(container.admit().await);
    sessions.pop().unwrap().run(never()).await;
    assert!(container.exec(cat, spec(Stdio::default())).is_ok());
}

/// The node's sessions, for probes and hooks, have slots beside those of users, and wait for one.
#[tokio::test(flavor = "multi_thread")]
async fn node_sessions_take_no_user_slots() {
    let bench = Bench::new();
    let cat = bench.load_text(&module(CAT), Metering::Epochs).await.unwrap();
    let (container, _) = bench.container(cat.clone(), |_| {});
    let exec = |call: &NodeCall, stdin| {
        let stdio = Stdio { stdin, ..Stdio::default() };
        container.exec(cat.clone(), ExecSpec { node_call: Some(call.clone()), ..spec(stdio) }).unwrap()
    };
    let (mut live, mut waits) = (Vec::new(), NodeCall::default());
    while !waits.waits() {
        assert!(live.len() < 1000);
        waits = NodeCall::default();
        let (to, stdin) = pipe();
        let (call, run) = (waits.clone(), tokio::spawn(exec(&waits, Some(stdin)).run(never())));
        // It has started to read, or it waits.
        to.send(b"x".to_vec().into()).await.unwrap();
        while to.unread() > 0 && !call.waits() {
            tokio::task::yield_now().await;
        }
        live.push((to, run));
    }
    assert!(live.len() > 4, "{}", live.len());
    // A waiting session ends with its container, a user gets a slot, and commands have theirs.
    let stopped = exec(&NodeCall::default(), None).run(async { StopSignal::Kill }).await;
    assert_eq!(stopped.exit_code, 137);
    assert_eq!(container.exec(cat.clone(), spec(Stdio::default())).unwrap().run(never()).await.exit_code, 3);
    drop(container.admit().await);
    // It starts when another one has ended.
    let (_, last) = live.pop().unwrap();
    live.remove(0);
    while waits.waits() {
        tokio::task::yield_now().await;
    }
    for (to, run) in live {
        drop(to);
        assert_eq!(run.await.unwrap().exit_code, 3);
    }
    assert_eq!(last.await.unwrap().exit_code, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_a_command_only_where_it_exports_one() {
    let bench = Bench::new();
    let path =
        |name: &str| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../../sample-workloads/bin/{name}.wasm"));
    for (name, is_command) in [("hello", false), ("wordcount", true), ("crash", true), ("visits", true)] {
        let bytes = std::fs::read(path(name)).unwrap();
        let loaded =
            bench.engine.load_command(&digest(&bytes), &path(name), Metering::Epochs, "default").await.unwrap();
        assert_eq!(loaded.is_some(), is_command, "{name}");
    }
}

//! The compiler process with hostile modules: each is stopped in time with a reason and without harm to others.

use std::time::Duration;

use super::*;

/// This test's name in the test program, which is its own compiler process.
const WORKER: &str = "engine::tests::compiler::the_compiler_process";

/// Only has an effect as the compiler process: it never returns then.
#[test]
fn the_compiler_process() {
    let arguments: Vec<_> = std::env::args_os().skip_while(|argument| argument != WORKER).skip(1).collect();
    if arguments.len() >= 4 {
        std::process::exit(match compile_worker(arguments.into_iter()) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("{error}");
                1
            }
        });
    }
}

fn bench(bounds: CompileBounds) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["--quiet", "--nocapture", "--exact", WORKER].map(Into::into).to_vec();
    let process = CompileProcess { program: std::env::current_exe().unwrap(), arguments };
    let cache_dir = dir.path().join("compiled");
    Bench::with(dir, cache_dir, Some(process), bounds)
}

fn leb(mut n: usize) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out
}

fn section(id: u8, data: &[u8]) -> Vec<u8> {
    [&[id][..], &leb(data.len()), data].concat()
}

/// A command whose first function has `locals` and `code`, with `types` equal types and `more` empty functions.
fn command(code: &[u8], locals: usize, types: usize, more: usize) -> Vec<u8> {
    let locals = if locals == 0 { vec![0] } else { [&[1][..], &leb(locals), &[0x7f]].concat() };
    let first = [&locals[..], code, &[0x0b]].concat();
    let bodies = [leb(more + 1), leb(first.len()), first, [2, 0, 0x0b].repeat(more)].concat();
    [
        b"\0asm\x01\0\0\0".to_vec(),
        section(1, &[leb(types), b"\x60\0\0".repeat(types)].concat()),
        section(3, &[leb(more + 1), vec![0; more + 1]].concat()),
        section(7, b"\x01\x06_start\0\0"),
        section(10, &bodies),
    ]
    .concat()
}

/// Nested loops that change every local: 12 kB that keep an optimizing compiler busy for minutes.
fn knot(loops: usize, locals: usize) -> Vec<u8> {
    let add = |n: usize| [&[0x20, 0, 0x20][..], &leb(n), &[0x6a, 0x21], &leb(n)].concat();
    let ends = (0..loops).map(|n| [&[0x20][..], &leb(n % locals), &[0x0d, 0, 0x0b]].concat());
    let code = [[3, 0x40].repeat(loops), (0..locals).flat_map(add).collect(), ends.flatten().collect()].concat();
    command(&code, locals, 1, 0)
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_compilations_are_stopped_and_not_retried_at_once() {
    let bench = bench(CompileBounds {
        time: Duration::from_secs(3),
        slice: Duration::from_secs(1),
        ..CompileBounds::default()
    });
    let env = Env::real();
    let error = bench.load_bytes(&knot(1000, 500), Metering::Epochs).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the module does not compile within 3 s, which the node's --module-compile-timeout raises"
    );
    assert!(env.elapsed() < Duration::from_secs(30), "{:?}", env.elapsed());
    // Later requests fail at once from the cache; the other metering is another compilation.
    let before = env.elapsed();
    for _ in 0..20 {
        let again = bench.load_bytes(&knot(1000, 500), Metering::Epochs).await.unwrap_err();
        assert_eq!(again.to_string(), error.to_string());
    }
    assert!(env.elapsed() - before < Duration::from_secs(3), "{:?}", env.elapsed() - before);
    // Nothing of it is left, and other modules compile.
    assert_eq!(std::fs::read_dir(bench.dir.path().join("compiled")).unwrap().count(), 0);
    let loaded = bench.load_bytes(&command(b"", 0, 1, 0), Metering::Epochs).await.unwrap();
    assert_eq!(bench.container(loaded, |_| {}).0.run(std::future::pending()).await.exit_code, 0);
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn compilations_with_too_much_memory_are_stopped() {
    let bench = bench(CompileBounds { memory_bytes: 800 << 20, ..CompileBounds::default() });
    let error = bench.load_bytes(&knot(5000, 5000), Metering::Epochs).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "compiling the module needs more than 800 MiB of memory, which the node's --module-compile-memory raises as far as the machine has it"
    );
    assert!(bench.load_bytes(&command(b"", 0, 1, 0), Metering::Epochs).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn hard_modules_end_in_a_program_or_in_a_reason() {
    let bench = bench(CompileBounds { time: Duration::from_secs(10), ..CompileBounds::default() });
    let deep = [[2, 0x40].repeat(20_000), [0x0b].repeat(20_000)].concat();
    let long = [0x20, 0, 0x20, 0, 0x6a, 0x21, 0].repeat(1_200_000);
    for (what, module, expected) in [
        ("nested blocks", command(&deep, 0, 1, 0), None),
        ("a function over the format's bound", command(&long, 1, 1, 0), Some("function body size count exceeds limit")),
        ("many functions", command(b"", 0, 1, 20_000), None),
        ("too many functions", command(b"", 0, 1, 1_000_001), Some("functions count exceeds limit")),
        ("too many types", command(b"", 0, 1_000_001, 0), Some("types count exceeds limit")),
        ("too many locals", command(b"", 60_000, 1, 0), Some("too many locals")),
    ] {
        match (bench.load_bytes(&module, Metering::Epochs).await, expected) {
            (Ok(_), None) | (Err(LoadError::CompileTime { .. } | LoadError::CompileMemory { .. }), None) => {}
            (Err(error), Some(expected)) if error.to_string().contains(expected) => {}
            (other, _) => panic!("{what}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_keeps_used_and_loaded_artifacts() {
    let bench = Bench::with_own_cache();
    let files = || std::fs::read_dir(bench.dir.path().join("compiled")).unwrap().count();
    let module = command(b"", 0, 1, 0);
    let loaded = bench.load_bytes(&module, Metering::Fuel).await.unwrap();
    drop(bench.load_bytes(&module, Metering::Epochs).await.unwrap());
    // An artifact and its checksum for each engine.
    assert_eq!((files(), bench.engine.sweep(&|_| true).unwrap()), (4, 0));
    assert_eq!((bench.engine.sweep(&|_| false).unwrap(), files()), (0, 4), "a container of it lives");
    drop(loaded);
    assert!(bench.engine.sweep(&|_| false).unwrap() > 0);
    assert_eq!(files(), 0);
}

/// A module that compiles for minutes; each number creates another one.
fn slow(number: usize) -> Vec<u8> {
    knot(1000, 500 + number)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quick_module_waits_for_no_slow_one() {
    let bounds = CompileBounds { slice: Duration::from_secs(1), ..CompileBounds::default() };
    let (bench, env) = (Arc::new(bench(bounds)), Env::real());
    let slow: Vec<_> = (0..6)
        .map(|number| {
            let bench = bench.clone();
            let path = bench.dir.path().join(format!("slow{number}.wasm"));
            std::fs::write(&path, slow(number)).unwrap();
            let digest = digest(&slow(number));
            tokio::spawn(async move { bench.engine.compile(&digest, &path, Metering::Epochs, "hostile").await })
        })
        .collect();
    for number in 0..5 {
        let quick = command(b"", 0, 1, number);
        bench.load_bytes(&quick, Metering::Epochs).await.unwrap();
    }
    // None of the slow ones has ended: they have two minutes each in the background.
    assert!(env.elapsed() < bounds.time, "{:?}", env.elapsed());
    assert!(slow.iter().all(|task| !task.is_finished()));
    slow.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_modules_compile_in_the_background() {
    // One second of CPU is too little for an unoptimized compiler and this module.
    let bounds = CompileBounds { slice: Duration::from_secs(1), ..CompileBounds::default() };
    let bench = bench(bounds);
    let long = knot(60, 60);
    let loaded = bench.load_bytes(&long, Metering::Epochs).await;
    assert!(loaded.is_ok(), "{loaded:?}");
}

/// The work of a slice is not repeated while the background lane is free.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn slow_modules_continue_in_a_free_background_lane() {
    let dir = tempfile::tempdir().unwrap();
    let (starts, cache_dir) = (dir.path().join("starts"), dir.path().join("compiled"));
    let program = std::env::current_exe().unwrap();
    let mut arguments: Vec<std::ffi::OsString> = ["-c", "echo started >> \"$0\"; exec \"$@\""].map(Into::into).to_vec();
    arguments.extend([starts.clone().into(), program.into()]);
    arguments.extend(["--quiet", "--nocapture", "--exact", WORKER].map(Into::into));
    let process = CompileProcess { program: "/bin/sh".into(), arguments };
    // Less than it takes to start.
    let bounds = CompileBounds { slice: Duration::from_millis(1), ..CompileBounds::default() };
    let bench = Bench::with(dir, cache_dir, Some(process), bounds);
    for times in 1..=2 {
        let loaded = bench.load_bytes(&knot(40, 39 + times), Metering::Epochs).await;
        assert!(loaded.is_ok(), "{loaded:?}");
        assert_eq!(std::fs::read_to_string(&starts).unwrap(), "started\n".repeat(times));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_compiler_ends_with_its_parent() {
    let bench = bench(CompileBounds::default());
    let path = bench.dir.path().join("slow.wasm");
    std::fs::write(&path, slow(0)).unwrap();
    let mut worker = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--quiet", "--nocapture", "--exact", WORKER, "epochs", "module", "3221225472", "600", "0"])
        .args([&path, &bench.dir.path().join("out")])
        .stdin(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // The system closes the pipe of a killed parent, as dropping does here.
    drop(worker.stdin.take());
    let ended = Env::real().timeout(Duration::from_secs(60), worker.wait()).await;
    assert_eq!(ended.expect("in time").unwrap().code(), Some(1));
}

#[test]
fn the_runtime_is_the_one_that_was_built_in() {
    let lock = include_str!("../../../../../Cargo.lock");
    let after = lock.split("name = \"wasmtime\"\nversion = \"").nth(1).unwrap();
    assert_eq!(after.split('"').next().unwrap(), WASMTIME_VERSION);
}

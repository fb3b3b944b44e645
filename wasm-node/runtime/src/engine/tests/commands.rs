//! Commands: exits, traps, limits, stops, and modules that can't be run.

use std::time::Duration;

use super::*;

async fn never() -> StopSignal {
    std::future::pending().await
}

/// Waits for a condition while a guest runs.
async fn until(holds: impl Fn() -> bool) {
    let waited = Env::real().timeout(Duration::from_secs(60), async {
        while !holds() {
            Env::real().sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.expect("in time");
}

/// A preview 1 module with `body` as its start, a memory of one page, and `fd_write` and `proc_exit` at hand.
fn module(body: &str) -> String {
    format!(
        r#"(module
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (table $table 1 funcref)
            (data (i32.const 100) "hello\n")
            (data (i32.const 0) "\64\00\00\00\06\00\00\00")
            (func (export "_start") {body}))"#
    )
}

const HELLO: &str = "(drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 52)))";

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_have_upstreams_reasons() {
    let bench = Bench::new();
    let grow = "(loop (drop (memory.grow (i32.const 16))) (br 0))";
    let table = "(loop (drop (table.grow $table (ref.null func) (i32.const 100000))) (br 0))";
    let recursion = "(call_indirect (i32.const 7))";
    for (body, code, why) in [
        (HELLO.to_owned(), 0, OutcomeReason::Completed),
        ("(call $exit (i32.const 3))".to_owned(), 3, OutcomeReason::Error),
        ("(call $exit (i32.const 0))".to_owned(), 0, OutcomeReason::Completed),
        ("(call $exit (i32.const 126))".to_owned(), 126, OutcomeReason::Error),
        ("(call $exit (i32.const 200))".to_owned(), 200, OutcomeReason::Error),
        ("(call $exit (i32.const -1))".to_owned(), 255, OutcomeReason::Error),
        ("(call $exit (i32.const 256))".to_owned(), 1, OutcomeReason::Error),
        ("unreachable".to_owned(), 134, OutcomeReason::Error),
        (recursion.to_owned(), 134, OutcomeReason::Error),
        (grow.to_owned(), 137, OutcomeReason::OomKilled),
        // One growth far over the limit, and past what any memory can have: a trap too, never -1.
        ("(drop (memory.grow (i32.const 65535)))".to_owned(), 137, OutcomeReason::OomKilled),
        (table.to_owned(), 137, OutcomeReason::OomKilled),
    ] {
        let loaded = bench.load_text(&module(&body), Metering::Epochs).await.unwrap();
        let (container, log) = bench.container(loaded, |spec| spec.limits.memory_bytes = Some(8 << 20));
        let outcome = container.run(never()).await;
        assert_eq!((outcome.exit_code, outcome.reason), (code, why), "{body}: {outcome:?}");
        if body == HELLO {
            assert_eq!(log.text(), "hello\n");
        }
        if code == 134 {
            assert!(log.text().contains("wasm backtrace"), "{}", log.text());
        }
        assert!(!log.text().contains("Stack backtrace") && !log.text().contains("tokio"), "{}", log.text());
        let stats = container.stats();
        assert_eq!((stats.instances_started, stats.instances_live, stats.memory_bytes), (1, 0, 0), "{body}");
        assert!(stats.memory_peak_bytes <= 8 << 20);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn backtraces_have_names_and_offsets() {
    let bench = Bench::new();
    let text = r#"(module $shop
        (func $inner (param i32) (result i32) (i32.div_u (i32.const 1) (local.get 0)))
        (func $outer (export "_start") (drop (call $inner (i32.const 0)))))"#;
    let loaded = bench.load_text(text, Metering::Epochs).await.unwrap();
    let (container, log) = bench.container(loaded, |_| {});
    assert_eq!(container.run(never()).await.exit_code, 134);
    for name in [" - shop!inner", " - shop!outer"] {
        let offset = log.text().lines().find_map(|line| {
            let (before, _) = line.split_once(name)?;
            u64::from_str_radix(before.rsplit_once(" 0x")?.1, 16).ok()
        });
        assert!(offset.is_some_and(|offset| offset > 0), "{name}: {}", log.text());
    }
}

/// Whether backtraces are captured is fixed once per process, so the test above runs again in its own process.
#[test]
fn logs_hold_no_backtrace_of_the_host() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "engine::tests::commands::outcomes_have_upstreams_reasons", "--nocapture"])
        .env("RUST_BACKTRACE", "full")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn sock_shutdown_knows_no_descriptor_that_the_guest_did_not_open() {
    let bench = Bench::new();
    let module = r#"(module
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (import "wasi_snapshot_preview1" "sock_shutdown" (func $shutdown (param i32 i32) (result i32)))
        (memory (export "memory") 1)
        (func (export "_start")
          ;; errno.notsock is 57: stdin is a descriptor.
          (if (i32.ne (call $shutdown (i32.const 0) (i32.const 1)) (i32.const 57)) (then (call $exit (i32.const 2))))
          (if (i32.ne (call $shutdown (i32.const 3) (i32.const 1)) (i32.const 8)) (then (call $exit (i32.const 3))))
          (if (i32.ne (call $shutdown (i32.const 420) (i32.const 1)) (i32.const 8)) (then (call $exit (i32.const 4))))
          (if (i32.ne (call $shutdown (i32.const -1) (i32.const 1)) (i32.const 8)) (then (call $exit (i32.const 5))))))"#;
    let loaded = bench.load_text(module, Metering::Epochs).await.unwrap();
    for preopens in [
        vec![],
        vec![Preopen { host: bench.dir.path().into(), sub_paths: Vec::new(), guest: "/dev".into(), writable: true }],
    ] {
        let (container, log) = bench.container(loaded.clone(), |spec| spec.preopens = preopens);
        assert_eq!(container.run(never()).await.exit_code, 0, "{}", log.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_memories_share_one_budget() {
    let bench = Bench::new();
    let memories: String = (0..8).map(|_| "(memory 64)".to_owned()).collect();
    let loaded =
        bench.load_text(&format!("(module {memories} (func (export \"_start\")))"), Metering::Epochs).await.unwrap();
    // Eight memories of 4 MiB each.
    let (fits, _) = bench.container(loaded.clone(), |spec| spec.limits.memory_bytes = Some(33 << 20));
    assert_eq!(fits.run(never()).await.exit_code, 0);
    let (small, _) = bench.container(loaded, |spec| spec.limits.memory_bytes = Some(30 << 20));
    assert_eq!(small.run(never()).await.reason, OutcomeReason::OomKilled);
    // More memories than a store may have: rejected at load or at the start, without harm.
    let memories: String = (0..40).map(|_| "(memory 1)".to_owned()).collect();
    match bench.load_text(&format!("(module {memories} (func (export \"_start\")))"), Metering::Epochs).await {
        Ok(loaded) => assert_eq!(bench.container(loaded, |_| {}).0.run(never()).await.exit_code, 134),
        Err(error) => assert!(error.to_string().contains("memor"), "{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_command_is_stopped_and_throttled() {
    let bench = Bench::new();
    let endless = module("(loop (br 0))");
    let loaded = bench.load_text(&endless, Metering::Epochs).await.unwrap();
    for (signal, code) in [(StopSignal::Terminate, 143), (StopSignal::Kill, 137)] {
        // So little that a crowded machine still gives the loop more than it may use.
        let (container, _) = bench.container(loaded.clone(), |spec| spec.limits.cpu_millis = Some(20));
        let (env, seen) = (Env::real(), container.clone());
        let outcome = container
            .run(async move {
                // Throttled several times over, so that the bound below is meaningful.
                until(|| seen.stats().cpu_throttled >= Duration::from_millis(300)).await;
                signal
            })
            .await;
        assert_eq!((outcome.exit_code, outcome.reason), (code, OutcomeReason::Error));
        let used = container.stats().cpu;
        // A fiftieth of the elapsed time plus one period's burst, and at most a few slices over it.
        let may = env.elapsed() / 50 + Duration::from_millis(60);
        assert!(used < may && used > Duration::ZERO, "{used:?}, {may:?}");
    }
    // A looping start function has the same bounds.
    let start = "(module (func $s (loop (br 0))) (start $s) (func (export \"_start\")))";
    let loaded = bench.load_text(start, Metering::Epochs).await.unwrap();
    let (container, _) = bench.container(loaded, |_| {});
    let seen = container.clone();
    let stop = async move {
        until(|| seen.stats().cpu > Duration::ZERO).await;
        StopSignal::Kill
    };
    assert_eq!(container.run(stop).await.exit_code, 137);
}

#[tokio::test(flavor = "multi_thread")]
async fn fuel_is_deterministic() {
    let bench = Bench::new();
    let loaded = bench.load_text(&module("(loop (br 0))"), Metering::Fuel).await.unwrap();
    let (container, _) = bench.container(loaded, |spec| spec.limits.fuel = Some(1_000_000));
    let outcome = container.run(never()).await;
    assert_eq!((outcome.exit_code, outcome.reason), (137, OutcomeReason::FuelExhausted));
    assert_eq!(container.stats().fuel_used, 1_000_000);
    let loaded = bench.load_text(&module(HELLO), Metering::Fuel).await.unwrap();
    let (container, _) = bench.container(loaded, |spec| spec.limits.fuel = Some(1_000_000));
    assert_eq!(container.run(never()).await.exit_code, 0);
    let used = container.stats().fuel_used;
    assert_eq!(container.run(never()).await.exit_code, 0);
    assert_eq!(container.stats().fuel_used, 2 * used);
}

#[tokio::test(flavor = "multi_thread")]
async fn unrunnable_modules_have_a_reason() {
    let bench = Bench::new();
    let missing = r#"(module (import "env" "launch" (func)) (func (export "_start")))"#;
    let unknown = r#"(module (import "wasi_snapshot_preview1" "fly" (func)) (func (export "_start")))"#;
    let keyvalue = r#"(component
        (import "wasi:keyvalue/store@0.2.0-draft" (instance))
        (instance (export "wasi:cli/run@0.2.0")))"#;
    for (text, says) in [
        (missing, "imports \"env::launch\""),
        (unknown, "imports \"wasi_snapshot_preview1::fly\""),
        ("(module (func (export \"add\")))", "exports add"),
        ("(component)", "exports nothing"),
        (keyvalue, "imports \"wasi:keyvalue/store@0.2.0-draft\""),
    ] {
        let error = bench.load_text(text, Metering::Epochs).await.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    for bytes in [&b"\x7fELF\x02\x01\x01"[..], b"", b"\0asm\x01\0\0\0\xff\xff", b"\0asm\x0d\0\x01\0\x99"] {
        bench.load_bytes(bytes, Metering::Epochs).await.unwrap_err();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn artifacts_are_kept_and_damaged_ones_recompiled() {
    let bench = Bench::with_own_cache();
    let loaded = bench.load_text(&module(HELLO), Metering::Epochs).await.unwrap();
    let again = bench.load_text(&module(HELLO), Metering::Epochs).await.unwrap();
    assert!(Arc::ptr_eq(&loaded, &again), "one copy in memory");
    drop((loaded, again));
    let artifact = std::fs::read_dir(bench.dir.path().join("compiled"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "cwasm"))
        .unwrap();
    let mut bytes = std::fs::read(&artifact).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::remove_file(&artifact).unwrap();
    std::fs::write(&artifact, &bytes).unwrap();
    let loaded = bench.load_text(&module(HELLO), Metering::Epochs).await.unwrap();
    let (container, log) = bench.container(loaded, |_| {});
    assert_eq!(container.run(never()).await.exit_code, 0);
    assert_eq!(log.text(), "hello\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sample_commands_run() {
    let bench = Bench::new();
    let crash = bench.load_sample("crash", Metering::Epochs).await;
    assert_eq!(crash.kind(), Kind::Command);
    assert_eq!(bench.container(crash, |_| {}).0.run(never()).await.exit_code, 3);

    let texts = bench.dir.path().join("texts");
    std::fs::create_dir(&texts).unwrap();
    std::fs::write(texts.join("a.txt"), "one two three\nfour\n").unwrap();
    let wordcount = bench.load_sample("wordcount", Metering::Epochs).await;
    let (container, log) = bench.container(wordcount, |spec| {
        spec.argv = vec!["wordcount".into(), "/texts".into()];
        spec.preopens =
            vec![Preopen { host: texts.clone(), sub_paths: Vec::new(), guest: "/texts".into(), writable: false }];
    });
    let outcome = container.run(never()).await;
    assert_eq!(outcome.exit_code, 0, "{outcome:?} {}", log.text());
    assert!(log.text().contains('4'), "{}", log.text());

    let burglar = bench.load_sample("burglar", Metering::Epochs).await;
    let (container, log) = bench.container(burglar, |spec| {
        spec.preopens = vec![Preopen { host: texts, sub_paths: Vec::new(), guest: "/texts".into(), writable: false }];
    });
    let outcome = container.run(never()).await;
    assert_eq!(outcome.exit_code, 0, "{outcome:?} {}", log.text());
    println!("{}", log.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ticker_parks_when_no_guest_runs() {
    let bench = Bench::new();
    let parked = async {
        while !bench.engine.ticker().is_parked() {
            Env::real().sleep(Duration::from_millis(5)).await;
        }
    };
    Env::real().timeout(Duration::from_secs(10), parked).await.unwrap();
    // And it wakes: an endless guest yields, so the stop below takes effect.
    let loaded = bench.load_text(&module("(loop (br 0))"), Metering::Epochs).await.unwrap();
    let (container, _) = bench.container(loaded, |_| {});
    let stop = async {
        Env::real().sleep(Duration::from_millis(30)).await;
        StopSignal::Terminate
    };
    assert_eq!(container.run(stop).await.exit_code, 143);
}

//! Hostile guests of WASI 0.3: each ends with its documented outcome, the host's memory stays bounded, and the process goes on.
//! An advisory of wasmtime is named by the test that covers it.

use std::time::Duration;

use super::service_guest::{command, command_with, service};
use super::*;
use runtime_api::Outcome;

async fn run_text(bench: &Bench, text: &str, change: impl FnOnce(&mut ContainerSpec)) -> (Outcome, Arc<Log>) {
    let loaded = bench.load_text(text, Metering::Epochs).await.unwrap();
    let (container, log) = bench.container(loaded, change);
    let outcome = container.run(std::future::pending()).await;
    assert_eq!(bench.engine.memory_used_bytes(), 0, "all is given back");
    (outcome, log)
}

async fn run(bench: &Bench, body: &str) -> (Outcome, Arc<Log>) {
    run_text(bench, &command(body), |_| {}).await
}

/// The process still runs guests of both versions.
async fn goes_on(bench: &Bench) {
    let (outcome, log) = run(bench, "(call $print) (call $return (i32.const 0))").await;
    assert_eq!((outcome.exit_code, log.text().as_str()), (0, "partial"));
}

/// What a guest creates without end, by calls of the engine alone.
const HOARDS: [&str; 4] =
    ["(drop (call $stream-new))", "(drop (call $signal-new))", "(drop (call $set-new))", WAIT_FOR_AN_HOUR];
const WAIT_FOR_AN_HOUR: &str = "(drop (call $wait-for-async (i64.const 3600000000000)))";

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_are_never_dropped_end_at_their_bound() {
    let bench = Bench::new();
    for hoard in HOARDS {
        let (outcome, log) = run(&bench, &format!("(loop {hoard} (br 0))")).await;
        assert_eq!(outcome.exit_code, 134, "{hoard}: {}", log.text());
        let named = log.text().contains("its bound of 8192 entries for streams, futures and tasks");
        assert!(
            named && outcome.message.as_deref().is_some_and(|text| text.contains("--guest-handles")),
            "{hoard}: {}: {outcome:?}",
            log.text()
        );
    }
    goes_on(&bench).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_memory_of_their_container() {
    let bench = Bench::new();
    // Half of the bound, then a computation that lets epochs pass.
    let body = format!(
        "(loop {} (local.set $n (i32.add (local.get $n) (i32.const 1)))
           (br_if 0 (i32.lt_u (local.get $n) (i32.const 2000))))
         (loop (br 0))",
        HOARDS[0]
    );
    let (outcome, log) = run_text(&bench, &command(&body), |spec| spec.limits.memory_bytes = Some(2 << 20)).await;
    assert_eq!(outcome.reason, OutcomeReason::OomKilled, "{outcome:?}: {}", log.text());
    goes_on(&bench).await;
}

async fn serving(bench: &Bench, body: &str) -> (HttpServer, Arc<Log>) {
    let loaded = bench.load_text(&service(body), Metering::Epochs).await.unwrap();
    let (container, log) = bench.container(loaded, |spec| spec.limits.timeout = Duration::from_millis(300));
    (container.serve().unwrap(), log)
}

async fn ended(server: &HttpServer) -> runtime_api::Failures {
    server.drained().await;
    let stats = server.container().stats();
    assert_eq!((stats.instances_live, stats.memory_bytes), (0, 0));
    stats.failures
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_before_the_head_have_their_responses() {
    let bench = Bench::new();
    for (body, expected) in [
        ("unreachable", (502, "trap")),
        ("(loop (br 0))", (504, "timeout")),
        ("(call $wait-for (i64.const 3600000000000))", (504, "timeout")),
        // An empty set of waitables never has an event.
        ("(drop (call $set-wait (call $set-new) (i32.const 64)))", (504, "timeout")),
        ("(call $fail)", (502, "no-response")),
    ] {
        let (server, log) = serving(&bench, body).await;
        let response = server.http(get("/")).await;
        assert_eq!(reason(&response), expected, "{body}: {}", log.text());
        ended(&server).await;
    }
    goes_on(&bench).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_guests_own_end_ends_its_body() {
    let bench = Bench::new();
    for (body, timeouts, traps) in [
        ("(call $respond) (call $say) unreachable", 0, 1),
        // Neither closed nor finished: nothing more can come.
        ("(call $respond) (call $say)", 1, 0),
        ("(call $respond) (call $say) (call $wait-for (i64.const 3600000000000))", 1, 0),
        ("(call $respond) (call $say) (loop (br 0))", 1, 0),
        ("(call $respond) (call $say) (call $close) (call $finish-with-an-error)", 0, 0),
    ] {
        let (server, log) = serving(&bench, body).await;
        let response = server.http(get("/")).await;
        assert_eq!(response.status(), 200, "{body}: {}", log.text());
        assert!(text(response).await.is_err(), "{body}");
        let failures = ended(&server).await;
        assert_eq!((failures.timeout, failures.trap), (timeouts, traps), "{body}: {}", log.text());
    }
    goes_on(&bench).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_outlives_its_response_ends_at_the_timeout() {
    let bench = Bench::new();
    for after in ["(call $wait-for (i64.const 3600000000000))", "(loop (br 0))"] {
        let body = format!("(call $respond) (call $say) (call $close) (call $finish) {after}");
        let (server, log) = serving(&bench, &body).await;
        assert_eq!(text(server.http(get("/")).await).await.unwrap(), "partial", "{}", log.text());
        ended(&server).await;
        assert!(log.text().contains("nothing moved for 300ms"), "{}", log.text());
    }
    goes_on(&bench).await;
}

/// GHSA-f8mm-ggr3-89wh, and GHSA-5m8g-xhq4-4h93 for the streams of 0.3: empty writes reach no queue.
#[tokio::test(flavor = "multi_thread")]
async fn empty_chunks_reach_no_client() {
    let bench = Bench::new();
    let body = "(call $respond) (call $say) (loop (call $put (global.get $stream) (i32.const 0)) (br 0))";
    let (server, log) = serving(&bench, body).await;
    let mut body = server.http(get("/")).await.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "partial");
    assert!(body.frame().await.unwrap().is_err());
    ended(&server).await;
    assert!(log.text().contains("nothing moved for 300ms"), "{}", log.text());
    // To the log they are nothing either.
    let empty = "(drop (call $stdout (i32.wrap_i64 (global.get $ends))))
        (loop (call $put (call $write-end (global.get $ends)) (i32.const 0))
          (local.set $n (i32.add (local.get $n) (i32.const 1))) (br_if 0 (i32.lt_u (local.get $n) (i32.const 100000))))
        (call $return (i32.const 0))";
    let (outcome, log) = run(&bench, &format!("(global.set $ends (call $stream-new)) {empty}")).await;
    assert_eq!((outcome.exit_code, log.text().as_str()), (0, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn small_writes_wait_for_their_reader() {
    let bench = Bench::new();
    let (server, _) =
        serving(&bench, "(call $respond) (loop (call $put (global.get $stream) (i32.const 1)) (br 0))").await;
    let mut body = server.http(get("/")).await.into_body();
    for _ in 0..1000 {
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "p");
    }
    // An instance with one memory of two pages, and some entries: no byte is queued for a reader that reads no more.
    Env::real().sleep(Duration::from_millis(100)).await;
    assert!(server.container().stats().memory_bytes < 1 << 20);
    drop(body);
    ended(&server).await;
}

/// GHSA-xrvr-8678-5wp8: cancelling at the wrong end panics in wasmtime 48.0.8. The guest ends like one that traps.
#[tokio::test(flavor = "multi_thread")]
async fn cancelling_at_the_wrong_end_ends_the_guest_alone() {
    let bench = Bench::new();
    let begin = "(global.set $ends (call $stream-new))";
    let (read_end, write_end) = ("(i32.wrap_i64 (global.get $ends))", "(call $write-end (global.get $ends))");
    for attack in [
        // The read has completed, and its event is delivered to an end that writes.
        format!(
            "(drop (call $stream-read {read_end} (i32.const 0) (i32.const 8)))
             (drop (call $stream-write {write_end} (i32.const 2048) (i32.const 7)))
             (drop (call $cancel-write {read_end})) (call $wait {read_end})"
        ),
        format!(
            "(drop (call $stream-write {write_end} (i32.const 2048) (i32.const 7)))
             (drop (call $stream-read {read_end} (i32.const 0) (i32.const 8)))
             (drop (call $cancel-read {write_end})) (call $wait {write_end})"
        ),
    ] {
        let (outcome, log) = run(&bench, &format!("{begin} {attack} (call $return (i32.const 0))")).await;
        assert_eq!((outcome.exit_code, &outcome.reason), (134, &OutcomeReason::Error), "{outcome:?}: {}", log.text());
    }
    goes_on(&bench).await;
    let (server, log) = serving(
        &bench,
        "(global.set $ends (call $stream-new))
         (drop (call $stream-read (i32.wrap_i64 (global.get $ends)) (i32.const 0) (i32.const 8)))
         (drop (call $stream-write (call $write-end (global.get $ends)) (i32.const 2048) (i32.const 7)))
         (drop (call $cancel-write (i32.wrap_i64 (global.get $ends)))) (call $wait (i32.wrap_i64 (global.get $ends)))
         (call $respond) (call $close) (call $finish)",
    )
    .await;
    assert_eq!(reason(&server.http(get("/")).await), (502, "trap"), "{}", log.text());
    ended(&server).await;
    goes_on(&bench).await;
}

/// GHSA-32h6-97mm-8q3c (CVE-2026-115384): the results of an async function's callback overflow the host's stack.
#[tokio::test(flavor = "multi_thread")]
async fn a_callback_of_another_type_is_refused() {
    let bench = Bench::new();
    let callback = "(func (export \"callback\") (param i32 i32 i32) (result i32)";
    for results in [2, 17, 1000] {
        let many = callback.replace("(result i32)", &format!("(result {})", "i32 ".repeat(results)));
        let text = command("(call $return (i32.const 0))").replace(callback, &many);
        assert!(text.contains(&many));
        assert!(bench.load_text(&text, Metering::Epochs).await.is_err(), "{results}");
    }
    goes_on(&bench).await;
}

/// GHSA-x84v-gj2h-g759: the host allocates as many bytes as a guest says that it reads or writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_takes_no_more_memory_than_its_guest_has() {
    let bench = Bench::new();
    let most = "(i32.const 0x0fffffff)";
    for attack in [
        format!(
            "(call $stdin (i32.const 16)) (drop (call $stream-read (i32.load (i32.const 16)) (i32.const 0) {most}))"
        ),
        format!(
            "(global.set $ends (call $stream-new)) (drop (call $stdout (i32.wrap_i64 (global.get $ends))))
             (drop (call $stream-write (call $write-end (global.get $ends)) (i32.const 0) {most}))"
        ),
    ] {
        let (outcome, log) = run(&bench, &format!("{attack} (call $return (i32.const 0))")).await;
        assert_eq!(outcome.exit_code, 134, "{}", log.text());
    }
    goes_on(&bench).await;
}

/// GHSA-5hhx-4wrr-3j9g and GHSA-93g3-36p8-x2gc (CVE-2026-119140, CVE-2026-119141): the host panics when a guest blocks or yields
/// while it allocates.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_waits_while_it_allocates_ends_alone() {
    let bench = Bench::new();
    for realloc in ["(drop (call $yield))", "(call $wait-for (i64.const 1000000))", "unreachable"] {
        let text = command_with("(call $arguments (i32.const 16)) (call $return (i32.const 0))", realloc);
        let (outcome, log) = run_text(&bench, &text, |_| {}).await;
        assert_eq!(outcome.exit_code, 134, "{realloc}: {}", log.text());
    }
    goes_on(&bench).await;
}

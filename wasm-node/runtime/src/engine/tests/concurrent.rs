//! WASI 0.3: commands and HTTP servers with async functions, streams and futures, under the limits of every other guest.

use std::time::Duration;

use super::service_guest::{command, service};
use super::*;

async fn run(bench: &Bench, body: &str, change: impl FnOnce(&mut ContainerSpec)) -> (runtime_api::Outcome, Arc<Log>) {
    let loaded = bench.load_text(&command(body), Metering::Epochs).await.unwrap();
    assert_eq!(loaded.kind(), Kind::Command);
    let (container, log) = bench.container(loaded, change);
    (container.run(std::future::pending()).await, log)
}

async fn serving(bench: &Bench, body: &str, change: impl FnOnce(&mut ContainerSpec)) -> (HttpServer, Arc<Log>) {
    let loaded = bench.load_text(&service(body), Metering::Epochs).await.unwrap();
    assert_eq!(loaded.kind(), Kind::HttpServer);
    let (container, log) = bench.container(loaded, change);
    (container.serve().unwrap(), log)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_prints_and_exits() {
    let bench = Bench::new();
    let (outcome, log) = run(&bench, "(call $print) (call $return (i32.const 0))", |_| {}).await;
    assert_eq!((outcome.exit_code, log.text().as_str()), (0, "partial"));
    let (outcome, _) = run(&bench, "(call $return (i32.const 1))", |_| {}).await;
    assert_eq!(outcome.exit_code, 1);
    let (outcome, _) = run(&bench, "(call $exit (i32.const 7)) unreachable", |_| {}).await;
    assert_eq!(outcome.exit_code, 7);
    let (outcome, log) = run(&bench, "unreachable", |_| {}).await;
    assert_eq!(outcome.exit_code, 134, "{}", log.text());
    assert!(log.text().contains("unreachable"), "{}", log.text());
    // Its task goes on after `run` has returned.
    let (outcome, log) =
        run(&bench, "(call $return (i32.const 0)) (call $wait-for (i64.const 1000000)) (call $print)", |_| {}).await;
    assert_eq!((outcome.exit_code, log.text().as_str()), (0, "partial"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_answers() {
    let bench = Bench::new();
    let body = "(call $respond) (call $say) (call $close) (call $finish)";
    let (server, log) = serving(&bench, body, |_| {}).await;
    let response = server.http(get("/")).await;
    assert_eq!(response.status(), 200, "{}", log.text());
    assert_eq!(text(response).await.unwrap(), "partial");
    server.drained().await;
    let stats = server.container().stats();
    assert_eq!((stats.requests, stats.instances_started, stats.instances_live, stats.memory_bytes), (1, 1, 0, 0));
    assert_eq!(stats.failures, Default::default());
    assert!(stats.cpu > Duration::ZERO);
}

/// The modules of `tests/e2e/wasi3.sh`.
#[test]
fn modules_of_the_script_are_made_of_text() {
    let server = service("(call $respond) (call $say) (call $close) (call $finish)");
    for (name, text) in [("service", server), ("command", command("(call $print) (call $return (i32.const 0))"))] {
        let path = format!("{}/../../tests/e2e/wasi3/{name}.wasm", env!("CARGO_MANIFEST_DIR"));
        let made = wat::parse_str(&text).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), made, "{path}");
    }
}

//! Calls of a guest that carry no bytes: they cost the guest's own CPU time and fuel, and no memory of the host.

use std::time::Duration;

use super::*;

/// A response that begins with "partial", then writes empty lists without end.
const EMPTY_WRITES: &str = "(call $begin (local.get 1) (i32.const 1) (i32.const 200)) (call $say)
    (loop (call $flush (global.get $stream) (i32.const 2048) (i32.const 0) (i32.const 64)) (br 0))";

async fn response(metering: Metering, change: impl FnOnce(&mut ContainerSpec)) -> (HttpServer, Arc<Log>, Body) {
    let bench = Bench::new();
    let loaded = bench.load_text(&guest::component(EMPTY_WRITES), metering).await.unwrap();
    let (container, log) = bench.container(loaded, change);
    let server = container.serve().unwrap();
    let inner = server.clone();
    let answer = bench.engine.guest_runtime().spawn(async move { inner.http(get("/")).await });
    let mut body = answer.await.unwrap().into_body();
    let first = body.frame().await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "partial");
    (server, log, body)
}

/// They are no progress either: without bytes the response ends at its idle timeout.
#[tokio::test(flavor = "multi_thread")]
async fn no_empty_write_reaches_the_client() {
    let (server, log, mut body) =
        response(Metering::Epochs, |spec| spec.limits.timeout = Duration::from_millis(300)).await;
    assert!(body.frame().await.unwrap().is_err());
    server.drained().await;
    assert!(log.text().contains("nothing moved for 300ms"), "{}", log.text());
    assert!(server.container().stats().cpu > Duration::ZERO);
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_writes_use_fuel() {
    let (server, _, mut body) = response(Metering::Fuel, |spec| spec.limits.fuel = Some(5_000_000)).await;
    assert!(body.frame().await.unwrap().is_err());
    server.drained().await;
    assert!(server.container().stats().fuel_used >= 5_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_writes_are_throttled() {
    let env = Env::real();
    let (server, _, body) = response(Metering::Epochs, |spec| spec.limits.cpu_millis = Some(20)).await;
    while server.container().stats().cpu_throttled < Duration::from_millis(300) {
        tokio::task::yield_now().await;
    }
    drop(body);
    server.drained().await;
    let used = server.container().stats().cpu;
    // A fiftieth of the elapsed time plus one period's burst, and at most a few slices over it.
    let may = env.elapsed() / 50 + Duration::from_millis(60);
    assert!(used < may, "{used:?}, {may:?}");
}

//! Instances that serve several requests (`reuse.coracle.dev/`): limits on number and idle time, and earlier ends.

use std::time::Duration;

use super::*;
use runtime_api::Reuse;
use runtime_api::ledger::{Ledger, Resource};

const PATIENCE: Duration = Duration::from_secs(60);
const FOR_EVER: Duration = Duration::from_secs(3600);
const MIB: u64 = 1 << 20;

async fn warm(
    bench: &Bench,
    name: &str,
    count: u32,
    idle: Duration,
    change: impl FnOnce(&mut ContainerSpec),
) -> HttpServer {
    let loaded = bench.load_sample(name, Metering::Epochs).await;
    let change = |spec: &mut ContainerSpec| {
        spec.limits.reuse = Some(Reuse { count, idle });
        change(spec);
    };
    bench.container(loaded, change).0.serve().unwrap()
}

async fn ok(server: &HttpServer, path: &str) {
    let response = server.http(get(path)).await;
    assert_eq!(reason(&response), (200, ""), "{path}");
    text(response).await.unwrap();
    server.drained().await;
}

fn started(server: &HttpServer) -> u64 {
    server.container().stats().instances_started
}

fn live(server: &HttpServer) -> u64 {
    server.container().stats().instances_live
}

async fn all_gone(server: &HttpServer) {
    let gone = async {
        while live(server) > 0 {
            Env::real().sleep(Duration::from_millis(1)).await;
        }
    };
    Env::real().timeout(PATIENCE, gone).await.expect("an instance lives on");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_answers_as_many_requests_as_it_may() {
    let bench = Bench::new();
    let hello = warm(&bench, "hello", 4, FOR_EVER, |_| {}).await;
    for _ in 0..10 {
        ok(&hello, "/").await;
    }
    assert_eq!((started(&hello), live(&hello)), (3, 1));
    // Each client gets its own response from a reused instance.
    let echo = warm(&bench, "hello", 1000, FOR_EVER, |_| {}).await;
    for round in 0..20 {
        let all = (0..8).map(|n| {
            let (echo, body) = (echo.clone(), format!("{round}-{n}").repeat(n * 1000 + 1));
            async move {
                let echoed = text(echo.http(post("/echo", body.clone())).await).await.unwrap();
                assert!(echoed == body, "{} bytes came back of {}", echoed.len(), body.len());
            }
        });
        futures::future::join_all(all).await;
        // A response has been read before its instance is parked.
        echo.drained().await;
    }
    assert!(started(&echo) <= 8, "{}", started(&echo));
    // A container without the reuse setting has none.
    let loaded = bench.load_sample("hello", Metering::Epochs).await;
    let fresh = bench.container(loaded, |_| {}).0.serve().unwrap();
    for _ in 0..3 {
        ok(&fresh, "/").await;
    }
    assert_eq!((started(&fresh), live(&fresh)), (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_request_has_its_own_fuel() {
    let bench = Bench::new();
    let loaded = bench.load_sample("hello", Metering::Fuel).await;
    let used = async |reuse: Option<Reuse>, fuel: u64| {
        let set = |spec: &mut ContainerSpec| (spec.limits.fuel, spec.limits.reuse) = (Some(fuel), reuse);
        let server = bench.container(loaded.clone(), set).0.serve().unwrap();
        for _ in 0..5 {
            ok(&server, "/").await;
        }
        server.container().stats().fuel_used / 5
    };
    let one = used(None, 1_000_000_000).await;
    // Enough for one, and by far too little for five.
    let reused = used(Some(Reuse { count: 5, idle: FOR_EVER }), one * 2).await;
    assert!(reused > 0 && reused <= one, "{reused} of {one}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_instances_are_not_reused() {
    let bench = Bench::new();
    let trap = warm(&bench, "trap", 100, FOR_EVER, |_| {}).await;
    ok(&trap, "/").await;
    assert_eq!(reason(&trap.http(get("/trap")).await), (502, "trap"));
    trap.drained().await;
    assert_eq!((started(&trap), live(&trap)), (1, 0));
    ok(&trap, "/").await;
    assert_eq!(started(&trap), 2);
    let hello = warm(&bench, "hello", 100, FOR_EVER, |_| {}).await;
    let mut stream = hello.http(get("/stream?n=10000000")).await.into_body();
    stream.frame().await.unwrap().unwrap();
    drop(stream);
    hello.drained().await;
    // Whether it was stopped or ended first: the next client gets its own response.
    ok(&hello, "/").await;
    assert_eq!(live(&hello), 1);
    hello.shut();
    assert_eq!(live(&hello), 0, "the server ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unused_instance_ends() {
    let bench = Bench::new();
    let hello = warm(&bench, "hello", 100, Duration::from_millis(20), |_| {}).await;
    for _ in 0..2 {
        ok(&hello, "/").await;
        all_gone(&hello).await;
        assert_eq!(hello.container().stats().memory_bytes, 0);
    }
    assert_eq!(started(&hello), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_instances_are_dropped_for_memory() {
    let bench = Bench::new();
    // Its own container: the node's own instance grows beside a parked one that holds most of the budget.
    let glutton = warm(&bench, "glutton", 100, FOR_EVER, |spec| spec.limits.memory_bytes = Some(64 * MIB)).await;
    ok(&glutton, "/eat?mb=40").await;
    assert!(live(&glutton) == 1 && glutton.container().stats().memory_bytes > 40 * MIB);
    let mut probe = get("/eat?mb=40");
    probe.extensions_mut().insert(NodeCall::default());
    assert_eq!(reason(&glutton.http(probe).await), (200, ""));
    glutton.drained().await;
    assert_eq!(live(&glutton), 0, "a call of the node's own is parked by nobody");

    // Its pod, and a request that waits for admission.
    let pod = bench.engine.pod_ledger();
    let parked = warm(&bench, "glutton", 100, FOR_EVER, |spec| spec.pod = pod.clone()).await;
    ok(&parked, "/eat?mb=40").await;
    pod.set_limit(Resource::Memory, 42 * MIB);
    let next = warm(&bench, "glutton", 100, FOR_EVER, |spec| spec.pod = pod.clone()).await;
    Env::real().timeout(PATIENCE, ok(&next, "/eat?mb=30")).await.unwrap();
    assert_eq!((live(&parked), live(&next)), (0, 1));
    // Other pods' instances are unaffected.
    let other = warm(&bench, "hello", 100, FOR_EVER, |_| {}).await;
    ok(&other, "/").await;
    Env::real().timeout(PATIENCE, ok(&parked, "/eat?mb=30")).await.unwrap();
    assert_eq!((live(&parked), live(&next), live(&other)), (1, 0, 1));
    assert_eq!(Ledger::used(&pod, Resource::Memory), parked.container().stats().memory_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_instances_block_no_slot() {
    let bench = Bench::new();
    let hello = warm(&bench, "hello", 100, FOR_EVER, |spec| spec.limits.concurrency = 1000).await;
    let most = hello.container().shared.admission.share.slots().capacity().instances as usize;
    let all = futures::future::join_all((0..most).map(|_| hello.http(get("/slow?ms=100"))));
    Env::real().timeout(PATIENCE, all).await.unwrap();
    hello.drained().await;
    let parked = live(&hello);
    assert!(parked > 10, "{parked}");
    // As many of another container of the namespace, whose share the parked ones use up.
    let other = warm(&bench, "hello", 100, FOR_EVER, |spec| spec.limits.concurrency = 1000).await;
    let all = futures::future::join_all((0..most).map(|_| other.http(get("/slow?ms=100"))));
    for response in Env::real().timeout(PATIENCE, all).await.unwrap() {
        assert_eq!(reason(&response), (200, ""));
    }
    assert_eq!(live(&hello), 0);
}

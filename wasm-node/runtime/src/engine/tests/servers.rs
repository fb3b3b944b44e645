//! HTTP servers: the samples under their limits, failures before and after the head, and calls out.

use std::time::Duration;

use machinery_serve::net::DialError;

use super::*;

async fn plain(bench: &Bench, name: &str, change: impl FnOnce(&mut ContainerSpec)) -> (HttpServer, Arc<Log>) {
    metered(bench, name, Metering::Epochs, change).await
}

async fn metered(
    bench: &Bench,
    name: &str,
    metering: Metering,
    change: impl FnOnce(&mut ContainerSpec),
) -> (HttpServer, Arc<Log>) {
    let loaded = bench.load_sample(name, metering).await;
    assert_eq!(loaded.kind(), Kind::HttpServer);
    let (container, log) = bench.container(loaded, change);
    (container.serve().unwrap(), log)
}

#[tokio::test(flavor = "multi_thread")]
async fn hello_answers() {
    let bench = Bench::new();
    for name in ["hello", "hello-c"] {
        let (server, log) = plain(&bench, name, |spec| {
            spec.env = vec![("POD_NAME".into(), "pod-1".into()), ("VERSION".into(), "one".into())];
        })
        .await;
        let response = server.http(get("/")).await;
        assert_eq!(response.status(), 200, "{name}: {}", log.text());
        assert_eq!(response.headers()["x-pod"], "pod-1");
        assert_eq!(text(response).await.unwrap(), "hello from pod-1\n");
        assert_eq!(text(server.http(get("/version")).await).await.unwrap().trim(), "one");
        let large = vec![b'x'; 3 << 20];
        let echoed = text(server.http(post("/echo", large.clone())).await).await;
        let echoed = echoed.unwrap_or_else(|error| panic!("{name}: {error}: {}", log.text()));
        assert_eq!(echoed.len(), large.len(), "{name}");
        let streamed = text(server.http(get("/stream?n=2000")).await).await.unwrap();
        assert_eq!(streamed.lines().count(), 2000, "{name}");
        assert!(!log.text().is_empty());
        server.drained().await;
        let stats = server.container().stats();
        assert_eq!((stats.requests, stats.instances_started, stats.instances_live, stats.memory_bytes), (4, 4, 0, 0));
        assert_eq!(stats.failures, Default::default());
        assert!(stats.cpu > Duration::ZERO);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_on_the_guests_own_threads() {
    let bench = Bench::new();
    let (server, _) = plain(&bench, "hello", |_| {}).await;
    // A guest interrupted between head and body, as on a busy machine, has its response streamed; one of many isn't.
    let mut measured = false;
    for _ in 0..50 {
        let inner = server.clone();
        let answer = bench.engine.guest_runtime().spawn(async move {
            let response = inner.http(get("/")).await;
            let length = http_body::Body::size_hint(response.body()).exact();
            (response.status(), length, text(response).await.unwrap())
        });
        let (status, length, body) = answer.await.unwrap();
        assert_eq!(status, 200);
        assert!(length.is_none_or(|length| length == body.len() as u64), "{length:?} for {body:?}");
        measured |= length.is_some();
    }
    assert!(measured, "a short answer has its length");
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_have_their_answers() {
    let bench = Bench::new();
    let short = Duration::from_millis(200);
    let (trap, log) = plain(&bench, "trap", |_| {}).await;
    assert_eq!(reason(&trap.http(get("/trap")).await), (502, "trap"));
    assert!(log.text().contains("wasm backtrace"), "{}", log.text());
    assert_eq!(trap.http(get("/")).await.status(), 200);

    let (endless, _) = plain(&bench, "endless", |spec| spec.limits.timeout = short).await;
    assert_eq!(reason(&endless.http(get("/loop")).await), (504, "timeout"));
    assert_eq!(endless.http(get("/")).await.status(), 200);

    let (glutton, _) = plain(&bench, "glutton", |spec| spec.limits.memory_bytes = Some(64 << 20)).await;
    assert_eq!(reason(&glutton.http(get("/eat?mb=200")).await), (503, "memory"));
    assert_eq!(glutton.http(get("/eat?mb=4")).await.status(), 200);
    glutton.drained().await;
    let stats = glutton.container().stats();
    assert_eq!((stats.failures.memory, stats.memory_bytes), (1, 0));
    assert!(stats.memory_peak_bytes <= 64 << 20);

    let (fuel, _) = metered(&bench, "endless", Metering::Fuel, |spec| spec.limits.fuel = Some(50_000_000)).await;
    assert_eq!(reason(&fuel.http(get("/loop")).await), (503, "fuel"));
    assert_eq!(fuel.http(get("/")).await.status(), 200);
    assert!(fuel.container().stats().fuel_used >= 50_000_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_the_concurrency_wait_and_give_up_at_their_timeout() {
    let bench = Bench::new();
    let (server, _) = plain(&bench, "hello", |spec| {
        spec.limits.concurrency = 2;
        spec.limits.timeout = Duration::from_secs(5);
    })
    .await;
    let all = futures::future::join_all((0..8).map(|_| server.http(get("/slow?ms=50")))).await;
    assert!(all.iter().all(|response| response.status() == 200));

    let (server, _) = plain(&bench, "hello", |spec| {
        spec.limits.concurrency = 1;
        spec.limits.timeout = Duration::from_millis(150);
    })
    .await;
    // A running stream holds its permit for as long as it is read.
    let mut stream = server.http(get("/stream?n=10000000")).await.into_body();
    let reading = async {
        loop {
            Env::real().sleep(Duration::from_millis(20)).await;
            stream.frame().await.unwrap().unwrap();
        }
    };
    let waiting = tokio::select! {
        response = server.http(get("/")) => response,
        () = reading => unreachable!(),
    };
    assert_eq!(reason(&waiting), (504, "timeout"));
    drop(stream);
    server.drained().await;
    assert_eq!(server.http(get("/")).await.status(), 200, "the permit came back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_takes_its_guest_along() {
    let bench = Bench::new();
    let (server, _) = plain(&bench, "endless", |_| {}).await;
    let request = server.http(get("/loop"));
    assert!(Env::real().timeout(Duration::from_millis(100), request).await.is_err());
    Env::real().timeout(Duration::from_secs(5), server.drained()).await.unwrap();
    // A body that is not read to its end.
    let (server, _) = plain(&bench, "hello", |_| {}).await;
    let response = server.http(get("/stream?n=10000000")).await;
    drop(response);
    Env::real().timeout(Duration::from_secs(5), server.drained()).await.unwrap();
    // A body that is no longer read is cut off after the timeout.
    let (server, log) = plain(&bench, "hello", |spec| spec.limits.timeout = Duration::from_millis(100)).await;
    let response = server.http(get("/stream?n=10000000")).await;
    assert_eq!(response.status(), 200);
    Env::real().timeout(Duration::from_secs(5), server.drained()).await.unwrap();
    assert!(text(response).await.is_err(), "a cut body is no clean end");
    assert!(log.text().contains("nothing moved"), "{}", log.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn shutting_cuts_off_and_refuses() {
    let bench = Bench::new();
    let (server, _) = plain(&bench, "endless", |_| {}).await;
    let running = server.clone();
    let request = tokio::spawn(async move { running.http(get("/loop")).await.status() });
    while server.container().stats().instances_live == 0 {
        tokio::task::yield_now().await;
    }
    server.shut();
    assert_eq!(request.await.unwrap(), 503);
    server.drained().await;
    assert_eq!(reason(&server.http(get("/")).await), (503, "stopped"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_start_is_broken() {
    let bench = Bench::new();
    let (server, _) = plain(&bench, "hello", |spec| spec.limits.memory_bytes = Some(64 << 10)).await;
    assert!(matches!(server.container().try_instantiate().await, TrialOutcome::Broken(_)));
    for _ in 0..3 {
        assert_eq!(reason(&server.http(get("/")).await), (503, "memory"));
    }
    assert!(server.container().broken().unwrap().contains("memory"));
    let (server, _) = plain(&bench, "hello", |_| {}).await;
    assert_eq!(server.container().try_instantiate().await, TrialOutcome::Sound);
    assert_eq!(server.container().broken(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_flood_affects_no_other_pod() {
    let bench = Bench::new();
    let (chatter, log) = plain(&bench, "chatter", |spec| spec.limits.timeout = Duration::from_millis(300)).await;
    let (hello, _) = plain(&bench, "hello", |_| {}).await;
    let (flood, fine) = tokio::join!(chatter.http(get("/flood")), hello.http(get("/")));
    assert_eq!(fine.status(), 200);
    let _ = text(flood).await;
    Env::real().timeout(Duration::from_secs(5), chatter.drained()).await.unwrap();
    assert!(log.text().len() > 10_000);
}

/// The shop without a network: catalog, users and payments respond by name.
struct Shop(HashMap<&'static str, HttpServer>);

#[async_trait::async_trait]
impl Dial for Shop {
    async fn http(&self, caller: &Caller, request: http::Request<Body>) -> Result<http::Response<Body>, DialError> {
        assert_eq!(&*caller.pod, "test");
        let host = request.uri().host().unwrap_or_default().to_owned();
        match self.0.get(host.as_str()) {
            Some(server) => Ok(server.http(request).await),
            None => Err(DialError::NameNotFound(host)),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_call_each_other() {
    let bench = Bench::new();
    let products = bench.dir.path().join("products");
    std::fs::create_dir(&products).unwrap();
    let list =
        r#"[{"id":"tea","name":"Tea","price":3.5},{"id":"a","name":"A","price":1},{"id":"b","name":"B","price":2}]"#;
    std::fs::write(products.join("products.json"), list).unwrap();
    let mut shop = HashMap::new();
    for (name, short) in [("shop-catalog", "catalog"), ("shop-users", "users"), ("shop-payments", "payments")] {
        let (server, _) = plain(&bench, name, |spec| {
            // All paths where the sample expects its files.
            for guest in ["/etc/catalog", "/catalog", "/data", "/config"] {
                spec.preopens.push(Preopen {
                    host: products.clone(),
                    sub_paths: Vec::new(),
                    guest: guest.into(),
                    writable: false,
                });
            }
            spec.env.push(("PAYMENT_KEY".into(), "k".into()));
        })
        .await;
        shop.insert(short, server);
    }
    let (frontend, log) = plain(&bench, "shop-frontend", |spec| spec.dial = dial(Shop(shop))).await;
    let response = frontend.http(get("/api/products")).await;
    assert_eq!(response.status(), 200, "{}", log.text());
    assert!(text(response).await.unwrap().contains("tea"));
    // Without a callee: a response of the guest's own, not a hang.
    let (alone, _) = plain(&bench, "shop-frontend", |spec| spec.dial = dial(Shop(HashMap::new()))).await;
    assert!(alone.http(get("/api/products")).await.status().is_server_error());
    let (denied, _) = plain(&bench, "shop-frontend", |_| {}).await;
    assert!(denied.http(get("/api/products")).await.status().is_server_error());
}

async fn written(bench: &Bench, body: &str, change: impl FnOnce(&mut ContainerSpec)) -> (HttpServer, Arc<Log>) {
    let loaded = bench.load_text(&guest::component(body), Metering::Epochs).await.unwrap();
    let (container, log) = bench.container(loaded, change);
    (container.serve().unwrap(), log)
}

const BEGIN: &str = "(call $begin (local.get 1) (i32.const 1) (i32.const 200)) (call $say)";

#[tokio::test(flavor = "multi_thread")]
async fn only_a_finished_body_ends() {
    let bench = Bench::new();
    let short = |spec: &mut ContainerSpec| spec.limits.timeout = Duration::from_millis(150);
    let (whole, log) = written(&bench, &format!("{BEGIN} (call $end)"), short).await;
    let response = whole.http(get("/")).await;
    assert_eq!(response.status(), 200, "{}", log.text());
    assert!(response.headers().get("coracle-x").is_none(), "the node's own headers are not a guest's to set");
    assert_eq!(text(response).await.unwrap(), "partial");
    for (cut, why) in [
        ("unreachable", "a trap"),
        ("", "a return without finish"),
        ("(loop (br 0))", "an endless loop"),
        ("(call $ask)", "a request's body that was finished"),
        ("(call $other)", "another response's body that was finished"),
    ] {
        let (server, _) = written(&bench, &format!("{BEGIN} {cut}"), short).await;
        let inner = server.clone();
        // Both entry paths: from another thread, and on the guests' own.
        for response in [
            server.http(get("/")).await,
            bench.engine.guest_runtime().spawn(async move { inner.http(get("/")).await }).await.unwrap(),
        ] {
            assert_eq!(response.status(), 200, "{why}");
            assert!(text(response).await.is_err(), "{why} is no clean end");
        }
        Env::real().timeout(Duration::from_secs(5), server.drained()).await.unwrap();
    }
    // Less than the guest's own content-length.
    let body = "(call $begin (local.get 1) (i32.const 2) (i32.const 200)) (call $say) (call $end)";
    let (server, _) = written(&bench, body, short).await;
    let response = server.http(get("/")).await;
    assert_eq!(response.headers()["content-length"], "100");
    assert!(text(response).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_responses() {
    let bench = Bench::new();
    for body in ["", "(call $begin (local.get 1) (i32.const 0) (i32.const 101)) (call $end)"] {
        let (server, _) = written(&bench, body, |_| {}).await;
        assert_eq!(reason(&server.http(get("/")).await), (502, "no-response"));
        assert_eq!(server.container().stats().failures.no_response, 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn work_after_the_response_ends_with_the_timeout() {
    let bench = Bench::new();
    let body = format!("{BEGIN} (call $end) (loop (br 0))");
    let (server, _) = written(&bench, &body, |spec| spec.limits.timeout = Duration::from_millis(200)).await;
    let response = server.http(get("/")).await;
    assert_eq!(text(response).await.unwrap(), "partial", "the body is whole before that work ends");
    assert_eq!(server.in_flight(), 1);
    Env::real().timeout(Duration::from_secs(5), server.drained()).await.unwrap();
    let stats = server.container().stats();
    assert_eq!((stats.failures.timeout, stats.instances_live), (1, 0));
    assert!(stats.cpu > Duration::ZERO, "that work counts");
}

#[tokio::test(flavor = "multi_thread")]
async fn host_memory_is_charged() {
    let bench = Bench::new();
    // Headers of 16 KiB each, never dropped: the host's memory, not the guest's own.
    let fill = "(memory.fill (i32.const 16384) (i32.const 120) (i32.const 16384))";
    let hoard = &format!("{fill} (loop (drop (call $headers (i32.const 3))) (br 0))");
    let (server, _) = written(&bench, hoard, |spec| spec.limits.memory_bytes = Some(6 << 20)).await;
    assert_eq!(reason(&server.http(get("/")).await), (503, "memory"));
    let stats = server.container().stats();
    assert!(stats.memory_peak_bytes > 4 << 20 && stats.memory_bytes == 0, "{stats:?}");
    // Without a memory limit the number of handles is still limited.
    let handles = "(loop (drop (call $headers (i32.const 0))) (br 0))";
    let (server, _) = written(&bench, handles, |_| {}).await;
    assert_eq!(reason(&server.http(get("/")).await), (502, "trap"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_of_many_instances_is_bounded() {
    let bench = Bench::new();
    let nested = |count: usize| {
        let instances: String = (0..count).map(|n| format!("(core instance $i{n} (instantiate $m))\n")).collect();
        format!(
            r#"(component
              (core module $m (memory 16) (func (export "run") (result i32) i32.const 0))
              {instances}
              (func $run (result (result)) (canon lift (core func $i0 "run")))
              (instance $cli (export "run" (func $run)))
              (export "wasi:cli/run@0.2.0" (instance $cli)))"#
        )
    };
    let loaded = bench.load_text(&nested(8), Metering::Epochs).await.unwrap();
    assert_eq!(loaded.kind(), Kind::Command);
    let (fits, _) = bench.container(loaded.clone(), |spec| spec.limits.memory_bytes = Some(8 << 20));
    assert_eq!(fits.run(std::future::pending()).await.exit_code, 0);
    let (small, _) = bench.container(loaded, |spec| spec.limits.memory_bytes = Some(7 << 20));
    assert_eq!(small.run(std::future::pending()).await.reason, OutcomeReason::OomKilled);
    match bench.load_text(&nested(200), Metering::Epochs).await {
        Ok(loaded) => assert_eq!(bench.container(loaded, |_| {}).0.run(std::future::pending()).await.exit_code, 134),
        Err(error) => assert!(matches!(error, LoadError::Unfit(_)), "{error}"),
    }
}

#[tokio::test]
async fn mismatches_are_reported_without_the_nodes_paths() {
    let bench = Bench::new();
    let large = r#"(module (memory (export "memory") 1) (table 30000 funcref) (func (export "_start")))"#;
    let error = bench.load_text(large, Metering::Epochs).await.err().unwrap();
    let reported = error.to_string();
    assert!(matches!(error, LoadError::Unfit(_)) && reported.contains("30000"), "{reported}");
    assert!(!reported.contains('/') && !reported.contains("cwasm"), "{reported}");
}

//! Containers beside each other: waiting for memory, fair slots, the node's own calls, and grants of a pod.

use std::time::Duration;

use super::*;
use machinery_api::imports::ImportRules;
use runtime_api::{ContainerSpec, Grants};

/// Longer than any wait here should take on a crowded machine.
const PATIENCE: Duration = Duration::from_secs(60);

async fn server(bench: &Bench, name: &str, change: impl FnOnce(&mut ContainerSpec)) -> HttpServer {
    let loaded = bench.load_sample(name, Metering::Epochs).await;
    bench.container(loaded, change).0.serve().unwrap()
}

/// A request of the node's own, like a probe.
fn probe(path: &str) -> (http::Request<Body>, NodeCall) {
    let call = NodeCall::default();
    let mut request = get(path);
    request.extensions_mut().insert(call.clone());
    (request, call)
}

/// Maximum memory of one instance of `hello`.
async fn size_of_hello(bench: &Bench) -> u64 {
    let hello = server(bench, "hello", |_| {}).await;
    assert_eq!(hello.http(get("/slow?ms=1")).await.status(), 200);
    assert_eq!(hello.http(get("/stream?n=1")).await.status(), 200);
    hello.drained().await;
    hello.container().stats().memory_peak_bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_do_not_fit_beside_the_live_ones_wait() {
    let bench = Bench::new();
    let one = size_of_hello(&bench).await;
    // One instance fits, two don't: the first requests detect it, and none fails.
    let hello = server(&bench, "hello", |spec| spec.limits.memory_bytes = Some(one + one / 2)).await;
    let all = futures::future::join_all((0..8).map(|_| hello.http(get("/slow?ms=30"))));
    for response in Env::real().timeout(PATIENCE, all).await.unwrap() {
        assert_eq!(reason(&response), (200, ""));
    }
    hello.drained().await;
    let stats = hello.container().stats();
    assert_eq!((stats.failures, stats.memory_bytes), (runtime_api::Failures::default(), 0));
    assert!(stats.memory_peak_bytes <= one + one / 2, "{stats:?}");

    // While one stays alive, the next waits to its deadline, which doesn't count against the module.
    let short = Duration::from_millis(300);
    let hello = server(&bench, "hello", |spec| {
        spec.limits.memory_bytes = Some(one + one / 2);
        spec.limits.timeout = short;
    })
    .await;
    let mut stream = hello.http(get("/stream?n=10000000")).await.into_body();
    let reading = async {
        loop {
            stream.frame().await.unwrap().unwrap();
        }
    };
    let asking = async {
        for _ in 0..4 {
            assert_eq!(reason(&hello.http(get("/")).await), (504, "timeout"));
        }
        let (request, call) = probe("/");
        assert!(Env::real().timeout(short / 2, hello.http(request)).await.is_err());
        assert!(call.waits(), "the probe was never asked of the guest");
        assert_eq!(hello.container().try_instantiate().await, TrialOutcome::NoCapacity);
        assert_eq!(hello.container().broken(), None);
    };
    tokio::select! {
        () = asking => {}
        () = reading => unreachable!(),
    }
    drop(stream);
    let (request, call) = probe("/");
    assert_eq!(hello.http(request).await.status(), 200);
    assert!(!call.waits());
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_of_other_pods_is_waited_for_as_well() {
    let bench = Bench::new();
    let one = size_of_hello(&bench).await;
    let ledger = bench.engine.ledger();
    let (a, b) = (server(&bench, "hello", |_| {}).await, server(&bench, "hello", |_| {}).await);
    ledger.set_limit(ledger::Resource::Memory, one + one / 2);
    let stream = a.http(get("/stream?n=10000000")).await;
    let waiting = b.http(get("/"));
    tokio::pin!(waiting);
    assert!(Env::real().timeout(Duration::from_millis(100), &mut waiting).await.is_err());
    drop(stream);
    assert_eq!(Env::real().timeout(PATIENCE, waiting).await.unwrap().status(), 200);
    assert_eq!(b.container().broken(), None);
}

/// A guest waits for host memory as for its own: a neighbour's use is no fault of the guest.
#[tokio::test(flavor = "multi_thread")]
async fn host_memory_waits_for_neighbours() {
    const MIB: u64 = 1 << 20;
    let bench = Bench::new();
    let neighbour = bench.engine.pod_ledger().hold(ledger::Resource::Memory, 20 * MIB).unwrap();
    // 500 sets of fields of 16 KiB each, then work that takes a moment, then a response.
    let body = "
        (memory.fill (i32.const 16384) (i32.const 120) (i32.const 16384))
        (loop $more
          (drop (call $headers (i32.const 3)))
          (local.set $n (i32.add (local.get $n) (i32.const 1)))
          (br_if $more (i32.lt_u (local.get $n) (i32.const 500))))
        (call $begin (local.get 1) (i32.const 0) (i32.const 200)) (call $say) (call $end)";
    let loaded = bench.load_text(&guest::component(body), Metering::Epochs).await.unwrap();
    let (hoarder, log) = bench.container(loaded, |_| {});
    let hoarder = hoarder.serve().unwrap();
    // Enough for admission, and too little beside the neighbour for the host memory to come.
    bench.engine.ledger().set_limit(ledger::Resource::Memory, 25 * MIB);
    let waiting = hoarder.http(get("/"));
    tokio::pin!(waiting);
    let over_limit = async {
        while bench.engine.memory_used_bytes() <= bench.engine.ledger().limit(ledger::Resource::Memory) {
            Env::real().sleep(Duration::from_millis(5)).await;
        }
        Env::real().sleep(Duration::from_millis(100)).await;
    };
    tokio::select! {
        answer = &mut waiting => panic!("{:?} {}", reason(&answer), log.text()),
        () = over_limit => {}
        () = Env::real().sleep(PATIENCE) => panic!("the host never held more than there is"),
    }
    drop(neighbour);
    let answer = Env::real().timeout(PATIENCE, waiting).await.expect("the neighbour has given back");
    assert_eq!(reason(&answer), (200, ""), "{}", log.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_own_calls_never_wait_for_requests() {
    let bench = Bench::new();
    let hello = server(&bench, "hello", |spec| spec.limits.concurrency = 1).await;
    let stream = hello.http(get("/stream?n=10000000")).await;
    assert_eq!(stream.status(), 200);
    let (request, _) = probe("/");
    let answer = Env::real().timeout(PATIENCE / 2, hello.http(request)).await;
    assert_eq!(answer.expect("the stream holds the only permit of requests").status(), 200);
    drop(stream);
}

/// A server with many tables whose response never ends and takes no CPU: it is not read.
fn hoarder() -> String {
    let tables: String = (0..31).map(|_| "(table 1 funcref)").collect();
    let endless = "(call $begin (local.get 1) (i32.const 1) (i32.const 200)) (loop (call $say) (br 0))";
    guest::component(endless).replacen("(core module $memory", &format!("(core module $memory {tables}"), 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hoarding_pods_leave_slots_for_a_third() {
    let bench = Bench::new();
    let loaded = bench.load_text(&hoarder(), Metering::Epochs).await.unwrap();
    let mut held = tokio::task::JoinSet::new();
    let mut hoarders = Vec::new();
    for _ in 0..2 {
        let (container, _) = bench.container(loaded.clone(), |spec| spec.limits.concurrency = 1_000_000);
        let server = container.serve().unwrap();
        for _ in 0..150 {
            let server = server.clone();
            // The response is kept, and with it the instance.
            held.spawn(async move {
                let response = server.http(get("/")).await;
                std::future::pending::<()>().await;
                drop(response);
            });
        }
        hoarders.push(server);
    }
    // Until they have all that they can get.
    let live = || hoarders.iter().map(|server| server.container().stats().instances_live).sum::<u64>();
    let mut before = 0;
    loop {
        Env::real().sleep(Duration::from_millis(200)).await;
        let now = live();
        if now > 40 && now == before {
            break;
        }
        before = now;
    }
    let hello = server(&bench, "hello", |spec| spec.caller.namespace = "other".into()).await;
    let neighbour = server(&bench, "hello", |_| {}).await;
    for victim in [&hello, &neighbour] {
        let answers = futures::future::join_all((0..16).map(|_| victim.http(get("/"))));
        for response in Env::real().timeout(PATIENCE, answers).await.unwrap() {
            assert_eq!(response.status(), 200, "{} of them live", live());
        }
    }
    // And the hoarders' own probes.
    let (request, _) = probe("/");
    assert_eq!(Env::real().timeout(PATIENCE, hoarders[0].http(request)).await.unwrap().status(), 200);
    held.shutdown().await;
    for server in &hoarders {
        Env::real().timeout(PATIENCE, server.drained()).await.unwrap();
    }
}

/// A command that sleeps for an hour.
const SLEEPER: &str = r#"(module
    (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "_start")
      ;; A subscription to the monotonic clock: tag 0, clock 1, 3.6e12 ns from now.
      (i32.store (i32.const 16) (i32.const 1))
      (i64.store (i32.const 24) (i64.const 3600000000000))
      (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_commands_take_nothing_from_requests() {
    let bench = Bench::new();
    let loaded = bench.load_text(SLEEPER, Metering::Epochs).await.unwrap();
    let commands: Vec<Container> = (0..1000).map(|_| bench.container(loaded.clone(), |_| {}).0).collect();
    let mut runs = tokio::task::JoinSet::new();
    for command in commands.clone() {
        runs.spawn(async move { command.run(std::future::pending()).await });
    }
    let all_live = async {
        while commands.iter().map(|command| command.stats().instances_live).sum::<u64>() < 1000 {
            Env::real().sleep(Duration::from_millis(20)).await;
        }
    };
    let timed = Env::real().timeout(Duration::from_secs(20), all_live).await;
    let live = || commands.iter().map(|command| command.stats().instances_live).sum::<u64>();
    let mut ended = Vec::new();
    while let Some(Ok(outcome)) = runs.try_join_next() {
        ended.push(outcome);
    }
    assert!(timed.is_ok(), "{} of a thousand commands run at once; {} ended: {:?}", live(), ended.len(), ended.first());
    let hello = server(&bench, "hello", |_| {}).await;
    let answer = Env::real().timeout(PATIENCE, hello.http(get("/"))).await;
    assert_eq!(answer.unwrap().status(), 200);
    runs.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_waits_for_its_slot_before_it_runs() {
    let bench = Bench::new();
    let loaded = bench.load_text(SLEEPER, Metering::Epochs).await.unwrap();
    let (hog, _) = bench.container(loaded.clone(), |_| {});
    let mut held = Vec::new();
    loop {
        let mut next = Box::pin(hog.admit());
        match futures::poll!(&mut next) {
            std::task::Poll::Ready(admitted) => held.push(admitted),
            std::task::Poll::Pending => break,
        }
    }
    assert!(held.len() > 500, "{}", held.len());
    let mut waiting = Box::pin(hog.admit());
    assert!(futures::poll!(&mut waiting).is_pending());
    let (other, _) = bench.container(loaded, |spec| spec.caller.namespace = "other".into());
    assert!(matches!(futures::poll!(Box::pin(other.admit())), std::task::Poll::Ready(_)), "shares are apart");
    held.pop();
    Env::real().timeout(PATIENCE, waiting).await.expect("who gives back wakes who waits");
}

/// A command that computes for ever.
const HOG: &str = r#"(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))"#;

/// Under CPU contention, each container gets its part by weight, whatever its number of guests.
#[tokio::test(flavor = "multi_thread")]
async fn cpu_is_shared_by_requests() {
    let bench = Bench::new();
    let loaded = bench.load_text(HOG, Metering::Epochs).await.unwrap();
    let hog = |shares: u64| bench.container(loaded.clone(), |spec| spec.limits.cpu_shares = shares).0;
    let (heavy, light) = (hog(runtime_api::cpu_shares(1500)), hog(runtime_api::cpu_shares(500)));
    let mut runs = tokio::task::JoinSet::new();
    for container in [&heavy, &light, &light, &heavy, &light, &light] {
        let container = container.clone();
        runs.spawn(async move { container.run(std::future::pending()).await });
    }
    let used = || [&heavy, &light].map(|container| container.stats().cpu);
    let burn = async |more: Duration| {
        let before: Duration = used().iter().sum();
        while used().iter().sum::<Duration>() < before + more {
            Env::real().sleep(Duration::from_millis(5)).await;
        }
    };
    let burnt = async {
        // Until contention has been detected.
        burn(Duration::from_millis(100)).await;
        let before = used();
        burn(Duration::from_millis(1200)).await;
        let after = used();
        [after[0] - before[0], after[1] - before[1]]
    };
    let burnt = Env::real().timeout(PATIENCE * 2, burnt).await.expect("guests run");
    let ratio = burnt[0].as_secs_f64() / burnt[1].as_secs_f64();
    assert!((2.0..4.5).contains(&ratio), "three to one is asked for: {burnt:?}");
    // A request is served in between all the same, and a probe before all guests.
    let hello = server(&bench, "hello", |spec| spec.limits.cpu_shares = runtime_api::cpu_shares(500)).await;
    let (request, _) = probe("/");
    for request in [get("/"), request] {
        assert_eq!(Env::real().timeout(PATIENCE, hello.http(request)).await.unwrap().status(), 200);
    }
    runs.shutdown().await;
    assert_eq!(Env::real().timeout(PATIENCE, hello.http(get("/"))).await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_decide_the_linked_interfaces() {
    let bench = Bench::new();
    let text = r#"(component
        (import "test:granted/answer@0.1.0" (instance $a (export "answer" (func (result u32)))))
        (core func $answer (canon lower (func $a "answer")))
        (core module $m
          (import "a" "answer" (func $answer (result i32)))
          (func (export "run") (result i32) (i32.ne (call $answer) (i32.const 42))))
        (core instance $i (instantiate $m (with "a" (instance (export "answer" (func $answer))))))
        (func $run (result (result)) (canon lift (core func $i "run")))
        (instance $cli (export "run" (func $run)))
        (export "wasi:cli/run@0.2.0" (instance $cli)))"#;
    let loaded = bench.load_text(text, Metering::Epochs).await.unwrap();
    // The same module in two pods, one after the other in both orders: one pod's grants don't apply to the other.
    for _ in 0..2 {
        let (granted, log) = bench
            .container(loaded.clone(), |spec| spec.grants = Grants::parse("answer", &crate::host::optional()).unwrap());
        let outcome = granted.run(std::future::pending()).await;
        assert_eq!(outcome.exit_code, 0, "{outcome:?} {}", log.text());
        let mut spec = bench.spec();
        spec.name = "default/thief/main".into();
        let refused = bench.engine.container(loaded.clone(), spec).unwrap_err().to_string();
        assert!(
            refused.contains("\"test:granted/answer@0.1.0\"")
                && refused.contains("\"host.coracle.dev/main\" must name \"answer\""),
            "{refused}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_toolbox_has_the_network_interface() {
    let bench = Bench::new();
    let text = r#"(component
        (import "coracle:host/net@0.1.0" (instance (export "name-server" (func (result (option string))))))
        (core module $m (func (export "run") (result i32) (i32.const 0)))
        (core instance $i (instantiate $m))
        (func $run (result (result)) (canon lift (core func $i "run")))
        (instance $cli (export "run" (func $run)))
        (export "wasi:cli/run@0.2.0" (instance $cli)))"#;
    let loaded = bench.load_text(text, Metering::Epochs).await.unwrap();
    assert!(Grants::parse("net", &crate::host::optional()).is_err(), "no annotation grants it");
    let refused = bench.engine.container(loaded.clone(), bench.spec()).unwrap_err().to_string();
    assert!(refused.contains("\"coracle:host/net@0.1.0\", which this node does not offer"), "{refused}");
    let (toolbox, log) = bench.container(loaded.clone(), |spec| spec.grants = Grants::default().toolbox(true));
    let outcome = toolbox.run(std::future::pending()).await;
    assert_eq!(outcome.exit_code, 0, "{outcome:?} {}", log.text());
    // Another program in a session beside the toolbox doesn't have it either.
    let spec = |is_toolbox| runtime_api::ExecSpec {
        folders: Vec::new(),
        argv: vec!["x".into()],
        env: Vec::new(),
        stdio: runtime_api::Stdio::default(),
        is_toolbox,
        log: log.clone(),
        node_call: None,
    };
    let refused = toolbox.exec(loaded.clone(), spec(false)).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("which this node does not offer"), "{refused}");
    let session = toolbox.exec(loaded, spec(true)).unwrap();
    assert_eq!(session.run(std::future::pending()).await.exit_code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn modules_and_session_programs_have_only_permitted_imports() {
    let bench = Bench::new();
    let rules = |text: &str| Some(Arc::new(ImportRules::parse(text).unwrap()));
    let component = r#"(component
        (import "wasi:cli/exit@0.2.0" (instance))
        (core module $m (func (export "run") (result i32) (i32.const 0)))
        (core instance $i (instantiate $m))
        (func $run (result (result)) (canon lift (core func $i "run")))
        (instance $cli (export "run" (func $run)))
        (export "wasi:cli/run@0.2.0" (instance $cli)))"#;
    let core = r#"(module
        (import "wasi_snapshot_preview1" "sched_yield" (func (result i32))) (memory (export "memory") 1)
        (func (export "_start")))"#;
    let component = bench.load_text(component, Metering::Epochs).await.unwrap();
    let core = bench.load_text(core, Metering::Epochs).await.unwrap();
    let container = |loaded: &Arc<PreparedModule>, text: &str| {
        let spec = ContainerSpec { imports: rules(text), ..bench.spec() };
        bench.engine.container(loaded.clone(), spec).map_err(|error| error.to_string())
    };
    for (loaded, import) in [(&component, "wasi:cli/exit@0.2.0"), (&core, "wasi_snapshot_preview1/sched_yield")] {
        assert!(container(loaded, import).is_ok() && container(loaded, "*").is_ok());
        for denied in ["", "wasi:io/streams", "wasi:cli/exit@0.2.1"] {
            let why = container(loaded, denied).unwrap_err();
            let wanted =
                format!("the module imports {import:?}, which the pod's annotation \"imports.coracle.dev/test\"");
            assert!(why.starts_with(&wanted), "{denied}: {why}");
        }
    }
    // A session's program is restricted like the container's module.
    let confined = container(&component, "wasi:cli/exit@0.2.0").unwrap();
    let spec = || runtime_api::ExecSpec {
        folders: Vec::new(),
        argv: vec!["x".into()],
        env: Vec::new(),
        stdio: runtime_api::Stdio::default(),
        is_toolbox: true,
        log: Arc::new(Log::default()),
        node_call: None,
    };
    assert!(confined.exec(component.clone(), spec()).is_ok());
    let why = confined.exec(core, spec()).err().expect("refused").to_string();
    assert!(why.contains("wasi_snapshot_preview1/sched_yield"), "{why}");
}

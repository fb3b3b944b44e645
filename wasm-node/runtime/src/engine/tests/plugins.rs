//! Plugins: calls, their errors, their limits, and sessions.

use std::time::Duration;

use http::Request;
use machinery_serve::net::{Caller, Origin, Peer, Serve};
use serde_json::{Value, json};

use super::*;

const WAVE: &str = "application/x-wave";
/// Functions that no toolchain produces.
const UNRULY: &str = r#"(component
  (core module $m
    (memory (export "memory") 64)
    (global $end (mut i32) (i32.const 1024))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (local.set 0 (i32.and (i32.add (global.get $end) (i32.const 7)) (i32.const -8)))
      (global.set $end (i32.add (local.get 0) (local.get 3)))
      (local.get 0))
    (func (export "spin") (loop (br 0)))
    (func (export "trap") unreachable)
    (func (export "eat") (drop (memory.grow (i32.const 4096))))
    (func (export "bytes") (param i32) (result i32)
      (i32.store (i32.const 8) (i32.const 0)) (i32.store (i32.const 12) (local.get 0)) (i32.const 8))
    (func (export "count") (param i32 i32) (result i32) (local.get 1))
    (func (export "nothing")))
  (core instance $i (instantiate $m))
  (alias core export $i "memory" (core memory $memory))
  (alias core export $i "realloc" (core func $realloc))
  (func (export "spin") (canon lift (core func $i "spin")))
  (func (export "trap") (canon lift (core func $i "trap")))
  (func (export "eat") (canon lift (core func $i "eat")))
  (func (export "nothing") (canon lift (core func $i "nothing")))
  (func (export "bytes") (param "n" u32) (result (list u8)) (canon lift (core func $i "bytes") (memory $memory)))
  (func (export "count") (param "values" (list u32)) (result u32)
    (canon lift (core func $i "count") (memory $memory) (realloc $realloc))))"#;

fn caller(pod: &str) -> Origin {
    let caller =
        Caller { node: "n".into(), namespace: "default".into(), pod: pod.into(), ip: None, names: Arc::default() };
    Origin { peer: Peer::Pod(caller), local: std::net::SocketAddr::from(([127, 66, 0, 2], 80)), via: None }
}

pub(super) struct PluginReply {
    pub(super) status: u16,
    reason: String,
    session: Option<String>,
    pub(super) text: String,
}

impl PluginReply {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("{} is no JSON", self.text))
    }
}

async fn ask(server: &PluginServer, from: &str, request: Request<Body>) -> PluginReply {
    let response = Serve::http(server, &caller(from), request)
        .await
        .unwrap_or_else(|refused| machinery_serve::net::http::refusal(&refused));
    let headers = response.headers().clone();
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let (status, reason) = (response.status().as_u16(), header("coracle-reason").unwrap_or_default());
    let session = header("coracle-session");
    PluginReply { status, reason, session, text: text(response).await.unwrap() }
}

pub(super) async fn call(server: &PluginServer, function: &str, arguments: Value) -> PluginReply {
    ask(server, "a", post(&format!("/{function}"), arguments.to_string())).await
}

async fn call_in(server: &PluginServer, session: &str, function: &str, arguments: Value) -> PluginReply {
    let mut request = post(&format!("/coracle:samples/greeter/{function}"), arguments.to_string());
    request.headers_mut().insert("coracle-session", session.parse().unwrap());
    ask(server, "a", request).await
}

async fn greeter(bench: &Bench, change: impl FnOnce(&mut ContainerSpec)) -> (PluginServer, Arc<Log>) {
    let loaded = bench.load_sample("greeter", Metering::Epochs).await;
    assert_eq!(loaded.kind(), Kind::Plugin);
    let (container, log) = bench.container(loaded, change);
    assert_eq!(container.try_instantiate().await, TrialOutcome::Sound);
    (container.serve_plugin().unwrap(), log)
}

async fn unruly(
    bench: &Bench,
    metering: Metering,
    change: impl FnOnce(&mut ContainerSpec),
) -> (PluginServer, Arc<Log>) {
    let loaded = bench.load_text(UNRULY, metering).await.unwrap();
    let (container, log) = bench.container(loaded, change);
    (container.serve_plugin().unwrap(), log)
}

/// Maps, which no toolchain here generates yet: returned as received.
const MAPS: &str = r#"(component
  (core module $m
    (memory (export "memory") 1)
    (global $end (mut i32) (i32.const 1024))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (local.set 0 (i32.and (i32.add (global.get $end) (i32.const 7)) (i32.const -8)))
      (global.set $end (i32.add (local.get 0) (local.get 3)))
      (local.get 0))
    (func (export "same") (param i32 i32) (result i32)
      (i32.store (i32.const 8) (local.get 0)) (i32.store (i32.const 12) (local.get 1)) (i32.const 8)))
  (core instance $i (instantiate $m))
  (alias core export $i "memory" (core memory $memory))
  (alias core export $i "realloc" (core func $realloc))
  (func (export "prices") (param "of" (map string u32)) (result (map string u32))
    (canon lift (core func $i "same") (memory $memory) (realloc $realloc)))
  (func (export "names") (param "of" (map u64 string)) (result (map u64 string))
    (canon lift (core func $i "same") (memory $memory) (realloc $realloc))))"#;

#[tokio::test(flavor = "multi_thread")]
async fn maps_are_objects_or_pairs() {
    let bench = Bench::new();
    let loaded = bench.load_text(MAPS, Metering::Epochs).await.unwrap();
    let (container, _) = bench.container(loaded, |_| {});
    let server = container.serve_plugin().unwrap();
    for (function, of) in [
        ("prices", json!({"tea": 3, "": 0, "milk \"1.5\"": u32::MAX})),
        ("prices", json!({})),
        ("names", json!([[1, "one"], ["9007199254740993", "more"]])),
    ] {
        let answer = call(&server, function, json!({"of": of})).await;
        assert_eq!((answer.status, answer.json()), (200, of));
    }
    let mut wave = post("/prices", r#"([("tea", 3), ("milk", 5)])"#.to_owned());
    wave.headers_mut().insert("content-type", WAVE.parse().unwrap());
    let answer = ask(&server, "a", wave).await;
    assert_eq!((answer.status, answer.text.as_str()), (200, r#"[("tea", 3), ("milk", 5)]"#));
    let listed = ask(&server, "a", get("/")).await.json();
    let of = |at: usize| listed["functions"][at]["result"].clone();
    assert_eq!(of(0)["additionalProperties"]["type"], "integer", "{listed}");
    assert_eq!(of(1)["items"]["prefixItems"][1], json!({"type": "string"}));
    let wit = ask(&server, "a", get("/wit")).await;
    assert!(wit.text.contains("prices: func(of: map<string, u32>) -> map<string, u32>"), "{}", wit.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn functions_are_called_by_name_with_json_and_wave() {
    let bench = Bench::new();
    let (server, log) = greeter(&bench, |_| {}).await;
    let greeted = call(&server, "coracle:samples/greeter/greet", json!({"name": "ada"})).await;
    assert_eq!((greeted.status, greeted.json(), greeted.session), (200, json!("hello ada"), None));
    assert!(log.text().contains("greet ada\n"), "{}", log.text());
    let person = json!({"person": {"name": "ada", "language": "french", "title": null}});
    let card = call(&server, "coracle:samples/greeter/introduce", person).await;
    assert_eq!(card.json(), json!({"text": "bonjour ada", "language": "french", "letters": 10}));
    let wave = |body: &str| {
        let mut request = post("/coracle:samples/greeter/introduce", body.to_owned());
        request.headers_mut().insert("content-type", WAVE.parse().unwrap());
        request
    };
    let card = ask(&server, "a", wave(r#"({name: "ada", language: german, title: "Dr."})"#)).await;
    assert_eq!((card.status, card.text.as_str()), (200, r#"{text: "hallo Dr. ada", language: german, letters: 10}"#));
    let wrong = ask(&server, "a", wave(r#"({name: 1, language: german})"#)).await;
    assert_eq!(
        (wrong.status, wrong.json()),
        (400, json!({"error": "argument \"person\".name: wanted string, found 1"}))
    );
    let wrong = call(&server, "coracle:samples/greeter/greet", json!({"name": 1})).await;
    assert_eq!(
        (wrong.status, wrong.json()),
        (400, json!({"error": "argument \"name\": wanted string, found a number"}))
    );
    let none = call(&server, "coracle:samples/greeter/none", json!({})).await;
    assert_eq!(none.status, 404);
    assert!(none.json()["error"].as_str().unwrap().contains("coracle:samples/greeter/none"), "{}", none.text);
    let got = ask(&server, "a", get("/coracle:samples/greeter/greet")).await;
    assert_eq!(got.status, 405);
    let large = format!("{{\"name\":\"{}\"}}", "a".repeat(5 << 20));
    let large = ask(&server, "a", post("/coracle:samples/greeter/greet", large)).await;
    assert_eq!(large.status, 413);
    // A text of a megabyte works, parsed off the shared threads.
    let name = "é".repeat(500_000);
    let long = call(&server, "coracle:samples/greeter/greet", json!({"name": name})).await;
    assert_eq!((long.status, long.json() == json!(format!("hello {name}"))), (200, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_lists_its_functions() {
    let bench = Bench::new();
    let (server, _) = greeter(&bench, |_| {}).await;
    let listed = ask(&server, "a", get("/")).await.json();
    let names: Vec<&str> =
        listed["functions"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap()).collect();
    for name in ["greet", "introduce", "[constructor]guest-book", "[method]guest-book.sign", "[method]guest-book.names"]
    {
        assert!(names.contains(&format!("coracle:samples/greeter/{name}").as_str()), "{names:?}");
    }
    let greet = listed["functions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|f| f["name"].as_str().unwrap().ends_with("/greet"))
        .unwrap();
    let parameters = json!({
        "type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"], "additionalProperties": false,
    });
    assert_eq!((&greet["parameters"], &greet["result"]), (&parameters, &json!({"type": "string"})));
    let wit = ask(&server, "a", get("/wit")).await.text;
    assert!(wit.contains("greet: func(name: string) -> string;") && wit.contains("resource guest-book"), "{wit}");
    let own = wit.find("package coracle:samples").unwrap();
    assert!(wit.find("package wasi:").is_some_and(|wasi| own < wasi), "{wit}");
    let openapi = ask(&server, "a", get("/openapi.json")).await.json();
    assert_eq!(openapi["openapi"], "3.1.0");
    let path = &openapi["paths"]["/coracle:samples/greeter/introduce"]["post"];
    assert_eq!(path["requestBody"]["required"], true, "{openapi}");
    let schemas = openapi["components"]["schemas"].as_object().unwrap();
    assert!(schemas.contains_key("coracle.samples.greeter.card"), "{schemas:?}");
    for reference in
        openapi.to_string().split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next())
    {
        assert!(schemas.contains_key(reference), "{reference} is defined");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_a_servers_and_affect_no_other_call() {
    let bench = Bench::new();
    let (server, log) = unruly(&bench, Metering::Epochs, |spec| {
        spec.limits.timeout = Duration::from_millis(300);
        spec.limits.memory_bytes = Some(64 << 20);
    })
    .await;
    let fails = async |function: &str, arguments: Value| {
        let answer = call(&server, function, arguments).await;
        (answer.status, answer.reason)
    };
    assert_eq!(fails("trap", json!({})).await, (502, "trap".into()));
    assert!(log.text().contains("unreachable"), "{}", log.text());
    assert_eq!(fails("eat", json!({})).await, (503, "memory".into()));
    assert_eq!(fails("spin", json!({})).await, (504, "timeout".into()));
    assert_eq!(fails("bytes", json!({"n": 1_000_000})).await, (502, "result-too-large".into()));
    let bytes = call(&server, "bytes", json!({"n": 100_000})).await;
    assert_eq!((bytes.status, bytes.text.len()), (200, 2 + 100_000_usize.div_ceil(3) * 4));
    let nothing = ask(&server, "a", post("/nothing", "")).await;
    assert_eq!((nothing.status, nothing.text.as_str()), (200, "null"));
    assert_eq!(call(&server, "count", json!({"values": vec![0; 100_000]})).await.json(), json!(100_000));
    let bomb = ask(&server, "a", post("/count", format!("{{\"values\":[{}0]}}", "0,".repeat(1_900_000)))).await;
    assert_eq!(bomb.status, 400, "{}", bomb.text);
    assert!(bomb.text.contains("argument \\\"values\\\"") && bomb.text.contains("take more than"), "{}", bomb.text);
    for (body, words) in
        [("[".repeat(1 << 20), "expected an object"), (format!("{{\"values\":{}", "[".repeat(1 << 20)), "wanted u32")]
    {
        let bomb = ask(&server, "a", post("/count", body)).await;
        assert!(bomb.status == 400 && bomb.text.contains(words), "{}", bomb.text);
    }
    let figures = server.container().stats();
    assert_eq!((figures.failures.trap, figures.failures.memory, figures.failures.timeout), (1, 1, 1));
    assert_eq!((figures.instances_live, figures.memory_bytes), (0, 0), "nothing is left: {figures:?}");

    let (server, _) = unruly(&bench, Metering::Fuel, |spec| spec.limits.fuel = Some(100_000)).await;
    let spun = call(&server, "spin", json!({})).await;
    assert_eq!((spun.status, spun.reason.as_str()), (503, "fuel"));
    assert_eq!(call(&server, "count", json!({"values": [1]})).await.json(), json!(1));
    assert!(server.container().stats().fuel_used >= 100_000);
    // Arguments that don't fit its memory beside an instance.
    let (server, _) = unruly(&bench, Metering::Epochs, |spec| spec.limits.memory_bytes = Some(5 << 20)).await;
    let large = call(&server, "count", json!({"values": vec![0; 200_000]})).await;
    assert_eq!((large.status, large.reason.as_str()), (503, "memory"));
    assert_eq!(server.container().stats().memory_bytes, 0);
    // Memory held for a call doesn't count as an instance's: an instance that is alone is admitted, and fits or doesn't.
    for (limit, status) in [(1 << 20, 503), (5 << 20, 200)] {
        let (server, _) = unruly(&bench, Metering::Epochs, |spec| spec.limits.memory_bytes = Some(limit)).await;
        let small = call(&server, "count", json!({"values": [1, 2]})).await;
        let reason = if status == 200 { "" } else { "memory" };
        assert_eq!((small.status, small.reason.as_str()), (status, reason), "{limit}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_wait_for_their_turn_and_are_cut_off_when_it_shuts() {
    let bench = Bench::new();
    let (server, _) = unruly(&bench, Metering::Epochs, |spec| {
        spec.limits.concurrency = 1;
        spec.limits.timeout = Duration::from_millis(500);
    })
    .await;
    let other = server.clone();
    let spins = tokio::spawn(async move { call(&other, "spin", json!({})).await });
    while server.in_flight() == 0 {
        tokio::task::yield_now().await;
    }
    // The description needs no instance, and the node's own calls have separate permits.
    assert_eq!(ask(&server, "a", get("/")).await.status, 200);
    let mut probe = post("/nothing", "");
    probe.extensions_mut().insert(NodeCall::default());
    assert_eq!(ask(&server, "a", probe).await.status, 200);
    let waits = call(&server, "nothing", json!({})).await;
    assert!([200, 504].contains(&waits.status), "{}", waits.status);
    assert_eq!(spins.await.unwrap().status, 504);
    let other = server.clone();
    let spins = tokio::spawn(async move { call(&other, "spin", json!({})).await });
    while server.in_flight() == 0 {
        tokio::task::yield_now().await;
    }
    server.shut();
    let spun = spins.await.unwrap();
    assert_eq!((spun.status, spun.reason.as_str()), (503, "stopped"));
    server.drained().await;
    let refused = Serve::http(&server, &caller("a"), get("/")).await;
    assert!(refused.is_err(), "another pod can have it");
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_live_in_their_session() {
    let bench = Bench::new();
    let (server, _) = greeter(&bench, |_| {}).await;
    let made = call(&server, "coracle:samples/greeter/[constructor]guest-book", json!({"title": "ours"})).await;
    let (book, session) = (made.json(), made.session.clone().expect("a session of its own"));
    for (name, entry) in
        [("ada", json!({"ok": 1})), ("", json!({"err": "ours wants a name"})), ("bob", json!({"ok": 2}))]
    {
        let signed = call_in(&server, &session, "guest-book.sign", json!({"self": book, "name": name})).await;
        assert_eq!((signed.status, signed.json(), signed.session), (200, entry, Some(session.clone())));
    }
    let names = call_in(&server, &session, "guest-book.names", json!({"self": book})).await;
    assert_eq!(names.json(), json!(["ada", "bob"]));
    // Not usable elsewhere: not in another session, without one, or under another name.
    for (session, function, book) in
        [("mine", "guest-book.names", &book), (&session, "guest-book.names", &json!("guest-book-9"))]
    {
        let wrong = call_in(&server, session, function, json!({"self": book})).await;
        assert!(wrong.status == 400 && wrong.text.contains("wanted a guest-book of this session"), "{}", wrong.text);
    }
    let without = call(&server, "coracle:samples/greeter/guest-book.names", json!({"self": book})).await;
    assert_eq!((without.status, without.session), (400, None));
    assert_eq!(server.container().stats().instances_live, 1, "one session lives, with one instance");
    // A name chosen by the client.
    let other = call_in(&server, "mine", "guest-book", json!({"title": "mine"})).await;
    assert_eq!((other.status, other.session.as_deref()), (200, Some("mine")));
    assert_eq!(call_in(&server, "mine", "greet", json!({"name": "x"})).await.json(), json!("hello x"));
    assert_eq!(call_in(&server, "b c", "greet", json!({"name": "x"})).await.status, 400);
    // It gives no other client access.
    let mut request = post("/coracle:samples/greeter/guest-book.names", json!({"self": other.json()}).to_string());
    request.headers_mut().insert("coracle-session", "mine".parse().unwrap());
    let stranger = ask(&server, "stranger", request).await;
    assert!(
        stranger.status == 400 && stranger.text.contains("wanted a guest-book of this session"),
        "{}",
        stranger.text
    );
    // The number of resources is bounded.
    let mut last = 200;
    for _ in 0..2000 {
        last = call_in(&server, "many", "guest-book", json!({"title": "x"})).await.status;
        if last != 200 {
            break;
        }
    }
    assert_eq!(last, 502);
    server.shut();
    assert_eq!(server.container().stats().instances_live, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_shared_among_clients_and_end_with_their_calls() {
    let bench = Bench::new();
    let (server, _) = unruly(&bench, Metering::Epochs, |spec| spec.limits.timeout = Duration::from_millis(300)).await;
    let visit = async |from: &str, session: &str, function: &str| {
        let mut request = post(&format!("/{function}"), "");
        request.headers_mut().insert("coracle-session", session.parse().unwrap());
        let answer = ask(&server, from, request).await;
        (answer.status, answer.reason)
    };
    let mut taken = 0;
    while visit("hog", &format!("h{taken}"), "nothing").await.0 == 200 {
        taken += 1;
        assert!(taken < 1000, "sessions have a number");
    }
    assert_eq!(visit("hog", "one-more", "nothing").await, (503, "sessions".into()));
    assert_eq!(visit("other", "o1", "nothing").await.0, 200, "the next client finds some");
    assert_eq!(visit("hog", "h0", "nothing").await.0, 200);
    let live = server.container().stats().instances_live;
    assert_eq!(live, taken + 1);
    assert_eq!(visit("hog", "h0", "trap").await, (502, "trap".into()));
    assert_eq!(visit("hog", "h1", "spin").await, (504, "timeout".into()));
    assert_eq!(server.container().stats().instances_live, live - 2, "a failed call ends its session");
    assert_eq!(visit("hog", "h0", "nothing").await.0, 200, "its name is free");
}

struct Settings(Mutex<String>);

impl runtime_api::ConfigValues for Settings {
    fn get(&self, key: &str) -> Option<String> {
        (key == "colour").then(|| self.0.lock().unwrap().clone())
    }

    fn all(&self) -> Vec<(String, String)> {
        vec![("colour".into(), self.0.lock().unwrap().clone())]
    }
}

/// Forwards the result of `wasi:config/store`.
const CONFIGURED: &str = r#"(component
  (import "wasi:config/store@0.2.0-rc.1" (instance $store
    (type $error-type (variant (case "upstream" string) (case "io" string)))
    (export "error" (type $error (eq $error-type)))
    (export "get" (func (param "key" string) (result (result (option string) (error $error)))))))
  (core module $memory
    (memory (export "memory") 1)
    (global $end (mut i32) (i32.const 1024))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (local.set 0 (i32.and (i32.add (global.get $end) (i32.const 7)) (i32.const -8)))
      (global.set $end (i32.add (local.get 0) (local.get 3)))
      (local.get 0)))
  (core instance $m (instantiate $memory))
  (alias core export $m "memory" (core memory $mem))
  (alias core export $m "realloc" (core func $realloc))
  (core func $get (canon lower (func $store "get") (memory $mem) (realloc $realloc)))
  (core module $main
    (import "s" "get" (func $get (param i32 i32 i32)))
    (import "m" "memory" (memory 1))
    (func (export "value") (param i32 i32) (result i32)
      (call $get (local.get 0) (local.get 1) (i32.const 16))
      ;; The option within the result, which is ok.
      (i32.const 20)))
  (core instance $i (instantiate $main
    (with "m" (instance $m)) (with "s" (instance (export "get" (func $get))))))
  (func (export "value") (param "key" string) (result (option string))
    (canon lift (core func $i "value") (memory $mem) (realloc $realloc))))"#;

#[tokio::test(flavor = "multi_thread")]
async fn granted_settings_are_read_at_each_call() {
    let bench = Bench::new();
    let loaded = bench.load_text(CONFIGURED, Metering::Epochs).await.unwrap();
    let error = bench.engine.container(loaded.clone(), bench.spec()).unwrap_err().to_string();
    assert!(error.contains("is not granted") && error.contains("\"config\""), "{error}");
    let settings = Arc::new(Settings(Mutex::new("red".into())));
    let (container, _) = bench.container(loaded, |spec| {
        spec.grants = runtime_api::Grants::parse("config", &crate::host::optional()).unwrap();
        spec.config = Some(settings.clone());
    });
    let server = container.serve_plugin().unwrap();
    assert_eq!(call(&server, "value", json!({"key": "colour"})).await.json(), json!("red"));
    *settings.0.lock().unwrap() = "blue".into();
    assert_eq!(call(&server, "value", json!({"key": "colour"})).await.json(), json!("blue"));
    assert_eq!(call(&server, "value", json!({"key": "size"})).await.json(), json!(null));
}

#[tokio::test(flavor = "multi_thread")]
async fn non_plugins_have_a_reason() {
    let bench = Bench::new();
    let error = bench.load_text("(component)", Metering::Epochs).await.unwrap_err().to_string();
    assert!(error.contains("exports nothing"), "{error}");
    let no_function = r#"(component (instance $e) (export "acme:empty/none" (instance $e)))"#;
    let error = bench.load_text(no_function, Metering::Epochs).await.unwrap_err().to_string();
    assert_eq!(error, "the component is a plugin, and it exports no function");
    let depth = 70;
    let types: String = (0..depth).map(|n| format!("(type $t{} (option $t{n}))", n + 1)).collect();
    let deep = format!(
        r#"(component (type $t0 (option u8)) {types}
          (core module $m (memory (export "m") 1) (func (export "f") (result i32) (i32.const 0)))
          (core instance $i (instantiate $m)) (alias core export $i "m" (core memory $memory))
          (func (export "f") (result $t{depth}) (canon lift (core func $i "f") (memory $memory))))"#
    );
    let error = bench.load_text(&deep, Metering::Epochs).await.unwrap_err().to_string();
    assert!(error.contains("nested more than 64 deep"), "{error}");
    // A plugin's description is cached beside its code; without it the module is recompiled.
    let bench = Bench::with_own_cache();
    drop(bench.load_text(UNRULY, Metering::Epochs).await.unwrap());
    let kept: Vec<_> =
        std::fs::read_dir(bench.dir.path().join("compiled")).unwrap().map(|f| f.unwrap().path()).collect();
    let description = kept.iter().find(|path| path.extension().is_some_and(|e| e == "plugin")).expect("a description");
    for damage in [Some("{"), None] {
        match damage {
            Some(text) => std::fs::write(description, text).unwrap(),
            None => std::fs::remove_file(description).unwrap(),
        }
        let loaded = bench.load_text(UNRULY, Metering::Epochs).await.unwrap();
        assert_eq!(loaded.kind(), Kind::Plugin);
    }
    assert!(bench.engine.sweep(&|_| false).unwrap() > 0);
    assert_eq!(std::fs::read_dir(bench.dir.path().join("compiled")).unwrap().count(), 0, "it goes with its code");
}

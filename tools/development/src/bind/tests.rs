//! Golden clients of a WIT with every type, precise errors, and a fuzz target of WIT text.

use bolero::check;

use super::model::{self, Model};
use super::sources::{Sources, WIT_BYTES_MAX, WitFile};
use super::{javascript, python, rust};

#[rustfmt::skip]
#[allow(unreachable_pub, clippy::pedantic, reason = "a client is a file of another crate")]
#[path = "golden/client_rs.txt"]
mod golden;

const TYPES: &str = include_str!("golden/types.wit");

fn read(text: &str, world: Option<&str>) -> Result<Model, String> {
    model::read(&Sources::text("the WIT", text), world)
}

/// Whether a client is the golden one. A new text is left in a file, for a look at the difference.
fn is_golden(name: &str, wanted: &str, found: &str) -> bool {
    if wanted != found {
        std::fs::write(std::env::temp_dir().join(format!("coracle-bind-{name}")), found).unwrap();
    }
    wanted == found
}

#[test]
fn clients_are_the_golden_ones() {
    let model = read(TYPES, None).unwrap();
    let python = is_golden("client.py", include_str!("golden/client.py"), &python::generate(&model, "types.wit"));
    let js = is_golden("client.mjs", include_str!("golden/client.mjs"), &javascript::generate(&model, "types.wit"));
    let rust = rust::generate(&model, "types.wit").unwrap();
    let rust = is_golden("client_rs.txt", include_str!("golden/client_rs.txt"), &rust);
    assert!(
        python && js && rust,
        "src/cmd/bind/golden/ differs from {}/coracle-bind-client.*",
        std::env::temp_dir().display()
    );
}

#[test]
fn functions_have_the_names_of_calls() {
    let model = read(TYPES, Some("all")).unwrap();
    let functions = model.interfaces.iter().flat_map(|interface| &interface.functions);
    let paths: Vec<&str> = functions.map(|function| function.path.as_str()).collect();
    for path in [
        "ping",
        "example:all/kinds@1.2.0/echo",
        "example:all/kinds@1.2.0/[constructor]counter",
        "example:all/kinds@1.2.0/[method]counter.add",
        "example:all/kinds@1.2.0/[static]counter.merge",
    ] {
        assert!(paths.contains(&path), "{path}: {paths:?}");
    }
}

#[test]
fn errors_are_precise() {
    let world = |text: &str| format!("package a:b;\nworld w {{ {text} }}");
    let deep = |open: &str, close: &str, levels: usize| format!("{}u8{}", open.repeat(levels), close.repeat(levels));
    let doubling: String = (1..40).map(|n| format!("type t{n} = tuple<t{}, t{}>;\n", n - 1, n - 1)).collect();
    let aliases: String = (1..9000).map(|n| format!("type t{n} = t{};\n", n - 1)).collect();
    for (text, why) in [
        (String::new(), ""),
        ("package a:b; world w { export f: func(".to_owned(), "expected"),
        (world(""), "no world that exports functions"),
        (world("import f: func();"), "no world that exports functions"),
        ("package a:b; world v { export f: func(); } world w { export f: func(); }".to_owned(), "with --world"),
        (world(&format!("export f: func(a: {});", deep("list<", ">", 100))), "nested more than 64 deep"),
        (world(&format!("type t0 = u8; {doubling} export f: func(a: t39);")), "more than 100000 parts"),
        (world(&format!("type t0 = u8; {aliases} export f: func(a: t8999);")), "nested more than 64 deep"),
        (" ".repeat(WIT_BYTES_MAX + 1), "at most 524288"),
    ] {
        let shown: String = text.chars().take(80).collect();
        let error = read(&text, None).expect_err(&shown);
        assert!(error.contains(why), "{shown}: {error}");
    }
    assert!(read(TYPES, Some("none")).unwrap_err().contains("it has all"));
}

#[test]
fn dependencies_may_be_in_any_order() {
    let package = |text: &str| vec![WitFile { name: "x.wit".to_owned(), text: text.to_owned() }];
    let mut sources = Sources::text("main.wit", "package a:b; world w { import c:d/i; export f: func(); }");
    assert!(model::read(&sources, None).unwrap_err().contains("c:d"));
    sources.dependencies = vec![
        package("package c:d; interface i { use e:f/t.{number}; get: func() -> number; }"),
        package("package e:f; interface t { type number = u8; }"),
    ];
    assert_eq!(model::read(&sources, None).unwrap().interfaces.len(), 1);
    sources.dependencies.push(package("package c:d; interface"));
    assert!(model::read(&sources, None).unwrap_err().contains("x.wit:1"));
}

/// Tokens of WIT, so that random input passes the first character.
const PIECES: [&str; 40] = [
    "package a:b;\n",
    "world w {\n",
    "interface i {\n",
    "}\n",
    "export f: func(",
    ") -> ",
    ");\n",
    ";\n",
    "export i;\n",
    "record r {",
    "variant v {",
    "enum e {",
    "flags g {",
    "resource s {",
    "constructor(",
    "static func(",
    "m: func(",
    "list<",
    "option<",
    "result<",
    "tuple<",
    "map<",
    ">",
    ",",
    "a: ",
    "b: ",
    "u8",
    "u64",
    "string",
    "char",
    "r",
    "v",
    "s",
    "borrow<s>",
    "_",
    "type t = ",
    "t",
    "%type",
    "/// docs */ \"\"\" \\\n",
    "use i.{r};\n",
];

#[test]
fn no_text_makes_a_generator_panic() {
    check!().for_each(|bytes| {
        let piece = |byte: &u8| {
            PIECES.get(usize::from(*byte)).map_or_else(|| char::from(*byte).to_string(), |piece| (*piece).to_owned())
        };
        let text: String = bytes.iter().map(piece).collect();
        if let Ok(model) = read(&text, None) {
            assert!(python::generate(&model, "x.wit").contains("class ") && !model.interfaces.is_empty());
            assert!(javascript::generate(&model, "x.wit").contains("extends Client"));
            assert!(
                rust::generate(&model, "x.wit")
                    .map_or_else(|why| why.contains("tuple"), |client| client.contains("Client(Remote)"))
            );
        }
    });
}

/// Returns the arguments as a list, or a resource.
struct Echo;

impl golden::Transport for Echo {
    fn post(&self, path: &str, session: Option<&str>, body: &[u8]) -> std::io::Result<golden::Response> {
        let arguments: serde_json::Value = serde_json::from_slice(body).unwrap();
        let values: Vec<&serde_json::Value> = ["class", "shape", "color", "access"].map(|name| &arguments[name]).into();
        let body = match path.rsplit('/').next().unwrap() {
            "echo" => serde_json::json!(values),
            "bytes" => arguments["a"].clone(),
            "%5Bconstructor%5Dcounter" => "counter-1".into(),
            "%5Bmethod%5Dcounter.add" if session == Some("s1") && arguments["self"] == "counter-1" => {
                serde_json::json!({ "ok": u64::MAX.to_string() })
            }
            "%5Bstatic%5Dcounter.merge" => "counter-2".into(),
            "area" => "-inf".into(),
            _ => {
                return Ok(golden::Response {
                    status: 503,
                    reason: Some("trap".to_owned()),
                    ..golden::Response::default()
                });
            }
        };
        let session = path.contains("constructor").then(|| "s1".to_owned());
        Ok(golden::Response { status: 200, session, reason: None, body: body.to_string().into_bytes() })
    }
}

#[test]
fn the_client_in_rust_carries_each_type() {
    use golden::{Access, AllClient, CallError, Class, Color, KindsClient, MoreClient, MoreShape, Point, Shape};
    let client = KindsClient::new(Echo);
    let class = Class { type_: "t".to_owned(), self_: None, maybe: Some(None), from: (-1, 2, 3, u64::MAX) };
    let access = Access { read: false, write_all: true };
    for shape in [Shape::Circle(Point { x: f64::INFINITY, y: 1.5 }), Shape::Nothing, Shape::Named("n".to_owned())] {
        let found = client.echo(&class, &shape, &Color::DarkGreen, &access).unwrap();
        assert_eq!(found, (class.clone(), shape, Color::DarkGreen, access));
    }
    for length in 0..5 {
        let bytes: Vec<u8> = (250..).take(length).collect();
        let pairs = vec![(Point { x: 1.0, y: 2.0 }, 'c')];
        let found = client.bytes(&bytes, &pairs, &[("a".to_owned(), 1)].into(), &[(u64::MAX, vec![])].into()).unwrap();
        assert_eq!(found, bytes);
    }
    let counter = client.counter(1).unwrap();
    assert_eq!(counter.add(i64::MIN).unwrap(), Ok(u64::MAX));
    client.counter_merge(&counter, &counter).unwrap();
    let other = KindsClient::new(Echo).with_session("s2").counter_merge(&counter, &counter);
    assert!(matches!(other, Err(CallError::Sessions)), "{other:?}");
    assert_eq!(MoreClient::new(Echo).area(&MoreShape { corners: vec![] }).unwrap(), f64::NEG_INFINITY);
    let failed = AllClient::new(Echo).ping("x").unwrap_err();
    assert!(
        matches!(&failed, CallError::Status { status: 503, reason: Some(reason), .. } if reason == "trap"),
        "{failed}"
    );
}

#[test]
fn the_client_in_rust_speaks_http() {
    use std::io::{Read as _, Write as _};

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/base/", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        for response in [
            "transfer-encoding: chunked\r\n\r\n3\r\n\"he\r\n4\r\nllo\"\r\n0\r\n\r\n",
            "content-length: 7\r\n\r\n\"hello\"",
            "content-length: 70\r\n\r\n\"hello\"",
        ] {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"{\"text\":\"x\"}") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            assert!(request.starts_with(b"POST /base/ping HTTP/1.1\r\n"));
            write!(stream, "HTTP/1.1 200 OK\r\n{response}").unwrap();
        }
    });
    let client = golden::AllClient::new(golden::Http::new(&url).unwrap());
    assert_eq!((client.ping("x").unwrap(), client.ping("x").unwrap()), ("hello".to_owned(), "hello".to_owned()));
    assert!(matches!(client.ping("x"), Err(golden::CallError::Transport(_))));
    server.join().unwrap();
    assert!(golden::Http::new("https://a").is_err() && golden::Http::new("http://a b").is_err());
}

//! Tests against a server that responds like a plugin. `tests/e2e/clients.sh` tests the real one.

use std::convert::Infallible;
use std::net::SocketAddr;

use http::{Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;

/// Serves responses by the last part of the path, until the test ends.
async fn plugin() -> Plugin {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let serving = hyper::server::conn::http1::Builder::new();
            tokio::spawn(serving.serve_connection(TokioIo::new(stream), service_fn(answer)));
        }
    });
    Plugin::at(&format!("http://{address}/base/")).unwrap()
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let session = request.headers().get(SESSION).cloned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let (status, reason, text) = match path.strip_prefix("/base/").unwrap() {
        "" => (200, "", json!({"functions": [{"name": "f", "parameters": {}, "result": {}}]}).to_string()),
        "echo" => {
            let session = session.as_ref().map(|session| session.to_str().unwrap());
            (200, "", json!([String::from_utf8_lossy(&body), session]).to_string())
        }
        "a:b/c/%5Bmethod%5Dbook.sign" => (200, "", json!({"err": "full"}).to_string()),
        "wrong" => (400, "", json!({"error": "argument \"name\": wanted string, found a number"}).to_string()),
        "large" => (413, "", json!({"error": "too large"}).to_string()),
        "trap" => (502, "trap", String::new()),
        "strange" => (503, "weather", String::new()),
        "slow" => std::future::pending().await,
        "long" => (200, "", format!("\"{}\"", "x".repeat(ANSWER_BYTES_MAX))),
        "html" => (403, "", "<p>no</p>".into()),
        _ => (404, "", json!({"error": "no such function"}).to_string()),
    };
    let name = session.unwrap_or(HeaderValue::from_static("given"));
    let response = Response::builder().status(StatusCode::from_u16(status).unwrap()).header(SESSION, name);
    let response = if reason.is_empty() { response } else { response.header(REASON, reason) };
    Ok(response.body(Full::from(text)).unwrap())
}

#[tokio::test]
async fn values_go_and_come_typed() {
    let plugin = plugin().await;
    let sent: (String, Option<String>) = plugin.call("echo", &json!({"n": 1})).await.unwrap();
    assert_eq!(sent, ("{\"n\":1}".into(), None));
    let sent: (String, Option<String>) = plugin.call("echo", &()).await.unwrap();
    assert_eq!(sent, (String::new(), None));
    assert!(matches!(plugin.call::<u32>("echo", &()).await, Err(CallError::Answer(_))));
    let signed: Outcome<u32, String> = plugin.call("a:b/c/[method]book.sign", &()).await.unwrap();
    assert_eq!(Result::from(signed), Err::<u32, _>("full".to_owned()));
    assert_eq!(plugin.functions().await.unwrap()[0].name, "f");
}

#[tokio::test]
async fn errors_name_the_side_that_failed() {
    let plugin = plugin().await;
    let call = async |function: &str| plugin.call::<Value>(function, &()).await.unwrap_err();
    let CallError::Arguments(text) = call("wrong").await else { panic!("another error") };
    assert_eq!(text, "argument \"name\": wanted string, found a number");
    assert!(matches!(call("large").await, CallError::Arguments(_)));
    assert!(matches!(call("none").await, CallError::NoFunction(text) if text == "no such function"));
    assert!(matches!(call("trap").await, CallError::Failed { reason: Reason::Trap, .. }));
    assert!(
        matches!(call("strange").await, CallError::Failed { reason: Reason::Other(name), .. } if name == "weather")
    );
    assert!(matches!(call("html").await, CallError::Refused { status: StatusCode::FORBIDDEN, .. }));
    assert!(matches!(call("long").await, CallError::Broken(_)));
    assert!(matches!(call("a b\nc").await, CallError::NoFunction(_)));
    let hasty = plugin.clone().with_timeout(Duration::from_millis(20));
    assert!(matches!(hasty.call::<Value>("slow", &()).await, Err(CallError::Timeout(_))));
    let absent = Plugin::at("http://127.0.0.1:1").unwrap();
    assert!(matches!(absent.call::<Value>("f", &()).await, Err(CallError::NoAnswer(_))));
    for wrong in ["https://a", "a", "/a", "http://a?b", ""] {
        assert!(matches!(Plugin::at(wrong), Err(CallError::Address(_))), "{wrong}");
    }
}

#[tokio::test]
async fn a_session_keeps_the_name_that_it_was_given() {
    let plugin = plugin().await;
    let (given, own) = (plugin.session(), plugin.session().named("ours"));
    for session in [&given, &own] {
        let _: Value = session.call("a:b/c/[method]book.sign", &()).await.unwrap();
    }
    assert_eq!((given.name().as_deref(), own.name().as_deref()), (Some("given"), Some("ours")));
}

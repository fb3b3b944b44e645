//! Upstream v1.36.3's responses to unusual requests, replayed here: `answers.jsonl` beside this file. A line is a
//! request and the relevant parts of its response: the code, for a failure reason, message and causes, the warnings if
//! any, and what the object `shows` at some paths.

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Request;
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Server, admin, server};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    method: String,
    path: String,
    #[serde(default)]
    headers: Vec<(String, String)>,
    #[serde(default)]
    body: String,
    /// The body if it is no text.
    #[serde(default)]
    base64: String,
    code: u16,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    causes: Vec<Value>,
    #[serde(default)]
    warnings: Vec<String>,
    /// JSON pointers and their values; null: absent.
    #[serde(default)]
    shows: Map<String, Value>,
}

impl Server {
    async fn answer(&self, line: &Line) -> (u16, Vec<String>, Value) {
        let body = match line.base64.as_str() {
            "" => line.body.clone().into_bytes(),
            base64 => STANDARD.decode(base64).unwrap(),
        };
        let mut request = Request::builder().method(&*line.method).uri(&*line.path);
        for (name, value) in &line.headers {
            request = request.header(name, value);
        }
        let mut request = request.body(if body.is_empty() { Body::empty() } else { Body::from(body) }).unwrap();
        request.extensions_mut().insert(admin());
        let response = self.send(request).await;
        let code = response.status().as_u16();
        let warnings = response.headers().get_all("warning").iter().map(|w| w.to_str().unwrap().to_owned()).collect();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let text = || Value::String(String::from_utf8_lossy(&bytes).into_owned());
        (code, warnings, serde_json::from_slice(&bytes).unwrap_or_else(|_| text()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_requests_are_answered_as_upstream_answers_them() {
    let server = server().await;
    let mut wrong = Vec::new();
    for text in include_str!("answers.jsonl").lines() {
        let line: Line = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let (code, warnings, answer) = server.answer(&line).await;
        let mut differs = Vec::new();
        let mut compare = |what: &str, wanted: &Value, found: &Value| {
            if wanted != found {
                differs.push(format!("  {what}: wanted {wanted}, got {found}"));
            }
        };
        compare("code", &line.code.into(), &code.into());
        if line.code >= 400 {
            compare("reason", &line.reason.clone().into(), answer.get("reason").unwrap_or(&"".into()));
            compare("message", &line.message.clone().into(), answer.get("message").unwrap_or(&answer));
            let causes = answer.pointer("/details/causes").cloned().unwrap_or_else(|| Vec::<Value>::new().into());
            compare("causes", &line.causes.clone().into(), &causes);
        }
        compare("warnings", &line.warnings.clone().into(), &warnings.into());
        for (pointer, wanted) in &line.shows {
            compare(pointer, wanted, answer.pointer(pointer).unwrap_or(&Value::Null));
        }
        if !differs.is_empty() {
            wrong.push(format!("{} {} {}\n{}", line.method, line.path, line.body, differs.join("\n")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

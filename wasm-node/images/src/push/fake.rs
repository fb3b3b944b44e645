//! A registry for tests on loopback: it follows the distribution specification unless a test's script overrides a
//! response, and records each request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use http::{HeaderMap, Method, StatusCode, Uri, header};
use machinery_env::Env;
use oci_registry::blobs::digest;

use super::client::PushClient;
use crate::keyring::Credential;
use crate::registries::{Endpoint, Registries};
use crate::remote::RegistryClients;

/// A recorded request.
#[derive(Debug, Clone)]
pub(super) struct RecordedRequest {
    pub(super) method: Method,
    /// The path with its query.
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    /// The number of earlier requests with this method.
    pub(super) before: usize,
}

impl RecordedRequest {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// The handling of a request.
pub(super) enum Reply {
    /// By the specification.
    Ordinary,
    /// This response, without any effect.
    Answer(Response),
    /// By the specification, with these headers in the response.
    With(Vec<(&'static str, String)>),
    /// The request is processed, but no response is sent.
    Lost,
    /// The body isn't read, and no response is sent.
    Hang,
    /// This many bytes of the body are kept, and the request fails with this status.
    Cut(usize, u16),
}

pub(super) fn answer(status: u16, headers: &[(&'static str, &str)], body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        response.headers_mut().insert(*name, value.parse().unwrap());
    }
    response
}

pub(super) fn status(status: u16) -> Reply {
    Reply::Answer(answer(status, &[], ""))
}

type Script = Box<dyn Fn(&RecordedRequest) -> Reply + Send + Sync>;

/// The registry.
pub(super) struct FakeRegistry {
    pub(super) address: String,
    script: Script,
    pub(super) seen: Mutex<Vec<RecordedRequest>>,
    pub(super) blobs: Mutex<BTreeMap<String, Bytes>>,
    pub(super) manifests: Mutex<BTreeMap<String, Bytes>>,
    /// The content of the one upload.
    upload: Mutex<Vec<u8>>,
}

impl FakeRegistry {
    pub(super) async fn start(script: impl Fn(&RecordedRequest) -> Reply + Send + Sync + 'static) -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let fake = Arc::new(Self {
            address,
            script: Box::new(script),
            seen: Mutex::default(),
            blobs: Mutex::default(),
            manifests: Mutex::default(),
            upload: Mutex::default(),
        });
        let router = axum::Router::new().fallback(serve).with_state(fake.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        fake
    }

    /// Creates a client of the repository `app`, on a node whose file names this registry and the others. Chunks have 4
    /// bytes; single-request uploads have at most 8.
    pub(super) fn client(&self, others: &[&Self]) -> PushClient {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("registries.yaml");
        let named = |fake: &Self| format!("\"http://{}\"", fake.address);
        let named: Vec<String> = others.iter().map(|fake| named(fake)).chain([named(self)]).collect();
        std::fs::write(&file, format!("mirrors: {{registry.test: {{endpoint: [{}]}}}}", named.join(", "))).unwrap();
        let remote = Arc::new(RegistryClients::for_uploads(&Env::real(), Registries::read(&file).unwrap(), Vec::new()));
        let endpoint = Endpoint::built_in(self.address.clone(), false);
        let credential = Credential { username: "u".into(), password: PASSWORD.into() };
        let mut client = PushClient::at(&remote, &endpoint, ("registry.test", "app"), Some(credential)).unwrap();
        client.bounds.whole_bytes_max = 8;
        client.bounds.chunk_bytes = 4;
        client.bounds.retry_waits = [std::time::Duration::from_millis(1); 2];
        client
    }

    /// Returns methods and paths of the requests of one method, or all.
    pub(super) fn requests(&self, method: Option<Method>) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        let seen = seen.iter().filter(|seen| method.as_ref().is_none_or(|method| *method == seen.method));
        seen.map(|seen| format!("{} {}", seen.method, seen.path)).collect()
    }

    /// Returns one header of each request of a method.
    pub(super) fn headers(&self, method: &Method, name: &str) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|seen| seen.method == *method).map(|seen| seen.header(name).to_owned()).collect()
    }

    fn ordinary(&self, seen: &RecordedRequest, body: &Bytes) -> Response {
        let uri: Uri = seen.path.parse().unwrap();
        let last = uri.path().rsplit('/').next().unwrap().to_owned();
        let uploads = format!("/v2/app/blobs/uploads/1?round={}", seen.before);
        let range = |bytes: usize| format!("0-{}", bytes.saturating_sub(1));
        let mut upload = self.upload.lock().unwrap();
        match seen.method {
            Method::HEAD if uri.path().contains("/manifests/") => match self.manifests.lock().unwrap().get(&last) {
                Some(bytes) => answer(200, &[("docker-content-digest", &digest(bytes))], ""),
                None => answer(404, &[], ""),
            },
            Method::HEAD if self.blobs.lock().unwrap().contains_key(&last) => answer(200, &[], ""),
            Method::HEAD => answer(404, &[], ""),
            Method::POST => {
                upload.clear();
                answer(202, &[("location", &uploads), ("range", "0-0")], "")
            }
            Method::GET => answer(204, &[("location", &uploads), ("range", &range(upload.len()))], ""),
            Method::PATCH => {
                let start =
                    seen.header("content-range").split_once('-').map(|(start, _)| start.parse::<usize>().unwrap());
                if start != Some(upload.len()) {
                    return answer(416, &[("location", &uploads), ("range", &range(upload.len()))], "");
                }
                upload.extend_from_slice(body);
                answer(202, &[("location", &uploads), ("range", &range(upload.len()))], "")
            }
            Method::PUT if uri.path().contains("/manifests/") => {
                self.manifests.lock().unwrap().insert(last, body.clone());
                answer(201, &[("docker-content-digest", &digest(body))], "")
            }
            Method::PUT => {
                upload.extend_from_slice(body);
                let actual = digest(&upload);
                if !uri.query().unwrap().contains(&format!("digest={}", actual.replace(':', "%3A"))) {
                    return answer(400, &[], r#"{"errors":[{"code":"DIGEST_INVALID"}]}"#);
                }
                self.blobs.lock().unwrap().insert(actual.clone(), std::mem::take(&mut *upload).into());
                answer(201, &[("docker-content-digest", &actual)], "")
            }
            Method::DELETE => answer(202, &[], ""),
            _ => answer(405, &[], ""),
        }
    }
}

async fn serve(State(fake): State<Arc<FakeRegistry>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().unwrap().as_str().to_owned();
    let seen = {
        let mut all = fake.seen.lock().unwrap();
        let before = all.iter().filter(|seen| seen.method == parts.method).count();
        all.push(RecordedRequest { method: parts.method, path, headers: parts.headers, before });
        all.last().unwrap().clone()
    };
    let reply = (fake.script)(&seen);
    if matches!(reply, Reply::Hang) {
        return std::future::pending().await;
    }
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    if let Some(length) = seen.headers.get(header::CONTENT_LENGTH) {
        assert_eq!(length.to_str().unwrap(), body.len().to_string());
    }
    match reply {
        Reply::Answer(response) => response,
        Reply::Cut(kept, status) => {
            fake.ordinary(&seen, &body.slice(..kept.min(body.len())));
            answer(status, &[], "")
        }
        Reply::Lost => {
            fake.ordinary(&seen, &body);
            std::future::pending().await
        }
        Reply::With(headers) => {
            let mut response = fake.ordinary(&seen, &body);
            for (name, value) in headers {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            response
        }
        Reply::Ordinary | Reply::Hang => fake.ordinary(&seen, &body),
    }
}

pub(super) const PASSWORD: &str = "hush-hush-hush";
/// `u:hush-hush-hush`.
pub(super) const BASIC: &str = "Basic dTpodXNoLWh1c2gtaHVzaA==";

//! A registry for tests, on loopback: it does what the distribution specification says, but where a test's script says otherwise,
//! and remembers each request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use http::{HeaderMap, Method, StatusCode, Uri, header};
use oci_registry::blobs::digest;

use super::client::PushClient;
use crate::image::keyring::Credential;
use crate::image::registries::{Endpoint, Registries};
use crate::image::remote::Remote;

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) method: Method,
    /// With its query.
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    /// How often this method came before.
    pub(super) before: usize,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// What becomes of a request.
pub(super) enum Reply {
    /// As the specification says.
    Ordinary,
    /// This, and nothing is done.
    Answer(Response),
    /// As the specification says, with these headers in the answer.
    With(Vec<(&'static str, String)>),
    /// It is done, and no answer comes.
    Lost,
    /// Nothing of its body is read, and no answer comes.
    Hang,
    /// So many bytes of its body are kept, and it fails with this status.
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

type Script = Box<dyn Fn(&Seen) -> Reply + Send + Sync>;

/// The registry.
pub(super) struct Fake {
    pub(super) address: String,
    script: Script,
    pub(super) seen: Mutex<Vec<Seen>>,
    pub(super) blobs: Mutex<BTreeMap<String, Bytes>>,
    pub(super) manifests: Mutex<BTreeMap<String, Bytes>>,
    /// What came of the one upload.
    upload: Mutex<Vec<u8>>,
}

impl Fake {
    pub(super) async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Arc<Self> {
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

    /// A client of its repository `app`, on a node whose file names it and the others; chunks have 4 bytes, and what goes in one
    /// request 8.
    pub(super) fn client(&self, others: &[&Self]) -> PushClient {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("registries.yaml");
        let named = |fake: &Self| format!("\"http://{}\"", fake.address);
        let named: Vec<String> = others.iter().map(|fake| named(fake)).chain([named(self)]).collect();
        std::fs::write(&file, format!("mirrors: {{registry.test: {{endpoint: [{}]}}}}", named.join(", "))).unwrap();
        let remote = Arc::new(Remote::for_uploads(Registries::read(&file).unwrap(), None));
        let endpoint = Endpoint::built_in(self.address.clone(), false);
        let credential = Credential { username: "u".into(), password: PASSWORD.into() };
        let mut client = PushClient::at(&remote, &endpoint, ("registry.test", "app"), Some(credential)).unwrap();
        client.bounds.whole_bytes_max = 8;
        client.bounds.chunk_bytes = 4;
        client.bounds.waits = [std::time::Duration::from_millis(1); 2];
        client
    }

    /// Methods and paths of what came, of one method or all.
    pub(super) fn asked(&self, method: Option<Method>) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        let seen = seen.iter().filter(|seen| method.as_ref().is_none_or(|method| *method == seen.method));
        seen.map(|seen| format!("{} {}", seen.method, seen.path)).collect()
    }

    /// One header of each request of a method.
    pub(super) fn headers(&self, method: &Method, name: &str) -> Vec<String> {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|seen| seen.method == *method).map(|seen| seen.header(name).to_owned()).collect()
    }

    fn ordinary(&self, seen: &Seen, body: &Bytes) -> Response {
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

async fn serve(State(fake): State<Arc<Fake>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().unwrap().as_str().to_owned();
    let seen = {
        let mut all = fake.seen.lock().unwrap();
        let before = all.iter().filter(|seen| seen.method == parts.method).count();
        all.push(Seen { method: parts.method, path, headers: parts.headers, before });
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

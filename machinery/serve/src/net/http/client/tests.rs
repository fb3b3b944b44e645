//! Requests to servers of bytes, and their streams.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::Full;
use machinery_env::Env;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::*;
use crate::net::Peer;
use crate::net::http::serve;

/// What a server of bytes does with a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    /// Serves HTTP, and echoes bodies; a request to `/early` is answered before its body is read.
    Http,
    /// Writes it, and closes.
    Says(&'static str),
    /// Reads all, then writes it back.
    Echo,
    /// Accepts nothing; reports when the client has closed.
    Nothing,
    Rejects,
}

struct Server {
    does: Does,
    closed: mpsc::Sender<Vec<u8>>,
}

fn server(does: Does) -> (Arc<Server>, mpsc::Receiver<Vec<u8>>) {
    let (closed, closes) = mpsc::channel(8);
    (Arc::new(Server { does, closed }), closes)
}

#[async_trait::async_trait]
impl Serve for Server {
    fn speaks_http(&self) -> bool {
        false
    }

    async fn http(&self, _: &Origin, _: Request<Body>) -> Result<Response<Body>, CallRejected<Request<Body>>> {
        Err(CallRejected::Closed)
    }

    async fn stream(self: Arc<Self>, from: Origin, mut stream: Stream) -> Result<(), CallRejected<Stream>> {
        match self.does {
            Does::Rejects => return Err(CallRejected::busy(stream)),
            Does::Says(text) => {
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(text.as_bytes()).await;
            }
            Does::Http => {
                let closed = self.closed.clone();
                let answer = move |request: Request<Body>| {
                    let closed = closed.clone();
                    async move { answer(request, closed) }
                };
                let _ = serve(stream, from.local, std::future::pending(), answer, || ()).await;
            }
            Does::Echo | Does::Nothing => {
                let mut received = Vec::new();
                let _ = stream.read_to_end(&mut received).await;
                if self.does == Does::Echo {
                    let _ = stream.write_all(&received).await;
                }
                let _ = self.closed.send(received).await;
            }
        }
        Ok(())
    }
}

fn answer(request: Request<Body>, closed: mpsc::Sender<Vec<u8>>) -> Response<Body> {
    let version = format!("{:?}", request.version());
    if request.uri().path() != "/early" {
        return Response::builder().header("x-version", version).body(request.into_body()).unwrap();
    }
    tokio::spawn(async move {
        let read = request.into_body().collect().await.map(|body| body.to_bytes().to_vec()).unwrap_or_default();
        let _ = closed.send(read).await;
    });
    Response::new(full("early"))
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

fn origin() -> Origin {
    Origin { peer: Peer::Node, local: SocketAddr::from(([127, 66, 0, 2], 6379)), via: None }
}

fn post(path: &str, version: Version, body: Body) -> Request<Body> {
    Request::post(path).version(version).header("host", "kv").body(body).unwrap()
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    Env::real().timeout(Duration::from_secs(20), future).await.expect("in time")
}

#[tokio::test]
async fn a_request_reaches_a_server_over_its_bytes() {
    for (version, seen) in
        [(Version::HTTP_11, "HTTP/1.1"), (Version::HTTP_10, "HTTP/1.1"), (Version::HTTP_2, "HTTP/2.0")]
    {
        for size in [0, 5, 1 << 20] {
            let (server, _closes) = server(Does::Http);
            let sent = Bytes::from(vec![7; size]);
            let response =
                soon(request_over_pipe(server, &origin(), post("/", version, full(sent.clone())))).await.unwrap();
            assert_eq!((response.status(), response.headers()["x-version"].to_str().unwrap()), (StatusCode::OK, seen));
            assert_eq!(soon(response.into_body().collect()).await.unwrap().to_bytes(), sent);
        }
    }
}

#[tokio::test]
async fn a_body_is_sent_to_its_end_after_the_response() {
    let (server, mut closes) = server(Does::Http);
    let (late, body) = tokio::sync::oneshot::channel::<Bytes>();
    let request = post("/early", Version::HTTP_11, LateBody(Some(body)).boxed_unsync());
    let response = soon(request_over_pipe(server, &origin(), request)).await.unwrap();
    assert_eq!(soon(response.into_body().collect()).await.unwrap().to_bytes(), "early");
    late.send(Bytes::from_static(b"late")).unwrap();
    assert_eq!(soon(closes.recv()).await.unwrap(), b"late");
}

/// A body of one frame that comes later.
struct LateBody(Option<tokio::sync::oneshot::Receiver<Bytes>>);

impl http_body::Body for LateBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(receiver) = &mut self.0 else { return Poll::Ready(None) };
        let received = ready!(Pin::new(receiver).poll(context));
        self.0 = None;
        Poll::Ready(received.ok().map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[tokio::test]
async fn a_request_that_is_given_up_closes_its_connection() {
    let (never, mut closes) = server(Does::Nothing);
    let origin_of = origin();
    let request = request_over_pipe(never, &origin_of, post("/", Version::HTTP_11, empty_body()));
    assert!(Env::real().timeout(Duration::from_millis(50), request).await.is_err(), "the server accepts nothing");
    assert!(soon(closes.recv()).await.unwrap().starts_with(b"POST / HTTP/1.1\r\n"));
    // The head of a response, and half of its body.
    let (near, mut far) = Stream::pipe();
    let answers = async {
        let mut request = vec![0; 1024];
        assert!(far.read(&mut request).await.unwrap() > 0);
        far.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await.unwrap();
    };
    let request = request_over_stream(near, post("/", Version::HTTP_11, empty_body()));
    let (response, ()) = soon(async { tokio::join!(request, answers) }).await;
    let mut body = response.unwrap().into_body();
    assert_eq!(soon(body.frame()).await.unwrap().unwrap().into_data().unwrap(), "half");
    drop(body);
    assert_eq!(soon(far.read(&mut [0; 1])).await.unwrap(), 0);
}

#[tokio::test]
async fn a_server_without_http_is_a_bad_gateway_and_a_cut_body_an_error() {
    for text in [
        "",
        "-ERR unknown command\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1, 2\r\n\r\n",
    ] {
        let (server, _closes) = server(Does::Says(text));
        let response =
            soon(request_over_pipe(server, &origin(), post("/", Version::HTTP_11, empty_body()))).await.unwrap();
        assert_eq!(
            (response.status(), response.headers()["coracle-reason"].to_str().unwrap()),
            (StatusCode::BAD_GATEWAY, "connection"),
            "{text}"
        );
    }
    for text in [
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        let (server, _closes) = server(Does::Says(text));
        let response =
            soon(request_over_pipe(server, &origin(), post("/", Version::HTTP_11, empty_body()))).await.unwrap();
        assert!(soon(response.into_body().collect()).await.is_err(), "{text}");
    }
}

#[tokio::test]
async fn a_rejected_connection_returns_the_request_unread() {
    let (server, _closes) = server(Does::Rejects);
    let rejected = request_over_pipe(server.clone(), &origin(), post("/", Version::HTTP_11, full("boats"))).await;
    let Err(CallRejected::Busy(request)) = rejected else { panic!("it was taken") };
    assert_eq!(request.into_body().collect().await.unwrap().to_bytes(), "boats");
    assert!(matches!(open_pipe(server, origin()), Err(CallRejected::Busy(_))));
}

#[tokio::test]
async fn halves_of_a_pipe_end_one_by_one_and_a_server_reads_the_bytes_sent_before_the_end() {
    let (server, mut closes) = server(Does::Echo);
    let mut stream = open_pipe(server.clone(), origin()).unwrap();
    stream.write_all(b"boats").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut received = String::new();
    soon(stream.read_to_string(&mut received)).await.unwrap();
    assert_eq!((received.as_str(), soon(closes.recv()).await.unwrap()), ("boats", b"boats".to_vec()));
    let mut stream = open_pipe(server, origin()).unwrap();
    stream.write_all(b"oars").await.unwrap();
    drop(stream);
    assert_eq!(soon(closes.recv()).await.unwrap(), b"oars");
}

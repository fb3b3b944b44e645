//! Calls of etcd's members over gRPC: one member at a time, the next one after a failure, each call with a deadline.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures::Stream;
use http::uri::PathAndQuery;
use machinery_env::Env;
use prost::Message;
use tonic::client::Grpc;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::super::{StoreError, VALUE_BYTES_MAX};
use super::EtcdConfig;
use super::messages::{AuthenticateRequest, AuthenticateResponse, WatchRequest, WatchResponse};

/// The time for a call, with all of its attempts. etcd answers a write within 7 s or fails it (its `ReqTimeout` by default).
const CALL_MAX: Duration = Duration::from_secs(10);
/// The time for one attempt of a read: the next member may answer.
const READ_MAX: Duration = Duration::from_secs(3);
/// The time for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// A member without a response to a ping for [`PING_MAX`] is left.
const PING_EVERY: Duration = Duration::from_secs(3);
const PING_MAX: Duration = Duration::from_secs(3);
/// The time between attempts, so that members without a leader are not asked in a busy loop.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Whether a call that may have taken effect can be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// A read.
    Safe,
    /// A write: only if no connection was made.
    Unsent,
}

/// The members of an etcd cluster.
pub(super) struct Client {
    members: Vec<Channel>,
    /// The number of the current member, modulo their count.
    current: AtomicUsize,
    user: Option<(String, String)>,
    token: RwLock<Option<MetadataValue<Ascii>>>,
    env: Env,
}

impl Client {
    /// Connects when a call needs it.
    pub(super) fn new(config: &EtcdConfig, env: Env) -> Result<Self, StoreError> {
        let tls = config.ca.as_ref().map(|ca| {
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
            config.identity.iter().fold(tls, |tls, (cert, key)| tls.identity(Identity::from_pem(cert, key)))
        });
        let member = |url: &String| {
            let unusable = |error: &dyn std::error::Error| {
                StoreError::Unavailable(format!("etcd at {url}: {}", first_cause(error)))
            };
            let endpoint = Endpoint::from_shared(url.clone()).map_err(|error| unusable(&error))?;
            let endpoint = endpoint
                .connect_timeout(CONNECT_MAX)
                .http2_keep_alive_interval(PING_EVERY)
                .keep_alive_timeout(PING_MAX)
                .keep_alive_while_idle(true)
                .tcp_nodelay(true);
            let endpoint = match tls.clone().filter(|_| url.starts_with("https:")) {
                Some(tls) => endpoint.tls_config(tls).map_err(|error| unusable(&error))?,
                None => endpoint,
            };
            Ok(endpoint.connect_lazy())
        };
        let members = config.endpoints.iter().map(member).collect::<Result<Vec<Channel>, StoreError>>()?;
        if members.is_empty() {
            return Err(StoreError::Unavailable("no member of etcd is named".into()));
        }
        // API servers spread over the members.
        let current = AtomicUsize::new(usize::try_from(env.below(members.len() as u64)).unwrap_or(0));
        Ok(Self { members, current, user: config.user.clone(), token: RwLock::default(), env })
    }

    fn member(&self) -> (usize, Channel) {
        let number = self.current.load(Ordering::Relaxed);
        (number, self.members[number % self.members.len()].clone())
    }

    /// Leaves a member for the next one, unless another call did so.
    fn leave(&self, number: usize) {
        let _ = self.current.compare_exchange(number, number.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Calls a method until a member answers, within [`CALL_MAX`].
    pub(super) async fn call<Q, A>(&self, method: &'static str, request: Q, repeat: Repeat) -> Result<A, StoreError>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let last = Mutex::new(None);
        let attempts = self.attempts(method, request, repeat, &last);
        let answer = self.env.timeout(CALL_MAX, attempts).await;
        answer.unwrap_or_else(|_| {
            let why = last.into_inner().unwrap_or_else(PoisonError::into_inner).unwrap_or_default();
            Err(StoreError::Unavailable(format!("etcd does not answer within {CALL_MAX:?}{why}")))
        })
    }

    /// Notes why the last attempt failed in `last`.
    async fn attempts<Q, A>(
        &self,
        method: &'static str,
        request: Q,
        repeat: Repeat,
        last: &Mutex<Option<String>>,
    ) -> Result<A, StoreError>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let mut is_repeated = false;
        loop {
            let (number, channel) = self.member();
            let attempt = async {
                self.authenticate(&channel).await?;
                self.once(channel, method, request.clone()).await
            };
            let limit = if repeat == Repeat::Safe { READ_MAX } else { CALL_MAX };
            let failed = match self.env.timeout(limit, attempt).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) => status,
                Err(_) => Status::unavailable("no response"),
            };
            if self.forgets_token(&failed) && !is_repeated {
                is_repeated = true;
                continue;
            }
            if !is_lost(&failed) {
                return Err(failure(&failed));
            }
            self.leave(number);
            if repeat == Repeat::Unsent && !is_unsent(&failed) {
                return Err(failure(&failed));
            }
            if let StoreError::Unavailable(why) = failure(&failed) {
                *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("; {why}"));
            }
            self.env.sleep(RETRY_AFTER).await;
        }
    }

    async fn once<Q, A>(&self, channel: Channel, method: &'static str, message: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = grpc(channel).await?;
        let request = self.authorized(message);
        let answer = grpc.unary(request, PathAndQuery::from_static(method), ProstCodec::<Q, A>::default()).await?;
        Ok(answer.into_inner())
    }

    fn authorized<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        if let Some(token) = &*self.token.read().unwrap_or_else(PoisonError::into_inner) {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }

    /// Gets a token for the user from a member, if there is a user without one.
    async fn authenticate(&self, channel: &Channel) -> Result<(), Status> {
        let has_token = self.token.read().unwrap_or_else(PoisonError::into_inner).is_some();
        let Some((name, password)) = self.user.clone().filter(|_| !has_token) else { return Ok(()) };
        let request = AuthenticateRequest { name, password };
        let answer: AuthenticateResponse =
            self.once(channel.clone(), "/etcdserverpb.Auth/Authenticate", request).await?;
        let token = answer.token.parse().map_err(|_| Status::data_loss("a token that is no text"))?;
        *self.token.write().unwrap_or_else(PoisonError::into_inner) = Some(token);
        Ok(())
    }

    /// Forgets the user's token if a member has rejected it, and returns whether there was one.
    fn forgets_token(&self, status: &Status) -> bool {
        is_rejected_token(status) && self.token.write().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }

    /// Opens a stream of watches at a member that has a leader. Ends with an error when that member is lost or loses its
    /// leader: then the next stream is at another one.
    pub(super) async fn watch(
        &self,
        requests: impl Stream<Item = WatchRequest> + Send + 'static,
    ) -> Result<WatchStream<'_>, StoreError> {
        let (number, channel) = self.member();
        let open = async {
            self.authenticate(&channel).await?;
            let mut request = self.authorized(requests);
            request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
            let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
            grpc(channel).await?.streaming(request, path, ProstCodec::default()).await
        };
        match self.env.timeout(READ_MAX, open).await {
            Ok(Ok(stream)) => Ok(WatchStream { client: self, member: number, stream: stream.into_inner() }),
            Ok(Err(status)) => {
                self.leave(number);
                self.forgets_token(&status);
                Err(failure(&status))
            }
            Err(_) => {
                self.leave(number);
                Err(StoreError::Unavailable("etcd opens no watch".into()))
            }
        }
    }
}

/// An open stream of watches.
pub(super) struct WatchStream<'a> {
    client: &'a Client,
    member: usize,
    stream: Streaming<WatchResponse>,
}

impl WatchStream<'_> {
    /// The next response; cancel-safe.
    pub(super) async fn next(&mut self) -> Result<WatchResponse, StoreError> {
        let lost = match self.stream.message().await {
            Ok(Some(response)) => return Ok(response),
            Ok(None) => Status::unavailable("the watch ended"),
            Err(status) => status,
        };
        self.client.leave(self.member);
        self.client.forgets_token(&lost);
        Err(failure(&lost))
    }

    /// Leaves the member, which canceled the watch.
    pub(super) fn leave(&self) {
        self.client.leave(self.member);
    }
}

async fn grpc(channel: Channel) -> Result<Grpc<Channel>, Status> {
    // etcd limits what it stores; a response has many values.
    let mut grpc = Grpc::new(channel).max_decoding_message_size(usize::MAX).max_encoding_message_size(usize::MAX);
    grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
    Ok(grpc)
}

/// Whether another member may answer.
fn is_lost(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Unknown | Code::Internal
    )
}

/// Whether the call was certainly not sent.
fn is_unsent(status: &Status) -> bool {
    let mut source: Option<&dyn std::error::Error> = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

fn is_rejected_token(status: &Status) -> bool {
    status.code() == Code::Unauthenticated
        || ["user name is empty", "revision of auth store is old"].iter().any(|text| status.message().contains(text))
}

/// The store's error for etcd's (`rpctypes/error.go` of etcd v3.6 has the texts). The store adds the revision to
/// [`StoreError::Compacted`] and [`StoreError::Future`].
pub(super) fn failure(status: &Status) -> StoreError {
    let message = status.message();
    match status.code() {
        Code::OutOfRange if message.contains("has been compacted") => StoreError::Compacted(0),
        Code::OutOfRange if message.contains("future revision") => StoreError::Future(0),
        Code::InvalidArgument if message.contains("request is too large") => {
            StoreError::TooLarge { bytes: VALUE_BYTES_MAX, limit: VALUE_BYTES_MAX }
        }
        Code::ResourceExhausted if message.contains("database space exceeded") => StoreError::OverQuota,
        Code::Unauthenticated | Code::PermissionDenied => {
            StoreError::Unavailable(format!("etcd refuses this user or certificate: {message}"))
        }
        _ => StoreError::Unavailable(match std::error::Error::source(status) {
            Some(cause) => format!("etcd: {message}: {}", first_cause(cause)),
            None => format!("etcd: {message}"),
        }),
    }
}

/// The text of the first cause: a transport's own is only "transport error".
fn first_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), first_cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_etcd_have_the_store_s_meaning() {
        let of = |code, message: &str| failure(&Status::new(code, format!("etcdserver: {message}")));
        assert_eq!(of(Code::OutOfRange, "mvcc: required revision has been compacted"), StoreError::Compacted(0));
        assert_eq!(of(Code::OutOfRange, "mvcc: required revision is a future revision"), StoreError::Future(0));
        assert_eq!(of(Code::ResourceExhausted, "mvcc: database space exceeded"), StoreError::OverQuota);
        assert!(matches!(of(Code::InvalidArgument, "request is too large"), StoreError::TooLarge { .. }));
        for (code, message) in [
            (Code::Unavailable, "no leader"),
            (Code::ResourceExhausted, "too many requests"),
            (Code::PermissionDenied, "permission denied"),
        ] {
            let error = of(code, message);
            assert!(matches!(&error, StoreError::Unavailable(text) if text.contains(message)), "{error}");
        }
    }
}

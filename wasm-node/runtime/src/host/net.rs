//! `coracle:host/net`: names and byte streams of the pod's network, for the node's own toolbox and no other guest
//! (`docs/decisions/0071-tools-with-a-network.md`). The data plane decides which destinations are reachable, as for
//! `wasi:http`. Operations count as connections of the container, with a deadline.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use machinery_api::names::CLUSTER_DOMAIN;
use machinery_env::Env;
use machinery_serve::net::{Caller, Dial, DialError, NamePolicy, ResolvedName, Stream, Target};
use runtime_api::ledger::{self, ResourceGuard};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, LinkerInstance, Lower, Resource, ResourceType};
use wasmtime_wasi::p2::pipe::{AsyncReadStream, AsyncWriteStream};
use wasmtime_wasi::p2::{DynInputStream, DynOutputStream, DynPollable, Pollable, subscribe};

use super::guest::Guest;
use super::http::{OUTGOING_TIMEOUT_MAX, is_refusal};
use super::io::NonEmptyWrites;
use super::state::ComponentState;

const NAME: &str = "coracle:host/net@0.1.0";
/// Bytes queued for sending, besides the stream's own buffer.
const WRITE_BYTES: usize = 64 << 10;
/// Maximum length of a DNS name, with its dot.
const NAME_CHARS_MAX: usize = 254;
/// Default `ndots` of `dnsPolicy: ClusterFirst`.
const NDOTS_CLUSTER: usize = 5;
/// Timeout of signalling the end of output to the peer.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(5);

/// Error of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
enum Problem {
    #[component(name = "not-found")]
    NotFound,
    #[component(name = "refused")]
    Refused,
    #[component(name = "denied")]
    Denied,
    #[component(name = "timeout")]
    Timeout,
    #[component(name = "limit")]
    Limit,
    #[component(name = "broken")]
    Broken,
}

impl From<DialError> for Problem {
    fn from(error: DialError) -> Self {
        match error {
            DialError::NameNotFound(_) => Self::NotFound,
            // A Service without endpoints refuses connections.
            DialError::NoEndpoint(_) => Self::Refused,
            DialError::Denied(_) => Self::Denied,
            DialError::Connection { source, .. } if is_refusal(&*source) => Self::Refused,
            DialError::Connection { .. } => Self::Broken,
            DialError::Timeout(_) => Self::Timeout,
        }
    }
}

#[derive(Debug, Clone, ComponentType, Lift, Lower)]
#[component(record)]
struct Names {
    name: String,
    addresses: Vec<String>,
}

impl From<ResolvedName> for Names {
    fn from(found: ResolvedName) -> Self {
        Self { name: found.name, addresses: found.addresses.iter().map(IpAddr::to_string).collect() }
    }
}

/// An operation in progress; its result is returned once. Dropping it cancels the operation.
struct Operation<T> {
    receiver: Option<oneshot::Receiver<Result<T, Problem>>>,
    result: Option<Result<T, Problem>>,
    task: AbortHandle,
}

impl<T> Drop for Operation<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[async_trait::async_trait]
impl<T: Send + 'static> Pollable for Operation<T> {
    async fn ready(&mut self) {
        let Some(receiver) = &mut self.receiver else { return };
        self.result = Some(receiver.await.unwrap_or(Err(Problem::Broken)));
        self.receiver = None;
    }
}

impl<T: Send + 'static> Operation<T> {
    /// Starts an operation, within the container's connections and an exchange's timeout.
    fn begin<F>(guest: &Guest, work: impl FnOnce(Arc<dyn Dial>, Caller, Arc<ResourceGuard>) -> F) -> Self
    where
        F: Future<Output = Result<T, DialError>> + Send + 'static,
    {
        let (gives, receiver) = oneshot::channel();
        let held = guest.ledger.hold(ledger::Resource::Connections, 1).map_err(|_| Problem::Limit);
        let work = match (guest.dial.clone(), held) {
            (None, _) => Err(Problem::Denied),
            (_, Err(problem)) => Err(problem),
            (Some(dial), Ok(held)) => Ok(work(dial, guest.caller.clone(), Arc::new(held))),
        };
        let env = guest.clock().clone();
        let task = tokio::spawn(async move {
            let result = match work {
                Ok(work) => match env.timeout(OUTGOING_TIMEOUT_MAX, work).await {
                    Ok(result) => result.map_err(Problem::from),
                    Err(_) => Err(Problem::Timeout),
                },
                Err(problem) => Err(problem),
            };
            let _ = gives.send(result);
        });
        Self { receiver: Some(receiver), result: None, task: task.abort_handle() }
    }

    fn take(&mut self) -> Option<Result<T, Problem>> {
        if let Some(receiver) = &mut self.receiver
            && let Ok(result) = receiver.try_recv()
        {
            (self.receiver, self.result) = (None, Some(result));
        }
        self.result.take()
    }
}

/// The read half; the connection counts while either half exists.
struct ReadStream(ReadHalf<Stream>, #[expect(dead_code, reason = "held")] Arc<ResourceGuard>);

impl AsyncRead for ReadStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

/// The write half: dropping it signals the end of output to the peer.
struct WriteStream(Option<(WriteHalf<Stream>, Arc<ResourceGuard>)>, Env);

impl WriteStream {
    fn half(&mut self) -> std::io::Result<Pin<&mut WriteHalf<Stream>>> {
        let half = self.0.as_mut().map(|(half, _)| Pin::new(half));
        half.ok_or_else(|| std::io::ErrorKind::BrokenPipe.into())
    }
}

impl AsyncWrite for WriteStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.half()?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.half()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.half()?.poll_shutdown(cx)
    }
}

impl Drop for WriteStream {
    fn drop(&mut self) {
        let Some((mut half, held)) = self.0.take() else { return };
        // Without a runtime, the process is ending.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let env = self.1.clone();
        runtime.spawn(async move {
            let _ = env.timeout(SHUTDOWN_WAIT, half.shutdown()).await;
            drop(held);
        });
    }
}

type Lookup = Operation<Names>;
type Connecting = Operation<(Stream, Arc<ResourceGuard>)>;
type Guests<'a> = StoreContextMut<'a, ComponentState>;
type Streams = (Resource<DynInputStream>, Resource<DynOutputStream>);

/// The caller for a resolution: the pod's own settings, or with a server a query of that server alone, with the pod's
/// search path and without hosts files.
fn by(dial: &dyn Dial, mut caller: Caller, server: Option<IpAddr>) -> Caller {
    let Some(server) = server else { return caller };
    let first_server = dial.name_server(&caller);
    let names = Arc::make_mut(&mut caller.names);
    names.dns_only = true;
    if first_server != Some(server) {
        if names.policy == NamePolicy::Cluster {
            let path = [format!("{}.svc.{CLUSTER_DOMAIN}", caller.namespace), format!("svc.{CLUSTER_DOMAIN}")];
            names.searches.splice(0..0, path.into_iter().chain([CLUSTER_DOMAIN.to_owned()]));
            names.ndots.get_or_insert(NDOTS_CLUSTER);
        }
        (names.policy, names.servers) = (NamePolicy::Own, vec![server]);
    }
    caller
}

fn look_up(guest: &Guest, name: String, server: Option<String>) -> Lookup {
    Operation::begin(guest, move |dial, caller, held| async move {
        let _held = held;
        let unknown = |name: &str| DialError::NameNotFound(name.to_owned());
        if name.len() > NAME_CHARS_MAX {
            return Err(unknown(""));
        }
        let server = server.map(|server| server.parse().map_err(|_| unknown(&server))).transpose()?;
        let caller = by(&*dial, caller, server);
        dial.resolve(&caller, &name).await.map(Names::from)
    })
}

fn connect(guest: &Guest, host: String, port: u16) -> Connecting {
    Operation::begin(guest, move |dial, caller, held| async move {
        if host.len() > NAME_CHARS_MAX {
            return Err(DialError::NameNotFound(String::new()));
        }
        Ok((dial.stream(&caller, &Target { host, port }).await?, held))
    })
}

fn streams(store: &mut Guests<'_>, (stream, held): (Stream, Arc<ResourceGuard>)) -> wasmtime::Result<Streams> {
    let (reads, writes) = tokio::io::split(stream);
    let input: DynInputStream = Box::new(AsyncReadStream::new(ReadStream(reads, held.clone())));
    let writes = WriteStream(Some((writes, held)), store.data().guest.clock().clone());
    let output: DynOutputStream = Box::new(NonEmptyWrites(Box::new(AsyncWriteStream::new(WRITE_BYTES, writes))));
    let table = &mut store.data_mut().table;
    Ok((table.push(input)?, table.push(output)?))
}

/// Functions common to both kinds of resources.
fn pending<T: Send + 'static>(net: &mut LinkerInstance<'_, ComponentState>, name: &str) -> wasmtime::Result<()> {
    net.resource(name, ResourceType::host::<Operation<T>>(), |mut store, rep| {
        store.data_mut().table.delete(Resource::<Operation<T>>::new_own(rep))?;
        Ok(())
    })?;
    let subscribes = |mut store: Guests<'_>, (of,): (Resource<Operation<T>>,)| {
        store.data_mut().account();
        let pollable: Resource<DynPollable> = subscribe(&mut store.data_mut().table, of)?;
        Ok((pollable,))
    };
    net.func_wrap(&format!("[method]{name}.subscribe"), subscribes)
}

pub(crate) fn link(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    let mut net = linker.instance(NAME)?;
    pending::<Names>(&mut net, "answer")?;
    pending::<(Stream, Arc<ResourceGuard>)>(&mut net, "attempt")?;
    net.func_wrap("name-server", |store: Guests<'_>, (): ()| {
        let guest = &store.data().guest;
        let server = guest.dial.as_ref().and_then(|dial| dial.name_server(&guest.caller));
        Ok((server.map(|server| server.to_string()),))
    })?;
    net.func_wrap("look-up", |mut store: Guests<'_>, (name, server): (String, Option<String>)| {
        let state = store.data_mut();
        state.account();
        let answer = look_up(&state.guest, name, server);
        Ok((state.table.push(answer)?,))
    })?;
    net.func_wrap("connect", |mut store: Guests<'_>, (host, port): (String, u16)| {
        let state = store.data_mut();
        state.account();
        let attempt = connect(&state.guest, host, port);
        Ok((state.table.push(attempt)?,))
    })?;
    net.func_wrap("[method]answer.get", |mut store: Guests<'_>, (of,): (Resource<Lookup>,)| {
        Ok((store.data_mut().table.get_mut(&of)?.take(),))
    })?;
    net.func_wrap("[method]attempt.get", |mut store: Guests<'_>, (of,): (Resource<Connecting>,)| {
        Ok((match store.data_mut().table.get_mut(&of)?.take() {
            Some(Ok(connected)) => Some(Ok(streams(&mut store, connected)?)),
            Some(Err(problem)) => Some(Err(problem)),
            None => None,
        },))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dial_error_is_a_problem() {
        let io = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let connection = |source| DialError::Connection { address: "a:1".into(), source };
        assert_eq!(Problem::from(connection(Box::new(io))), Problem::Refused);
        assert_eq!(Problem::from(connection("reset".into())), Problem::Broken);
        assert_eq!(Problem::from(DialError::NoEndpoint("a".into())), Problem::Refused);
        assert_eq!(Problem::from(DialError::Denied("a".into())), Problem::Denied);
        assert_eq!(Problem::from(DialError::NameNotFound("a".into())), Problem::NotFound);
        assert_eq!(Problem::from(DialError::Timeout("a".into())), Problem::Timeout);
    }

    /// A data plane with an address of cluster DNS.
    struct Plane;

    #[async_trait::async_trait]
    impl Dial for Plane {
        async fn http(
            &self,
            _: &Caller,
            _: http::Request<machinery_serve::net::Body>,
        ) -> Result<http::Response<machinery_serve::net::Body>, DialError> {
            Err(DialError::Denied(String::new()))
        }

        fn name_server(&self, _: &Caller) -> Option<IpAddr> {
            Some([10, 96, 0, 10].into())
        }
    }

    #[test]
    fn a_query_of_a_name_server_reads_no_hosts_file() {
        let caller =
            Caller { node: "n".into(), namespace: "shop".into(), pod: "p".into(), ip: None, names: Arc::default() };
        assert!(!by(&Plane, caller.clone(), None).names.dns_only);
        let own = by(&Plane, caller.clone(), Some([10, 96, 0, 10].into()));
        assert_eq!((own.names.dns_only, own.names.policy), (true, NamePolicy::Cluster));
        let other = by(&Plane, caller, Some([192, 0, 2, 53].into()));
        assert_eq!((other.names.dns_only, other.names.policy), (true, NamePolicy::Own));
        assert_eq!(other.names.searches[0], "shop.svc.cluster.local");
    }

    #[tokio::test]
    async fn dropping_the_written_half_ends_the_others_input_and_both_give_the_connection_back() {
        use tokio::io::AsyncReadExt as _;
        let node = ledger::Ledger::node();
        let held = Arc::new(node.hold(ledger::Resource::Connections, 1).unwrap());
        let (near, mut far) = Stream::pipe();
        let (reads, writes) = tokio::io::split(near);
        let (mut reads, mut writes) = (ReadStream(reads, held.clone()), WriteStream(Some((writes, held)), Env::real()));
        writes.write_all(b"ask").await.unwrap();
        drop(writes);
        let mut request = String::new();
        far.read_to_string(&mut request).await.unwrap();
        far.write_all(b"answer").await.unwrap();
        drop(far);
        let mut answer = String::new();
        reads.read_to_string(&mut answer).await.unwrap();
        assert_eq!((request.as_str(), answer.as_str()), ("ask", "answer"));
        drop(reads);
        while node.used(ledger::Resource::Connections) > 0 {
            tokio::task::yield_now().await;
        }
    }
}

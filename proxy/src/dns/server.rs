//! The server of cluster DNS over UDP and TCP. An answer from the table or the cache is made on the spot; a forwarded
//! query takes one of a bounded number of places.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use hickory_resolver::proto::op::{Message, Query, ResponseCode};
use hickory_resolver::proto::rr::{Record, RecordType};
use machinery_serve::accept::{self, Limit, Listener, Seats};
use machinery_serve::sockets::{Layer, SocketTable};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::dns::answer::{ClusterAnswer, Decision, Zone, answer};
use crate::dns::forward::{ForwardPlace, Forwarded, Forwarder};
use crate::dns::limit::AmplificationLimit;
use crate::dns::packet::{Request, Transport};
use crate::state::ProxyState;

/// Maximum size of a request in bytes. The longest name with EDNS options needs some 300.
const REQUEST_BYTES_MAX: usize = 4_096;
/// Size of a message's header (RFC 1035 §4.1.1).
const HEADER_BYTES: usize = 12;
/// Maximum TCP connections of one listener; at the limit the oldest is closed for a new one (RFC 7766 §6.2.2).
const CONNECTIONS_MAX: usize = 256;
/// Time without a request after which a TCP connection is closed (CoreDNS' value), and timeout of a write.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum requests of one TCP connection that are answered at once; further ones stay in the socket (RFC 7766 §6.2.1.1).
const PIPELINED_MAX: usize = 16;
/// Time of open connections to end at a stop.
const DRAIN: Duration = Duration::from_millis(500);
/// Pause after a failed receive, in order not to spin.
const RECEIVE_PAUSE: Duration = Duration::from_millis(50);

/// The server's state, shared by all of its sockets.
pub(crate) struct DnsServer {
    pub(crate) state: Arc<ProxyState>,
    forwarder: Forwarder,
    amplification: Mutex<AmplificationLimit>,
    /// Turns the order of addresses from answer to answer (CoreDNS' `loadbalance`).
    turn: AtomicUsize,
}

/// The next step for a packet.
enum PacketOutcome {
    /// It gets no answer.
    Drop,
    Reply(Vec<u8>),
    Forward(Box<PendingForward>),
}

/// A request with its circumstances.
struct Received {
    request: Request,
    transport: Transport,
    client: IpAddr,
    begun: Duration,
}

/// A query that waits for the host's name servers.
struct PendingForward {
    received: Received,
    query: Query,
    /// The records that lead to `query`: an alias of the cluster.
    before: Vec<Record>,
    _place: ForwardPlace,
}

impl DnsServer {
    pub(crate) fn new(state: Arc<ProxyState>) -> Arc<Self> {
        let forwarder = Forwarder::new(state.clone());
        Arc::new(Self { state, forwarder, amplification: Mutex::default(), turn: AtomicUsize::new(0) })
    }

    /// Whether a client may ask: only this machine's own processes and pods may, as the server is no open resolver.
    pub(crate) fn serves(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        client.is_loopback() || self.state.is_cluster(client) || client == self.state.config.bind
    }

    fn begin(&self, packet: &[u8], transport: Transport, client: IpAddr) -> PacketOutcome {
        let metrics = &self.state.metrics.dns;
        if !self.serves(client) {
            metrics.drop("client");
            return PacketOutcome::Drop;
        }
        let begun = self.state.env.elapsed();
        let Some(request) = Request::parse(packet) else {
            metrics.drop("malformed");
            return PacketOutcome::Drop;
        };
        metrics.request(transport.label(), request.query.as_ref().map(Query::query_type));
        let received = Received { request, transport, client, begun };
        let request = &received.request;
        let query = match (&request.query, request.rejected) {
            (Some(query), None) => query.clone(),
            (_, code) => return self.reply(&received, request.reply(code.unwrap_or(ResponseCode::FormErr))),
        };
        match self.decide(&received, &query) {
            Decision::Answer(ClusterAnswer { alias: None, code, answers, authorities, additionals }) => {
                let mut reply = request.reply(code);
                reply.metadata.authoritative = code != ResponseCode::ServFail;
                self.add_answers(&mut reply, answers);
                (reply.authorities, reply.additionals) = (authorities, additionals);
                self.reply(&received, reply)
            }
            Decision::Answer(ClusterAnswer { alias: Some(alias), answers, .. }) => {
                self.look_outside(received, Query::query(alias, query.query_type()), answers)
            }
            Decision::Forward => self.look_outside(received, query, Vec::new()),
        }
    }

    fn decide(&self, received: &Received, query: &Query) -> Decision {
        let state = &self.state;
        let zone = Zone {
            routes: &state.routes,
            cidrs: &state.config.cluster_cidrs,
            server: state.config.cluster_dns,
            // The low bits of the time: a serial number wraps around (RFC 1982).
            serial: u32::try_from(state.env.now().as_second() & 0xffff_ffff).unwrap_or_default(),
            synced: state.is_synced(),
            records_max: received.request.records_max(received.transport),
        };
        answer(&zone, query)
    }

    /// Answers from the cache, else forwards. Asks in lower case: the case of one client is not another's.
    fn look_outside(&self, received: Received, mut query: Query, before: Vec<Record>) -> PacketOutcome {
        query.set_name(query.name().to_lowercase());
        if let Some(found) = self.forwarder.cached(&query) {
            let reply = self.outside_reply(&received.request, before, found);
            return self.reply(&received, reply);
        }
        match self.forwarder.admit(received.client) {
            Some(place) => PacketOutcome::Forward(Box::new(PendingForward { received, query, before, _place: place })),
            None => self.reply(&received, received.request.reply(ResponseCode::ServFail)),
        }
    }

    /// Forwards a query and encodes its answer.
    async fn finish(&self, pending: Box<PendingForward>) -> Option<Vec<u8>> {
        let PendingForward { received, query, before, _place } = *pending;
        let found = self.forwarder.forward(&query).await;
        let reply = self.outside_reply(&received.request, before, Forwarded::clone(&found));
        self.encode(&received, reply)
    }

    /// The answer from outside. An alias of the cluster that leads nowhere is answered alone, as by CoreDNS.
    fn outside_reply(&self, request: &Request, before: Vec<Record>, found: Forwarded) -> Message {
        let is_alias = !before.is_empty();
        let code = match found.code {
            ResponseCode::NXDomain if is_alias => ResponseCode::NoError,
            code => code,
        };
        let mut reply = request.reply(code);
        if code != ResponseCode::ServFail {
            reply.answers = before;
        }
        reply.metadata.authoritative = is_alias && code != ResponseCode::ServFail;
        let mut answers = found.answers;
        if let Some(query) = &request.query {
            // Owners of the name in the client's case.
            answers.iter_mut().filter(|one| one.name == *query.name()).for_each(|one| one.name = query.name().clone());
        }
        self.add_answers(&mut reply, answers);
        if !is_alias {
            reply.authorities = found.authorities;
        }
        reply
    }

    /// Adds answers; the addresses at their end begin with another one each time.
    fn add_answers(&self, reply: &mut Message, mut answers: Vec<Record>) {
        let is_address = |record: &Record| matches!(record.record_type(), RecordType::A | RecordType::AAAA);
        let from = answers.iter().rposition(|record| !is_address(record)).map_or(0, |last| last + 1);
        let addresses = &mut answers[from..];
        if addresses.len() > 1 {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed) % addresses.len();
            addresses.rotate_left(turn);
        }
        reply.answers.extend(answers);
    }

    fn reply(&self, received: &Received, reply: Message) -> PacketOutcome {
        self.encode(received, reply).map_or(PacketOutcome::Drop, PacketOutcome::Reply)
    }

    fn encode(&self, received: &Received, reply: Message) -> Option<Vec<u8>> {
        let code = reply.metadata.response_code;
        let packet = received.request.encode(reply, received.transport)?;
        let took = self.state.env.elapsed().saturating_sub(received.begun);
        self.state.metrics.dns.response(code, took);
        Some(packet)
    }

    /// The packet for a client over UDP: a truncated answer once its large answers are used up.
    fn for_udp(&self, request: &[u8], answer: Vec<u8>, client: IpAddr) -> Option<Vec<u8>> {
        let now = self.state.env.elapsed();
        let admitted = {
            let mut limit = self.amplification.lock().unwrap_or_else(PoisonError::into_inner);
            limit.admits(client, request.len(), answer.len(), now)
        };
        if admitted {
            return Some(answer);
        }
        self.state.metrics.dns.truncated.inc();
        let request = Request::parse(request)?;
        request.encode(request.truncated(), Transport::Udp)
    }

    /// Serves a UDP socket until `stop`.
    pub(crate) async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>, stop: CancellationToken) {
        let table = SocketTable::process();
        // After a takeover the process before answers until this one's routes are complete.
        if stop.run_until_cancelled(table.admitted()).await.is_none() {
            return;
        }
        let forwards = TaskTracker::new();
        let mut buffer = [0_u8; REQUEST_BYTES_MAX];
        loop {
            let received = tokio::select! {
                () = stop.cancelled() => break,
                () = table.retired(Layer::Pods) => break,
                received = socket.recv_from(&mut buffer) => received,
            };
            let (length, client) = match received {
                Ok(received) => received,
                Err(error) => {
                    tracing::debug!(%error, "receiving a DNS request failed");
                    self.state.env.sleep(RECEIVE_PAUSE).await;
                    continue;
                }
            };
            let packet = &buffer[..length];
            match self.begin(packet, Transport::Udp, client.ip()) {
                PacketOutcome::Drop => {}
                PacketOutcome::Reply(answer) => self.send(&socket, packet, answer, client),
                PacketOutcome::Forward(pending) => {
                    // The place bounds these tasks.
                    let (this, socket, packet) = (self.clone(), socket.clone(), packet.to_vec());
                    let stop = stop.clone();
                    forwards.spawn(async move {
                        let finished = stop.run_until_cancelled(this.finish(pending)).await.flatten();
                        if let Some(answer) = finished {
                            this.send(&socket, &packet, answer, client);
                        }
                    });
                }
            }
        }
        forwards.close();
        forwards.wait().await;
    }

    /// Sends an answer, or drops it if the socket's buffer is full.
    fn send(&self, socket: &UdpSocket, request: &[u8], answer: Vec<u8>, client: SocketAddr) {
        let Some(answer) = self.for_udp(request, answer, client.ip()) else { return };
        if let Err(error) = socket.try_send_to(&answer, client) {
            self.state.metrics.dns.drop("send");
            tracing::debug!(%client, %error, "a DNS answer cannot be sent");
        }
    }

    /// Serves a TCP listener until `stop`.
    pub(crate) async fn serve_tcp(self: Arc<Self>, listener: Listener, stop: CancellationToken) {
        let limit = Limit::new(&Seats::new(CONNECTIONS_MAX), "DNS");
        let each = |stream, peer: SocketAddr, permit, ending| {
            let (this, stop) = (self.clone(), stop.clone());
            async move {
                let _permit = permit;
                let end = async {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = accept::end_of_stream(&this.state.env, &ending) => {}
                    }
                };
                tokio::select! {
                    () = this.clone().serve_connection(stream, peer.ip()) => {}
                    () = end => {}
                }
            }
        };
        accept::serve(listener, limit, Some(DRAIN), &self.state.env, &stop, each).await;
    }

    async fn serve_connection(self: Arc<Self>, stream: TcpStream, client: IpAddr) {
        if !self.serves(client) {
            return;
        }
        let (reads, mut writes) = stream.into_split();
        let this = self.clone();
        let requests = stream::unfold((BufReader::new(reads), this), move |(mut reads, this)| async move {
            let packet = this.state.env.timeout(IDLE_TIMEOUT, read_packet(&mut reads)).await.ok()??;
            Some((packet, (reads, this)))
        });
        let this = self.clone();
        let answers = requests.map(move |packet| this.clone().answer_tcp(packet, client));
        let mut answers = std::pin::pin!(answers.buffer_unordered(PIPELINED_MAX));
        while let Some(answer) = answers.next().await {
            let Some(answer) = answer else { continue };
            let Ok(length) = u16::try_from(answer.len()) else { continue };
            let framed = [&length.to_be_bytes()[..], &answer].concat();
            match self.state.env.timeout(IDLE_TIMEOUT, writes.write_all(&framed)).await {
                Ok(Ok(())) => {}
                _ => return,
            }
        }
    }

    async fn answer_tcp(self: Arc<Self>, packet: Vec<u8>, client: IpAddr) -> Option<Vec<u8>> {
        match self.begin(&packet, Transport::Tcp, client) {
            PacketOutcome::Drop => None,
            PacketOutcome::Reply(answer) => Some(answer),
            PacketOutcome::Forward(pending) => self.finish(pending).await,
        }
    }
}

/// Reads a request behind its length (RFC 1035 §4.2.2); `None` at the end, or if it is too long or too short to be one: such
/// packets get no answer, and their number has no limit.
async fn read_packet(reads: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let length = usize::from(reads.read_u16().await.ok()?);
    if !(HEADER_BYTES..=REQUEST_BYTES_MAX).contains(&length) {
        return None;
    }
    let mut packet = vec![0; length];
    reads.read_exact(&mut packet).await.ok()?;
    Some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn packets_without_a_header_end_the_connection() {
        for (length, is_read) in
            [(0, false), (HEADER_BYTES - 1, false), (HEADER_BYTES, true), (REQUEST_BYTES_MAX + 1, false)]
        {
            let framed = [&(length as u16).to_be_bytes()[..], &vec![0; length]].concat();
            assert_eq!(read_packet(&mut &framed[..]).await.is_some(), is_read, "{length}");
        }
    }
}

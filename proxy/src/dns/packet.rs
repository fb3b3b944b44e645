//! Messages on the wire: which requests are accepted, and how answers fit their transport (RFC 1035, RFC 6891, RFC
//! 8482). Pure; the codec is hickory's.

use hickory_resolver::proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::{DNSClass, RecordType};
use hickory_resolver::proto::serialize::binary::{BinEncodable as _, BinEncoder};

/// Bytes of a header.
const HEADER_BYTES: usize = 12;
/// Size of an answer over UDP for a client without EDNS (RFC 1035 §2.3.4).
pub(crate) const UDP_BYTES_PLAIN: u16 = 512;
/// Maximum size of an answer over UDP, whatever a client offers: one that crosses any network unfragmented (DNS flag
/// day 2020).
pub(crate) const UDP_BYTES_MAX: u16 = 1_232;
/// Maximum records in a section of a request (CoreDNS' `DefaultMsgAcceptFunc`): only the OPT and a signature are usual.
const ANSWERS_MAX: u16 = 1;
const AUTHORITIES_MAX: u16 = 1;
const ADDITIONALS_MAX: u16 = 2;
/// Bytes of an OPT record without options.
const OPT_BYTES: u16 = 11;

/// A request that is worth an answer.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    head: Metadata,
    /// `None` if the question could not be read.
    pub(crate) query: Option<Query>,
    edns: Option<RequestEdns>,
    /// The code that rejects the request.
    pub(crate) rejected: Option<ResponseCode>,
}

/// A client's EDNS.
#[derive(Debug, Clone, Copy)]
struct RequestEdns {
    payload: u16,
    dnssec_ok: bool,
}

/// The transport of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

impl Transport {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        }
    }
}

impl Request {
    /// Parses a packet. `None`: it gets no answer, as it is no request (an answer to an answer would loop).
    pub(crate) fn parse(packet: &[u8]) -> Option<Self> {
        let head = packet.get(..HEADER_BYTES)?;
        let count = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        if head[2] & 0x80 != 0 {
            return None;
        }
        let op_code = OpCode::from_u8((head[2] >> 3) & 15);
        let mut metadata = Metadata::new(count(0), MessageType::Query, op_code);
        metadata.recursion_desired = head[2] & 1 != 0;
        metadata.checking_disabled = head[3] & 0x10 != 0;
        let reject = |code| Self { head: metadata, query: None, edns: None, rejected: Some(code) };
        if op_code != OpCode::Query {
            return Some(reject(ResponseCode::NotImp));
        }
        if count(4) != 1 || count(6) > ANSWERS_MAX || count(8) > AUTHORITIES_MAX || count(10) > ADDITIONALS_MAX {
            return Some(reject(ResponseCode::FormErr));
        }
        let Ok(mut message) = Message::from_vec(packet) else { return Some(reject(ResponseCode::FormErr)) };
        let Some(query) = message.queries.pop() else { return Some(reject(ResponseCode::FormErr)) };
        let edns = message
            .edns
            .as_ref()
            .map(|edns| RequestEdns { payload: edns.max_payload(), dnssec_ok: edns.flags().dnssec_ok });
        let rejected = match message.edns.as_ref().map_or(0, Edns::version) {
            0 => rejection(&query),
            _ => Some(ResponseCode::BADVERS),
        };
        Some(Self { head: metadata, query: Some(query), edns, rejected })
    }

    /// Maximum size of the answer.
    fn bytes_max(&self, transport: Transport) -> u16 {
        match transport {
            Transport::Tcp => u16::MAX,
            Transport::Udp => {
                self.edns.map_or(UDP_BYTES_PLAIN, |edns| edns.payload.clamp(UDP_BYTES_PLAIN, UDP_BYTES_MAX))
            }
        }
    }

    /// Maximum address records of an answer, and one more: that many make it truncated.
    pub(crate) fn records_max(&self, transport: Transport) -> usize {
        /// An address with a compressed name.
        const RECORD_BYTES: u16 = 16;
        usize::from(self.bytes_max(transport) / RECORD_BYTES) + 1
    }

    /// An empty answer with a code.
    pub(crate) fn reply(&self, code: ResponseCode) -> Message {
        let mut message = Message::new(self.head.id, MessageType::Response, self.head.op_code);
        message.metadata = Metadata::response_from_request(&self.head);
        message.metadata.recursion_available = true;
        message.metadata.response_code = code;
        message.queries.extend(self.query.clone());
        message
    }

    /// Encodes an answer for a transport: leaves out additional records first, then marks it as truncated (RFC 2181
    /// §9).
    pub(crate) fn encode(&self, mut reply: Message, transport: Transport) -> Option<Vec<u8>> {
        let reserve = if self.edns.is_some() { OPT_BYTES } else { 0 };
        let limit = self.bytes_max(transport) - reserve;
        let mut packet = encode(&reply, limit)?;
        if is_truncated(&packet) && !reply.metadata.truncation && !reply.additionals.is_empty() {
            reply.additionals.clear();
            packet = encode(&reply, limit)?;
        }
        if let Some(edns) = self.edns {
            append_opt(&mut packet, edns, reply.metadata.response_code);
        }
        Some(packet)
    }

    /// The answer without records that sends a client to TCP.
    pub(crate) fn truncated(&self) -> Message {
        let mut reply = self.reply(ResponseCode::NoError);
        reply.metadata.truncation = true;
        reply
    }
}

/// The code of a question that is not answered: other classes, zone transfers, and `ANY` (RFC 8482: a cheap
/// amplifier).
fn rejection(query: &Query) -> Option<ResponseCode> {
    let refused = query.query_class() != DNSClass::IN
        || matches!(query.query_type(), RecordType::ANY | RecordType::AXFR | RecordType::IXFR);
    let malformed = matches!(query.query_type(), RecordType::OPT | RecordType::TSIG | RecordType::ZERO);
    match (malformed, refused) {
        (true, _) => Some(ResponseCode::FormErr),
        (false, true) => Some(ResponseCode::Refused),
        (false, false) => None,
    }
}

fn encode(message: &Message, limit: u16) -> Option<Vec<u8>> {
    let mut packet = Vec::with_capacity(usize::from(UDP_BYTES_PLAIN));
    let mut encoder = BinEncoder::new(&mut packet);
    encoder.set_max_size(limit);
    match message.emit(&mut encoder) {
        Ok(()) => {
            // A record that didn't fit has left bytes behind the end.
            let end = encoder.offset();
            packet.truncate(end);
            Some(packet)
        }
        Err(error) => {
            tracing::debug!(%error, "a DNS answer cannot be encoded");
            None
        }
    }
}

fn is_truncated(packet: &[u8]) -> bool {
    packet.get(2).is_some_and(|flags| flags & 2 != 0)
}

/// Adds the OPT record, which has to be present also in a truncated answer (RFC 6891 §7).
fn append_opt(packet: &mut Vec<u8>, edns: RequestEdns, code: ResponseCode) {
    let [.., high, low] = UDP_BYTES_MAX.to_be_bytes();
    let flags = if edns.dnssec_ok { 0x80 } else { 0 };
    packet.extend([0, 0, 41, high, low, code.high(), 0, flags, 0, 0, 0]);
    if let Some([high, low]) = packet.get_mut(10..12) {
        [*high, *low] = u16::from_be_bytes([*high, *low]).saturating_add(1).to_be_bytes();
    }
}

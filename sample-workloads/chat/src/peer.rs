//! One connection as a state: received bytes in, bytes to send out, a deadline. Effects on its room are returned to
//! [`hub`](crate::hub).
use crate::frames::{Decoder, Event, Opcode, Sender, Violation, code, write_close, write_frame};
use crate::handshake::{self, Handshake, Parsed, Request};
use crate::settings::Settings;
use alloc::string::String;
use alloc::vec::Vec;

/// Timeout of a request's head.
const HEAD_MS: u64 = 10_000;
/// Time for a connection that ends, to send its pending bytes and to receive the peer's end.
const ENDING_MS: u64 = 5_000;
/// A connection with so many pending bytes is not read further.
const OUTPUT_BYTES_HIGH: usize = 256 * 1024;
/// A member of a room with so many pending bytes is dropped: the others don't wait for it.
pub const QUEUE_BYTES_MAX: usize = 64 * 1024;
/// A buffer up to this size is reused for the next message.
const OUTPUT_BYTES_KEPT: usize = 1024;
/// Sent bytes are removed from a buffer with so many of them.
const SENT_BYTES_MAX: usize = 64 * 1024;
/// Maximum bytes of a message in a room.
const TEXT_BYTES_MAX: usize = 4 * 1024;
/// Maximum characters of a name of a room or a member.
const NAME_CHARACTERS_MAX: usize = 32;
/// Messages that a member may send at once, and per second on average: each goes to all members of its room.
const BURST: u64 = 50;
const MESSAGES_PER_SECOND: u64 = 20;

const PAGE: &str = include_str!("page.html");
/// The page contains its script and style, and connects to this server alone.
const PAGE_HEADERS: &str = "Content-Security-Policy: default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; form-action 'none'; frame-ancestors 'none'\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-cache\r\n";

/// A name in a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub room: String,
    pub name: String,
}

/// The use of a connection.
enum Stage {
    /// Its request is incomplete.
    Head,
    Echo,
    Chat(Member),
    /// It is closed after its last byte and the peer's end, or at its deadline. Received bytes are ignored.
    Ending,
}

/// The effect of received bytes on others.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect {
    Joins(Member),
    Says(String),
    /// A request for `/stats`, with its method.
    WantsStats {
        is_head: bool,
    },
}

pub struct Peer {
    stage: Stage,
    head: Vec<u8>,
    decoder: Option<Decoder>,
    output: Vec<u8>,
    /// Bytes of `output` that were sent.
    sent: usize,
    /// A ping was sent after the last received byte.
    is_pinged: bool,
    /// The time at which the messages so far are within the permitted rate.
    paced_ms: u64,
    deadline_ms: u64,
    input_ended: bool,
    /// Nothing more can be sent or received.
    is_closed: bool,
}

impl Peer {
    pub fn new(now_ms: u64) -> Self {
        Self {
            stage: Stage::Head,
            head: Vec::new(),
            decoder: None,
            output: Vec::new(),
            sent: 0,
            is_pinged: false,
            paced_ms: 0,
            deadline_ms: now_ms + HEAD_MS,
            input_ended: false,
            is_closed: false,
        }
    }

    /// Bytes to send.
    pub fn pending(&self) -> &[u8] {
        &self.output[self.sent..]
    }

    /// Records that the first bytes of [`Peer::pending`] were sent.
    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.sent == self.output.len() {
            self.sent = 0;
            if self.output.capacity() > OUTPUT_BYTES_KEPT { self.output = Vec::new() } else { self.output.clear() }
        } else if self.sent >= SENT_BYTES_MAX {
            // A peer that never catches up never gets here otherwise.
            self.output.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Bytes of the heap that the connection has.
    pub fn buffered(&self) -> usize {
        self.output.capacity() + self.head.capacity() + self.decoder.as_ref().map_or(0, Decoder::buffered)
    }

    /// Whether more is read of it: not while it has too many pending bytes.
    pub fn wants_input(&self) -> bool {
        !self.input_ended && self.pending().len() < OUTPUT_BYTES_HIGH
    }

    /// Whether [`Peer::pending`] is the last of its output.
    pub fn is_ending(&self) -> bool {
        matches!(self.stage, Stage::Ending)
    }

    pub fn is_closed(&self) -> bool {
        self.is_closed || self.is_ending() && self.input_ended && self.pending().is_empty()
    }

    /// Drops the connection, without a close frame.
    pub fn drop_now(&mut self) {
        self.is_closed = true;
    }

    pub fn member(&self) -> Option<&Member> {
        match &self.stage {
            Stage::Chat(member) => Some(member),
            _ => None,
        }
    }

    pub fn deadline_ms(&self) -> u64 {
        self.deadline_ms
    }

    /// The peer's output has ended. A WebSocket without its close frame is broken (§7.1.1).
    pub fn end_input(&mut self, now_ms: u64) {
        self.input_ended = true;
        self.end(now_ms);
    }

    fn end(&mut self, now_ms: u64) {
        self.stage = Stage::Ending;
        self.decoder = None;
        self.head = Vec::new();
        self.deadline_ms = now_ms + ENDING_MS;
    }

    /// Handles received bytes.
    pub fn receive(&mut self, mut bytes: &[u8], settings: &Settings, now_ms: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        if matches!(self.stage, Stage::Head) {
            let before = self.head.len();
            self.head.extend_from_slice(bytes);
            match handshake::parse(&self.head) {
                Parsed::Incomplete => return effects,
                Parsed::Bad(status, problem) => {
                    self.respond(status, "", "text/plain", problem, false, now_ms);
                    return effects;
                }
                Parsed::Request(request, length) => {
                    bytes = &bytes[length - before..]; // the head was incomplete before
                    self.head = Vec::new();
                    effects.extend(self.answer(&request, settings, now_ms));
                }
            }
        }
        if self.decoder.is_some() {
            self.is_pinged = false;
            self.deadline_ms = now_ms + settings.ping_ms;
        }
        while let Some(decoder) = &mut self.decoder {
            match decoder.next(&mut bytes) {
                Ok(None) => break,
                Ok(Some(event)) => effects.extend(self.handle(event, now_ms)),
                Err(violation) => self.violate(violation, now_ms),
            }
        }
        effects
    }

    fn answer(&mut self, request: &Request, settings: &Settings, now_ms: u64) -> Option<Effect> {
        let is_head = request.method == "HEAD";
        if !is_head && request.method != "GET" {
            self.respond(405, "Allow: GET, HEAD\r\n", "text/plain", "only GET and HEAD", false, now_ms);
            return None;
        }
        match (request.path.as_str(), &request.handshake) {
            (_, Handshake::Bad(problem)) => self.respond(400, "", "text/plain", problem, is_head, now_ms),
            ("/ws" | "/echo", Handshake::None) | (_, Handshake::OtherVersion) => {
                let headers = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
                self.respond(426, headers, "text/plain", "this is a WebSocket of version 13", is_head, now_ms);
            }
            (_, Handshake::Accepted(_)) if !request.is_permitted_origin(&settings.origins) => {
                self.respond(403, "", "text/plain", "pages of other sites can't connect", false, now_ms);
            }
            ("/echo", Handshake::Accepted(accept)) => {
                handshake::write_accepted(&mut self.output, accept);
                self.decoder = Some(Decoder::new(Sender::Client, settings.echo_bytes_max));
                self.stage = Stage::Echo;
            }
            ("/ws", Handshake::Accepted(accept)) => {
                let field = |name| request.field(name).filter(|name| is_name(name));
                let (Some(room), Some(name)) = (field("room"), field("name")) else {
                    let problem = "room and name have 1 to 32 characters each, none a control character";
                    self.respond(400, "", "text/plain", problem, false, now_ms);
                    return None;
                };
                handshake::write_accepted(&mut self.output, accept);
                self.decoder = Some(Decoder::new(Sender::Client, TEXT_BYTES_MAX));
                return Some(Effect::Joins(Member { room: room.into(), name: name.into() }));
            }
            ("/", Handshake::None) => {
                self.respond(200, PAGE_HEADERS, "text/html; charset=utf-8", PAGE, is_head, now_ms);
            }
            ("/stats", Handshake::None) => return Some(Effect::WantsStats { is_head }),
            (_, Handshake::None | Handshake::Accepted(_)) => {
                self.respond(404, "", "text/plain", "nothing here", is_head, now_ms);
            }
        }
        None
    }

    /// Queues a response, after which the connection ends.
    pub fn respond(&mut self, status: u16, headers: &str, content_type: &str, body: &str, is_head: bool, now_ms: u64) {
        handshake::write_response(&mut self.output, status, headers, content_type, body, is_head);
        self.end(now_ms);
    }

    /// Joins a room, under a name that is unique in it.
    pub fn join(&mut self, member: Member) {
        self.stage = Stage::Chat(member);
    }

    fn handle(&mut self, event: Event, now_ms: u64) -> Option<Effect> {
        let is_echo = matches!(self.stage, Stage::Echo);
        match (event, is_echo) {
            (Event::Close(code), _) => {
                write_close(&mut self.output, code, "", None);
                self.end(now_ms);
            }
            (Event::Ping(payload), _) => self.write(Opcode::Pong, &payload),
            (Event::Pong, _) => {}
            (Event::Text(text), true) => self.write(Opcode::Text, text.as_bytes()),
            (Event::Binary(bytes), true) => self.write(Opcode::Binary, &bytes),
            (Event::Text(text), _) if self.is_within_rate(now_ms) => {
                return Some(text).filter(|text| !text.is_empty()).map(Effect::Says);
            }
            (Event::Text(_), _) => {
                self.violate(Violation { code: code::POLICY, reason: "too many messages" }, now_ms);
            }
            (Event::Binary(_), _) => {
                self.violate(Violation { code: code::UNSUPPORTED, reason: "messages are text" }, now_ms);
            }
        }
        None
    }

    fn is_within_rate(&mut self, now_ms: u64) -> bool {
        let paced_ms = self.paced_ms.max(now_ms) + 1000 / MESSAGES_PER_SECOND;
        let permitted = paced_ms <= now_ms + BURST * 1000 / MESSAGES_PER_SECOND;
        if permitted {
            self.paced_ms = paced_ms;
        }
        permitted
    }

    fn violate(&mut self, violation: Violation, now_ms: u64) {
        write_close(&mut self.output, Some(violation.code), violation.reason, None);
        self.end(now_ms);
    }

    fn write(&mut self, opcode: Opcode, payload: &[u8]) {
        write_frame(&mut self.output, opcode, payload, None);
    }

    /// Queues frames of the room; returns whether the queue has space for them.
    pub fn queue(&mut self, frames: &[u8]) -> bool {
        let has_space = self.pending().len() + frames.len() <= QUEUE_BYTES_MAX;
        if has_space {
            self.output.extend_from_slice(frames);
        }
        has_space
    }

    /// Acts on the deadline.
    pub fn tick(&mut self, settings: &Settings, now_ms: u64) {
        if now_ms < self.deadline_ms {
            return;
        }
        match self.stage {
            Stage::Head => self.respond(408, "", "text/plain", "the request took too long", false, now_ms),
            Stage::Ending => self.drop_now(),
            Stage::Echo | Stage::Chat(_) if self.is_pinged => self.drop_now(),
            Stage::Echo | Stage::Chat(_) => {
                self.is_pinged = true;
                self.deadline_ms = now_ms + settings.ping_ms;
                self.write(Opcode::Ping, b"");
            }
        }
    }
}

fn is_name(name: &str) -> bool {
    let count = name.chars().count();
    (1..=NAME_CHARACTERS_MAX).contains(&count) && !name.chars().any(char::is_control) && name.trim() == name
}

//! The frames of a WebSocket connection (RFC 6455, without extensions). Input: bytes in pieces of any size. Output: messages, control
//! frames, or the violation that ends the connection. The decoder buffers the received part of one message, at most its permitted size.
use alloc::string::String;
use alloc::vec::Vec;
use core::mem::take;

/// Maximum payload of a control frame (§5.5).
const CONTROL_BYTES_MAX: usize = 125;
/// The longest header: two bytes, eight of length, four of the mask.
const HEADER_BYTES_MAX: usize = 14;

/// Status codes of a close frame (§7.4.1).
pub mod code {
    pub const NORMAL: u16 = 1000;
    pub const PROTOCOL: u16 = 1002;
    pub const UNSUPPORTED: u16 = 1003;
    pub const INVALID: u16 = 1007;
    pub const POLICY: u16 = 1008;
    pub const TOO_BIG: u16 = 1009;
}

/// The type of a frame (§5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    fn of(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return None,
        })
    }

    fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }

    fn is_control(self) -> bool {
        self.bits() >= 8
    }
}

/// A whole message, or a control frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    /// With its status code, if it has one.
    Close(Option<u16>),
}

/// The reason for which a connection ends, for its close frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation {
    pub code: u16,
    pub reason: &'static str,
}

const fn protocol(reason: &'static str) -> Violation {
    Violation { code: code::PROTOCOL, reason }
}

const NOT_UTF8: Violation = Violation { code: code::INVALID, reason: "text that isn't UTF-8" };

/// The sender of decoded frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// All its frames are masked (§5.1).
    Client,
    /// No frame is masked.
    Server,
}

struct Frame {
    opcode: Opcode,
    is_final: bool,
    /// Bytes of the payload that are missing.
    left: usize,
    mask: [u8; 4],
    /// Bytes of the payload that were read.
    done: usize,
}

/// A message without its final frame.
struct Message {
    is_text: bool,
    bytes: Vec<u8>,
    /// Number of bytes of a text that are whole characters.
    checked: usize,
}

/// The decoder of one direction.
pub struct Decoder {
    sender: Sender,
    message_bytes_max: usize,
    header: [u8; HEADER_BYTES_MAX],
    header_length: usize,
    frame: Option<Frame>,
    message: Option<Message>,
    control: Vec<u8>,
}

impl Decoder {
    pub fn new(sender: Sender, message_bytes_max: usize) -> Self {
        Self {
            sender,
            message_bytes_max,
            header: [0; HEADER_BYTES_MAX],
            header_length: 0,
            frame: None,
            message: None,
            control: Vec::new(),
        }
    }

    /// Returns the next event, and removes its bytes from `input`; `None` if `input` is used up.
    ///
    /// # Errors
    /// Bytes that the protocol doesn't permit. The bytes after them have no meaning.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Event>, Violation> {
        loop {
            if self.frame.is_none() && !self.read_header(input)? {
                return Ok(None);
            }
            self.read_payload(input)?;
            match self.frame.take_if(|frame| frame.left == 0) {
                Some(frame) => {
                    if let Some(event) = self.end_frame(&frame)? {
                        return Ok(Some(event));
                    }
                }
                None => return Ok(None),
            }
        }
    }

    /// Bytes of the heap that the decoder has.
    pub fn buffered(&self) -> usize {
        self.control.capacity() + self.message.as_ref().map_or(0, |message| message.bytes.capacity())
    }

    /// Returns whether the header is whole.
    fn read_header(&mut self, input: &mut &[u8]) -> Result<bool, Violation> {
        loop {
            let needed = self.header_bytes();
            if self.header_length == needed {
                break;
            }
            let Some((first, rest)) = input.split_first() else { return Ok(false) };
            self.header[self.header_length] = *first;
            self.header_length += 1;
            *input = rest;
            // An invalid frame is rejected before its length arrives.
            if self.header_length == 2 {
                self.check_begin()?;
            }
        }
        let [first, second, ..] = self.header;
        let opcode = Opcode::of(first & 15).ok_or(protocol("a reserved opcode"))?;
        let length = match second & 127 {
            126 => u64::from(u16::from_be_bytes([self.header[2], self.header[3]])),
            127 => u64::from_be_bytes(self.header[2..10].try_into().unwrap_or_default()),
            short => u64::from(short),
        };
        let least = [(126, 126), (127, 1 << 16)].into_iter().find(|(form, _)| *form == second & 127);
        if least.is_some_and(|(_, least)| length < least) || length >> 63 != 0 {
            return Err(protocol("a length that isn't in its shortest form"));
        }
        let before =
            if opcode.is_control() { 0 } else { self.message.as_ref().map_or(0, |message| message.bytes.len()) };
        let left = usize::try_from(length).ok().filter(|left| *left <= self.message_bytes_max.saturating_sub(before));
        let left = left.or((opcode.is_control()).then_some(length as usize)); // at most 125
        let left = left.ok_or(Violation { code: code::TOO_BIG, reason: "the message is too long" })?;
        let mut mask = [0; 4];
        if self.sender == Sender::Client {
            mask.copy_from_slice(&self.header[self.header_length - 4..self.header_length]);
        }
        self.header_length = 0;
        self.frame = Some(Frame { opcode, is_final: first & 0x80 != 0, left, mask, done: 0 });
        if matches!(opcode, Opcode::Text | Opcode::Binary) {
            self.message = Some(Message { is_text: opcode == Opcode::Text, bytes: Vec::new(), checked: 0 });
        }
        Ok(true)
    }

    /// The length of the header, as far as it is known.
    fn header_bytes(&self) -> usize {
        if self.header_length < 2 {
            return 2;
        }
        let length = match self.header[1] & 127 {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        2 + length + if self.sender == Sender::Client { 4 } else { 0 }
    }

    fn check_begin(&self) -> Result<(), Violation> {
        let [first, second, ..] = self.header;
        if first & 0x70 != 0 {
            return Err(protocol("a reserved bit"));
        }
        let opcode = Opcode::of(first & 15).ok_or(protocol("a reserved opcode"))?;
        if (second & 0x80 != 0) != (self.sender == Sender::Client) {
            return Err(protocol("a client's frames are masked, and a server's aren't"));
        }
        if opcode.is_control() {
            if first & 0x80 == 0 {
                return Err(protocol("a control frame in parts"));
            }
            if usize::from(second & 127) > CONTROL_BYTES_MAX {
                return Err(protocol("a control frame of more than 125 bytes"));
            }
        } else if (opcode == Opcode::Continuation) != self.message.is_some() {
            return Err(protocol("a frame that isn't the next part of a message"));
        }
        Ok(())
    }

    fn read_payload(&mut self, input: &mut &[u8]) -> Result<(), Violation> {
        let Some(frame) = &mut self.frame else { return Ok(()) };
        let (now, rest) = input.split_at(frame.left.min(input.len()));
        *input = rest;
        let is_control = frame.opcode.is_control();
        let into = match &mut self.message {
            Some(message) if !is_control => &mut message.bytes,
            _ => &mut self.control,
        };
        let from = into.len();
        into.extend_from_slice(now);
        if frame.mask != [0; 4] {
            apply_mask(&mut into[from..], frame.mask, frame.done);
        }
        frame.left -= now.len();
        frame.done += now.len();
        match &mut self.message {
            Some(message) if !is_control && message.is_text => check_text(message),
            _ => Ok(()),
        }
    }

    fn end_frame(&mut self, frame: &Frame) -> Result<Option<Event>, Violation> {
        Ok(match frame.opcode {
            Opcode::Ping => Some(Event::Ping(take(&mut self.control))),
            Opcode::Pong => {
                self.control.clear();
                Some(Event::Pong)
            }
            Opcode::Close => Some(Event::Close(close_code(&take(&mut self.control))?)),
            _ if !frame.is_final => None,
            _ => match self.message.take() {
                None => None, // a data frame always has one
                Some(message) if !message.is_text => Some(Event::Binary(message.bytes)),
                Some(message) if message.checked < message.bytes.len() => return Err(NOT_UTF8),
                Some(message) => Some(Event::Text(String::from_utf8(message.bytes).map_err(|_| NOT_UTF8)?)),
            },
        })
    }
}

/// Rejects bytes that can't become a character at once. A character may be in two pieces.
fn check_text(message: &mut Message) -> Result<(), Violation> {
    match core::str::from_utf8(&message.bytes[message.checked..]) {
        Ok(_) => message.checked = message.bytes.len(),
        Err(error) if error.error_len().is_some() => return Err(NOT_UTF8),
        Err(error) => message.checked += error.valid_up_to(),
    }
    Ok(())
}

fn close_code(payload: &[u8]) -> Result<Option<u16>, Violation> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return if payload.is_empty() { Ok(None) } else { Err(protocol("half a status code")) };
    };
    let code = u16::from_be_bytes(*code);
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(protocol("a status code that isn't for close frames"));
    }
    core::str::from_utf8(reason).map_err(|_| NOT_UTF8)?;
    Ok(Some(code))
}

fn apply_mask(bytes: &mut [u8], mask: [u8; 4], done: usize) {
    let mut turned = mask;
    turned.rotate_left(done % 4);
    let word = u32::from_ne_bytes(turned);
    let (words, rest) = bytes.as_chunks_mut::<4>();
    for four in words {
        *four = (u32::from_ne_bytes(*four) ^ word).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(turned) {
        *byte ^= mask;
    }
}

/// Writes a whole message or control frame. Clients mask each frame, servers none.
pub fn write_frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8], mask: Option<[u8; 4]>) {
    let masked = if mask.is_some() { 0x80 } else { 0 };
    out.push(0x80 | opcode.bits());
    match payload.len() {
        length @ 0..=125 => out.push(masked | length as u8),
        length @ 126..=0xffff => {
            out.push(masked | 126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(masked | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(mask.as_ref().map_or(&[], |mask| mask));
    let from = out.len();
    out.extend_from_slice(payload);
    if let Some(mask) = mask {
        apply_mask(&mut out[from..], mask, 0);
    }
}

/// Writes a close frame.
pub fn write_close(out: &mut Vec<u8>, code: Option<u16>, reason: &str, mask: Option<[u8; 4]>) {
    let mut payload = Vec::new();
    if let Some(code) = code {
        payload.extend_from_slice(&code.to_be_bytes());
        payload.extend_from_slice(reason.as_bytes());
    }
    write_frame(out, Opcode::Close, &payload, mask);
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;

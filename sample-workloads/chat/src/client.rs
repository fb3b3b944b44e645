//! `chat call [--lines N] URL TEXT…`: sends the texts over a WebSocket and prints the next messages, for Jobs and probes.
use crate::frames::{Decoder, Event, Opcode, Sender, code, write_close, write_frame};
use crate::handshake::{base64, check_response, write_request};
use crate::settings::Address;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use guest::net::{Connection, Read, after_ms, wait};
use guest::wasip2::random::random::{get_random_bytes, get_random_u64};

const USAGE: &str = "usage: chat call [--lines N] ws://HOST[:PORT]/PATH TEXT…";
const READ_BYTES: usize = 16 * 1024;
/// Maximum bytes of a message, and of input that arrives while the client sends.
const INPUT_BYTES_MAX: usize = 1024 * 1024;
/// Timeout of the next byte from the server, and of the next one to it.
const SILENCE_MS: u64 = 30_000;

/// Sends each text as a message, prints as many received ones (or `N`), and closes.
///
/// # Errors
/// The server can't be reached, refuses the handshake, violates the protocol, or closes before the last message.
pub fn call(arguments: &[String]) -> Result<(), String> {
    let (lines, rest) = match arguments {
        [option, number, rest @ ..] if option == "--lines" => (Some(number.parse().map_err(|_| USAGE)?), rest),
        rest => (None, rest),
    };
    let (url, texts) = rest.split_first().ok_or(USAGE)?;
    let lines: usize = lines.unwrap_or(texts.len());
    let address = Address::parse(url).ok_or(USAGE)?;
    let connection = Connection::open(address.host, address.port).map_err(|error| format!("{url}: {error}"))?;
    let mut wire = Wire { connection, input: Vec::new() };
    wire.shake_hands(&address)?;
    for text in texts {
        wire.send(Opcode::Text, text.as_bytes())?;
    }
    let mut decoder = Decoder::new(Sender::Server, INPUT_BYTES_MAX);
    let mut printed = 0;
    while printed < lines {
        match wire.next(&mut decoder)? {
            Event::Text(text) => {
                guest::process::print(&text);
                printed += 1;
            }
            Event::Binary(bytes) => {
                guest::process::print(&format!("{} bytes", bytes.len()));
                printed += 1;
            }
            Event::Ping(payload) => wire.send(Opcode::Pong, &payload)?,
            Event::Pong => {}
            Event::Close(code) => {
                wire.close(code.unwrap_or(code::NORMAL))?;
                let code = code.map_or("no code".to_string(), |code| code.to_string());
                return Err(format!("the server closes with {code} after {printed} messages"));
            }
        }
    }
    wire.close(code::NORMAL)?;
    while !matches!(wire.next(&mut decoder)?, Event::Close(_)) {}
    Ok(())
}

/// A new mask for each frame, which no peer can predict (RFC 6455, §5.3).
fn mask() -> [u8; 4] {
    (get_random_u64() as u32).to_ne_bytes()
}

struct Wire {
    connection: Connection,
    /// Received bytes that aren't decoded.
    input: Vec<u8>,
}

impl Wire {
    fn shake_hands(&mut self, address: &Address<'_>) -> Result<(), String> {
        let key = base64(&get_random_bytes(16));
        let mut request = Vec::new();
        write_request(&mut request, address.authority, address.target, &key);
        self.write(&request)?;
        loop {
            if let Some(length) = check_response(&self.input, &key)? {
                self.input.drain(..length);
                return Ok(());
            }
            self.read()?;
        }
    }

    fn next(&mut self, decoder: &mut Decoder) -> Result<Event, String> {
        loop {
            let mut rest = self.input.as_slice();
            let event = decoder.next(&mut rest);
            let read = self.input.len() - rest.len();
            self.input.drain(..read);
            match event {
                Ok(Some(event)) => return Ok(event),
                Ok(None) => self.read()?,
                Err(violation) => {
                    self.close(violation.code)?;
                    return Err(format!("the server violates the protocol: {}", violation.reason));
                }
            }
        }
    }

    fn send(&mut self, opcode: Opcode, payload: &[u8]) -> Result<(), String> {
        let mut frame = Vec::new();
        write_frame(&mut frame, opcode, payload, Some(mask()));
        self.write(&frame)
    }

    fn close(&mut self, code: u16) -> Result<(), String> {
        let mut frame = Vec::new();
        write_close(&mut frame, Some(code), "", Some(mask()));
        self.write(&frame)
    }

    /// Reads meanwhile: the server may wait until its messages are read.
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), String> {
        while !bytes.is_empty() {
            let written = self.connection.write(bytes).map_err(|_| "the connection broke")?;
            bytes = &bytes[written..];
            if written > 0 {
                continue;
            }
            let timer = after_ms(SILENCE_MS);
            let reads = self.input.len() < INPUT_BYTES_MAX;
            let (writable, readable) = (self.connection.writable(), self.connection.readable());
            let ready = if reads { wait(&[&timer, writable, readable]) } else { wait(&[&timer, writable]) };
            if ready.contains(&0) {
                return Err(format!("the server read nothing for {} s", SILENCE_MS / 1000));
            }
            if ready.contains(&2) {
                self.read()?;
            }
        }
        Ok(())
    }

    /// Waits for more input.
    fn read(&mut self) -> Result<(), String> {
        loop {
            match self.connection.read(READ_BYTES).map_err(|_| "the connection broke")? {
                Read::Bytes(bytes) => {
                    self.input.extend_from_slice(&bytes);
                    return Ok(());
                }
                Read::End => return Err("the server closed the connection".into()),
                Read::Nothing => {
                    let timer = after_ms(SILENCE_MS);
                    if !wait(&[self.connection.readable(), &timer]).contains(&0) {
                        return Err(format!("the server sent nothing for {} s", SILENCE_MS / 1000));
                    }
                }
            }
        }
    }
}

//! Inputs and outputs of tools: the session's streams, files, or the buffer between two tools of a pipeline.
use alloc::rc::Rc;
use core::cell::RefCell;
use guest::wasip2::io::poll::{self, Pollable};
use guest::wasip2::io::streams::{InputStream, OutputStream, StreamError};
use guest::wasip2::{cli, filesystem::types::Descriptor};
use guest::{String, Vec};

/// Maximum bytes of one read.
pub const READ_BYTES: u64 = 64 * 1024;
/// Maximum bytes of one blocking write, by its definition.
const WRITE_BYTES_MAX: usize = 4096;
/// Maximum bytes between two tools of a pipeline, which run in sequence.
pub const PIPE_BYTES_MAX: usize = 32 << 20;
/// ^C and ^D, as passed by the node's terminal.
const INTERRUPT: u8 = 3;
const END: u8 = 4;

/// The reason of a tool's early end: its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop(pub i32);

/// ^C
pub const INTERRUPTED: Stop = Stop(130);
/// The output for the next tool exceeded its bound.
pub const PIPE_FULL: Stop = Stop(142);
/// The reader is closed, as by an unhandled SIGPIPE.
pub const CLOSED: Stop = Stop(141);

/// An input; an empty read is its end. A clone shares the position.
#[derive(Clone)]
pub struct Input(Rc<RefCell<Source>>);

pub enum Source {
    Empty,
    /// The session's input.
    Stdin,
    Bytes(Vec<u8>, usize),
    File(Descriptor, u64),
}

impl From<Source> for Input {
    fn from(source: Source) -> Self {
        Self(Rc::new(RefCell::new(source)))
    }
}

/// Data of the session's input that was read and not used.
pub struct Stdin {
    stream: InputStream,
    rest: Vec<u8>,
    is_terminal: bool,
    ended: bool,
}

impl Stdin {
    pub fn new() -> Self {
        let is_terminal = cli::terminal_stdin::get_terminal_stdin().is_some();
        Self { stream: cli::stdin::get_stdin(), rest: Vec::new(), is_terminal, ended: false }
    }

    pub fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    fn read(&mut self) -> Result<Vec<u8>, Stop> {
        if self.rest.is_empty() && !self.ended {
            match self.stream.blocking_read(READ_BYTES) {
                Ok(read) => self.rest = read,
                Err(_) => self.ended = true,
            }
        }
        self.take()
    }

    /// As [`Self::read`]; none if it would wait.
    fn try_read(&mut self) -> Result<Option<Vec<u8>>, Stop> {
        if self.rest.is_empty() && !self.ended {
            match self.stream.read(READ_BYTES) {
                Ok(read) if read.is_empty() => return Ok(None),
                Ok(read) => self.rest = read,
                Err(_) => self.ended = true,
            }
        }
        self.take().map(Some)
    }

    /// The data; empty at the end, or after ^D on a terminal.
    fn take(&mut self) -> Result<Vec<u8>, Stop> {
        let mut bytes = core::mem::take(&mut self.rest);
        if self.is_terminal
            && let Some(at) = bytes.iter().position(|byte| matches!(*byte, INTERRUPT | END))
        {
            if at > 0 {
                self.rest = bytes.split_off(at);
                return Ok(bytes);
            }
            let sign = bytes[0];
            self.rest = bytes.split_off(1);
            return if sign == INTERRUPT { Err(INTERRUPTED) } else { Ok(Vec::new()) };
        }
        Ok(bytes)
    }

    /// Whether ^C was typed on a terminal without a reader: earlier input is discarded, as on any terminal.
    pub fn heed(&mut self) -> Result<(), Stop> {
        if !self.is_terminal {
            return Ok(());
        }
        if self.hears() {
            match self.stream.read(READ_BYTES) {
                Ok(bytes) => self.rest.extend_from_slice(&bytes),
                Err(_) => self.ended = true,
            }
        }
        match self.rest.iter().rposition(|byte| *byte == INTERRUPT) {
            Some(at) => {
                self.rest.drain(..=at);
                Err(INTERRUPTED)
            }
            None => Ok(()),
        }
    }

    /// Whether more typed input can be buffered for the next reader.
    fn hears(&self) -> bool {
        !self.ended && self.rest.len() < READ_BYTES as usize
    }

    /// Returns data that was read too far.
    fn unread(&mut self, mut bytes: Vec<u8>) {
        bytes.append(&mut self.rest);
        self.rest = bytes;
    }

    /// Sleeps; ^C on a terminal aborts.
    pub fn sleep(&mut self, nanoseconds: u64) -> Result<(), Stop> {
        self.wait(&guest::wasip2::clocks::monotonic_clock::subscribe_duration(nanoseconds))
    }

    /// Waits for a pollable; ^C on a terminal aborts.
    pub fn wait(&mut self, pollable: &Pollable) -> Result<(), Stop> {
        self.wait_for(&[pollable]).map(drop)
    }

    /// Ready when input was typed, or at its end.
    pub fn subscribe(&self) -> Pollable {
        self.stream.subscribe()
    }

    /// Waits for one of the pollables; ^C on a terminal aborts. Returns the ready ones.
    pub fn wait_for(&mut self, pollables: &[&Pollable]) -> Result<Vec<u32>, Stop> {
        while self.is_terminal {
            // It may have arrived together with the line of this command.
            self.heed()?;
            if !self.hears() {
                break;
            }
            let typed = self.stream.subscribe();
            let mut all = pollables.to_vec();
            all.push(&typed);
            let mut ready = poll::poll(&all);
            ready.retain(|at| (*at as usize) < pollables.len());
            if !ready.is_empty() {
                return Ok(ready);
            }
        }
        Ok(poll::poll(pollables))
    }
}

impl Input {
    /// The next data; empty at the end.
    pub fn read(&mut self, stdin: &mut Stdin) -> Result<Vec<u8>, Stop> {
        match &mut *self.0.borrow_mut() {
            Source::Empty => Ok(Vec::new()),
            Source::Stdin => stdin.read(),
            Source::Bytes(bytes, at) => {
                let from = *at;
                *at = bytes.len().min(from + READ_BYTES as usize);
                Ok(bytes[from..*at].to_vec())
            }
            Source::File(file, at) => {
                let (bytes, _) = file.read(READ_BYTES, *at).map_err(|_| Stop(1))?;
                *at += bytes.len() as u64;
                Ok(bytes)
            }
        }
    }

    /// As [`Self::read`]; none if it would wait for the session's client.
    pub fn try_read(&mut self, stdin: &mut Stdin) -> Result<Option<Vec<u8>>, Stop> {
        let from_stdin = matches!(&*self.0.borrow(), Source::Stdin);
        if from_stdin { stdin.try_read() } else { self.read(stdin).map(Some) }
    }

    fn unread(&mut self, stdin: &mut Stdin, bytes: Vec<u8>) {
        match &mut *self.0.borrow_mut() {
            Source::Empty => {}
            Source::Stdin => stdin.unread(bytes),
            Source::Bytes(_, at) => *at -= bytes.len(),
            Source::File(_, at) => *at -= bytes.len() as u64,
        }
    }

    /// One line with its newline and no more: the rest is for the next reader. None at the end.
    pub fn line(&mut self, stdin: &mut Stdin) -> Result<Option<Vec<u8>>, Stop> {
        let mut line = Vec::new();
        loop {
            let mut bytes = self.read(stdin)?;
            if bytes.is_empty() {
                return Ok((!line.is_empty()).then_some(line));
            }
            if let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
                let rest = bytes.split_off(end + 1);
                line.append(&mut bytes);
                if !rest.is_empty() {
                    self.unread(stdin, rest);
                }
                return Ok(Some(line));
            }
            line.append(&mut bytes);
        }
    }
}

/// An output. A clone writes to the same one.
#[derive(Clone)]
pub struct Output(Rc<RefCell<Sink>>);

pub enum Sink {
    Nowhere,
    Stream(OutputStream),
    Bytes(Vec<u8>),
    File(Descriptor, u64),
}

impl From<Sink> for Output {
    fn from(sink: Sink) -> Self {
        Self(Rc::new(RefCell::new(sink)))
    }
}

impl Output {
    /// The data written to memory.
    pub fn take(&self) -> Vec<u8> {
        match &mut *self.0.borrow_mut() {
            Sink::Bytes(bytes) => core::mem::take(bytes),
            _ => Vec::new(),
        }
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        match &mut *self.0.borrow_mut() {
            Sink::Nowhere => Ok(()),
            Sink::Stream(stream) => write_stream(stream, bytes),
            Sink::Bytes(all) => {
                if all.len() + bytes.len() > PIPE_BYTES_MAX {
                    return Err(PIPE_FULL);
                }
                all.extend_from_slice(bytes);
                Ok(())
            }
            Sink::File(file, at) => {
                let mut bytes = bytes;
                while !bytes.is_empty() {
                    let piece = &bytes[..bytes.len().min(READ_BYTES as usize)];
                    let written = file.write(piece, *at).map_err(|_| Stop(1))?;
                    *at += written;
                    bytes = &bytes[written as usize..];
                }
                Ok(())
            }
        }
    }

    pub fn line(&mut self, text: &str) -> Result<(), Stop> {
        let mut line = String::from(text);
        line.push('\n');
        self.write(line.as_bytes())
    }
}

/// Waits for a slow reader.
fn write_stream(stream: &OutputStream, bytes: &[u8]) -> Result<(), Stop> {
    let closed = |_: StreamError| CLOSED;
    if bytes.len() <= WRITE_BYTES_MAX {
        return stream.blocking_write_and_flush(bytes).map_err(closed);
    }
    let ready = stream.subscribe();
    let mut bytes = bytes;
    while !bytes.is_empty() {
        let room = loop {
            match stream.check_write().map_err(closed)? {
                0 => ready.block(),
                room => break room as usize,
            }
        };
        let (piece, rest) = bytes.split_at(bytes.len().min(room));
        stream.write(piece).map_err(closed)?;
        bytes = rest;
    }
    stream.flush().map_err(closed)?;
    ready.block();
    Ok(())
}

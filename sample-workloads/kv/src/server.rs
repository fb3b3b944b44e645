//! The event loop: waits for any connection, runs what has arrived, writes effects, then replies.
use crate::commands::{Call, Counters, Session};
use crate::log::Log;
use crate::protocol::{Parsed, Reply, parse, write_request};
use crate::settings::Settings;
use crate::store::Store;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::mem::take;
use guest::net::{Connection, Listener, Pollable, Read, after_ms, wait};
use guest::process::now_ms;
use guest::wasip2::random::insecure_seed::insecure_seed;

/// Connections that wait for the event loop (Redis' `tcp-backlog`).
const BACKLOG: u64 = 511;
/// Bytes of one read: other connections have their turn after them.
const READ_BYTES: usize = 16 * 1024;
/// Maximum bytes of a request (`client-query-buffer-limit`).
const REQUEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// A client with so many bytes of replies to read has no further request run.
const OUTPUT_BYTES_HIGH: usize = 256 * 1024;
/// A client with so many is disconnected (`client-output-buffer-limit`): one reply can be longer than the above.
const OUTPUT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A buffer up to this stays for the next reply.
const OUTPUT_BYTES_KEPT: usize = 1024;

/// A connection. Buffers of an idle one are empty.
struct Client {
    connection: Connection,
    session: Session,
    input: Vec<u8>,
    /// The length of `input` with which it can have a whole request.
    needed: usize,
    output: Vec<u8>,
    /// Bytes of `output` that are written.
    written: usize,
    /// Sends no more requests: it is closed after the last reply.
    is_ending: bool,
    is_closed: bool,
    /// Its last requests had effects, which aren't committed.
    has_effects: bool,
    /// It has something to do in this turn.
    is_active: bool,
}

struct Server<'a> {
    settings: &'a Settings,
    store: Store,
    log: Option<Log>,
    effects: Vec<u8>,
    counters: Counters,
    clients: Vec<Client>,
    timer: Option<(u64, Pollable)>,
}

/// Serves until the process ends.
///
/// # Errors
/// The port or the append-only file can't be used.
pub fn serve(settings: &Settings) -> Result<(), String> {
    let mut server = Server {
        settings,
        store: Store::new(insecure_seed()),
        log: None,
        effects: Vec::new(),
        counters: Counters { started_ms: now_ms(), ..Counters::default() },
        clients: Vec::new(),
        timer: None,
    };
    server.load()?;
    let port = settings.port;
    let listener = Listener::bind(port, BACKLOG).map_err(|code| format!("port {port}: {code}"))?;
    guest::log!("ready on port {port} with {} keys", server.store.len());
    loop {
        server.turn(&listener)?;
    }
}

impl Server<'_> {
    fn load(&mut self) -> Result<(), String> {
        let Some(folder) = &self.settings.folder else { return Ok(()) };
        let (store, mut session, mut ignored) = (&mut self.store, Session::new(0), Vec::new());
        let (mut effects, settings, counters) = (Vec::new(), self.settings, &self.counters);
        self.log = Some(Log::open(folder, settings.sync, |words| {
            ignored.clear();
            effects.clear();
            let reply = Reply { out: &mut ignored, version: 2 };
            let (session, effects) = (&mut session, &mut effects);
            // Keys expire by the effects that say so.
            Call { args: words, store, session, reply, effects, settings, counters, now_ms: 0 }.replay()
        })?);
        Ok(())
    }

    /// Waits for something to do, and does it.
    fn turn(&mut self, listener: &Listener) -> Result<(), String> {
        let accepts = self.wait(listener);
        let now_ms = now_ms();
        if accepts {
            self.accept(listener)?;
        }
        for index in 0..self.clients.len() {
            if self.clients[index].is_active {
                self.run_requests(index, now_ms);
            }
        }
        self.expire(now_ms);
        self.commit(now_ms)?;
        for client in self.clients.iter_mut().filter(|client| client.is_active) {
            client.write();
        }
        self.clients.retain(|client| !client.is_closed);
        self.counters.connections = self.clients.len();
        Ok(())
    }

    /// Returns whether the listener has a connection.
    fn wait(&mut self, listener: &Listener) -> bool {
        self.set_timer();
        let mut pollables = Vec::with_capacity(self.clients.len() + 2);
        let mut owners = Vec::with_capacity(self.clients.len());
        for (index, client) in self.clients.iter().enumerate() {
            // A client that is to be continued has no need to wait, but others are looked at as well.
            if client.wants_input() {
                pollables.push(client.connection.readable());
                owners.push(index);
            }
            if client.output.len() > client.written {
                pollables.push(client.connection.writable());
                owners.push(index);
            }
        }
        pollables.push(listener.acceptable());
        pollables.extend(self.timer.as_ref().map(|(_, timer)| timer));
        let mut accepts = false;
        let mut is_timer_ready = false;
        for ready in wait(&pollables) {
            match owners.get(ready as usize) {
                Some(index) => self.clients[*index].is_active = true,
                None if ready as usize == owners.len() => accepts = true,
                None => is_timer_ready = true,
            }
        }
        if is_timer_ready {
            self.timer = None;
        }
        accepts
    }

    /// The timer that runs is used as long as it isn't too late: it costs two calls of the host.
    fn set_timer(&mut self) {
        let continues = self.clients.iter().any(|client| client.is_active).then_some(0);
        let log = self.log.as_ref().and_then(Log::next_ms);
        let Some(at_ms) = [continues, log, self.store.next_deadline_ms()].into_iter().flatten().min() else { return };
        if self.timer.as_ref().is_none_or(|(timer_ms, _)| *timer_ms > at_ms) {
            self.timer = Some((at_ms, after_ms(at_ms.saturating_sub(now_ms()))));
        }
    }

    fn accept(&mut self, listener: &Listener) -> Result<(), String> {
        while let Some(connection) = listener.accept().map_err(|code| format!("accept: {code}"))? {
            self.counters.connections_total += 1;
            if self.clients.len() >= self.settings.clients_max {
                self.counters.rejected_total += 1;
                let _ = connection.write(b"-ERR max number of clients reached\r\n"); // it is closed in any case
                continue;
            }
            let session = Session::new(self.counters.connections_total);
            self.clients.push(Client::new(connection, session));
        }
        Ok(())
    }

    fn run_requests(&mut self, index: usize, now_ms: u64) {
        let client = &mut self.clients[index];
        client.read();
        let effects_before = self.effects.len();
        let mut at = 0;
        while !client.session.is_quit && client.output.len() - client.written < OUTPUT_BYTES_HIGH {
            let rest = &client.input[at..];
            if rest.is_empty() || rest.len() < client.needed {
                break;
            }
            let version = client.session.version;
            match parse(rest) {
                Ok(Parsed::Incomplete(needed)) => {
                    client.needed = needed;
                    client.is_closed |= needed > REQUEST_BYTES_MAX;
                    break;
                }
                Ok(Parsed::Request(words, used)) => {
                    at += used;
                    client.needed = 0;
                    if words.is_empty() {
                        continue;
                    }
                    while let Some(key) = self.store.expire(now_ms) {
                        write_request(&mut self.effects, &[b"DEL", &key]);
                        self.counters.expired_total += 1;
                    }
                    self.counters.commands_total += 1;
                    let call = Call {
                        args: &words,
                        store: &mut self.store,
                        session: &mut client.session,
                        reply: Reply { out: &mut client.output, version },
                        effects: &mut self.effects,
                        settings: self.settings,
                        counters: &self.counters,
                        now_ms,
                    };
                    call.run();
                }
                Err(failure) => {
                    Reply { out: &mut client.output, version }.error(&failure);
                    client.session.is_quit = true;
                }
            }
        }
        client.consume(at);
        client.has_effects = self.effects.len() > effects_before;
    }

    fn expire(&mut self, now_ms: u64) {
        while let Some(key) = self.store.expire(now_ms) {
            write_request(&mut self.effects, &[b"DEL", &key]);
            self.counters.expired_total += 1;
        }
    }

    /// No reply leaves before its effect is written. Clients whose effects can't be written don't get one.
    fn commit(&mut self, now_ms: u64) -> Result<(), String> {
        let Some(log) = &mut self.log else {
            self.effects.clear();
            return Ok(());
        };
        log.commit(&mut self.effects, now_ms)?;
        log.rewrite_if_large(&self.store);
        self.counters.is_log_failing = log.is_failing();
        (self.counters.log_bytes, self.counters.log_base_bytes) = (log.bytes(), log.base_bytes());
        for client in self.clients.iter_mut().filter(|client| client.is_active) {
            client.is_closed |= take(&mut client.has_effects) && self.counters.is_log_failing;
        }
        Ok(())
    }
}

impl Client {
    fn new(connection: Connection, session: Session) -> Self {
        Self {
            connection,
            session,
            input: Vec::new(),
            needed: 0,
            output: Vec::new(),
            written: 0,
            is_ending: false,
            is_closed: false,
            has_effects: false,
            is_active: true,
        }
    }

    /// Whether it may send more: not while it doesn't read replies.
    fn wants_input(&self) -> bool {
        !self.is_ending && !self.session.is_quit && self.output.len() - self.written < OUTPUT_BYTES_HIGH
    }

    fn read(&mut self) {
        // What has arrived is run first.
        let has_request = !self.input.is_empty() && self.input.len() >= self.needed;
        if !self.wants_input() || has_request {
            return;
        }
        match self.connection.read(READ_BYTES) {
            Ok(Read::Bytes(bytes)) if self.input.is_empty() => self.input = bytes,
            Ok(Read::Bytes(bytes)) => self.input.extend_from_slice(&bytes),
            Ok(Read::Nothing) => {}
            Ok(Read::End) => self.is_ending = true,
            Err(_) => self.is_closed = true,
        }
    }

    /// Removes requests that are run.
    fn consume(&mut self, bytes: usize) {
        if bytes == self.input.len() {
            self.input = Vec::new();
        } else {
            self.input.drain(..bytes);
        }
    }

    /// Writes what the connection takes. A client that is left active is continued in the next turn.
    fn write(&mut self) {
        self.is_active = false;
        if self.is_closed {
            return;
        }
        let pending = &self.output[self.written..];
        if !pending.is_empty() {
            match self.connection.write(pending) {
                Ok(written) => self.written += written,
                Err(_) => self.is_closed = true,
            }
        }
        let pending = self.output.len() - self.written;
        if pending == 0 {
            self.written = 0;
            if self.output.capacity() > OUTPUT_BYTES_KEPT { self.output = Vec::new() } else { self.output.clear() }
        }
        let has_request = !self.session.is_quit && !self.input.is_empty() && self.input.len() >= self.needed;
        self.is_active = has_request && pending < OUTPUT_BYTES_HIGH;
        let is_done = (self.is_ending || self.session.is_quit) && pending == 0 && !has_request;
        self.is_closed |= is_done || pending > OUTPUT_BYTES_MAX;
    }
}

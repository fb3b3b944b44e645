//! The event loop: waits for any connection, and moves bytes between connections and the [`Hub`].
use crate::handshake::write_response;
use crate::hub::Hub;
use crate::settings::Settings;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use guest::net::{Connection, Listener, Pollable, Read, after_ms, wait};

/// Connections that wait for the event loop.
const BACKLOG: u64 = 511;
/// Connections that are accepted in one turn.
const ACCEPTS_MAX: usize = 64;
/// Bytes of one read: other connections have their turn after it.
const READ_BYTES: usize = 16 * 1024;

struct Client {
    id: u64,
    connection: Connection,
    /// It is read in this turn.
    is_readable: bool,
    is_finished: bool,
    is_broken: bool,
}

struct Server {
    hub: Hub,
    clients: Vec<Client>,
    timer: Option<(u64, Pollable)>,
}

/// Serves until the process ends.
///
/// # Errors
/// The port can't be used.
pub fn serve(settings: Settings) -> Result<(), String> {
    let port = settings.port;
    let listener = Listener::bind(port, BACKLOG).map_err(|code| format!("port {port}: {code}"))?;
    guest::log!("ready on port {port}");
    let mut server = Server { hub: Hub::new(settings), clients: Vec::new(), timer: None };
    loop {
        server.turn(&listener)?;
    }
}

/// Milliseconds of a clock that never jumps.
fn now_ms() -> u64 {
    guest::wasip2::clocks::monotonic_clock::now() / 1_000_000
}

impl Server {
    /// Waits for events and handles them.
    fn turn(&mut self, listener: &Listener) -> Result<(), String> {
        let accepts = self.wait(listener);
        let now_ms = now_ms();
        if accepts {
            self.accept(listener, now_ms)?;
        }
        for client in self.clients.iter_mut().filter(|client| client.is_readable) {
            client.read(&mut self.hub, now_ms);
        }
        self.hub.tick(now_ms);
        for client in &mut self.clients {
            client.write(&mut self.hub);
        }
        while self.remove_closed() {}
        for line in self.hub.take_lines() {
            guest::process::print(&line);
        }
        Ok(())
    }

    /// Returns whether the listener has a connection.
    fn wait(&mut self, listener: &Listener) -> bool {
        // A running timer is reused unless it is too late: a new one costs two calls of the host.
        if let Some(at_ms) = self.hub.next_deadline_ms()
            && self.timer.as_ref().is_none_or(|(timer_ms, _)| *timer_ms > at_ms)
        {
            self.timer = Some((at_ms, after_ms(at_ms.saturating_sub(now_ms()))));
        }
        let mut pollables = Vec::with_capacity(self.clients.len() + 2);
        let mut owners = Vec::with_capacity(self.clients.len());
        for (index, client) in self.clients.iter().enumerate() {
            let Some(peer) = self.hub.peer(client.id) else { continue };
            if peer.wants_input() {
                pollables.push(client.connection.readable());
                owners.push((index, true));
            }
            if !peer.pending().is_empty() {
                pollables.push(client.connection.writable());
                owners.push((index, false));
            }
        }
        pollables.push(listener.acceptable());
        pollables.extend(self.timer.as_ref().map(|(_, timer)| timer));
        let (mut accepts, mut is_timer_ready) = (false, false);
        for ready in wait(&pollables) {
            match owners.get(ready as usize) {
                // All that can be written is written in each turn.
                Some((index, is_readable)) => self.clients[*index].is_readable |= is_readable,
                None if ready as usize == owners.len() => accepts = true,
                None => is_timer_ready = true,
            }
        }
        if is_timer_ready {
            self.timer = None;
        }
        accepts
    }

    fn accept(&mut self, listener: &Listener, now_ms: u64) -> Result<(), String> {
        for _ in 0..ACCEPTS_MAX {
            let Some(connection) = listener.accept().map_err(|code| format!("accept: {code}"))? else { break };
            match self.hub.accept(now_ms) {
                Some(id) => {
                    let client = Client { id, connection, is_readable: true, is_finished: false, is_broken: false };
                    self.clients.push(client);
                }
                None => {
                    let mut response = Vec::new();
                    let problem = "too many connections";
                    write_response(&mut response, 503, "Retry-After: 10\r\n", "text/plain", problem, false);
                    let _ = connection.write(&response); // it is closed in any case
                }
            }
        }
        Ok(())
    }

    /// Removes closed connections; returns whether there were any. Each removal can close others, which have no place in
    /// their queue for its message.
    fn remove_closed(&mut self) -> bool {
        let before = self.clients.len();
        let hub = &mut self.hub;
        self.clients.retain(|client| {
            let is_closed = client.is_broken || hub.peer(client.id).is_none_or(|peer| peer.is_closed());
            if is_closed {
                hub.remove(client.id);
            }
            !is_closed
        });
        self.clients.len() < before
    }
}

impl Client {
    fn read(&mut self, hub: &mut Hub, now_ms: u64) {
        self.is_readable = false;
        if !hub.peer(self.id).is_some_and(|peer| peer.wants_input()) {
            return;
        }
        match self.connection.read(READ_BYTES) {
            Ok(Read::Bytes(bytes)) => hub.receive(self.id, &bytes, now_ms),
            Ok(Read::Nothing) => {}
            Ok(Read::End) => hub.end_input(self.id, now_ms),
            Err(_) => self.is_broken = true,
        }
    }

    /// Writes what the connection accepts.
    fn write(&mut self, hub: &mut Hub) {
        let Some(peer) = hub.peer(self.id) else { return };
        if !peer.pending().is_empty() {
            match self.connection.write(peer.pending()) {
                Ok(written) => peer.sent(written),
                Err(_) => self.is_broken = true,
            }
        }
        if peer.is_ending() && peer.pending().is_empty() && !self.is_finished {
            self.connection.finish();
            self.is_finished = true;
        }
    }
}

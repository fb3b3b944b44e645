//! The event loop over a UDP socket, a listener and its connections.
use crate::message::{Transport, respond};
use crate::zone::Zone;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use guest::files;
use guest::net::{Connection, Datagrams, Listener, Pollable, Read, after_ms, wait};
use guest::process::{now_ms, print_error};
use guest::wasip2::sockets::udp::OutgoingDatagram;

const BACKLOG: u64 = 64;
/// Maximum connections. One more closes the one that was used least recently.
const CONNECTIONS_MAX: usize = 64;
/// A connection without a query for this long is closed (RFC 7766 §6.2.3).
const IDLE_MS: u64 = 10_000;
const DATAGRAMS_MAX: usize = 16;
const READ_BYTES: usize = 4096;
/// Maximum bytes of a query: a name and EDNS have less.
const QUERY_BYTES_MAX: usize = 4096;
/// Bytes of responses that a client hasn't read above which it is disconnected.
const OUTPUT_BYTES_MAX: usize = 256 * 1024;
/// The file is compared with the zone this often, and idle connections are looked for.
const INTERVAL_MS: u64 = 2000;

/// A client over TCP: each message comes after its length.
struct Client {
    connection: Connection,
    input: Vec<u8>,
    output: Vec<u8>,
    used_ms: u64,
    is_ending: bool,
    is_closed: bool,
}

/// Serves until the process ends.
///
/// # Errors
/// The file or the port can't be used.
pub fn serve(file: &str, port: u16) -> Result<(), String> {
    let mut text = read(file)?;
    let mut zone = Zone::parse(&text).map_err(|problem| format!("{file}: {problem}"))?;
    let failed = |code| format!("port {port}: {code}");
    let datagrams = Datagrams::bind(port).map_err(failed)?;
    let listener = Listener::bind(port, BACKLOG).map_err(failed)?;
    guest::log!("ready on port {port} with {} names", zone.records.len());
    let mut clients: Vec<Client> = Vec::new();
    let mut timer = after_ms(INTERVAL_MS);
    loop {
        let (ready, is_due) = ready(&datagrams, &listener, &clients, &timer);
        let now_ms = now_ms();
        answer_datagrams(&zone, &datagrams)?;
        accept(&listener, &mut clients, now_ms)?;
        for index in ready {
            clients[index].serve(&zone, now_ms);
        }
        if is_due {
            timer = after_ms(INTERVAL_MS);
            reload(file, &mut text, &mut zone);
        }
        clients.retain(|client| !client.is_closed && now_ms < client.used_ms + IDLE_MS);
    }
}

/// Waits; the indices of clients with something to do, and whether the timer is due.
fn ready(datagrams: &Datagrams, listener: &Listener, clients: &[Client], timer: &Pollable) -> (Vec<usize>, bool) {
    let mut pollables = Vec::from([datagrams.receivable(), listener.acceptable(), timer]);
    let fixed = pollables.len();
    pollables.extend(clients.iter().map(|client| match client.output.is_empty() {
        true => client.connection.readable(),
        false => client.connection.writable(),
    }));
    let ready = wait(&pollables);
    let is_due = ready.contains(&2);
    (ready.into_iter().filter_map(|index| (index as usize).checked_sub(fixed)).collect(), is_due)
}

fn read(file: &str) -> Result<String, String> {
    let bytes = files::read(file).map_err(|code| format!("{file}: {code}"))?;
    String::from_utf8(bytes).map_err(|_| format!("{file}: no text"))
}

/// Takes a changed file. A faulty one is logged, and the zone stays.
fn reload(file: &str, text: &mut String, zone: &mut Zone) {
    let Ok(now) = read(file) else { return }; // it is being replaced
    if now == *text {
        return;
    }
    match Zone::parse(&now) {
        Ok(changed) => {
            *zone = changed;
            guest::log!("{file} has changed: {} names", zone.records.len());
        }
        Err(problem) => print_error(&format!("dns: {file}: {problem}")),
    }
    *text = now;
}

fn answer_datagrams(zone: &Zone, datagrams: &Datagrams) -> Result<(), String> {
    let queries = datagrams.receive(DATAGRAMS_MAX).map_err(|code| format!("receive: {code}"))?;
    let responses: Vec<OutgoingDatagram> = queries
        .into_iter()
        .filter_map(|query| {
            let data = respond(zone, &query.data, Transport::Udp)?;
            Some(OutgoingDatagram { data, remote_address: Some(query.remote_address) })
        })
        .collect();
    datagrams.send(&responses).map_err(|code| format!("send: {code}"))
}

fn accept(listener: &Listener, clients: &mut Vec<Client>, now_ms: u64) -> Result<(), String> {
    while let Some(connection) = listener.accept().map_err(|code| format!("accept: {code}"))? {
        let open = clients.iter().filter(|client| !client.is_closed).count();
        if open >= CONNECTIONS_MAX
            && let Some(oldest) =
                clients.iter_mut().filter(|client| !client.is_closed).min_by_key(|client| client.used_ms)
        {
            oldest.is_closed = true;
        }
        let (input, output) = (Vec::new(), Vec::new());
        clients.push(Client { connection, input, output, used_ms: now_ms, is_ending: false, is_closed: false });
    }
    Ok(())
}

impl Client {
    fn serve(&mut self, zone: &Zone, now_ms: u64) {
        if self.output.is_empty() {
            match self.connection.read(READ_BYTES) {
                Ok(Read::Bytes(bytes)) => self.input.extend_from_slice(&bytes),
                Ok(Read::Nothing) => {}
                Ok(Read::End) => self.is_ending = true,
                Err(_) => self.is_closed = true,
            }
        }
        self.answer(zone, now_ms);
        match self.connection.write(&self.output) {
            Ok(written) => drop(self.output.drain(..written)),
            Err(_) => self.is_closed = true,
        }
        self.is_closed |= self.is_ending && self.output.is_empty();
    }

    fn answer(&mut self, zone: &Zone, now_ms: u64) {
        let mut at = 0;
        while let Some([high, low]) = self.input.get(at..at + 2) {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            if length > QUERY_BYTES_MAX || self.output.len() > OUTPUT_BYTES_MAX {
                self.is_closed = true;
                return;
            }
            let Some(query) = self.input.get(at + 2..at + 2 + length) else { break };
            at += 2 + length;
            self.used_ms = now_ms;
            let Some(response) = respond(zone, query, Transport::Tcp) else {
                self.is_closed = true;
                return;
            };
            self.output.extend_from_slice(&(response.len() as u16).to_be_bytes());
            self.output.extend_from_slice(&response);
        }
        self.input.drain(..at);
    }
}

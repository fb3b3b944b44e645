//! `kv call HOST:PORT COMMAND…`: one command to a server, for Jobs and probes.
use crate::protocol::{Parsed, parse, write_request};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use guest::net::{Connection, Read};

const READ_BYTES: usize = 16 * 1024;
/// Maximum bytes of a reply.
const REPLY_BYTES_MAX: usize = 1024 * 1024;

/// Prints the reply: a line for each of its values.
///
/// # Errors
/// The server can't be reached, or replies with an error.
pub fn call(arguments: &[String]) -> Result<(), String> {
    let usage = "usage: kv call HOST:PORT COMMAND…";
    let (address, words) = arguments.split_first().filter(|(_, words)| !words.is_empty()).ok_or(usage)?;
    let (host, port) = address.rsplit_once(':').ok_or(usage)?;
    let port = port.parse().map_err(|_| usage)?;
    let failed = |code| format!("{address}: {code}");
    let connection = Connection::open(host, port).map_err(failed)?;
    let mut request = Vec::new();
    write_request(&mut request, &words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>());
    let broken = |_| format!("{address}: the connection broke");
    let mut rest = request.as_slice();
    while !rest.is_empty() {
        let written = connection.write(rest).map_err(broken)?;
        rest = &rest[written..];
        if written == 0 {
            connection.writable().block();
        }
    }
    // No more requests: the server closes the connection after the reply.
    connection.finish();
    let mut reply = Vec::new();
    loop {
        match connection.read(READ_BYTES).map_err(broken)? {
            Read::Bytes(bytes) if reply.len() + bytes.len() <= REPLY_BYTES_MAX => reply.extend_from_slice(&bytes),
            Read::Bytes(_) => return Err(format!("the reply has more than {REPLY_BYTES_MAX} bytes")),
            Read::Nothing => connection.readable().block(),
            Read::End => break,
        }
    }
    print(&reply)
}

fn print(reply: &[u8]) -> Result<(), String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().into();
    match reply.split_first() {
        None => return Err("no reply".into()),
        Some((b'-', error)) => return Err(text(error)),
        Some((b'+' | b':', line)) => guest::process::print(&text(line)),
        Some((b'$', _)) => {
            // A reply with one bulk string is a request with one word, but for its begin.
            let request = [b"*1\r\n", reply].concat();
            match parse(&request) {
                Ok(Parsed::Request(words, _)) => words.iter().for_each(|word| guest::process::print(&text(word))),
                _ => guest::process::print("(nil)"),
            }
        }
        Some((b'*', _)) => match parse(reply) {
            Ok(Parsed::Request(words, _)) => words.iter().for_each(|word| guest::process::print(&text(word))),
            // Nulls, numbers or arrays in it.
            _ => guest::process::print(&text(reply)),
        },
        Some(_) => return Err("no reply of this protocol".into()),
    }
    Ok(())
}

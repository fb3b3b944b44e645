//! Commands of the connection and of the server.
use super::{COMMANDS, Call, Command, Outcome, Use, find};
use crate::failure::Failure;
use crate::number;
use crate::pattern::matches;
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// The version of Redis whose replies these are.
const VERSION: &str = "7.2.0";

/// A connection's state.
pub struct Session {
    pub id: u64,
    pub name: Vec<u8>,
    /// The protocol's version: 2 or 3.
    pub version: u8,
    /// The client wants no more.
    pub is_quit: bool,
}

/// What the server counts.
#[derive(Default)]
pub struct Counters {
    pub started_ms: u64,
    pub connections: usize,
    pub connections_total: u64,
    pub rejected_total: u64,
    pub commands_total: u64,
    pub expired_total: u64,
    /// Bytes of the append-only file, and of its last rewrite.
    pub log_bytes: u64,
    pub log_base_bytes: u64,
    /// The append-only file can't be written.
    pub is_log_failing: bool,
}

impl Session {
    pub fn new(id: u64) -> Self {
        Self { id, name: Vec::new(), version: 2, is_quit: false }
    }
}

fn unknown_subcommand(call: &Call<'_>) -> Failure {
    let command = call.name().to_ascii_uppercase();
    format!("ERR unknown subcommand '{}'. Try {command} HELP.", String::from_utf8_lossy(&call.args[1])).into()
}

/// The number of words of a subcommand.
fn takes(call: &Call<'_>, words: core::ops::RangeInclusive<usize>) -> Outcome {
    if words.contains(&call.args.len()) {
        return Ok(());
    }
    let subcommand = String::from_utf8_lossy(&call.args[1]).to_ascii_lowercase();
    Err(format!("ERR wrong number of arguments for '{}|{subcommand}' command", call.name()).into())
}

pub(super) fn ping(call: &mut Call<'_>) -> Outcome {
    match call.args {
        [_] => call.reply.simple("PONG"),
        [_, text] => call.reply.bulk(text),
        _ => return Err("ERR wrong number of arguments for 'ping' command".into()),
    }
    Ok(())
}

pub(super) fn echo(call: &mut Call<'_>) -> Outcome {
    call.reply.bulk(&call.args[1]);
    Ok(())
}

pub(super) fn quit(call: &mut Call<'_>) -> Outcome {
    call.session.is_quit = true;
    call.reply.ok();
    Ok(())
}

pub(super) fn reset(call: &mut Call<'_>) -> Outcome {
    *call.session = Session::new(call.session.id);
    call.reply.version = 2;
    call.reply.simple("RESET");
    Ok(())
}

/// There is one database.
pub(super) fn select(call: &mut Call<'_>) -> Outcome {
    match call.integer(1)? {
        0 => call.reply.ok(),
        _ => return Err("ERR DB index is out of range".into()),
    }
    Ok(())
}

pub(super) fn auth(call: &mut Call<'_>) -> Outcome {
    match call.args.len() {
        2 => Err("ERR AUTH <password> called without any password configured for the default user. Are you sure your configuration is correct?".into()),
        3 => Err("WRONGPASS invalid username-password pair or user is disabled.".into()),
        _ => Err(Failure::SYNTAX),
    }
}

pub(super) fn time(call: &mut Call<'_>) -> Outcome {
    call.reply.array(2);
    call.reply.bulk(&number::text((call.now_ms / 1000) as i64));
    call.reply.bulk(&number::text((call.now_ms % 1000 * 1000) as i64));
    Ok(())
}

/// `HELLO [version [AUTH user password] [SETNAME name]]`
pub(super) fn hello(call: &mut Call<'_>) -> Outcome {
    let version = match call.args.get(1) {
        None => call.session.version,
        Some(version) => match number::parse(version) {
            Some(2) => 2,
            Some(3) => 3,
            Some(_) => return Err("NOPROTO unsupported protocol version".into()),
            None => return Err("ERR Protocol version is not an integer or out of range".into()),
        },
    };
    let mut name = None;
    let mut at = 2;
    while at < call.args.len() {
        if call.is(at, "AUTH") && at + 2 < call.args.len() {
            // The default user has no password, so that any is the right one.
            if !call.is(at + 1, "default") {
                return Err("WRONGPASS invalid username-password pair or user is disabled.".into());
            }
            at += 3;
        } else if call.is(at, "SETNAME") && at + 1 < call.args.len() {
            name = Some(client_name(&call.args[at + 1])?);
            at += 2;
        } else {
            let option = String::from_utf8_lossy(&call.args[at]).into_owned();
            return Err(format!("ERR Syntax error in HELLO option '{option}'").into());
        }
    }
    call.session.name = name.unwrap_or_else(|| call.session.name.clone());
    call.session.version = version;
    let reply = &mut call.reply;
    reply.version = version;
    reply.map(7);
    let text = |reply: &mut crate::protocol::Reply<'_>, name: &str, value: &str| {
        reply.bulk(name.as_bytes());
        reply.bulk(value.as_bytes());
    };
    text(reply, "server", "redis");
    text(reply, "version", VERSION);
    reply.bulk(b"proto");
    reply.integer(version.into());
    reply.bulk(b"id");
    reply.integer(call.session.id as i64);
    text(reply, "mode", "standalone");
    text(reply, "role", "master");
    reply.bulk(b"modules");
    reply.array(0);
    Ok(())
}

fn client_name(name: &[u8]) -> Result<Vec<u8>, Failure> {
    match name.iter().all(|byte| (b'!'..=b'~').contains(byte)) {
        true => Ok(name.to_owned()),
        false => Err("ERR Client names cannot contain spaces, newlines or special characters.".into()),
    }
}

pub(super) fn client(call: &mut Call<'_>) -> Outcome {
    let subcommand = ["SETNAME", "GETNAME", "ID", "INFO", "SETINFO"].into_iter().find(|name| call.is(1, name));
    match subcommand.ok_or_else(|| unknown_subcommand(call))? {
        "SETNAME" => {
            takes(call, 3..=3)?;
            call.session.name = client_name(&call.args[2])?;
            call.reply.ok();
        }
        "GETNAME" => {
            takes(call, 2..=2)?;
            let name = Some(call.session.name.as_slice()).filter(|name| !name.is_empty());
            call.reply.bulk_or_null(name);
        }
        "ID" => {
            takes(call, 2..=2)?;
            call.reply.integer(call.session.id as i64);
        }
        "INFO" => {
            takes(call, 2..=2)?;
            let name = String::from_utf8_lossy(&call.session.name);
            let line = format!("id={} name={name} db=0 resp={}\n", call.session.id, call.session.version);
            call.reply.bulk(line.as_bytes());
        }
        // The library's name and version, which is only of use in a list of clients.
        _ => {
            takes(call, 4..=4)?;
            if !call.is(2, "LIB-NAME") && !call.is(2, "LIB-VER") {
                let option = String::from_utf8_lossy(&call.args[2]).into_owned();
                return Err(format!("ERR Unrecognized option '{option}'").into());
            }
            call.reply.ok();
        }
    }
    Ok(())
}

fn describe(call: &mut Call<'_>, command: &Command) {
    let reply = &mut call.reply;
    reply.array(10);
    reply.bulk(command.name.as_bytes());
    reply.integer(command.arity);
    let flags: &[&str] = match command.uses {
        Use::Read => &["readonly"],
        Use::Write => &["write"],
        Use::Grow => &["write", "denyoom"],
        Use::Other => &["loading", "stale"],
    };
    reply.set(flags.len());
    flags.iter().for_each(|flag| reply.simple(flag));
    let (first, last, step) = command.keys;
    [first, last, step].into_iter().for_each(|number| reply.integer(number));
    // Categories of access lists, tips, key specifications, subcommands.
    [0, 1, 2, 3].into_iter().for_each(|_| reply.array(0));
}

pub(super) fn command(call: &mut Call<'_>) -> Outcome {
    let Some(_) = call.args.get(1) else {
        call.reply.array(COMMANDS.len());
        COMMANDS.iter().for_each(|command| describe(call, command));
        return Ok(());
    };
    if call.is(1, "COUNT") {
        takes(call, 2..=2)?;
        call.reply.count(COMMANDS.len());
    } else if call.is(1, "DOCS") {
        // A client has its own texts for what it finds none of here.
        call.reply.map(0);
    } else if call.is(1, "INFO") {
        let names = &call.args[2..];
        call.reply.array(if names.is_empty() { COMMANDS.len() } else { names.len() });
        if names.is_empty() {
            COMMANDS.iter().for_each(|command| describe(call, command));
        }
        for name in names {
            match find(name) {
                Some(command) => describe(call, command),
                None => call.reply.null_array(),
            }
        }
    } else {
        return Err(unknown_subcommand(call));
    }
    Ok(())
}

pub(super) fn config(call: &mut Call<'_>) -> Outcome {
    if call.is(1, "RESETSTAT") {
        return Err("ERR CONFIG RESETSTAT is not supported: counters begin with the process".into());
    }
    if call.is(1, "SET") {
        return Err("ERR CONFIG SET is not supported: settings are arguments of the program".into());
    }
    if !call.is(1, "GET") {
        return Err(unknown_subcommand(call));
    }
    takes(call, 3..=usize::MAX)?;
    let patterns = &call.args[2..];
    let mut found = call.settings.config();
    found.retain(|(name, _)| patterns.iter().any(|pattern| matches(&pattern.to_ascii_lowercase(), name.as_bytes())));
    call.reply.map(found.len());
    for (name, value) in found {
        call.reply.bulk(name.as_bytes());
        call.reply.bulk(value.as_bytes());
    }
    Ok(())
}

pub(super) fn info(call: &mut Call<'_>) -> Outcome {
    type Section = fn(&Call<'_>) -> String;
    let sections: [(&str, Section); 5] = [
        ("Server", server),
        ("Clients", clients),
        ("Memory", memory),
        ("Persistence", persistence),
        ("Keyspace", keyspace),
    ];
    let mut text = String::new();
    let wants = &call.args[1..];
    let all = ["all", "default", "everything"];
    for (name, section) in sections {
        let wanted = |want: &[u8]| {
            want.eq_ignore_ascii_case(name.as_bytes())
                || all.iter().any(|all| want.eq_ignore_ascii_case(all.as_bytes()))
        };
        if wants.is_empty() || wants.iter().any(|want| wanted(want)) {
            if !text.is_empty() {
                text.push_str("\r\n");
            }
            text.push_str(&format!("# {name}\r\n{}", section(call)));
        }
    }
    call.reply.bulk(text.as_bytes());
    Ok(())
}

fn server(call: &Call<'_>) -> String {
    let uptime_s = call.now_ms.saturating_sub(call.counters.started_ms) / 1000;
    let port = call.settings.port;
    format!(
        "redis_version:{VERSION}\r\nserver_name:coracle-kv\r\nredis_mode:standalone\r\narch_bits:32\r\ntcp_port:{port}\r\nuptime_in_seconds:{uptime_s}\r\n"
    )
}

fn clients(call: &Call<'_>) -> String {
    let counters = call.counters;
    format!(
        "connected_clients:{}\r\nmaxclients:{}\r\ntotal_connections_received:{}\r\nrejected_connections:{}\r\ntotal_commands_processed:{}\r\nexpired_keys:{}\r\n",
        counters.connections,
        call.settings.clients_max,
        counters.connections_total,
        counters.rejected_total,
        counters.commands_total,
        counters.expired_total,
    )
}

fn memory(call: &Call<'_>) -> String {
    format!("used_memory:{}\r\nmaxmemory:{}\r\n", call.store.bytes(), call.settings.memory_bytes_max)
}

fn persistence(call: &Call<'_>) -> String {
    let counters = call.counters;
    let status = if counters.is_log_failing { "err" } else { "ok" };
    format!(
        "loading:0\r\naof_enabled:{}\r\naof_last_write_status:{status}\r\naof_current_size:{}\r\naof_base_size:{}\r\n",
        u8::from(call.settings.folder.is_some()),
        counters.log_bytes,
        counters.log_base_bytes,
    )
}

fn keyspace(call: &Call<'_>) -> String {
    match call.store.len() {
        0 => String::new(),
        keys => format!("db0:keys={keys},expires={},avg_ttl=0\r\n", call.store.volatile()),
    }
}

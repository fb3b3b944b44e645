//! The commands: a table of names, arities and functions.
//!
//! A function first checks, then changes the store and records the effect, then replies: an error has no effect. An effect is a command
//! whose result depends on nothing but the store: a deadline is a point in time in it.
mod deadlines;
mod hashes;
mod keys;
mod lists;
mod server;
mod sets;
mod strings;

use crate::failure::Failure;
use crate::number;
use crate::protocol::{Reply, Word, write_request};
use crate::settings::Settings;
use crate::store::Store;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

pub use server::{Counters, Session};

/// Bytes of the arguments in the error of an unknown command.
const UNKNOWN_BYTES_MAX: usize = 128;

/// A command's use of the store.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Read,
    /// Is refused while the append-only file can't be written.
    Write,
    /// Is also refused when the memory of keys is used up.
    Grow,
    /// Doesn't use it.
    Other,
}

type Outcome = Result<(), Failure>;

struct Command {
    name: &'static str,
    /// The number of words with the name; below 0: at least so many.
    arity: i64,
    uses: Use,
    /// The first and last word that is a key, and the step between keys; 0 without keys. -1 is the last word.
    keys: (i64, i64, i64),
    run: fn(&mut Call<'_>) -> Outcome,
}

const fn command(
    name: &'static str,
    arity: i64,
    uses: Use,
    keys: (i64, i64, i64),
    run: fn(&mut Call<'_>) -> Outcome,
) -> Command {
    Command { name, arity, uses, keys, run }
}

const ONE: (i64, i64, i64) = (1, 1, 1);
const ALL: (i64, i64, i64) = (1, -1, 1);
const PAIRS: (i64, i64, i64) = (1, -1, 2);
const NONE: (i64, i64, i64) = (0, 0, 0);

/// In the order of names, for the search.
static COMMANDS: [Command; 69] = [
    command("append", 3, Use::Grow, ONE, strings::append),
    command("auth", -2, Use::Other, NONE, server::auth),
    command("client", -2, Use::Other, NONE, server::client),
    command("command", -1, Use::Other, NONE, server::command),
    command("config", -2, Use::Other, NONE, server::config),
    command("dbsize", 1, Use::Read, NONE, keys::dbsize),
    command("decr", 2, Use::Grow, ONE, strings::decr),
    command("decrby", 3, Use::Grow, ONE, strings::decrby),
    command("del", -2, Use::Write, ALL, keys::del),
    command("echo", 2, Use::Other, NONE, server::echo),
    command("exists", -2, Use::Read, ALL, keys::exists),
    command("expire", -3, Use::Write, ONE, deadlines::expire),
    command("expireat", -3, Use::Write, ONE, deadlines::expireat),
    command("expiretime", 2, Use::Read, ONE, deadlines::expiretime),
    command("flushall", -1, Use::Write, NONE, keys::flush),
    command("flushdb", -1, Use::Write, NONE, keys::flush),
    command("get", 2, Use::Read, ONE, strings::get),
    command("getdel", 2, Use::Write, ONE, strings::getdel),
    command("getrange", 4, Use::Read, ONE, strings::getrange),
    command("getset", 3, Use::Grow, ONE, strings::getset),
    command("hdel", -3, Use::Write, ONE, hashes::hdel),
    command("hello", -1, Use::Other, NONE, server::hello),
    command("hexists", 3, Use::Read, ONE, hashes::hexists),
    command("hget", 3, Use::Read, ONE, hashes::hget),
    command("hgetall", 2, Use::Read, ONE, hashes::hgetall),
    command("hincrby", 4, Use::Grow, ONE, hashes::hincrby),
    command("hkeys", 2, Use::Read, ONE, hashes::hkeys),
    command("hlen", 2, Use::Read, ONE, hashes::hlen),
    command("hmget", -3, Use::Read, ONE, hashes::hmget),
    command("hset", -4, Use::Grow, ONE, hashes::hset),
    command("hvals", 2, Use::Read, ONE, hashes::hvals),
    command("incr", 2, Use::Grow, ONE, strings::incr),
    command("incrby", 3, Use::Grow, ONE, strings::incrby),
    command("info", -1, Use::Other, NONE, server::info),
    command("keys", 2, Use::Read, NONE, keys::keys),
    command("lindex", 3, Use::Read, ONE, lists::lindex),
    command("llen", 2, Use::Read, ONE, lists::llen),
    command("lpop", -2, Use::Write, ONE, lists::lpop),
    command("lpush", -3, Use::Grow, ONE, lists::lpush),
    command("lrange", 4, Use::Read, ONE, lists::lrange),
    command("mget", -2, Use::Read, ALL, strings::mget),
    command("mset", -3, Use::Grow, PAIRS, strings::mset),
    command("persist", 2, Use::Write, ONE, deadlines::persist),
    command("pexpire", -3, Use::Write, ONE, deadlines::pexpire),
    command("pexpireat", -3, Use::Write, ONE, deadlines::pexpireat),
    command("pexpiretime", 2, Use::Read, ONE, deadlines::pexpiretime),
    command("ping", -1, Use::Other, NONE, server::ping),
    command("psetex", 4, Use::Grow, ONE, strings::psetex),
    command("pttl", 2, Use::Read, ONE, deadlines::pttl),
    command("quit", -1, Use::Other, NONE, server::quit),
    command("reset", 1, Use::Other, NONE, server::reset),
    command("rpop", -2, Use::Write, ONE, lists::rpop),
    command("rpush", -3, Use::Grow, ONE, lists::rpush),
    command("sadd", -3, Use::Grow, ONE, sets::sadd),
    command("scan", -2, Use::Read, NONE, keys::scan),
    command("scard", 2, Use::Read, ONE, sets::scard),
    command("select", 2, Use::Other, NONE, server::select),
    command("set", -3, Use::Grow, ONE, strings::set),
    command("setex", 4, Use::Grow, ONE, strings::setex),
    command("setnx", 3, Use::Grow, ONE, strings::setnx),
    command("sismember", 3, Use::Read, ONE, sets::sismember),
    command("smembers", 2, Use::Read, ONE, sets::smembers),
    command("srem", -3, Use::Write, ONE, sets::srem),
    command("strlen", 2, Use::Read, ONE, strings::strlen),
    command("time", 1, Use::Other, NONE, server::time),
    command("touch", -2, Use::Read, ALL, keys::exists),
    command("ttl", 2, Use::Read, ONE, deadlines::ttl),
    command("type", 2, Use::Read, ONE, keys::kind),
    command("unlink", -2, Use::Write, ALL, keys::del),
];

/// A command with all that it uses.
pub struct Call<'a> {
    pub args: &'a [Word<'a>],
    pub store: &'a mut Store,
    pub session: &'a mut Session,
    pub reply: Reply<'a>,
    /// Effects, for the append-only file.
    pub effects: &'a mut Vec<u8>,
    pub settings: &'a Settings,
    pub counters: &'a Counters,
    /// Milliseconds since 1970.
    pub now_ms: u64,
}

impl Call<'_> {
    fn integer(&self, at: usize) -> Result<i64, Failure> {
        number::parse(&self.args[at]).ok_or(Failure::NOT_INTEGER)
    }

    /// Whether a word is this option, in upper or lower case.
    fn is(&self, at: usize, option: &str) -> bool {
        self.args[at].eq_ignore_ascii_case(option.as_bytes())
    }

    /// Records the command as its own effect.
    fn effect(&mut self) {
        let words: Vec<&[u8]> = self.args.iter().map(|word| &**word).collect();
        write_request(self.effects, &words);
    }

    /// Records another effect.
    fn effect_of(&mut self, words: &[&[u8]]) {
        write_request(self.effects, words);
    }

    fn name(&self) -> String {
        String::from_utf8_lossy(&self.args[0]).to_ascii_lowercase()
    }

    /// Runs the command, and replies.
    pub fn run(mut self) {
        if let Err(failure) = self.try_run() {
            self.reply.error(&failure);
        }
    }

    /// Repeats an effect that was read from the append-only file.
    ///
    /// # Errors
    /// If it isn't one.
    pub fn replay(mut self) -> Result<(), Failure> {
        let command = find(&self.args[0]).filter(|command| matches!(command.uses, Use::Write | Use::Grow));
        let command = command.filter(|command| command.takes(self.args.len()));
        (command.ok_or("an unknown effect")?.run)(&mut self)
    }

    fn try_run(&mut self) -> Outcome {
        let command = find(&self.args[0]).ok_or_else(|| unknown(self.args))?;
        if !command.takes(self.args.len()) {
            return Err(format!("ERR wrong number of arguments for '{}' command", command.name).into());
        }
        if self.counters.is_log_failing && matches!(command.uses, Use::Write | Use::Grow) {
            return Err("MISCONF Errors writing to the AOF file: the volume takes no more bytes".into());
        }
        if command.uses == Use::Grow && self.store.bytes() > self.settings.memory_bytes_max {
            return Err("OOM command not allowed when used memory > 'maxmemory'.".into());
        }
        (command.run)(self)
    }
}

impl Command {
    fn takes(&self, words: usize) -> bool {
        let words = words as i64;
        if self.arity < 0 { words >= -self.arity } else { words == self.arity }
    }
}

fn find(name: &[u8]) -> Option<&'static Command> {
    let lower = name.to_ascii_lowercase();
    COMMANDS.binary_search_by(|command| command.name.as_bytes().cmp(&lower)).ok().map(|at| &COMMANDS[at])
}

fn unknown(args: &[Word<'_>]) -> Failure {
    let cut = |word: &[u8], max: usize| String::from_utf8_lossy(&word[..word.len().min(max)]).into_owned();
    let mut text = format!("ERR unknown command '{}', with args beginning with: ", cut(&args[0], UNKNOWN_BYTES_MAX));
    let mut rest = UNKNOWN_BYTES_MAX;
    for word in &args[1..] {
        if rest == 0 {
            break;
        }
        text.push_str(&format!("'{}' ", cut(word, rest)));
        rest = rest.saturating_sub(word.len() + 3);
    }
    text.into()
}

/// A range of indices as `GETRANGE` and `LRANGE` have it: from the end if below 0, the last one included.
fn range(first: i64, last: i64, length: usize) -> core::ops::Range<usize> {
    let length = length as i64;
    let from_end = |at: i64| if at < 0 { (length + at).max(0) } else { at };
    // An end before the begin isn't the first item.
    let last = if last < 0 { length + last } else { last.min(length - 1) };
    let first = from_end(first);
    if first > last { 0..0 } else { first as usize..last as usize + 1 }
}

#[cfg(test)]
mod tests;

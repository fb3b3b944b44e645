use super::*;
use crate::protocol::{Parsed, parse, split};

/// A server without network and file.
struct Server {
    store: Store,
    session: Session,
    effects: Vec<u8>,
    settings: Settings,
    counters: Counters,
    now_ms: u64,
}

impl Server {
    fn new() -> Self {
        Self {
            store: Store::new((1, 2)),
            session: Session::new(7),
            effects: Vec::new(),
            settings: Settings::default(),
            counters: Counters::default(),
            now_ms: 1_000_000,
        }
    }

    fn call<'a>(&'a mut self, args: &'a [Word<'a>], out: &'a mut Vec<u8>) -> Call<'a> {
        let version = self.session.version;
        Call {
            args,
            store: &mut self.store,
            session: &mut self.session,
            reply: Reply { out, version },
            effects: &mut self.effects,
            settings: &self.settings,
            counters: &self.counters,
            now_ms: self.now_ms,
        }
    }

    /// The reply to a line, with spaces for ends of line.
    fn run(&mut self, line: &str) -> String {
        while self.store.expire(self.now_ms).is_some() {}
        let (words, mut out) = (split(line.as_bytes()).unwrap(), Vec::new());
        self.call(&words, &mut out).run();
        String::from_utf8(out).unwrap().trim_end().replace("\r\n", " ")
    }

    fn check(&mut self, expected: &[(&str, &str)]) {
        for (line, reply) in expected {
            assert_eq!(self.run(line), *reply, "{line}");
        }
    }

    /// A server that has read the effects of this one.
    fn replayed(&self) -> Self {
        let (mut other, mut rest) = (Self::new(), self.effects.as_slice());
        while !rest.is_empty() {
            let Ok(Parsed::Request(words, used)) = parse(rest) else { panic!("not a request") };
            other.call(&words, &mut Vec::new()).replay().unwrap();
            rest = &rest[used..];
        }
        other
    }
}

#[test]
fn the_table_is_in_order() {
    assert!(COMMANDS.is_sorted_by(|a, b| a.name < b.name));
    assert!(COMMANDS.iter().all(|command| find(command.name.to_ascii_uppercase().as_bytes()).is_some()));
}

#[test]
fn strings() {
    Server::new().check(&[
        ("get a", "$-1"),
        ("set a 1", "+OK"),
        ("set a 2 nx", "$-1"),
        ("set a 2 xx get", "$1 1"),
        ("set b 2 xx", "$-1"),
        ("set a 1 nx xx", "-ERR syntax error"),
        ("set a 1 ex 0", "-ERR invalid expire time in 'set' command"),
        ("set a 1 ex 9223372036854775807", "-ERR invalid expire time in 'set' command"),
        ("set a 1 ex x", "-ERR value is not an integer or out of range"),
        ("set a 1 ex 1 keepttl", "-ERR syntax error"),
        ("incr a", ":3"),
        ("decr n", ":-1"),
        ("incrby n 9223372036854775807", ":9223372036854775806"),
        ("incrby n 2", "-ERR increment or decrement would overflow"),
        ("decrby n -9223372036854775808", "-ERR decrement would overflow"),
        ("append a x", ":2"),
        ("incr a", "-ERR value is not an integer or out of range"),
        ("strlen a", ":2"),
        ("mset c 1 d", "-ERR wrong number of arguments for 'mset' command"),
        ("mset c 1 d 2", "+OK"),
        ("mget c none d", "*3 $1 1 $-1 $1 2"),
        ("getrange a 0 -1", "$2 3x"),
        ("getrange a -1 0", "$0"),
        ("getdel c", "$1 1"),
        ("setnx c 1", ":1"),
        ("getset c 2", "$1 1"),
    ]);
}

#[test]
fn collections() {
    let mut server = Server::new();
    server.check(&[
        ("rpush l a b c", ":3"),
        ("lpush l z", ":4"),
        ("lrange l 0 -1", "*4 $1 z $1 a $1 b $1 c"),
        ("lrange l -2 9", "*2 $1 b $1 c"),
        ("lrange l 3 1", "*0"),
        ("lrange l 0 -9", "*0"),
        ("lindex l -1", "$1 c"),
        ("lpop l", "$1 z"),
        ("rpop l 2", "*2 $1 c $1 b"),
        ("rpop l -1", "-ERR value is out of range, must be positive"),
        ("lpop l 1 2", "-ERR wrong number of arguments for 'lpop' command"),
        ("get l", "-WRONGTYPE Operation against a key holding the wrong kind of value"),
        ("lpop l", "$1 a"),
        ("exists l", ":0"),
        ("lpop l", "$-1"),
        ("lpop l 1", "*-1"),
        ("hset h a 1 b 2", ":2"),
        ("hset h a 3", ":0"),
        ("hset h a", "-ERR wrong number of arguments for 'hset' command"),
        ("hget h a", "$1 3"),
        ("hgetall h", "*4 $1 a $1 3 $1 b $1 2"),
        ("hincrby h a 2", ":5"),
        ("hmget h a x", "*2 $1 5 $-1"),
        ("hdel h a x", ":1"),
        ("hdel h b", ":1"),
        ("type h", "+none"),
        ("sadd s b a b", ":2"),
        ("smembers s", "*2 $1 a $1 b"),
        ("sismember s a", ":1"),
        ("srem s a x", ":1"),
        ("scard s", ":1"),
        ("type s", "+set"),
        ("hello 3", "%7 $6 server $5 redis $7 version $5 7.2.0 $5 proto :3 $2 id :7 $4 mode $10 standalone $4 role $6 master $7 modules *0"),
        ("smembers s", "~1 $1 b"),
        ("hgetall h", "%0"),
        ("get none", "_"),
    ]);
}

#[test]
fn deadlines_are_points_in_time() {
    let mut server = Server::new();
    server.check(&[
        ("set a 1 ex 10", "+OK"),
        ("ttl a", ":10"),
        ("pttl a", ":10000"),
        ("expiretime a", ":1010"),
        ("expire a 5 gt", ":0"),
        ("expire a 20 gt", ":1"),
        ("expire a 30 lt", ":0"),
        ("expire a 30 nx", ":0"),
        ("expire a 30 nx xx", "-ERR NX and XX, GT or LT options at the same time are not compatible"),
        ("expire a 30 soon", "-ERR Unsupported option soon"),
        ("expire a 9223372036854775807", "-ERR invalid expire time in 'expire' command"),
        ("expire none 1", ":0"),
        ("persist a", ":1"),
        ("persist a", ":0"),
        ("ttl a", ":-1"),
        ("ttl none", ":-2"),
        ("pexpire a 1500", ":1"),
        ("incr a", ":2"),
        ("ttl a", ":2"),
        ("set a 3 keepttl", "+OK"),
        ("ttl a", ":2"),
    ]);
    let effects = String::from_utf8(server.effects.clone()).unwrap();
    assert!(
        effects.contains("PXAT\r\n$7\r\n1010000") && effects.contains("PEXPIREAT\r\n$1\r\na\r\n$7\r\n1001500"),
        "{effects}"
    );
    server.now_ms += 1500;
    server.check(&[("get a", "$-1"), ("set b 1", "+OK"), ("expire b -1", ":1"), ("exists b", ":0")]);
}

#[test]
fn errors_are_those_of_redis() {
    let mut server = Server::new();
    server.check(
        &[
            ("nope a 'b c'", "-ERR unknown command 'nope', with args beginning with: 'a' 'b c' "),
            ("get", "-ERR wrong number of arguments for 'get' command"),
            ("GET a b", "-ERR wrong number of arguments for 'get' command"),
            ("select 1", "-ERR DB index is out of range"),
            ("select x", "-ERR value is not an integer or out of range"),
            ("client nope", "-ERR unknown subcommand 'nope'. Try CLIENT HELP."),
            ("config get", "-ERR wrong number of arguments for 'config|get' command"),
            ("hello 4", "-NOPROTO unsupported protocol version"),
            ("scan x", "-ERR invalid cursor"),
            ("scan 0 count 0", "-ERR syntax error"),
            ("client setname 'a b'", "-ERR Client names cannot contain spaces, newlines or special characters."),
            ("config get max[m]emory", "*2 $9 maxmemory $8 25165824"),
            ("ping", "+PONG"),
            ("echo a", "$1 a"),
            ("flushall now", "-ERR syntax error"),
        ]
        .map(|(line, reply)| (line, reply.trim_end())),
    );
    server.settings.memory_bytes_max = 1;
    server.check(&[
        ("set a 1", "+OK"),
        ("set a 1", "-OOM command not allowed when used memory > 'maxmemory'."),
        ("del a", ":1"),
    ]);
    server.counters.is_log_failing = true;
    assert!(server.run("set a 1").starts_with("-MISCONF "));
    assert_eq!(server.run("get a"), "$-1");
}

/// All keys with values and deadlines, in order.
fn content(server: &mut Server) -> Vec<String> {
    let mut keys: Vec<String> =
        server.store.iter().map(|slot| String::from_utf8_lossy(&slot.key).into_owned()).collect();
    keys.sort();
    keys.iter()
        .map(|key| {
            let values = ["get", "lrange", "hgetall", "smembers"].map(|name| {
                let range = if name == "lrange" { " 0 -1" } else { "" };
                server.run(&format!("{name} {key}{range}"))
            });
            format!("{key} {values:?} {:?}", server.store.get(key.as_bytes()).and_then(|slot| slot.deadline_ms))
        })
        .collect()
}

/// Effects that are read again make the same store, whatever commands were run.
#[test]
fn effects_repeat_the_store() {
    const COMMANDS: [&str; 24] = [
        "set K V",
        "set K V ex 100",
        "set K V px 900 nx",
        "append K V",
        "incr K",
        "decrby K 3",
        "mset K V K2 V",
        "del K",
        "expire K 50",
        "persist K",
        "lpush K V V2",
        "rpush K V",
        "lpop K",
        "rpop K 2",
        "hset K V V2",
        "hdel K V",
        "hincrby K f 2",
        "sadd K V V2",
        "srem K V",
        "getdel K",
        "setnx K V",
        "getset K V",
        "unlink K K2",
        "flushall",
    ];
    let mut random = 88_172_645_463_325_252_u64;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    for _ in 0..50 {
        let mut server = Server::new();
        for _ in 0..200 {
            let at = next(COMMANDS.len() as u64) as usize;
            // Rarely the last one, which removes all.
            let line = COMMANDS[if at == COMMANDS.len() - 1 { next(24) as usize } else { at }];
            let line = line.replace("K2", &format!("k{}", next(6))).replace('K', &format!("k{}", next(6)));
            server.run(&line.replace("V2", &next(4).to_string()).replace('V', &next(4).to_string()));
        }
        let mut other = server.replayed();
        assert_eq!(content(&mut server), content(&mut other));
        assert_eq!(server.store.bytes(), other.store.bytes());
    }
}

#[test]
fn a_scan_has_all_keys() {
    let mut server = Server::new();
    for n in 0..50 {
        server.run(&format!("set k{n} 1"));
    }
    server.run("rpush list 1");
    let all = server.run("scan 0 count 100");
    assert!(all.starts_with("*2 $1 0 *51 "), "{all}");
    assert_eq!(server.run("scan 0 count 100 type list"), "*2 $1 0 *1 $4 list");
    assert_eq!(server.run("scan 0 count 100 match li*"), "*2 $1 0 *1 $4 list");
    assert_eq!(server.run("keys l?st"), "*1 $4 list");
    assert_eq!(server.run("dbsize"), ":51");
}

"""The connections of sockets.sh:

sockets.py compare KV REDIS        random commands: the replies of both servers are the same
sockets.py hostile KV              half-closed, slow and malformed connections
sockets.py idle KV PID             a thousand idle connections, and more than the server takes
sockets.py over KV CONNECTIONS     more connections than the pod may have
sockets.py write KV FILE           increments until the server is gone; the last acknowledged number is in FILE
"""
import os, random, resource, socket, sys, threading, time

TIMEOUT_S = 60
IDLE = 1000
# The limit of kv's manifest.
CLIENTS_MAX = 1010
# Memory of the process for a thousand idle connections from outside: each has a socket of the host, two tasks and its handles.
IDLE_BYTES_MAX = 64 << 20


def fail(text):
    sys.exit(f"FAIL: {text}")


def connect(address):
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), TIMEOUT_S)


def request(*words):
    words = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


class Client:
    def __init__(self, address):
        self.socket = connect(address)
        self.file = self.socket.makefile("rb")

    def reply(self):
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the connection ended")
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return None if rest == b"-1" else [self.reply() for _ in range(int(rest))]
        return int(rest) if kind == b":" else line[:-2].decode()

    def call(self, *words):
        self.socket.sendall(request(*words))
        return self.reply()


def random_command(chance):
    key, other, field = (f"k{chance.randrange(8)}" for _ in range(3))
    value = chance.choice(["", "1", "-3", "9223372036854775807", "x y", "\r\n", "a" * 300, str(chance.randrange(100))])
    number = chance.randrange(-4, 5)
    # No key expires during the comparison: the two would see it at different commands.
    seconds = number * 100
    return chance.choice([
        ("SET", key, value), ("SET", key, value, "NX"), ("SET", key, value, "XX", "GET"), ("SET", key, value, "EX", "100"),
        ("SET", key, value, "KEEPTTL"), ("SET", key, value, "PX"), ("SET", key, value, "EX", seconds), ("SET", key, value, "nonsense"),
        ("GET", key), ("MGET", key, other), ("MSET", key, value, other, "2"), ("MSET", key), ("MSET", key, "1", other),
        ("DEL", key, other), ("EXISTS", key, key, other), ("INCR", key), ("DECR", key), ("INCRBY", key, number), ("INCRBY", key, value),
        ("DECRBY", key, "-9223372036854775808"), ("APPEND", key, value), ("STRLEN", key), ("GETRANGE", key, number, chance.randrange(-4, 5)),
        ("SETNX", key, value), ("GETSET", key, value), ("GETDEL", key), ("SETEX", key, seconds, value),
        ("EXPIRE", key, 100), ("EXPIRE", key, seconds), ("EXPIRE", key, 100, "NX"), ("EXPIRE", key, 50, "LT"), ("EXPIRE", key, 200, "GT"),
        ("EXPIRE", key, 200, "GT", "LT"), ("EXPIRE", key, 200, "NX", "XX"), ("EXPIRE", key, 1, "soon"), ("PEXPIRE", key, "x"),
        ("TTL", key), ("PERSIST", key), ("TYPE", key), ("DBSIZE",), ("KEYS", "k[0-3]"), ("KEYS", "*"), ("RANDOMNONSENSE", key, "a b"),
        ("LPUSH", key, value, "2"), ("RPUSH", key, value), ("LPOP", key), ("RPOP", key), ("LPOP", key, 2), ("RPOP", key, number),
        ("LRANGE", key, number, chance.randrange(-4, 5)), ("LRANGE", key, "a", 1), ("LLEN", key), ("LINDEX", key, number),
        ("HSET", key, field, value), ("HSET", key, field, value, other, "2"), ("HSET", key, field), ("HGET", key, field), ("HGETALL", key),
        ("HDEL", key, field, other), ("HLEN", key), ("HMGET", key, field, other), ("HEXISTS", key, field), ("HINCRBY", key, field, number),
        ("HKEYS", key), ("SADD", key, value, other), ("SREM", key, value), ("SMEMBERS", key), ("SCARD", key), ("SISMEMBER", key, value),
        ("SELECT", "x"), ("PING",), ("PING", value), ("PING", "a", "b"), ("ECHO", value), ("ECHO",), ("GET",), ("SCAN", "x"),
        ("SCAN", 0, "COUNT", 0), ("SCAN", 0, "COUNT", 1000), ("CLIENT", "GETNAME"), ("CLIENT", "SETNAME", "a b"), ("CLIENT", "nonsense"),
        ("CONFIG", "GET"), ("HELLO", 9), ("HELLO", "x"), ("UNLINK", key), ("TOUCH", key, other), ("EXPIRETIME", "none"), ("FLUSHALL", "x"),
    ])


def compare(kv, redis):
    """Sets and hashes have no order; that of `KEYS` is the server's."""
    ours, theirs, seed = Client(kv), Client(redis), random.randrange(1 << 32)
    chance = random.Random(seed)
    for client in (ours, theirs):
        client.call("FLUSHALL")
    for count in range(5000):
        command = random_command(chance)
        a, b = ours.call(*command), theirs.call(*command)
        if command[0] in ("KEYS", "SMEMBERS", "HKEYS", "SCAN", "HGETALL") and isinstance(a, list) and isinstance(b, list):
            if command[0] == "SCAN":
                a, b = a[1], b[1]
            if command[0] == "HGETALL":
                a, b = list(zip(a[::2], a[1::2])), list(zip(b[::2], b[1::2]))
            a, b = sorted(a), sorted(b)
        # A second may pass between the two.
        if command[0] == "TTL" and isinstance(a, int) and isinstance(b, int) and abs(a - b) <= 1:
            continue
        if a != b:
            fail(f"command {count} of seed {seed}, {command}: {a!r}, redis-server {b!r}")
    ours.call("FLUSHALL")
    ours.call("SET", "way", "node-port")
    print(f"· {count + 1} random commands, as redis-server replies")


def hostile(kv):
    # A client that has closed its half gets all replies, also those that fill every buffer on the way.
    value = b"v" * 100_000
    Client(kv).call("SET", "large", value)
    with connect(kv) as half:
        half.sendall(request("GET", "large") * 200)
        half.shutdown(socket.SHUT_WR)
        time.sleep(1)
        received = sum(len(piece) for piece in iter(lambda: half.recv(1 << 20), b""))
        wanted = 200 * (len(value) + len(b"$100000\r\n\r\n"))
        if received != wanted:
            fail(f"{received} of {wanted} bytes for a client that has closed its half")
    # Requests in single bytes, pipelined ones, inline ones.
    slow = Client(kv)
    for byte in request("SET", "slow", "1") + b"GET slow\r\n":
        slow.socket.sendall(bytes([byte]))
    if (replies := [slow.reply(), slow.reply()]) != ["+OK", b"1"]:
        fail(f"single bytes: {replies}")
    slow.socket.sendall(request("INCR", "piped") * 2000)
    if (replies := [slow.reply() for _ in range(2000)]) != list(range(1, 2001)):
        fail("pipelined increments")
    # A client that never reads is stopped or closed, and others go on.
    deaf = connect(kv)
    deaf.settimeout(2)
    try:
        for _ in range(2000):
            deaf.sendall(request("GET", "large") * 100)
    except OSError:
        pass
    began = time.monotonic()
    if Client(kv).call("PING") != "+PONG" or time.monotonic() - began > 5:
        fail("a client waits for another one that doesn't read")
    deaf.close()
    for bad, expected in [
        (b"*1\r\n$99999999\r\n", b"-ERR Protocol error: invalid bulk length\r\n"),
        (b"*x\r\n", b"-ERR Protocol error: invalid multibulk length\r\n"),
        (b"*1\r\n!", b"-ERR Protocol error: expected '$', got '!'\r\n"),
        (b"get \"a\r\n", b"-ERR Protocol error: unbalanced quotes in request\r\n"),
        (b"a" * 70_000, b"-ERR Protocol error: too big inline request\r\n"),
    ]:
        with connect(kv) as connection:
            connection.sendall(bad)
            if (got := connection.makefile("rb").read()) != expected:
                fail(f"{bad[:20]!r}: {got!r}")
    # A request of more than 4 MiB, in words of permitted lengths.
    with connect(kv) as connection:
        try:
            connection.sendall(b"*9\r\n$3\r\nDEL\r\n" + (b"$1000000\r\n" + b"k" * 1_000_000 + b"\r\n") * 8)
            got = connection.recv(100)
        except OSError:
            got = b""
        if got:
            fail(f"a request of 8 MB: {got!r}")
    # Connections that end at once, and in the middle of a request.
    for _ in range(300):
        with connect(kv) as connection:
            connection.sendall(request("SET", "a", "b")[:random.randrange(20)])
    client = Client(kv)
    client.call("DEL", "large", "slow", "piped")
    print("· half-closed, slow, deaf and malformed connections")


def memory(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS:"))


def eventually(check, text):
    deadline = time.monotonic() + TIMEOUT_S
    while not check():
        if time.monotonic() > deadline:
            fail(text)
        time.sleep(0.1)


def accepted(kv):
    """A connection with a reply, or None if the server or its pod takes no more."""
    try:
        client = Client(kv)
        reply = client.call("PING")
        return client if reply == "+PONG" else None
    except OSError:
        return None


def refuses(kv):
    client = accepted(kv)
    if client:
        client.socket.close()
    return client is None


def idle(kv, pid):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    descriptors = lambda: len(os.listdir(f"/proc/{pid}/fd"))
    for warm_up in [accepted(kv) for _ in range(20)]:
        warm_up.socket.close()
    time.sleep(1)
    before, memory_before = descriptors(), memory(pid)
    # One after the other: the backlog has 511 places.
    clients = [accepted(kv) for _ in range(IDLE)]
    if None in clients:
        fail(f"connection {clients.index(None)} of {IDLE}")
    grown = memory(pid) - memory_before
    print(f"· {IDLE} idle connections: {grown / (1 << 20):.1f} MiB")
    if grown > IDLE_BYTES_MAX:
        fail(f"{grown} bytes for {IDLE} idle connections, more than {IDLE_BYTES_MAX}")
    # One of them has as fast a reply as without the others.
    times = []
    for _ in range(200):
        began = time.monotonic()
        clients[IDLE // 2].call("GET", "way")
        times.append(time.monotonic() - began)
    print(f"· a request beside {IDLE - 1} idle connections: {sorted(times)[100] * 1e6:.0f} µs (p50)")
    # The server's own limit, in its own words. Which of them is the last one is up to the proxy.
    more = [Client(kv) for _ in range(CLIENTS_MAX - IDLE + 1)]
    for client in more:
        client.socket.sendall(request("PING"))
    replies = [client.reply() for client in more]
    if set(replies) != {"+PONG", "-ERR max number of clients reached"}:
        fail(f"connections over the server's limit: {replies}")
    clients += [client for client, reply in zip(more, replies) if reply == "+PONG"]
    # Storms over the pod's limit: some are refused, and all others stay.
    storm = [connect(kv) for _ in range(200)]
    for connection in storm:
        connection.close()
    if clients[0].call("PING") != "+PONG" or clients[-1].call("PING") != "+PONG":
        fail("a connection ended in a storm of others")
    for client in clients:
        client.file.close()
        client.socket.close()
    eventually(lambda: descriptors() <= before + 20, f"{descriptors()} descriptors, {before} before the connections")
    eventually(lambda: not refuses(kv), "no connection after a thousand others")


def over(kv, limit):
    clients = []
    for _ in range(int(limit) + 20):
        if client := accepted(kv):
            clients.append(client)
    # The listener counts, and the readiness probe's connection.
    if not int(limit) - 5 <= len(clients) < int(limit):
        fail(f"{len(clients)} connections of a pod that may have {limit} sockets")
    for client in clients:
        if client.call("PING") != "+PONG":
            fail("a connection ended as others were refused")
    for client in clients:
        client.file.close()
        client.socket.close()
    eventually(lambda: not refuses(kv), "no connection after the others are closed")
    print(f"· {len(clients)} connections of a pod that may have {limit} sockets")


def write(kv, path):
    """Four connections that count up one number."""
    lock, last = threading.Lock(), [0]

    def count():
        try:
            client = Client(kv)
            while True:
                number = client.call("INCR", "counter")
                with lock:
                    if number > last[0]:
                        last[0] = number
                        acknowledged.write(f"{number}\n")
                        acknowledged.flush()
        except (OSError, ConnectionError):
            pass

    with open(path, "w") as acknowledged:
        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    {"compare": compare, "hostile": hostile, "idle": idle, "over": over, "write": write}[sys.argv[1]](*sys.argv[2:])

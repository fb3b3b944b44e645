"""The clients of chat.sh. ADDRESS is HOST:PORT of the sample `chat`.

chat.py control              the cases against the server of the Python package `websockets`: they are right about a server that others use (by hand)
chat.py cases ADDRESS WAY    the cases of Autobahn's test suite, sections 1 to 7, 9 (up to 1 MiB) and 10, against /echo
chat.py handshakes ADDRESS   requests that are no handshakes
chat.py clients ADDRESS      clients of `websockets`: an offered compression, fragments, pings, a full room
chat.py slow ADDRESS         clients that don't read
chat.py random ADDRESS       random frames
chat.py limits ADDRESS       a server with small limits: silence, connections, long messages
"""
import asyncio, base64, concurrent.futures, hashlib, json, os, random, socket, struct, sys, threading, urllib.request

from chat_cases import CLOSE, CONTINUATION, PING, PONG, TEXT, all_cases, frame

TIMEOUT_S = 120
# Cases that run at once.
AT_ONCE = 8
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def fail(text):
    sys.exit(f"FAIL: {text}")


def expect(wanted, got, what):
    if wanted != got:
        fail(f"{what}: wanted {wanted!r:.300}, got {got!r:.300}")


def host_port(address):
    host, port = address.rsplit(":", 1)
    return host, int(port)


class Raw:
    """A client that sends any bytes."""

    def __init__(self, address, target="/echo", lines="", key=None, version=13, receive_buffer=None):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect(host_port(address))
        self.file = self.socket.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode() if key is None else key
        head = f"GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{lines}"
        self.send(f"{head}Sec-WebSocket-Version: {version}\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode())
        status = self.file.readline()
        self.status = int(status.split()[1]) if status else 0
        self.headers = {}
        while (line := self.file.readline().strip()):
            name, value = line.decode().split(":", 1)
            self.headers[name.lower()] = value.strip()
        if self.status == 101:
            wanted = base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode()
            expect(wanted, self.headers.get("sec-websocket-accept"), "the response to the key")

    def send(self, data, piece=None):
        for at in range(0, len(data), piece or max(len(data), 1)):
            self.socket.sendall(data[at:at + piece] if piece else data)

    def frame(self):
        """The next frame as (opcode, payload); None at the end."""
        head = self.file.read(2)
        if len(head) < 2:
            return None
        length = head[1]
        if length & 0x80 or not head[0] & 0x80 or head[0] & 0x70:
            fail(f"a frame that is masked, in parts or with reserved bits: {head.hex()}")
        if length >= 126:
            length = int.from_bytes(self.file.read(2 if length == 126 else 8), "big")
        return head[0] & 15, self.file.read(length)

    def received(self):
        """The next frame that isn't a ping of the server's own."""
        while (got := self.frame()) == (PING, b""):
            self.send(frame(PONG, b""))
        return got

    def close(self):
        self.socket.close()
        self.file.close()


def closed(code, payload):
    return len(payload) >= 2 and int.from_bytes(payload[:2], "big") == code


def run_case(address, case, target="/echo", answers_late=False):
    """`answers_late`: the server may close before it has echoed earlier messages of the same piece."""
    client = Raw(address, target)
    expect(101, client.status, f"case {case.name}: the handshake")
    try:
        for data in case.sends:
            client.send(data, case.piece)
    except OSError:
        # A server that has failed the connection reads no further.
        if case.code == 1000:
            raise
    got = None
    for wanted in case.receives:
        got = client.received()
        if answers_late and not case.sends_close and got and got[0] == CLOSE:
            break
        expect(wanted, got, f"case {case.name}")
    else:
        if case.sends_close:
            client.send(frame(CLOSE, struct.pack(">H", 1000)))
        got = client.received()
    if case.code is None:
        expect((CLOSE, b""), got, f"case {case.name}: the close frame")
    elif not (got and got[0] == CLOSE and closed(case.code, got[1])):
        fail(f"case {case.name}: wanted a close frame with {case.code}, got {got!r:.300}")
    if len(got[1]) > 2:
        got[1][2:].decode()
    # The server ends the connection first (RFC 6455, 7.1.1).
    expect(None, client.received(), f"case {case.name}: after the close frame")
    client.close()


def run_cases(address, table, **options):
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as threads:
        for case in [threads.submit(run_case, address, case, **options) for case in table]:
            case.result()


def cases(address, way):
    table = all_cases()
    run_cases(address, table)
    print(f"· {len(table)} of Autobahn's cases ({way})")


def control():
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.server import serve

    def echo(connection):
        try:
            for message in connection:
                connection.send(message)
        except ConnectionClosed:
            pass

    with serve(echo, "127.0.0.1", 0, compression=None, max_size=1 << 20, ping_interval=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host, port = server.socket.getsockname()
        # It decodes text when a message is whole, not while it arrives.
        table = [case for case in all_cases() if not case.fails_fast]
        run_cases(f"{host}:{port}", table, target="/", answers_late=True)
    print(f"· the cases are right about another server: {len(table)}")


def handshakes(address):
    for what, status, options in [
        ("another version", 426, {"version": 8}),
        ("a short key", 400, {"key": "dGhlIHNhbXBsZQ=="}),
        ("no key", 400, {"key": ""}),
        ("another path", 404, {"target": "/none"}),
        ("no name", 400, {"target": "/ws?room=a"}),
        ("a page of another site", 403, {"lines": "Origin: http://example.com\r\n"}),
        ("a page of its own", 101, {"lines": f"Origin: http://{address}\r\n"}),
        ("an offered extension", 101, {"lines": "Sec-WebSocket-Extensions: permessage-deflate\r\n"}),
    ]:
        client = Raw(address, **options)
        expect(status, client.status, what)
        if status == 426:
            expect("13", client.headers.get("sec-websocket-version"), "the permitted version")
        expect(None, client.headers.get("sec-websocket-extensions"), "extensions")
        client.close()
    for path, status, kind in [("/", 200, "text/html; charset=utf-8"), ("/stats", 200, "application/json")]:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=TIMEOUT_S) as response:
            expect((status, kind), (response.status, response.headers["content-type"]), path)
    print("· requests that are no handshakes have their status")


def stats(address):
    with urllib.request.urlopen(f"http://{address}/stats", timeout=TIMEOUT_S) as response:
        return json.load(response)


async def echo_of_clients(address):
    from websockets.asyncio.client import connect
    from websockets.exceptions import ConnectionClosedError

    async with connect(f"ws://{address}/echo") as client:
        expect([], client.protocol.extensions, "extensions: compression was offered")
        for message in ["", "é" * 1000, b"", os.urandom(100_000), "€" * 100_000]:
            await client.send(message)
            expect(message, await client.recv(), "an echo")
        await client.send(["one ", "two ", "three"])
        expect("one two three", await client.recv(), "an echo of fragments")
        await (await client.ping(b"a ping"))
        await client.close(3001, "enough")
        expect(3001, client.close_code, "the code of the server's close frame")
    async with connect(f"ws://{address}/echo", max_size=None) as client:
        await client.send(b"a" * ((1 << 20) + 1))
        try:
            await client.recv()
            fail("a message of more than 1 MiB was echoed")
        except ConnectionClosedError as error:
            expect(1009, error.rcvd.code, "the code for a long message")


async def full_room(address, count):
    from websockets.asyncio.client import connect

    async def says(client, name, texts):
        await client.send(f"from {name}")
        while len(texts) < count:
            event = json.loads(await client.recv())
            if event["type"] == "message":
                texts.add(event["name"])

    members = [connect(f"ws://{address}/ws?room=full&name=m{at}") for at in range(count)]
    members = await asyncio.gather(*members)
    heard = [set() for _ in members]
    for at, member in enumerate(members):
        expect(f"m{at}", json.loads(await member.recv())["name"], "the welcome")
    await asyncio.gather(*(says(member, at, heard[at]) for at, member in enumerate(members)))
    for texts in heard:
        expect({f"m{at}" for at in range(count)}, texts, "the members that one has heard")
    await asyncio.gather(*(member.close() for member in members))


def clients(address):
    asyncio.run(echo_of_clients(address))
    asyncio.run(full_room(address, 40))
    while (rooms := stats(address)["rooms"]):
        expect({"full"}, set(rooms), "rooms")
    print("· clients of `websockets`, and a room with 40 of them")


def slow(address):
    """A member that doesn't read is dropped; one that reads gets every message. An echo whose client reads nothing stops reading."""
    deaf = Raw(address, "/ws?room=slow&name=deaf", receive_buffer=4096)
    witness = Raw(address, "/ws?room=slow&name=witness")
    has_left, sent = False, 0

    def texts(client):
        nonlocal has_left
        while (got := client.received()):
            event = json.loads(got[1])
            has_left |= event == {"type": "left", "name": "deaf"}
            if event["type"] == "message":
                yield event["text"]
        fail("a member that reads is dropped")

    for turn in range(400):
        # Each connection may send fifty messages at once.
        sender = Raw(address, f"/ws?room=slow&name=sender{turn}")
        mine = [f"{turn} {at} " + "x" * 3900 for at in range(50)]
        for wanted in mine:
            sender.send(frame(TEXT, wanted.encode()))
            for client in (sender, witness):
                expect(wanted, next(texts(client)), "a message of a member that reads")
        sender.close()
        sent += len(mine)
        if has_left:
            break
    else:
        fail(f"a member that reads nothing isn't dropped after {sent} messages")
    for client in (deaf, witness):
        client.close()
    print(f"· a member that reads nothing is dropped after {sent} messages, and another one gets all")

    client = Raw(address)
    client.socket.settimeout(3)
    data, sent, total = frame(2, b"e" * 50_000), 0, 1000
    try:
        while sent < total * len(data):
            sent += client.socket.send(data[sent % len(data):])
        fail(f"{sent} bytes were taken of a client that reads nothing")
    except TimeoutError:
        pass
    client.socket.settimeout(TIMEOUT_S)
    for _ in range(sent // len(data)):
        expect((2, b"e" * 50_000), client.received(), "an echo of a client that reads late")
    client.close()
    print(f"· an echo whose client reads nothing has taken {sent >> 10} KiB, and returns all")


def random_frames(address):
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    codes = {}
    for _ in range(150):
        client = Raw(address)
        data = b"".join(
            bytes([chance.choice([0x00, 0x01, 0x02, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8A, chance.randrange(256)]), chance.choice([0x80 | chance.randrange(128), 0xFF, 0xFE, chance.randrange(256)])])
            + chance.randbytes(chance.randrange(30)) for _ in range(20))
        client.send(data)
        client.socket.shutdown(socket.SHUT_WR)
        code = 0
        while (got := client.frame()):
            if got[0] == CLOSE:
                code = int.from_bytes(got[1][:2], "big")
                break
        codes[code] = codes.get(code, 0) + 1
        client.close()
    if not set(codes) <= {0, 1002, 1007, 1009} | set(range(3000, 5000)) | set(range(1000, 1015)):
        fail(f"codes {codes} of random frames, seed {seed}")
    stats(address)
    print(f"· random frames, seed {seed}: close frames by code {dict(sorted(codes.items()))}")


def limits(address):
    # A silent client is pinged, then dropped. One that answers stays.
    silent, alive = Raw(address), Raw(address)
    for _ in range(3):
        expect((PING, b""), alive.frame(), "a ping")
        alive.send(frame(PONG, b""))
    expect((PING, b""), silent.frame(), "a ping")
    expect(None, silent.frame(), "the end of a silent connection")
    alive.send(frame(TEXT, b"here"))
    expect((TEXT, b"here"), alive.received(), "an echo of a client that answers pings")
    alive.send(frame(2, b"a" * 1001))
    got = alive.received()
    expect(True, got[0] == CLOSE and closed(1009, got[1]), f"a message of more than 1,000 bytes: {got}")
    alive.close()
    # Binary and long messages in a room, a flood.
    for what, data, code in [("binary", frame(2, b"a"), 1003), ("long", frame(TEXT, b"a" * 4097), 1009), ("a flood", frame(TEXT, b"a") * 60, 1008)]:
        client = Raw(address, "/ws?room=r&name=n")
        client.send(data)
        while (got := client.received())[0] == TEXT:
            pass
        expect(True, got[0] == CLOSE and closed(code, got[1]), f"{what}: {got}")
        client.close()
    while stats(address)["connections"] > 1:
        os.sched_yield()
    held = []
    for _ in range(20):
        held.append(Raw(address))
        expect(101, held[-1].status, "a permitted connection")
    over = Raw(address)
    expect((503, "10"), (over.status, over.headers.get("retry-after")), "a connection too many")
    for client in [*held, over]:
        client.close()
    print("· silence, long messages, floods and connections have their limits")


if __name__ == "__main__":
    mode, *words = sys.argv[1:]
    {"random": random_frames}.get(mode, globals().get(mode))(*words)

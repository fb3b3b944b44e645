"""WebSocket clients of pods/portforward that kubectl isn't: the older protocol with numbered channels, and clients that are wrong."""
import base64, os, socket, ssl, struct, sys, tempfile, yaml

POD = sys.argv[1]
CONFIG = yaml.safe_load(open(os.environ["KUBECONFIG"]))
USER = CONFIG["users"][0]["user"]
HOST, PORT = CONFIG["clusters"][0]["cluster"]["server"].split("//")[1].rsplit(":", 1)
WITHIN_S = 20


def context():
    made = ssl._create_unverified_context()
    with tempfile.NamedTemporaryFile() as pem:
        pem.write(base64.b64decode(USER["client-certificate-data"]) + base64.b64decode(USER["client-key-data"]))
        pem.flush()
        made.load_cert_chain(pem.name)
    return made


class WebSocket:
    """A client's end. `head` is the server's answer."""

    def __init__(self, query, protocol="v4.channel.k8s.io", pod=POD, key=None):
        self.socket = context().wrap_socket(socket.create_connection((HOST, int(PORT)), timeout=WITHIN_S))
        key = key if key is not None else base64.b64encode(os.urandom(16)).decode()
        named = f"Sec-WebSocket-Protocol: {protocol}\r\n" if protocol else ""
        self.socket.sendall(
            f"GET /api/v1/namespaces/default/pods/{pod}/portforward?{query} HTTP/1.1\r\nHost: {HOST}:{PORT}\r\nConnection: Upgrade\r\n"
            f"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n{named}\r\n".encode()
        )
        self.file = self.socket.makefile("rb")
        self.head = ""
        while not self.head.endswith("\r\n\r\n"):
            self.head += self.file.read(1).decode() or "\r\n\r\n"
        self.code = int(self.head.split()[1])
        length = [line.split(":")[1] for line in self.head.lower().splitlines() if line.startswith("content-length:")]
        self.body = self.file.read(int(length[0])).decode() if length else ""

    def send(self, data, op=2):
        mask = os.urandom(4)
        length = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack(">H", len(data))
        self.socket.sendall(bytes([0x80 | op]) + length + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(data)))

    def messages(self):
        """All that come until the close."""
        while True:
            head = self.file.read(2)
            if len(head) < 2:
                return
            length = head[1] & 127
            if length >= 126:
                length = int.from_bytes(self.file.read(2 if length == 126 else 8), "big")
            data = self.file.read(length)
            if head[0] & 15 == 8:
                return
            yield data


def expect(want, got, what):
    if want != got:
        raise SystemExit(f"FAIL: {what}: wanted {want!r}, got {got!r}")


for protocol in ("v4.channel.k8s.io", None):
    for _ in range(10):
        client = WebSocket("ports=8080,99", protocol)
        expect(101, client.code, "the upgrade")
        client.send(b"\0GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        said = {}
        for message in client.messages():
            said[message[0]] = said.get(message[0], b"") + message[1:]
        expect({0, 1, 2, 3}, set(said), "channels")
        expect((b"\x90\x1f", b"\x63\x00"), (said[1], said[2]), "ports on quiet channels")
        expect((True, True), (said[0].startswith(b"\x90\x1fHTTP/1.1 200"), b"hello from hello-" in said[0]), "the answer")
        expect(True, said[3].endswith(b"connect: connection refused"), "the error of the port on which nothing listens")
print("· numbered channels")

for query, code, says, more in (
    ("ports=x", 400, "invalid syntax", {}),
    ("ports=70000", 400, "unable to parse", {}),
    ("ports=0", 400, "must be > 0", {}),
    ("", 400, '"port" is required', {}),
    ("ports=" + ",".join(["80"] * 200), 400, "at most 100", {}),
    ("ports=80", 404, "not found", {"pod": "nobody"}),
    ("ports=80", 400, "not supported", {"protocol": "v9.channel.k8s.io"}),
    ("ports=80", 400, "Sec-WebSocket-Key", {"key": "short"}),
):
    client = WebSocket(query, **more)
    expect((code, True), (client.code, says in client.body), f"{query} {more}: {client.body!r}")

# Bytes that are no WebSocket, no SPDY in a WebSocket, and a frame that says it is longer than all memory: each ends its own connection.
client = WebSocket("", "SPDY/3.1+portforward.k8s.io")
client.send(b"GET / HTTP/1.1\r\n\r\n" * 100)
list(client.messages())
client = WebSocket("", "SPDY/3.1+portforward.k8s.io")
client.socket.sendall(b"\x82\xff" + struct.pack(">Q", 2**62) + b"mask")
list(client.messages())
client = WebSocket("ports=8080")
client.send(b"\xffto a channel that isn't there")
client.send(b"\x01to one that only the server writes to")
client.send(b"\0GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
expect(True, b"hello from" in b"".join(client.messages()), "an answer in spite of it")
print("· clients that are wrong")

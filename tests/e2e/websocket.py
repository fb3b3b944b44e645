"""A WebSocket client of the API server's upgrades, by the kubeconfig that KUBECONFIG names."""
import base64, fcntl, os, socket, ssl, struct, tempfile, termios, time, yaml

CONFIG = yaml.safe_load(open(os.environ["KUBECONFIG"]))
USER = CONFIG["users"][0]["user"]
HOST, PORT = CONFIG["clusters"][0]["cluster"]["server"].split("//")[1].rsplit(":", 1)
WITHIN_S = 120


def context(certificate=True):
    made = ssl._create_unverified_context()
    if not certificate:
        return made
    with tempfile.NamedTemporaryFile() as pem:
        pem.write(base64.b64decode(USER["client-certificate-data"]) + base64.b64decode(USER["client-key-data"]))
        pem.flush()
        made.load_cert_chain(pem.name)
    return made


class WebSocket:
    """A client's end. `head` is the server's response, `opcode` that of the last message: 1 is text, 2 binary. With a token it sends that as
    a browser does, and no certificate."""

    def __init__(self, target, protocol="v4.channel.k8s.io", key=None, token=None):
        if token is not None:
            encoded = base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")
            protocol = f"base64url.bearer.authorization.k8s.io.{encoded}" + (f", {protocol}" if protocol else "")
        self.socket = context(token is None).wrap_socket(socket.create_connection((HOST, int(PORT)), timeout=WITHIN_S))
        named = f"Sec-WebSocket-Protocol: {protocol}\r\n" if protocol else ""
        self.shake_hands(target, f"Host: {HOST}:{PORT}\r\nConnection: Upgrade\r\n{named}", key)
        length = [line.split(":")[1] for line in self.head.lower().splitlines() if line.startswith("content-length:")]
        self.body = self.file.read(int(length[0])).decode() if length else ""

    def shake_hands(self, target, lines, key=None):
        """Sends the request with these lines; sets `file`, `head` and `code`."""
        key = key if key is not None else base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {target} HTTP/1.1\r\n{lines}Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        self.file = self.socket.makefile("rb")
        self.head = ""
        while not self.head.endswith("\r\n\r\n"):
            self.head += self.file.read(1).decode() or "\r\n\r\n"
        self.code = int(self.head.split()[1])

    def send(self, data, op=2):
        mask = os.urandom(4)
        length = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack(">H", len(data))
        self.socket.sendall(bytes([0x80 | op]) + length + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(data)))

    def fills(self):
        """Reads nothing until the server stops sending, because the buffers between them are full."""
        deadline, before, looks = time.monotonic() + WITHIN_S, 0, 0
        while looks < 10:
            expect(True, time.monotonic() < deadline, f"the buffers of a client that doesn't read fill ({before} bytes)")
            time.sleep(0.05)
            unread = struct.unpack("i", fcntl.ioctl(self.socket.fileno(), termios.FIONREAD, b"\0" * 4))[0]
            before, looks = unread, looks + 1 if unread == before and unread > 0 else 0

    def messages(self):
        """All messages until the close."""
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
            # Pings and pongs are no messages.
            if head[0] & 15 < 8:
                self.opcode = head[0] & 15
                yield data


def expect(want, got, what):
    if want != got:
        raise SystemExit(f"FAIL: {what}: wanted {want!r}, got {got!r}")

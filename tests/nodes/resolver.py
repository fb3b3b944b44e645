"""A name server outside the cluster that lies: before each true answer it sends forged ones, and with it records of other names."""
import socket, struct, threading

TRUE = {"honest.example": "192.0.2.1", "victim.example": "192.0.2.2"}
FORGED = "192.0.2.66"
TTL_S = 60
NO_SUCH_NAME = 3


def name_bytes(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def asked_name(query):
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1:at + 1 + query[at]].decode())
        at += 1 + query[at]
    return ".".join(labels).lower(), query[12:at + 5]


def record(name, address):
    return name_bytes(name) + struct.pack(">HHIH", 1, 1, TTL_S, 4) + socket.inet_aton(address)


def answer(number, question, answers, more=(), code=0):
    head = struct.pack(">HHHHHH", number, 0x8180 | code, 1, len(answers), 0, len(more))
    return head + question + b"".join([*answers, *more])


class LyingResolver:
    """Serves UDP port 53 of an address until `close`. `queries` are the queried names."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, 53))
        self.other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.other.bind((address, 0))
        self.queries = set()
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                query, client = self.socket.recvfrom(4096)
            except OSError:
                return
            number, (name, question) = struct.unpack(">H", query[:2])[0], asked_name(query)
            self.queries.add(name)
            forged = record(name, FORGED)
            for other in range(1, 50):
                self.socket.sendto(answer(number ^ other, question, [forged]), client)
            self.other.sendto(answer(number, question, [forged]), client)
            self.socket.sendto(answer(number, name_bytes("else.example") + question[-4:], [forged]), client)
            if name in TRUE and question[-4:-2] == b"\0\1":
                others = [record(victim, FORGED) for victim in TRUE if victim != name]
                self.socket.sendto(answer(number, question, [record(name, TRUE[name]), *others], others), client)
            else:
                self.socket.sendto(answer(number, question, [], code=NO_SUCH_NAME), client)

    def close(self):
        self.socket.close()
        self.other.close()

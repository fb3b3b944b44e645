"""WebSocket clients of pods/portforward other than kubectl: the older protocol with numbered channels, and invalid clients."""
import os, socket, struct, sys, time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from websocket import HOST, PORT, WITHIN_S, WebSocket, context, expect

POD, TOKEN = sys.argv[1:3]


def forwarded(query, protocol="v4.channel.k8s.io", pod=POD, key=None):
    return WebSocket(f"/api/v1/namespaces/default/pods/{pod}/portforward?{query}", protocol, key)


for protocol in ("v4.channel.k8s.io", None):
    for _ in range(10):
        client = forwarded("ports=8080,99", protocol)
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
    client = forwarded(query, **more)
    expect((code, True), (client.code, says in client.body.replace("\\\"", "\"")), f"{query} {more}: {client.body!r}")

# Bytes that are no WebSocket, no SPDY in a WebSocket, and a frame with a length beyond all memory: each ends its own connection.
client = forwarded("", "SPDY/3.1+portforward.k8s.io")
client.send(b"GET / HTTP/1.1\r\n\r\n" * 100)
list(client.messages())
client = forwarded("", "SPDY/3.1+portforward.k8s.io")
client.socket.sendall(b"\x82\xff" + struct.pack(">Q", 2**62) + b"mask")
list(client.messages())
client = forwarded("ports=8080")
client.send(b"\xffto a channel that isn't there")
client.send(b"\x01to one that only the server writes to")
client.send(b"\0GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
expect(True, b"hello from" in b"".join(client.messages()), "an answer in spite of it")
print("· clients that are wrong")

# One user's upgraded connections: the others of the API server stay for others, and the end of one makes room for the next.
SESSIONS_MAX = 256


def watch():
    return WebSocket("/api/v1/namespaces/default/configmaps?watch=1&resourceVersion=0", protocol="binary.k8s.io", token=TOKEN)


held = [watch() for _ in range(SESSIONS_MAX)]
expect({101}, {client.code for client in held}, "watches of one user")
more = watch()
expect((429, True), (more.code, f"this user has {SESSIONS_MAX} upgraded connections already" in more.body), "one more")
expect(101, forwarded("ports=8080").code, "an administrator's connection")
held.pop().socket.close()
deadline = time.monotonic() + WITHIN_S
while (more := watch()).code != 101:
    expect(True, (more.code, time.monotonic() < deadline) == (429, True), f"a connection after the end of another: {more.code}")
    time.sleep(0.05)
print("· a user's share of upgraded connections")

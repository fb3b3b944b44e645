"""Requests through pods/proxy, services/proxy and nodes/proxy that kubectl doesn't make: methods, bodies, streams, truncated responses, upgrades."""
import http.client, json, os, sys, threading, time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from websocket import HOST, PORT, WITHIN_S, WebSocket, context, expect

POD = sys.argv[1]
SERVICE = "/api/v1/namespaces/default/services/hello:80/proxy"


def ask(method, path, body=None, headers=None):
    connection = http.client.HTTPSConnection(HOST, int(PORT), context=context(), timeout=WITHIN_S)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer, answer.read()


answer, body = ask("POST", f"{SERVICE}/echo", b"x" * 5_000_000, {"Content-Type": "text/x"})
expect((200, 5_000_000, "text/x"), (answer.status, len(body), answer.headers["content-type"]), "a body that is longer than an object may be")
answer, body = ask("POST", f"{SERVICE}/echo", (b"piece" for _ in range(1000)))
expect((200, b"piece" * 1000), (answer.status, body), "a body of unknown length")
for method in ("PUT", "PATCH", "DELETE"):
    answer, body = ask(method, f"{SERVICE}/", b"{}", {"Content-Type": "application/json"})
    expect((405, True), (answer.status, "audit-id" in answer.headers), f"the guest's answer to {method}")
answer, body = ask("GET", f"{SERVICE}/env/%50OD_NAME/../VERSION?a=b")
expect((200, b"one\n"), (answer.status, body), "a path is cleaned, never its place left")
for path in (f"{SERVICE}/", f"/api/v1/namespaces/default/pods/{POD}:8080/proxy/", "/api/v1/nodes/coracle-1/proxy/healthz"):
    answer, body = ask("GET", path)
    isolation = ("Content-Security-Policy", "X-Content-Type-Options")
    expect((200, ["sandbox", "nosniff"]), (answer.status, [answer.headers[name] for name in isolation]), f"{path} in a browser")
# More than the 100 that hyper and Python take by default.
http.client._MAXHEADERS = 1024
FIELDS = 150
query = ",".join(f"x-{n}:{n}" for n in range(FIELDS))
answer, _ = ask("GET", f"/api/v1/namespaces/default/services/unruly:80/proxy/headers?set={query}")
expect((200, FIELDS), (answer.status, sum(answer.headers[f"x-{n}"] == str(n) for n in range(FIELDS))), "header fields of a response")
answer, body = ask("GET", SERVICE + "?x=1")
expect((301, SERVICE + "/?x=1"), (answer.status, answer.headers["location"]), "no slash")
answer, body = ask("GET", f"{SERVICE}/stream?n=200000")
expect((200, 200000), (answer.status, body.count(b"\n")), "a long answer")
answer, body = ask("GET", f"{SERVICE}/?dryRun=All")
expect((400, "dryRun is not supported"), (answer.status, json.loads(body)["message"]), "dry run")
print("· methods, bodies, paths")

# The first line arrives before the second is generated, and a disconnected client ends the guest's work.
connection = http.client.HTTPSConnection(HOST, int(PORT), context=context(), timeout=WITHIN_S)
connection.request("GET", f"{SERVICE}/stream?n=1000&ms=500")
began = time.monotonic()
first = connection.getresponse().readline()
expect((b"line 1\n", True), (first, time.monotonic() - began < 5), "a stream's first line")
connection.close()

# Forty slow concurrent responses block no other request.
slow = [threading.Thread(target=ask, args=("GET", f"{SERVICE}/slow?ms=1500")) for _ in range(40)]
[one.start() for one in slow]
answer, _ = ask("GET", "/api/v1/namespaces/default/pods?limit=1")
expect(200, answer.status, "the API beside slow answers")
[one.join() for one in slow]
print("· streams, and slow answers")

# An upgrade goes through the API server to the kubelet as a node's proxy passes it.
client = WebSocket(f"/api/v1/nodes/coracle-1/proxy/portForward/default/{POD}?port=8080")
expect(101, client.code, "an upgrade through nodes/proxy")
client.send(b"\0GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
said = b"".join(message[1:] for message in client.messages() if message[0] == 0)
expect(True, b"hello from " in said, "its answer")
client = WebSocket(f"/api/v1/namespaces/default/pods/{POD}:8080/proxy/")
expect(True, client.code >= 400, f"a guest that takes no upgrade ({client.code}: {client.body})")
print("· upgrades")

"""The proxy of `coracle dashboard`: dashboard_proxy.py ADDRESS, with the secret in ADDRESS. Needs a cluster with the pod `hello` in `default`."""
import base64, http.client, json, socket, sys
from websocket import WITHIN_S, WebSocket, expect

ADDRESS, SECRET = sys.argv[1].split("#token=")
PORT = int(ADDRESS.split(":")[2].split("/")[0])
OWN = f"127.0.0.1:{PORT}"
BEARER = {"Authorization": f"Bearer {SECRET}"}


def ask(path, headers={}, method="GET", body=None, host=OWN):
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=WITHIN_S)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    connection.putheader("Host", host)
    for name, value in headers.items():
        connection.putheader(name, value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
        connection.putheader("Content-Type", "application/json")
    connection.endheaders(body)
    response = connection.getresponse()
    return response.status, response.headers, response.read().decode(errors="replace")


def whoami(headers):
    review = json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}).encode()
    code, _, body = ask("/apis/authentication.k8s.io/v1/selfsubjectreviews", headers, "POST", review)
    expect(201, code, f"a review of the own user: {body}")
    return json.loads(body)["status"]["userInfo"]["username"]


class ProxiedSocket(WebSocket):
    """As a page opens a WebSocket: with the secret as a subprotocol."""

    def __init__(self, target, protocol, origin=None):
        self.socket = socket.create_connection(("127.0.0.1", PORT), timeout=WITHIN_S)
        named = f"Origin: {origin}\r\n" if origin else ""
        self.shake_hands(target, f"Host: {OWN}\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Protocol: {protocol}\r\n{named}")


def files():
    for path in ["/dashboard/", "/dashboard/app.js"]:
        code, headers, _ = ask(path)
        expect(200, code, path)
        expect(True, "default-src 'none'" in headers["Content-Security-Policy"], f"the policy of {path}")
    expect(308, ask("/dashboard")[0], "/dashboard")
    expect(404, ask("/dashboard/none")[0], "a file that isn't there")
    _, headers, _ = ask("/dashboard/", {"Accept-Encoding": "gzip"})
    expect("gzip", headers["Content-Encoding"], "the encoding")
    expect(304, ask("/dashboard/", {"If-None-Match": headers["ETag"]})[0], "an unchanged file")


def gate():
    expect(200, ask("/api/v1/namespaces", BEARER)[0], "with the secret")
    code, headers, body = ask("/api/v1/namespaces")
    expect((401, "Unauthorized"), (code, json.loads(body)["reason"]), "without the secret")
    expect(401, ask("/api/v1/namespaces", {"Authorization": "Bearer " + "0" * 64})[0], "with another secret")
    expect(403, ask("/dashboard/", host="evil.example")[0], "files for another host")
    expect(403, ask("/api/v1/namespaces", BEARER, host=f"evil.example:{PORT}")[0], "another host")
    expect(200, ask("/api/v1/namespaces", BEARER, host=f"localhost:{PORT}")[0], "localhost")
    expect(403, ask("/api/v1/namespaces", {**BEARER, "Origin": "http://evil.example"})[0], "another origin")
    expect(200, ask("/api/v1/namespaces", {**BEARER, "Origin": f"http://{OWN}"})[0], "the own origin")
    expect(413, ask("/api/v1/namespaces", BEARER, "POST", b" " * (3 * 1024 * 1024 + 1))[0], "a large body")
    expect("kubernetes-admin", whoami(BEARER), "the user")
    expect("kubernetes-admin", whoami({**BEARER, "Impersonate-User": "ada"}), "the user despite impersonation")


def watch():
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=WITHIN_S)
    connection.request("GET", "/api/v1/namespaces/default/configmaps?watch=true&fieldSelector=metadata.name=seen", headers=BEARER)
    response = connection.getresponse()
    expect(200, response.status, "a watch")
    body = json.dumps({"metadata": {"name": "seen"}}).encode()
    expect(201, ask("/api/v1/namespaces/default/configmaps", BEARER, "POST", body)[0], "a creation")
    event = json.loads(response.readline())
    expect(("ADDED", "seen"), (event["type"], event["object"]["metadata"]["name"]), "the event while the watch is open")
    connection.close()


def terminal():
    encoded = base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("=")
    bearer = f"base64url.bearer.authorization.k8s.io.{encoded}"
    target = "/api/v1/namespaces/default/pods/hello/exec?command=sh&command=-c&command=cat&stdin=true&stdout=true&stderr=true"
    session = ProxiedSocket(target, f"v5.channel.k8s.io, {bearer}", f"http://{OWN}")
    expect(101, session.code, f"an exec: {session.head}")
    expect(True, "sec-websocket-protocol: v5.channel.k8s.io" in session.head.lower(), f"the subprotocol: {session.head}")
    session.send(b"\0through the proxy\n")
    # v5: the end of stdin.
    session.send(b"\xff\0")
    received = list(session.messages())
    expect(True, b"\1through the proxy\n" in received, f"the echo: {received}")
    expect(401, ProxiedSocket(target, "v5.channel.k8s.io").code, "an exec without the secret")
    expect(403, ProxiedSocket(target, f"v5.channel.k8s.io, {bearer}", "http://evil.example").code, "an exec of another origin")


if len(sys.argv) > 2:
    print(whoami(BEARER))
else:
    for part in [files, gate, watch, terminal]:
        part()
        print(f"· dashboard: {part.__name__}")

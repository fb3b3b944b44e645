"""An HTTP server between a browser and the API server, for tests of the dashboard.

It serves the dashboard's files with their security policy, and forwards the rest over TLS without credentials of its own. It can delay
answers and cut connections, and it answers lists and watches of one namespace itself, with thousands of pods.
"""
import base64, json, os, queue, re, socket, ssl, threading, time
from urllib.parse import parse_qs, urlsplit

CSP = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; font-src 'self'; base-uri 'none'; "
       "form-action 'none'; frame-ancestors 'none'")
MEDIA = {"html": "text/html; charset=utf-8", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
HEAD_BYTES_MAX = 64 * 1024
CROWD = "/api/v1/namespaces/crowd/pods"


class Crowd:
    """Pods that exist here alone: a list in chunks, and a watch that sends what the test puts into it."""

    def __init__(self, count):
        self.pods = {n: self.pod(n) for n in range(count)}
        self.lists, self.expired, self.watches = [], 0, []

    @staticmethod
    def pod(n):
        status = {"phase": "Running", "containerStatuses": [{"name": "a", "ready": True, "restartCount": 0, "state": {"running": {}}}]}
        meta = {"name": f"pod-{n:05}", "namespace": "crowd", "uid": f"crowd-{n}", "resourceVersion": "100", "creationTimestamp": "2026-01-01T00:00:00Z"}
        return {"metadata": meta, "spec": {"nodeName": "paper", "containers": [{"name": "a", "image": "a"}]}, "status": status}

    def chunk(self, limit, token):
        self.lists.append((limit, token))
        first = int(token or 0)
        numbers = sorted(self.pods)
        after = first + limit if first + limit < len(numbers) else None
        meta = {"resourceVersion": "100", **({"continue": str(after)} if after else {})}
        return {"kind": "PodList", "apiVersion": "v1", "metadata": meta, "items": [self.pods[n] for n in numbers[first:first + limit]]}

    def send(self, kind, thing):
        for watch in list(self.watches):
            watch.put(json.dumps({"type": kind, "object": thing}) + "\n")

    def delete(self, n):
        self.send("DELETED", {**self.pods.pop(n)})

    def expire(self):
        self.send("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"})


class Between:
    def __init__(self, folder, server, ca, crowd):
        self.folder, self.crowd = folder, crowd
        self.upstream = urlsplit(server)
        self.context = ssl.create_default_context(cafile=ca)
        self.delay, self.lost, self.paths, self.open = 0, False, [], set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def cut(self, lost):
        """With True, ends all connections and answers nothing until it is called with False."""
        self.lost = lost
        for each in list(self.open) if lost else ():
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def serve(self, client):
        self.open.add(client)
        try:
            with client:
                data = b""
                while b"\r\n\r\n" not in data and len(data) < HEAD_BYTES_MAX:
                    more = client.recv(HEAD_BYTES_MAX)
                    if not more:
                        return
                    data += more
                head, rest = data.split(b"\r\n\r\n", 1)
                self.route(client, head.decode("latin-1"), rest)
        except (OSError, ssl.SSLError):
            pass
        finally:
            self.open.discard(client)

    def route(self, client, head, rest):
        url = urlsplit(head.split(" ", 2)[1])
        if url.path.startswith("/dashboard"):
            return self.file(client, url.path.rsplit("/", 1)[1] or "index.html")
        self.paths.append(head.split(" ", 2)[1])
        if self.lost:
            return
        deadline = time.monotonic() + self.delay
        while self.delay and time.monotonic() < deadline:
            time.sleep(0.05)
        if url.path == CROWD:
            return self.pods(client, {key: value[0] for key, value in parse_qs(url.query).items()})
        self.forward(client, head, rest)

    def answer(self, client, media, body, extra=""):
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {media}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n{extra}\r\n"
        client.sendall(head.encode() + body)

    def file(self, client, name):
        with open(os.path.join(self.folder, os.path.basename(name)), "rb") as found:
            self.answer(client, MEDIA[name.rsplit(".", 1)[1]], found.read(), f"content-security-policy: {CSP}\r\n")

    def pods(self, client, query):
        if "watch" not in query:
            return self.answer(client, "application/json", json.dumps(self.crowd.chunk(int(query["limit"]), query.get("continue"))).encode())
        events = queue.Queue()
        self.crowd.watches.append(events)
        try:
            client.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n")
            while True:
                client.sendall(events.get(timeout=300).encode())
        except queue.Empty:
            pass
        finally:
            self.crowd.watches.remove(events)

    def forward(self, client, head, rest):
        host = f"{self.upstream.hostname}:{self.upstream.port}"
        head = re.sub(r"(?im)^host:[^\r\n]*", f"Host: {host}", head)
        head = re.sub(r"(?im)^origin:[^\r\n]*", f"Origin: {self.upstream.geturl()}", head)
        # A WebSocket's token, which this server passes on as `coracle dashboard` does.
        if token := re.search(r"(?im)^(sec-websocket-protocol:.*?)base64url\.bearer\.authorization\.k8s\.io\.([\w-]+),? *", head):
            bearer = base64.urlsafe_b64decode(token[2] + "=" * (-len(token[2]) % 4)).decode()
            head = head.replace(token[0], token[1]) + f"\r\nAuthorization: Bearer {bearer}"
        if not re.search(r"(?im)^upgrade:", head):
            head = re.sub(r"(?im)^connection:[^\r\n]*", "Connection: close", head)
        with self.context.wrap_socket(socket.create_connection((self.upstream.hostname, self.upstream.port)), server_hostname=self.upstream.hostname) as server:
            server.sendall(head.encode("latin-1") + b"\r\n\r\n" + rest)
            threading.Thread(target=self.pump, args=(client, server), daemon=True).start()
            self.pump(server, client)

    @staticmethod
    def pump(source, target):
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except (OSError, ssl.SSLError, ValueError):
            pass

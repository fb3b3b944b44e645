"""Concurrent clients of all API servers: random operations on a few ConfigMaps of one namespace, each recorded with its times and its outcome."""
import collections, http.client, json, random, threading, time

from model import ABSENT, ANY, AT_LEAST, CONFLICT, CONSISTENT, EXACT, EXISTS, OK, REFUSED, UNKNOWN, Operation, Version

CLIENTS = 8
KEYS = [f"k{n}" for n in range(5)]
# The load of one history is bounded by operations and by time.
CLIENT_OPERATIONS_MAX = 400
THINK_S_MAX = 0.012
# After a request that no server has received.
BACKOFF_S = 0.02
REQUEST_S_MAX = 2
# Of every second client: its requests end without a response while a process is suspended.
IMPATIENT_S_MAX = 0.4
CONNECT_S_MAX = 1
# A client has a server of its own and uses the others at times.
OTHER_SERVER = 0.3

WEIGHTS = {"get": 22, "list": 12, "create": 14, "update": 24, "patch": 6, "delete": 8}
READ_MODES = {CONSISTENT: 10, ANY: 4, AT_LEAST: 2, EXACT: 2}
PRECONDITIONS = [(False, False), (True, False), (False, True), (True, True)]


class Unexpected(Exception):
    """A response that no fault explains."""


class Connection:
    """A connection to one server that is kept, and opened again after a failure."""

    def __init__(self, address, tls):
        self.address, self.tls, self.open = address, tls, None

    def send(self, method, path, body=None, kind="application/json", timeout=REQUEST_S_MAX):
        """The status and the document, or None if no request was sent. Raises OSError or HTTPException if the result is unknown."""
        if self.open is None:
            fresh = http.client.HTTPSConnection(self.address, context=self.tls, timeout=min(timeout, CONNECT_S_MAX))
            try:
                fresh.connect()
            except OSError:
                fresh.close()
                return None
            self.open = fresh
        try:
            self.open.sock.settimeout(timeout)
            self.open.request(method, path, body and json.dumps(body), {"Content-Type": kind})
            response = self.open.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException):
            self.close()
            raise
        if response.will_close:
            self.close()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, {"message": text.decode(errors="replace")}

    def close(self):
        if self.open is not None:
            self.open.close()
            self.open = None


def version_of(document):
    metadata, data = document["metadata"], document["data"]
    return Version(int(metadata["resourceVersion"]), metadata["uid"], data["value"], data["born"])


def config_map(key, value, born, expected=None, by_rv=False, by_uid=False):
    metadata = {"name": key}
    if by_rv:
        metadata["resourceVersion"] = str(expected.rv)
    if by_uid:
        metadata["uid"] = expected.uid
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"value": value, "born": born}}


class Client:
    """One client. It has at most one request at a time; an operation with an unknown outcome stays open."""

    def __init__(self, name, cluster, namespace, counts):
        self.name, self.cluster, self.counts = name, cluster, counts
        self.maps = f"/api/v1/namespaces/{namespace}/configmaps"
        self.connections = [Connection(server.address, cluster.tls) for server in cluster.servers]
        self.operations, self.problems, self.written = [], [], 0

    def close(self):
        for connection in self.connections:
            connection.close()

    def value(self):
        self.written += 1
        return f"{self.name}-{self.written}"

    def do(self, op, timeout=REQUEST_S_MAX):
        """Sends the operation and records its outcome."""
        op.client = self.name
        method, path, body, kind = self.request(op)
        run = self.cluster.servers[op.server].runs
        op.call = time.monotonic_ns()
        try:
            answer = self.connections[op.server].send(method, path, body, kind, timeout)
        except (OSError, http.client.HTTPException):
            answer = (0, {})
        end = time.monotonic_ns()
        self.operations.append(op)
        if answer is None:
            op.outcome, op.end = REFUSED, end
        else:
            op.status, document = answer
            op.outcome = self.outcome(op, document)
            if op.outcome != UNKNOWN:
                op.end = end
        if self.cluster.servers[op.server].runs == run:
            op.run = run
        self.counts[op.kind, op.outcome, op.status] += 1
        return op

    def request(self, op):
        path, query = self.maps + (f"/{op.key}" if op.key and op.kind != "create" else ""), ""
        if op.kind in ("get", "list"):
            if op.mode != CONSISTENT:
                query = f"?resourceVersion={op.revision}"
            if op.kind == "list" and op.mode in (AT_LEAST, EXACT):
                query += "&resourceVersionMatch=" + ("Exact" if op.mode == EXACT else "NotOlderThan")
            return "GET", path + query, None, "application/json"
        if op.kind == "create":
            return "POST", path, config_map(op.key, op.value, op.value), "application/json"
        if op.kind == "update":
            return "PUT", path, config_map(op.key, op.value, op.expected.born, op.expected, op.by_rv, op.by_uid), "application/json"
        if op.kind == "patch":
            return "PATCH", path, {"data": {"value": op.value}}, "application/merge-patch+json"
        preconditions = {}
        if op.by_rv:
            preconditions["resourceVersion"] = str(op.expected.rv)
        if op.by_uid:
            preconditions["uid"] = op.expected.uid
        return "DELETE", path, {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions}, "application/json"

    def outcome(self, op, document):
        """The meaning of a response. It sets what the operation has seen."""
        status, reason = op.status, document.get("reason")
        if status in (0, 500, 503, 504):
            return UNKNOWN
        if status == 429:
            return REFUSED
        if status == 410 and op.mode == EXACT:
            return REFUSED
        if status in (200, 201):
            self.read(op, document)
            return OK
        named = document.get("details", {}).get("name") == op.key
        if status == 404 and named and op.kind in ("get", "update", "patch", "delete"):
            return ABSENT
        if status == 409 and op.kind == "create" and reason == "AlreadyExists":
            return EXISTS
        if status == 409 and op.kind in ("update", "delete") and (op.by_rv or op.by_uid) and reason == "Conflict":
            return CONFLICT
        if status == 409 and op.kind == "patch" and reason == "Conflict":
            return REFUSED  # the server's retries are exhausted
        self.problems.append(("unexpected response", f"{op}: {json.dumps(document)[:500]}", [op.key]))
        return UNKNOWN

    def read(self, op, document):
        if op.kind == "list":
            op.rv = int(document["metadata"]["resourceVersion"])
            op.seen = {item["metadata"]["name"]: version_of(item) for item in document["items"]}
        elif op.kind == "delete":
            op.seen = document["details"]["uid"] if document["kind"] == "Status" else document["metadata"]["uid"]
        else:
            op.seen = version_of(document)
            op.rv = op.seen.rv


class Worker(Client):
    """A client with a randomness of its own. It remembers the newest version of each key that it has seen."""

    def __init__(self, number, cluster, history, seed, counts):
        super().__init__(f"c{number}", cluster, history.namespace, counts)
        self.random = random.Random(f"{seed} client {number}")
        self.timeout = REQUEST_S_MAX if number % 2 else IMPATIENT_S_MAX
        self.home, self.revisions, self.versions = number % len(cluster.servers), [history.start], {}

    def run(self, ends):
        while not ends.is_set() and len(self.operations) < CLIENT_OPERATIONS_MAX:
            op = self.do(self.next(), self.timeout)
            self.learn(op)
            ends.wait(BACKOFF_S if op.outcome == REFUSED else self.random.uniform(0, THINK_S_MAX))
        self.close()

    def choose(self, weights):
        return self.random.choices(list(weights), list(weights.values()))[0]

    def next(self):
        kind, key = self.choose(WEIGHTS), self.random.choice(KEYS)
        server = self.random.randrange(len(self.cluster.servers)) if self.random.random() < OTHER_SERVER else self.home
        op = Operation(self.name, server, kind, 0, "" if kind == "list" else key)
        if kind in ("get", "list"):
            op.mode = self.choose(READ_MODES)
            if kind == "get" and op.mode == EXACT:
                op.mode = CONSISTENT
            if op.mode in (AT_LEAST, EXACT):
                op.revision = self.revisions[-1] if op.mode == AT_LEAST else self.random.choice(self.revisions[-20:])
            return op
        expected = self.versions.get(key)
        if kind == "update" and expected is None:
            op.kind = "create"
        elif kind == "update":
            op.expected, op.by_rv, op.by_uid = expected, True, self.random.random() < 0.3
        elif kind == "delete" and expected is not None:
            op.expected = expected
            op.by_rv, op.by_uid = self.random.choice(PRECONDITIONS)
        if op.kind != "delete":
            op.value = self.value()
        return op

    def learn(self, op):
        if op.outcome == OK and op.kind == "list" and op.mode != EXACT:
            self.versions = dict(op.seen)
            self.revisions.append(max(op.rv, self.revisions[-1]))
        elif op.outcome == OK and op.kind in ("create", "update", "patch", "get"):
            self.versions[op.key] = op.seen
            self.revisions.append(max(op.rv, self.revisions[-1]))
        elif op.outcome == ABSENT or op.kind == "delete":
            self.versions.pop(op.key, None)


class Clients:
    """The clients of one history, each in a thread."""

    def __init__(self, cluster, history, seed, counts):
        self.ends = threading.Event()
        self.workers = [Worker(number, cluster, history, seed, counts) for number in range(CLIENTS)]
        self.threads = [threading.Thread(target=worker.run, args=(self.ends,), daemon=True) for worker in self.workers]
        for thread in self.threads:
            thread.start()

    def stop(self):
        self.ends.set()
        for thread in self.threads:
            thread.join(REQUEST_S_MAX + CONNECT_S_MAX + 30)
            if thread.is_alive():
                raise Unexpected("a client didn't end")

    def results(self):
        operations = [op for worker in self.workers for op in worker.operations]
        return operations, [problem for worker in self.workers for problem in worker.problems]


def new_counts():
    return collections.Counter()

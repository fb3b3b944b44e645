"""Watches of one namespace through different servers. A watch whose connection breaks continues at the next server from its newest revision."""
import http.client, json, random, socket, threading, time

from clients import Client, Unexpected, version_of
from history import Watch
from model import OK, Event, Operation

# Without an event for this time a watch opens a new connection: a suspended server sends nothing, and closes nothing.
IDLE_S_MAX = 1.5
CONNECT_S_MAX = 1
BACKOFF_S = 0.02
POLL_S = 0.01
# One of the watches also leaves a healthy connection after this number of events.
RESTLESS_EVENTS = 25
# After the last write, all servers are healthy.
REACH_S_MAX = 30
INITIAL_END = "k8s.io/initial-events-end"


class Watcher:
    """One watch, in a thread."""

    def __init__(self, name, cluster, history, counts, home, since=None, restless=False, streams=False):
        self.client = Client(name, cluster, history.namespace, counts)
        self.cluster, self.server, self.restless = cluster, home, restless
        self.streams, self.refusals = streams, 0
        self.record = Watch(name)
        self.since, self.fresh = since, since is not None
        self.goal, self.connection, self.deadline = None, None, None
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def finish(self, goal):
        """Ends the watch when it has reached the revision."""
        self.record.goal, self.deadline = goal, time.monotonic() + REACH_S_MAX
        self.goal = goal

    def join(self):
        """Waits until the watch has reached its goal. A thread that waits for a further event is woken by the end of its connection."""
        while self.thread.is_alive() and not self.reached():
            self.thread.join(POLL_S)
        try:
            self.connection.sock.shutdown(socket.SHUT_RDWR)
        except (OSError, AttributeError):
            pass  # it has no connection any more
        self.thread.join(IDLE_S_MAX + CONNECT_S_MAX + REACH_S_MAX)
        if self.thread.is_alive():
            raise Unexpected("a watch didn't end")

    def reached(self):
        if self.goal is None:
            return False
        return (self.since or 0) >= self.goal or time.monotonic() > self.deadline

    def run(self):
        pause = threading.Event()
        while not self.reached():
            try:
                if self.since is None and not self.streams:
                    self.list()
                else:
                    self.watch()
            except (OSError, http.client.HTTPException, ValueError):
                pause.wait(BACKOFF_S)
            finally:
                self.close()
            self.server = (self.server + 1) % len(self.cluster.servers)
        self.client.close()

    def close(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def list(self):
        op = self.client.do(Operation("", self.server, "list", 0))
        if op.outcome == OK:
            self.listed_at(op.rv)
        else:
            raise ValueError("no list")

    def listed_at(self, rv):
        self.since, self.refusals = rv, 0
        self.record.connections.append((len(self.record.events), rv, self.server, True))

    def watch(self):
        address = self.cluster.servers[self.server].address
        self.connection = http.client.HTTPSConnection(address, context=self.cluster.tls, timeout=CONNECT_S_MAX)
        self.connection.connect()
        self.connection.sock.settimeout(IDLE_S_MAX)
        since = "&sendInitialEvents=true&resourceVersionMatch=NotOlderThan" if self.since is None else f"&resourceVersion={self.since}"
        called = time.monotonic_ns()
        self.connection.request("GET", f"{self.client.maps}?watch=true&allowWatchBookmarks=true{since}")
        response = self.connection.getresponse()
        if response.status == 410:
            self.expire()
        if response.status != 200:
            raise ValueError(response.status)
        if self.since is None:
            self.stream_list(response, called)
        else:
            self.record.connections.append((len(self.record.events), self.since, self.server, self.fresh))
        self.fresh, self.refusals, count = False, 0, 0
        while not self.reached() and not (self.restless and count >= RESTLESS_EVENTS):
            self.receive(*self.message(response))
            count += 1

    def message(self, response):
        """The type and the object of the next line, and when it was received."""
        line = response.readline()
        at = time.monotonic_ns()
        if not line.endswith(b"\n"):
            raise ValueError("the end of the watch")
        message = json.loads(line)
        kind, document = message["type"], message["object"]
        if kind == "ERROR":
            if document.get("code") == 410:
                self.expire()
            raise ValueError(document)
        return kind, document, at

    def stream_list(self, response, called):
        """The objects before the bookmark that ends the initial events are a list at its revision."""
        op = Operation(self.client.name, self.server, "list", called, outcome=OK, status=200, seen={})
        while True:
            kind, document, op.end = self.message(response)
            if kind == "BOOKMARK" and INITIAL_END in document["metadata"].get("annotations", {}):
                break
            op.seen[document["metadata"]["name"]] = version_of(document)
        op.rv = int(document["metadata"]["resourceVersion"])
        self.listed_at(op.rv)
        self.client.operations.append(op)
        self.client.counts["list", OK, 200] += 1

    def expire(self):
        """After 410 the next server may still have the history. If none has, the watch needs a new list."""
        self.record.expired.append((self.server, self.since))
        self.refusals += 1
        if self.fresh or self.refusals == len(self.cluster.servers):
            self.since = None

    def receive(self, kind, document, at):
        rv = int(document["metadata"]["resourceVersion"])
        if kind == "BOOKMARK":
            self.record.bookmarks.append((len(self.record.events), rv))
        else:
            version = version_of(document)
            self.record.events.append(Event(rv, kind, document["metadata"]["name"], version.uid, version.value, version.born))
            self.record.times.append(at)
        self.since = max(rv, self.since)


class Watchers:
    """The watches of one history: one for each server, one that changes servers often, and one that starts later."""

    def __init__(self, cluster, history, seed, counts):
        self.cluster, self.history, self.counts = cluster, history, counts
        self.random, self.finished_at = random.Random(f"{seed} watches"), 0
        servers = range(len(cluster.servers))
        self.watchers = [Watcher(f"w{n}", cluster, history, counts, n) for n in servers]
        self.watchers.append(Watcher("restless", cluster, history, counts, self.random.choice(servers), restless=True))

    def join_late(self):
        """A watch that begins in the middle of the history, with initial events in place of a list."""
        self.watchers.append(Watcher("late", self.cluster, self.history, self.counts, self.random.randrange(len(self.cluster.servers)), streams=True))

    def finish(self, goal):
        """Waits until all watches have reached the revision, and replays the history from its start at each server."""
        self.finished_at = time.monotonic_ns()
        for server in range(len(self.cluster.servers)):
            self.watchers.append(Watcher(f"replay{server}", self.cluster, self.history, self.counts, server, since=self.history.start))
        for watcher in self.watchers:
            watcher.finish(goal)
        for watcher in self.watchers:
            watcher.join()

    def results(self):
        # A list after the end of the history may have a write that no watch waits for.
        operations = [op for watcher in self.watchers for op in watcher.client.operations if op.call < self.finished_at]
        problems = [problem for watcher in self.watchers for problem in watcher.client.problems]
        return [watcher.record for watcher in self.watchers], operations, problems

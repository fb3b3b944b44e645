"""takeover.py SECONDS_FILE URL…: clients of HTTP and HTTPS addresses until the file is there; prints the requests, the failed ones, and the longest.

For each address: clients with a new connection for each request, and clients that keep theirs, busy and mostly idle ones. A kept connection that the server closes while it is
idle is replaced, and the request repeated once, as every HTTP client does.

A new connection over TLS (the API server) that ends before any byte of a response has missed the time for handshakes at a takeover (docs/upgrade.md):
the GET is repeated once, as client-go does, and counted. Other clients repeat nothing there. A new connection to a Service never ends so.
"""
import http.client, os, ssl, sys, threading, time
from urllib.parse import urlsplit

CLIENTS = 4
# Above the longest wait of a takeover, so that a slow answer is a figure and not a failure.
TIMEOUT_S = 30
PAUSE_S = 0.02
# Of clients that are idle while a server gives away its connections, and send again before it has ended.
IDLE_S = 0.8
CLOSED = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)
# Of a handshake, or of the wait for a status line: nothing of a response has come.
UNANSWERED = CLOSED + (ssl.SSLEOFError, ssl.SSLZeroReturnError)

stop = threading.Event()
lock = threading.Lock()
# Whether the head of a response has come.
begun = threading.local()
requests, repeated, failures, longest = 0, 0, [], {}


def ask(connection, path):
    connection.request("GET", path)
    response = connection.getresponse()
    begun.response = True
    body = response.read()
    if response.status != 200:
        raise AssertionError(f"{response.status} {response.headers.get('coracle-reason')} {body[:80]!r}")


def fresh(at, path):
    """Sends a request over a new connection, and returns it."""
    if at.scheme == "https":
        connection = http.client.HTTPSConnection(at.hostname, at.port, timeout=TIMEOUT_S, context=ssl._create_unverified_context())
    else:
        connection = http.client.HTTPConnection(at.hostname, at.port, timeout=TIMEOUT_S)
    ask(connection, path)
    return connection


def one(kept, at, path):
    """Sends a request; returns the connection to keep."""
    global repeated
    if kept is not None:
        try:
            ask(kept, path)
            return kept
        except CLOSED:
            kept.close()
    begun.response = False
    try:
        return fresh(at, path)
    except UNANSWERED:
        if at.scheme != "https" or begun.response:
            raise
        with lock:
            repeated += 1
        return fresh(at, path)


def client(url, keeps, pause_s):
    global requests
    at, kept, path = urlsplit(url), None, urlsplit(url).path or "/"
    if urlsplit(url).query:
        path += "?" + urlsplit(url).query
    while not stop.is_set():
        began = time.monotonic()
        try:
            kept = one(kept, at, path)
            if not keeps:
                kept.close()
                kept = None
            failed = None
        except Exception as error:
            kept, failed = None, f"{url} {'kept' if keeps else 'new'} {time.monotonic() - began:.2f} s: {error!r}"
        with lock:
            requests += 1
            longest[url] = max(longest.get(url, 0.0), time.monotonic() - began)
            if failed:
                failures.append(failed)
        time.sleep(pause_s)


kinds = [(False, PAUSE_S), (True, PAUSE_S), (True, IDLE_S)]
threads = [threading.Thread(target=client, args=(url, *kind)) for url in sys.argv[2:] for kind in kinds for _ in range(CLIENTS)]
for thread in threads:
    thread.start()
while not os.path.exists(sys.argv[1]):
    time.sleep(0.1)
stop.set()
for thread in threads:
    thread.join()
print(f"{requests} requests, {len(failures)} failed, the longest took {max(longest.values(), default=0.0):.2f} s")
for url, seconds in longest.items():
    print(f"{url}: the longest took {seconds:.2f} s")
if repeated:
    print(f"{repeated} requests over new connections to the API server were repeated")
for failure in failures[:20]:
    print(failure)
sys.exit(1 if failures or requests == 0 else 0)

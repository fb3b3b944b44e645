"""takeover.py SECONDS_FILE URL…: clients of HTTP and HTTPS addresses until the file is there; prints the requests, the failed ones, and the longest.

For each address: clients with a new connection for each request, and clients that keep theirs. A kept connection that the server closes while it is
idle is replaced, and the request repeated once, as every HTTP client does. Nothing else is repeated.
"""
import http.client, os, ssl, sys, threading, time
from urllib.parse import urlsplit

CLIENTS = 4
# Above the longest wait of a takeover, so that a slow answer is a figure and not a failure.
TIMEOUT_S = 30
PAUSE_S = 0.02
CLOSED = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)

stop = threading.Event()
lock = threading.Lock()
requests, failures, longest = 0, [], {}


def ask(connection, path):
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    if response.status != 200:
        raise AssertionError(f"{response.status} {response.headers.get('coracle-reason')} {body[:80]!r}")


def one(kept, at, path):
    """Sends a request; returns the connection to keep."""
    if kept is not None:
        try:
            ask(kept, path)
            return kept
        except CLOSED:
            kept.close()
    if at.scheme == "https":
        fresh = http.client.HTTPSConnection(at.hostname, at.port, timeout=TIMEOUT_S, context=ssl._create_unverified_context())
    else:
        fresh = http.client.HTTPConnection(at.hostname, at.port, timeout=TIMEOUT_S)
    ask(fresh, path)
    return fresh


def client(url, keeps):
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
        time.sleep(PAUSE_S)


threads = [threading.Thread(target=client, args=(url, keeps)) for url in sys.argv[2:] for keeps in [False, True] for _ in range(CLIENTS)]
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
for failure in failures[:20]:
    print(failure)
sys.exit(1 if failures or requests == 0 else 0)

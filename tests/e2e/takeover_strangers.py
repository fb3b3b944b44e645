"""takeover_strangers.py API WEB: connections that outlast a takeover, each a HOST:PORT. Prints `open` when all are open, then waits for
the end of those that end by themselves, and fails if one of them was cut or answered wrongly.

At the API and at a Service: connections without a byte, half a ClientHello, half a request head, and one that is idle after its
response. At the Service: a response of LINES lines and an upload of LINES pieces, each PAUSE_S apart.
"""
import socket, sys, threading, time

LINES, PAUSE_S = 60, 0.1
HALF_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
EACH = 5
# Above everything that a busy machine adds.
TIMEOUT_S = 60


def connect(at, first=b""):
    host, port = at.rsplit(":", 1)
    stream = socket.create_connection((host, int(port)), timeout=TIMEOUT_S)
    stream.sendall(first)
    return stream


def rest(stream):
    read = b""
    while piece := stream.recv(65536):
        read += piece
    return read


def listen(stream, failures):
    try:
        read = rest(stream)
        missing = [line for line in range(1, LINES + 1) if b"line %d\n" % line not in read]
        if missing or not read.endswith(b"0\r\n\r\n"):
            failures.append(f"a response was cut: {len(missing)} of {LINES} lines are missing")
    except OSError as error:
        failures.append(f"a response was cut: {error!r}")


def upload(stream, failures):
    try:
        for _ in range(LINES):
            stream.sendall(b"x")
            time.sleep(PAUSE_S)  # the pace of a slow client, not a wait for something
        read = rest(stream)
        if b" 200 " not in read.split(b"\r\n")[0] or read.count(b"x") < LINES:
            failures.append(f"an upload was answered by {read[:80]!r}")
    except OSError as error:
        failures.append(f"an upload was cut: {error!r}")


api, web = sys.argv[1:]
idle = [connect(at, first) for at, first in
        [(api, b""), (api, HALF_HELLO), (web, b""), (web, b"GET / HTTP/1.1\r\nHost: a\r\n")] for _ in range(EACH)]
for _ in range(EACH):
    kept = connect(web, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    kept.recv(65536)
    idle.append(kept)
head = f"Host: a\r\nConnection: close\r\n"
streams = [connect(web, f"GET /stream?n={LINES}&ms={int(PAUSE_S * 1000)} HTTP/1.1\r\n{head}\r\n".encode()) for _ in range(EACH)]
# The response has begun before the takeover.
begun = [stream.recv(1, socket.MSG_PEEK) for stream in streams]
uploads = [connect(web, f"POST /echo HTTP/1.1\r\n{head}Content-Length: {LINES}\r\n\r\n".encode()) for _ in range(EACH)]
failures = []
threads = [threading.Thread(target=listen, args=(stream, failures)) for stream in streams]
threads += [threading.Thread(target=upload, args=(stream, failures)) for stream in uploads]
for thread in threads:
    thread.start()
print("open", flush=True)
for thread in threads:
    thread.join()
for failure in failures:
    print(failure, file=sys.stderr)
sys.exit(1 if failures else 0)

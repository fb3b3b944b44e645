"""otlp.py PORT-FILE RECORDS-FILE: a receiver of OTLP over HTTP, on a free port of the loopback, which it writes to PORT-FILE. Spans and
log records are written to RECORDS-FILE as lines of JSON. A file RECORDS-FILE.hang makes it answer nothing until the file is gone.

Reads the wire format of protobuf by the field numbers of opentelemetry-proto, so that no package is needed.
"""
import http.server, json, os, struct, sys, threading, time

POLL_S = 0.05


def fields(data):
    """The fields of a message: pairs of number and value (bytes, or a number)."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        number, wire = key >> 3, key & 7
        if wire == 0:
            value = varint()
        elif wire == 1:
            value, at = struct.unpack_from("<Q", data, at)[0], at + 8
        elif wire == 2:
            length = varint()
            value, at = data[at:at + length], at + length
        elif wire == 5:
            value, at = struct.unpack_from("<I", data, at)[0], at + 4
        else:
            raise ValueError(f"wire type {wire}")
        yield number, value


def every(data, number):
    return [value for known, value in fields(data) if known == number]


def one(data, number, default=b""):
    return next(iter(every(data, number)), default)


def value(data):
    for number, content in fields(data):
        if number == 1:
            return content.decode()
        if number == 2:
            return bool(content)
        if number == 3:
            return content - (1 << 64) if content >> 63 else content
        if number == 4:
            return struct.unpack("<d", struct.pack("<Q", content))[0]
    return None


def attributes(data, number):
    return {one(pair, 1).decode(): value(one(pair, 2)) for pair in every(data, number)}


def records(kind, body):
    for group in every(body, 1):
        resource = attributes(one(group, 1), 1)
        for scope in every(group, 2):
            for record in every(scope, 2):
                yield {"kind": kind, "service": resource.get("service.name"), "resource": resource, **READERS[kind](record)}


def span(data):
    status = one(data, 15)
    return {
        "trace": one(data, 1).hex(), "span": one(data, 2).hex(), "state": one(data, 3).decode(), "parent": one(data, 4).hex(),
        "name": one(data, 5).decode(), "spanKind": one(data, 6, 0), "start": one(data, 7, 0), "end": one(data, 8, 0),
        "attributes": attributes(data, 9), "links": [one(link, 1).hex() for link in every(data, 13)],
        "failed": one(status, 3, 0) == 2, "why": one(status, 2).decode(),
    }


def log(data):
    return {
        "severity": one(data, 3).decode(), "text": value(one(data, 5)), "attributes": attributes(data, 6),
        "trace": one(data, 9).hex(), "span": one(data, 10).hex(),
    }


READERS = {"span": span, "log": log}
KINDS = {"/v1/traces": "span", "/v1/logs": "log"}


def main():
    port_file, out = sys.argv[1:]
    lock = threading.Lock()

    class Receiver(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            while os.path.exists(f"{out}.hang"):
                time.sleep(POLL_S)
            kind = KINDS.get(self.path)
            good = kind and self.headers["content-type"] == "application/x-protobuf"
            if good:
                with lock, open(out, "a") as file:
                    for record in records(kind, body):
                        record["token"] = self.headers["x-token"]
                        file.write(json.dumps(record) + "\n")
            self.send_response(200 if good else 404)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    open(out, "a").close()
    with open(f"{port_file}.new", "w") as file:
        file.write(str(server.server_address[1]))
    os.rename(f"{port_file}.new", port_file)
    server.serve_forever()


if __name__ == "__main__":
    main()

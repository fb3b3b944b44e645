"""The HTTP servers that tests of WASI's suite call: the endpoints of a test's file, and addresses where nothing listens."""
import http.server, socket, threading

# The prefixes of the suite's specification for a request's headers and trailers in a response's headers.
ECHOED_HEADER, ECHOED_TRAILER = "x-echo-", "x-trailer-"


def own_address():
    """An address of this machine that is none of its loopback, which guests don't reach; None without one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            address = probe.getsockname()[0]
        except OSError:
            return None
    return None if address.startswith("127.") else address


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address, endpoints):
        super().__init__((address, 0), Handler)
        self.routes = {(one.get("method", "GET").upper(), one.get("path", "/")): one for one in endpoints}
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_one(self):
        body, trailers = self.read_body()
        endpoint = self.server.routes.get((self.command, self.path))
        if endpoint is None:
            self.reply(404, [], b"")
        elif endpoint.get("mode") == "echo-body":
            self.reply(200, [], body)
        elif endpoint.get("mode") == "echo-headers":
            headers = [("x-request-method", self.command), ("x-request-path", self.path)]
            headers += [(ECHOED_HEADER + name.lower(), value) for name, value in self.headers.items()]
            headers += [(ECHOED_TRAILER + name, value) for name, value in trailers]
            self.reply(200, headers, b"")
        else:
            response = endpoint.get("response", "")
            response = {"body": response} if isinstance(response, str) else response
            self.reply(response.get("status", 200), list(response.get("headers", {}).items()), response.get("body", "").encode(), response.get("chunks"), response.get("trailers", {}))

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = handle_one

    def read_body(self):
        if "chunked" not in (self.headers.get("Transfer-Encoding") or "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length") or 0)), []
        body, trailers = b"", []
        while line := self.rfile.readline():
            size = int(line.split(b";")[0], 16)
            if size == 0:
                break
            body += self.rfile.read(size)
            self.rfile.readline()
        while (line := self.rfile.readline()).strip():
            name, _, value = line.decode().partition(":")
            trailers.append((name.strip().lower(), value.strip()))
        return body, trailers

    def reply(self, status, headers, body, chunks=None, trailers=None):
        self.close_connection = True
        self.send_response(status)
        framing = [("Content-Length", str(len(body)))] if chunks is None else [("Transfer-Encoding", "chunked")]
        for name, value in [*headers, *framing, ("Connection", "close")]:
            self.send_header(name, value)
        if trailers:
            self.send_header("Trailer", ", ".join(trailers))
        self.end_headers()
        if self.command == "HEAD":
            return
        if chunks is None:
            self.wfile.write(body)
            return
        for chunk in chunks:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk.encode()), chunk.encode()))
        self.wfile.write(b"0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in (trailers or {}).items()).encode() + b"\r\n")

    def log_message(self, *_):
        pass


def start(address, servers):
    """Starts a test's servers; returns the variables that name them to the guest."""
    variables = {}
    for one in servers:
        name = f"HTTP_SERVER_{one['name'].upper()}"
        if one.get("kind") == "closed":
            with socket.socket() as closed:
                closed.bind((address, 0))
                variables[name] = f"{address}:{closed.getsockname()[1]}"
        else:
            server = Server(address, one.get("endpoints", []))
            variables[name] = f"{address}:{server.server_port}"
    return variables

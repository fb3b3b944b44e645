"""conversion.py FOLDER: answers ConversionReviews over TLS (FOLDER/hook.crt, hook.key) on a port of the system's choice, which
FOLDER/port names; FOLDER/asked counts its requests. How well it answers says the path: /good between `spec.size` (v1) and
`spec.sizes` (others), the others as hostile as their names."""
import copy, http.server, json, os, ssl, sys, threading, time

FOLDER = sys.argv[1]
LOCK = threading.Lock()


def converted(old, version):
    new = copy.deepcopy(old)
    new["apiVersion"] = version
    spec = new.get("spec") or {}
    if not version.endswith("/v1") and "size" in spec:
        spec["sizes"] = [spec.pop("size")]
    if version.endswith("/v1") and "sizes" in spec:
        spec["size"] = spec.pop("sizes")[0]
    return new


# The fault of each hostile hook.
def wrong_uid(response): response["uid"] = "another"
def fewer(response): response["convertedObjects"] = response["convertedObjects"][1:]
def more(response): response["convertedObjects"] *= 2
def rename(response): response["convertedObjects"][0]["metadata"]["name"] = "other"
def namespace(response): response["convertedObjects"][0]["metadata"]["namespace"] = "kube-system"
def object_uid(response): response["convertedObjects"][0]["metadata"]["uid"] = "11111111-1111-1111-1111-111111111111"
def kind(response): response["convertedObjects"][0]["kind"] = "Other"
def version(response): response["convertedObjects"][0]["apiVersion"] = "example.com/v9"
def bare(response): response["convertedObjects"][0].pop("metadata")
def bad_label(response): response["convertedObjects"][0]["metadata"]["labels"] = {"a b": "c"}
def number_label(response): response["convertedObjects"][0]["metadata"]["labels"] = {"a": 1}
def list_label(response): response["convertedObjects"][0]["metadata"]["labels"] = ["a"]
def failure(response): response["result"] = {"status": "Failure", "message": "not today"}
def silent(response): response["result"] = {"status": "Failure"}
def nothing(response): response.clear()
def numbers(response): response["convertedObjects"] = [1]
def huge(response): response["padding"] = "A" * (64 << 20)
def label(response): response["convertedObjects"][0]["metadata"] |= {"labels": {"by": "hook"}, "finalizers": ["example.com/hook"], "generation": 99}


SPOILED = {f"/{f.__name__}": f for f in (wrong_uid, fewer, more, rename, namespace, object_uid, kind, version, bare, bad_label,
                                        number_label, list_label, failure, silent, nothing, numbers, huge, label)}


class Hook(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, code, body, **headers):
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = self.path.split("?")[0]
        with LOCK, open(f"{FOLDER}/asked", "a") as file:
            file.write(f"{path} {len(review['request']['objects'])} {self.path} {self.headers['User-Agent']}\n")
        if path == "/slow":
            time.sleep(600)
        if path == "/endless":
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(b" " * (1 << 16))
        if path == "/redirect":
            return self.answer(307, b"", Location="https://127.0.0.1:1/")
        if path == "/html":
            return self.answer(200, b"<html>")
        if path == "/fails":
            return self.answer(500, b"on fire")
        if path == "/deep":
            return self.answer(200, b"[" * 100000)
        if path == "/no_review":
            return self.answer(200, b'{"kind": "Pod", "apiVersion": "v1"}')
        request = review["request"]
        objects = [converted(one, request["desiredAPIVersion"]) for one in request["objects"]]
        response = {"uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": objects}
        SPOILED.get(path, lambda _: None)(response)
        answer = {"apiVersion": review["apiVersion"], "kind": "ConversionReview", "response": response}
        if path == "/nothing":
            answer.pop("response")
        self.answer(200, json.dumps(answer).encode())


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass


server = Server(("127.0.0.1", 0), Hook)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f"{FOLDER}/hook.crt", f"{FOLDER}/hook.key")
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
with open(f"{FOLDER}/port.new", "w") as file:
    file.write(str(server.server_port))
os.rename(f"{FOLDER}/port.new", f"{FOLDER}/port")
server.serve_forever()

"""registry.py MODULE CERTIFICATE KEY LOG [KEYS]: a registry of others on two ports of 127.0.0.1, TLS and plain, that it prints. What a repository
is called says how it behaves: its first part is the layout, `private` and `token` ask for user `robot`, `evil-…` are hostile.
Each request is a line of LOG: scheme, path, and which account it showed.
What `signed` is in the name of has a signature as cosign writes them, by openssl with KEYS/good.pem (`-wrong`: KEYS/wrong.pem)."""
import base64
import gzip
import hashlib
import http.server
import io
import json
import os
import ssl
import subprocess
import sys
import tarfile
import threading
import zlib
from urllib.parse import parse_qs, urlparse

PASSWORD = "hush-hush-hush"
BASIC = "Basic " + base64.b64encode(f"robot:{PASSWORD}".encode()).decode()
TOKEN = "token-of-a-minute"
BLOBS = {}
DRIP_BYTES = 1000000
BOMB_MIB = 600  # of zeros, packed into some 600 KiB
# Faults that occur once or twice, and then end.
FAULTS = ("fault-busy", "fault-broken", "fault-reset", "fault-cut")
HAPPENED = {}


def blob(data, kind, **more):
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    BLOBS[digest] = data
    return {"mediaType": kind, "digest": digest, "size": len(data), **more}


def bomb():
    """A layer whose one file is zeros: the same mebibyte of deflate repeated. Its checksum is never verified."""
    entry = tarfile.TarInfo("zeros")
    entry.size = BOMB_MIB << 20
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = deflate.compress(entry.tobuf()) + deflate.flush(zlib.Z_FULL_FLUSH)
    once = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    data = b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + head + once * BOMB_MIB + deflate.flush() + bytes(8)
    return blob(data, "application/vnd.oci.image.layer.v1.tar+gzip")


def document(value, kind, **more):
    return blob(json.dumps(value).encode(), kind, **more)


def manifest(config, layers, **more):
    return {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers, **more}


MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGE = "application/vnd.oci.image.config.v1+json"


def tar(files):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


def zstd(data):
    """One frame of raw blocks (RFC 8878)."""
    blocks = [data[at:at + 65536] for at in range(0, len(data), 65536)]
    heads = [(len(block) << 3 | (n == len(blocks) - 1)).to_bytes(3, "little") for n, block in enumerate(blocks)]
    return b"\x28\xb5\x2f\xfd\xa0" + len(data).to_bytes(4, "little") + b"".join(head + block for head, block in zip(heads, blocks))


SIGNED = ["signed", "private-signed", "signed-wrong", "signed-other", "signed-endless", "signed-huge", "signed-many", "signed-broken", "signed-metadata", "signed-mirrored", "signed-referrer", "signed-bundle", "unsigned"]
SIGNATURE = "application/vnd.dev.cosign.simplesigning.v1+json"


def signatures(name, repository):
    """The manifest of the tag `sha256-DIGEST.sig`."""
    digest = "sha256:" + hashlib.sha256(LAYOUTS["cncf" if name == "signed-other" else name]).hexdigest()
    payload = {"critical": {"identity": {"docker-reference": repository}, "image": {"docker-manifest-digest": digest},
                            "type": "cosign container image signature"}, "optional": None}
    if name == "signed-endless":
        layer = {"mediaType": SIGNATURE, "digest": "sha256:" + "0" * 64, "size": 200, "annotations": {"dev.cosignproject.cosign/signature": "AAAA"}}
        return json.dumps(manifest(document({}, IMAGE), [layer])).encode()
    data = json.dumps(payload).encode()
    key = f"{sys.argv[5]}/{'wrong' if name == 'signed-wrong' else 'good'}.pem"
    made = subprocess.run(["openssl", "dgst", "-sha256", "-sign", key], input=data, stdout=subprocess.PIPE, check=True).stdout
    good = blob(data, SIGNATURE, annotations={"dev.cosignproject.cosign/signature": base64.b64encode(made).decode()})
    bad = {**good, "annotations": {"dev.cosignproject.cosign/signature": base64.b64encode(b"no").decode()}}
    layers = {"signed": [bad, good], "signed-many": [bad] * 1000 + [good], "signed-broken": [{**good, "digest": "x", "annotations": 1}]}.get(name, [good])
    return json.dumps(manifest(document({}, IMAGE), layers)).encode()


def layouts(module, other=b""):
    wasm = blob(module, "application/wasm")
    cncf = manifest(document({"os": "wasip2", "architecture": "wasm"}, "application/vnd.wasm.config.v0+json"), [wasm])
    files = tar({"app.wasm": module})
    layer = blob(gzip.compress(files), "application/vnd.oci.image.layer.v1.tar+gzip")
    run = {"os": "wasip1", "architecture": "wasm", "config": {"Entrypoint": ["/app.wasm"]}}
    scratch = manifest(document(run, IMAGE), [layer])
    packed = manifest(document(run, IMAGE), [blob(zstd(files), "application/vnd.oci.image.layer.v1.tar+zstd")])
    compat = manifest(document({**run, "os": "linux", "architecture": "amd64"}, IMAGE), [layer], annotations={"module.wasm.image/variant": "compat-smart"})
    linux = manifest(document({"os": "linux", "architecture": "amd64", "config": {"Entrypoint": ["/bin/sh"]}}, IMAGE), [layer])
    children = [
        document(linux, MANIFEST, platform={"os": "linux", "architecture": "amd64"}),
        document(scratch, MANIFEST, platform={"os": "wasi", "architecture": "wasm"}),
    ]
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": children}
    bottom = tar({"texts/one": b"a b c", "texts/two": b"d e", "old": b"x y z"})
    top = tar({"texts/two": b"d e f g", ".wh.old": b""})
    bottom, top = (blob(data, f"application/vnd.oci.image.layer.v1.tar+{how}") for data, how in ((gzip.compress(bottom), "gzip"), (zstd(top), "zstd")))
    data = manifest(document({"os": "linux", "architecture": "s390x"}, IMAGE), [bottom, top])
    title = {"org.opencontainers.image.title": "model/weights.txt"}
    artifact = manifest(document({}, "application/vnd.oci.empty.v1+json"), [blob(b"one two three", "text/plain", annotations=title)])
    drip = manifest(document({"slow": True}, "application/vnd.wasm.config.v0+json"), [blob(b" " * DRIP_BYTES, "application/wasm")])
    escape = manifest(document({}, IMAGE), [blob(tar({"../../escaped": b"x"}), "application/vnd.oci.image.layer.v1.tar")])
    kind = "application/vnd.fermyon.spin.application.v1+config"
    locked = {"spin_lock_version": 1, "triggers": [{"id": "t", "trigger_type": "http"}], "components": [{"id": "web", "source": {"digest": wasm["digest"]}}]}
    spin = manifest(document(locked, kind), [{**wasm, "mediaType": "application/vnd.wasm.content.layer.v1+wasm"}])
    text = blob(b"a b c", "application/vnd.wasm.content.layer.v1+data")
    files = [{"content_type": "text/plain", "digest": text["digest"], "path": "texts/one"}, {"inline": base64.b64encode(b"d e f g").decode(), "path": "/texts/two"}]
    archive = blob(gzip.compress(tar({"texts/one": b"a b c", "texts/two": b"d e f g"})), "application/vnd.wasm.content.bundle.v1.tar+gzip")
    component = blob(module, "application/vnd.wasm.content.layer.v1+wasm")
    with_files = document({**locked, "components": [{**locked["components"][0], "files": files}]}, kind)
    spin_files, spin_archive = (manifest(document({"architecture": "wasm", "os": "Wasip1"}, IMAGE), [component, layer, with_files]) for layer in (text, archive))
    wash = manifest(document({}, "application/vnd.wasmcloud.actor.archive.config"), [{**wasm, "mediaType": "application/vnd.module.wasm.content.layer.v1+wasm"}])
    gzipped = lambda files: blob(gzip.compress(files), "application/vnd.oci.image.layer.v1.tar+gzip")
    many = manifest(document(run, IMAGE), [gzipped(tar({"app.wasm": module, "bin/count.wasm": other}))])
    faults = {name: manifest(document(run, IMAGE), [gzipped(tar({"app.wasm": module, "name": name.encode()}))]) for name in FAULTS}
    named = {"cncf": cncf, "many": many, "evil-bomb": manifest(document(run, IMAGE), [bomb()]), **faults, "scratch": scratch, "compat": compat, "linux": linux, "index": index, "spin": spin, "spin-files": spin_files, "spin-archive": spin_archive, "files": manifest(document(run, IMAGE), [layer, bottom, top]), "wash": wash, "zstd": packed,
             **{name: manifest(cncf["config"], [wasm], annotations={"variant": name}) for name in SIGNED},
             "signed-index": {**index, "annotations": {"variant": "signed"}}, "signed-data": {**data, "annotations": {"variant": "signed"}},
             "data": data, "private-data": data, "artifact": artifact, "evil-escape": escape, "evil-drip": drip}
    return {name: json.dumps(value).encode() for name, value in named.items()}


def foreign(name):
    """A manifest of blobs that no node has."""
    parts = json.loads(LAYOUTS["cncf"])
    return json.dumps(manifest(document({"name": name}, parts["config"]["mediaType"]), parts["layers"])).encode()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, data=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def endless(self, data):
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        while True:
            self.wfile.write(data)

    def drip(self):
        """A byte a second, as long as the client reads."""
        self.send_response(200)
        self.send_header("Content-Length", str(DRIP_BYTES))
        self.end_headers()
        while not threading.Event().wait(1):
            self.wfile.write(b" ")

    def fault(self, name, what, reference):
        """Whether this request has a fault."""
        with LOCK:
            HAPPENED[name, reference] = times = HAPPENED.get((name, reference), 0) + 1
        if name == "fault-cut" and what == "blobs" and times == 1:
            data = BLOBS[reference]
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:len(data) // 2])
            self.close_connection = True
        elif name == "fault-cut" or what != "manifests" or times > 2:
            return False
        elif name == "fault-reset":
            self.close_connection = True
        else:
            self.answer(429 if name == "fault-busy" else 500, Retry_After="1")
        return True

    def do_GET(self):
        url = urlparse(self.path)
        who = self.headers.get("Authorization")
        scheme = "https" if isinstance(self.connection, ssl.SSLSocket) else "http"
        with LOCK:
            LOG.write(f"{scheme} {self.path} {who or '-'}\n")
            LOG.flush()
        own = f"{scheme}://{self.headers['Host']}"
        if url.path == "/token":
            return self.answer(200, json.dumps({"token": TOKEN}).encode()) if who == BASIC else self.answer(401)
        if url.path == "/v2/":
            return self.answer(200)
        parts = url.path.removeprefix("/v2/").split("/")
        name, what, reference = parts[0], parts[-2], parts[-1]
        if name.startswith("private") and who != BASIC:
            return self.answer(401, WWW_Authenticate='Basic realm="here"')
        if name == "token" and who != f"Bearer {TOKEN}":
            return self.answer(401, WWW_Authenticate=f'Bearer realm="{own}/token",service="s",scope="repository:token/hello:pull"')
        if name == "evil-realm":
            return self.answer(401, WWW_Authenticate='Bearer realm="http://169.254.169.254/latest/meta-data",service="s"')
        if name == "evil-echo":
            said = json.dumps({"errors": [{"code": "DENIED", "message": f"{who} {PASSWORD}"}]}).encode()
            return self.answer(403, said) if who else self.answer(401, WWW_Authenticate='Basic realm="here"')
        if name in FAULTS and self.fault(name, what, reference):
            return None
        if what == "referrers":
            if name == "signed-bundle":
                bundle = {"digest": "sha256:" + "0" * 64, "size": 2, "mediaType": MANIFEST, "artifactType": "application/vnd.dev.sigstore.bundle.v0.3+json"}
                return self.answer(200, json.dumps({"schemaVersion": 2, "manifests": [bundle]}).encode())
            if name != "signed-referrer":
                return self.answer(404)
            made = document(json.loads(signatures(name, f"{self.headers['Host']}/{'/'.join(parts[:-2])}")), MANIFEST, artifactType="application/vnd.dev.cosign.artifact.sig.v1+json")
            return self.answer(200, json.dumps({"schemaVersion": 2, "manifests": [{**made, "artifactType": "x/y"}, made]}).encode())
        if what == "manifests":
            if name == "evil-drip-manifest":
                return self.drip()
            if name == "evil-silent":
                return threading.Event().wait(600)
            if name == "evil-manifest":
                return self.endless(b" " * 65536)
            if reference.endswith(".sig"):
                if "signed" not in name or name in ("unsigned", "signed-referrer", "signed-bundle") or (name, scheme) == ("signed-mirrored", "http") or reference != f"sha256-{hashlib.sha256(LAYOUTS[name]).hexdigest()}.sig":
                    return self.answer(404)
                # A mirror has the registry's content.
                host = parse_qs(url.query).get("ns", [self.headers["Host"]])[0]
                if name == "signed-huge":
                    return self.endless(b" " * 65536)
                return self.answer(200, signatures(name, f"{host}/{'/'.join(parts[:-2])}"), Content_Type=MANIFEST)
            data = BLOBS.get(reference) or LAYOUTS.get(name) or foreign(f"{scheme} {name}")
            return self.answer(200, data, Content_Type=json.loads(data).get("mediaType", MANIFEST))
        if name == "private-elsewhere" and scheme == "http":
            return self.answer(307, Location=f"https://localhost:{PORTS[0]}/v2/elsewhere/hello/blobs/{reference}")
        if name == "signed-metadata" and BLOBS.get(reference, b"").startswith(b'{"critical"'):
            return self.answer(307, Location="https://169.254.169.254/latest/meta-data")
        if name == "evil-redirect":
            return self.answer(307, Location="http://127.0.0.1:1/secret")
        if name == "evil-metadata":
            return self.answer(307, Location="http://169.254.169.254/latest/meta-data")
        if name == "evil-drip" and len(BLOBS.get(reference, b"")) == DRIP_BYTES:
            return self.drip()
        if name == "evil-digest":
            return self.answer(200, BLOBS[reference][::-1])
        if name == "evil-blob" or name == "signed-endless" and reference == "sha256:" + "0" * 64:
            return self.endless(b"\0" * 65536)
        return self.answer(200, BLOBS[reference]) if reference in BLOBS else self.answer(404)


def serve(context=None):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None
    if context:
        # The handshake runs on the connection's own thread.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever).start()
    return server.server_address[1]


if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:
        hello = file.read()
    with open(os.path.join(os.path.dirname(sys.argv[1]), "wordcount.wasm"), "rb") as file:
        LAYOUTS = layouts(hello, file.read())
    LOCK, LOG = threading.Lock(), open(sys.argv[4], "a")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(sys.argv[2], sys.argv[3])
    PORTS = serve(tls), serve()
    print(*PORTS, flush=True)

#!/usr/bin/env python3
"""images.py REGISTRY PASSWORD-FILE FOLDER: puts the Wasm ports of upstream's test images (sample-workloads/conformance*, built into FOLDER)
into a cluster's own registry, under upstream's names and with upstream's entrypoints; prints what KUBE_TEST_REPO_LIST is to say."""
import base64
import hashlib
import io
import json
import sys
import tarfile
import urllib.request

REGISTRY, PASSWORD, FOLDER = sys.argv[1:]
LOGIN = "Basic " + base64.b64encode(f"coracle:{open(PASSWORD).read().strip()}".encode()).decode()
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
# Repository, tags, module, entrypoint, arguments: as in upstream's test/utils/image/manifest.go and Dockerfiles,
# except the extension of agnhost: the entrypoint of an image with layers is a .wasm file.
IMAGES = [
    ("e2e-test-images/agnhost", ["2.55", "2.63.0"], "conformance-agnhost", ["/agnhost.wasm"], ["pause"]),
    ("e2e-test-images/busybox", ["1.37.0-1"], "conformance", [], ["sh"]),
    ("e2e-test-images/nginx", ["1.15-4", "1.27-0"], "conformance-web", [], ["nginx"]),
    ("e2e-test-images/nautilus", ["1.8"], "conformance", ["/nautilus"], []),
    ("e2e-test-images/glibc-dns-testing", ["2.0.0"], "conformance", [], ["/pause"]),
    ("pause", ["3.10.2"], "conformance", ["/pause"], []),
]


def put(method, path, data, kind="application/octet-stream"):
    request = urllib.request.Request(f"http://{REGISTRY}/v2/{path}", data, {"Authorization": LOGIN, "Content-Type": kind}, method=method)
    with urllib.request.urlopen(request, timeout=60):
        pass


def blob(repository, kind, data):
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    put("POST", f"{repository}/blobs/uploads/?digest={digest}", data)
    return {"mediaType": kind, "digest": digest, "size": len(data)}


# Programs of agnhost's image that tests start by exec: links to a module that is a command alone.
TOOLS = ["cat", "curl", "dig", "getent", "grep", "hostname", "ls", "nc", "nslookup", "sh", "wget"]


def module_bytes(module):
    with open(f"{FOLDER}/{module}.wasm", "rb") as file:
        return file.read()


def archive(files, links=()):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        for name, target in links:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return packed.getvalue()


for repository, tags, module, entrypoint, arguments in IMAGES:
    if module == "conformance-agnhost":
        files = {"agnhost.wasm": module_bytes(module), "tools.wasm": module_bytes("conformance")}
        links = [("agnhost", "/agnhost.wasm"), *((f"bin/{tool}", "/tools.wasm") for tool in TOOLS)]
        layer = blob(repository, LAYER, archive(files, links))
    else:
        layer = blob(repository, "application/wasm", module_bytes(module))
    config = {"os": "wasi", "architecture": "wasm", "config": {"Entrypoint": entrypoint, "Cmd": arguments}}
    config = blob(repository, "application/vnd.oci.image.config.v1+json", json.dumps(config).encode())
    manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}).encode()
    for tag in tags:
        put("PUT", f"{repository}/manifests/{tag}", manifest, MANIFEST)
# The mounted content of a test: the files of upstream's image that it reads.
FILES = {"data.json": '{"image": "kitten.jpg"}\n', "etc/os-release": 'NAME="Alpine Linux"\n'}
layer = blob("e2e-test-images/kitten", LAYER, archive({name: text.encode() for name, text in FILES.items()}))
config = {"os": "linux", "architecture": "amd64", "config": {}, "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}
config = blob("e2e-test-images/kitten", "application/vnd.oci.image.config.v1+json", json.dumps(config).encode())
manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}
put("PUT", "e2e-test-images/kitten/manifests/1.8", json.dumps(manifest).encode(), MANIFEST)
print("promoterE2eRegistry: registry.local/e2e-test-images\ngcRegistry: registry.local")

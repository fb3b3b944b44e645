"""The image as an OCI layout in a tar, without a daemon and without a base image: one layer with the program's libraries, copied from
this machine with their licences, and one with the program. `skopeo copy oci-archive:FILE docker://…` pushes it."""
import datetime, hashlib, json, os, re, subprocess

from entries import Entry, gzipped, tar

# A number that no distribution gives to a user.
USER = 64321
DATA = "var/lib/coracle"
BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem")
LIBRARY = re.compile(r"\s*(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)")
# Part of glibc since 2.34; programs that resolve names open it by its name.
NSSWITCH = b"passwd: files\ngroup: files\nhosts: files dns\n"


def stop(message):
    raise SystemExit(f"packaging/build: image: {message}; or leave it out by --only")


def read(path):
    with open(path, "rb") as file:
        return file.read()


def libraries(program):
    """The paths at which the loader looks for the program's libraries, and the loader itself."""
    done = subprocess.run(["ldd", program.path], stdout=subprocess.PIPE, text=True)
    found = [match[1] for line in done.stdout.splitlines() if (match := LIBRARY.match(line))]
    if done.returncode != 0 or not found or "not found" in done.stdout:
        stop(f"ldd finds no libraries of {program.path}:\n{done.stdout}")
    return found


def package(path):
    """Debian's package of a library, as name and version."""
    for name in (path, os.path.realpath(path), os.path.realpath(path).removeprefix("/usr")):
        done = subprocess.run(["dpkg-query", "-S", name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if done.returncode == 0:
            owner = done.stdout.split(": ")[0]
            shown = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${Version} ${source:Package} ${source:Version}", owner],
                                   stdout=subprocess.PIPE, text=True, check=True).stdout
            return tuple(shown.split(" "))
    return stop(f"no Debian package has {path}, so its licence is unknown: make the image on Debian or Ubuntu")


def base(program):
    """The entries of the lower layer."""
    paths = libraries(program)
    entries = [Entry(path.lstrip("/"), read(path), 0o755) for path in paths]
    packages = {package(path) for path in paths}
    bundle = next((path for path in BUNDLES if os.path.exists(path)), None)
    if not bundle:
        stop("this machine has no CA certificates: apt-get install ca-certificates")
    entries.append(Entry(BUNDLES[0].lstrip("/"), read(bundle)))
    certificates = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${Version} ${source:Package} ${source:Version}", "ca-certificates"],
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if certificates.returncode == 0:
        packages.add(tuple(certificates.stdout.split(" ")))
    notice = "This layer has files of these packages, unchanged. Their sources are those of the distribution.\n\n"
    for name, version, source, source_version in sorted(packages):
        notice += f"{name} {version}, source package {source} {source_version}\n"
        entries.append(Entry(f"usr/share/doc/{name}/copyright", read(f"/usr/share/doc/{name}/copyright")))
    entries.append(Entry("usr/share/doc/NOTICE", notice.encode()))
    # Licences that Debian's copyright files refer to.
    common = "/usr/share/common-licenses"
    for name in sorted(os.listdir(common)):
        if name.startswith(("LGPL", "GPL", "MPL")) and os.path.isfile(f"{common}/{name}"):
            entries.append(Entry(f"{common.lstrip('/')}/{name}", read(f"{common}/{name}")))
    return entries


def upper(content):
    """The entries of the upper layer."""
    docs = "usr/share/doc/coracle"
    return [
        Entry("usr/bin/coracle", content.program.data, 0o755),
        Entry("etc/passwd", f"root:x:0:0:root:/root:/sbin/nologin\ncoracle:x:{USER}:{USER}:Coracle:/{DATA}:/sbin/nologin\n".encode()),
        Entry("etc/group", f"root:x:0:\ncoracle:x:{USER}:\n".encode()),
        Entry("etc/nsswitch.conf", NSSWITCH),
        Entry("tmp", b"", 0o1777, "folder"),
        Entry(DATA, b"", 0o700, "folder", USER),
        Entry(f"{docs}/LICENSE", content.licence), Entry(f"{docs}/THIRD-PARTY-LICENSES", content.third_party),
        Entry(f"{docs}/coracle.cdx.json", content.bom),
    ]


def config(program, diffs, created):
    """The image's configuration."""
    return {
        "created": created, "architecture": program.names["oci"], "os": "linux",
        "config": {
            "User": f"{USER}:{USER}", "Entrypoint": ["/usr/bin/coracle"], "Cmd": ["up"], "WorkingDir": f"/{DATA}",
            "Env": ["PATH=/usr/bin", f"HOME=/{DATA}", f"CORACLE_DATA_DIR=/{DATA}/data"],
            "Volumes": {f"/{DATA}": {}}, "ExposedPorts": {"6443/tcp": {}}, "StopSignal": "SIGTERM",
            "Labels": labels(program, created),
        },
        "rootfs": {"type": "layers", "diff_ids": diffs},
        "history": [{"created": created, "created_by": "packaging/build: libraries"}, {"created": created, "created_by": "packaging/build: program"}],
    }


def labels(program, created):
    prefix = "org.opencontainers.image"
    return {f"{prefix}.title": "coracle", f"{prefix}.description": "Kubernetes for WebAssembly in one binary", f"{prefix}.version": program.version,
            f"{prefix}.revision": program.commit, f"{prefix}.licenses": "Apache-2.0", f"{prefix}.created": created}


def build(content, out, compress):
    """Writes the archive, and returns its name."""
    program, blobs = content.program, {}

    def blob(data, kind):
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    created = datetime.datetime.fromtimestamp(program.epoch, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    tars = [tar(entries, program.epoch) for entries in (base(program), upper(content))]
    layers = [blob(gzipped(data, compress), "layer.v1.tar+gzip") for data in tars]
    diffs = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in tars]
    encode = lambda value: json.dumps(value, indent=1, sort_keys=True).encode()
    manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": layers,
                "config": blob(encode(config(program, diffs, created)), "config.v1+json"), "annotations": labels(program, created)}
    named = {**blob(encode(manifest), "manifest.v1+json"), "platform": {"architecture": program.names["oci"], "os": "linux"},
             "annotations": {"org.opencontainers.image.ref.name": program.version}}
    index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [named]}
    layout = [Entry("oci-layout", encode({"imageLayoutVersion": "1.0.0"})), Entry("index.json", encode(index)),
              *[Entry(f"blobs/sha256/{digest}", data) for digest, data in blobs.items()]]
    name = f"coracle-{program.version}-linux-{program.names['linux']}.oci.tar"
    with open(os.path.join(out, name), "wb") as file:
        file.write(tar(layout, program.epoch))
    return name

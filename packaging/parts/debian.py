"""The package for Debian and its derivatives, by dpkg-deb. Needs no root: owners are set in the archive."""
import hashlib, os, subprocess, tempfile

from entries import Entry, unfold, with_folders

REVISION = 1
ZSH = "usr/share/zsh/vendor-completions"
LICENCE = "usr/share/doc/coracle/copyright"
SCRIPTS = ("postinst", "prerm", "postrm")
COMPRESSION = {"best": ("-Zxz", "-z6"), "fast": ("-Zgzip", "-z1")}
CONTROL = """\
Package: coracle
Version: {version}
Architecture: {architecture}
Maintainer: Coracle maintainers <maintainers@coracle.invalid>
Installed-Size: {kib}
Depends: libc6 (>= {glibc}), libgcc-s1, systemd | systemd-standalone-sysusers | systemd-sysusers
Recommends: ca-certificates
Section: admin
Priority: optional
Description: Kubernetes for WebAssembly in one binary
 A control plane with the Kubernetes API, nodes whose pods are WebAssembly
 modules, and a data plane in user space. The package has the program and
 systemd units for a cluster of one machine (coracle.service), a server
 (coracle-server.service) and a node (coracle-node.service). None of them
 starts by itself.
"""


def build(root, content, out, compress):
    """Writes the package, and returns its name."""
    program = content.program
    entries = content.system(ZSH, LICENCE)
    version = f"{program.version}-{REVISION}"
    control = CONTROL.format(version=version, architecture=program.names["deb"], glibc=program.glibc,
                             kib=sum(-(-len(entry.data) // 1024) for entry in with_folders(entries)))
    files = [
        Entry("DEBIAN/control", control.encode()),
        Entry("DEBIAN/conffiles", "".join(f"/{entry.path}\n" for entry in entries if entry.conffile).encode()),
        Entry("DEBIAN/md5sums", "".join(f"{hashlib.md5(entry.data).hexdigest()}  {entry.path}\n"
                                        for entry in with_folders(entries) if entry.kind == "file" and not entry.conffile).encode()),
    ]
    for script in SCRIPTS:
        with open(os.path.join(root, "packaging/debian", script), "rb") as file:
            files.append(Entry(f"DEBIAN/{script}", file.read(), 0o755))
    name = f"coracle_{version}_{program.names['deb']}.deb"
    with tempfile.TemporaryDirectory() as folder:
        staging = os.path.join(folder, "staging")
        os.mkdir(staging)
        unfold([*entries, *files], staging, program.epoch)
        subprocess.run(["dpkg-deb", "--root-owner-group", *COMPRESSION[compress], "--build", staging, os.path.join(out, name)], check=True,
                       stdout=subprocess.DEVNULL, env={**os.environ, "SOURCE_DATE_EPOCH": str(program.epoch)})
    return name

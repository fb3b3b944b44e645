"""Checks of packages that need no installation. `contents.py FOLDER PROGRAM VERSION`: FOLDER has what packaging/build made."""
import hashlib, io, json, os, re, subprocess, sys, tarfile

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", "parts"))
import debian, rpm

# Crates that are only in builds and tests: their presence means that the list follows the wrong edges.
ABSENT = {"bolero", "cc", "clap_derive", "pkg-config", "prost-derive", "proptest", "serde_derive", "syn", "tonic-prost-build"}
# A path of a crate's source in a message of the program. Registries' folders are named by host and hash.
SOURCE = re.compile(rb"/registry/src/[^/\0]+/([A-Za-z0-9_-]+?)-(\d+\.\d+\.\d+[A-Za-z0-9.+-]*)/")


def check(right, what):
    if not right:
        raise SystemExit(f"FAIL: {what}")


def bill(folder, name, program):
    """The list of parts against the schema, and against the sources that the program's own messages name."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        text = file.read()
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    error = validator.validate_str(text)
    check(error is None, f"{name} is not CycloneDX 1.6: {error}")
    check(validator.validate_str(text.replace('"SHA-256"', '"SHA-257"', 1)) is not None, "the validator accepts an unknown algorithm")
    document = json.loads(text)
    rows = {(row["name"], row["version"]): row for row in document["components"]}
    with open(program, "rb") as file:
        data = file.read()
    check(document["metadata"]["component"]["hashes"][0]["content"] == hashlib.sha256(data).hexdigest(), "the list is of another program")
    named = {(crate.decode(), version.decode()) for crate, version in SOURCE.findall(data)}
    check(len(named) > 100, f"the program names {len(named)} sources of crates: is it built with other paths?")
    check(named <= set(rows), f"in the program, and not in its list of parts: {sorted(named - set(rows))}")
    present = ABSENT & {crate for crate, _ in rows}
    check(not present, f"in the list of parts, and not in the program: {sorted(present)}")
    for wanted in ("tokio", "wasmtime", "shop-orders", "rust-std"):
        check(any(crate == wanted for crate, _ in rows), f"{wanted} is not in the list of parts")
    for (crate, version), row in rows.items():
        own = row.get("group") == "coracle"
        check(own != ("purl" in row) and row["licenses"][0]["expression"] != "NOASSERTION", f"{crate} {version}: {row}")
        check(own or crate == "rust-std" or len(row["hashes"][0]["content"]) == 64, f"{crate} {version} has no checksum")
    known = {row["bom-ref"] for row in rows.values()} | {document["metadata"]["component"]["bom-ref"]}
    refs = {row["ref"]: row["dependsOn"] for row in document["dependencies"]}
    check(set(refs) == known, "parts and their dependencies differ")
    reached, ahead = set(), [document["metadata"]["component"]["bom-ref"]]
    while ahead:
        ref = ahead.pop()
        if ref not in reached:
            reached.add(ref)
            ahead += refs[ref]
    check(reached == known, f"no part needs these: {sorted(known - reached)}")
    return rows


def files_of_tar(data):
    """Path, mode, owner and checksum of each file of a tar."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            if member.isfile():
                path = member.name.removeprefix("./")
                found[path] = (member.mode, member.uid, member.gid, hashlib.sha256(archive.extractfile(member).read()).hexdigest())
    return found


def files_of_rpm(path):
    """The same of an .rpm. Owners are in its header, as names."""
    found = {}
    listed = subprocess.run(["rpm", "-qp", "--queryformat", "[%{FILENAMES}\t%{FILEMODES:octal}\t%{FILEUSERNAME}:%{FILEGROUPNAME}\t%{FILEDIGESTS}\n]", path],
                            check=True, stdout=subprocess.PIPE, text=True).stdout
    for line in listed.splitlines():
        name, mode, owner, digest = line.split("\t")
        check(owner == "root:root", f"{name} belongs to {owner}")
        if int(mode, 8) & 0o170000 == 0o100000:
            found[name.lstrip("/")] = (int(mode, 8) & 0o7777, 0, 0, digest)
    return found


def packages(folder, deb, rpm_file):
    """Both packages have the same files; shells and licences have other places."""
    ours = files_of_tar(subprocess.run(["dpkg-deb", "--fsys-tarfile", os.path.join(folder, deb)], check=True, stdout=subprocess.PIPE).stdout)
    theirs = files_of_rpm(os.path.join(folder, rpm_file))
    moved = {f"{debian.ZSH}/_coracle": f"{rpm.ZSH}/_coracle", debian.LICENCE: rpm.LICENCE}
    renamed = {moved.get(path, path): row for path, row in ours.items()}
    check(renamed == theirs, f".deb and .rpm differ: {sorted(set(renamed.items()) ^ set(theirs.items()))}")
    check(ours["usr/bin/coracle"][0] == 0o755 and all(row[1:3] == (0, 0) for row in ours.values()), "modes and owners")
    unpacked = subprocess.run(["bash", "-c", 'set -o pipefail; rpm2cpio "$1" | cpio --quiet -t', "rpm2cpio", os.path.join(folder, rpm_file)],
                              check=True, stdout=subprocess.PIPE, text=True)
    listed = {line.removeprefix("./") for line in unpacked.stdout.splitlines()}
    check(set(theirs) <= listed, f"rpm2cpio lacks {sorted(set(theirs) - listed)}")
    configs = subprocess.run(["rpm", "-qpc", os.path.join(folder, rpm_file)], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    conffiles = subprocess.run(["dpkg-deb", "--info", os.path.join(folder, deb), "conffiles"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    check(sorted(configs) == sorted(conffiles) and len(configs) == 6, f"settings: {configs}, {conffiles}")
    scripts = subprocess.run(["rpm", "-qp", "--scripts", os.path.join(folder, rpm_file)], check=True, stdout=subprocess.PIPE, text=True).stdout
    for part in ("systemd-sysusers coracle.conf", "try-restart coracle.service", "systemctl stop coracle.service"):
        check(part in scripts, f"the .rpm's scriptlets lack: {part}")
    for script in re.split(r"(?m)^\w+ scriptlet \(using /bin/sh\):$", scripts)[1:]:
        subprocess.run(["sh", "-n"], input=script, text=True, check=True)


def tarball(folder, name):
    path = os.path.join(folder, f"{name}.tar.gz")
    files = {}
    with tarfile.open(path) as archive:
        for member in archive:
            check(member.name == name or member.name.startswith(f"{name}/"), f"{member.name} is outside of {name}/")
            check(member.uid == member.gid == 0 and member.uname == member.gname == "", f"{member.name} has an owner's name")
            files[member.name.removeprefix(f"{name}/")] = member
        times = {member.mtime for member in files.values()}
        check(len(times) == 1, f"times: {times}")
        texts = archive.extractfile(f"{name}/THIRD-PARTY-LICENSES").read().decode()
    for wanted in ("bin/coracle", "LICENSE", "README.md", "share/man/man1/coracle.1", "share/completions/_coracle", "coracle.cdx.json"):
        check(wanted in files, f"the tarball lacks {wanted}")
    with open(path, "rb") as file:
        check(file.read(8)[3:8] == b"\0\0\0\0\0", "gzip's header has a name or a time")
    return texts


def main():
    folder, program, version = sys.argv[1:4]
    machine = os.uname().machine
    name = f"coracle-{version}-linux-{machine}"
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    rows = bill(folder, f"{name}.cdx.json", program)
    texts = tarball(folder, name)
    missing = [f"{crate} {number}" for (crate, number), row in rows.items() if "purl" in row and crate != "rust-std" and f"{crate} {number} (" not in texts]
    check(not missing, f"without a licence text: {missing}")
    deb, = [file for file in os.listdir(folder) if file.endswith(".deb")]
    rpm_file, = [file for file in os.listdir(folder) if file.endswith(".rpm")]
    packages(folder, deb, rpm_file)
    with open(os.path.join(folder, "coracle.rb"), encoding="utf-8") as file:
        formula = file.read()
    with open(os.path.join(folder, "SHA256SUMS"), encoding="utf-8") as file:
        sums = dict(reversed(line.split()) for line in file)
    check(f'sha256 "{sums[f"{name}.tar.gz"]}"' in formula and f"/{version}/{name}.tar.gz" in formula, "the formula is of another tarball")
    print(f"· {len(rows)} parts, valid; texts of their licences; .deb and .rpm with the same files; the formula's checksum")


if __name__ == "__main__":
    main()

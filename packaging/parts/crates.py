"""The crates whose code is in the program, for its target: those that cargo links, and those of the WebAssembly modules that the program
embeds. Procedural macros and build scripts run at build time and are left out."""
import glob, json, os, re, subprocess
from dataclasses import dataclass, field

import tomllib

EMBEDDED = re.compile(r'include_bytes!\("[./]*/sample-workloads/bin/([a-z0-9-]+)\.wasm"\)')
# Of samples; a crate for preview 1 has the same dependencies there.
WASM_TARGET = "wasm32-wasip2"
LINE = re.compile(r"(\d+)(\S+) v(\S+)")


@dataclass
class Crate:
    """A crate of the program. `checksum` is the SHA-256 of its registry file; crates of this repository have none."""

    name: str
    version: str
    licence: str
    folder: str
    repository: str = ""
    description: str = ""
    authors: tuple = ()
    checksum: str = ""
    needs: set = field(default_factory=set)

    @property
    def key(self):
        return (self.name, self.version)


def cargo(*arguments, cwd):
    try:
        return subprocess.run(["cargo", *arguments], cwd=cwd, check=True, stdout=subprocess.PIPE, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"packaging/build: the list of parts needs cargo and the crates' sources: {error}") from None


def expression(licence):
    """An SPDX expression of a manifest's licence, whose older form has slashes."""
    return re.sub(r"\s*/\s*", " OR ", licence or "NOASSERTION")


def packages(folder, target):
    """All packages of a workspace by name and version, with the checksums of its lock file."""
    with open(os.path.join(folder, "Cargo.lock"), "rb") as lock:
        sums = {(row["name"], row["version"]): row.get("checksum", "") for row in tomllib.load(lock)["package"]}
    described = json.loads(cargo("metadata", "--format-version", "1", "--locked", "--filter-platform", target, cwd=folder))
    found = {}
    for row in described["packages"]:
        key = (row["name"], row["version"])
        found[key] = Crate(*key, expression(row["license"]), os.path.dirname(row["manifest_path"]), row["repository"] or "",
                           row["description"] or "", tuple(row["authors"]), sums[key])
    return found


def linked(folder, target, roots):
    """The crates that are linked into packages of a workspace, with what each one needs."""
    known, found = packages(folder, target), {}
    for root in roots:
        stack = []
        tree = cargo("tree", "--locked", "-p", root, "-e", "normal,no-proc-macro", "--target", target, "--prefix", "depth",
                     "--format", "{p}", cwd=folder)
        for line in tree.splitlines():
            if not line:
                continue
            depth, name, version = LINE.match(line).groups()
            crate = found.setdefault((name, version), known[(name, version)])
            del stack[int(depth):]
            if stack:
                stack[-1].needs.add(crate.key)
            stack.append(crate)
    return found


def embedded(crates):
    """The names of the modules of sample-workloads/bin that these crates include, as far as their sources are in this repository."""
    names = set()
    for crate in crates:
        if crate.checksum:
            continue
        for path in glob.glob(os.path.join(glob.escape(crate.folder), "src", "**", "*.rs"), recursive=True):
            with open(path, encoding="utf-8") as file:
                names.update(EMBEDDED.findall(file.read()))
    return sorted(names)


def of_program(root, target):
    """The crates of the program, and those of the modules in it with the modules' names."""
    crates = linked(root, target, ["coracle"])
    names = embedded(crates.values())
    if not names:
        raise SystemExit("packaging/build: no embedded module is found in the sources: mend EMBEDDED in packaging/parts/crates.py")
    return crates, linked(os.path.join(root, "sample-workloads"), WASM_TARGET, names), names

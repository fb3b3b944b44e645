"""The program that is packed: what its file says about itself, and whether this tree's lock files are its own."""
import os, re, struct, subprocess, tempfile
from dataclasses import dataclass

# By the ELF header's machine: the names of an architecture.
ARCHITECTURES = {
    62: {"linux": "x86_64", "deb": "amd64", "rpm": "x86_64", "oci": "amd64"},
    183: {"linux": "aarch64", "deb": "arm64", "rpm": "aarch64", "oci": "arm64"},
}
# A hyphen separates the package's revision in both formats.
VERSION = re.compile(r"[0-9][A-Za-z0-9.+~]*")
LOCKS = ("Cargo.lock", "sample-workloads/Cargo.lock")
RUSTC_COMMIT = re.compile(rb"/rustc/([0-9a-f]{40})/")
GLIBC = re.compile(rb"\0GLIBC_(\d+)\.(\d+)\0")


@dataclass(frozen=True)
class Program:
    """A program's file. `version` is that of the packages, `own_version` that of the program; `epoch` is the time of everything in them, in seconds."""

    path: str
    data: bytes
    version: str
    own_version: str
    commit: str
    names: dict
    epoch: int

    @property
    def target(self):
        return f"{self.names['linux']}-unknown-linux-gnu"

    @property
    def glibc(self):
        """The newest version of glibc's symbols that the program uses."""
        found = [tuple(map(int, pair)) for pair in GLIBC.findall(self.data.replace(b"\0", b"\0\0"))]
        return ".".join(map(str, max(found))) if found else None


def stop(message):
    raise SystemExit(f"packaging/build: {message}")


def architecture(path, data):
    if data[:4] != b"\x7fELF" or len(data) < 20:
        stop(f"{path} is no program for Linux: build one with cargo build --profile dist --locked")
    machine = struct.unpack_from("<H", data, 18)[0]
    if machine not in ARCHITECTURES:
        stop(f"{path} is for ELF machine {machine}; packages are made for {', '.join(row['linux'] for row in ARCHITECTURES.values())}")
    return ARCHITECTURES[machine]


def output(program, *arguments):
    """What the program prints. It runs without the caller's settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CORACLE_")}
    try:
        return subprocess.run([program, *arguments], check=True, stdout=subprocess.PIPE, env=environment, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        stop(f"{program} can't run here ({error}): make packages on a machine of the program's own architecture")


def git(root, *arguments):
    """A git command's output, or None without a repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def epoch(root):
    """SOURCE_DATE_EPOCH, else the time of the commit, else of the lock file."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is not None:
        if not given.isdecimal():
            stop(f"SOURCE_DATE_EPOCH is {given!r}: it must be a number of seconds")
        return int(given)
    # A repository above this folder isn't this tree's.
    if os.path.exists(os.path.join(root, ".git")):
        committed = git(root, "log", "-1", "--format=%ct")
        if committed:
            return int(committed)
    return int(os.stat(os.path.join(root, LOCKS[0])).st_mtime)


def check_locks(root, path, commit):
    """The SBOM is made of this tree's lock files: refuses a program of a commit with others."""
    for lock in LOCKS:
        theirs = git(root, "show", f"{commit}:{lock}") if commit != "unknown" else None
        if theirs is None:
            print(f"packaging/build: warning: {path} is of commit {commit}, which isn't in this repository: its {lock} is not compared", flush=True)
            return
        with open(os.path.join(root, lock), "rb") as file:
            if file.read() != theirs:
                stop(f"{path} is of commit {commit}, which has another {lock} than this tree: the list of its parts would be wrong. "
                     "Build the program of this tree, or check out its commit")


def read(root, path, version):
    """The program in a file, with the version of its packages if it isn't the program's own."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        stop(f"--program {path}: {error.strerror}")
    names = architecture(path, data)
    # A copy, since the file may lack the execute bit.
    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "coracle")
        with open(copy, "wb") as file:
            file.write(data)
        os.chmod(copy, 0o755)
        facts = dict(line.split(": ", 1) for line in output(copy, "version").decode().splitlines() if ": " in line)
    if "coracle" not in facts or "commit" not in facts:
        stop(f"{path} isn't coracle: `{path} version` prints something else")
    version = version or facts["coracle"]
    if not VERSION.fullmatch(version):
        stop(f"--version {version}: a version is digits, letters and .+~, and begins with a digit")
    check_locks(root, path, facts["commit"])
    return Program(path, data, version, facts["coracle"], facts["commit"], names, epoch(root))


def toolchain(program):
    """The version of the compiler that built the program; it must be the one in PATH, which names its version."""
    facts = dict(line.split(": ", 1) for line in output("rustc", "-vV").decode().splitlines() if ": " in line)
    built = {commit.decode() for commit in RUSTC_COMMIT.findall(program.data)}
    if built and facts.get("commit-hash") not in built:
        stop(f"{program.path} was built by rustc of commit {', '.join(sorted(built))}, but rustc here is {facts.get('release')}: "
             "use the same toolchain")
    return facts["release"]

"""A cluster of its own for tests in Python: `coracle up` in a temporary folder, requests to it as its administrator, its figures and its log.

`CORACLE` names the program. Loopback only; the process and the folder end with the script.
"""
import atexit, json, os, re, shutil, signal, subprocess, tempfile, threading, time

from cluster import Cluster

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CORACLE = os.environ.get("CORACLE") or os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "release", "coracle")
READY_SECONDS_MAX = 60
# The API server closes connections that are idle for 90 s.
IDLE_SECONDS_MAX = 30
EXIT_SECONDS_MAX = 60


class Failed(Exception):
    """A finding of the test; the message is for its reader."""


class Server:
    """`coracle up` with these flags."""

    def __init__(self, *flags):
        self.folder = tempfile.mkdtemp(prefix="coracle-test-")
        self.data = os.path.join(self.folder, "data")
        self.log_path = os.path.join(self.folder, "log")
        with open(self.log_path, "w") as log:
            command = [CORACLE, "up", "--data-dir", self.data, "--port", "0", *flags]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        atexit.register(self.kill)
        timer = threading.Timer(READY_SECONDS_MAX, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if not line.startswith("ready "):
            raise Failed(f"coracle up did not become ready: {self.log()[-2000:]}")
        self.cluster = Cluster(re.search(r"kubeconfig=(\S+)", line)[1])
        self.local = threading.local()

    def ask(self, method, path, body=None, kind="application/json", timeout=60):
        """Status and document of one request, over this thread's connection; no retry."""
        if time.monotonic() - getattr(self.local, "used", -IDLE_SECONDS_MAX) >= IDLE_SECONDS_MAX:
            self.local.connection = self.cluster.connect(timeout)
        self.local.used = time.monotonic()
        try:
            self.local.connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": kind})
            answer = self.local.connection.getresponse()
            text = answer.read()
        except Exception:
            self.local.connection.close()
            if (code := self.process.poll()) is not None:
                raise Failed(f"coracle up ended with {code}: {self.log()[-2000:]}") from None
            raise
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, text.decode(errors="replace")

    def must(self, method, path, body=None, kind="application/json", also=()):
        """The document of a request that has to succeed, or to fail with one of these codes."""
        status, document = self.ask(method, path, body, kind)
        if status >= 300 and status not in also:
            raise Failed(f"{method} {path}: {status} {str(document)[:500]}")
        return document

    def push(self, sample, name=None):
        module = os.path.join(ROOT, "sample-workloads", "bin", f"{sample}.wasm")
        command = [CORACLE, "push", module, f"registry.local/{name or sample}:v1", "--data-dir", self.data]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def log(self):
        with open(self.log_path, errors="replace") as file:
            return file.read()

    def panics(self):
        """The lines of the log that report a panic, caught or not."""
        return [line for line in self.log().splitlines() if "panicked" in line]

    def pids(self):
        """The process and its descendants: compilers are separate processes."""
        found, at = [self.process.pid], 0
        while at < len(found):
            try:
                for task in os.listdir(f"/proc/{found[at]}/task"):
                    with open(f"/proc/{found[at]}/task/{task}/children") as file:
                        found += [int(pid) for pid in file.read().split()]
            except OSError:
                pass  # it has ended
            at += 1
        return found

    def figures(self):
        """Memory (PSS, MiB), descriptors, threads, and disk (MiB) by the first folder below the data folder."""
        pss = descriptors = threads = 0
        for pid in self.pids():
            try:
                with open(f"/proc/{pid}/smaps_rollup") as file:
                    pss += int(re.search(r"^Pss:\s+(\d+)", file.read(), re.M)[1])
                descriptors += len(os.listdir(f"/proc/{pid}/fd"))
                threads += len(os.listdir(f"/proc/{pid}/task"))
            except (OSError, TypeError):
                pass  # it has ended
        return {"memory": pss / 1024, "descriptors": descriptors, "threads": threads, **self.disk()}

    def disk(self):
        sizes = {"disk: store": 0, "disk: others": 0}
        for folder, _, files in os.walk(self.data):
            part = os.path.relpath(folder, self.data).split(os.sep)[0]
            for name in files:
                try:
                    blocks = os.lstat(os.path.join(folder, name)).st_blocks
                except OSError:
                    continue  # it has been removed
                sizes["disk: store" if part == "store" else "disk: others"] += blocks * 512 / 2**20
        return sizes

    def revision(self):
        return int(self.must("GET", "/api/v1/namespaces?limit=1")["metadata"]["resourceVersion"])

    def writes_a_second(self, seconds):
        before, began = self.revision(), time.monotonic()
        time.sleep(seconds)
        return (self.revision() - before) / (time.monotonic() - began)

    def stop(self):
        """Ends the process as a supervisor does; it has to end without an error."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(EXIT_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise Failed(f"coracle up did not end within {EXIT_SECONDS_MAX} s of SIGTERM") from None
        if code:
            raise Failed(f"coracle up ended with {code}: {self.log()[-2000:]}")

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def until(what, seconds, holds):
    """Seconds until this holds; a failure with its last result after that many. `holds` returns None when it holds, else what is missing."""
    began = time.monotonic()
    while (missing := holds()) is not None:
        if time.monotonic() - began > seconds:
            raise Failed(f"{what}: not within {seconds} s: {missing}")
        time.sleep(0.1)
    return time.monotonic() - began

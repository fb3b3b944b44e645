"""pods.py [POD…]: runs the tests of WASI's suite, each as a pod of the namespace `wasi`, and prints those that fail. POD is a glob.

A test is a module and a JSON file of the same name. Its arguments, environment and root folder become those of a container. Its
exit code, its output and its HTTP responses are compared with the expected ones. All pods run at once. SUITE is the unpacked archive,
ROOTS a folder whose folders pods may mount.
"""
import fnmatch, glob, json, os, shutil, subprocess, sys, threading, time, urllib.error, urllib.request

import servers as endpoints

SUITE, ROOTS = os.environ["SUITE"], os.environ["ROOTS"]
HERE = os.path.dirname(os.path.abspath(__file__))
EXCEPTIONS = os.path.join(HERE, "exceptions")
PAGE = os.path.join(HERE, "..", "..", "docs", "conformance.md")
HEADING = "## WASI's test suite"
# All modules are compiled in this time, also on a busy machine.
WAIT_S = 1200
# One read or response of a running test. A deadline bounds a hang and says nothing about speed.
STEP_S = 240
POLL_S = 0.3
# The port of a server's pod.
PORT = 8080
NAMESPACE = ["-n", "wasi"]
VERSIONS = {"p1": "preview 1", "p3": "WASI 0.3"}


def kubectl(*arguments, **options):
    return subprocess.run(["kubectl", *NAMESPACE, *arguments], capture_output=True, text=True, **options)


class Test:
    """A test of one suite."""

    def __init__(self, module, version):
        self.module = module
        name = os.path.basename(module).removesuffix(".wasm")
        self.suite = (os.path.relpath(module, f"{SUITE}/tests").split("/")[0], version)
        self.pod = "-".join([*self.suite, name]).replace("_", "-").lower()
        path = module.removesuffix(".wasm") + ".json"
        config = {}
        if os.path.exists(path):
            with open(path) as file:
                config = json.load(file)
        self.servers = config.get("servers", [])
        self.operations = config.get("operations") or legacy(config)
        self.run = next((one for one in self.operations if one["type"] == "run"), {})
        self.root = self.run.get("root", config.get("root"))
        self.requests = [one for one in self.operations if one["type"] == "request"]
        self.exit_code = next((one.get("exit_code", 0) for one in self.operations if one["type"] == "wait"), 0)
        self.is_attached = any(one["type"] == "write" for one in self.operations)
        self.failures = []

    def object(self, address):
        environment = {**self.run.get("env", {}), **endpoints.start(address, self.servers)}
        container = {"name": "main", "image": f"file://{self.module}", "args": self.run.get("args", []),
                     "env": [{"name": name, "value": value} for name, value in environment.items()]}
        spec = {"restartPolicy": "Never", "enableServiceLinks": False, "automountServiceAccountToken": False, "terminationGracePeriodSeconds": 0, "containers": [container]}
        if self.requests:
            container["ports"] = [{"containerPort": PORT}]
        if self.is_attached:
            container.update(stdin=True, stdinOnce=True)
        if self.root:
            root = os.path.join(ROOTS, self.pod)
            shutil.copytree(os.path.join(os.path.dirname(self.module), self.root), root)
            container["volumeMounts"] = [{"name": "root", "mountPath": "/"}]
            spec["volumes"] = [{"name": "root", "hostPath": {"path": root}}]
        return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": self.pod, "labels": {"test": self.pod}}, "spec": spec}

    def service(self):
        """A process of the machine reaches a pod by its Service."""
        return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": self.pod}, "spec": {"selector": {"test": self.pod}, "ports": [{"port": PORT}]}}

    def fail(self, why):
        self.failures.append(why)

    def log(self):
        return kubectl("logs", self.pod).stdout

    def converse(self):
        """Writes and reads what the test says, in its order."""
        with subprocess.Popen(["kubectl", *NAMESPACE, "attach", "-q", "-i", self.pod], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
            killer = threading.Timer(STEP_S, client.kill)
            killer.start()
            try:
                for one in self.operations:
                    payload = one.get("payload", "").encode()
                    if one["type"] == "write":
                        client.stdin.write(payload)
                        client.stdin.flush()
                    elif one["type"] == "read":
                        stream = client.stdout if one.get("id", "stdout") == "stdout" else client.stderr
                        if (got := stream.read(len(payload))) != payload:
                            self.fail(f"{one['id']}: wanted {payload}, got {got}")
                client.communicate()
            except OSError as error:
                self.fail(f"attach: {error}")
                # What is left to write fails again.
                client.stdin = None
            killer.cancel()

    def request(self):
        address = kubectl("get", "service", self.pod, "-o", "jsonpath={.spec.clusterIP}").stdout
        for one in self.requests:
            expected = one["response"]
            request = urllib.request.Request(f"http://{address}:{PORT}{one['path']}", method=one["method"], headers=one.get("headers", {}))
            if one.get("body"):
                request.data = one["body"].encode()
                # Python's default is a form.
                request.add_header("content-type", "text/plain")
            response = reached(request)
            if isinstance(response, OSError) and not isinstance(response, urllib.error.HTTPError):
                self.fail(f"{one['method']} {one['path']}: {response}")
                continue
            body = response.read().decode()
            headers = {name: response.headers.get(name) for name in expected.get("headers", {})}
            got, wanted = (response.status, headers, body), (expected["status"], expected.get("headers", {}), expected.get("body", ""))
            if got != wanted:
                self.fail(f"{one['method']} {one['path']}: wanted {wanted}, got {got}: {self.log()}")

    def check_end(self, status):
        ended = status.get("containerStatuses", [{}])[0].get("state", {}).get("terminated")
        if ended is None:
            return self.fail(f"did not end: {json.dumps(status.get('containerStatuses', status))}")
        if ended["exitCode"] != self.exit_code:
            self.fail(f"wanted exit code {self.exit_code}, got {ended['exitCode']}: {ended.get('message', '')} {self.log()}")
        if self.requests:
            self.fail("ended without requests")
        reads = [] if self.is_attached else [one["payload"] for one in self.operations if one["type"] == "read"]
        if reads and not all(payload in (log := self.log()) for payload in reads):
            self.fail(f"wanted the output {reads}, got {log!r}")


def reached(request):
    """The response, or the error. The data plane learns of a ready pod a little later than the API server."""
    deadline = time.monotonic() + STEP_S
    while True:
        try:
            return urllib.request.urlopen(request, timeout=STEP_S)
        except urllib.error.HTTPError as error:
            if error.status != 503 or time.monotonic() > deadline:
                return error
        except OSError as error:
            if time.monotonic() > deadline:
                return error
        time.sleep(POLL_S)


def legacy(config):
    """The operations of a file without any."""
    run = {"type": "run", **{key: config[key] for key in ("args", "env", "root") if key in config}}
    reads = [{"type": "read", "id": stream, "payload": config[stream]} for stream in ("stdout", "stderr") if config.get(stream)]
    return [run, *reads, {"type": "wait", "exit_code": config.get("exit_code", 0)}]


def exceptions():
    """The table's rows: glob, `skip` or `fail`, reason."""
    with open(EXCEPTIONS) as table:
        rows = [line.split(None, 2) for line in table if line.strip() and not line.startswith("#")]
    for row in rows:
        if len(row) != 3 or row[1] not in ("skip", "fail"):
            sys.exit(f"tests/wasi/exceptions: {row} is no row: POD skip|fail REASON")
    return rows


def action(pod, rows):
    return next((row[1] for row in rows if fnmatch.fnmatchcase(pod, row[0])), "pass")


def is_ready(status):
    return any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions", []))


def follow(tests):
    """Waits for all pods: talks to servers and to attached commands as they are ready."""
    open_tests, conversing, threads, deadline = {test.pod: test for test in tests}, set(), [], time.monotonic() + WAIT_S

    def begin(work):
        threads.append(threading.Thread(target=work, daemon=True))
        threads[-1].start()

    while open_tests and time.monotonic() < deadline:
        for pod in json.loads(kubectl("get", "pods", "-o", "json", check=True).stdout)["items"]:
            test, status = open_tests.get(pod["metadata"]["name"]), pod["status"]
            if test is None:
                continue
            if status["phase"] in ("Succeeded", "Failed"):
                test.check_end(status)
                del open_tests[test.pod]
            elif test.requests and is_ready(status):
                begin(test.request)
                del open_tests[test.pod]
            elif test.is_attached and status["phase"] == "Running" and test.pod not in conversing:
                conversing.add(test.pod)
                begin(test.converse)
        time.sleep(POLL_S)
    for thread in threads:
        thread.join(timeout=2 * STEP_S)
    for test in open_tests.values():
        test.fail(kubectl("get", "pod", test.pod, "-o", "jsonpath={.status.containerStatuses[0].state}").stdout)


def documented():
    """The rows `| suite | version | passed | of |` of the page."""
    with open(PAGE) as page:
        section = page.read().partition(HEADING)[2].partition("\n## ")[0]
    cells = [[cell.strip(" `") for cell in line.strip("|\n").split("|")] for line in section.splitlines() if line.startswith("|")]
    return {(row[0], row[1]): (int(row[2]), int(row[3])) for row in cells if len(row) == 4 and row[2].isdigit()}


def check_page(tests):
    counts = {}
    for test, passed in tests:
        key = (test.suite[0], VERSIONS[test.suite[1]])
        before = counts.get(key, (0, 0))
        counts[key] = (before[0] + passed, before[1] + 1)
    if counts == documented():
        return True
    print(f"docs/conformance.md, {HEADING!r}: it has {documented()}, measured is {counts}")
    return False


def all_tests():
    for version in VERSIONS:
        for module in sorted(glob.glob(f"{SUITE}/tests/*/testsuite/wasm32-wasi{version}/*.wasm")):
            yield Test(module, version)


def main():
    globs, rows, began = sys.argv[1:], exceptions(), time.monotonic()
    everything = list(all_tests())
    unused = [row[0] for row in rows if not any(fnmatch.fnmatchcase(test.pod, row[0]) for test in everything)]
    tests = [test for test in everything if not globs or any(fnmatch.fnmatchcase(test.pod, one) for one in globs)]
    if not tests or unused:
        sys.exit(f"no test: {unused or globs}")
    address = endpoints.own_address()
    without_address = [test for test in tests if test.servers and address is None]
    running = [test for test in tests if (action(test.pod, rows) != "skip" or globs) and test not in without_address]
    objects = {"apiVersion": "v1", "kind": "List", "items": [*[test.object(address) for test in running], *[test.service() for test in running if test.requests]]}
    created = kubectl("create", "-f", "-", input=json.dumps(objects))
    if created.returncode != 0:
        sys.exit(created.stderr)
    follow(running)
    wrong = 0
    for test in running:
        if action(test.pod, rows) == "pass" and test.failures:
            wrong += 1
            for why in test.failures:
                print(f"FAILED {test.pod}: {why[:2000]}")
        elif action(test.pod, rows) != "pass" and not test.failures:
            wrong += 1
            print(f"PASSED {test.pod}: its row of tests/wasi/exceptions is not needed")
    passed = [(test, test in running and not test.failures) for test in tests]
    print(f"{sum(passes for _, passes in passed)} of {len(tests)} pass, {len(tests) - len(running)} did not run, {time.monotonic() - began:.0f} s")
    if without_address:
        print("this machine has no address but its loopback: these did not run:", *[test.pod for test in without_address])
    elif not globs and not check_page(passed):
        wrong += 1
    sys.exit(1 if wrong else 0)


main()

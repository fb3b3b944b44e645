"""The node is killed in every step of a pod's life: `kills.py KUBECONFIG [STEP…]`, `CORACLE` is the program and `WORK` the folder.

A step is a generator: what it does up to a `yield` is done when the node is killed, what follows when it is back. Steps wait for what
shows that the pod is in that step. All versions of all pods are checked at the end (history.py).
"""
import http.server, json, os, signal, subprocess, sys, threading, time

import suite
from cluster import Cluster
from history import History
from modules import nothing
from suite import KUBECONFIG, NS, Wrong, apply, ask_api, expect, get, kubectl, until
import registry

CORACLE, WORK = os.environ["CORACLE"], os.environ["WORK"]
SHARED = f"{WORK}/shared"
GRACE_S = 3
COMPILED_S = 240  # the toolbox, on a machine that builds something else
IMAGE = "registry.local/{}:v1".format
HISTORY = History(f"{NS}/pods")
PULLED = threading.Event()
MAY_PULL = threading.Event()


class SlowRegistry(http.server.BaseHTTPRequestHandler):
    """A blob server that releases its blobs on request."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        reference = self.path.rsplit("/", 1)[1]
        data = registry.BLOBS.get(reference, LAYOUT)
        if "/blobs/" in self.path:
            PULLED.set()
            MAY_PULL.wait(suite.HANG_S)
        try:
            self.send_response(200)
            self.send_header("Content-Type", registry.MANIFEST)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            pass  # the client was killed


LAYOUT = registry.layouts(nothing(b"pulled"))["cncf"]
SLOW = http.server.ThreadingHTTPServer(("127.0.0.1", 0), SlowRegistry)
SLOW.daemon_threads = True
threading.Thread(target=SLOW.serve_forever, daemon=True).start()
with open(f"{WORK}/registries.yaml", "w") as file:
    address = f"127.0.0.1:{SLOW.server_address[1]}"
    json.dump({"mirrors": {address: {"endpoint": [f"http://{address}"]}}}, file)


class Node:
    process = None

    def up(self):
        with open(f"{WORK}/kill-ready", "w") as out, open(f"{WORK}/kills.log", "a") as log:
            flags = ["--data-dir", f"{WORK}/data", "--port", "0", "--allow-host-path", SHARED, "--registries", f"{WORK}/registries.yaml"]
            self.process = subprocess.Popen([CORACLE, "up", *flags], stdout=out, stderr=log)
        with open(f"{WORK}/pid", "w") as file:
            file.write(str(self.process.pid))
        until("the node is ready", self.is_ready, 60)
        suite.CLUSTER = Cluster(KUBECONFIG)
        HISTORY.follow(suite.CLUSTER)

    def is_ready(self):
        expect(None, self.process.poll(), "the node's exit code")
        with open(f"{WORK}/kill-ready") as file:
            return "ready " in file.read()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.remove(f"{WORK}/pid")


NODE = Node()


def container(name, image="hello", **more):
    return {"name": name, "image": image if "/" in image else IMAGE(image), **more}


def tool(name, script, **more):
    return container(name, "toolbox", command=["sh", "-c", script], **more)


def pod(name, *containers, init=(), restart="Always", annotations=None, **spec):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}, "annotations": annotations or {}},
            "spec": {"restartPolicy": restart, "automountServiceAccountToken": False, "terminationGracePeriodSeconds": GRACE_S, "initContainers": list(init),
                     "containers": list(containers), **spec}}


def of(name):
    return get(f"{NS}/pods/{name}") or {}


def status(name, container="c"):
    now = of(name).get("status", {})
    lists = (now.get(key) or [] for key in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"))
    return next((one for each in lists for one in each if one["name"] == container), {"state": {}, "restartCount": -1})


def runs(name, container="c"):
    until(f"{container} of {name} runs", lambda: "running" in status(name, container)["state"])


def ready(name, restarts=None):
    def there():
        now = of(name)
        is_ready = any(c["type"] == "Ready" and c["status"] == "True" for c in now.get("status", {}).get("conditions", []))
        return is_ready and (restarts is None or all(s["restartCount"] == restarts for s in now["status"]["containerStatuses"]))
    until(f"{name} is ready{'' if restarts is None else f' after {restarts} restarts'}", there)


def phase(name, wanted, within=suite.SOON_S):
    until(f"{name} is {wanted}", lambda: of(name).get("status", {}).get("phase") == wanted, within)


def event(name, reason):
    of_it = f"{NS}/events?fieldSelector=involvedObject.name%3D{name}"
    until(f"{name} has event {reason}", lambda: any(e["reason"] == reason for e in get(of_it)["items"]))


def gone(name):
    until(f"{name} is gone", lambda: not of(name), GRACE_S + 15)


def ended(name):
    """The last status of a removed pod has the terminations of its containers."""
    uid = next(uid for uid, of in HISTORY.names.items() if of == name)
    until(f"the end of {name} was watched", lambda: uid in HISTORY.gone)
    last = HISTORY.versions[uid][-1][1]["status"]
    expect(True, all("terminated" in one["state"] for one in last["containerStatuses"]), f"the last status of {name}: {last['containerStatuses']}")


def pull():
    """The image is being pulled."""
    PULLED.clear()
    apply(pod("pulls", container("c", f"{address}/slow/image:v1"), restart="Never"))
    until("the registry is asked for a blob", PULLED.is_set)
    yield
    MAY_PULL.set()
    phase("pulls", "Succeeded")


def compiling():
    found = subprocess.run(["pgrep", "-f", f"coracle-compile-worker.*{WORK}"], capture_output=True, text=True)
    return found.stdout.split()


def compile_():
    """A module is being compiled; the compiler ends with the node."""
    apply(pod("compiles", tool("c", "true"), restart="Never"))
    until("a compiler runs", compiling)
    yield
    until("no compiler is left of the one before", lambda: len(compiling()) <= 1)
    phase("compiles", "Succeeded", COMPILED_S)


def init():
    """The second of two init containers runs: the first one does not run again, unless the whole pod restarts."""
    shared = {"volumes": [{"name": "shared", "hostPath": {"path": SHARED}}]}
    mounted = {"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}
    for policy in ("Always", "OnFailure", "Never"):
        name = f"init-{policy.lower()}"
        first = tool("a", "true" if policy == "Always" else f"mkdir /shared/{name}", **mounted)
        # The second one goes on until it is killed, and ends at once in its next run.
        apply(pod(name, container("c"), init=(first, tool("b", f"mkdir /shared/{name}-b && sleep 600; true", **mounted)), restart=policy, **shared))
    for policy in ("always", "onfailure", "never"):
        runs(f"init-{policy}", "b")
    yield
    ready("init-always")
    ready("init-onfailure")
    phase("init-never", "Failed")
    expect((1, 1), (status("init-always", "a")["restartCount"], status("init-always", "b")["restartCount"]), "restarts of init containers")
    expect((0, 1), (status("init-onfailure", "a")["restartCount"], status("init-onfailure", "b")["restartCount"]), "restarts of init containers, on failure")
    expect(255, status("init-never", "b")["state"]["terminated"]["exitCode"], "the one that was killed")
    yield
    ready("init-onfailure", 1)
    expect(0, status("init-onfailure", "a")["restartCount"], "restarts of an init container that had completed long ago")


def start():
    """The container has started, and its postStart hook still runs."""
    apply(pod("starts", container("c", lifecycle={"postStart": {"exec": {"command": ["sleep", "2"]}}})))
    event("starts", "Started")
    yield
    ready("starts")


def running():
    """A server, a sidecar with its server, a command and an ended container: each is killed twice."""
    apply(pod("web", container("c", readinessProbe={"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1})),
          pod("pair", container("c", ports=[{"containerPort": 8080}]), init=(container("side", restartPolicy="Always", ports=[{"containerPort": 8081}]),)),
          pod("on-failure", tool("c", "sleep 600"), restart="OnFailure"), pod("never", tool("c", "sleep 600"), restart="Never"),
          pod("good", tool("c", "true"), restart="OnFailure"), pod("bad", container("c", "crash"), restart="Never"))
    for name in ("web", "pair", "on-failure", "never"):
        ready(name)
    phase("good", "Succeeded")
    phase("bad", "Failed")
    before = {name: of(name)["metadata"]["resourceVersion"] for name in ("good", "bad")}
    for times in (1, 2):
        yield
        for name in ("web", "pair", "on-failure"):
            ready(name, times)
        expect(times, status("pair", "side")["restartCount"], "restarts of a sidecar")
        phase("never", "Failed")
    expect(before, {name: of(name)["metadata"]["resourceVersion"] for name in before}, "versions of what had ended before")


def crash():
    """A crashing container waits for its next start."""
    apply(pod("crashes", container("c", "crash"), annotations={"kills/crashes": ""}))
    until("it has crashed twice", lambda: status("crashes")["restartCount"] >= 1 and "waiting" in status("crashes")["state"])
    before = status("crashes")["restartCount"]
    yield
    until("it goes on", lambda: status("crashes")["restartCount"] > before)
    expect(3, status("crashes")["lastState"]["terminated"]["exitCode"], "its last end")


def probe():
    """A first probe runs a command."""
    apply(pod("probed", container("c", startupProbe={"exec": {"command": ["sleep", "1"]}, "periodSeconds": 1, "timeoutSeconds": 5})))
    runs("probed")
    yield
    ready("probed", 1)


def pre_stop():
    """The preStop hook still runs."""
    apply(pod("stops", container("c", lifecycle={"preStop": {"exec": {"command": ["sleep", "2"]}}})))
    ready("stops")
    kubectl("delete", "pod", "stops", "--wait=false")
    event("stops", "Killing")
    yield
    gone("stops")
    ended("stops")


def termination():
    """A container uses its grace period."""
    apply(pod("lingers", tool("c", "sleep 600"), annotations={"stop.coracle.dev/c": "grace"}))
    ready("lingers")
    kubectl("delete", "pod", "lingers", "--wait=false")
    event("lingers", "Killing")
    yield
    gone("lingers")
    ended("lingers")


def deletion():
    """All containers have ended, and the API keeps the pod for a finalizer."""
    made = pod("held", container("c"))
    made["metadata"]["finalizers"] = ["example.com/held"]
    apply(made)
    ready("held")
    kubectl("delete", "pod", "held", "--wait=false")
    until("it has ended", lambda: "terminated" in status("held")["state"])
    before = status("held")
    yield
    apply(pod("beside", container("c")))
    ready("beside")
    expect(before, status("held"), "what is told of its end")
    kubectl("patch", "pod", "held", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    gone("held")


def volume():
    """A ConfigMap's new files are being written."""
    data = lambda text: {f"f{n}": text * 1000 for n in range(200)}
    map_ = lambda text: {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "files"}, "data": data(text)}
    kubectl("create", "-f", "-", given=json.dumps(map_("old\n")))
    mounts = {"volumeMounts": [{"name": "files", "mountPath": "/files"}]}
    apply(pod("reads", container("c", **mounts), volumes=[{"name": "files", "configMap": {"name": "files"}}]))
    ready("reads")
    folder = subprocess.run(["find", f"{WORK}/data", "-type", "l", "-name", "..data"], capture_output=True, text=True).stdout.split()
    folder = next(os.path.dirname(link) for link in folder if of("reads")["metadata"]["uid"] in link)
    hidden = lambda: [name for name in os.listdir(folder) if name.startswith("..") and name != "..data"]
    expect(1, len(hidden()), "folders of files")
    before = hidden()
    kubectl("replace", "-f", "-", given=json.dumps(map_("new\n")))
    deadline = time.monotonic() + suite.HANG_S
    while hidden() == before:
        expect(True, time.monotonic() < deadline, "the volume is written anew")
    yield
    ready("reads", 1)
    until("all files are new", lambda: kubectl("exec", "reads", "--", "sh", "-c", "cat /files/* | sort | uniq -c").split() == ["200000", "new"])
    until("nothing is left of the old ones", lambda: len(hidden()) == 1)


def resize():
    """New amounts of CPU and memory have just been requested."""
    amounts = lambda cpu, memory: {"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}}
    apply(pod("resized", container("c", resources=amounts("10m", "32Mi"))))
    ready("resized")
    patch = {"spec": {"containers": [{"name": "c", "resources": amounts("20m", "48Mi")}]}}
    expect(200, ask_api(f"{NS}/pods/resized/resize", "PATCH", patch, "application/strategic-merge-patch+json")[0], "the resize")
    yield
    ready("resized", 1)
    until("it is given", lambda: status("resized").get("resources", {}).get("limits") == {"cpu": "20m", "memory": "48Mi"})
    conditions = [c["type"] for c in of("resized")["status"]["conditions"]]
    expect([], [c for c in conditions if c.startswith("PodResize")], "conditions of a resize that is over")


def ephemeral():
    """An ephemeral container was added, and one runs."""
    apply(pod("debugged", container("c")))
    ready("debugged")
    add = lambda name: ask_api(f"{NS}/pods/debugged/ephemeralcontainers", "PATCH", {"spec": {"ephemeralContainers": [tool(name, "sleep 600")]}}, "application/strategic-merge-patch+json")[0]
    expect(200, add("e1"), "an ephemeral container")
    runs("debugged", "e1")
    expect(200, add("e2"), "another one")
    yield
    ready("debugged", 1)
    runs("debugged", "e2")
    expect("terminated", *status("debugged", "e1")["state"], "the one that was killed")


def rejected():
    """A pod that is not for the node."""
    node = get("/api/v1/nodes")["items"][0]["metadata"]["name"]
    made = pod("elsewhere", container("c"), nodeName=node, nodeSelector={"disk": "ssd"})
    made["metadata"]["finalizers"] = ["example.com/held"]
    apply(made)
    phase("elsewhere", "Failed")
    told = lambda: (of("elsewhere")["status"]["reason"], of("elsewhere")["status"]["message"])
    want = ("NodeAffinity", "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector")
    expect(want, told(), "why it is rejected")
    yield
    kubectl("delete", "pod", "elsewhere", "--wait=false")
    kubectl("label", "node", node, "disk=ssd")
    apply(pod("labelled", container("c"), nodeName=node, nodeSelector={"disk": "ssd"}))
    ready("labelled")
    expect(want, told(), "why it was rejected")
    kubectl("patch", "pod", "elsewhere", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    gone("elsewhere")


STEPS = (compile_, running, pull, init, start, crash, probe, pre_stop, termination, deletion, volume, resize, ephemeral, rejected)


def play(step):
    kills = 0
    began = time.monotonic()
    try:
        for _ in step():
            NODE.kill()
            NODE.up()
            kills += 1
        print(f"· {step.__name__.rstrip('_')}: killed {'once' if kills == 1 else f'{kills} times'}, {time.monotonic() - began:.1f} s", flush=True)
        return True
    except (Wrong, OSError, StopIteration, KeyError, AttributeError) as e:
        print(f"WRONG: {step.__name__}: {e!r}", flush=True)
        if NODE.process.poll() is not None:
            NODE.up()
        return False


def main():
    wanted = [step for step in STEPS if not sys.argv[2:] or step.__name__.rstrip("_") in sys.argv[2:]]
    began = time.monotonic()
    NODE.up()
    try:
        until("the default account", lambda: get(f"{NS}/serviceaccounts/default"))
        fine = all([play(step) for step in wanted])
        pods = get(f"{NS}/pods")["items"]
        until("all was watched", lambda: HISTORY.caught_up(pods))
        problems = HISTORY.problems()
        for problem in problems:
            print(f"WRONG: {problem}", flush=True)
        count = sum(map(len, HISTORY.versions.values()))
        print(f"· {count} statuses of {len(HISTORY.versions)} pods in {HISTORY.lives} lives of a node, {time.monotonic() - began:.0f} s", flush=True)
        sys.exit(0 if fine and not problems else 1)
    finally:
        NODE.kill()


main()

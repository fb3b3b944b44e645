"""A cluster under a low limit of open files. `descriptors.py LIMIT [PODS]`: exits 1 and says what went wrong.

Strangers who connect and stay silent, pods with many volumes, guests that open files without end, and clients of a Service: each
may be refused or wait, and neither ends the process nor keeps anybody with an identity out. CORACLE names the program.
"""
import base64, http.client, json, os, re, resource, signal, socket, subprocess, sys, tempfile, time

LIMIT = int(sys.argv[1])
PODS = int(sys.argv[2]) if len(sys.argv) > 2 else 60
CORACLE = os.environ["CORACLE"]
HERE = os.path.dirname(os.path.abspath(__file__))
SAMPLES = os.path.join(HERE, "../../sample-workloads/bin")
STRANGERS = 1200
TIMEOUT_S = 120
work = tempfile.TemporaryDirectory(prefix="coracle-descriptors-")
DATA = os.path.join(work.name, "data")
os.environ["KUBECACHEDIR"] = os.path.join(work.name, "cache")
sys.path.insert(0, HERE)
from cluster import Cluster  # noqa: E402

# This program's own connections are no part of the test.
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def fail(what):
    print("WRONG:", what, file=sys.stderr)
    with open(os.path.join(work.name, "up.log")) as log:
        print("".join(log.readlines()[-20:]), file=sys.stderr)
    up.kill()
    sys.exit(1)


log = open(os.path.join(work.name, "up.log"), "w")
up = subprocess.Popen([CORACLE, "up", "--data-dir", DATA, "--port", "0"], stdout=subprocess.PIPE, stderr=log, text=True,
                      preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT)))
ready = up.stdout.readline()
if not ready.startswith("ready "):
    fail(f"no start with {LIMIT} descriptors: {ready!r}")
KUBECONFIG = dict(pair.split("=", 1) for pair in ready.split()[1:])["kubeconfig"]
api = Cluster(KUBECONFIG)


def used():
    return len(os.listdir(f"/proc/{up.pid}/fd"))


def alive(when):
    if up.poll() is not None:
        fail(f"the process ended ({up.returncode}) after: {when}")
    print(f"  {when}: {used()} descriptors of {LIMIT}")


def ask(method, path, body=None):
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        connection = api.connect(30)
        try:
            connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            alive(f"{method} {path} got no answer")
            if time.monotonic() > deadline:
                fail(f"{method} {path}: {error!r}")
        finally:
            connection.close()


def works(when):
    """Writes many objects, each on a separate connection, so that the store begins new files."""
    alive(when)
    filler = base64.b64encode(os.urandom(150_000)).decode()
    for n in range(30):
        body = {"metadata": {"generateName": "filler-"}, "data": {"x": filler}}
        status, data = ask("POST", "/api/v1/namespaces/default/configmaps", body)
        if status != 201:
            fail(f"{when}: a write got {status}: {data[:200]!r}")
    ask("DELETE", "/api/v1/namespaces/default/configmaps")
    alive(when + ", and it works")


def eventually(what, holds):
    deadline = time.monotonic() + TIMEOUT_S
    while not holds():
        if time.monotonic() > deadline:
            fail(f"never: {what}")
        if up.poll() is not None:
            fail(f"the process ended ({up.returncode}) while waiting for: {what}")
        time.sleep(0.2)


def strangers(address, how_many=STRANGERS):
    held = []
    for _ in range(how_many):
        connection = socket.socket()
        connection.settimeout(2)
        try:
            connection.connect(address)
            held.append(connection)
        except OSError:
            # The system's queue is full: more connections would only wait.
            connection.close()
            break
    return held


def module(name, functions, body):
    """A preview 1 command: `functions` are (name, parameters, results) of its imports, `body` its code."""
    def leb(n):
        return bytes((n & 127 | 128,)) + leb(n >> 7) if n > 127 else bytes((n,))
    text = lambda s: leb(len(s)) + s.encode()
    section = lambda number, data: bytes((number,)) + leb(len(data)) + data
    types = [b"\x60\0\0"] + [b"\x60" + leb(len(p)) + p + leb(len(r)) + r for _, p, r in functions]
    imports = [text("wasi_snapshot_preview1") + text(n) + b"\0" + leb(i + 1) for i, (n, _, _) in enumerate(functions)]
    code = leb(0) + body + b"\x0b"
    data = b"\0\x41\xe4\0\x0b" + text("file")  # at 100
    path = os.path.join(work.name, name + ".wasm")
    with open(path, "wb") as f:
        f.write(b"\0asm\1\0\0\0" + section(1, leb(len(types)) + b"".join(types)) + section(2, leb(len(imports)) + b"".join(imports))
                + section(3, b"\1\0") + section(5, b"\1\0\1") + section(7, b"\2" + text("_start") + b"\0" + leb(len(functions)) + text("memory") + b"\2\0")
                + section(10, b"\1" + leb(len(code)) + code) + section(11, b"\1" + data))
    return path


I32, I64 = b"\x7f", b"\x7e"
# Opens one file repeatedly, whatever the result: (loop (drop (path_open 3 0 100 4 1 66 0 0 8)) (br 0)).
eater = module("eater", [("path_open", I32 * 5 + I64 * 2 + I32 * 2, I32)],
               b"\x03\x40\x41\x03\x41\0\x41\xe4\0\x41\x04\x41\x01\x42\xc2\0\x42\0\x41\0\x41\x08\x10\0\x1a\x0c\0\x0b")


def push(path, name):
    subprocess.run([CORACLE, "push", "--data-dir", DATA, path, f"registry.local/{name}:v1"], check=True, stdout=subprocess.DEVNULL)


def pod(name, image, **more):
    volumes = [{"name": "a", "emptyDir": {}}, {"name": "b", "emptyDir": {}}, {"name": "c", "configMap": {"name": "kube-root-ca.crt"}}]
    mounts = [{"name": v["name"], "mountPath": "/" + v["name"]} for v in volumes]
    container = {"name": "c", "image": f"registry.local/{image}:v1", "volumeMounts": mounts, "ports": [{"containerPort": 8080}], **more}
    body = {"metadata": {"name": name, "labels": {"app": image}}, "spec": {"containers": [container], "volumes": volumes}}
    status, data = ask("POST", "/api/v1/namespaces/default/pods", body)
    if status != 201:
        fail(f"pod {name}: {status} {data[:200]!r}")


def items(selector):
    return json.loads(ask("GET", f"/api/v1/namespaces/default/pods?labelSelector={selector}")[1])["items"]


def pods(selector, condition):
    return [p for p in items(selector) if any(c["type"] == condition and c["status"] == "True" for c in p["status"].get("conditions") or [])]


def evicted(selector):
    """The message of each evicted pod, from its status."""
    return [p["status"]["message"] for p in items(selector) if p["status"].get("reason") == "Evicted"]


alive("at rest")
push(os.path.join(SAMPLES, "hello.wasm"), "hello")
push(eater, "eater")
held = strangers((api.host, api.port))
works(f"{len(held)} silent strangers at the API server")
registry = tuple(open(os.path.join(DATA, "registry-address")).read().strip().rsplit(":", 1))
kubelet = json.loads(ask("GET", "/api/v1/nodes/coracle-1")[1])["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
held += strangers((registry[0], int(registry[1])), 600) + strangers((api.host, kubelet), 600)
push(os.path.join(SAMPLES, "hello.wasm"), "again")
works(f"{len(held)} strangers at all listeners")
for n in range(PODS):
    pod(f"hello-{n}", "hello")
eventually(f"{PODS} pods with four volumes Ready", lambda: len(pods("app=hello", "Ready")) == PODS)
works(f"{PODS} pods with four volumes")
ask("POST", "/api/v1/namespaces/default/services", {"metadata": {"name": "hello"}, "spec": {"selector": {"app": "hello"}, "ports": [{"port": 80, "targetPort": 8080}]}})
address = json.loads(ask("GET", "/api/v1/namespaces/default/services/hello")[1])["spec"]["clusterIP"]


def serves(at=None):
    try:
        connection = http.client.HTTPConnection(at or address, 80, timeout=10)
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except OSError:
        return False


eventually("hello answers", serves)
for n in range(3):
    pod(f"eater-{n}", "eater")
eventually("guests that open files without end run", lambda: len(pods("app=eater", "Ready")) + len(evicted("app=eater")) == 3)
works("three guests that open files without end")
if LIMIT > 1000 and evicted("app=eater"):
    fail("a guest was evicted while the node has descriptors for others")
# Each may hold a quarter of all.
for n in range(3, 6):
    pod(f"eater-{n}", "eater")


def relieved():
    """Two are evicted; or one is, and the node's taint keeps others away: if three already filled a node with few descriptors."""
    kept_away = [c for p in items("app=eater") for c in p["status"].get("conditions") or [] if c["type"] == "PodScheduled" and "untolerated taint" in c.get("message", "")]
    return len(evicted("app=eater")) >= (1 if kept_away and LIMIT < 1000 else 2)


eventually("so many that they leave none are evicted", relieved)
for message in evicted("app=eater"):
    if not re.match(r"The node was low on resource: descriptors\. Threshold quantity: [0-9]+, available: [0-9]+\. $", message):
        fail(f"it was evicted as {message!r}")
conditions = {c["type"]: c for c in json.loads(ask("GET", "/api/v1/nodes/coracle-1")[1])["status"]["conditions"]}
if (conditions["PIDPressure"]["status"], conditions["PIDPressure"]["reason"]) != ("True", "KubeletHasInsufficientPID"):
    fail(f"the node says {conditions['PIDPressure']}")
taints = lambda: json.loads(ask("GET", "/api/v1/nodes/coracle-1")[1])["spec"].get("taints", [])
eventually("the taint", lambda: any(t["key"] == "node.kubernetes.io/pid-pressure" and t["effect"] == "NoSchedule" for t in taints()))
told = lambda: json.loads(ask("GET", "/api/v1/namespaces/default/events?fieldSelector=reason%3DEvictionThresholdMet")[1])["items"]
eventually("an event of the node", lambda: any(e["message"] == "Attempting to reclaim descriptors" and e["involvedObject"]["kind"] == "Node" for e in told()))
if evicted("app=hello"):
    fail("a pod with few open files was evicted")
ask("POST", "/api/v1/namespaces/default/services", {"metadata": {"name": "other"}, "spec": {"selector": {"app": "hello"}, "ports": [{"port": 80, "targetPort": 8080}]}})
other = json.loads(ask("GET", "/api/v1/namespaces/default/services/other")[1])["spec"]["clusterIP"]
eventually("the other Service answers", lambda: serves(other))
clients = []


def flood():
    """Connections of one client to one Service, above the limit of all: silent, with half a head, and idle after an answer."""
    for number, connection in enumerate(strangers((address, 80), 300)):
        clients.append(connection)
        try:
            if number % 3:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n" + (b"\r\n" if number % 3 == 2 else b""))
            if number % 3 == 2:
                connection.recv(1)
        except OSError:
            pass  # displaced by a later one


def serves_beside_a_flood(at):
    """Each try comes with a flood of its own: connections that time out in the meantime don't decide it."""
    flood()
    return serves(at)


for at in (other, address):
    eventually("a Service answers beside a flood of idle connections", lambda: serves_beside_a_flood(at))
works(f"{len(clients)} connections to a Service")
for connection in held + clients:
    connection.close()
eventually("hello answers still", serves)
logs = json.loads(ask("GET", "/api/v1/namespaces/default/pods?limit=1")[1])["items"][0]["metadata"]["name"]
if ask("GET", f"/api/v1/namespaces/default/pods/{logs}/log")[0] != 200:
    fail("logs can't be read")
log.flush()
text = open(log.name).read()
for line in ("Too many open files", "too many open files", "panicked"):
    if line in text:
        fail(f"the process's log says: {[l for l in text.splitlines() if line in l][:3]}")
if "may open" not in text:
    fail("nothing was said about the low limit")
up.send_signal(signal.SIGTERM)
if up.wait(30) != 0:
    fail(f"it ended with {up.returncode}")
print("PASS")

"""What contract.md §3 and §4 promise of running workloads, seen from outside: real modules, a real kubectl, real sockets.
`workloads.py KUBECONFIG [CASE…]`: exits 1 and says what went wrong.

The cases are independent and run side by side. They wait for conditions with a deadline; a time that is compared is a
lower bound of what was promised, or an upper one with room for a busy machine.
"""
import base64, concurrent.futures, http.client, json, re, socket, subprocess, threading, time

from suite import CLUSTER, KUBECONFIG, NS, SOON_S, Wrong, apply, ask_api, expect, get, kubectl, main, until

ACCEPTS_S = 0.9  # of the second for which a server still accepts once it is out of the routing tables
HELLO, UNRULY, LOOP = (f"registry.local/{name}:v1" for name in ("hello", "unruly", "loop"))


def delete(path):
    status, answer = ask_api(path, "DELETE")
    expect(200, status, f"DELETE {path}: {answer}")


def pod(name, image, container=None, annotations=None, **spec):
    """A pod with one container `c`; as `app: NAME`, so that its Service finds it."""
    container = {"name": "c", "image": image, "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}], **(container or {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}, "annotations": annotations or {}},
            "spec": {"restartPolicy": "Never", "containers": [container], **spec}}


def service(name, **spec):
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"selector": {"app": name}, "ports": [{"port": 80}], **spec}}


def container_of(name):
    statuses = (get(f"{NS}/pods/{name}") or {}).get("status", {}).get("containerStatuses") or [{}]
    return statuses[0]


def serving(name, image, **more):
    """Creates a pod and its Service, and waits until it responds; returns its address."""
    apply(pod(name, image, **more), service(name))
    return answering(name)


def answering(name):
    ip = get(f"{NS}/services/{name}")["spec"]["clusterIP"]
    until(f"{name} answers", lambda: ask(ip, "/").status == 200)
    return ip


class Answer:
    """One response in an HTTP/1.1 client. `whole`: the body ended properly."""

    def __init__(self, status=0, headers=None, body=b"", whole=False, took=0.0, error=None):
        self.status, self.headers, self.body, self.whole, self.took, self.error = status, headers or {}, body, whole, took, error
        self.reason = self.headers.get("coracle-reason")

    def __repr__(self):
        return f"{self.status} {self.reason or ''} {self.body[:80]!r} whole={self.whole} {self.took:.2f} s {self.error or ''}"


def ask(ip, path, on=None, timeout=SOON_S):
    began = time.monotonic()
    c = on or http.client.HTTPConnection(ip, 80, timeout=timeout)
    try:
        c.request("GET", path)
        r = c.getresponse()
        try:
            body, whole, error = r.read(), True, None
        except (OSError, http.client.HTTPException) as e:
            body, whole, error = getattr(e, "partial", b""), False, e
        return Answer(r.status, r.headers, body, whole, time.monotonic() - began, error)
    except (OSError, http.client.HTTPException) as e:
        return Answer(took=time.monotonic() - began, error=e)
    finally:
        if on is None:
            c.close()


def in_background(act, *args, **more):
    future = concurrent.futures.Future()

    def run():
        try:
            future.set_result(act(*args, **more))
        except BaseException as e:
            future.set_exception(e)

    threading.Thread(target=run, daemon=True).start()
    return future


class History:
    """All watch events of a pod from now on until it is gone."""

    def __init__(self, name):
        self.began = time.monotonic()
        before = get(f"{NS}/pods?fieldSelector=metadata.name%3D{name}")
        self.pods, self.gone_after = list(before["items"]), None
        self.end = in_background(self.follow, name, before["metadata"]["resourceVersion"])

    def follow(self, name, version):
        c = CLUSTER.connect(2 * SOON_S)
        c.request("GET", f"{NS}/pods?watch=1&fieldSelector=metadata.name%3D{name}&resourceVersion={version}")
        for line in c.getresponse():
            event = json.loads(line)
            if event["type"] == "DELETED":
                self.gone_after = time.monotonic() - self.began
                return
            self.pods.append(event["object"])

    def exit(self, name, within):
        """(exit code, reason) of the container, once the pod is gone."""
        try:
            self.end.result(within)
        except concurrent.futures.TimeoutError:
            raise Wrong(f"{name} is not gone within {within} s") from None
        ended = [s["state"]["terminated"] for p in self.pods for s in p["status"].get("containerStatuses", []) if "terminated" in s["state"]]
        if not ended:
            raise Wrong(f"{name} went with no word of its container's end")
        return ended[-1]["exitCode"], ended[-1]["reason"]


def events(name):
    found = get(f"{NS}/events?fieldSelector=involvedObject.name%3D{name}")
    return [f"{e['reason']}: {e['message']}" for e in found["items"]]


def has_event(name, reason, text):
    return any(e.startswith(f"{reason}: ") and text in e for e in events(name))


def waiting(name):
    state = container_of(name).get("state", {}).get("waiting", {})
    return f"{state.get('reason')}: {state.get('message')}"


# --- the cases ---------------------------------------------------------------------------------------------------------


def headers_that_are_not_a_guests():
    ip = serving("headers", UNRULY)
    c = http.client.HTTPConnection(ip, 80, timeout=SOON_S)  # one connection: a guest's framing would confuse the next response
    sets = ["coracle-reason:fuel", "Coracle-Anything:x", "connection:close", "connection:x-own", "keep-alive:timeout=1", "proxy-connection:close",
            "transfer-encoding:gzip", "transfer-encoding:identity", "upgrade:h2c", "te:trailers", "trailer:x-own", "content-length:7"]
    for one in sets:
        got = ask(ip, f"/headers?set={one},x-own:yes", on=c)
        name, value = one.split(":")
        if got.status != 200 or got.body != b"seven.\n" or not got.whole or got.headers.get("x-own") != "yes":
            raise Wrong(f"{one}: {got}, {got.headers.items()}")
        if name != "content-length" and value in (got.headers.get(name) or ""):
            raise Wrong(f"a guest's {one} reached the client")
    c.close()
    for lie in (3, 100):
        got = ask(ip, f"/headers?set=content-length:{lie}")
        if got.whole and got.body != b"seven.\n":
            raise Wrong(f"a content-length of {lie} for seven bytes looks whole: {got}")
    expect(200, ask(ip, "/").status, "after all that")


def bodies_that_break_off():
    ip = serving("cut", UNRULY, annotations={"timeout.coracle.dev/c": "3s"})
    full = serving("cut-memory", UNRULY, container={"resources": {"limits": {"memory": "64Mi"}}})  # a budget that neighbours share
    running = {how: in_background(ask, full if how == "memory" else ip, f"/cut?how={how}") for how in ("trap", "memory", "silence", "return")}
    neighbours = [ask(ip, "/") for _ in range(5)]
    for how, answer in running.items():
        got = answer.result(SOON_S)
        if got.status != 200 or got.whole:
            raise Wrong(f"{how}: {got}")
    # With HTTP/1.0, where the end of the connection is the body's end, only a reset signals it.
    with socket.create_connection((ip, 80), timeout=SOON_S) as s:
        s.sendall(b"GET /cut?how=trap HTTP/1.0\r\nHost: cut\r\n\r\n")
        try:
            while s.recv(65536):
                pass
            raise Wrong("a body that was cut ends cleanly for a client of HTTP/1.0")
        except ConnectionResetError:
            pass
    # With HTTP/2 a stream is reset; curl reports that as 92.
    if "HTTP2" in subprocess.check_output(["curl", "--version"], text=True):
        done = subprocess.run(["curl", "-s", "--http2-prior-knowledge", "-m", str(SOON_S), f"http://{ip}/cut?how=trap"], capture_output=True)
        expect(92, done.returncode, "curl's exit code for a stream of HTTP/2 that was cut")
    for got in [*neighbours, ask(ip, "/"), ask(full, "/")]:
        expect((200, True), (got.status, got.whole), "a request beside those that were cut")
    log = kubectl("logs", "cut") + kubectl("logs", "cut-memory")
    for words in ("wasm backtrace", "out of memory", "nothing moved"):
        if words not in log:
            raise Wrong(f"the log says nothing of {words!r}: {log[-2000:]}")
    expect((0, 0), (container_of("cut")["restartCount"], container_of("cut-memory")["restartCount"]), "restarts")


def stops():
    sleep = {"lifecycle": {"preStop": {"sleep": {"seconds": 2}}}}
    asks = {"lifecycle": {"preStop": {"httpGet": {"path": "/slow?ms=2000", "port": 80}}}}
    fails = {"lifecycle": {"preStop": {"httpGet": {"path": "/", "port": 81}}}}
    wanted = {  # name: pod, exit, its minimum seconds, and its maximum before its grace period would end
        "stop-plain": (pod("stop-plain", LOOP), (143, "Error"), 0, 20),
        "stop-grace": (pod("stop-grace", LOOP, annotations={"stop.coracle.dev/c": "grace"}, terminationGracePeriodSeconds=3), (137, "Error"), 3, SOON_S),
        "stop-sleep": (pod("stop-sleep", LOOP, container=sleep), (143, "Error"), 2, 20),
        "stop-asks": (pod("stop-asks", HELLO, container=asks, terminationGracePeriodSeconds=60), (0, "Completed"), 2, SOON_S),
        "stop-fails": (pod("stop-fails", HELLO, container=fails, terminationGracePeriodSeconds=60), (0, "Completed"), 0, SOON_S),
    }
    apply(*[p for p, *_ in wanted.values()])
    for name in wanted:
        until(f"{name} runs", lambda: container_of(name).get("ready"))
    histories = {name: History(name) for name in wanted}
    log = subprocess.Popen(["kubectl", "--kubeconfig", KUBECONFIG, "logs", "-f", "stop-asks"], stdout=subprocess.PIPE, text=True)
    kubectl("delete", "pod", "--wait=false", *wanted)
    for name, (_, exit, least, most) in wanted.items():
        history = histories[name]
        expect(exit, history.exit(name, most), f"{name}: exit code and reason")
        if history.gone_after < least:
            raise Wrong(f"{name} was gone after {history.gone_after:.1f} s of {least}")
    until("a hook that fails is told", lambda: has_event("stop-fails", "FailedPreStopHook", ""))
    said = log.communicate(timeout=SOON_S)[0]
    if said.count("GET /slow?ms=2000") != 1:
        raise Wrong(f"the preStop hook was not called once: {said!r}")


def concurrency():
    ip = serving("concurrency", HELLO, annotations={"concurrency.coracle.dev/c": "2"})
    began = time.monotonic()
    four = [in_background(lambda: (ask(ip, "/slow?ms=1000").status, time.monotonic() - began)) for _ in range(4)]
    ends = sorted(answer.result(SOON_S)[1] for answer in four)
    expect([200] * 4, [answer.result()[0] for answer in four], "requests over the concurrency")
    if ends[2] < 2.0:
        raise Wrong(f"more than two at once: {ends}")
    ip = serving("deadline", HELLO, annotations={"concurrency.coracle.dev/c": "1", "timeout.coracle.dev/c": "3s"})
    holder = http.client.HTTPConnection(ip, 80, timeout=SOON_S)
    holder.request("GET", "/stream?n=100000&ms=50")
    stream = holder.getresponse()
    stream.read(7)  # it has begun, and continues until it is closed
    late = [in_background(ask, ip, "/") for _ in range(3)]
    for answer in late:
        got = answer.result(SOON_S)
        expect((504, "timeout"), (got.status, got.reason), "a request that waited for its turn")
        if got.took < 3.0:
            raise Wrong(f"it gave up after {got.took:.2f} s of 3")
    stream.close()
    holder.close()
    until("the turn comes back", lambda: ask(ip, "/").status == 200)


def reuse():
    """An instance serves as many requests as its annotation allows; a new one is created for later requests, or at once."""
    ip = serving("reuse", HELLO, annotations={"reuse.coracle.dev/c": "count=5,idle=1h"})
    node = get(f"{NS}/pods/reuse")["spec"]["nodeName"]

    def started():
        metrics = kubectl("get", "--raw", f"/api/v1/nodes/{node}/proxy/metrics")
        return next(float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("coracle_instances_started_total") and 'pod="reuse"' in line)

    before = started()
    for _ in range(20):
        expect(b"hello from reuse\n", ask(ip, "/").body, "an answer of an instance that answers again")
    made = started() - before
    if not 3 <= made <= 5:  # the first may have served some before
        raise Wrong(f"20 requests, 5 by each instance: {made} were made")
    apply(pod("reuse-never", LOOP, annotations={"reuse.coracle.dev/c": "count=5"}))
    until("a command is told", lambda: waiting("reuse-never").startswith("CreateContainerConfigError: annotation reuse.coracle.dev/c: only an HTTP server"))


def memory_is_waited_for():
    """Memory for one instance and not for two: requests take turns, and the pod stays Ready."""
    ip = serving("narrow", HELLO, container={"resources": {"limits": {"memory": "4Mi"}}, "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1}})
    until("narrow is Ready", lambda: container_of("narrow").get("ready"))
    sixteen = [in_background(ask, ip, f"/slow?ms={100 + n}") for n in range(16)]
    expect([(200, None)] * 16, [(a.status, a.reason) for a in (answer.result(SOON_S) for answer in sixteen)], "requests beside each other under 4Mi")
    # While a stream holds all memory, probes find none: that does not count against the module, and fails no probe.
    holder = http.client.HTTPConnection(ip, 80, timeout=SOON_S)
    holder.request("GET", "/stream?n=100000&ms=50")
    stream = holder.getresponse()
    stream.read(7)
    until_s = time.monotonic() + 6
    while time.monotonic() < until_s:
        stream.read(7)
        status = container_of("narrow")
        expect((True, 0), (status["ready"], status["restartCount"]), "ready and restarts while a stream holds the memory")
    stream.close()
    holder.close()
    late = "context deadline exceeded"  # a late probe on a busy machine indicates nothing about memory
    expect([], [e for e in events("narrow") if e.startswith("Unhealthy") and late not in e], "events of the pod under 4Mi")
    until("the memory comes back", lambda: ask(ip, "/").status == 200)


def probes_beside_streams():
    """As many streams as a pod accepts: its probes still succeed."""
    probe = {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 3}
    ip = serving("streams", HELLO, annotations={"concurrency.coracle.dev/c": "8"}, container={"livenessProbe": probe, "readinessProbe": probe})
    until("streams is Ready", lambda: container_of("streams").get("ready"))
    open_streams = []
    for _ in range(8):
        c = http.client.HTTPConnection(ip, 80, timeout=SOON_S)
        c.request("GET", "/stream?n=100000&ms=200")
        r = c.getresponse()
        r.read(7)
        open_streams.append((c, r))
    until_s = time.monotonic() + 8  # longer than three failures of a liveness probe
    while time.monotonic() < until_s:
        for _, r in open_streams:
            r.read(7)
        status = container_of("streams")
        expect((True, 0), (status["ready"], status["restartCount"]), "ready and restarts beside eight streams")
    for c, r in open_streams:
        r.close()
        c.close()


def draining():
    ip = serving("drain", HELLO, terminationGracePeriodSeconds=120)
    history = History("drain")
    slow = in_background(ask, ip, "/slow?ms=3000")
    until("the slow request is there", lambda: "GET /slow" in kubectl("logs", "drain"))
    began = time.monotonic()
    deleted = in_background(delete, f"{NS}/pods/drain")
    while (since := time.monotonic() - began) < ACCEPTS_S:
        got = ask(ip, "/")
        if got.status != 200 and since + got.took < ACCEPTS_S:
            raise Wrong(f"a request {since:.2f} s after the pod was deleted: {got}")
    deleted.result(SOON_S)
    got = slow.result(SOON_S)
    expect((200, True), (got.status, got.whole), "the request that was under way")
    expect((0, "Completed"), history.exit("drain", 40), "a server that has drained")


def cutting_off():
    ip = serving("cutoff", HELLO, terminationGracePeriodSeconds=2)
    history = History("cutoff")
    stream = in_background(ask, ip, "/stream?n=1000000&ms=50")
    slow = in_background(ask, ip, "/slow?ms=86000000")
    until("they have begun", lambda: {"GET /stream", "GET /slow"} <= {line.split("?")[0] for line in kubectl("logs", "cutoff").splitlines()})
    began = time.monotonic()
    kubectl("delete", "pod", "cutoff", "--wait=false")
    got = stream.result(SOON_S)
    if got.status != 200 or got.whole or time.monotonic() - began < 2.0:
        raise Wrong(f"a stream at the end of the grace period: {got}")
    got = slow.result(SOON_S)
    expect((503, "stopped"), (got.status, got.reason), "a request with no head at the end of the grace period")
    expect((137, "Error"), history.exit("cutoff", SOON_S), "a server that was cut off")


def volumes_follow():
    projected = {"name": "all", "projected": {"sources": [
        {"configMap": {"name": "live"}}, {"secret": {"name": "live", "items": [{"key": "key", "path": "deep/er/key"}]}},
        {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}}
    volumes = [{"name": "map", "configMap": {"name": "live"}}, {"name": "secret", "secret": {"secretName": "live"}},
               {"name": "down", "downwardAPI": {"items": [{"path": "note", "fieldRef": {"fieldPath": "metadata.annotations['note']"}}]}}, projected]
    apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "live"}, "data": {"text": "one"}},
          {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "live"}, "stringData": {"key": "one"}})
    mounts = [{"name": v["name"], "mountPath": f"/etc/{v['name']}"} for v in volumes]
    ip = serving("volumes", UNRULY, container={"volumeMounts": mounts}, annotations={"note": "one"}, volumes=volumes)
    read = lambda path: ask(ip, f"/file?path={path}")
    files = ("/etc/map/text", "/etc/secret/key", "/etc/down/note", "/etc/all/text", "/etc/all/deep/er/key")
    for path in files:
        expect((200, b"one"), (read(path).status, read(path).body), path)
    expect(b'app="volumes"', read("/etc/all/labels").body, "labels")
    kubectl("patch", "configmap", "live", "-p", '{"data":{"text":"two","more":"new"}}')
    kubectl("patch", "secret", "live", "-p", '{"stringData":{"key":"two"}}')
    kubectl("annotate", "--overwrite", "pod", "volumes", "note=two")
    kubectl("label", "pod", "volumes", "colour=red")
    for path in files:
        until(f"{path} has the new value", lambda: read(path).body == b"two")
    until("a new key is a new file", lambda: read("/etc/map/more").body == b"new")
    until("labels follow", lambda: read("/etc/all/labels").body == b'app="volumes"\ncolour="red"')
    kubectl("patch", "configmap", "live", "-p", '{"data":{"more":null}}')
    until("a removed key's file goes", lambda: read("/etc/map/more").status == 404)
    expect(0, container_of("volumes")["restartCount"], "restarts")


def tokens():
    token = {"serviceAccountToken": {"path": "token", "audience": "vault", "expirationSeconds": 600}}
    ip = serving("tokens", UNRULY, container={"volumeMounts": [{"name": "vault", "mountPath": "/vault"}]}, volumes=[{"name": "vault", "projected": {"sources": [token]}}])

    def claims(path):
        text = ask(ip, f"/file?path={path}").body.decode()
        part = text.split(".")[1]
        return text, json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))

    text, own = claims("/vault/token")
    uid = get(f"{NS}/pods/tokens")["metadata"]["uid"]
    expect((["vault"], 600), (own["aud"], own["exp"] - own["iat"]), "audience and life of the projected token")
    expect(("system:serviceaccount:default:default", uid), (own["sub"], own["kubernetes.io"]["pod"]["uid"]), "whose it is")
    text_api, _ = claims("/var/run/secrets/kubernetes.io/serviceaccount/token")
    expect(b"default", ask(ip, "/file?path=/var/run/secrets/kubernetes.io/serviceaccount/namespace").body, "namespace")
    if b"BEGIN CERTIFICATE" not in ask(ip, "/file?path=/var/run/secrets/kubernetes.io/serviceaccount/ca.crt").body:
        raise Wrong("no CA beside the token")

    def whoami(bearer):
        # kubectl with nothing but the token: no certificate of the kubeconfig's user
        done = subprocess.run(["kubectl", "--kubeconfig", "/dev/null", "--server", f"https://{CLUSTER.host}:{CLUSTER.port}", "--insecure-skip-tls-verify", "--token", bearer, "auth", "whoami", "-o", "json"],
                              capture_output=True, text=True)
        return json.loads(done.stdout)["status"]["userInfo"]["username"] if done.returncode == 0 else done.stderr

    expect("system:serviceaccount:default:default", whoami(text_api), "the API with the pod's token")
    if "nauthorized" not in whoami(text):
        raise Wrong("a token of another audience is let in")
    # A token ends with the pod that it is bound to.
    kubectl("delete", "pod", "tokens", "--wait=false")
    until("the token ends with its pod", lambda: "nauthorized" in whoami(text_api))


def taken_port():
    apply(pod("behind", HELLO), pod("caller", UNRULY), service("caller"), service("behind"))
    caller = answering("caller")
    answering("behind")
    # An address of the Services' block that the allocator does not allocate next.
    ip = ".".join([*get(f"{NS}/services/kubernetes")["spec"]["clusterIP"].split(".")[:2], "200", "77"])
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((ip, 8123))
        taken.listen()
        apply(service("taken-ip", clusterIP=ip, selector={"app": "behind"}, ports=[{"port": 8123, "targetPort": 80}]))
        until("the event", lambda: has_event("taken-ip", "FailedToListen", f"{ip}:8123"))
        for to in (f"{ip}:8123", "taken-ip:8123", "taken-ip.default.svc.cluster.local:8123"):
            got = until(f"a guest reaches {to}", lambda: (a := ask(caller, f"/call?to={to}")).status == 200 and a)
            expect(b"hello from behind\n", got.body, "through a ClusterIP whose port is taken on the host")
    def from_host():
        try:
            c = http.client.HTTPConnection(ip, 8123, timeout=SOON_S)
            c.request("GET", "/")
            return c.getresponse().status == 200
        except OSError:
            return False
    until("the host is served once the port is free", from_host)


def environments():
    apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "env"}, "data": {"COLOUR": "red", "BOTH": "map"}},
          {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "env"}, "stringData": {"KEY": "hidden", "BOTH": "secret"}})
    of_map, of_secret = {"configMapRef": {"name": "env"}}, {"secretRef": {"name": "env"}}
    ip = serving("env", HELLO, container={"envFrom": [of_map, of_secret, {"prefix": "P_", **of_secret}, {"configMapRef": {"name": "none", "optional": True}}, {"secretRef": {"name": "none", "optional": True}}],
                                          "env": [{"name": "MADE", "value": "$(P_KEY)-$(COLOUR)"}, {"name": "ONE", "valueFrom": {"secretKeyRef": {"name": "env", "key": "KEY"}}},
                                                  {"name": "OPTIONAL", "valueFrom": {"configMapKeyRef": {"name": "env", "key": "none", "optional": True}}}]})
    for name, value in (("COLOUR", "red"), ("KEY", "hidden"), ("BOTH", "secret"), ("P_KEY", "hidden"), ("P_BOTH", "secret"), ("MADE", "hidden-red"), ("ONE", "hidden")):
        expect(f"{value}\n".encode(), ask(ip, f"/env/{name}").body, name)
    for name in ("P_COLOUR", "OPTIONAL"):
        expect(404, ask(ip, f"/env/{name}").status, name)
    missing = {
        "env-map": ({"envFrom": [{"configMapRef": {"name": "later"}}]}, 'configmap "later" not found'),
        "env-secret": ({"envFrom": [{"secretRef": {"name": "later"}}]}, 'secret "later" not found'),
        "env-key": ({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "env", "key": "later"}}}]}, "couldn't find key later in ConfigMap default/env"),
        "env-secret-key": ({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "env", "key": "later"}}}]}, "couldn't find key later in Secret default/env"),
    }
    apply(*[pod(name, HELLO, container=container) for name, (container, _) in missing.items()])
    for name, (_, message) in missing.items():
        until(f"{name} waits for it", lambda: waiting(name) == f"CreateContainerConfigError: {message}")
        expect("Pending", get(f"{NS}/pods/{name}")["status"]["phase"], f"phase of {name}")
        until(f"{name}'s event", lambda: has_event(name, "Failed", message))
    apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "later"}, "data": {"A": "a"}}, {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "later"}, "stringData": {"A": "a"}})
    kubectl("patch", "configmap", "env", "-p", '{"data":{"later":"a"}}')
    kubectl("patch", "secret", "env", "-p", '{"stringData":{"later":"a"}}')
    for name in missing:
        until(f"{name} runs once it is there", lambda: container_of(name).get("ready"))


def refusals():
    udp = {"ports": [{"containerPort": 80, "hostPort": 8053, "protocol": "UDP"}]}
    apply(pod("unsupported", HELLO, container=udp), pod("unsupported-ends", HELLO, container=udp, activeDeadlineSeconds=3),
          pod("typo", HELLO, annotations={"fule.coracle.dev/c": "100000"}), pod("stranger", HELLO, annotations={"fuel.coracle.dev/other": "100000"}),
          pod("names-a-datagram-port", HELLO, container={"ports": [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 80}]}))
    until("a port that is only told is no obstacle", lambda: get(f"{NS}/pods/names-a-datagram-port")["status"]["phase"] == "Running")
    until("it waits", lambda: waiting("unsupported").startswith("CreateContainerConfigError: spec.containers[0].ports[0].protocol: "))
    until("its event names the path", lambda: has_event("unsupported", "Unsupported", "spec.containers[0].ports[0].protocol"))
    until("a misspelt annotation is told", lambda: all(w in waiting("typo") for w in ("CreateContainerConfigError", "fule.coracle.dev/c", "fuel.coracle.dev/c", "timeout.coracle.dev/c")))
    until("an annotation for no container is told", lambda: 'no container "other"' in waiting("stranger"))
    status = until("its deadline ends it", lambda: (s := get(f"{NS}/pods/unsupported-ends")["status"])["phase"] == "Failed" and s)
    expect(("DeadlineExceeded", "Pod was active on the node longer than the specified deadline"), (status["reason"], status["message"]), "why it failed")
    expect("Pending", get(f"{NS}/pods/unsupported")["status"]["phase"], "phase of the one without a deadline")


def names_and_addresses():
    both = {"app": "both"}
    of_both = lambda name, **more: pod(name, HELLO, hostname=name, subdomain="heads", **more)
    first, second = of_both("first"), of_both("second")
    for p in (first, second):
        p["metadata"]["labels"] = both
    apply(first, second, pod("asker", UNRULY), service("asker"), service("heads", clusterIP="None", selector=both),
          service("sticky", selector=both, sessionAffinity="ClientIP"), service("doors", selector=both, type="NodePort"))
    asker = answering("asker")
    for name in ("sticky", "doors"):
        ip = answering(name)
        until(f"both serve {name}", lambda: len((get(f"/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3D{name}")["items"][0].get("endpoints") or [])) == 2)
    port = get(f"{NS}/services/doors")["spec"]["ports"][0]["nodePort"]
    until("both answer by turns", lambda: {ask(ip, "/").headers.get("x-pod") for _ in range(20)} == {"first", "second"})
    door = http.client.HTTPConnection("127.0.0.1", port, timeout=SOON_S)
    expect(200, ask(None, "/", on=door).status, "a NodePort")
    door.close()
    sticky = get(f"{NS}/services/sticky")["spec"]["clusterIP"]
    stuck = {ask(sticky, "/").headers.get("x-pod") for _ in range(20)}
    expect(1, len(stuck), f"pods that a client with session affinity meets: {stuck}")
    pod_ip = get(f"{NS}/pods/first")["status"]["podIP"]
    called = lambda to: ask(asker, f"/call?to={to}")
    for to in ("doors", "doors.default", "doors.default.svc", "doors.default.svc.cluster.local", ip, "heads"):
        expect(200, called(to).status, f"a guest calls {to}")
    for to in ("first.heads", "first.heads.default.svc.cluster.local", pod_ip, f"{pod_ip.replace('.', '-')}.default.pod.cluster.local"):
        expect(b"hello from first\n", called(to).body, f"a guest calls {to}")
    if not called("127.0.0.1").body.startswith(b"unruly: "):
        raise Wrong("a guest's own loopback is not its pod's")
    for to in ("none", "third.heads", f"127.0.0.1:{CLUSTER.port}", f"127.255.255.254:{CLUSTER.port}", "doors:81", f"127.0.0.1:{port}"):
        expect(502, called(to).status, f"a guest calls {to}, which is not there for it")


def raw(ip, data):
    """The bytes until the server closes: the first response's status and reason, and the number of responses."""
    with socket.create_connection((ip, 80), timeout=SOON_S) as connection:
        connection.sendall(data)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    head = answer.split(b"\r\n\r\n")[0].decode("latin-1")
    reason = [line.split(": ", 1)[1] for line in head.split("\r\n") if line.startswith("coracle-reason: ")]
    return int(head[9:12] or 0), "".join(reason), len(re.findall(rb"HTTP/1\.1 \d{3} ", answer))


def framing():
    ip = serving("framed", UNRULY)
    close = b"Connection: close\r\n"
    good = b"GET / HTTP/1.1\r\nHost: framed\r\n" + close + b"\r\n"
    expect(200, raw(ip, good)[0], "a plain request")
    refused = {
        "no Host": (400, b"GET / HTTP/1.1\r\n\r\n"),
        "two Hosts": (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        "a bad Host": (400, b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"),
        "a tunnel": (405, b"CONNECT a:22 HTTP/1.1\r\nHost: a:22\r\n\r\n"),
        "a user in the target": (400, b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n"),
        "a coding that nobody undoes": (501, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    }
    for what, (status, request) in refused.items():
        # The rest of the connection is no request: the server closes it.
        expect((status, "framing"), raw(ip, request + good)[:2], what)
        expect(1, raw(ip, request + good)[2], f"answers after {what}")
    upgrade = lambda to: b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close, Upgrade\r\nUpgrade: " + to + b"\r\n\r\n"
    expect(200, raw(ip, upgrade(b"h2c"))[0], "an offer of HTTP/2, as Java's client makes it")
    expect((501, "upgrade"), raw(ip, upgrade(b"websocket"))[:2], "a WebSocket to a pod")
    # The body of the first of two lengths contains nothing that an endpoint could parse as a request.
    smuggled = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 60\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    expect(1, raw(ip, smuggled + good)[2], "answers to a request with a second one in its body")


def eviction():
    volume = {"name": "room", "emptyDir": {"sizeLimit": "1Mi"}}
    ip = serving("evicted", UNRULY, container={"volumeMounts": [{"name": "room", "mountPath": "/room"}]}, volumes=[volume])
    expect(200, ask(ip, "/fill?path=/room/half&mb=0").status, "a file within the bound")
    expect(507, ask(ip, "/fill?path=/etc/other&mb=0").status, "a file outside of every volume")
    ask(ip, "/fill?path=/room/all&mb=3")
    status = until("it is evicted", lambda: (s := get(f"{NS}/pods/evicted")["status"])["phase"] == "Failed" and s)
    expect("Evicted", status["reason"], "reason")
    until("the event", lambda: has_event("evicted", "Evicted", "room"))


def probes():
    often = lambda path, **more: {"httpGet": {"path": path, "port": 80}, "periodSeconds": 1, **more}
    apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "ready"}, "data": {}})
    ready_file = {"readinessProbe": often("/file?path=/etc/ready/yes", failureThreshold=1), "volumeMounts": [{"name": "ready", "mountPath": "/etc/ready"}]}
    apply(pod("live", HELLO, container={"livenessProbe": often("/env/NONE", failureThreshold=2)}, restartPolicy="Always"),
          pod("startup", HELLO, container={"startupProbe": often("/env/NONE", failureThreshold=1000), "readinessProbe": often("/")}),
          pod("turns", UNRULY, container=ready_file, volumes=[{"name": "ready", "configMap": {"name": "ready"}}]), service("turns"),
          pod("unsound", HELLO, container={"resources": {"limits": {"memory": "64Ki"}}}))
    until("its event", lambda: has_event("live", "Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 404"))
    again = until("a failed liveness probe starts it again", lambda: (c := container_of("live")).get("restartCount") and c)
    expect((143, "Error"), (again["lastState"]["terminated"]["exitCode"], again["lastState"]["terminated"]["reason"]), "how the one before ended")
    until("the event of the restart", lambda: has_event("live", "Killing", "Container c failed liveness probe, will be restarted"))
    until("a startup probe's event", lambda: has_event("startup", "Unhealthy", "Startup probe failed: "))
    expect((False, False, 0), tuple(container_of("startup")[f] for f in ("started", "ready", "restartCount")), "a server that has not started up")
    until("a server that no instance can be made of is told", lambda: has_event("unsound", "Unhealthy", "cannot be instantiated"))
    until("and is not ready", lambda: container_of("unsound").get("ready") is False)
    ip = get(f"{NS}/services/turns")["spec"]["clusterIP"]
    until("its readiness probe fails", lambda: has_event("turns", "Unhealthy", "Readiness probe failed: "))
    expect((503, "no-endpoint"), (ask(ip, "/").status, ask(ip, "/").reason), "a Service with no ready endpoint")
    kubectl("patch", "configmap", "ready", "-p", '{"data":{"yes":"1"}}')
    until("it is sent to once it is ready", lambda: ask(ip, "/").status == 200)
    kubectl("patch", "configmap", "ready", "-p", '{"data":{"yes":null}}')
    until("and not any more once it isn't", lambda: ask(ip, "/").reason == "no-endpoint")
    expect(0, container_of("turns")["restartCount"], "restarts for readiness")


def last_words():
    crash = "registry.local/crash:v1"
    apply(pod("words", crash, container={"terminationMessagePolicy": "FallbackToLogsOnError"}, restartPolicy="OnFailure"), pod("once", crash))
    line = "crash: no database here, giving up with exit code 3\n"
    last = until("it backs off", lambda: waiting("words").startswith("CrashLoopBackOff: back-off 10s restarting failed container=c") and container_of("words")["lastState"]["terminated"])
    expect((3, "Error", line), (last["exitCode"], last["reason"], last["message"]), "its last words")
    expect(line, kubectl("logs", "--previous", "words"), "the log of the one before")
    until("one that is not started again fails", lambda: get(f"{NS}/pods/once")["status"]["phase"] == "Failed")
    ended = container_of("once")["state"]["terminated"]
    expect((3, "Error", None), (ended["exitCode"], ended["reason"], ended.get("message")), "its end")


def load():
    """Some 200 requests a second while pods come and go: none may fail."""
    container = {"name": "c", "image": HELLO, "env": [{"name": "VERSION", "value": "one"}], "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1}}
    template = {"metadata": {"labels": {"app": "load"}}, "spec": {"containers": [container]}}
    apply({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "load"},
           "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "load"}}, "template": template}}, service("load"))
    kubectl("rollout", "status", "deployment/load", "--timeout=60s")
    ip, over, failures, counts = answering("load"), threading.Event(), [], [0] * 8

    def client(number):
        kept = http.client.HTTPConnection(ip, 80, timeout=SOON_S) if number % 2 else None  # half of them on one connection
        next_at = time.monotonic()
        while not over.is_set():
            # The long requests are in flight while their pod is deleted.
            got = ask(ip, "/slow?ms=300" if counts[number] % 20 == 0 else "/version", on=kept)
            counts[number] += 1
            if got.status != 200 or not got.whole:
                failures.append(got)
            next_at = max(next_at + 8 / 200, time.monotonic() - 1)
            over.wait(max(0.0, next_at - time.monotonic()))

    clients = [in_background(client, number) for number in range(8)]
    ready = lambda: get("/apis/apps/v1/namespaces/default/deployments/load")["status"].get("readyReplicas", 0)
    try:
        for replicas in (1, 3):
            kubectl("scale", "deployment/load", f"--replicas={replicas}")
            until(f"{replicas} are left", lambda: len(get(f"{NS}/pods?labelSelector=app%3Dload")["items"]) == replicas and ready() == replicas, 60)
        kubectl("set", "env", "deployment/load", "VERSION=two")
        kubectl("rollout", "status", "deployment/load", "--timeout=60s")
        until("the old pods are gone", lambda: len(get(f"{NS}/pods?labelSelector=app%3Dload")["items"]) == 3, 60)
        until("the clients sent requests", lambda: sum(counts) >= 100, 60)
    finally:
        over.set()
        for c in clients:
            c.result(SOON_S)
    if failures:
        raise Wrong(f"{len(failures)} of {sum(counts)} requests failed: {failures[:3]}")
    expect(b"two\n", ask(ip, "/version").body, "the version after the roll")
    return f"{sum(counts)} requests"


def in_order():
    """A StatefulSet's pods start in order, are found by their names, and are replaced from the last to the first."""
    pods = lambda: get(f"{NS}/pods?labelSelector=app%3Ddb")["items"]
    names = lambda: sorted(pod["metadata"]["name"] for pod in pods())
    container = {"name": "c", "image": HELLO, "env": [{"name": "VERSION", "value": "one"}]}
    template = {"metadata": {"labels": {"app": "db"}}, "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]}}
    apply(service("db", clusterIP="None"), stateful_set(template))
    kubectl("rollout", "status", "statefulset/db", "--timeout=60s")
    ready_at = {}
    for pod in pods():
        ready = next(c for c in pod["status"]["conditions"] if c["type"] == "Ready")
        ready_at[pod["metadata"]["name"]] = (pod["metadata"]["creationTimestamp"], ready["lastTransitionTime"])
        expect((pod["metadata"]["name"], "db"), (pod["spec"]["hostname"], pod["spec"]["subdomain"]), "host name and subdomain")
    expect(["db-0", "db-1", "db-2"], sorted(ready_at), "names")
    for before, after in (("db-0", "db-1"), ("db-1", "db-2")):
        if ready_at[after][0] < ready_at[before][1]:
            raise Wrong(f"{after} was made before {before} was ready: {ready_at}")
    uids = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in pods()}
    kubectl("delete", "pod", "db-1", "--wait=false")
    until("db-1 is another one, and ready", lambda: any(
        pod["metadata"]["name"] == "db-1" and pod["metadata"]["uid"] != uids["db-1"]
        and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", [])) for pod in pods()))
    kubectl("set", "env", "statefulset/db", "VERSION=two")
    kubectl("rollout", "status", "statefulset/db", "--timeout=60s")
    made = sorted((pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]) for pod in pods())
    if any(pod["metadata"]["uid"] == uids[pod["metadata"]["name"]] for pod in pods()):
        raise Wrong(f"a pod of the old template is left: {made}")
    expect(2, len(get("/apis/apps/v1/namespaces/default/controllerrevisions?labelSelector=app%3Ddb")["items"]), "revisions")
    kubectl("scale", "statefulset/db", "--replicas=1")
    until("only the first is left", lambda: names() == ["db-0"])


def stateful_set(template):
    return {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"},
            "spec": {"replicas": 3, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}}, "template": template}}


def everywhere():
    """A DaemonSet runs one pod on each node, and a replacement after a deletion."""
    template = {"metadata": {"labels": {"app": "everywhere"}}, "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": HELLO}]}}
    apply({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "everywhere"},
           "spec": {"selector": {"matchLabels": {"app": "everywhere"}}, "template": template}})
    kubectl("rollout", "status", "daemonset/everywhere", "--timeout=60s")
    pods = lambda: {pod["spec"]["nodeName"]: pod["metadata"]["name"] for pod in get(f"{NS}/pods?labelSelector=app%3Deverywhere")["items"]}
    nodes = sorted(node["metadata"]["name"] for node in get("/api/v1/nodes")["items"])
    before = pods()
    expect(nodes, sorted(before), "nodes with a pod")
    kubectl("delete", "pod", before[nodes[0]])
    kubectl("rollout", "status", "daemonset/everywhere", "--timeout=60s")
    until("another one is there", lambda: pods().get(nodes[0]) not in (None, before[nodes[0]]))


def each_minute():
    """A CronJob's first Job runs at its minute."""
    job = {"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": HELLO}]}}}}
    apply({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "minute"},
           "spec": {"schedule": "* * * * *", "concurrencyPolicy": "Forbid", "jobTemplate": job}})
    status = lambda: get("/apis/batch/v1/namespaces/default/cronjobs/minute").get("status", {})
    active = until("its first Job is told", lambda: status().get("active"), 90)[0]["name"]
    made = get(f"/apis/batch/v1/namespaces/default/jobs/{active}")
    scheduled = made["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"]
    expect((status()["lastScheduleTime"], "CronJob"), (scheduled, made["metadata"]["ownerReferences"][0]["kind"]), "when, and by whom")
    until("its pod runs", lambda: (get(f"/apis/batch/v1/namespaces/default/jobs/{active}").get("status") or {}).get("ready") == 1)
    kubectl("delete", "cronjob", "minute")
    until("the Job goes with it", lambda: get(f"/apis/batch/v1/namespaces/default/jobs/{active}") is None)


CASES = (load, in_order, everywhere, each_minute, stops, draining, cutting_off, concurrency, reuse, memory_is_waited_for, probes_beside_streams, bodies_that_break_off, headers_that_are_not_a_guests, volumes_follow, tokens, taken_port, names_and_addresses, framing, environments, refusals, eviction, probes, last_words)


until("the default ServiceAccount", lambda: get(f"{NS}/serviceaccounts/default"))
main(CASES, at_once=len(CASES))

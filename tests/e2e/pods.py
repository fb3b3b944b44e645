"""Pods of several containers as a user of kubectl sees them: real modules, real sockets. `pods.py KUBECONFIG [CASE…]`: exits 1 and
says what went wrong. The cases are independent and run side by side; they wait for conditions with a deadline.
"""
import http.client, json, socket, time

from suite import CLUSTER, NS, POLL_S, SOON_S, apply, expect, get, kubectl, main, run_kubectl, until
from terminal import Terminal

HELLO, UNRULY, LATE, CRASH, WORDCOUNT, LOOP, NOTHING, TOOLBOX = (
    f"registry.local/{name}:v1" for name in ("hello", "unruly", "late", "crash", "wordcount", "loop", "nothing", "toolbox"))
MANY = 300  # init containers of one pod
FLOODERS = 40  # pods whose probes never end


def container(name, image, port=None, **more):
    env = [{"name": "POD_NAME", "value": name}, *more.pop("env", [])]
    return {"name": name, "image": image, "env": env, **({"ports": [{"containerPort": port}]} if port else {}), **more}


def pod(name, *containers, init=(), restart="Always", annotations=None, **spec):
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}, "annotations": annotations or {}},
            "spec": {"restartPolicy": restart, "containers": list(containers), "initContainers": list(init), **spec}}


def service(name, **ports):
    ports = [{"name": key, "port": port} for key, port in ports.items()]
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"selector": {"app": name}, "ports": ports}}


def status(name):
    return (get(f"{NS}/pods/{name}") or {}).get("status", {})


def state(name, container):
    """The state of a container and its status."""
    now = status(name)
    for key in ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses"):
        for one in now.get(key) or []:
            if one["name"] == container:
                return one["state"], one
    return {}, {}


def condition(name, kind):
    found = [c for c in status(name).get("conditions", []) if c["type"] == kind]
    return found[0] if found else {}


def ready(name):
    return until(f"{name} is ready", lambda: condition(name, "Ready").get("status") == "True")


def shown(name):
    """The STATUS column of `kubectl get pod`."""
    return kubectl("get", "pod", name, "--no-headers").split()[2]


def ask(ip, port, path="/", timeout=SOON_S):
    c = http.client.HTTPConnection(ip, port, timeout=timeout)
    try:
        c.request("GET", path)
        r = c.getresponse()
        return r.status, r.read().decode()
    except OSError as e:
        return 0, str(e)
    finally:
        c.close()


def ip_of(name):
    return get(f"{NS}/services/{name}")["spec"]["clusterIP"]


def events(name):
    return [(e["reason"], e.get("message", ""), e["involvedObject"].get("fieldPath", "")) for e in get(f"{NS}/events")["items"] if e["involvedObject"]["name"] == name]


def delete(name, *more):
    began = time.monotonic()
    kubectl("delete", "pod", name, "--wait=true", "--timeout=60s", *more)
    return time.monotonic() - began


def several():
    apply(pod("two", container("one", HELLO, 8080, env=[{"name": "VERSION", "value": "one"}]),
              container("other", HELLO, 8081, env=[{"name": "VERSION", "value": "other"}]), container("bad", CRASH),
              annotations={"kubectl.kubernetes.io/default-container": "other", "timeout.coracle.dev/other": "1s"}),
          service("two", first=8080, second=8081))
    until("both serve", lambda: state("two", "one")[1].get("ready") and state("two", "other")[1].get("ready"))
    until("the third backs off", lambda: state("two", "bad")[0].get("waiting", {}).get("reason") == "CrashLoopBackOff")
    expect("containers with unready status: [bad]", condition("two", "ContainersReady")["message"], "why it isn't ready")
    expect([0, 0], [state("two", c)[1]["restartCount"] for c in ("one", "other")], "restarts of the good ones")
    expect("Running", status("two")["phase"], "phase")
    for name in ("one", "other"):
        kubectl("logs", "two", "-c", name)
    refused = run_kubectl("get", "--raw", f"{NS}/pods/two/log")
    expect(True, "a container name must be specified for pod two, choose one of: [one other bad]" in refused.stderr, refused.stderr)
    kubectl("logs", "two")  # the annotation selects it
    previous = kubectl("logs", "two", "-c", "bad", "--previous")
    expect(True, previous != "", "the log of the run before")
    apply(pod("pair", container("one", HELLO, 8080, env=[{"name": "VERSION", "value": "one"}]),
              container("other", HELLO, 8081, env=[{"name": "VERSION", "value": "other"}])), service("pair", first=8080, second=8081))
    ready("pair")
    ip = ip_of("pair")
    until("the Service leads to both", lambda: ask(ip, 8080)[0] == 200 and ask(ip, 8081)[0] == 200)
    expect(["one\n", "other\n"], [ask(ip, port, "/version")[1] for port in (8080, 8081)], "each port's answer")
    return f"{delete('pair'):.1f} s to delete"


def loopback():
    apply(pod("shared", container("caller", UNRULY, 80), container("other", HELLO, 8081)), service("shared", main=80),
          pod("stranger", container("caller", UNRULY, 80)), service("stranger", main=80))
    ready("shared"), ready("stranger")
    own, stranger = ip_of("shared"), ip_of("stranger")
    until("both answer", lambda: ask(own, 80)[0] == 200 and ask(stranger, 80)[0] == 200)
    for host in ("127.0.0.1", "localhost"):
        status, text = ask(own, 80, f"/call?to={host}:8081")
        expect((200, True), (status, text.startswith("hello from other")), f"{host} of the same pod: {text}")
        status, text = ask(stranger, 80, f"/call?to={host}:8081")
        expect(502, status, f"{host} of another pod: {text}")


def port_fight():
    apply(pod("fight", container("a", HELLO), container("b", HELLO), restart="Never"))
    def lost():
        ended = [s for s in status("fight").get("containerStatuses", []) if s["state"].get("terminated")]
        return ended and ended[0]
    loser = until("one of two has lost", lost)
    ended = loser["state"]["terminated"]
    ip = status("fight")["podIP"]
    expect((1, "Error", f"bind: address already in use: {ip}:80"), (ended["exitCode"], ended["reason"], ended["message"]), "how it ended")
    winner = "a" if loser["name"] == "b" else "b"
    until("the other one serves", lambda: state("fight", winner)[1]["ready"])
    expect(True, "address already in use" in kubectl("logs", "fight", "-c", loser["name"]), "its log says so")
    delete("fight")


def init_order():
    texts = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "texts"}, "data": {"a.txt": "one two three"}}
    mount = {"volumeMounts": [{"name": "texts", "mountPath": "/texts"}], "args": ["/texts"]}
    apply(texts, pod("ordered", container("web", HELLO, 80), init=[container("count", WORDCOUNT, **mount), container("then", NOTHING)],
                     volumes=[{"name": "texts", "configMap": {"name": "texts"}}]))
    ready("ordered")
    first, second, main = (state("ordered", name) for name in ("count", "then", "web"))
    expect([0, 0], [s[0]["terminated"]["exitCode"] for s in (first, second)], "exit codes")
    expect(True, first[0]["terminated"]["finishedAt"] <= second[0]["terminated"]["startedAt"] <= main[0]["running"]["startedAt"], "their order")
    expect((True, True), (first[1]["ready"], second[1]["ready"]), "what has succeeded is ready")
    expect("True", condition("ordered", "Initialized")["status"], "Initialized")
    expect(True, '"words":3' in kubectl("logs", "ordered", "-c", "count").replace(" ", ""), "what the first one has printed")
    until("the events name each", lambda: {p for r, _, p in events("ordered") if r == "Started"} >= {"spec.initContainers{count}", "spec.initContainers{then}", "spec.containers{web}"})
    # An init container that never ends delays the rest, and the pod can be deleted regardless.
    apply(pod("held", container("web", HELLO, 80), init=[container("forever", LOOP), container("then", NOTHING)], terminationGracePeriodSeconds=5))
    until("it runs", lambda: state("held", "forever")[0].get("running"))
    got = condition("held", "Initialized")
    expect(("False", "ContainersNotInitialized", "containers with incomplete status: [forever then]"), (got["status"], got["reason"], got["message"]), "Initialized")
    expect(("PodInitializing", "PodInitializing", "Pending", "Init:0/2"), (state("held", "then")[0]["waiting"]["reason"], state("held", "web")[0]["waiting"]["reason"], status("held")["phase"], shown("held")), "what waits")
    took = delete("held")
    expect(True, took < 5 + 5, f"its end took {took:.1f} s")


def init_failures():
    apply(pod("never", container("web", HELLO, 80), init=[container("bad", CRASH)], restart="Never"),
          pod("always", container("web", HELLO, 80), init=[container("bad", CRASH)]))
    until("it has failed", lambda: status("never").get("phase") == "Failed")
    expect(("Init:Error", 3), (shown("never"), state("never", "bad")[0]["terminated"]["exitCode"]), "how it is shown")
    expect("PodInitializing", state("never", "web")[0]["waiting"]["reason"], "what never began")
    until("it backs off", lambda: shown("always") == "Init:CrashLoopBackOff")
    now = status("always")
    expect("Pending", now["phase"], "phase")
    expect(True, state("always", "bad")[1]["restartCount"] >= 1, "restarts")
    until("its event", lambda: any(r == "BackOff" and p == "spec.initContainers{bad}" for r, _, p in events("always")))
    delete("always")


def sidecars():
    state_volume = {"volumes": [{"name": "state", "emptyDir": {}}]}
    mount = {"volumeMounts": [{"name": "state", "mountPath": "/state"}]}
    gate = {"startupProbe": {"httpGet": {"path": "/ready", "port": 8090}, "periodSeconds": 1, "failureThreshold": 60}}
    apply(pod("gated", container("web", UNRULY, 80), init=[container("late", LATE, 8090, restartPolicy="Always", **gate, **mount)], **state_volume), service("gated", main=80))
    until("the sidecar runs", lambda: state("gated", "late")[0].get("running"))
    expect(("PodInitializing", False), (state("gated", "web")[0]["waiting"]["reason"], state("gated", "late")[1]["started"]), "what waits for it")
    ready("gated")
    expect(True, state("gated", "web")[0]["running"]["startedAt"] > state("gated", "late")[0]["running"]["startedAt"], "the order")
    ip = ip_of("gated")
    until("it answers", lambda: ask(ip, 80)[0] == 200)
    expect(200, ask(ip, 80, "/call?to=127.0.0.1:8090")[0], "its sidecar by the loopback")
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "done"}, "spec": {"template": {"spec": {
        "restartPolicy": "Never", "initContainers": [container("side", HELLO, 8090, restartPolicy="Always"), container("inner", HELLO, 8091, restartPolicy="Always")],
        "containers": [container("work", NOTHING)]}}}}
    apply(job)
    kubectl("wait", "--for=condition=complete", "job/done", "--timeout=60s")
    of_job = get(f"{NS}/pods?labelSelector=job-name%3Ddone")["items"][0]["status"]
    side, inner = (s["state"]["terminated"] for s in of_job["initContainerStatuses"])
    expect(("Succeeded", 0, 0), (of_job["phase"], side["exitCode"], inner["exitCode"]), "its pod")
    expect(True, inner["finishedAt"] <= side["finishedAt"], "sidecars end in reverse order")
    # A sidecar that never starts lets no container begin.
    never = {"startupProbe": {"httpGet": {"path": "/", "port": 9}, "periodSeconds": 1, "failureThreshold": 1000}}
    apply(pod("stuck", container("web", HELLO, 80), init=[container("side", HELLO, 8090, restartPolicy="Always", **never)], terminationGracePeriodSeconds=5))
    until("its probe fails", lambda: any(r == "Unhealthy" for r, _, _ in events("stuck")))
    until("what waits for it", lambda: state("stuck", "web")[0].get("waiting", {}).get("reason") == "PodInitializing")
    expect("Pending", status("stuck")["phase"], "its pod")
    took = delete("stuck")
    expect(True, took < 5 + 5, f"its end took {took:.1f} s")


def restart_rules():
    rule = lambda action, *codes: {"restartPolicy": "Never", "restartPolicyRules": [{"action": action, "exitCodes": {"operator": "In", "values": list(codes)}}]}
    apply(pod("by-rule", container("bad", CRASH, **rule("Restart", 3)), restart="Never"),
          pod("no-rule", container("bad", CRASH, **rule("Restart", 4)), restart="Always"),
          pod("own", container("bad", CRASH, restartPolicy="Never"), container("web", HELLO, 80)),
          pod("anew", container("bad", CRASH, **rule("RestartAllContainers", 3)), container("web", HELLO, 80), init=[container("first", NOTHING)], restart="Never"))
    until("a rule starts it again", lambda: state("by-rule", "bad")[1].get("restartCount", 0) >= 1)
    until("without a rule it has failed", lambda: status("no-rule").get("phase") == "Failed")
    until("it stays as it ended", lambda: state("own", "bad")[0].get("terminated", {}).get("exitCode") == 3 and state("own", "web")[1].get("ready"))
    expect((0, "Running"), (state("own", "bad")[1]["restartCount"], status("own")["phase"]), "beside one that runs")
    until("all are started anew", lambda: all(state("anew", c)[1].get("restartCount", 0) >= 1 for c in ("first", "bad", "web")))
    last = state("anew", "web")[1]["lastState"].get("terminated", {}).get("reason")
    expect("RestartingAllContainers", last, "why the other one ended")


def many():
    init = [{"name": f"i{n}", "image": NOTHING} for n in range(MANY)]
    apply(pod("neighbour", container("web", HELLO, 80)), service("neighbour", main=80))
    ready("neighbour")
    ip = ip_of("neighbour")
    until("it answers", lambda: ask(ip, 80)[0] == 200)
    apply(pod("many", container("web", HELLO, 80), init=init, automountServiceAccountToken=False),
          pod("cut", container("web", HELLO, 80), init=init, automountServiceAccountToken=False, terminationGracePeriodSeconds=5))
    until("some have run", lambda: any(s["state"].get("terminated") for s in status("cut").get("initContainerStatuses", [])))
    took = delete("cut")
    expect(True, took < 5 + 10, f"its end took {took:.1f} s")
    began, slowest = time.monotonic(), 0.0
    while condition("many", "Ready").get("status") != "True":
        at = time.monotonic()
        expect(200, ask(ip, 80)[0], "the neighbour")
        slowest = max(slowest, time.monotonic() - at)
        expect(True, time.monotonic() - began < 120, f"{MANY} init containers take too long")
        time.sleep(POLL_S)
    expect(True, all(s["state"]["terminated"]["exitCode"] == 0 for s in status("many")["initContainerStatuses"]), "all have run")
    return f"{MANY} init containers in {time.monotonic() - began:.1f} s more, the neighbour's slowest answer {slowest * 1000:.0f} ms"


def tcp_probes():
    tcp = lambda port, **more: {"tcpSocket": {"port": port}, "periodSeconds": 1, **more}
    ports = {"ports": [{"name": "web", "containerPort": 8080}]}
    apply(pod("listens", container("web", HELLO, readinessProbe=tcp("web"), livenessProbe=tcp(8080), **ports)),
          pod("deaf", container("web", HELLO, readinessProbe=tcp(8081, failureThreshold=1), **ports)))
    ready("listens")
    ip = until("it has an address", lambda: status("deaf").get("podIP"))
    until("it is told", lambda: any(m == f"Readiness probe failed: dial tcp {ip}:8081: connect: connection refused" for r, m, _ in events("deaf")))
    expect("False", condition("deaf", "Ready")["status"], "a pod that nobody listens in")


def hooks():
    """Hooks of every form: a container counts once its postStart hook has ended, and a failing one kills it."""
    sh = lambda script: {"exec": {"command": ["sh", "-c", script]}}
    data = {"volumes": [{"name": "data", "emptyDir": {}}]}
    mount = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    after = lambda handler, **more: {"lifecycle": {"postStart": handler, **more}}
    own = {"httpGet": {"port": 8080, "path": "/", "scheme": "HTTPS"}}
    apply(pod("hooked", container("web", HELLO, 8080, **mount, **after(sh("echo started > /data/hook; sleep 1"), preStop=sh("echo bye >> /data/hook"))),
              container("next", LOOP, **after(own)), **data),
          pod("unhooked", container("web", HELLO, 80, **after(sh("echo out; echo why >&2; exit 3")))),
          pod("once", container("web", HELLO, 80, **after({"tcpSocket": {"port": 80}})), restart="Never"),
          pod("hanging", container("web", HELLO, 80, **after(sh("sleep 3600"))), terminationGracePeriodSeconds=5))
    until("the hook goes on", lambda: state("hanging", "web")[0].get("waiting", {}).get("reason") == "ContainerCreating" and any(r == "Started" for r, _, _ in events("hanging")))
    expect(("Pending", "False"), (status("hanging")["phase"], condition("hanging", "Ready")["status"]), "a container whose hook goes on")
    took = delete("hanging")
    expect(True, took < 5 + 5, f"its end took {took:.1f} s")
    ready("hooked")
    expect("started\n", kubectl("exec", "hooked", "-c", "web", "--", "cat", "/data/hook"), "what the hook has done")
    first, second = (state("hooked", c)[0]["running"]["startedAt"] for c in ("web", "next"))
    expect(True, first < second, f"the next container begins after the hook: {first}, {second}")
    until("a hook without TLS", lambda: any(r == "LifecycleHTTPFallback" for r, _, _ in events("hooked")))
    failed = until("the hook has failed", lambda: state("unhooked", "web")[0].get("waiting", {}).get("reason") == "PostStartHookError" and state("unhooked", "web"))
    words = failed[0]["waiting"]["message"]
    expect(True, words.startswith("Exec lifecycle hook ([sh -c echo out; echo why >&2; exit 3]) for Container \"web\" in Pod \"unhooked_default("), words)
    expect(True, words.endswith("failed - error: command 'sh -c echo out; echo why >&2; exit 3' exited with 3: why\n, message: \"out\\nwhy\\n\""), words)
    until("it backs off", lambda: shown("unhooked") == "CrashLoopBackOff")
    told = events("unhooked")
    expect(True, ("FailedPostStartHook", "PostStartHook failed", "spec.containers{web}") in told and ("Killing", "FailedPostStartHook", "spec.containers{web}") in told, told)
    until("one that starts once has failed", lambda: status("once").get("phase") == "Failed")
    delete("hooked"), delete("unhooked")


def exec_probes():
    """Probes that run commands: their results, their output, and their isolation from others."""
    sh = lambda script, **more: {"exec": {"command": ["sh", "-c", script]}, "periodSeconds": 1, "failureThreshold": 1, **more}
    data = {"volumes": [{"name": "data", "emptyDir": {}}]}
    mount = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    apply(pod("exec-well", container("web", HELLO, 80, readinessProbe=sh("test -e /data/ok", timeoutSeconds=5), **mount), **data),
          pod("exec-ill", container("web", HELLO, 80, readinessProbe=sh("echo out; echo err >&2; exit 1", timeoutSeconds=5))),
          pod("exec-slow", container("web", HELLO, 80, livenessProbe=sh("sleep 3600"))),
          pod("exec-flood", container("web", HELLO, 80, readinessProbe=sh("while true; do echo 0123456789; done"))),
          pod("exec-none", container("web", HELLO, 80, livenessProbe={"exec": {"command": ["nonesuch"]}, "periodSeconds": 1, "failureThreshold": 1})))
    say = lambda name, words: until(f"{name} is told: {words}", lambda: any(r == "Unhealthy" and words in m for r, m, _ in events(name)))
    say("exec-ill", "Readiness probe failed: out\nerr\n")
    say("exec-slow", "Liveness probe failed: command timed out: ")
    say("exec-flood", "Readiness probe failed: command timed out: ")
    say("exec-none", 'Liveness probe errored and resulted in unknown state: failed to exec in container: exec: "nonesuch": executable file not found in $PATH')
    until("it is started again", lambda: state("exec-slow", "web")[1].get("restartCount", 0) >= 1)
    expect(0, state("exec-none", "web")[1]["restartCount"], "a probe that cannot be made")
    expect("False", condition("exec-well", "Ready")["status"], "before its file is there")
    kubectl("exec", "exec-well", "--", "touch", "/data/ok")
    ready("exec-well")
    kubectl("exec", "exec-well", "--", "rm", "/data/ok")
    until("it is not ready any more", lambda: condition("exec-well", "Ready")["status"] == "False")
    for name in ("exec-well", "exec-ill", "exec-slow", "exec-flood", "exec-none"):
        delete(name, "--grace-period=5")


def log_flags():
    """The output of `kubectl logs` by its flags."""
    says = lambda *steps: {"command": ["sh", "-c", "; ".join(steps)]}
    apply(pod("says", container("a", TOOLBOX, **says("echo a1", "sleep 3", "echo a2", "echo a3 >&2")), container("b", TOOLBOX, **says("echo b1")), restart="Never"))
    until("it has ended", lambda: status("says").get("phase") == "Succeeded")
    logs = lambda *flags: kubectl("logs", "says", *flags).splitlines()
    expect(["a1", "a2", "a3"], logs("-c", "a", "--since=1h"), "both streams")
    stamped = [line.split(" ") for line in logs("-c", "a", "--timestamps")]
    expect(["a1", "a2", "a3"], [text for _, text in stamped], "lines with their times")
    expect(["a2", "a3"], logs("-c", "a", "--since-time", stamped[1][0]), "since the second line")
    expect(["a1"], logs("-c", "a", "--limit-bytes=3"), "the first bytes")
    expect(["a2", "a3"], logs("-c", "a", "--tail=2"), "the last lines")
    prefixed = ["[pod/says/a] a1", "[pod/says/a] a2", "[pod/says/a] a3", "[pod/says/b] b1"]
    expect(prefixed, sorted(logs("--all-containers", "--prefix")), "all containers")
    expect(["a1", "a2", "a3", "b1"], sorted(kubectl("logs", "-l", "app=says", "--all-containers", "--tail=-1").splitlines()), "by label")
    refused = run_kubectl("logs", "-l", "app=says", "--all-containers", "-f", "--max-log-requests=1")
    expect(True, "maximum allowed concurrency is 1" in refused.stderr, refused.stderr)
    refused = run_kubectl("logs", "says", "-c", "none")
    expect(True, "container none is not valid for pod says" in refused.stderr, refused.stderr)


def probes_elsewhere():
    """Probes by gRPC, by TLS, and of another host: never of this machine's own."""
    get_ = lambda port, **more: {"httpGet": {"port": port, **more}, "periodSeconds": 1, "failureThreshold": 1}
    apply(pod("asked", container("web", HELLO, 80)), service("asked", main=80))
    ready("asked")
    own = CLUSTER.port
    each = {
        "to-service": (get_(80, host="asked", path="/"), None),
        "to-port": ({"tcpSocket": {"port": 80, "host": "asked"}, "periodSeconds": 1}, None),
        "to-tls": (get_(80, scheme="HTTPS"), "http: server gave HTTP response to HTTPS client"),
        "to-api": (get_(443, host="kubernetes.default", scheme="HTTPS", path="/livez"), None),
        "to-host": (get_(own, host="127.0.0.1", scheme="HTTPS", path="/livez"), "connection refused"),
        "to-machine": ({"tcpSocket": {"port": own, "host": "127.0.0.2"}, "periodSeconds": 1}, "connection refused"),
        "to-link": (get_(80, host="169.254.169.254", path="/"), "are not allowed"),
        "to-grpc": ({"grpc": {"port": 80}, "periodSeconds": 1}, "this server does not implement the grpc health protocol (grpc.health.v1.Health): unexpected HTTP status code received from server: 404 (Not Found)"),
        "to-nobody": ({"grpc": {"port": 81}, "periodSeconds": 1}, "timeout: failed to connect service"),
    }
    # A guest of wasi:http that ends its response with trailers, as in gRPC.
    health = "registry.local/conformance-web:v1"
    asks = {"grpc-well": {"port": 80, "service": "shop"}, "grpc-unknown": {"port": 80, "service": "other"}, "grpc-all": {"port": 80}}
    for name, probe in asks.items():
        each[name] = ({"grpc": probe, "periodSeconds": 1}, None if name == "grpc-well" else "unknown service")
    args = ["grpc-health-checking", "--service", "shop"]
    asked = {name: {"args": args} if name in asks else {} for name in each}
    image = lambda name: health if name in asks else HELLO
    apply(*(pod(name, container("web", image(name), 80, readinessProbe=probe, **asked[name])) for name, (probe, _) in each.items()))
    for name, (_, words) in each.items():
        if words is None:
            ready(name)
        else:
            until(f"{name} is told: {words}", lambda: any(r == "Unhealthy" and words in m for r, m, _ in events(name)))
            expect("False", condition(name, "Ready")["status"], name)
    kubectl("delete", "pod", "--wait=false", "--grace-period=1", *each)


def names():
    """The names of a pod's spec: its own, aliases, and its name servers."""
    apply(pod("named", container("web", HELLO, 80)), service("named", main=80))
    ready("named")
    target = ip_of("named")
    dns = target.rsplit(".", 2)[0] + ".0.10"
    aliases = [{"ip": target, "hostnames": ["db.test", "db2.test"]}, {"ip": "127.0.0.1", "hostnames": ["own.test"]},
               {"ip": "127.0.1.1", "hostnames": ["machine.test"]}, {"ip": "169.254.169.254", "hostnames": ["link.test"]}]
    none = lambda server, **more: {"dnsPolicy": "None", "dnsConfig": {"nameservers": [server], **more}}
    caller = lambda name, **spec: pod(name, container("web", UNRULY, 80), **spec)
    apply(caller("aliased", hostAliases=aliases, dnsConfig={"searches": ["default.svc.cluster.local"], "options": [{"name": "ndots", "value": "1"}]}),
          caller("no-dns", **none("127.0.0.1")), caller("own-dns", **none(dns, searches=["default.svc.cluster.local"])),
          caller("whole-name", hostname="web", subdomain="group", setHostnameAsFQDN=True), caller("other-name", hostnameOverride="a.b.test"),
          *(service(name, main=80) for name in ("aliased", "no-dns", "own-dns")))
    for name in ("aliased", "no-dns", "own-dns", "whole-name", "other-name"):
        ready(name)
    for name, to, want in (("aliased", "db.test", 200), ("aliased", "DB2.test", 200), ("aliased", "own.test", 200), ("aliased", "aliased", 200), ("aliased", "named", 200),
                           ("aliased", f"machine.test:{CLUSTER.port}", 502), ("aliased", "link.test", 502), ("no-dns", "named", 502), ("no-dns", target, 200),
                           ("own-dns", "named", 200)):
        ip = ip_of(name)
        until(f"{name} answers", lambda: ask(ip, 80)[0] == 200)
        status, text = ask(ip, 80, f"/call?to={to if ':' in to else to + ':80'}")
        expect(want, status, f"{name} calls {to}: {text}")
    for name, want in (("whole-name", "web.group.default.svc.cluster.local"), ("other-name", "a.b.test"), ("aliased", "aliased")):
        expect(want + "\n", kubectl("exec", name, "--", "printenv", "HOSTNAME"), f"what {name} is called")


def host_ports():
    """Ports of the node itself: a pod's, of one pod at a time, and none of the cluster's or the machine's."""
    taken = socket.create_server(("127.0.0.1", 0))
    free = socket.create_server(("127.0.0.1", 0))
    first, second = (one.getsockname()[1] for one in (taken, free))
    free.close()
    at = lambda port, **more: container("web", HELLO, ports=[{"containerPort": 8080, "hostPort": port, **more}])
    apply(pod("ported", at(second)), pod("late-port", at(first)), pod("stolen", at(80, hostIP="127.64.0.10")))
    ready("ported")
    expect(200, ask("127.0.0.1", second)[0], "the node's own port")
    for name, why in (("late-port", f"127.0.0.1:{first}"), ("stolen", "is an address of the cluster")):
        until(f"{name} is told", lambda: any(r == "FailedCreatePodSandBox" and why in m for r, m, _ in events(name)))
        expect("Pending", status(name)["phase"], name)
    taken.close()
    ready("late-port")
    expect(200, ask("127.0.0.1", first)[0], "a port that came free")
    node = get(f"{NS}/pods/ported")["spec"]["nodeName"]
    refused = lambda name, reason, **spec: (apply(pod(name, at(second), nodeName=node, **spec)), until(f"{name} is refused", lambda: status(name).get("reason") == reason))
    refused("same-port", "NodePorts")
    refused("other-system", "PodOSNotSupported", os={"name": "windows"})
    delete("ported")
    until("the port is closed", lambda: closed("127.0.0.1", second))
    apply(pod("on-host", container("web", HELLO, second), hostNetwork=True, hostPID=True))
    ready("on-host")
    expect((200, second), (ask("127.0.0.1", second)[0], get(f"{NS}/pods/on-host")["spec"]["containers"][0]["ports"][0]["hostPort"]), "a pod of the host's network")
    other = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "runc"}, "handler": "runc"}
    apply(other, pod("linux-only", container("web", HELLO, 80), runtimeClassName="runc"))
    until("another runtime", lambda: any(r == "FailedCreatePodSandBox" and 'no runtime for "runc" is configured' in m for r, m, _ in events("linux-only")))
    kubectl("delete", "pod", "--wait=false", "on-host", "late-port", "stolen", "same-port", "other-system", "linux-only")


def closed(host, port):
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return True
    return False


def probe_flood():
    """Hundreds of command probes a second of one namespace, beside a neighbour that serves."""
    apply(pod("calm", container("web", HELLO, 80)), service("calm", main=80))
    ready("calm")
    ip = ip_of("calm")
    until("it answers", lambda: ask(ip, 80)[0] == 200)
    probe = {"exec": {"command": ["sh", "-c", "while true; do :; done"]}, "periodSeconds": 1, "failureThreshold": 1000}
    names = [f"probed-{n}" for n in range(FLOODERS)]
    apply(*(pod(name, container("web", HELLO, 80, readinessProbe=probe), terminationGracePeriodSeconds=2) for name in names))
    until("they are probed", lambda: sum(1 for e in get(f"{NS}/events")["items"] if e["reason"] == "Unhealthy" and e["involvedObject"]["name"].startswith("probed-")) >= FLOODERS // 2)
    slowest = 0.0
    for _ in range(80):
        at = time.monotonic()
        expect(200, ask(ip, 80)[0], "the neighbour")
        slowest = max(slowest, time.monotonic() - at)
        time.sleep(POLL_S)
    expect("1\n", kubectl("exec", "calm", "--", "sh", "-c", "echo 1"), "a session beside them")
    began = time.monotonic()
    kubectl("delete", "pod", "--wait=true", "--timeout=60s", *names)
    return f"{FLOODERS} probes that burn, the neighbour's slowest answer {slowest * 1000:.0f} ms, {time.monotonic() - began:.1f} s to delete them"


def debugging():
    """`kubectl debug`: a container is added, has its target's view, and ends."""
    texts = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "looked-at"}, "data": {"a.txt": "one two"}}
    apply(texts, pod("target", container("web", HELLO, 80, volumeMounts=[{"name": "texts", "mountPath": "/texts"}]), volumes=[{"name": "texts", "configMap": {"name": "looked-at"}}]))
    ready("target")
    kubectl("debug", "target", "--image", WORDCOUNT, "--target", "web", "-c", "look", "--attach=false", "--", "wordcount", "/texts")
    ended = until("it has ended", lambda: state("target", "look")[0].get("terminated"))
    expect((0, "Completed"), (ended["exitCode"], ended["reason"]), "how it ended")
    expect(True, '"words":2' in kubectl("logs", "target", "-c", "look").replace(" ", ""), "it sees its target's files")
    expect((0, "True"), (state("target", "web")[1]["restartCount"], condition("target", "Ready")["status"]), "the pod goes on")
    until("its event", lambda: any(r == "Started" and p == "spec.ephemeralContainers{look}" for r, _, p in events("target")))
    generation = get(f"{NS}/pods/target")["metadata"]["generation"]
    expect(2, generation, "generation")
    patch = json.dumps({"spec": {"ephemeralContainers": [{"name": "look", "image": HELLO}]}})
    refused = run_kubectl("patch", "pod", "target", "--subresource", "ephemeralcontainers", "-p", patch)
    expect(True, 'existing ephemeral containers "look" may not be changed' in refused.stderr, refused.stderr)
    refused = run_kubectl("patch", "pod", "target", "-p", json.dumps({"spec": {"ephemeralContainers": [{"name": "b", "image": HELLO}]}}))
    expect(True, "pod updates may not change fields other than" in refused.stderr, refused.stderr)
    # A client that knows only its own container puts it at the front of the list.
    patch = json.dumps({"spec": {"ephemeralContainers": [{"name": "ahead", "image": LOOP}]}})
    kubectl("patch", "pod", "target", "--subresource", "ephemeralcontainers", "--type=strategic", "-p", patch)
    until("it runs", lambda: state("target", "ahead")[0].get("running"))
    expect(["ahead", "look"], [c["name"] for c in get(f"{NS}/pods/target")["spec"]["ephemeralContainers"]], "the list")
    expect(ended["containerID"], state("target", "look")[0].get("terminated", {}).get("containerID"), "the one before is what it was")
    kubectl("debug", "target", "--image", LOOP, "-c", "terminal", "-it", "--attach=false")
    until("one with a terminal runs", lambda: state("target", "terminal")[0].get("running"))
    kubectl("debug", "target", "--image", LOOP, "-c", "forever", "--attach=false")
    until("it runs", lambda: state("target", "forever")[0].get("running"))
    shell = run_kubectl("debug", "target", "-i", "--quiet", "--image", TOOLBOX, "--target", "web", "-c", "shell", "--", "sh", given="cat /texts/a.txt; echo; echo from-$((1+1)); exit 4\n")
    expect(True, "one two\nfrom-2\n" in shell.stdout, f"a shell beside its target: {shell.stdout!r} {shell.stderr!r}")
    until("its end", lambda: state("target", "shell")[0].get("terminated", {}).get("exitCode") == 4)
    took = delete("target", "--grace-period=5")
    expect(True, took < 5 + 10, f"its end took {took:.1f} s")


def debug_terminal():
    """`kubectl debug -it`: a prompt, ^C, ^D, another size, the end; and the same by `exec` and `attach`."""
    apply(pod("seen", container("web", HELLO, 80)))
    ready("seen")
    shell = Terminal("debug", "-it", "seen", "--image", TOOLBOX, "--target", "web", "-c", "hand", "--", "sh")
    until("it runs", lambda: state("seen", "hand")[0].get("running"))
    shell.type("\r")
    shell.sees("# ")
    shell.type("echo typed-$((40+2))\r")
    shell.sees("typed-42\r\n")
    shell.sees("# ")
    shell.resize(50, 200)
    shell.type("sleep 1000\r")
    shell.sees("sleep 1000\r\n")
    shell.type("\x03")
    shell.sees("^C")
    shell.sees("# ")
    shell.type("echo after-$?\r")
    shell.sees("after-130\r\n")
    shell.sees("# ")
    shell.type("cat\r")
    shell.sees("cat\r\n")
    shell.type("one\r")
    shell.sees("one\r\none\r\n")
    shell.type("\x04")
    shell.sees("# ")
    shell.type("echo onf\x7fe; nc -z 127.0.0.1 80 && echo its-target-answers\r")
    shell.sees("its-target-answers\r\n")
    shell.sees("# ")
    shell.type("exit 7\r")
    expect(0, shell.ended(), f"debug's own code: {shell.shown!r}")
    until("its end", lambda: state("seen", "hand")[0].get("terminated", {}).get("exitCode") == 7)
    shell = Terminal("debug", "-it", "seen", "--image", TOOLBOX, "-c", "other", "--", "sh")
    until("it runs", lambda: state("seen", "other")[0].get("running"))
    shell.type("\r")
    shell.sees("# ")
    shell.type("\x04")
    expect(0, shell.ended(), f"^D: {shell.shown!r}")
    until("its end", lambda: state("seen", "other")[0].get("terminated", {}).get("exitCode") == 0)
    session = Terminal("exec", "-it", "seen", "-c", "web", "--", "sh")
    session.sees("# ")
    session.resize(10, 20)
    session.type("nc 127.0.0.1 80\r")
    session.sees("nc 127.0.0.1 80\r\n")
    session.type("\x03")
    session.sees("# ")
    session.type("exit 9\r")
    expect(9, session.ended(), f"exec's code: {session.shown!r}")
    delete("seen", "--grace-period=2")


def again():
    """Checks at the end of pods.sh, after a kill."""
    apply(pod("again", container("one", HELLO, 8080), container("other", HELLO, 8081),
              init=[container("first", NOTHING), container("side", HELLO, 8090, restartPolicy="Always")]))
    ready("again")




def leaving():
    """The readiness probe goes on while a pod ends: once it fails, the endpoint no longer serves."""
    sh = lambda script: {"exec": {"command": ["sh", "-c", script]}}
    probe = {**sh("test ! -e /data/leaves"), "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 20}
    web = container("web", HELLO, 80, readinessProbe=probe, lifecycle={"preStop": sh("echo now > /data/leaves; sleep 3600")}, volumeMounts=[{"name": "data", "mountPath": "/data"}])
    apply(pod("leaving", web, volumes=[{"name": "data", "emptyDir": {}}], terminationGracePeriodSeconds=600), service("leaving", web=80))
    slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dleaving"
    conditions = lambda: [endpoint["conditions"] for one in get(slices)["items"] for endpoint in one.get("endpoints") or []]
    ready("leaving")
    until("its endpoint serves", lambda: conditions() == [{"ready": True, "serving": True, "terminating": False}])
    kubectl("delete", "pod", "leaving", "--wait=false")
    until("its endpoint no longer serves", lambda: conditions() == [{"ready": False, "serving": False, "terminating": True}])
    now = state("leaving", "web")
    expect((True, False), ("running" in now[0], now[1]["ready"]), "the container that ends")
    delete("leaving", "--grace-period=0", "--force")


CASES = (several, loopback, port_fight, init_order, init_failures, sidecars, restart_rules, tcp_probes, names, host_ports, hooks, exec_probes, leaving, log_flags, probes_elsewhere,
         probe_flood, debugging, debug_terminal, many, again)


main(CASES, at_once=4)

"""Attacks through the doors that a node opens: `doors.py KUBECONFIG [CASE…]`, with the cluster's process in `UP_PID`.

Each case has a neighbour in another namespace that answers all the while, measured alone first. The bound is loose, as debug
builds run on machines that build something else: `tests/bench/neighbours` has figures.
"""
import base64, concurrent.futures, datetime, http.client, json, os, threading, time

os.environ["KUBECONFIG"] = __import__("sys").argv[1]
from pace import Pace
from suite import CLUSTER, KUBECONFIG, SOON_S, Wrong, apply, ask_api, expect, get, kubectl, main, run_kubectl, until
from websocket import WebSocket

UP_PID = int(os.environ["UP_PID"])
BESIDE_TIMES, BESIDE_S = 20, 2.0  # the neighbour's latency, relative to the latency without load
PACE = Pace().start()  # all bounds of time are for a quiet machine, and are multiplied by its slowness
GRACE_S = 2
# Extra time after a pod's grace period: whole seconds of the API's times, and a busy machine. It was 5 s for a release build; a
# development build beside three other scripts once took 7.3 s with its grace of 2 s.
LATE_S = 8
NOT_GONE_S = 240  # after that the test stops waiting: it has failed
IMAGE = "registry.local/{}:v1".format


def container(name, image, port=None, **more):
    return {"name": name, "image": IMAGE(image), **({"ports": [{"containerPort": port}]} if port else {}), **more}


def pod(namespace, name, *containers, annotations=None, **spec):
    spec = {"terminationGracePeriodSeconds": GRACE_S, "automountServiceAccountToken": False, **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}, "annotations": annotations or {}},
            "spec": {"containers": list(containers), **spec}}


def service(namespace, name):
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": name}, "spec": {"selector": {"app": name}, "ports": [{"port": 80}]}}


def of(namespace, name):
    return get(f"/api/v1/namespaces/{namespace}/pods/{name}") or {}


def ready(namespace, name):
    until(f"{name} is ready", lambda: any(c["type"] == "Ready" and c["status"] == "True" for c in of(namespace, name).get("status", {}).get("conditions", [])))


def address(namespace, name):
    ip = get(f"/api/v1/namespaces/{namespace}/services/{name}")["spec"]["clusterIP"]
    until(f"{name} answers", lambda: request(ip)[0] == 200)
    return ip


def request(ip, path="/", body=None, headers=None, timeout=SOON_S):
    c = http.client.HTTPConnection(ip, 80, timeout=timeout)
    try:
        try:
            c.request("GET" if body is None else "POST", path, body, headers or {})
        except BrokenPipeError:
            pass  # an early rejection is still readable
        r = c.getresponse()
        return r.status, r.read()
    except (OSError, http.client.HTTPException) as e:
        return 0, repr(e).encode()
    finally:
        c.close()


def namespace(name):
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    until(f"{name} has its account", lambda: get(f"/api/v1/namespaces/{name}/serviceaccounts/default"))


def deleted(namespace, *names):
    """Each pod is gone within its own grace period and `LATE_S`, from the API's response to its deletion; returns the slowest time."""
    over, times = time.time() + NOT_GONE_S, {}
    pods = {name: of(namespace, name) for name in names}
    expect([], [name for name, pod in pods.items() if not pod], "pods that are to be deleted and are not there")
    began = dict.fromkeys(names, time.time())
    kubectl("delete", "pod", "-n", namespace, "--wait=false", *names)
    while len(times) < len(names):
        there = {pod["metadata"]["name"]: pod["metadata"] for pod in get(f"/api/v1/namespaces/{namespace}/pods")["items"]}
        now = time.time()
        for name, pod in pods.items():
            seen = there.get(name)
            if seen and seen["uid"] == pod["metadata"]["uid"]:
                at, grace = seen.get("deletionTimestamp"), seen.get("deletionGracePeriodSeconds", 0)
                if at:  # the time at which the pod should be gone, with its grace period
                    began[name] = datetime.datetime.fromisoformat(at.replace("Z", "+00:00")).timestamp() - grace
            elif name not in times:
                times[name] = now - began[name]
        expect(True, now < over, f"{sorted(set(names) - set(times))} are there {NOT_GONE_S} s after their deletion")
        time.sleep(0.2)
    late = LATE_S * PACE.slowness()
    may = {name: pods[name]["spec"]["terminationGracePeriodSeconds"] + late for name in names}
    expect({}, {name: f"{took:.1f} s" for name, took in times.items() if took > may[name]}, f"pods that outlived their grace and {late:.1f} s")
    return max(times.values())


class Beside:
    """Sends requests to the neighbour all the time: a missing response, or a disproportionately slow one, is a finding."""

    def __init__(self, ip=None):
        self.ip, self.over, self.times, self.wrong = ip or NEIGHBOUR, threading.Event(), [], []
        self.alone = self.measured(40)

    def ask(self):
        began = time.monotonic()
        status, said = request(self.ip)
        if status != 200:
            self.wrong.append((status, said[:100]))
        return time.monotonic() - began

    def measured(self, count):
        return sorted(self.ask() for _ in range(count))[count * 99 // 100]

    def look(self):
        while not self.over.wait(0.02):
            self.times.append(self.ask())

    def asks(self, count):
        """Waits until the neighbour has served that many more requests."""
        there = len(self.times) + count
        until(f"the neighbour is asked {count} times", lambda: len(self.times) >= there or self.wrong)

    def __enter__(self):
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def __exit__(self, kind, *_):
        self.over.set()
        self.thread.join()
        if kind is None:
            expect([], self.wrong, "the neighbour's answers")
            expect(True, self.p99() <= max(self.alone * BESIDE_TIMES, BESIDE_S) * PACE.slowness(), self.said())

    def p99(self):
        return sorted(self.times)[len(self.times) * 99 // 100]

    def said(self):
        return f"the neighbour's p99 {self.p99() * 1000:.0f} ms, alone {self.alone * 1000:.0f} ms, the machine slower by {PACE.slowness():.1f}"


def session(namespace, pod, *command, stdin=False):
    words = "".join("&command=" + "".join(f"%{b:02x}" for b in word.encode()) for word in command)
    return WebSocket(f"/api/v1/namespaces/{namespace}/pods/{pod}/exec?stdout=true{'&stdin=true' if stdin else ''}{words}", "v5.channel.k8s.io")


def exec_flood():
    """One namespace opens sessions in all of its pods until it is rejected: a session of another namespace still starts."""
    names = [f"box{n}" for n in range(12)]
    apply(*(pod("attacker", name, container("c", "hello", 80)) for name in names))
    for name in names:
        ready("attacker", name)
    flood, refused = [], []
    with Beside() as beside:
        def attack(name):
            for _ in range(20):
                client = session("attacker", name, "sh", "-c", "while true; do echo flood; done")
                (flood if client.code == 101 else refused).append(client)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(attack, names))
        expect({429}, {client.code for client in refused}, "what is over a bound")
        expect(True, len(refused) > 0, "sessions are bounded")
        said = kubectl("exec", "-n", "neighbour", "web", "--", "sh", "-c", "echo in")
        expect("in\n", said, "the neighbour's session")
        took = deleted("attacker", *names)
    for client in flood:
        client.socket.close()
    return f"{len(flood)} sessions and {len(refused)} refusals, {took:.1f} s to delete; {beside.said()}"


def dialers():
    """Sessions whose `nc` and `nslookup` never stop: against the neighbour, their own pod and missing names."""
    names = [f"dials{n}" for n in range(6)]
    apply(*(pod("attacker", name, container("c", "hello", 80)) for name in names))
    for name in names:
        ready("attacker", name)
    asks = ("nc -z web.neighbour 80; nslookup nope.attacker.svc.cluster.local", "nc 127.0.0.1 80", "yes=$(nc -w 1 web.neighbour 80)")
    flood = []
    with Beside() as beside:
        def attack(n):
            client = session("attacker", names[n % len(names)], "sh", "-c", f"while true; do {asks[n % len(asks)]}; done", stdin=n % 2 == 0)
            flood.append(client)
            return client.code
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            codes = list(pool.map(attack, range(72)))
        expect(True, set(codes) <= {101, 429}, f"what they were told: {set(codes)}")
        said = kubectl("exec", "-n", "neighbour", "web", "--", "nc", "-zv", "127.0.0.1", "80")
        expect("", said, "the neighbour's own nc")
        took = deleted("attacker", *names)
    for client in flood:
        client.socket.close()
    return f"{codes.count(101)} sessions and {codes.count(429)} refusals, {took:.1f} s to delete; {beside.said()}"


def followers():
    """Clients that follow logs without end and read nothing, each over a connection of the API server to the node."""
    apply(pod("attacker", "loud", container("c", "chatter", 80)))
    ready("attacker", "loud")
    before, clients = resident_mib(), []
    with Beside() as beside:
        def attack(_):
            client = WebSocket("/api/v1/namespaces/attacker/pods/loud/log?follow=true", "binary.k8s.io")
            clients.append(client)
            return client.code
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            codes = set(pool.map(attack, range(200)))
        expect(True, codes <= {101, 429, 503}, f"what they were told: {codes}")
        for _ in range(20):
            expect(True, "GET /" in kubectl("logs", "-n", "neighbour", "web", "--tail=5"), "the neighbour's log")
        expect("in\n", kubectl("exec", "-n", "neighbour", "web", "--", "echo", "in"), "the neighbour's session")
        expect(True, resident_mib() - before < 400, f"{resident_mib() - before} MiB for logs that nobody reads")
        took = deleted("attacker", "loud")
    for client in clients:
        client.socket.close()
    return f"{len(clients)} followers {sorted(codes)}, {resident_mib() - before} MiB, {took:.1f} s to delete; {beside.said()}"


def slow_readers():
    """Port-forwards whose client requests an endless response and reads nothing of it."""
    apply(pod("attacker", "chatter", container("c", "hello", 80)))
    ready("attacker", "chatter")
    ask = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 200
    clients = []
    before = resident_mib()
    with Beside() as beside:
        def attack(_):
            client = WebSocket("/api/v1/namespaces/attacker/pods/chatter/portforward?ports=80", "v4.channel.k8s.io")
            clients.append(client)
            if client.code != 101:
                return client.code
            client.socket.settimeout(1)
            try:
                for _ in range(200):
                    client.send(b"\0" + ask)
            except OSError:
                pass  # the guest blocks on its response, so our request blocks, too
            return client.code
        with concurrent.futures.ThreadPoolExecutor(40) as pool:
            codes = set(pool.map(attack, range(120)))
        expect(True, codes <= {101, 429}, f"what they were told: {codes}")
        expect(True, resident_mib() - before < 400, f"{resident_mib() - before} MiB for readers that don't read")
        took = deleted("attacker", "chatter")
    for client in clients:
        client.socket.close()
    return f"{sorted(codes)}, {resident_mib() - before} MiB, {took:.1f} s to delete; {beside.said()}"


def resident_mib():
    with open(f"/proc/{UP_PID}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS")) >> 10


def thousands_of_containers():
    """3,000 init containers in one pod, and more than an object may hold."""
    many = pod("attacker", "many", container("c", "hello", 80), initContainers=[container(f"i{n}", "nothing") for n in range(3000)])
    with Beside() as beside:
        apply_big(many)
        began = time.monotonic()
        until("some of them have run", lambda: sum("terminated" in s["state"] for s in of("attacker", "many").get("status", {}).get("initContainerStatuses", [])) >= 50, 120)
        beside.asks(200)
        ran = sum("terminated" in s["state"] for s in of("attacker", "many").get("status", {}).get("initContainerStatuses", []))
        took = time.monotonic() - began
        end = deleted("attacker", "many")
    over = pod("attacker", "over", container("c", "hello", 80), initContainers=[container(f"i{n}", "nothing", env=[{"name": "A", "value": "x" * 300}]) for n in range(4500)])
    status, _ = ask_api("/api/v1/namespaces/attacker/pods", "POST", over)
    expect(413, status, "a pod of more than 1.5 MiB")
    return f"{ran} of 3000 in {took:.1f} s, {end:.1f} s to delete; {beside.said()}"


def apply_big(it):
    status, said = ask_api(f"/api/v1/namespaces/{it['metadata']['namespace']}/pods", "POST", it)
    expect(201, status, f"{it['metadata']['name']}: {str(said)[:300]}")


def ephemeral_loop():
    """Ephemeral containers without end, each of which never ends."""
    apply(pod("attacker", "debugged", container("c", "hello", 80)))
    ready("attacker", "debugged")
    added, refusal = 0, None
    with Beside() as beside:
        for n in range(200):
            patch = {"spec": {"ephemeralContainers": [{"name": f"e{n}", "image": IMAGE("loop")}]}}
            status, said = ask_api("/api/v1/namespaces/attacker/pods/debugged/ephemeralcontainers", "PATCH", patch, "application/strategic-merge-patch+json")
            if status != 200:
                refusal = (status, said.get("message"))
                break
            added += 1
        until("the last one has a status", lambda: any(s["name"] == f"e{added - 1}" for s in of("attacker", "debugged")["status"].get("ephemeralContainerStatuses", [])))
        took = deleted("attacker", "debugged")
    return f"{added} added, {refusal}, {took:.1f} s to delete; {beside.said()}"


def plugin_bombs():
    apply(pod("attacker", "greeter", container("c", "greeter", 80, resources={"limits": {"memory": "64Mi"}})), service("attacker", "greeter"))
    ready("attacker", "greeter")
    ip = address("attacker", "greeter")
    call = "/coracle:samples/greeter/greet"
    wave = {"Content-Type": "application/x-wave"}
    text = {"Content-Type": "application/json"}
    deep = 100_000
    person = "/coracle:samples/greeter/introduce"
    bombs = [
        ("nested arrays", call, b'{"name":' + b"[" * deep, text, {400}),
        ("nested objects", call, b'{"name":' * deep, text, {400}),
        ("nested options", person, b'{"person":{"name":"a","language":"french","title":' + b'{"some":' * deep, text, {400}),
        ("an unknown name that is nested", call, b'{"x":' + b"[" * deep + b"]" * deep + b"}", text, {400}),
        ("nested, in WAVE", call, b"(" * deep, wave, {400}),
        ("nested options, in WAVE", person, b"({name: \"a\", language: french, title: " + b"some(" * deep, wave, {400}),
        ("nested lists, in WAVE", call, b"(" + b"[" * deep, wave, {400}),
        ("a huge string", call, b'{"name":"' + b"x" * 2_000_000 + b'"}', text, {200, 400, 413, 502, 503}),
        ("a huger string", call, b'{"name":"' + b"x" * 30_000_000 + b'"}', text, {413}),
        ("escapes", call, b'{"name":"' + b"\\u0000" * 300_000 + b'"}', text, {200, 400, 413, 502, 503}),
        ("a string that is no text", call, b'{"name":"\xff\xfe"}', text, {400}),
        ("half a surrogate", call, b'{"name":"\\ud800"}', text, {400}),
        ("many names", call, b"{" + b",".join(b'"n%d":1' % n for n in range(100_000)) + b"}", text, {400, 413}),
        ("one name many times", call, b'{"name":"a"' + b',"name":"a"' * 100_000 + b"}", text, {200, 400, 413}),
        ("many arguments, in WAVE", call, b"(" + b'"a", ' * 300_000 + b")", wave, {400, 413}),
        ("a long string, in WAVE", call, b'("' + b"x" * 2_000_000 + b'")', wave, {200, 400, 413, 502, 503}),
        ("a number without end", call, b'{"name":1' + b"0" * 1_000_000 + b"}", text, {400}),
        ("a long name of a function", "/" + "a" * 30_000, b"{}", text, {404, 400, 414, 431}),
        ("a long session", call, b'{"name":"a"}', {**text, "coracle-session": "s" * 30_000}, {400, 404, 431}),
    ]
    with Beside() as beside:
        for what, path, body, headers, statuses in bombs:
            began = time.monotonic()
            status, said = request(ip, path, body, headers)
            expect(True, status in statuses, f"{what}: {status} {said[:200]!r}")
            expect(True, len(said) < 4_100_000 and time.monotonic() - began < 20, f"{what}: {len(said)} bytes in {time.monotonic() - began:.1f} s")
            if status >= 400:
                expect(True, len(said) < 2000, f"{what}: an error of {len(said)} bytes")
        # Sequential sessions, each with a handle: they have all of the free memory until they are idle for too long.
        codes = {}
        for n in range(400):
            status, said = request(ip, "/coracle:samples/greeter/guest-book", b'{"title":"t"}', text)
            codes[status] = codes.get(status, 0) + 1
        expect(True, set(codes) <= {200, 429, 503, 504}, f"sessions: {codes} {said[:200]}")
        # A call waits for memory as long as a session may be idle, so the first one may be late.
        answers = [request(ip, call, b'{"name":"ada"}', text)]
        if answers[0][0] == 504:
            answers.append(request(ip, call, b'{"name":"ada"}', text))
        expect((200, b'"hello ada"'), (answers[-1][0], answers[-1][1].strip()), f"a call after all that, of {len(answers)}")
        took = deleted("attacker", "greeter")
    expect([], [s for s in [of("attacker", "greeter")] if s], "it is gone")
    return f"{len(bombs)} bombs, sessions {codes}, {took:.1f} s to delete; {beside.said()}"


def probe_storm():
    """1,000 containers with a command probe every second, in pods of 100."""
    probe = {"exec": {"command": ["true"]}, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 1000}
    names = [f"probed{n}" for n in range(10)]
    with Beside() as beside, Beside(POOR) as poor:
        for name in names:
            apply_big(pod("attacker", name, *(container(f"c{n}", "loop", readinessProbe=probe, livenessProbe=probe, resources={"limits": {"cpu": "1m", "memory": "4Mi"}, "requests": {"cpu": "0", "memory": "0"}}) for n in range(100))))
        until("they run", lambda: sum("running" in s["state"] for name in names for s in of("attacker", name).get("status", {}).get("containerStatuses", [])) >= 900, 120)
        beside.asks(100)
        kubectl("exec", "-n", "neighbour", "web", "--", "true")
        took = deleted("attacker", *names)
    return f"{took:.1f} s to delete; {beside.said()}; without a request {poor.said()}"


def hook_flood():
    """Hundreds of containers whose hooks never end: before their stop, after their start, by command and by HTTP."""
    hangs = {"exec": {"command": ["sleep", "600"]}}
    asks = {"httpGet": {"path": "/", "port": 81, "host": "127.0.0.1"}}
    little = {"resources": {"limits": {"cpu": "10m", "memory": "8Mi"}, "requests": {"cpu": "0", "memory": "0"}}}
    of_kind = {"begins": {"postStart": hangs}, "ends": {"preStop": hangs}, "asks": {"postStart": asks, "preStop": asks}}
    names = [f"{kind}{n}" for kind in of_kind for n in range(4)]
    with Beside() as beside, Beside(POOR) as poor:
        for name in names:
            apply_big(pod("attacker", name, *(container(f"c{n}", "loop", lifecycle=of_kind[name[:-1]], **little) for n in range(25))))
        state = lambda name: [s["state"] for s in of("attacker", name).get("status", {}).get("containerStatuses", [])]
        until("those with a hook before their stop run", lambda: all(sum("running" in s for s in state(f"ends{n}")) == 25 for n in range(4)), 120)
        until("those of a failed hook are told", lambda: all(any(s.get("waiting", {}).get("reason") in ("PostStartHookError", "CrashLoopBackOff") for s in state(f"asks{n}")) for n in range(4)), 120)
        # In sequence, as upstream: the next container waits for the first one's hook.
        expect({"ContainerCreating"}, {s.get("waiting", {}).get("reason") for n in range(4) for s in state(f"begins{n}")}, "those whose hook goes on")
        kubectl("exec", "-n", "neighbour", "web", "--", "true")
        took = deleted("attacker", *names)
    return f"{took:.1f} s to delete; {beside.said()}; without a request {poor.said()}"


def resize_flood():
    """CPU and memory change as fast as the API accepts it: the last values apply, and no container restarts."""
    amounts = lambda n: {"requests": {"cpu": "1m", "memory": "8Mi"}, "limits": {"cpu": f"{50 + n % 50}m", "memory": f"{32 + n % 32}Mi"}}
    names = [f"resized{n}" for n in range(8)]
    apply(*(pod("attacker", name, container("c", "hello", 80, resources=amounts(0))) for name in names))
    for name in names:
        ready("attacker", name)
    codes, over = {}, time.monotonic() + 10

    def attack(name):
        n = 0
        while time.monotonic() < over:
            n += 1
            patch = {"spec": {"containers": [{"name": "c", "resources": amounts(n)}]}}
            status, _ = ask_api(f"/api/v1/namespaces/attacker/pods/{name}/resize", "PATCH", patch, "application/strategic-merge-patch+json")
            codes[status] = codes.get(status, 0) + 1
    with Beside() as beside:
        with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(attack, names))
        expect(True, set(codes) <= {200, 409, 429}, f"what they were told: {codes}")
        for name in names:
            wanted = lambda: of("attacker", name)["spec"]["containers"][0]["resources"]["limits"]
            given = lambda: of("attacker", name)["status"]["containerStatuses"][0]
            until(f"{name} has what was asked for last", lambda: given()["resources"]["limits"] == wanted())
            expect(0, given()["restartCount"], f"restarts of {name}")
        took = deleted("attacker", *names)
    return f"{codes}, {took:.1f} s to delete; {beside.said()}"


def session_flood():
    """One client opens as many sessions of a small plugin as it may have: calls of others continue without delay."""
    apply(pod("attacker", "small", container("c", "greeter", 80, resources={"limits": {"memory": "16Mi"}})), service("attacker", "small"))
    ready("attacker", "small")
    ip = address("attacker", "small")
    text = {"Content-Type": "application/json"}
    with Beside() as beside:
        codes, slowest = {}, 0
        for n in range(200):
            status, said = request(ip, "/coracle:samples/greeter/guest-book", b'{"title":"t"}', {**text, "coracle-session": f"s{n}"}, timeout=SOON_S)
            codes[status] = codes.get(status, 0) + 1
            if n % 20 == 0:
                began = time.monotonic()
                status, said = request(ip, "/coracle:samples/greeter/greet", b'{"name":"ada"}', text, timeout=SOON_S)
                slowest = max(slowest, time.monotonic() - began)
                expect((200, b'"hello ada"'), (status, said.strip()), f"a call beside {codes} sessions")
        expect(True, codes.get(200, 0) > 0 and set(codes) <= {200, 429, 503}, f"sessions: {codes}")
        expect(True, slowest < 10 * PACE.slowness(), f"a call beside sessions took {slowest:.1f} s")
        took = deleted("attacker", "small")
    return f"sessions {codes}, the slowest call {slowest * 1000:.0f} ms, {took:.1f} s to delete; {beside.said()}"


def hoarders():
    """Warm instances of many pods hold as much as they may, and are dropped under pressure."""
    names = [f"warm{n}" for n in range(10)]
    apply(*(pod("attacker", name, container("c", "hello", 80), annotations={"reuse.coracle.dev/c": "count=100000,idle=60s", "concurrency.coracle.dev/c": "1000"}) for name in names),
          *(service("attacker", name) for name in names))
    for name in names:
        ready("attacker", name)
    ips = [address("attacker", name) for name in names]
    with Beside() as beside:
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            codes = set(pool.map(lambda n: request(ips[n % len(ips)])[0], range(3000)))
        expect({200}, codes, "their own answers")
        apply(pod("neighbour", "late", container("c", "hello", 80)), service("neighbour", "late"))
        ready("neighbour", "late")
        expect(200, request(address("neighbour", "late"))[0], "somebody who comes later")
        took = deleted("attacker", *names)
    deleted("neighbour", "late")
    return f"{took:.1f} s to delete; {beside.said()}"


def keyvalue_flood():
    """Many pods of one namespace write as fast as possible: an increment of another namespace takes turns with namespaces, not with pods."""
    granted = {"host.coracle.dev/c": "keyvalue"}
    names = [f"writer{n}" for n in range(8)]
    apply(*(pod("attacker", name, container("c", "counter", 80), annotations=granted) for name in names), *(service("attacker", name) for name in names),
          pod("neighbour", "counter", container("c", "counter", 80), annotations=granted), service("neighbour", "counter"))
    for name in names:
        ready("attacker", name)
    ready("neighbour", "counter")
    ips, ours = [address("attacker", name) for name in names], address("neighbour", "counter")
    value = base64.b64encode(os.urandom(150_000)).decode()

    def add():
        began = time.monotonic()
        status, said = request(ours, "/coracle:samples/counter/add", b'{"name":"n","by":1}')
        expect(True, status == 200 and b"ok" in said, f"an increment: {status} {said[:200]!r}")
        return time.monotonic() - began
    add()
    alone = sorted(add() for _ in range(30))[-1]
    over, codes = threading.Event(), {}

    def attack(n):
        at = 0
        while not over.is_set():
            at += 1
            status, _ = request(ips[n % len(ips)], "/coracle:samples/counter/keep", json.dumps({"bucket": f"b{n}", "key": f"k{at % 3}", "value": value}).encode())
            codes[status] = codes.get(status, 0) + 1
    with Beside() as beside, concurrent.futures.ThreadPoolExecutor(32) as pool:
        flood = [pool.submit(attack, n) for n in range(32)]
        try:
            until("the flood is there", lambda: sum(codes.values()) > 32)
            times = sorted(add() for _ in range(40))
        finally:
            over.set()
        for one in flood:
            one.result()
    took = deleted("attacker", *names)
    said = f"increments: slowest alone {alone * 1000:.0f} ms, beside a flood half {times[20] * 1000:.0f} ms, slowest {times[-1] * 1000:.0f} ms, the flood's answers {codes}"
    expect(True, set(codes) <= {200}, said)
    expect(True, times[-1] < max(alone * BESIDE_TIMES, BESIDE_S) * PACE.slowness(), said)
    return f"{said}, {took:.1f} s to delete; {beside.said()}"


def links_out():
    """Links of guests at paths that the node reads lead to none of the node's files: a termination message, a working directory."""
    up = "../" * 20
    say = lambda name, path, command: pod("attacker", name, container("c", "toolbox", command=["sh", "-c", command], terminationMessagePath=path, volumeMounts=[{"name": "v", "mountPath": "/data"}]),
                                          restartPolicy="Never", volumes=[{"name": "v", "emptyDir": {}}])
    apply(say("way", "/data/x/passwd", f"ln -s {up}etc /data/x; exit 1"), say("file", "/data/x", f"ln -s {up}etc/passwd /data/x; exit 1"),
          say("plain", "/data/x", "echo words > /data/x; exit 1"))
    messages = {}
    for name in ("way", "file", "plain"):
        ended = until(f"{name} ends", lambda: [s["state"]["terminated"] for s in of("attacker", name).get("status", {}).get("containerStatuses", []) if "terminated" in s["state"]])
        expect(1, ended[0]["exitCode"], f"{name}: {ended}")
        messages[name] = ended[0].get("message", "")
    expect({"way": "", "file": "", "plain": "words\n"}, messages, "termination messages")
    deleted("attacker", *messages)


PLANTED = "pl4nted-" + base64.b16encode(os.urandom(6)).decode()


def leaks():
    """Passwords and tokens are in no event, status or log of the node, whatever fails with them."""
    auth = {"auths": {"127.0.0.1:1": {"username": "u", "password": PLANTED, "auth": base64.b64encode(f"u:{PLANTED}".encode()).decode()}}}
    secret = lambda name, kind, data: {"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "attacker", "name": name}, "type": kind, "stringData": data}
    header = [{"name": "Authorization", "value": f"Bearer {PLANTED}"}]
    http = {"httpGet": {"port": 80, "path": "/none", "httpHeaders": header}}
    token = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "plain", "key": "token"}}}
    apply(secret("registry", "kubernetes.io/dockerconfigjson", {".dockerconfigjson": json.dumps(auth)}), secret("plain", "Opaque", {"token": PLANTED}),
          secret("broken", "kubernetes.io/dockerconfigjson", {".dockerconfigjson": json.dumps({"auths": {"127.0.0.1:1": {"auth": PLANTED}}})}),
          *(pod("attacker", f"pull-{n}", {"name": "c", "image": "127.0.0.1:1/none:v1"}, imagePullSecrets=[{"name": n}]) for n in ("registry", "broken")),
          pod("attacker", "probed", container("c", "hello", 80, env=[token], readinessProbe={**http, "periodSeconds": 1, "failureThreshold": 1}, lifecycle={"postStart": {"httpGet": {"port": 1, "path": "/none", "httpHeaders": header}}})),
          pod("attacker", "ran", container("c", "toolbox", env=[token], command=["sh", "-c", "nonsense $TOKEN; exit 3"], args=["$(TOKEN)"]), restartPolicy="Never"),
          pod("attacker", "command", container("c", "toolbox", env=[token], command=["$(TOKEN)"]), restartPolicy="Never"),
          pod("attacker", "exec", container("c", "hello", 80, env=[token], livenessProbe={"exec": {"command": ["nonsense", "$(TOKEN)"]}, "periodSeconds": 1})))
    said = lambda name: [e["reason"] for e in get("/api/v1/namespaces/attacker/events")["items"] if e["involvedObject"]["name"] == name]
    for name, reason in (("pull-registry", "Failed"), ("pull-broken", "Failed"), ("probed", "FailedPostStartHook"), ("exec", "Unhealthy")):
        until(f"{name}: {reason}", lambda: reason in said(name))
    for name in ("ran", "command"):
        until(f"{name} ends", lambda: of("attacker", name).get("status", {}).get("phase") in ("Failed", "Succeeded") or "Failed" in said(name))
    session("attacker", "probed", "nonsense", PLANTED).socket.close()
    run_kubectl("exec", "-n", "attacker", "probed", "--", "nonsense", PLANTED)
    places = {"events": json.dumps(get("/api/v1/namespaces/attacker/events")), "the node": json.dumps(get("/api/v1/nodes")),
              "statuses": json.dumps([p.get("status") for p in get("/api/v1/namespaces/attacker/pods")["items"]])}
    with open(os.environ["DATA"] + "/../up.log") as f:
        places["the log"] = f.read()
    for place, text in places.items():
        at = text.find(PLANTED)
        expect(-1, at, f"{place}: {text[max(0, at - 200):at + 100]}")
        hidden = base64.b64encode(f"u:{PLANTED}".encode()).decode()
        expect(False, hidden in text, f"{place}, encoded")
    deleted("attacker", "pull-registry", "pull-broken", "probed", "ran", "command", "exec")


for name in ("attacker", "neighbour"):
    namespace(name)
apply(pod("attacker", "compiled", container("c", "toolbox", command=["true"]), restartPolicy="Never"))
until("the toolbox is compiled", lambda: of("attacker", "compiled").get("status", {}).get("phase") == "Succeeded", 240)
deleted("attacker", "compiled")
# Its request is guaranteed beside others.
apply(pod("neighbour", "web", container("c", "hello", 80, resources={"requests": {"cpu": "100m"}})), service("neighbour", "web"))
# Another pod has no request, and gets a part of its namespace's share.
apply(pod("neighbour", "poor", container("c", "hello", 80)), service("neighbour", "poor"))
ready("neighbour", "web")
ready("neighbour", "poor")
NEIGHBOUR, POOR = address("neighbour", "web"), address("neighbour", "poor")
main((links_out, leaks, exec_flood, dialers, followers, slow_readers, thousands_of_containers, ephemeral_loop, plugin_bombs, session_flood, probe_storm, hook_flood, resize_flood, hoarders, keyvalue_flood), at_once=1)

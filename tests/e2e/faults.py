"""Faults of the first version that could be seen from outside, and are seen by no other script: `faults.py KUBECONFIG [CASE…]`.
`UP_PID` is the cluster's process, `DATA` its folder.
"""
import http.client, json, os, threading, time

from pace import Pace
from suite import CLUSTER, HANG_S, NS, SOON_S, Wrong, apply, ask_api, expect, get, kubectl, main, until

UP_PID = int(os.environ["UP_PID"])
HIDDEN = "%F4%8F%BF%BFhidden"  # U+10FFFF: no code point is above it
CAUSES_MAX = 257  # and one that counts the rest
WARNINGS_MAX = 300
BODY_S = 20.0  # on a quiet machine


def pod(name, image, restart="Never", **spec):
    container = {"name": "c", "image": image, **spec.pop("container", {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": {"restartPolicy": restart, "containers": [container], **spec}}


def phase(name):
    return (get(f"{NS}/pods/{name}") or {}).get("status", {}).get("phase")


def resident_mib():
    with open(f"/proc/{UP_PID}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS")) >> 10


class Peak:
    """The maximum memory of the cluster's process meanwhile, beyond its memory before."""

    def __enter__(self):
        self.before, self.most, self.over = resident_mib(), 0, threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def look(self):
        while not self.over.wait(0.02):
            self.most = max(self.most, resident_mib() - self.before)

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


def slow_compiles():
    """Two modules that compile for minutes: quick ones of other pods start beside them."""
    apply(*(pod(f"knot{n}", f"registry.local/knot{n}:v1") for n in (1, 2)))
    until("both compile", lambda: all(any(e["reason"] == "Pulling" for e in get(f"{NS}/events?fieldSelector=involvedObject.name%3Dknot{n}")["items"]) for n in (1, 2)))
    quick = [f"quick{n}" for n in range(10)]
    apply(*(pod(name, f"registry.local/{name}:v1") for name in quick))
    until("quick modules run", lambda: all(phase(name) == "Succeeded" for name in quick), 40)
    expect(["Pending", "Pending"], [phase("knot1"), phase("knot2")], "the slow ones meanwhile")
    kubectl("delete", "pods", "knot1", "knot2", "--wait=false")


def hidden_grant():
    """A RoleBinding named with the highest code point is in its namespace's list, and goes with its namespace."""
    kubectl("create", "namespace", "hiding")
    base = "/apis/rbac.authorization.k8s.io/v1/namespaces/hiding/rolebindings"
    binding = {"metadata": {"name": "\U0010ffffhidden"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}, "subjects": []}
    status, made = ask_api(base, "POST", binding)
    expect(201, status, f"the binding: {made}")
    expect(["\U0010ffffhidden"], [item["metadata"]["name"] for item in get(base)["items"]], "the namespace's bindings")
    kubectl("delete", "namespace", "hiding", f"--timeout={HANG_S}s")
    expect(None, get(f"{base}/{HIDDEN}"), "the binding of a namespace that is gone")


def two_billion_indexes():
    """One Job with 2^31 - 1 indexes costs no memory."""
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "billions"},
           "spec": {"completionMode": "Indexed", "completions": 2**31 - 1, "parallelism": 2, "successPolicy": {"rules": [{"succeededIndexes": f"0-{2**31 - 2}"}]},
                    "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "registry.local/loop:v1", "resources": {"limits": {"cpu": "10m"}}}]}}}}
    with Peak() as peak:
        apply(job)
        pods = f"{NS}/pods?labelSelector=job-name%3Dbillions"
        until("two of its pods run", lambda: [p["status"].get("phase") for p in get(pods)["items"]] == ["Running"] * 2)
        kubectl("delete", "job", "billions", f"--timeout={HANG_S}s")
    if peak.most > 400:
        raise Wrong(f"it took {peak.most} MiB")
    return f"{peak.most} MiB"


def room_of_the_force_deleted():
    """A pod after one deleted by force gets its resources."""
    node = get("/api/v1/nodes")["items"][0]
    room = {"resources": {"requests": {"cpu": f"{int(float(node['status']['allocatable']['cpu'].removesuffix('m')) * (1 if node['status']['allocatable']['cpu'].endswith('m') else 1000) * 0.7)}m"}, "limits": {"memory": "32Mi"}}}
    for turn in range(5):
        name = f"room{turn}"
        apply(pod(name, "registry.local/loop:v1", nodeName=node["metadata"]["name"], container=room))
        until(f"{name} runs or fails", lambda: phase(name) in ("Running", "Failed"))
        expect("Running", phase(name), f"{name}, after the one before it was deleted by force: {get(f'{NS}/pods/{name}')['status'].get('message')}")
        kubectl("delete", "pod", name, "--force", "--grace-period=0", "--wait=false")


def one_body(path, body, media):
    """A response of the API server: its status, number of causes and warnings, and time in seconds."""
    began = time.monotonic()
    c = CLUSTER.connect(SOON_S)
    try:
        c.request("POST", path, body, {"Content-Type": media})
        r = c.getresponse()
        answer = json.loads(r.read())
        return r.status, len(answer.get("details", {}).get("causes", [])), len(r.headers.get_all("Warning") or []), time.monotonic() - began
    finally:
        c.close()


def protobuf_of_empty_containers(how_many):
    """A core/v1 Pod in upstream's envelope: spec (2) of containers (2) of no bytes."""
    def leb(n):
        return bytes((n & 127 | 128,)) + leb(n >> 7) if n > 127 else bytes((n,))
    spec = b"\x12\0" * how_many
    raw = b"\x0a\x06\x0a\x04many" + b"\x12" + leb(len(spec)) + spec
    kind = b"\x0a\x02v1\x12\x03Pod"
    return b"k8s\0" + b"\x0a" + leb(len(kind)) + kind + b"\x12" + leb(len(raw)) + raw


def bodies_that_cost():
    """Bodies with many errors: a bounded response, bounded memory, and others are served meanwhile."""
    text = lambda fields: json.dumps({"apiVersion": "v1", "kind": "ConfigMap", **fields})
    json_, configmaps, pods = "application/json", f"{NS}/configmaps", f"{NS}/pods"
    bodies = [
        (configmaps, text({"metadata": {"name": "a", "finalizers": [f"bad finalizer {n}" for n in range(60000)]}}), json_),
        (configmaps, text({"metadata": {"name": "a"}, "data": {f"bad key {n}": "" for n in range(50000)}}), json_),
        (pods, json.dumps(pod("a", "i", tolerations=[{"key": f"bad key {n}", "operator": "None"} for n in range(35000)])), json_),
        (pods, json.dumps({**pod("a", "i"), "spec": {"containers": [{}] * 25000}}), json_),
        (configmaps, text({"metadata": {"name": "a", "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": f"o{n}", "uid": "", "bad": n} for n in range(16000)]}}), json_),
        (pods, protobuf_of_empty_containers(700000), "application/vnd.kubernetes.protobuf"),
    ]
    worst, over = 0.0, threading.Event()

    def others():
        nonlocal worst
        while not over.wait(0.02):
            began = time.monotonic()
            get(f"{NS}/serviceaccounts/default")
            worst = max(worst, time.monotonic() - began)

    other = threading.Thread(target=others)
    other.start()
    try:
        with Peak() as peak, Pace() as pace:
            for path, body, media in bodies:
                status, causes, warnings, took = one_body(path, body, media)
                what = f"{len(body)} bytes of {media}: {status}, {causes} causes, {warnings} warnings, {took:.1f} s"
                if status // 100 != 4 or causes > CAUSES_MAX or warnings > WARNINGS_MAX or took > BODY_S * pace.slowness():
                    raise Wrong(what)
    finally:
        over.set()
        other.join()
    if peak.most > 600:
        raise Wrong(f"they took {peak.most} MiB")
    return f"{peak.most} MiB, another client waited {worst * 1000:.0f} ms at most"


def thousand_commands():
    """As many commands as the engine has slots: a server responds beside them."""
    apply(pod("front", "registry.local/hello:v1", restart="Always", container={"ports": [{"containerPort": 80}]}),
          {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "front"}, "spec": {"selector": {"app": "front"}, "ports": [{"port": 80}]}})
    many = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "many"},
            "spec": {"completions": 1000, "parallelism": 1000, "template": {"spec": {"restartPolicy": "Never", "containers": [
                {"name": "c", "image": "registry.local/loop:v1", "resources": {"limits": {"cpu": "1m", "memory": "4Mi"}, "requests": {"cpu": "0", "memory": "0"}}}]}}}}
    apply(many)
    until("a thousand run", lambda: get("/apis/batch/v1/namespaces/default/jobs/many")["status"].get("ready", 0) == 1000, 120)
    ip = get(f"{NS}/services/front")["spec"]["clusterIP"]
    for _ in range(20):
        c = http.client.HTTPConnection(ip, 80, timeout=SOON_S)
        try:
            c.request("GET", "/")
            expect(200, c.getresponse().status, "a request beside a thousand commands")
        finally:
            c.close()
    kubectl("delete", "job", "many", "--wait=false")


main((hidden_grant, room_of_the_force_deleted, bodies_that_cost, two_billion_indexes, slow_compiles, thousand_commands), at_once=1)

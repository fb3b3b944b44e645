"""The disk is full in each thing that writes to it: `full.py KUBECONFIG [CASE…]`. `DATA` is the cluster's folder, in which `images`,
`compiled`, `nodes` and `store` are mounts of their own; `ELSEWHERE` is a registry of others. Whatever is full, a neighbour that serves
goes on, and so does the API server; with room again everything comes right by itself.
"""
import contextlib, http.client, os, re, subprocess, threading, time

from suite import CLUSTER, NS, SOON_S, Wrong, apply, ask_api, expect, get, kubectl, main, until

DATA, ELSEWHERE = os.environ["DATA"], os.environ["ELSEWHERE"]
LARGE = "8g"
COMPILED_S = 120  # by a debug build on a busy machine
NEVER_EVICTED = {"priorityClassName": "system-node-critical", "tolerations": [{"key": "node.kubernetes.io/disk-pressure", "operator": "Exists"}]}
NO_ROOM = "[Nn]o space left on device"
FREE_SOME = "[Ff]ree some space on the disk of the data folder"


def mounted(folder, **options):
    """The mount's options, changed."""
    given = ",".join(["remount", *(f"{key}={value}" for key, value in options.items())])
    # With the source beside it mount(8) adds no options of its own, some of which are rejected in a user namespace.
    done = subprocess.run(["mount", "--no-mtab", "-o", given, "coracle-full", os.path.join(DATA, folder)], capture_output=True, text=True)
    if done.returncode:
        raise Wrong(f"{folder} can't be mounted with {given}: {done.stderr.strip()}")


def shrink(folder, room=0):
    """Leaves that many bytes free, whatever is written meanwhile."""
    def small():
        disk = os.statvfs(os.path.join(DATA, folder))
        used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize
        try:
            mounted(folder, size=max(used + room, 1 << 16))
        except Wrong:
            return False
        return True
    until(f"{folder} is small", small, 10)


@contextlib.contextmanager
def full(folder, room=0):
    shrink(folder, room)
    try:
        yield
    finally:
        mounted(folder, size=LARGE)


def files(folder):
    return {os.path.relpath(os.path.join(at, name), DATA) for at, _, names in os.walk(os.path.join(DATA, folder)) for name in names}


def pod(name, image, **spec):
    container = {"name": "c", "image": image, **spec.pop("container", {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": {"terminationGracePeriodSeconds": 1, "containers": [container], **spec}}


def status(name):
    return (get(f"{NS}/pods/{name}") or {}).get("status", {})


def container(name):
    return (status(name).get("containerStatuses") or [{}])[0]


def is_ready(name):
    return container(name).get("ready") is True


def events(name, reason):
    return [event["message"] for event in get(f"{NS}/events?fieldSelector=involvedObject.name%3D{name}")["items"] if event["reason"] == reason]


def told(name, reason, pattern, seconds=30):
    try:
        until(f"event {reason} of {name} with {pattern!r}", lambda: any(re.search(pattern, text) for text in events(name, reason)), seconds)
    except Wrong as e:
        raise Wrong(f"{e}; there is {events(name, reason)}") from e


def becomes(name, what, check, seconds=COMPILED_S):
    try:
        until(f"{name} {what}", lambda: check(status(name)), seconds)
    except Wrong as e:
        raise Wrong(f"{e}; it is {status(name)}") from e


def waits(name, *reasons):
    becomes(name, f"waits for one of {reasons}", lambda _: container(name).get("state", {}).get("waiting", {}).get("reason") in reasons)


def ready_as_it_is(name, seconds=COMPILED_S):
    """Becomes Ready without an earlier start."""
    becomes(name, "is Ready", lambda _: is_ready(name), seconds)
    expect(0, container(name)["restartCount"], f"restarts of {name}")


def answer(ip, port=8080):
    c = http.client.HTTPConnection(ip, port, timeout=SOON_S)
    try:
        c.request("GET", "/")
        response = c.getresponse()
        response.read()
        return response.status
    finally:
        c.close()


@contextlib.contextmanager
def neighbours():
    """A server and the API server respond all the time."""
    over, wrong = threading.Event(), []
    ip = get(f"{NS}/services/front")["spec"]["clusterIP"]

    def ask():
        while not over.wait(0.05):
            try:
                expect(200, answer(ip), "a request to the neighbour")
                expect(200, ask_api(f"{NS}/serviceaccounts/default", timeout=SOON_S)[0], "a request to the API server")
            except Exception as e:
                wrong.append(repr(e))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        over.set()
        asking.join()
    if wrong:
        raise Wrong(f"{len(wrong)} requests beside it: {wrong[:3]}")


def set_up():
    apply(pod("front", "registry.local/hello:v1", container={"ports": [{"containerPort": 80}]}, **NEVER_EVICTED),
          {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "front"}, "spec": {"selector": {"app": "front"}, "ports": [{"port": 8080, "targetPort": 80}]}})
    until("the neighbour is Ready", lambda: is_ready("front"), COMPILED_S)
    ip = get(f"{NS}/services/front")["spec"]["clusterIP"]

    def answers():
        with contextlib.suppress(OSError):
            return answer(ip) == 200
    until("the neighbour answers", answers)


def in_pull():
    """Neither a pull nor a push takes the store's reserve; both report it, leave nothing behind, and succeed once there is space."""
    before = files("images")
    with neighbours():
        with full("images", 100 << 20):
            apply(pod("pulled", f"{ELSEWHERE}/cncf/hello:v1", restartPolicy="Never"))
            waits("pulled", "ErrImagePull", "ImagePullBackOff")
            told("pulled", "Failed", f'Failed to pull image ".*/cncf/hello:v1": .*{NO_ROOM}: [0-9]+ bytes are free.*{FREE_SOME}')
            done = subprocess.run([os.environ["CORACLE"], "push", "--data-dir", DATA, os.environ["PUSHED"], "registry.local/pushed:v1"], capture_output=True, text=True)
            expect(1, done.returncode, "the exit code of a push")
            if not re.search(f"{NO_ROOM}.*{FREE_SOME}", done.stderr):
                raise Wrong(f"the push says: {done.stderr}")
            until("nothing is left of it", lambda: not files("images") - before, 10)
        becomes("pulled", "has run", lambda of: "terminated" in of["containerStatuses"][0]["state"])


def in_pull_without_inodes():
    """A disk may be full of files, too."""
    before = files("images")
    disk = os.statvfs(os.path.join(DATA, "images"))
    with neighbours():
        mounted("images", nr_inodes=disk.f_files - disk.f_ffree)
        try:
            apply(pod("inodes", f"{ELSEWHERE}/scratch/hello:v1", restartPolicy="Never"))
            waits("inodes", "ErrImagePull", "ImagePullBackOff")
            told("inodes", "Failed", f"Failed to pull image.*{NO_ROOM}.*{FREE_SOME}")
            until("nothing is left of it", lambda: not files("images") - before, 10)
        finally:
            mounted("images", nr_inodes=1000000)
        becomes("inodes", "has run", lambda of: "terminated" in of["containerStatuses"][0]["state"])


def in_compilation():
    """No module is compiled into the store's reserve; it is compiled as soon as there is space."""
    before = files("compiled")
    with neighbours():
        with full("compiled", 1 << 20):
            apply(pod("compiled", "registry.local/shop-catalog:v1"))
            waits("compiled", "ErrImagePull", "ImagePullBackOff")
            told("compiled", "Failed", f'Failed to pull image "registry.local/shop-catalog:v1": .*{NO_ROOM}.*{FREE_SOME}')
            until("nothing is left of it", lambda: not files("compiled") - before, 10)
        ready_as_it_is("compiled")
    kubectl("delete", "pod", "compiled", "--wait=false")


def in_the_midst_of_a_compilation():
    """A partial artifact is removed and never loaded."""
    before = files("compiled")
    with neighbours():
        apply(pod("amidst", "registry.local/shop-frontend:v1"))
        until("it is compiled", lambda: files("compiled") - before)
        with full("compiled", 16 << 10):
            waits("amidst", "ErrImagePull", "ImagePullBackOff")
            told("amidst", "Failed", f"Failed to pull image.*{NO_ROOM}.*{FREE_SOME}")
            until("nothing is left of it", lambda: not files("compiled") - before, 10)
        ready_as_it_is("amidst")
    kubectl("delete", "pod", "amidst", "--wait=false")


def in_store():
    """Writes are rejected with upstream's 500 and succeed once there is space; reads, watches and guests continue."""
    thing = lambda name: {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"x": "y" * 100000}}
    refused = []

    def write():
        code, said = ask_api(f"{NS}/configmaps", "POST", thing(f"filler{time.monotonic_ns()}"))
        if code != 201:
            refused.append((code, said.get("message", "")))
        return refused
    with neighbours():
        with full("store", 1 << 20):
            until("a write is refused", write)
            code, message = refused[0]
            expect(500, code, message)
            if not re.match(f"{NO_ROOM}: .*/store has [0-9]+ bytes free", message):
                raise Wrong(f"it says {message}")
        until("writes go through", lambda: ask_api(f"{NS}/configmaps", "POST", thing("after"))[0] in (201, 409))
        expect("y" * 100000, get(f"{NS}/configmaps/after")["data"]["x"], "what was written then")
    until("the node is Ready", lambda: condition("Ready")["status"] == "True")


def condition(kind):
    return next(c for c in get("/api/v1/nodes")["items"][0]["status"]["conditions"] if c["type"] == kind)


def put_config(method, version):
    thing = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "config"}, "data": {name: f"{version}-{name} " * 30000 for name in "ab"}}
    code, said = ask_api(f"{NS}/configmaps{'/config' if method == 'PUT' else ''}", method, thing)
    expect(2, code // 100, f"the ConfigMap: {said.get('message')}")


def shown(name):
    """A guest's view of its volume: the version of each file, and whether it is complete."""
    seen = set()
    for key in "ab":
        text = kubectl("exec", name, "--", "cat", f"/config/{key}")
        version = text.split("-")[0]
        expect(f"{version}-{key} " * 30000 == text, True, f"{key} is whole; it begins with {text[:20]!r} and has {len(text)} bytes")
        seen.add(version)
    return seen


def of_volumes_and_logs():
    """The content of a volume stays complete and unchanged until there is space for all of the new one; a log has whole lines and reports its losses.
    The node reports DiskPressure and evicts, as upstream's."""
    talks = "i=0; while true; do i=$((i+1)); echo line $i end; sleep 0.01; done"
    volume = {"volumes": [{"name": "config", "configMap": {"name": "config"}}]}
    mounts = {"volumeMounts": [{"name": "config", "mountPath": "/config"}]}
    reader = lambda name: pod(name, "registry.local/toolbox:v1", container={"command": ["sh", "-c", talks], **mounts}, **volume, **NEVER_EVICTED)
    put_config("POST", "one")
    fills = "i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo > /room/$i; done; while true; do sleep 1; done"
    many = {"volumes": [{"name": "room", "emptyDir": {}}], "container": {"command": ["sh", "-c", fills], "volumeMounts": [{"name": "room", "mountPath": "/room"}]}}
    apply(reader("reader"), pod("ordinary", "registry.local/hello:v1"), pod("many", "registry.local/toolbox:v1", **many))
    until("they run", lambda: is_ready("reader") and is_ready("ordinary") and is_ready("many"), COMPILED_S)
    expect({"one"}, shown("reader"), "the volume")
    expect("False", condition("DiskPressure")["status"], "DiskPressure")
    uid = get(f"{NS}/pods/reader")["metadata"]["uid"]
    node = get("/api/v1/nodes")["items"][0]["metadata"]["name"]
    at = next(os.path.join(base, "config") for base, folders, _ in os.walk(os.path.join(DATA, "nodes", node, "pods", uid)) if "config" in folders)
    logs = os.path.join(DATA, "nodes", node, "logs", uid, "c", "0.log")
    with neighbours():
        until("it has its files", lambda: files_in(get(f"{NS}/pods/many")["metadata"]["uid"]) >= 400)
        out_of_inodes("many")
        expect(True, is_ready("ordinary"), "a pod of few files stays")
        with full("nodes", 256 << 10):
            put_config("PUT", "two")
            told("reader", "FailedMount", f'MountVolume.SetUp failed for volume "config" : .*{NO_ROOM}.*{FREE_SOME}')
            expect({"one"}, shown("reader"), "the volume while its disk is full")
            folders = lambda: sorted(name for name in os.listdir(at) if name.startswith("..") and name != "..data")
            alone = lambda what: until(what, lambda: folders() == [os.readlink(os.path.join(at, "..data"))], 10)
            alone("folders of the volume's versions")
            apply(reader("later"))
            told("later", "FailedMount", f"{NO_ROOM}.*{FREE_SOME}")
            until("the node says DiskPressure", lambda: condition("DiskPressure")["status"] == "True")
            expect(("KubeletHasDiskPressure", "kubelet has disk pressure"), (condition("DiskPressure")["reason"], condition("DiskPressure")["message"]), "its reason")
            until("an ordinary pod is evicted", lambda: status("ordinary").get("reason") == "Evicted")
            expect("Failed", status("ordinary")["phase"], "its phase")
            if not re.match(r"The node was low on resource: ephemeral-storage\. Threshold quantity: [0-9]+[KMGi]*, available: ", status("ordinary")["message"]):
                raise Wrong(f"it was evicted as {status('ordinary')['message']}")
            met = lambda: get("/api/v1/namespaces/default/events?fieldSelector=reason%3DEvictionThresholdMet")["items"]
            until("the node's event", lambda: any(e["message"] == "Attempting to reclaim ephemeral-storage" and e["involvedObject"]["name"] == node for e in met()))
            until("its taint", lambda: any(t["key"] == "node.kubernetes.io/disk-pressure" for t in get("/api/v1/nodes")["items"][0]["spec"].get("taints", [])))
            # The log takes the rest, until it can't be written any more.
            shrink("nodes")
            sizes = lambda: os.path.getsize(logs)
            until("the log is full", lambda: free_bytes("nodes") == 0 and stands_still(sizes))
            expect(True, is_ready("reader"), "the container whose log is lost goes on")
            kubectl("logs", "reader", "--tail=1")
        until("the new version", lambda: shown("reader") == {"two"}, 90)
        alone("no other version is left")
        lost = lambda: re.search(r"^\[coracle\] ([0-9]+) lines were lost", kubectl("logs", "reader"), re.M)
        until("the log says what it lost", lost)
        until("the log goes on", lambda: re.match(r"line [0-9]+ end$", kubectl("logs", "reader", "--tail=1").strip()))
        check_log(kubectl("logs", "reader"), logs)
        ready_as_it_is("later", 90)
        expect({"two"}, shown("later"), "the volume of a pod that waited")
        expect(0, container("reader")["restartCount"], "restarts of the reader")


def files_in(uid):
    return sum(uid in name for name in files("nodes"))


def out_of_inodes(name):
    """The node's file system has no inodes and much free space: the pod with most of them is evicted."""
    def evicted():
        # Inodes freed meanwhile are taken, too.
        disk = os.statvfs(os.path.join(DATA, "nodes"))
        used = disk.f_files - disk.f_ffree
        if disk.f_ffree * 30 > disk.f_files:
            mounted("nodes", nr_inodes=used + used // 40)
        return status(name).get("reason") == "Evicted"

    try:
        until(f"{name} is evicted", evicted)
        expect(("True", "KubeletHasDiskPressure"), (condition("DiskPressure")["status"], condition("DiskPressure")["reason"]), "DiskPressure")
        if not re.match(r"The node was low on resource: inodes\. Threshold quantity: [0-9]+, available: [0-9]+\. $", status(name)["message"]):
            raise Wrong(f"it was evicted as {status(name)['message']!r}")
    finally:
        mounted("nodes", nr_inodes=1000000)


def free_bytes(folder):
    disk = os.statvfs(os.path.join(DATA, folder))
    return disk.f_bavail * disk.f_frsize


def stands_still(size):
    """For 5 s: the guest writes a hundred lines a second, and some also on a busy machine."""
    before = size()
    for _ in range(100):
        time.sleep(0.05)
        if size() != before:
            return False
    return True


def check_log(text, path):
    """Numbers are consecutive; gaps are the reported losses."""
    expected, missing = 1, None
    for line in text.splitlines():
        lost = re.fullmatch(r"\[coracle\] ([0-9]+) lines were lost.*", line)
        if lost:
            if not re.search(NO_ROOM, line):
                raise Wrong(f"the log says {line!r}")
            expected += int(lost[1])
            continue
        number = re.fullmatch(r"line ([0-9]+) end", line)
        if not number or int(number[1]) != expected:
            raise Wrong(f"line {line!r} where line {expected} is expected")
        expected += 1
    with open(path, "rb") as f:
        for line in f:
            if not re.match(rb"[0-9T:.Z-]+ (stdout|stderr) [FP] .*\n$", line):
                raise Wrong(f"the log has {line!r}")


set_up()
main((in_pull, in_pull_without_inodes, in_compilation, in_the_midst_of_a_compilation, in_store, of_volumes_and_logs), at_once=1)

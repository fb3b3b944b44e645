"""The history of pod statuses: every version by a watch, and the invariants of each two consecutive ones."""
import json, threading, time

PHASES = {"Pending": 0, "Running": 1, "Succeeded": 2, "Failed": 2}
LISTS = ("initContainerStatuses", "containerStatuses", "ephemeralContainerStatuses")
# More changes in one life of the node are flapping: waiting, started, ready, and as many for an end.
VERSIONS_MAX = 14


class History:
    """All versions of all pods of a namespace: `lives` counts the starts of the node."""

    def __init__(self, path):
        self.path, self.lives, self.newest = path, 0, None
        self.versions, self.names, self.gone, self.lock = {}, {}, set(), threading.Lock()

    def follow(self, cluster):
        """From here on, until this life of the node ends."""
        self.lives += 1
        threading.Thread(target=self.read, args=(cluster, self.lives), daemon=True).start()

    def saw(self, life, pod, gone=False):
        with self.lock:
            uid, version = pod["metadata"]["uid"], int(pod["metadata"]["resourceVersion"])
            seen = self.versions.setdefault(uid, [])
            if not seen or int(seen[-1][1]["metadata"]["resourceVersion"]) < version:
                seen.append((life_of(seen, life, pod), pod))
            self.names[uid] = pod["metadata"]["name"]
            self.newest = version if self.newest is None else max(version, self.newest)
            if gone:
                self.gone.add(uid)

    def read(self, cluster, life):
        try:
            while True:
                if self.newest is None:
                    c = cluster.connect(20)
                    c.request("GET", self.path)
                    listed = json.loads(c.getresponse().read())
                    for pod in listed["items"]:
                        self.saw(life, pod)
                    self.newest = int(listed["metadata"]["resourceVersion"])
                c = cluster.connect(None)
                c.request("GET", f"{self.path}?watch=true&resourceVersion={self.newest}")
                for line in c.getresponse():
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        self.newest = None  # expired: the versions in between are not seen
                        break
                    self.saw(life, event["object"], event["type"] == "DELETED")
        except (OSError, ValueError, AttributeError):
            pass  # this life is over

    def caught_up(self, pods):
        """Whether all of these states were seen."""
        with self.lock:
            newest = {uid: int(seen[-1][1]["metadata"]["resourceVersion"]) for uid, seen in self.versions.items()}
        return all(newest.get(pod["metadata"]["uid"], 0) >= int(pod["metadata"]["resourceVersion"]) for pod in pods)

    def problems(self):
        with self.lock:
            return [f"{self.names[uid]}: {problem}" for uid, seen in self.versions.items() for problem in of_pod(seen)]


def life_of(seen, life, pod):
    """The life that wrote this version: the watch of the next one delivers the last writes of the one before.

    All runs of a node end with it, so no later life may report a run of an earlier one as running."""
    if seen and seen[-1][0] < life and running(seen[-1][1]) & running(pod):
        return seen[-1][0]
    return life


def running(pod):
    return {status.get("containerID") for _, status in containers(pod).values() if "running" in status["state"]} - {None}


def version(pod):
    return int(pod["metadata"]["resourceVersion"])


def containers(pod):
    return {status["name"]: (kind, status) for kind in LISTS for status in pod.get("status", {}).get(kind) or []}


def ready(pod):
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod.get("status", {}).get("conditions") or [])


def ends(pod):
    return "deletionTimestamp" in pod["metadata"] or PHASES[pod["status"].get("phase", "Pending")] == 2


def ids(status):
    """The current run, and the reported ended ones."""
    ended = {status[key]["terminated"].get("containerID") for key in ("state", "lastState") if "terminated" in status.get(key, {})}
    return (status.get("containerID") if "running" in status["state"] else None), ended


def ready_to_begin_anew(was, now):
    """As upstream: a pod that always restarts begins with its init containers after a lost sandbox, and is Pending meanwhile."""
    phases = [of.get("status", {}).get("phase") for of in (was, now)]
    return phases == ["Running", "Pending"] and bool(now["spec"].get("initContainers")) and now["spec"]["restartPolicy"] == "Always"


def of_pod(seen):
    problems, restarted = [], {1}
    for (life, was), (next_life, now) in zip(seen, seen[1:]):
        anew = next_life not in restarted and ready_to_begin_anew(was, now)
        restarted |= {next_life} if anew else set()
        problems += [f"life {life} to {next_life}, version {now['metadata']['resourceVersion']}: {p}" for p in of_two(was, now, next_life > life, anew)]
    for life in {life for life, _ in seen}:
        own = [pod for of, pod in seen if of == life]
        before = [pod for of, pod in seen if of < life][-1:]
        rises = [two for two in zip(before + own, own if before else own[1:]) if not ready(two[0]) and ready(two[1])]
        falls = [two for two in zip(own, own[1:]) if ready(two[0]) and not ready(two[1]) and not ends(two[1])]
        crashes = "kills/crashes" in own[-1]["metadata"].get("annotations", {})
        if crashes:
            continue
        if len(rises) > 1 or (rises and falls and version(falls[-1][1]) > version(rises[-1][1])):
            turns = [(version(pod), ready(pod), sorted(running(pod))) for pod in before + own]
            problems.append(f"life {life}: Ready rose {len(rises)} times and fell {len(falls)} times: {turns}")
        if len(own) > VERSIONS_MAX:
            problems.append(f"life {life}: {len(own)} versions")
    return problems


def of_two(was, now, killed, anew):
    old, new = was.get("status", {}), now.get("status", {})
    if old.get("startTime") and new.get("startTime") != old["startTime"]:
        yield f"startTime {old['startTime']} became {new.get('startTime')}"
    before, after = PHASES[old.get("phase", "Pending")], PHASES[new.get("phase", "Pending")]
    if after < before and not anew:
        yield f"phase {old['phase']} became {new['phase']}"
    if before == 2 and (old["phase"], old.get("reason"), old.get("containerStatuses")) != (new["phase"], new.get("reason"), new.get("containerStatuses")):
        yield f"what had ended changed: {old} became {new}"
    if old.get("observedGeneration", 0) > new.get("observedGeneration", 0):
        yield "observedGeneration fell"
    for name, (kind, one) in containers(was).items():
        if name not in containers(now):
            yield f"container {name} has no status any more"
            continue
        yield from (f"container {name}: {p}" for p in of_container(one, containers(now)[name][1], kind, now["spec"]["restartPolicy"], killed))


def of_container(was, now, kind, policy, killed):
    if now["restartCount"] < was["restartCount"]:
        yield f"restartCount {was['restartCount']} became {now['restartCount']}"
    (old, ended_before), (new, ended) = ids(was), ids(now)
    if old and new and old != new and now["restartCount"] == was["restartCount"]:
        yield "started twice as the same restart"
    more = now["restartCount"] - was["restartCount"]
    # Of several runs between two versions the newest end is reported.
    told = more == 0 or more == 1 and new
    if old and new != old and old not in ended and told:
        yield f"the end of {old[:24]} is not told: {now['state']} {now.get('lastState')}"
    had = was["state"].get("terminated")
    if had and had.get("containerID") not in ended and had.get("containerID") and told:
        yield f"an end was forgotten: {had} became {now['state']} {now.get('lastState')}"
    again = new and new != old
    if kind == "ephemeralContainerStatuses" and again and (old or ended_before):
        yield "an ephemeral container ran again"
    once = policy != "Always" or not killed and "running" not in was["state"]
    if kind == "initContainerStatuses" and again and had and had["exitCode"] == 0 and policy != "Always" and once:
        yield "an init container that had completed ran again"
    if kind == "containerStatuses" and again and had and (policy == "Never" or policy == "OnFailure" and had["exitCode"] == 0):
        yield f"ran again under {policy} after {had}"


def show_that_it_finds():
    """Violations of the invariants, each made on purpose."""
    def at(n, ready, restarts, phase="Running", running=None, ended=None, code=0, kind="containerStatuses", policy="Always", **more):
        end = {"terminated": {"containerID": ended, "exitCode": code}} if ended else {}
        status = {"name": "c", "restartCount": restarts, "state": {"running": {}} if running else end or {"waiting": {}}, "lastState": end if running else {}, "containerID": running}
        return {"metadata": {"resourceVersion": str(n), **more}, "spec": {"restartPolicy": policy},
                "status": {"phase": phase, "conditions": [{"type": "Ready", "status": str(ready)}], kind: [status]}}
    fine = [(1, at(1, False, 0, "Pending")), (1, at(2, True, 0, running="a")), (2, at(3, False, 0, ended="a")), (2, at(4, True, 1, running="b", ended="a"))]
    wrong = {
        "restartCount 1 became 0": fine + [(2, at(5, True, 0, running="b", ended="a"))],
        "started twice": fine + [(2, at(5, True, 1, running="c", ended="b"))],
        "is not told": fine + [(2, at(5, True, 2, running="c"))],
        "Ready rose 2 times": fine + [(2, at(5, False, 1, running="b", ended="a")), (2, at(6, True, 1, running="b", ended="a"))],
        "Ready rose 1 times and fell 1": fine + [(2, at(5, False, 1, running="b", ended="a"))],
        "phase Running became Pending": fine + [(2, at(5, True, 1, "Pending", running="b", ended="a"))],
        "what had ended changed": [(1, at(1, False, 0, "Succeeded", ended="a")), (1, at(2, False, 0, "Failed", ended="a"))],
        "init container that had completed ran again": [(1, at(1, False, 0, ended="a", kind=LISTS[0], policy="OnFailure")), (2, at(2, False, 1, running="b", ended="a", kind=LISTS[0], policy="OnFailure"))],
        "ran again under Never": [(1, at(1, False, 0, ended="a", policy="Never")), (2, at(2, False, 1, running="b", ended="a", policy="Never"))],
        "an ephemeral container ran again": [(1, at(1, False, 0, ended="a", kind=LISTS[2])), (2, at(2, False, 1, running="b", ended="a", kind=LISTS[2]))],
        "an end was forgotten": [(1, at(1, False, 0, ended="a")), (2, at(2, False, 0))],
        "versions": fine + [(2, at(n, True, 1, running="b", ended="a")) for n in range(5, 30)],
    }
    assert of_pod(fine) == [], of_pod(fine)
    late = at(3, True, 0, running="a")
    assert life_of([(1, at(2, False, 0, running="a"))], 2, late) == 1
    assert life_of([(1, at(2, False, 0, running="b"))], 2, late) == 2
    for what, seen in wrong.items():
        assert any(what in problem for problem in of_pod(seen)), (what, of_pod(seen))


if __name__ == "__main__":
    show_that_it_finds()

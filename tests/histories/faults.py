"""The faults of one history: a schedule from a seed, and its execution.

A schedule is a list of (seconds, action, targets). The same seed gives the same schedule; the order of requests around a fault isn't deterministic.
"""
import random, signal, time

# A fault begins at least this long after the start of the history, and ends at least this long before its end.
QUIET_S = 0.3
FAULT_S_MIN, FAULT_S_MAX = 0.15, 1.2
FAULTS_MAX = 3

EMBEDDED = {"kill server": 3, "pause server": 2}
ETCD = {"kill server": 2, "kill member": 2, "kill leader": 2, "pause server": 2, "pause member": 2, "pause leader": 2, "kill two members": 1, "compact history": 1}
NETWORK = {"cut server": 2, "cut member": 2, "cut leader": 2, "black-hole server": 2, "black-hole member": 2, "black-hole leader": 2}


def schedule(seed, cluster, seconds):
    """[(start, end, fault, number of the target)]."""
    dice = random.Random(f"{seed} faults")
    table = dict(EMBEDDED) if not cluster.members else {**ETCD, **(NETWORK if cluster.ports else {})}
    chosen = []
    for _ in range(dice.randint(1, FAULTS_MAX)):
        fault = dice.choices(list(table), list(table.values()))[0]
        length = dice.uniform(FAULT_S_MIN, FAULT_S_MAX)
        start = dice.uniform(QUIET_S, max(QUIET_S, seconds - QUIET_S - length))
        chosen.append((round(start, 2), round(start + length, 2), fault, dice.randrange(6)))
    return sorted(chosen)


class Faults:
    """Executes a schedule in the calling thread. `done` is what was executed, with the names of the targets."""

    def __init__(self, cluster):
        self.cluster, self.done = cluster, []

    def targets(self, fault, number):
        what = fault.split()[-1]
        if what == "history":
            return []
        if what == "server":
            return [self.cluster.servers[number % len(self.cluster.servers)]]
        if what == "members":
            return [self.cluster.members[number % 3], self.cluster.members[(number + 1) % 3]]
        leader = self.cluster.leader() if what == "leader" else None
        return [leader or self.cluster.members[number % len(self.cluster.members)]]

    def begin(self, fault, targets):
        if fault.startswith("compact"):
            self.cluster.compact()
        for target in targets:
            if fault.startswith("kill"):
                target.kill()
            elif fault.startswith("pause"):
                target.signal(signal.SIGSTOP)
            elif fault.startswith("cut"):
                target.port.down()
            else:
                target.port.black_hole()

    def end(self, fault, targets):
        for target in targets:
            if fault.startswith("kill"):
                if target.ended():
                    target.start()
            elif fault.startswith("pause"):
                target.signal(signal.SIGCONT)
            else:
                target.port.heal()

    def run(self, schedule, seconds, at_half):
        """Follows the schedule for this time; `at_half` is called in the middle."""
        began, active = time.monotonic(), {}
        steps = [(start, 0, n) for n, (start, *_) in enumerate(schedule)] + [(end, 1, n) for n, (_, end, *_) in enumerate(schedule)]
        for at, step, number in sorted([*steps, (seconds / 2, 2, 0), (seconds, 3, 0)]):
            # The schedule's own pause; no condition is awaited.
            time.sleep(max(0, began + at - time.monotonic()))
            if step == 0:
                _, _, fault, target = schedule[number]
                active[number] = fault, self.targets(fault, target)
                self.begin(*active[number])
                self.done.append((round(time.monotonic() - began, 2), fault, [target.name for target in active[number][1]]))
            elif step == 1 and number in active:
                fault, targets = active.pop(number)
                self.end(fault, targets)
                self.done.append((round(time.monotonic() - began, 2), f"end of {fault}", [target.name for target in targets]))
            elif step == 2:
                at_half()

"""Generated histories: clients of a simulated store with one revision for each write, correct or deliberately broken.

The checks accept every history of the correct store and find each kind of broken store.
"""
import heapq, random

import verdict
from clients import KEYS, PRECONDITIONS
from history import History, Watch
from model import ABSENT, ANY, CONFLICT, CONSISTENT, EXISTS, OK, UNKNOWN, Event, Operation, Version, expectation_holds

CLIENTS, OPERATIONS = 8, 600
UNKNOWN_PART = 0.03
SEEDS = range(12)
# What a broken store does to some of the operations, and the rules of which one must be found.
BROKEN = {
    "reads an old version": {"stale read", "not linearizable"},
    "ignores an expected version": {"lost update"},
    "loses an acknowledged write": {"lost write"},
    "answers a conflict and writes": {"refused write"},
    "lists one key of an older revision": {"wrong list"},
    "drops a watch event": {"watch gap"},
    "delivers a watch event again": {"watch repeat"},
}
BROKEN_PART = 0.02


class Store:
    """The state of all revisions, and the events."""

    def __init__(self, dice, broken):
        self.dice, self.broken, self.states, self.events, self.times = dice, broken, [{}], [], []

    def breaks(self, how):
        return self.broken == how and self.dice.random() < BROKEN_PART

    def write(self, op, at, kind, version):
        state = dict(self.states[-1])
        rv = len(self.states)
        if kind == "DELETED":
            state.pop(op.key, None)
        else:
            version = state[op.key] = version._replace(rv=rv)
        if not self.breaks("loses an acknowledged write"):
            self.states.append(state)
            self.events.append(Event(rv, kind, op.key, version.uid, version.value, version.born))
            self.times.append(at)
        return version

    def apply(self, op, at):
        """The effect of the operation at this time."""
        now = self.states[-1].get(op.key)
        if op.kind == "list":
            op.rv, op.seen, op.outcome = len(self.states) - 1, self.states[-1], OK
            if self.breaks("lists one key of an older revision"):
                key = self.dice.choice(KEYS)
                op.seen = {k: v for k, v in op.seen.items() if k != key} | ({key: old} if (old := self.states[op.rv // 2].get(key)) else {})
        elif op.kind == "get":
            old = max(0, len(self.states) - 12) if self.breaks("reads an old version") or op.mode == ANY else -1
            op.seen = self.states[old].get(op.key)
            op.outcome = OK if op.seen else ABSENT
        elif op.kind == "create":
            if now is None:
                op.seen, op.outcome = self.write(op, at, "ADDED", Version(0, f"uid-{op.value}", op.value, op.value)), OK
            else:
                op.outcome = EXISTS
        elif now is None:
            op.outcome = CONFLICT if op.kind == "update" and op.by_uid else ABSENT
        elif not expectation_holds(op, now) and not self.breaks("ignores an expected version"):
            op.outcome = CONFLICT
        elif op.kind == "delete":
            self.write(op, at, "DELETED", now)
            op.seen, op.outcome = now.uid, OK
        else:
            op.seen, op.outcome = self.write(op, at, "MODIFIED", now._replace(value=op.value)), OK
            if op.by_rv and self.breaks("answers a conflict and writes"):
                op.outcome = CONFLICT
        if isinstance(op.seen, Version):
            op.rv = op.seen.rv


def next_operation(dice, client, number, store):
    kind, key = dice.choice(["get", "get", "list", "create", "update", "update", "patch", "delete"]), dice.choice(KEYS)
    op = Operation(client, 1, kind, 0, "" if kind == "list" else key, run=1)
    expected = store.states[-dice.randint(1, min(len(store.states), 4))].get(key)
    if kind == "get" and dice.random() < 0.2:
        op.mode = ANY
    if kind == "update" and expected is None:
        op.kind = "create"
    if op.kind == "update":
        op.expected, op.by_rv, op.by_uid = expected, True, dice.random() < 0.3
    elif kind == "delete" and expected:
        op.expected = expected
        op.by_rv, op.by_uid = dice.choice(PRECONDITIONS)
    if op.kind in ("create", "update", "patch"):
        op.value = f"{client}-{number}"
    return op


def simulate(seed, broken=None):
    dice = random.Random(seed)
    store, operations, steps = Store(dice, broken), [], [(n, n, "call", None) for n in range(CLIENTS)]
    heapq.heapify(steps)
    while steps:
        at, client, step, op = heapq.heappop(steps)
        if step == "effect":
            store.apply(op, at)
            if op.end is None:
                op.outcome, op.seen, op.rv = UNKNOWN, None, 0
            continue
        if len(operations) >= OPERATIONS:
            continue
        op = next_operation(dice, f"c{client}", len(operations), store)
        operations.append(op)
        op.call = at
        unknown = dice.random() < UNKNOWN_PART
        effect = at + dice.randint(1, 4000 if unknown else 400)
        op.end = None if unknown else effect + dice.randint(1, 400)
        next_call = (effect if unknown else op.end) + dice.randint(1, 300)
        if not unknown or dice.random() < 0.6:
            heapq.heappush(steps, (effect, client + CLIENTS, "effect", op))
        heapq.heappush(steps, (next_call, client, "call", None))
    watches = [Watch(f"w{n}", list(store.events), [at + 50 for at in store.times], [(0, 0, 1, True)]) for n in range(2)]
    damage(dice, watches[0], broken)
    return History(str(seed), "simulated", "n", 0, len(store.states), operations, watches)


def damage(dice, watch, broken):
    at = dice.randrange(1, len(watch.events) - 1)
    if broken == "drops a watch event":
        del watch.events[at], watch.times[at]
    elif broken == "delivers a watch event again":
        watch.events.insert(at + 1, watch.events[at])
        watch.times.insert(at + 1, watch.times[at] + 1)


def run():
    """Returns the number of histories. An AssertionError names the first wrong verdict."""
    for seed in SEEDS:
        history = simulate(seed)
        found = verdict.problems(history)
        assert not found, verdict.report(history, found)
    for how, rules in BROKEN.items():
        found = [verdict.problems(simulate(f"{how} {seed}", how)) for seed in SEEDS]
        times = sum(bool(rules & {rule for rule, *_ in problems}) for problems in found)
        # Some damage has no visible effect, as an old version that is the newest one.
        assert times >= len(SEEDS) // 4, f"a store that {how} is found {times} times in {len(SEEDS)}"
    return len(SEEDS) * (1 + len(BROKEN))

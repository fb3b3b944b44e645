"""Histories written by hand: the checks accept the good ones and refuse each bad one for the stated reason."""
import tempfile

import porcupine, verdict
from history import History, Watch
from model import ABSENT, ANY, CONFLICT, EXACT, EXISTS, OK, REFUSED, UNKNOWN, Event, Operation, Version

SERVER = 1


def version(rv, value, born):
    return Version(rv, f"uid-{born}", value, born)


# The life of two keys, in order.
A1, A2, A4 = version(11, "a1", "a1"), version(12, "a2", "a1"), version(15, "a4", "a4")
B1, B2 = version(13, "b1", "b1"), version(16, "b2", "b1")


def event(kind, rv, key, of):
    return Event(rv, kind, key, of.uid, of.value, of.born)


EVENTS = [event("ADDED", 11, "a", A1), event("MODIFIED", 12, "a", A2), event("ADDED", 13, "b", B1), event("DELETED", 14, "a", A2),
          event("ADDED", 15, "a", A4), event("MODIFIED", 16, "b", B2)]


def op(kind, call, end, key="", outcome=OK, **fields):
    return Operation("c", SERVER, kind, call, key, end=end, outcome=outcome, run=1, **fields)


def create(call, end, key, of, outcome=OK):
    return op("create", call, end, key, outcome, value=of.value, rv=of.rv, seen=of)


def update(call, end, key, of, expected, outcome=OK):
    return op("update", call, end, key, outcome, value=of.value, rv=of.rv, seen=of, expected=expected, by_rv=True)


def delete(call, end, key, of, outcome=OK):
    return op("delete", call, end, key, outcome, seen=of.uid)


def get(call, end, key, of, **fields):
    return op("get", call, end, key, OK if of else ABSENT, seen=of, rv=of.rv if of else 0, **fields)


def listing(call, end, rv, **objects):
    mode = objects.pop("mode", "consistent")
    return op("list", call, end, rv=rv, seen=objects, mode=mode, revision=rv if mode == EXACT else 0)


def life():
    """A good history: each write at ten times its revision."""
    writes = [create(110, 112, "a", A1), update(120, 122, "a", A2, A1), create(130, 132, "b", B1), delete(140, 142, "a", A2), create(150, 152, "a", A4),
              update(160, 162, "b", B2, B1)]
    watch = Watch("w", list(EVENTS), [rv * 10 + 1 for rv in range(11, 17)], [(0, 10, SERVER, True), (3, 13, 2, False)], [(6, 16)], goal=16)
    other = Watch("v", EVENTS[2:], [rv * 10 + 1 for rv in range(13, 17)], [(0, 12, SERVER, True)], [], goal=16)
    return History("by hand", "none", "n", 10, 17, writes, [watch, other])


def good():
    quiet = life()
    quiet.operations += [get(125, 126, "a", A2), get(145, 146, "a", None), listing(155, 156, 15, a=A4, b=B1), get(163, 164, "b", B2),
                         op("create", 143, 144, "b", EXISTS, value="x1"), op("update", 155, 157, "a", CONFLICT, value="x2", expected=A2, by_rv=True),
                         op("delete", 145, 146, "a", ABSENT), get(155, 156, "a", A2, mode=ANY), listing(170, 171, 12, a=A2, mode=EXACT)]
    yield "reads of the newest state", quiet
    at_once = life()
    at_once.operations += [get(115, 125, "a", A1), get(119, 124, "a", A2), listing(115, 200, 13, a=A2, b=B1)]
    yield "reads that overlap writes", at_once
    unknown = life()
    unknown.operations[1] = update(115, None, "a", A2, A1, UNKNOWN)
    unknown.operations[3] = delete(125, None, "a", A2, UNKNOWN)
    unknown.operations += [delete(165, None, "a", A4, UNKNOWN), op("create", 105, None, "b", UNKNOWN, value="x3"), op("create", 165, 166, "c", REFUSED, value="x4"),
                           get(123, 124, "a", A2)]
    yield "writes with an unknown outcome", unknown


def bad():
    """(expected rule, history)."""
    def of(change, *more):
        history = life()
        change(history)
        history.operations += more
        return history

    def watch(change):
        return of(lambda history: change(history.watches[0]))

    def reverse(w):
        w.events[1:3] = [EVENTS[2], EVENTS[1]]

    def without(w, *numbers):
        w.events = [e for n, e in enumerate(w.events) if n not in numbers]
        w.times = [time for n, time in enumerate(w.times) if n not in numbers]
        w.connections, w.bookmarks = w.connections[:1], []

    def lost(h):
        h.operations[1].expected = version(9, "a0", "a1")

    def twice(h):
        h.watches[1].events[0] = event("ADDED", 13, "b", version(13, "b9", "b9"))

    def resurrected(h):
        h.watches[0].events[4] = event("MODIFIED", 15, "a", version(15, "a4", "a1"))
        h.watches[1].events[2] = h.watches[0].events[4]
        h.operations[4] = update(125, 152, "a", version(15, "a4", "a1"), A2)

    def never(h):
        h.operations.pop(5)

    def unexplained(h):
        h.operations[3].outcome = CONFLICT
        h.operations[3].by_rv, h.operations[3].expected = True, A1

    def late(h):
        h.operations[3].outcome, h.operations[3].call, h.operations[3].end = UNKNOWN, 155, None

    def no_event(h):
        for w in h.watches:
            w.events, w.times, w.bookmarks, w.goal = w.events[:-1], w.times[:-1], [], 0

    def refused(h):
        h.operations[5].outcome = REFUSED

    def order(h):
        h.operations[2].call, h.operations[2].end = 145, 148
        for w in h.watches:
            w.times = [time + 100 for time in w.times]

    def changed(h):
        h.operations[5].rv = 17

    yield "lost update", of(lost)
    yield "lost write", of(no_event)
    yield "stale read", of(lambda h: None, get(125, 126, "a", A1))
    yield "stale read", of(lambda h: None, get(145, 146, "a", A2))
    yield "stale read", of(lambda h: None, get(145, 146, "b", None))
    yield "stale read", of(lambda h: None, listing(145, 146, 13, a=A2, b=B1))
    yield "stale read", of(lambda h: None, get(125, 126, "a", A2), listing(127, 128, 11, a=A1))
    yield "read from the future", of(lambda h: None, op("create", 143, 144, "a", EXISTS, value="x1"))
    yield "read from the future", of(lambda h: None, op("update", 123, 124, "a", ABSENT, value="x1", expected=A1, by_rv=True))
    yield "impossible read", of(lambda h: None, get(125, 126, "a", version(12, "a9", "a1")))
    yield "impossible read", of(lambda h: None, op("update", 125, 126, "c", CONFLICT, value="x1", expected=A2, by_rv=True))
    yield "read from the future", of(lambda h: None, get(115, 116, "a", A2))
    yield "read from the future", of(lambda h: None, listing(135, 136, 14, b=B1))
    yield "read from the future", of(lambda h: None, get(101, 105, "a", A1, mode=ANY))
    yield "read from the future", of(lambda h: h.watches[0].times.__setitem__(0, 105))
    yield "wrong list", of(lambda h: None, listing(135, 136, 13, a=A2))
    yield "wrong list", of(lambda h: None, listing(155, 156, 15, a=A2, b=B1))
    yield "wrong list", of(lambda h: None, listing(170, 171, 12, a=A1, mode=EXACT))
    yield "time travel", of(lambda h: None, get(165, 166, "b", B2, mode=ANY), get(167, 168, "b", B1, mode=ANY))
    yield "duplicate revision", of(twice)
    yield "duplicate revision", of(changed)
    yield "resurrection", of(resurrected)
    yield "unknown write", of(never)
    yield "unexplained delete", of(unexplained)
    yield "unexplained delete", of(late)
    yield "refused write", of(refused)
    yield "order of writes", of(order)
    yield "repeated write", of(lambda h: None, delete(143, 144, "a", A2))
    yield "watch gap", watch(lambda w: without(w, 3))
    yield "watch gap", watch(lambda w: without(w, 2))
    yield "watch gap", watch(lambda w: w.connections.__setitem__(1, (3, 12, 2, False)) or without(w, 1, 2))
    yield "watch repeat", watch(lambda w: w.events.insert(3, EVENTS[2]) or w.times.insert(3, 132))
    yield "watch repeat", watch(lambda w: w.connections.__setitem__(0, (0, 11, SERVER, True)))
    yield "watch reorder", watch(reverse)
    yield "watch reorder", watch(lambda w: w.bookmarks.insert(0, (3, 14)))
    yield "unexplained 410", watch(lambda w: w.expired.append((SERVER, 12)))
    yield "watch behind", of(lambda h: h.watches[1].events.pop() and h.watches[1].times.pop())


def not_linearizable():
    """Histories of one key that the second proof refuses on its own."""
    def of(*more):
        history = life()
        history.operations += more
        return history

    yield "stale read", of(get(125, 126, "a", A1))
    yield "read from the future", of(get(115, 116, "a", A2))
    yield "lost update", of(update(126, 128, "a", version(13, "a3", "a1"), A1))
    yield "resurrected delete", of(get(145, 146, "a", A2))
    yield "two creates", of(create(123, 124, "a", version(13, "a9", "a9")))
    yield "conflict with the expected version", of(op("update", 123, 124, "a", CONFLICT, value="x1", expected=A2, by_rv=True))
    yield "an object that is absent and exists", of(op("delete", 123, 124, "a", ABSENT))
    effect = of(get(124, 125, "b", None), get(126, 127, "b", version(13, "x5", "x5")))
    effect.operations.append(op("create", 128, None, "b", UNKNOWN, value="x5"))
    yield "an effect before its call", effect


def recorded(history):
    """The history as read from its file."""
    with tempfile.NamedTemporaryFile() as file:
        history.save(file.name)
        return History.load(file.name)


def run():
    """Returns the number of histories. An AssertionError names the first wrong verdict."""
    count = 0
    for what, history in good():
        history = recorded(history)
        found = verdict.problems(history)
        assert not found, f"{what}: {verdict.report(history, found)}"
        count += 1
    for rule, history in bad():
        history = recorded(history)
        found = verdict.problems(history)
        assert found and found[0][0] == rule, f"wanted {rule}, got {found}"
        count += 1
    for what, history in not_linearizable():
        found = porcupine.check(history)
        assert [problem[0] for problem in found] == ["not linearizable"], f"{what}: {found}"
        count += 1
    return count

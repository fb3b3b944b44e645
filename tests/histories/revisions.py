"""The first proof: a history is linearizable in the order of revisions.

Each write takes effect at its revision. Each read is placed at the earliest revision whose state it can have seen, not below the place of an operation
that ended before its call. The history is linearizable in this order if and only if every operation has a place. Lists span all keys.
"""
import heapq, itertools

from model import ABSENT, ANY, AT_LEAST, CONSISTENT, EXACT, OK, REFUSED, UNKNOWN, Operation, observes, violation


def check(history, truth):
    """Problems: (rule, text, keys)."""
    places = Places(history, truth)
    for op in sorted(history.operations, key=lambda op: op.call):
        places.place(op)
    places.explain_deletes()
    places.refuse_effects()
    return places.problems + stale_reads(history, truth)


class Places:
    def __init__(self, history, truth):
        self.history, self.truth, self.problems = history, truth, []
        # Ends of placed operations and of watch events: (time, place, number, source).
        self.ended, self.numbers = [], itertools.count()
        self.floor, self.floor_source = history.start, "the start of the history"
        self.explained, self.unknown_deletes = set(), []
        for watch in history.watches:
            for event, at in zip(watch.events, watch.times):
                self.end(at, event.rv, f"{watch.name} received {event}")

    def end(self, at, place, source):
        heapq.heappush(self.ended, (at, place, next(self.numbers), source))

    def raise_floor(self, call):
        while self.ended and self.ended[0][0] < call:
            _, place, _, source = heapq.heappop(self.ended)
            if place > self.floor:
                self.floor, self.floor_source = place, source

    def problem(self, rule, op, why):
        self.problems.append((rule, f"{op}\n    {why}", [op.key] if op.key else []))

    def place(self, op):
        self.raise_floor(op.call)
        if op.outcome == REFUSED:
            return
        if op.writes and op.outcome in (OK, UNKNOWN):
            self.place_write(op)
        elif op.outcome == UNKNOWN:
            return
        elif op.kind == "list":
            self.place_list(op)
        else:
            self.place_read(op)

    def place_write(self, op):
        event = self.event_of(op)
        if event is None:
            if op.outcome == OK:
                self.problem("lost write", op, "no watch has this write")
            elif op.kind == "delete":
                self.unknown_deletes.append((op, self.floor))
            return
        rule = violation(op, self.truth.before(event))
        if rule:
            self.problem(rule, op, f"revision {event.rv} follows {self.truth.before(event)}")
        if event.rv <= self.floor:
            source = self.floor_source
            acknowledged = isinstance(source, Operation) and source.writes and source.outcome == OK
            rule = "order of writes" if acknowledged else "read from the future"
            self.problem(rule, op, f"revision {event.rv} isn't above {self.floor} of: {self.floor_source}")
        if op.end is not None and op.outcome == OK:
            self.end(op.end, event.rv, op)

    def event_of(self, op):
        """The event of a write, or None. Marks the event as explained."""
        if op.kind == "delete":
            event = self.truth.deleted.get(op.seen) if op.outcome == OK else None
            if event and event.rv in self.explained:
                self.problem("repeated write", op, f"a second delete of the object that {event} deleted")
        else:
            event = self.truth.by_value.get(op.value)
            if event and op.outcome == OK and (event.rv, event.uid) != (op.rv, op.seen.uid):
                self.problem("duplicate revision", op, f"the response has revision {op.rv}, watches have {event}")
        if event and event.key != op.key:
            self.problem("wrong key", op, f"watches have {event}")
        if event:
            self.explained.add(event.rv)
        return event

    def place_list(self, op):
        if op.rv > self.history.end:
            self.problem("read from the future", op, f"the newest revision at the end of the history is {self.history.end}")
        least = self.floor if op.mode == CONSISTENT else op.revision
        if op.rv < least:
            source = self.floor_source if op.mode == CONSISTENT else "the request"
            self.problem("stale read", op, f"revision {op.rv} is below {least} of: {source}")
        if op.mode == EXACT and op.rv != op.revision:
            self.problem("wrong list", op, f"the request names revision {op.revision}")
        state = self.truth.namespace(op.rv)
        if state != op.seen:
            different = sorted(key for key in state.keys() | op.seen.keys() if state.get(key) != op.seen.get(key))
            shown = ", ".join(f"{key}: {state.get(key)}" for key in different)
            self.problems.append(("wrong list", f"{op}\n    at revision {op.rv} the state is {shown}", different))
        self.end(op.end, op.rv, op)

    def place_read(self, op):
        least = {CONSISTENT: self.floor, AT_LEAST: op.revision}.get(op.mode, 0) if op.kind == "get" else self.floor
        place = self.truth.first(op.key, least, lambda state: observes(op, state))
        if place is None:
            earlier = self.truth.first(op.key, 0, lambda state: observes(op, state))
            if earlier is None:
                self.problem("impossible read", op, "no revision has this state")
            else:
                self.problem("stale read", op, f"no revision from {least} on has this state; {least} is of: {self.floor_source}")
            return
        self.end(op.end, place, op)

    def explain_deletes(self):
        """Each DELETED event without an acknowledged delete is the effect of one delete with an unknown outcome."""
        events = [event for event in self.truth.events if event.type == "DELETED" and event.rv not in self.explained]
        owner = {}

        def assign(at, tried):
            event = events[at]
            for number, (op, floor) in enumerate(self.unknown_deletes):
                fits = op.key == event.key and floor < event.rv and violation(op, self.truth.before(event)) is None
                if fits and number not in tried:
                    tried.add(number)
                    if number not in owner or assign(owner[number], tried):
                        owner[number] = at
                        return True
            return False

        for at, event in enumerate(events):
            if not assign(at, set()):
                self.problems.append(("unexplained delete", f"{event}: no delete can have had this effect", [event.key]))
        self.explained |= {event.rv for event in events}

    def refuse_effects(self):
        """No other event is without a write that can have had this effect."""
        values = {op.value: op for op in self.history.operations if op.value}
        for event in self.truth.events:
            if event.rv not in self.explained:
                op = values.get(event.value)
                rule = "refused write" if op else "unknown write"
                self.problems.append((rule, f"{op or event}\n    took effect: {event}", [event.key]))


def stale_reads(history, truth):
    """Reads with resourceVersion=0 from one run of a server don't go back in time."""
    problems, floors = [], {}
    reads = [op for op in history.operations if op.mode == ANY and op.run is not None and op.outcome in (OK, ABSENT)]
    for op in sorted(reads, key=lambda op: op.call):
        ended, floor = floors.setdefault((op.server, op.run), ([], [0]))
        while ended and ended[0][0] < op.call:
            floor[0] = max(floor[0], heapq.heappop(ended)[1])
        place = op.rv if op.kind == "list" else truth.first(op.key, floor[0], lambda state: observes(op, state))
        if place is None or place < floor[0]:
            problems.append(("time travel", f"{op}\n    an earlier read of this server had revision {floor[0]}", [op.key] if op.key else []))
        else:
            heapq.heappush(ended, (op.end, place))
    return problems

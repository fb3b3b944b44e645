"""The second proof: for each key, a search for a linearization of its operations, without revisions.

The algorithm is Wing and Gong's with Lowe's memoization, as in porcupine: a linked list of calls and returns, and a cache of
(linearized operations, state). A state is None or (value, born). Operations with an unknown outcome have no return: they may take effect at any
later time or never. Lists and stale reads aren't part of this proof.
"""
import time

from model import ABSENT, CONFLICT, CONSISTENT, EXISTS, OK, REFUSED, UNKNOWN

# Of one key. The usual time is some milliseconds; a search that takes this long is reported as a failure.
SEARCH_SECONDS_MAX = 20
EXCERPT_OPERATIONS = 8
STEPS_PER_CLOCK = 4096


def check(history):
    """Problems: (rule, text, keys)."""
    by_key, problems = {}, []
    for op in history.operations:
        single = op.writes or op.kind == "get" and op.mode == CONSISTENT
        if single and op.outcome != REFUSED and (op.writes or op.outcome != UNKNOWN):
            by_key.setdefault(op.key, []).append(op)
    for key, operations in sorted(by_key.items()):
        problem = linearize(operations, time.monotonic() + SEARCH_SECONDS_MAX)
        if problem:
            problems.append((*problem, [key]))
    return problems


def step(op, state):
    """(whether the outcome is possible, the next state)."""
    holds = state is not None and not (op.by_rv and state[0] != op.expected.value or op.by_uid and state[1] != op.expected.born)
    if op.outcome == ABSENT:
        return state is None, state
    if op.outcome == EXISTS:
        return state is not None, state
    if op.outcome == CONFLICT:
        return not holds and (state is not None or op.kind == "update" and op.by_uid), state
    if op.kind == "get":
        return state == (op.seen.value, op.seen.born), state
    if op.kind == "create":
        return state is None, (op.value, op.value)
    if op.kind == "delete":
        return holds, None
    return holds, holds and (op.value, state[1])


class Entry:
    __slots__ = ("op", "bit", "end", "before", "after")

    def __init__(self, op, bit, end):
        self.op, self.bit, self.end, self.before, self.after = op, bit, end, None, None


def entries(operations):
    """The head of a linked list of calls and returns in the order of time. The `end` of a call is its return or None."""
    timed = []
    for number, op in enumerate(operations):
        finished = op.outcome != UNKNOWN
        end = Entry(None, 1 << number, None) if finished else None
        timed.append((op.call, 0, Entry(op, 1 << number, end)))
        if finished:
            timed.append((op.end, 1, end))
    head = last = Entry(None, 0, None)
    for _, _, entry in sorted(timed, key=lambda item: item[:2]):
        last.after, entry.before = entry, last
        last = entry
    return head


def unlink(entry):
    entry.before.after = entry.after
    if entry.after:
        entry.after.before = entry.before


def link(entry):
    entry.before.after = entry
    if entry.after:
        entry.after.before = entry


def lift(call):
    unlink(call)
    if call.end:
        unlink(call.end)


def unlift(call):
    if call.end:
        link(call.end)
    link(call)


def linearize(operations, deadline):
    """None if the operations have a linearization, else (rule, text)."""
    head = entries(operations)
    left = sum(op.outcome != UNKNOWN for op in operations)
    state, done, calls, cache, steps = None, 0, [], set(), 0
    longest, stuck = -1, []
    entry = head.after
    while left:
        steps += 1
        if steps % STEPS_PER_CLOCK == 0 and time.monotonic() > deadline:
            return "timeout of the checker", f"no result within {SEARCH_SECONDS_MAX} s for {len(operations)} operations"
        if entry is not None and entry.op is not None:
            possible, after = step(entry.op, state)
            if possible and (done | entry.bit, after) not in cache:
                cache.add((done | entry.bit, after))
                calls.append((entry, state))
                state, done = after, done | entry.bit
                left -= entry.end is not None
                lift(entry)
                entry = head.after
            else:
                entry = entry.after
            continue
        if len(calls) > longest:
            longest, stuck = len(calls), [calls[-3:], state, pending(head)]
        # A read that was possible doesn't change the state: an alternative to it can't succeed.
        while calls:
            entry, state = calls.pop()
            done &= ~entry.bit
            left += entry.end is not None
            unlift(entry)
            if entry.op.writes and entry.op.outcome in (OK, UNKNOWN):
                break
        else:
            return "not linearizable", excerpt(stuck)
        entry = entry.after
    return None


def pending(head):
    """The calls before the first return."""
    found, entry = [], head.after
    while entry is not None and entry.op is not None:
        found.append(entry.op)
        entry = entry.after
    return found[:EXCERPT_OPERATIONS]


def excerpt(stuck):
    calls, state, waiting = stuck
    lines = [f"    linearized: {entry.op}" for entry, _ in calls] + [f"    state: {state}"]
    return "\n".join(["the longest linearization ends here:"] + lines + [f"    impossible: {op}" for op in waiting])

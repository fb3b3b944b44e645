"""What a watch guarantees: each change once, in the order of revisions, without a gap, also over broken connections.

The content of events is compared in `truth.py`, and with the responses to writes in `revisions.py`.
"""
import bisect


def check(history, truth):
    """Problems: (rule, text, keys)."""
    problems = [problem for watch in history.watches for problem in of_watch(watch, truth)]
    return problems + [problem for watch in history.watches for problem in expirations(watch, history.faults)]


def of_watch(watch, truth):
    problems = order(watch)
    received = {event.rv for event in watch.events}
    ends = [first for first, *_ in watch.connections[1:]] + [len(watch.events)]
    # Without a new list a connection continues the one before.
    complete_to = 0
    for (first, since, server, listed), end in zip(watch.connections, ends):
        name = f"{watch.name} from revision {since} at server {server}"
        events = watch.events[first:end]
        problems += [("watch repeat", f"{name}: {event} isn't newer", [event.key]) for event in events if event.rv <= since]
        complete_to = since if listed else max(complete_to, since)
        marks = [rv for before, rv in watch.bookmarks if first <= before <= end]
        until = max([event.rv for event in events] + marks, default=since)
        problems += gaps(name, truth, received, complete_to, until)
        complete_to = max(complete_to, until)
    problems += bookmarks(watch, truth)
    reached = max([event.rv for event in watch.events] + [rv for _, rv in watch.bookmarks] + [since for _, since, *_ in watch.connections], default=0)
    if reached < watch.goal:
        problems.append(("watch behind", f"{watch.name} ended at revision {reached}, the last write has {watch.goal}", []))
    return problems


def expirations(watch, faults):
    """410 is possible after a compaction, and at a server that was started again: its cache begins with that start, as upstream's."""
    if any(fault.startswith("compact") for _, fault, _ in faults):
        return []
    started = {name for _, fault, names in faults if fault.startswith("kill") for name in names}
    wrong = [(server, rv) for server, rv in watch.expired if f"server{server}" not in started]
    return [("unexplained 410", f"{watch.name} from revision {rv} at server {server}", []) for server, rv in wrong]


def order(watch):
    problems, received, newest = [], set(), 0
    for event in watch.events:
        if event.rv in received:
            problems.append(("watch repeat", f"{watch.name}: {event} a second time", [event.key]))
        elif event.rv < newest:
            problems.append(("watch reorder", f"{watch.name}: {event} after revision {newest}", [event.key]))
        received.add(event.rv)
        newest = max(newest, event.rv)
    return problems


def gaps(name, truth, received, since, until):
    first, last = bisect.bisect_right(truth.revisions, since), bisect.bisect_right(truth.revisions, until)
    missing = [truth.by_rv[rv] for rv in truth.revisions[first:last] if rv not in received]
    return [("watch gap", f"{name}: without {event}", [event.key]) for event in missing]


def bookmarks(watch, truth):
    """At a bookmark all events up to its revision were delivered, and none above it."""
    problems = []
    for before, rv in watch.bookmarks:
        early = [event for event in watch.events[before:] if event.rv <= rv]
        late = [event for event in watch.events[:before] if event.rv > rv]
        problems += [("watch reorder", f"{watch.name}: {event} on the wrong side of bookmark {rv}", [event.key]) for event in early + late]
    return problems

"""The order of all writes to a namespace by revision: the union of the events of all watches.

Input: the events of each watch. Invariant of the output: `problems` names every revision at which watches differ and every step of a key that no
sequence of creates, updates and deletes has.
"""
import bisect

from model import Version


class Truth:
    """Events by revision, and the versions of each key."""

    def __init__(self, watches):
        self.problems, by_rv = [], {}
        for watch in watches:
            for event in watch.events:
                other = by_rv.setdefault(event.rv, event)
                if other != event:
                    self.problems.append(("duplicate revision", f"{watch.name} has {event}, another watch has {other}", []))
        self.events = [by_rv[rv] for rv in sorted(by_rv)]
        self.revisions = [event.rv for event in self.events]
        self.by_rv, self.by_value, self.deleted = by_rv, {}, {}
        # By key: revisions, and the state from each on.
        self.starts, self.states = {}, {}
        for event in self.events:
            self.append(event)

    def append(self, event):
        starts, states = self.starts.setdefault(event.key, [0]), self.states.setdefault(event.key, [None])
        before = states[-1]
        if event.type == "DELETED":
            wrong = None if before and (before.uid, before.value) == (event.uid, event.value) else "watch gap"
            self.deleted[event.uid] = event
            after = None
        else:
            after = Version(event.rv, event.uid, event.value, event.born)
            if event.type == "ADDED":
                wrong = None if before is None else "watch gap"
            elif before is None:
                wrong = "resurrection"
            else:
                wrong = None if (before.uid, before.born) == (event.uid, event.born) else "watch gap"
            if event.value in self.by_value:
                self.problems.append(("repeated write", f"{event} and {self.by_value[event.value]} have one value", [event.key]))
            self.by_value[event.value] = event
        if wrong:
            self.problems.append((wrong, f"{event} follows {before}", [event.key]))
        starts.append(event.rv)
        states.append(after)

    def state(self, key, rv):
        """The state of the key after the revision."""
        if key not in self.starts:
            return None
        return self.states[key][bisect.bisect_right(self.starts[key], rv) - 1]

    def before(self, event):
        return self.state(event.key, event.rv - 1)

    def namespace(self, rv):
        """All objects after the revision, by key."""
        states = ((key, self.state(key, rv)) for key in self.starts)
        return {key: state for key, state in states if state}

    def first(self, key, at_least, holds):
        """The first revision from `at_least` on whose state of the key meets the predicate, or None."""
        if key not in self.starts:
            return at_least if holds(None) else None
        starts, states = self.starts[key], self.states[key]
        for at in range(bisect.bisect_right(starts, at_least) - 1, len(starts)):
            if holds(states[at]):
                return max(at_least, starts[at])
        return None

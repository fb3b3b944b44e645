"""The checker: the state of a store is explained by the acknowledged transactions, whole and in the order of their revisions.

An unacknowledged transaction may be there as well, whole, with the next revisions. Each transaction puts its name at a key of its task, so a
state shows the last transaction of each task with its revision.
"""
MARK = "/t/"


class Wrong(Exception):
    """A store that no order of the transactions explains."""


def parse_state(lines):
    """(revision, compacted, rows) of the lines `at` and `row`, and the other lines."""
    revision, compacted, rows, rest = None, None, {}, []
    for line in lines:
        words = line.split(" ")
        if words[0] == "at":
            revision, compacted = int(words[1]), int(words[2])
        elif words[0] == "row":
            rows[words[1]] = (int(words[2]), int(words[3]), words[4])
        else:
            rest.append(line)
    return revision, compacted, rows, rest


class History:
    """What a recording tried and what it acknowledged, in the order of its lines."""

    def __init__(self, order=(), tried=()):
        # The transactions of the revisions 1.., and the operations of each transaction: key and value, None for a deletion.
        self.order, self.tried = dict(enumerate(order, 1)), dict(tried)
        self.acknowledged = len(self.order)
        self.rejected, self.errors = [], []
        self.state_lines = []
        # Expected states by revision.
        self.states = [{}]

    def copy(self):
        """As it is now, for a later check; without the cache of states."""
        copied = History()
        copied.order, copied.tried, copied.acknowledged = dict(self.order), dict(self.tried), self.acknowledged
        return copied

    def add(self, lines):
        """Adds printed lines."""
        for line in lines.splitlines():
            words = line.split(" ")
            if words[0] == "try":
                operations = [word.split(":") for word in words[2:]]
                self.tried[words[1]] = {part[1]: part[2] if part[0] == "put" else None for part in operations if part[0] != "absent"}
            elif words[0] == "ack":
                self.acknowledge(words[1], int(words[2]))
            elif words[0] in ("at", "row"):
                self.state_lines.append(line)
            elif words[0] == "open":
                revision, _, rows, _ = parse_state(self.state_lines)
                self.state_lines = []
                self.show(revision, rows)
            elif words[0] == "rejected":
                self.rejected.append(words[1])
            elif words[0] in ("error", "uncompacted"):
                self.errors.append(line)

    def acknowledge(self, name, revision):
        if self.order.setdefault(revision, name) != name:
            raise Wrong(f"revision {revision} of {self.order[revision]} was given to {name}, too")
        self.acknowledged = max(self.acknowledged, revision)

    def show(self, revision, rows):
        """A start showed a state to clients: from now on it must stay."""
        for number, name in self.marks(rows):
            self.acknowledge(name, number)
        self.acknowledged = max(self.acknowledged, revision)

    @staticmethod
    def marks(rows):
        return [(modified, value.split(".")[0]) for key, (_, modified, value) in rows.items() if key.startswith(MARK)]

    def name_at(self, revision, marks):
        name = marks.get(revision) or self.order.get(revision)
        if name is None or self.order.get(revision, name) != name:
            raise Wrong(f"revision {revision} is of {name}, and the recording gave it to {self.order.get(revision)}")
        return name

    def names(self, revision, rows):
        marks = dict(self.marks(rows))
        names = [self.name_at(number, marks) for number in range(1, revision + 1)]
        if len(set(names)) != len(names):
            raise Wrong("a transaction has two revisions")
        return names

    def apply(self, state, revision, name):
        state = dict(state)
        for key, value in self.tried[name].items():
            if value is None:
                state.pop(key, None)
            else:
                state[key] = (state[key][0] if key in state else revision, revision, value)
        return state

    def expected(self, names):
        """The state after transactions. Of those in this history's order it is computed once."""
        known = 0
        while known < len(self.states) - 1 and known < len(names) and self.order.get(known + 1) == names[known]:
            known += 1
        state = self.states[known]
        for number, name in enumerate(names[known:], known + 1):
            state = self.apply(state, number, name)
            if number == len(self.states) and self.order.get(number) == name:
                self.states.append(state)
        return state


def check(before, whole, lines):
    """Checks what `power_loss check` printed of a store. `before` is the history up to the crash, `whole` that of the whole recording, which
    knows the revisions of transactions that were acknowledged after the crash. Returns the revision and the names of the transactions."""
    errors = [line for line in lines if line.startswith("error ")]
    if errors:
        raise Wrong(errors[0])
    revision, compacted, rows, rest = parse_state(lines)
    if revision is None:
        raise Wrong("the check printed no state")
    if revision < before.acknowledged:
        raise Wrong(f"revision {before.acknowledged} was acknowledged, and the store is at {revision}")
    names = whole.names(revision, rows)
    unknown = [name for name in names if name not in before.tried]
    if unknown:
        raise Wrong(f"{unknown} came later than the crash")
    expected = whole.expected(names)
    if rows != expected:
        different = [f"{key}: {rows.get(key)} instead of {expected.get(key)}" for key in sorted(rows.keys() | expected.keys())
                     if rows.get(key) != expected.get(key)]
        raise Wrong(f"at revision {revision}: " + "; ".join(different[:5]))
    check_changes(whole, names, compacted, rest)
    if f"wrote {revision + 1}" not in rest:
        raise Wrong(f"the write after revision {revision} took another revision: {[line for line in rest if line.startswith('wrote')]}")
    return revision, names


def check_changes(history, names, compacted, lines):
    """The history after the compacted revision has each put of each transaction."""
    found = {}
    for line in lines:
        words = line.split(" ")
        if words[0] == "change":
            found[int(words[1]), words[2]] = None if words[3] == "-" else words[3]
    for number in range(compacted + 1, len(names) + 1):
        for key, value in history.tried[names[number - 1]].items():
            if value is not None and found.pop((number, key), None) != value or value is None and found.pop((number, key), None) is not None:
                raise Wrong(f"the history has another value of {key} at revision {number}")
    if found:
        raise Wrong(f"the history has changes of no transaction: {sorted(found)[:5]}")

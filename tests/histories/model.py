"""The model of one namespace: at each revision a key has one version or none. It defines what an operation requires and observes.

Input: recorded operations (`Operation`). Invariant: every written value is unique, so a value identifies the write.
"""
import dataclasses, typing

# Outcomes of an operation. `unknown` may take effect at any later time or never; `refused` never takes effect.
OK, ABSENT, EXISTS, CONFLICT, UNKNOWN, REFUSED = "ok", "absent", "exists", "conflict", "unknown", "refused"
WRITES = ("create", "update", "patch", "delete")
# Reads: `consistent` is the state at one moment between request and response. The others may be older.
CONSISTENT, ANY, AT_LEAST, EXACT = "consistent", "any", "at-least", "exact"


class Version(typing.NamedTuple):
    """One version of an object. `born` is the value of its create and so identifies the object as `uid` does."""

    rv: int
    uid: str
    value: str
    born: str


class Event(typing.NamedTuple):
    """One watch event: the version that the write at `rv` wrote, or for DELETED the version before it."""

    rv: int
    type: str
    key: str
    uid: str
    value: str
    born: str


@dataclasses.dataclass
class Operation:
    """One request of one client. Times are nanoseconds of the process's monotonic clock."""

    client: str
    server: int
    kind: str
    call: int
    key: str = ""
    mode: str = CONSISTENT
    # The revision that a read names: the least for AT_LEAST, the only one for EXACT.
    revision: int = 0
    value: str = ""
    # Preconditions of an update or a delete: the version that the client has read, and which of its fields the request names.
    expected: Version | None = None
    by_rv: bool = False
    by_uid: bool = False
    end: int | None = None
    outcome: str = UNKNOWN
    status: int = 0
    # The revision of the response: of the written object, or of the list.
    rv: int = 0
    # A version (create, update, patch, get), the uid of a delete, or the versions of a list by key.
    seen: typing.Any = None
    # The run of the server's process, if it was the same before and after the request.
    run: int | None = None

    @property
    def writes(self):
        return self.kind in WRITES

    def __str__(self):
        what = f"{self.kind} {self.key}".strip() + (f"={self.value}" if self.value else "")
        if not self.writes and self.mode != CONSISTENT:
            what += f" ({self.mode} {self.revision})"
        if self.by_rv:
            what += f" if rv={self.expected.rv}"
        if self.by_uid:
            what += f" if uid={self.expected.uid[:8]}"
        end = "never" if self.end is None else f"{self.end / 1e6:.3f}"
        saw = f" saw {show(self.seen)}" if not self.writes and self.outcome == OK else ""
        return f"{self.call / 1e6:.3f}-{end} ms {self.client} at server {self.server}: {what} -> {self.outcome} {self.status} rv={self.rv}{saw}"


def show(seen):
    if isinstance(seen, dict):
        return "{" + ", ".join(f"{key}: {version.value}@{version.rv}" for key, version in sorted(seen.items())) + "}"
    return f"{seen.value}@{seen.rv}" if isinstance(seen, Version) else str(seen)


def expectation_holds(op, state):
    """Whether a present version meets the preconditions of an update or a delete."""
    return not (op.by_rv and state.rv != op.expected.rv or op.by_uid and state.uid != op.expected.uid)


def violation(op, before):
    """The rule that a write breaks which took effect on this state, or None."""
    if op.kind == "create":
        return None if before is None else "two creates"
    if before is None:
        return "resurrection"
    return None if expectation_holds(op, before) else "lost update"


def observes(op, state):
    """Whether a read, or a write without effect, can have its outcome in this state of its key."""
    if op.outcome == ABSENT:
        # A named uid of an absent object is a conflict for an update, as upstream.
        return state is None
    if op.outcome == EXISTS:
        return state is not None
    if op.outcome == CONFLICT:
        if state is None:
            return op.kind == "update" and op.by_uid
        return not expectation_holds(op, state)
    return state == op.seen

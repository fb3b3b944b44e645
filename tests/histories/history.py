"""A recorded history: what clients requested and received, what watches delivered, and the faults. It is kept as a JSON file."""
import dataclasses, json

from model import Event, Operation, Version


@dataclasses.dataclass
class Watch:
    """A watch over its connections."""

    name: str
    events: list = dataclasses.field(default_factory=list)
    # When each event was received, as the times of operations.
    times: list = dataclasses.field(default_factory=list)
    # Connections: (number of events before it, revision from which it watches, server, whether a new list preceded it).
    connections: list = dataclasses.field(default_factory=list)
    # Bookmarks: (number of events before it, revision).
    bookmarks: list = dataclasses.field(default_factory=list)
    # The revision that the watch must reach.
    goal: int = 0
    # 410 responses: (server, revision).
    expired: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class History:
    seed: str
    store: str
    namespace: str
    # The revision before the first operation, and one after the last.
    start: int = 0
    end: int = 0
    operations: list = dataclasses.field(default_factory=list)
    watches: list = dataclasses.field(default_factory=list)
    faults: list = dataclasses.field(default_factory=list)

    def save(self, path):
        with open(path, "w") as file:
            json.dump(dataclasses.asdict(self), file)

    @staticmethod
    def load(path):
        with open(path) as file:
            fields = json.load(file)
        fields["operations"] = [operation(op) for op in fields["operations"]]
        fields["watches"] = [Watch(**{**watch, "events": [Event(*event) for event in watch["events"]]}) for watch in fields["watches"]]
        return History(**fields)


def operation(fields):
    seen = fields["seen"]
    if isinstance(seen, list):
        fields["seen"] = Version(*seen)
    elif isinstance(seen, dict):
        fields["seen"] = {key: Version(*version) for key, version in seen.items()}
    fields["expected"] = fields["expected"] and Version(*fields["expected"])
    return Operation(**fields)

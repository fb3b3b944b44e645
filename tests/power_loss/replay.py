"""What a power loss leaves of a disk: the durable content and any selection of the pending operations."""
import itertools

from disk import Disk, File, Truncate, apply, write_into
from trace import Process

SECTOR_BYTES = (512, 4096)
# How pending operations are kept. `order`: the first ones, the last of them torn. `any`: each by chance. `none` and `all`.
MODES = ("none", "all", "order", "order", "any", "any")


# The calls before a failed crash point that a report has.
CALLS_SHOWN = 12


def steps(recording):
    """Replays the lives of a recording on one disk. Yields the disk, the printed lines (or None) and the call after each change."""
    disk = Disk(recording.tree)
    for life in recording.lives:
        process = Process(disk, recording.root)
        for call in life.calls:
            lines = None if call.ends else process.begin(call)
            if lines is not None or call.ends and process.end(call):
                yield disk, lines, call


def describe(recording, last):
    """The last calls before a crash point, for a report."""
    calls = [call for _, _, call in itertools.islice(steps(recording), last)]
    shown = lambda call: "".join(f" {text[:100]!r}" for text in call.strings)
    return [f"{call.name}({call.arguments}) = {call.result}{call.note}{shown(call)}" for call in calls[-CALLS_SHOWN:]]


class Image:
    """One possible content of the disk after a power loss, with what it keeps."""

    def __init__(self, disk, random):
        self.random, self.kept = random, []
        # A killed process loses nothing, a disk without a cache keeps nothing, and anything between.
        self.mode = random.choice((None, None, None, None, None, None, None, "none", "all", "order"))
        self.tree = self.folder(disk.root, "")

    def folder(self, folder, path):
        entries, refused = dict(folder.durable), set()
        mode = self.mode or self.random.choice(MODES)
        count = self.random.randint(0, len(folder.pending))
        for index, operation in enumerate(folder.pending):
            keep = {"none": False, "all": True, "order": index < count, "any": self.random.random() < 0.5}[mode]
            # Operations on one name keep their order.
            if keep and refused.isdisjoint(operation.entries):
                entries.update(operation.entries)
                self.kept.append(f"{path or '.'}: {operation}")
            else:
                refused.update(operation.entries)
                self.kept.append(f"{path or '.'}: LOST {operation}")
        named = {name: node for name, node in sorted(entries.items()) if node is not None}
        return {name: self.node(node, f"{path}/{name}".lstrip("/")) for name, node in named.items()}

    def node(self, node, path):
        return self.file(node, path) if isinstance(node, File) else self.folder(node, path)

    def file(self, file, path):
        if not file.pending:
            return bytes(file.durable)
        content, mode = bytearray(file.durable), self.mode or self.random.choice(MODES)
        if mode == "all":
            self.kept.append(f"{path}: all {len(file.pending)} operations")
            return bytes(file.visible())
        count = self.random.randint(0, len(file.pending))
        for index, operation in enumerate(file.pending):
            if mode == "order" and index <= count or mode == "any" and self.random.random() < 0.6:
                whole = mode == "order" and index < count or mode == "any" and self.random.random() < 0.6
                self.keep(content, operation, whole, path)
            else:
                self.kept.append(f"{path}: LOST {operation}")
        return bytes(content)

    def keep(self, content, operation, whole, path):
        if whole or isinstance(operation, Truncate):
            apply(content, operation)
            self.kept.append(f"{path}: {operation}")
            return
        data, kind = operation.data, self.random.randrange(3)
        if kind == 0:
            # Cut at a byte.
            size = self.random.randint(0, len(data))
            write_into(content, operation.at, data[:size])
            self.kept.append(f"{path}: first {size} bytes of a {operation}")
            return
        sector, lost = SECTOR_BYTES[kind - 1], []
        at = operation.at
        # Without the data of a sector the size may still be durable: then it reads as zeros.
        if self.random.random() < 0.5:
            write_into(content, at + len(data), b"")
        while at < operation.at + len(data):
            end = min(at // sector * sector + sector, operation.at + len(data))
            if self.random.random() < 0.5:
                write_into(content, at, data[at - operation.at:end - operation.at])
            else:
                lost.append(at)
            at = end
        self.kept.append(f"{path}: {operation} LOST its sectors of {sector} bytes at {lost}")


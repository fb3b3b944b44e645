"""A model of a disk: what is durable, and what a system call changed that was not synced since.

A file or folder is durable up to its last sync. Later operations are pending: a power loss keeps any of them. A sync that failed makes the
pending writes of a file stuck: no later sync makes them durable, because the system holds their pages for clean.
"""


class Unmodelled(Exception):
    """The recording has a call whose effect the model doesn't know."""


class Write:
    def __init__(self, at, data, sequence):
        self.at, self.data, self.sequence, self.stuck = at, data, sequence, False

    def __str__(self):
        return f"write of {len(self.data)} bytes at {self.at}{' (sync failed)' if self.stuck else ''}"


class Truncate:
    def __init__(self, size, sequence):
        self.size, self.sequence, self.stuck = size, sequence, False

    def __str__(self):
        return f"truncation to {self.size} bytes"


class Entry:
    """An operation on entries of a folder: each named entry becomes a node, or None for no entry."""

    def __init__(self, entries, sequence):
        self.entries, self.sequence = entries, sequence

    def __str__(self):
        return ", ".join(f"{'+' if node else '-'}{name}" for name, node in self.entries.items())


def write_into(content, at, data):
    if len(content) < at:
        content.extend(bytes(at - len(content)))
    content[at:at + len(data)] = data


def truncate(content, size):
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


def apply(content, operation):
    if isinstance(operation, Write):
        write_into(content, operation.at, operation.data)
    else:
        truncate(content, operation.size)


def without(write, start, end):
    """The parts of a write outside of the bytes start..end."""
    if end <= write.at or start >= write.at + len(write.data):
        return [write]
    parts = []
    for low, high in ((write.at, start), (end, write.at + len(write.data))):
        if low < high:
            part = Write(low, write.data[low - write.at:high - write.at], write.sequence)
            part.stuck = write.stuck
            parts.append(part)
    return parts


class File:
    def __init__(self, content=b""):
        self.durable, self.pending = bytearray(content), []

    def visible(self):
        content = bytearray(self.durable)
        for operation in self.pending:
            apply(content, operation)
        return content

    def size(self):
        size = len(self.durable)
        for operation in self.pending:
            size = max(size, operation.at + len(operation.data)) if isinstance(operation, Write) else operation.size
        return size

    def sync(self, until):
        """Makes durable what was done up to a sequence number."""
        left = []
        for operation in self.pending:
            if operation.stuck or operation.sequence > until:
                left.append(operation)
                continue
            apply(self.durable, operation)
            # What is durable now replaces earlier stuck bytes.
            if isinstance(operation, Write):
                start, end = operation.at, operation.at + len(operation.data)
            else:
                start, end = operation.size, float("inf")
            left = [part for write in left for part in (without(write, start, end) if isinstance(write, Write) else [write])]
        self.pending = left

    def fail_sync(self, until):
        for operation in self.pending:
            if isinstance(operation, Write) and operation.sequence <= until:
                operation.stuck = True


class Folder:
    def __init__(self, entries=None):
        self.durable, self.pending = dict(entries or {}), []

    def visible(self):
        entries = dict(self.durable)
        for operation in self.pending:
            entries.update(operation.entries)
        return {name: node for name, node in entries.items() if node is not None}

    def sync(self, until):
        for operation in [operation for operation in self.pending if operation.sequence <= until]:
            self.durable.update(operation.entries)
            self.pending.remove(operation)
        self.durable = {name: node for name, node in self.durable.items() if node is not None}

    def fail_sync(self, until):
        """The journal retries: a later sync of the folder makes its operations durable."""


class Disk:
    """The root folder and all below it; paths are tuples of names."""

    def __init__(self, tree=None):
        self.root = node_of(tree or {})
        self.sequence = 0

    def next(self):
        self.sequence += 1
        return self.sequence

    def find(self, path):
        node = self.root
        for name in path:
            node = node.visible().get(name) if isinstance(node, Folder) else None
        return node

    def folder(self, path):
        node = self.find(path)
        if not isinstance(node, Folder):
            raise Unmodelled(f"{'/'.join(path)} is no folder")
        return node

    def set_entries(self, folder, entries):
        folder.pending.append(Entry(entries, self.next()))

    def write(self, file, at, data):
        if data:
            file.pending.append(Write(at, data, self.next()))

    def truncate(self, file, size):
        if size != file.size():
            file.pending.append(Truncate(size, self.next()))

    def visible_tree(self, node=None):
        node = node or self.root
        if isinstance(node, File):
            return bytes(node.visible())
        return {name: self.visible_tree(child) for name, child in node.visible().items()}


def node_of(tree):
    """A durable node: a folder of a dict, a file of bytes."""
    if isinstance(tree, dict):
        return Folder({name: node_of(child) for name, child in tree.items()})
    return File(tree)

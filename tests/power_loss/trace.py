"""Records a program's system calls with strace, and parses the recording into events in the order of their effect."""
import os, re, signal, subprocess

from disk import File, Folder, Unmodelled

# Calls whose effect the model has, then calls that it lacks: these may not concern a file of the store.
MODELLED = ("openat", "close", "write", "pwrite64", "writev", "ftruncate", "lseek", "fsync", "fdatasync", "rename", "renameat", "renameat2",
            "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat", "fallocate", "dup", "fcntl")
REFUSED = ("open", "creat", "mmap", "pwritev", "pwritev2", "truncate", "link", "linkat", "symlink", "symlinkat", "sendfile", "copy_file_range",
           "splice", "dup2", "dup3", "io_uring_setup", "sync", "syncfs")
CALLS = ",".join(f"?{name}" for name in MODELLED + REFUSED)
STRACE = ["strace", "-f", "-qq", "--seccomp-bpf", "-xx", "-s", "100000000", "-e", "signal=none", "-e", f"trace={CALLS}"]

# A run takes less than a second, and a few if sled waits.
RUN_SECONDS_MAX = 60

CALL = re.compile(r"^(\w+)\((.*)\)\s+= (-?\d+|\?)(.*)$", re.S)
LINE = re.compile(r"^(\d+)\s+(.*)$")
# strace has no name (???) for a call during which the process ended.
RESUMED = re.compile(r"^<\.\.\. \S+ resumed>(.*)$")
UNFINISHED = " <unfinished ...>"


class Call:
    """A system call: its strings, its other arguments as strace prints them, its result, and whether this is its begin or its end."""

    def __init__(self, thread, name, arguments, result, note, ends):
        self.thread, self.name, self.result, self.note, self.ends = thread, name, result, note, ends
        # Strings are in hexadecimal digits and so have no quotes.
        parts = arguments.split('"')
        if any(part.startswith("...") for part in parts[2::2]):
            raise Unmodelled("strace shortened a string")
        self.strings = [bytes.fromhex(part.replace("\\x", "")) for part in parts[1::2]]
        self.arguments = "".join(parts[::2])

    def printed(self):
        """What this begin of a call writes to the standard output, or None. It counts as printed even if the call fails."""
        is_output = self.name == "write" and not self.ends and self.first_number() == 1
        return self.strings[0].decode() if is_output else None

    def numbers(self):
        """The arguments that are numbers: of a call without structures, all but strings."""
        return [int(part) for part in self.arguments.replace(" ", "").split(",") if re.fullmatch(r"-?\d+", part)]

    def first_number(self):
        found = re.match(r"-?\d+", self.arguments)
        return int(found.group()) if found else None


class Hangs(Exception):
    """The program doesn't end."""


def run(command, trace, injections=()):
    """Runs a command under strace; returns its exit code (of a death by a signal: negative) and its errors."""
    inject = [word for injection in injections for word in ("-e", f"inject={injection}")]
    words = [*STRACE, *inject, "-o", trace, "--", *command]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True) as process:
        try:
            _, errors = process.communicate(timeout=RUN_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            # strace and the program, which would continue without it.
            os.killpg(process.pid, signal.SIGKILL)
            raise Hangs(f"{' '.join(command)} has not ended after {RUN_SECONDS_MAX} s with {injections}") from None
        return process.returncode, errors.decode(errors="replace")


def calls(path):
    """The begins and ends of calls, in the order in which they took place."""
    begun = {}
    with open(path, encoding="ascii", errors="replace") as lines:
        for line in lines:
            found = LINE.match(line.rstrip("\n"))
            # Signals, ends, and a call that the process's end prevented.
            if not found or found[2].startswith(("---", "+++", "???")):
                continue
            process, text = found[1], found[2]
            if text.endswith(UNFINISHED):
                begun[process] = text.removesuffix(UNFINISHED)
                yield Call(process, *begun[process].split("(", 1), None, "", False)
                continue
            resumed, first = RESUMED.match(text), ""
            if resumed:
                first = begun.pop(process, None)
                if first is None:
                    raise Unmodelled(f"the end of a call without its begin: {text[:80]}")
                text = first + resumed[1]
            parsed = CALL.match(text)
            if not parsed:
                raise Unmodelled(f"an unknown line: {text[:80]} … {text[-80:]}")
            name, arguments, result, note = parsed.groups()
            if not first:
                yield Call(process, name, arguments, None, "", False)
            yield Call(process, name, arguments, None if result == "?" else int(result), note, True)


class Opened:
    """An open file: shared by duplicates of its descriptor."""

    def __init__(self, node, appends):
        self.node, self.at, self.appends = node, 0, appends


class Process:
    """Applies the calls of one process to a disk. The store's files are those below `root`."""

    def __init__(self, disk, root):
        self.disk, self.root, self.opened = disk, root.encode(), {}
        # The disk's sequence when a sync began, by open file: a sync covers what was done before its begin.
        self.syncs = {}

    def path(self, text, call=None):
        """Names below the root, or None for a path elsewhere."""
        if not text.startswith(b"/") and call is not None:
            opened = self.opened.get(call.first_number())
            return None if opened is None else (opened.node, tuple(part.decode() for part in text.split(b"/") if part))
        if text != self.root and not text.startswith(self.root + b"/"):
            return None
        return (self.disk.root, tuple(part.decode() for part in text[len(self.root):].split(b"/") if part))

    def parent(self, found):
        start, names = found
        folder = start
        for name in names[:-1]:
            folder = folder.visible().get(name) if isinstance(folder, Folder) else None
        if not isinstance(folder, Folder) or not names:
            raise Unmodelled(f"no folder above {'/'.join(names)}")
        return folder, names[-1]

    def begin(self, call):
        """Returns the lines that the program wrote to its standard output, or None."""
        if call.name == "close":
            self.opened.pop(call.first_number(), None)
        elif call.name in ("fsync", "fdatasync"):
            opened = self.opened.get(call.first_number())
            if opened:
                self.syncs.setdefault(id(opened), []).append(self.disk.sequence)
        return call.printed()

    def end(self, call):
        """Applies the effect; returns whether the disk changed."""
        if call.name in ("fsync", "fdatasync"):
            return self.sync(call)
        if call.result is None or call.result < 0 or "(INJECTED)" in call.note:
            return False
        act = getattr(self, call.name, None)
        if act:
            return act(call)
        opened = self.opened.get(call.first_number())
        if call.name == "mmap":
            number = re.search(r", (-?\d+), (?:0|0x[0-9a-f]+)$", call.arguments)
            maps = "MAP_SHARED" in call.arguments and "PROT_WRITE" in call.arguments
            opened = self.opened.get(int(number[1])) if number and maps else None
        if call.name in REFUSED and (opened or any(self.path(text) for text in call.strings)):
            raise Unmodelled(f"{call.name}({call.arguments[:60]}")
        return False

    def sync(self, call):
        opened = self.opened.get(call.first_number())
        if not opened:
            return False
        # The oldest of several at once: the weakest promise.
        begins = self.syncs[id(opened)]
        until = begins.pop(0)
        if call.result == 0:
            opened.node.sync(until)
        elif call.result is not None:
            opened.node.fail_sync(until)
        return True

    def openat(self, call):
        text = call.strings[0]
        found = self.path(text, None if call.arguments.startswith("AT_FDCWD") else call)
        if found is None:
            return False
        node, names = found
        for name in names:
            node = node.visible().get(name) if isinstance(node, Folder) else None
        changed = False
        if node is None:
            if "O_CREAT" not in call.arguments:
                raise Unmodelled(f"a file that the model lacks: {text.decode()}")
            folder, name = self.parent(found)
            node, changed = File(), True
            self.disk.set_entries(folder, {name: node})
        elif "O_TRUNC" in call.arguments and isinstance(node, File):
            self.disk.truncate(node, 0)
            changed = True
        self.opened[call.result] = Opened(node, "O_APPEND" in call.arguments)
        return changed

    def write(self, call):
        opened = self.opened.get(call.first_number())
        if not opened:
            return False
        data = b"".join(call.strings)[:call.result]
        if opened.appends:
            opened.at = opened.node.size()
        self.disk.write(opened.node, opened.at, data)
        opened.at += call.result
        return True

    writev = write

    def pwrite64(self, call):
        opened = self.opened.get(call.first_number())
        if opened:
            self.disk.write(opened.node, call.numbers()[-1], call.strings[0][:call.result])
        return bool(opened)

    def ftruncate(self, call):
        opened = self.opened.get(call.first_number())
        if opened:
            self.disk.truncate(opened.node, call.numbers()[1])
        return bool(opened)

    def fallocate(self, call):
        opened = self.opened.get(call.first_number())
        if opened:
            mode, at, size = call.arguments.replace(" ", "").split(",")[1:4]
            if mode != "0":
                raise Unmodelled(f"fallocate with {mode}")
            self.disk.truncate(opened.node, max(opened.node.size(), int(at) + int(size)))
        return bool(opened)

    def lseek(self, call):
        opened = self.opened.get(call.first_number())
        if opened:
            opened.at = call.result
        return False

    def dup(self, call):
        opened = self.opened.get(call.first_number())
        if opened:
            self.opened[call.result] = opened
        return False

    def fcntl(self, call):
        return self.dup(call) if "F_DUPFD" in call.arguments else False

    def mkdir(self, call):
        found = self.path(call.strings[0], call)
        if found is None:
            return False
        folder, name = self.parent(found)
        self.disk.set_entries(folder, {name: Folder()})
        return True

    mkdirat = mkdir

    def unlink(self, call):
        found = self.path(call.strings[0], call)
        if found is None:
            return False
        folder, name = self.parent(found)
        if name not in folder.visible():
            raise Unmodelled(f"the model lacks {name}")
        self.disk.set_entries(folder, {name: None})
        return True

    unlinkat = rmdir = unlink

    def rename(self, call):
        old, new = (self.path(text) for text in call.strings)
        if old is None and new is None:
            return False
        if old is None or new is None:
            raise Unmodelled("a rename across the root")
        (folder, name), (other, new_name) = self.parent(old), self.parent(new)
        if folder is not other or name not in folder.visible():
            raise Unmodelled("a rename across folders")
        self.disk.set_entries(folder, {name: None, new_name: folder.visible()[name]})
        return True

    renameat = renameat2 = rename

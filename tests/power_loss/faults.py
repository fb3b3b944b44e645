"""Faults of the disk and of its content: calls that fail, a read-only folder, flipped bits."""
import collections, functools, os, random, shutil, subprocess

import history
from disk import Unmodelled
from driver import ATTEMPTS, STORE, Checker, live, read_tree, record, write_tree
from history import History, Wrong

EIO = ("write", "pwrite64", "fsync", "fdatasync", "openat", "rename", "ftruncate", "unlink", "unlinkat", "mkdir", "lseek")
ENOSPC = ("write", "pwrite64", "openat", "rename", "mkdir", "fdatasync")
TRANSACTIONS = 60
# How many recordings may be needed for a store with a snapshot and closed segments: the threads decide when it is written.
SMALL_ATTEMPTS = 10
# Offsets of a run of zeros at the end of a file, of which few are tried: sled's files have such.
ZEROS_MAX = 200


def failed(where, tree, folder, wrong):
    kept = folder + "-failed"
    shutil.rmtree(kept, ignore_errors=True)
    write_tree(kept, tree)
    raise SystemExit(f"power-loss: {where}: {wrong}\nthe files: {kept}")


def panics(text):
    """Panics outside of sled, which the store catches."""
    return [line for line in text.splitlines() if "panicked at" in line and "/sled-" not in line]


def inject(driver, folder, seed, most):
    """One call after another fails, in each thread the n-th. Then the store opens without faults and has all acknowledged transactions."""
    draw, counts = random.Random(f"faults {seed}"), collections.Counter()
    full = record(driver, folder, {}, [(seed * 1000 + 900_001, TRANSACTIONS, (), False)], ((), {}))
    full_tree = read_tree(full.root)
    full_base = ([full.whole.order[number] for number in sorted(full.whole.order)], full.whole.tried)
    counts["refused read-only folders"] = read_only(driver, folder, full_tree)
    most_calls = longest(full.lives[0].calls)
    with Checker(driver, folder) as checker:
        for error, name in [("EIO", name) for name in EIO] + [("ENOSPC", name) for name in ENOSPC]:
            last = most_calls.get(name, 1)
            for when in range(1, last + 1) if most is None else sorted(draw.sample(range(1, last + 1), min(most, last))):
                # Every second one begins with an empty folder.
                tree, base = ({}, ((), {})) if (when + len(name)) % 2 else (full_tree, full_base)
                counts["runs"] += 1
                number = seed * 1000 + 910_000 + counts["runs"]
                where = f"--seed {seed}: {name} {when} fails with {error}"
                life = live_with(f"{name}:error={error}:when={when}", driver, folder, tree, number)
                after(checker, life, base, where, os.path.join(folder, "root"), folder, counts)
    return counts


def live_with(fault, driver, folder, tree, number):
    """A run on a tree with a fault. It is repeated if strace printed a line of which the end of the process left a part."""
    root, reason = os.path.join(folder, "root"), None
    for _ in range(ATTEMPTS):
        shutil.rmtree(root, ignore_errors=True)
        write_tree(root, tree)
        try:
            return live(driver, folder, root, number, TRANSACTIONS, (fault,))
        except Unmodelled as unmodelled:
            reason = unmodelled
    raise SystemExit(f"power-loss: no run with {fault} can be read: {reason}")


def longest(calls):
    """By name, the number of calls of the thread with the most."""
    counts = collections.Counter((call.thread, call.name) for call in calls if call.ends)
    longest = {}
    for (_, name), count in counts.items():
        longest[name] = max(longest.get(name, 0), count)
    return longest


def after(checker, life, base, where, root, folder, counts):
    tree = read_tree(root)
    whole = History(*base)
    try:
        whole.add(life.lines)
        if panics(life.stderr):
            raise Wrong(panics(life.stderr))
        if life.code not in (0, 1, 127, -6):
            raise Wrong(f"the program ended with {life.code}: {life.stderr[-300:]}")
        for line in whole.errors:
            if line.startswith("error ") and root not in line:
                raise Wrong(f"an error without a path: {line}")
    except Wrong as wrong:
        failed(where, tree, folder, wrong)
    counts["failed calls"] += sum("(INJECTED)" in call.note for call in life.calls)
    counts["rejected transactions"] += len(whole.rejected)
    counts["ended programs"] += life.code != 0

    def act(lines):
        try:
            history.check(whole, whole, lines)
        except Wrong as wrong:
            failed(where, tree, folder, wrong)
    checker.submit(tree, act)


def read_only(driver, folder, tree):
    """A store on a read-only mount is refused with the path, and its files stay. Needs a mount of its own; 0 without the right to it."""
    root = os.path.join(folder, "read-only")
    write_tree(root, tree)
    mount = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" || exit 99; exec "$2" write "$1/$3" 1 10'
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mount, "sh", root, driver, STORE], capture_output=True, text=True)
    if done.returncode == 99 or "unshare" in done.stderr:
        return 0
    if done.returncode != 1 or f"{root}/{STORE}" not in done.stdout or "Read-only" not in done.stdout or read_tree(root) != tree:
        raise SystemExit(f"power-loss: a read-only folder: {done.returncode} {done.stdout} {done.stderr}")
    return 1


def flip(driver, folder, seed, most):
    """One bit of a store at rest is flipped: the state is the same, or an error names the file. A flipped bit in the last frame of the log
    can't be distinguished from a write that was never acknowledged: then the state is that before the frame."""
    draw, counts = random.Random(f"flips {seed}"), collections.Counter()
    for attempt in range(SMALL_ATTEMPTS):
        small = record(driver, folder, {}, [(seed * 1000 + 990_000 + attempt, TRANSACTIONS, (), False)], ((), {}))
        tree, whole = read_tree(small.root), small.whole
        files = dict(paths(tree))
        if any("/snapshot-" in path for path in files) and sum(path.endswith(".log") for path in files) > 1:
            break
    last_log = max(path for path in files if path.endswith(".log"))
    last_frame = files[last_log].rindex(b"\xffCR\xfe")
    places = [(path, at) for path, content in sorted(files.items()) for at in offsets(content, draw)]
    counts["bytes of the store"] = len(places)
    with Checker(driver, folder) as checker:
        older = []
        without_frame = changed(tree, last_log, files[last_log][:last_frame])
        checker.submit(without_frame, lambda lines: older.append(history.check(with_acknowledged(whole, 0), whole, lines)[0]))
        checker.finish()
        for path, at in places if most is None else draw.sample(places, min(most, len(places))):
            bad = bytearray(files[path])
            bad[at] ^= 1 << draw.randrange(8)
            before = with_acknowledged(whole, older[0]) if path == last_log and at >= last_frame else whole
            flipped = changed(tree, path, bytes(bad))
            where = f"--seed {seed}: a flipped bit of {path} at {at}"
            checker.submit(flipped, functools.partial(judge, before, whole, path, where, flipped, folder, counts))
    return counts


def judge(before, whole, path, where, tree, folder, counts, lines):
    name = path.removeprefix(STORE + "/")
    counts["flipped bits"] += 1
    if any(line.startswith("error ") and f"{name} is damaged" in line for line in lines):
        counts["refused with the file's name"] += 1
        return
    try:
        history.check(before, whole, lines)
    except Wrong as wrong:
        failed(where, tree, folder, wrong)


def with_acknowledged(whole, revision):
    """The history with fewer acknowledged revisions."""
    before = whole.copy()
    before.acknowledged = revision
    return before


def offsets(content, draw):
    written = len(content.rstrip(b"\0"))
    zeros = range(written, len(content))
    return [*range(written), *draw.sample(zeros, min(len(zeros), ZEROS_MAX))]


def paths(tree, path=""):
    for name, child in tree.items():
        below = f"{path}/{name}".lstrip("/")
        if isinstance(child, dict):
            yield from paths(child, below)
        else:
            yield below, child


def changed(tree, path, content):
    """The tree with another content of one file."""
    name, _, rest = path.partition("/")
    return {**tree, name: changed(tree[name], rest, content) if rest else content}

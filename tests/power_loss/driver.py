"""Runs apiserver/storage/examples/power_loss.rs: recordings of its system calls, and its checks of folders."""
import os, shutil, subprocess, tempfile

import trace
from disk import Disk, Unmodelled
from history import History
from trace import Process

# Where the store lies below the root of the model: folders of several levels are created, and their entries must be durable.
STORE = "new/deep/store"
ATTEMPTS = 6
# Folders that the checking process has not answered yet.
WAITING_MAX = 4


def write_tree(path, tree):
    if isinstance(tree, dict):
        os.makedirs(path, exist_ok=True)
        for name, child in tree.items():
            write_tree(os.path.join(path, name), child)
    else:
        with open(path, "wb") as file:
            file.write(tree)


def read_tree(path):
    if os.path.isdir(path):
        return {name: read_tree(os.path.join(path, name)) for name in os.listdir(path)}
    with open(path, "rb") as file:
        return file.read()


def scratch():
    """A folder in memory, if there is one: thousands of images are written."""
    memory = "/dev/shm"
    return tempfile.mkdtemp(prefix="coracle-power-loss-", dir=memory if os.access(memory, os.W_OK) else None)


class Life:
    """One run of the program: its calls, its exit code, what it printed, and its errors."""

    def __init__(self, calls, code, stderr):
        self.calls, self.code, self.stderr = calls, code, stderr
        self.lines = "".join(call.printed() or "" for call in calls)


def live(driver, folder, root, seed, transactions, fault=(), abort=False):
    """Runs the program once on the store below `root`, recorded into files of `folder`."""
    recording = os.path.join(folder, "trace")
    command = [driver, "write", os.path.join(root, STORE), str(seed), str(transactions)] + (["abort"] if abort else [])
    code, stderr = trace.run(command, recording, fault)
    return Life(list(trace.calls(recording)), code, stderr)


class Recording:
    """The lives of a program on one folder, from a tree, and what they acknowledged."""

    def __init__(self, root, tree, lives, order, tried):
        self.root, self.tree, self.lives, self.base = root, tree, lives, (order, tried)
        self.whole = self.history()
        for life in lives:
            self.whole.add(life.lines)

    def history(self):
        return History(*self.base)


def record(driver, folder, tree, plan, base):
    """Records lives that `plan` describes: pairs of arguments of `live`. It is repeated while the model doesn't have the files' content: the
    order of calls of two threads, or a call at the end of a process, can be unknown."""
    reason = None
    for _ in range(ATTEMPTS):
        root = os.path.join(folder, "root")
        shutil.rmtree(root, ignore_errors=True)
        write_tree(root, tree)
        try:
            disk, lives = Disk(tree), []
            for seed, transactions, fault, abort in plan:
                life = live(driver, folder, root, seed, transactions, fault, abort)
                if not life.calls:
                    raise SystemExit(f"power-loss: strace recorded nothing: {life.stderr}")
                process = Process(disk, root)
                for call in life.calls:
                    process.end(call) if call.ends else process.begin(call)
                if disk.visible_tree() != read_tree(root):
                    raise Unmodelled(f"the model's files differ from those of the life {seed}")
                lives.append(life)
            return Recording(root, tree, lives, *base)
        except Unmodelled as unmodelled:
            reason = unmodelled
    raise SystemExit(f"power-loss: no recording of {plan} can be modelled: {reason}")


class Checker:
    """A process that opens folders one after another. Answers come in the order of the questions."""

    def __init__(self, driver, folder):
        self.driver, self.folder, self.waiting, self.number = driver, folder, [], 0
        self.errors = open(os.path.join(folder, "stderr"), "wb")
        self.start()

    def start(self):
        self.process = subprocess.Popen([self.driver, "check"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True)

    def submit(self, tree, act):
        """Checks a tree; `act` gets the lines of the check, later."""
        self.number += 1
        path = os.path.join(self.folder, f"image-{self.number}")
        write_tree(path, tree)
        self.process.stdin.write(os.path.join(path, STORE) + "\n")
        self.process.stdin.flush()
        self.waiting.append((path, act))
        if len(self.waiting) >= WAITING_MAX:
            self.answer()

    def answer(self):
        path, act = self.waiting.pop(0)
        lines = []
        for line in self.process.stdout:
            if line == "end\n":
                break
            lines.append(line.rstrip("\n"))
        else:
            lines.append(f"error the process ended with {self.process.wait()}")
            self.start()
            for other, _ in self.waiting:
                self.process.stdin.write(os.path.join(other, STORE) + "\n")
            self.process.stdin.flush()
        act(lines)
        shutil.rmtree(path)

    def finish(self):
        while self.waiting:
            self.answer()

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        if error:
            self.process.kill()
        else:
            self.finish()
            self.process.stdin.close()
        self.process.wait()
        self.errors.close()

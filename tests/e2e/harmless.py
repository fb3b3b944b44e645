"""Code shared by the tests of hostile definitions and policies: another client continues meanwhile, and the server grows within a bound."""
import threading, time

from pace import Pace

# Seconds are those of a quiet machine; a server that computes for a client is far slower.
OTHERS_S, GROWTH_MIB = 20.0, 1500
MAPS = "/api/v1/namespaces/default/configmaps"


def resident_mib(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS")) >> 10


class Others:
    """Another client that writes small objects in sequence, and its longest wait."""

    def __init__(self, ask):
        self.ask = ask

    def __enter__(self):
        self.stop, self.longest, self.count, self.failed = False, 0.0, 0, None
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        return self

    def run(self):
        while not self.stop:
            began = time.monotonic()
            body = {"metadata": {"name": "other"}, "data": {"n": str(self.count)}}
            code, answer = self.ask("POST", MAPS, body)
            code = code if code != 201 else self.ask("DELETE", f"{MAPS}/other")[0]
            self.longest = max(self.longest, time.monotonic() - began)
            self.count += 1
            if code != 200:
                self.failed = (code, answer)
                return

    def __exit__(self, *_):
        self.stop = True
        self.thread.join()


def harmless(what, run, ask, pid):
    """The effect of `run` on the process `pid`, and on another client, whose requests `ask` makes."""
    before, began = resident_mib(pid), time.monotonic()
    with Pace() as pace, Others(ask) as others:
        said = run()
    took, grown = time.monotonic() - began, resident_mib(pid) - before
    print(f"  {what}: {said}, {took:.1f} s; others waited {others.longest * 1000:.0f} ms at most, {grown} MiB more", flush=True)
    assert others.failed is None, others.failed
    slowness = pace.slowness()
    assert others.longest < OTHERS_S * slowness, f"{what}: others waited {others.longest:.1f} s on a machine that is slower by {slowness:.1f}"
    assert grown < GROWTH_MIB, f"{what}: {grown} MiB more"

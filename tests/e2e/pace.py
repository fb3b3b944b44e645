"""How slow the machine is at present: a process outside the program under test that does the same bit of work again and again, and compares
its time with its CPU time. A bound on speed is multiplied by that: beside other load it says the same about the program as on an idle
machine.
"""
import subprocess, sys, threading

# A tenth of one core. A burst is longer than a scheduler's time slice, so that it has to wait for its turn as the program has to.
WORK_S, PAUSE_S = 0.03, 0.27
RECENT = 200  # a minute
CODE = f"""
import time
while True:
    due = time.monotonic() + {PAUSE_S}
    time.sleep({PAUSE_S})
    cpu = time.process_time()
    while time.process_time() - cpu < {WORK_S}:
        pass
    print((time.monotonic() - due) / (time.process_time() - cpu), flush=True)
"""


class Pace:
    """`with Pace() as pace: …; pace.slowness()`. Started without `with`, the process ends with this one, as nothing reads it then."""

    def start(self):
        self.seen = []
        self.process = subprocess.Popen([sys.executable, "-c", CODE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.thread = threading.Thread(target=lambda: self.seen.extend(map(float, self.process.stdout)), daemon=True)
        self.thread.start()
        return self

    __enter__ = start

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.thread.join()

    def slowness(self):
        """At least 1: what the slowest tenth of the work took, as a multiple of its CPU time."""
        seen = sorted(self.seen[-RECENT:])
        return max(1.0, seen[len(seen) * 9 // 10]) if seen else 1.0

"""Network namespaces: the test runs in one of its own with a bridge, and each process of the cluster in another one at a port of the bridge.

Nothing of the machine's network is used or changed. Each namespace ends with its last process: a `cat` that reads from the test, and the process of
the cluster. `SUBNET` is valid only in these namespaces.
"""
import os, shutil, subprocess, sys

SUBNET = "10.77.0"
BRIDGE = "bridge0"
BRIDGE_ADDRESS = "02:00:00:00:00:01"
ENTERED = "CORACLE_LINEARIZABLE_NETWORK"


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def enter():
    """Runs the test again in a network namespace. Returns whether it is in one; the reason is printed if it can't be."""
    if os.environ.get(ENTERED) == str(os.getpid()):
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "name", BRIDGE, "type", "bridge")
        # Otherwise it is the lowest one of its ports, and a port that is cut changes it: the other ports would lose this end, too.
        run("ip", "link", "set", BRIDGE, "address", BRIDGE_ADDRESS)
        run("ip", "address", "add", f"{SUBNET}.1/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        return True
    if missing := [name for name in ("ip", "unshare", "nsenter") if not shutil.which(name)]:
        print(f"network namespaces are left out: no {', '.join(missing)}")
        return False
    own = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    probe = f"ip link set lo up && ip link add name {BRIDGE} type bridge && ip link add name port type veth peer name inner"
    tried = subprocess.run([*own, "sh", "-c", probe], capture_output=True, text=True)
    if tried.returncode:
        print(f"network namespaces are left out: {tried.stderr.strip()}")
        return False
    sys.stdout.flush()
    # `unshare` without `--fork` keeps the process id.
    os.execvpe(own[0], [*own, sys.executable, *sys.argv], {**os.environ, ENTERED: str(os.getpid())})


class Port:
    """A namespace with one address, at a port of the bridge."""

    def __init__(self, number):
        self.address, self.outer, self.inner = f"{SUBNET}.{number}", f"p{number}", f"q{number}"
        inner = self.inner
        self.holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "ip link set lo up && echo ready && exec cat"],
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if self.holder.stdout.readline() != b"ready\n":
            raise RuntimeError("no network namespace")
        self.inside = ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net"]
        run("ip", "link", "add", "name", self.outer, "type", "veth", "peer", "name", inner)
        run("ip", "link", "set", inner, "netns", str(self.holder.pid))
        run(*self.inside, "ip", "address", "add", f"{self.address}/24", "dev", inner)
        run(*self.inside, "ip", "link", "set", inner, "up")
        run("ip", "link", "set", self.outer, "master", BRIDGE)
        run("ip", "link", "set", self.outer, "up")

    def down(self):
        """The link has no carrier."""
        run("ip", "link", "set", self.outer, "down")

    def black_hole(self):
        """The link has a carrier, and loses every packet."""
        run("ip", "link", "set", self.outer, "nomaster")

    def add_address(self, address):
        """Another address, which may have been another port's."""
        run(*self.inside, "ip", "address", "add", f"{address}/24", "dev", self.inner)
        run("ip", "neighbour", "flush", "to", address)

    def remove_address(self, address):
        run(*self.inside, "ip", "address", "delete", f"{address}/24", "dev", self.inner)

    def heal(self):
        run("ip", "link", "set", self.outer, "master", BRIDGE)
        run("ip", "link", "set", self.outer, "up")

    def close(self):
        self.holder.stdin.close()
        self.holder.wait()

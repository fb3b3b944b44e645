#!/usr/bin/env python3
"""session.py: one session of k9s on a pseudo-terminal, as a person has it. $K9S names the program, $KUBECONFIG the cluster."""
import fcntl, json, os, pty, re, select, signal, struct, subprocess, sys, termios, time

import pyte

ROWS, COLUMNS = 50, 220
SOON_S = 60
# Longer than the interval of k9s' own updates, which may draw over a dialog.
ESCAPE, ENTER, TAB, BACKSPACE = "\x1b", "\r", "\t", "\x7f"
KINDS = (
    "namespaces services endpointslices configmaps secrets serviceaccounts deployments replicasets statefulsets daemonsets jobs cronjobs "
    "ingresses networkpolicies horizontalpodautoscalers poddisruptionbudgets persistentvolumes persistentvolumeclaims storageclasses "
    "clusterroles clusterrolebindings roles rolebindings customresourcedefinitions events leases priorityclasses"
).split()


class Wrong(Exception):
    pass


class Screen(pyte.Screen):
    """pyte's, which fails on xterm's private sequences of this kind."""

    def select_graphic_rendition(self, *attributes, private=False):
        if not private:
            super().select_graphic_rendition(*attributes)


class Session:
    def __init__(self, *args):
        self.fd, own = pty.openpty()
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.screen = Screen(COLUMNS, ROWS)
        self.stream = pyte.ByteStream(self.screen)
        env = {**os.environ, "TERM": "xterm-256color", "COLORTERM": ""}
        self.process = subprocess.Popen([os.environ["K9S"], *args], stdin=own, stdout=own, stderr=own, env=env, start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(own)

    def read(self, seconds):
        """Draws what arrives within that time; whether the other end is open."""
        if not select.select([self.fd], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:
            return False
        self.stream.feed(data)
        return True

    def text(self):
        return "\n".join(line.rstrip() for line in self.screen.display)

    def sees(self, pattern, within=SOON_S, absent=None):
        """Waits until the screen has the pattern, and not the other one."""
        deadline = time.monotonic() + within
        while not (re.search(pattern, self.text()) and not (absent and re.search(absent, self.text()))):
            if not self.read(0.2) or time.monotonic() > deadline:
                raise Wrong(f"{pattern!r} is not shown:\n{self.text()}")
        return re.search(pattern, self.text())

    def type(self, keys):
        os.write(self.fd, keys.encode())

    def go(self, command, title):
        """A command line, and the title of the view that it opens."""
        self.type(":")
        self.sees("🐶\\s*>")
        self.type(command + ENTER)
        return self.sees(title)

    def only(self, name, others):
        """Filters the table. The title has the filter when it is applied."""
        self.type(f"/{name}{ENTER}")
        self.sees(rf"\[[1-9]\] </{name}>")
        self.sees(rf"(?m)^[\s│]*{name}", absent=others)

    def ended(self):
        deadline = time.monotonic() + SOON_S
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                raise Wrong(f"k9s goes on:\n{self.text()}")
            self.read(0.2)
        return self.process.returncode


def kubectl(*words):
    return subprocess.run(["kubectl", *words], capture_output=True, text=True, check=True).stdout


def until(wanted, what):
    deadline = time.monotonic() + SOON_S
    while not wanted():
        if time.monotonic() > deadline:
            raise Wrong(what)
        time.sleep(0.2)


def pods(k9s):
    k9s.sees(r"(?i)pods\(shop\)\[9\]")
    k9s.sees(r"NAME↑? .*READY .*STATUS .*CPU .*MEM ")
    k9s.sees(r"frontend-\S+ .* 1/1 .*Running")
    # Usage of metrics.k8s.io: numbers, not n/a.
    k9s.sees(r"orders-0 .* 1/1 +Running +0 +\d+ .*127\.", absent=r"orders-0 .*n/a +n/a +n/a +127")
    print("· pods with their usage")
    k9s.only("orders-0", "catalog-")
    k9s.type("d")
    k9s.sees(r"(?i)describe\(shop/orders-0\)")
    k9s.sees(r"Service Account: +\w+")
    k9s.type(ESCAPE)
    k9s.sees(r"(?i)pods\(shop\)")
    k9s.type("y")
    k9s.sees(r"apiVersion: v1")
    k9s.type(ESCAPE)
    k9s.sees(r"(?i)pods\(shop\)", absent="apiVersion: v1")
    print("· a description and YAML")


def logs_and_shell(k9s):
    k9s.go("pods default", r"(?i)pods\(default\)\[[2-9]")
    k9s.only("hello", "box ")
    k9s.type("l")
    k9s.sees(r"(?i)logs\(default/hello")
    # The first view is of the last minute; 0 shows all.
    k9s.type("0")
    k9s.sees(r"GET /")
    k9s.type(ESCAPE)
    k9s.sees(r"(?i)pods\(default\)", absent="Autoscroll")
    print("· a log")
    # Without the filter of before.
    k9s.go("pods default", r"(?i)pods\(default\)\[[2-9]")
    k9s.only("box", "hello-")
    k9s.type("s")
    k9s.sees(r"K9s-Shell.*default/box")
    k9s.type("echo one > /tmp/f; cat /tmp/f /tmp/f; echo end\n")
    k9s.sees(r"one\s*\n\s*one\s*\n\s*end")
    k9s.type("exit\n")
    k9s.sees(r"(?i)pods\(default\)")
    print("· a shell")


def workloads(k9s):
    k9s.go("deployments shop", r"(?i)deployments\(shop\)\[4\]")
    k9s.only("catalog", "frontend")
    k9s.type("s")
    k9s.sees(r"Replicas:")
    k9s.type(BACKSPACE + "3" + TAB + ENTER)
    until(lambda: kubectl("-n", "shop", "get", "deployment", "catalog", "-o", "jsonpath={.spec.replicas}") == "3", f"the size is not 3:\n{k9s.text()}")
    k9s.sees(r"catalog .*3/3")
    print("· scaling")
    k9s.type("r")
    k9s.sees(r"(?i)restart")
    k9s.type(TAB + ENTER)
    restarted = "jsonpath={.spec.template.metadata.annotations.kubectl\\.kubernetes\\.io/restartedAt}"
    until(lambda: kubectl("-n", "shop", "get", "deployment", "catalog", "-o", restarted) != "", f"no restart:\n{k9s.text()}")
    print("· a restart")


def cluster(k9s):
    k9s.go("nodes", r"(?i)nodes(\(all\))?\[2\]")
    for node in json.loads(kubectl("get", "nodes", "-o", "json"))["items"]:
        name, version = node["metadata"]["name"], node["status"]["nodeInfo"]["kubeletVersion"]
        # The columns after the version: pods, CPU, %CPU, memory …
        k9s.sees(rf"{name} +Ready .*{re.escape(version)} .*\d+ +\d+ +\d+ +\d+ ")
    print("· nodes with their usage")
    k9s.go("xray deployments shop", r"(?i)xray-deployments?\(shop\)")
    k9s.sees(r"frontend")
    k9s.go("pulses", r"(?i)pulses")
    k9s.sees(r"(?i)deployments")
    print("· xray and pulses")
    for kind in KINDS:
        k9s.go(kind, rf"(?i){kind}(\([\w-]+\))?\[\d+\]")
    print(f"· tables of {len(KINDS)} kinds")


def main():
    k9s = Session("--kubeconfig", os.environ["KUBECONFIG"], "--namespace", "shop", "--command", "pods", "--splashless", "--logoless")
    try:
        for scene in (pods, logs_and_shell, workloads, cluster):
            scene(k9s)
        k9s.type(":q" + ENTER)
        code = k9s.ended()
        if code != 0:
            raise Wrong(f"exit code {code}")
    except Wrong as problem:
        print(problem, file=sys.stderr)
        sys.exit(1)
    finally:
        if k9s.process.poll() is None:
            os.killpg(k9s.process.pid, signal.SIGKILL)


main()

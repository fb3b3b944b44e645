"""The README's way to a second machine: `coracle up`, a token, `coracle node`."""
import glob, os, shutil, signal, subprocess, tempfile

from clients import Unexpected
from cluster import Process, until
from machines import ROOT, fetch


def with_argument(text):
    """The processes that show a text to all users of their machine."""
    shown = []
    for file in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(file, "rb") as arguments:
                if text.encode() in arguments.read():
                    shown.append(file)
        except OSError:
            pass  # It has ended.
    return shown


def two_machines(program, network):
    """Pods of one Deployment on both machines, and its NodePort on each. Starts without a warning, and a token that no other user sees."""
    folder = tempfile.mkdtemp(prefix="coracle-two-")
    ports = [network.Port(41), network.Port(42), network.Port(43)]
    one, two, three = (Process(name, folder, port.address, port) for name, port in zip(["one", "two", "three"], ports))
    run = lambda *command: subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    kubeconfig = os.path.join(folder, "shop", "kubeconfig")
    kubectl = lambda *command: run("kubectl", "--kubeconfig", kubeconfig, *command)

    def start(process, command):
        process.command = [program, *command]
        before = len(process.log()) if process.runs else 0
        process.start()
        until(f"{process.name} is ready", lambda: process.ended() or "\nready " in "\n" + process.log()[before:])
        if process.ended():
            raise Unexpected(f"{process.name} ended: {process.log()[-2000:]}")

    def quiet(process, before=0):
        lines = [line for line in process.log()[before:].splitlines() if not line.startswith("ready ")]
        if lines:
            raise AssertionError(f"{process.name} starts with {lines}")

    up = ["up", "--data-dir", os.path.join(folder, "shop"), "--bind", ports[0].address, "--port", "6443", "--tls-san", "api.example"]
    try:
        start(one, up)
        line = run(program, "token", "create", "--data-dir", os.path.join(folder, "shop")).split()
        start(two, [*line[1:], "--data-dir", os.path.join(folder, "two"), "--node-name", "two"])
        at = line.index("--token")
        if shown := with_argument(line[at + 1]):
            raise AssertionError(f"the token is an argument of {shown}")
        with open(os.path.join(folder, "token"), "w") as file:
            file.write(line[at + 1] + "\n")
        by_file = [*line[1:at], "--token-file", file.name, *line[at + 2:]]
        # The bearer of a token chooses its node's name, and gets no certificate for a name of the API server.
        start(three, [*by_file, "--data-dir", os.path.join(folder, "three"), "--node-name", "api.example"])
        reasons = lambda: kubectl("get", "events", "-A", "-o", "jsonpath={.items[?(@.reason=='NotAutoApproved')].message}")
        until("the API server's name is refused", lambda: "api.example is an API server's" in reasons())
        three.kill()
        kubectl("delete", "node", "api.example")
        run(program, "push", os.path.join(ROOT, "sample-workloads", "bin", "hello.wasm"), "registry.local/hello:v1", "--data-dir", os.path.join(folder, "shop"))
        kubectl("apply", "-f", os.path.join(ROOT, "sample-workloads", "manifests", "hello.yaml"))
        kubectl("rollout", "status", "deployment/hello", "--timeout=60s")
        kubectl("patch", "service", "hello", "-p", '{"spec": {"type": "NodePort"}}')
        nodes = set(kubectl("get", "pods", "-l", "app=hello", "-o", "jsonpath={.items[*].spec.nodeName}").split())
        if nodes != {"coracle-1", "two"}:
            raise AssertionError(f"pods on {nodes}")
        # The API server verifies the serving certificate of the second machine, which was approved.
        path = "jsonpath={.items[?(@.spec.nodeName=='two')].metadata.name}"
        kubectl("logs", kubectl("get", "pods", "-l", "app=hello", "-o", path).split()[0])
        number = kubectl("get", "service", "hello", "-o", "jsonpath={.spec.ports[0].nodePort}")
        for port in ports[:2]:
            # The data plane of a machine may learn of the other one's pod a moment after the rollout's end.
            texts = set()
            until(f"both pods answer at {port.address}", lambda: texts.add(fetch(f"{port.address}:{number}")) or len([code for code, _ in texts if code == 200]) == 2, 10)
        quiet(one)
        one.signal(signal.SIGTERM)
        one.process.wait(timeout=60)
        before = len(one.log())
        start(one, up)
        kubectl("rollout", "status", "deployment/hello", "--timeout=60s")
        for node in ["coracle-1", "two"]:
            kubectl("wait", "--for=condition=Ready", f"node/{node}", "--timeout=60s")
        quiet(one, before)
    except BaseException:
        for process in (one, two, three):
            if process.process is not None:
                print(f"--- {process.name}\n{process.log()[-3000:]}")
        raise
    finally:
        for process in (one, two, three):
            process.kill()
        for port in ports:
            port.close()
        shutil.rmtree(folder, ignore_errors=True)

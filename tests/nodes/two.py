"""The README's way to a second machine: `coracle up`, a token, `coracle node`."""
import os, shutil, subprocess, tempfile

from clients import Unexpected
from cluster import Process, until
from machines import ROOT, fetch


def two_machines(program, network):
    """Pods of one Deployment on both machines, and its NodePort on each."""
    folder = tempfile.mkdtemp(prefix="coracle-two-")
    ports = [network.Port(41), network.Port(42)]
    one, two = Process("one", folder, ports[0].address, ports[0]), Process("two", folder, ports[1].address, ports[1])
    run = lambda *command: subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    kubeconfig = os.path.join(folder, "shop", "kubeconfig")
    kubectl = lambda *command: run("kubectl", "--kubeconfig", kubeconfig, *command)

    def start(process, command):
        process.command = [program, *command]
        process.start()
        until(f"{process.name} is ready", lambda: process.ended() or "\nready " in "\n" + process.log())
        if process.ended():
            raise Unexpected(f"{process.name} ended: {process.log()[-2000:]}")

    try:
        start(one, ["up", "--data-dir", os.path.join(folder, "shop"), "--bind", ports[0].address])
        line = run(program, "token", "create", "--data-dir", os.path.join(folder, "shop")).split()
        start(two, [*line[1:], "--data-dir", os.path.join(folder, "two"), "--node-name", "two"])
        run(program, "push", os.path.join(ROOT, "sample-workloads", "bin", "hello.wasm"), "registry.local/hello:v1", "--data-dir", os.path.join(folder, "shop"))
        kubectl("apply", "-f", os.path.join(ROOT, "sample-workloads", "manifests", "hello.yaml"))
        kubectl("rollout", "status", "deployment/hello", "--timeout=60s")
        kubectl("patch", "service", "hello", "-p", '{"spec": {"type": "NodePort"}}')
        nodes = set(kubectl("get", "pods", "-l", "app=hello", "-o", "jsonpath={.items[*].spec.nodeName}").split())
        if nodes != {"coracle-1", "two"}:
            raise AssertionError(f"pods on {nodes}")
        number = kubectl("get", "service", "hello", "-o", "jsonpath={.spec.ports[0].nodePort}")
        for port in ports:
            # The data plane of a machine may learn of the other one's pod a moment after the rollout's end.
            texts = set()
            until(f"both pods answer at {port.address}", lambda: texts.add(fetch(f"{port.address}:{number}")) or len([code for code, _ in texts if code == 200]) == 2, 10)
    except BaseException:
        for process in (one, two):
            if process.process is not None:
                print(f"--- {process.name}\n{process.log()[-3000:]}")
        raise
    finally:
        for process in (one, two):
            process.kill()
        for port in ports:
            port.close()
        shutil.rmtree(folder, ignore_errors=True)

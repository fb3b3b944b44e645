"""What must hold on a cluster of many machines: each check is a function of the cluster, and leaves it whole."""
import glob, hashlib, json, os, signal, socket, ssl, subprocess, threading, time

from cluster import until
from machines import BALANCER, NODES, fetch, sample
from resolver import TRUE

# A dead node's endpoints leave within 3 s with fast failover, and a busy machine observes it later. A pod elsewhere may take longer.
ENDPOINTS_GONE_S_MAX = 6
REPLACED_S_MAX = 60
# Requests wait for a dead node for 3 s; a busy machine takes longer.
ANSWER_S_MAX = 10
LOADERS = 4
ROLLOUTS_MAX = 5


def expect(wanted, found, what):
    if wanted != found:
        raise AssertionError(f"{what}: {found!r}, wanted {wanted!r}")


def shop(machines):
    """The shop answers on the NodePort of every node, whichever node its pods are on."""
    machines.deploy_shop()
    machines.port_of_shop = machines.node_port("frontend")
    spread(machines)
    for node in machines.nodes:
        order(machines, node)


def address_of_shop(machines, node):
    return f"{node.port.address}:{machines.port_of_shop}"


def order(machines, node):
    """An order goes through four Services."""
    status, body = fetch(address_of_shop(machines, node), "/api/products", seconds=ANSWER_S_MAX)
    expect(200, status, f"products at {node.name} ({body[:200]!r})")
    body = json.dumps({"product": json.loads(body)[0]["id"], "user": "ada", "quantity": 2}).encode()
    status, body = fetch(address_of_shop(machines, node), "/api/orders", body, seconds=ANSWER_S_MAX)
    expect("paid", json.loads(body)["status"] if status == 200 else (status, body), f"an order at {node.name}")


def ordered(machines, node):
    """Whether an order succeeds."""
    try:
        order(machines, node)
        return True
    except AssertionError:
        return False


def kubelets(machines):
    """The API server reaches the kubelet of every node: logs, exec, port-forward and proxy."""
    for name, node, _ in machines.pods("app=frontend"):
        if not machines.kubectl("-n", "shop", "logs", name).strip():
            raise AssertionError(f"no log of {name} on {node}")
        expect("hi\n", machines.kubectl("-n", "shop", "exec", name, "--", "echo", "hi"), f"exec in {name} on {node}")
        path = f"/api/v1/namespaces/shop/pods/{name}:8080/proxy/api/products"
        if "coracle" not in machines.kubectl("get", "--raw", path):
            raise AssertionError(f"no products of {name} on {node} by the proxy")
    products = machines.kubectl("get", "--raw", "/api/v1/namespaces/shop/services/frontend:80/proxy/api/products")
    if "coracle" not in products:
        raise AssertionError(f"no products by the Service's proxy: {products[:200]}")


BALANCED = """
apiVersion: v1
kind: Service
metadata: {name: balanced, namespace: shop}
spec:
  type: LoadBalancer
  selector: {app: frontend}
  ports: [{port: 8080, targetPort: 8080}]
"""


def load_balancer(machines):
    """The address of a Service of type LoadBalancer works on each machine that has it, and moves."""
    machines.kubectl("apply", "-f", "-", stdin=BALANCED)
    path = "jsonpath={.status.loadBalancer.ingress[0].ip}"
    until("the Service has its address", lambda: machines.kubectl("-n", "shop", "get", "service", "balanced", "-o", path) == BALANCER)
    for node in machines.nodes[:2]:
        node.port.add_address(BALANCER)
        until(f"{BALANCER} answers on {node.name}", lambda: fetch(f"{BALANCER}:8080", "/api/products")[0] == 200)
        node.port.remove_address(BALANCER)
    events = machines.kubectl("-n", "shop", "get", "events", "--field-selector", "reason=FailedToListen", "-o", "name")
    expect("", events, "events of machines that don't have the address")
    machines.kubectl("-n", "shop", "delete", "service", "balanced")


COMPILED_POD = """
apiVersion: v1
kind: Pod
metadata: {{name: compiled-{n}}}
spec:
  nodeName: {node}
  containers: [{{name: main, image: "registry.local/hello:v1"}}]
"""


def compiled_modules(machines):
    """One node compiles a module, another one fetches it. What was changed on the disk of its node is compiled again."""
    machines.push("hello")
    with open(sample("hello"), "rb") as module:
        digest = hashlib.sha256(module.read()).hexdigest()
    fetched = 'coracle_compiled_modules_total{result="fetched"}'

    def run_on(n):
        node = machines.nodes[n]
        machines.kubectl("apply", "-f", "-", stdin=COMPILED_POD.format(n=n, node=node.name))
        machines.kubectl("wait", "--for=condition=Ready", f"pod/compiled-{n}", "--timeout=60s", seconds=70)

    run_on(0)
    before = machines.metric(machines.nodes[1], fetched)
    run_on(1)
    expect(before + 1, machines.metric(machines.nodes[1], fetched), "modules that the second node has fetched")
    for node in machines.nodes[:2]:
        [artifact] = glob.glob(os.path.join(node.data, "compiled", f"{digest}-*.cwasm"))
        with open(artifact, "r+b") as file:
            file.seek(os.path.getsize(artifact) // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
    run_on(2)
    if "a compiled module of another node is not used" not in machines.nodes[2].log():
        raise AssertionError("the third node has used a changed module")
    machines.kubectl("delete", "pod", "compiled-0", "compiled-1", "compiled-2", "--grace-period=0", "--force")


class Load:
    """Requests to the shop at some nodes, one after the other on each of some threads, until `stop`."""

    def __init__(self, machines, nodes):
        self.addresses = [address_of_shop(machines, node) for node in nodes]
        self.ended, self.lock, self.count, self.failures, self.slowest_s = threading.Event(), threading.Lock(), 0, [], 0
        self.threads = [threading.Thread(target=self.run, args=(n,)) for n in range(LOADERS)]
        for thread in self.threads:
            thread.start()

    def run(self, turn):
        while not self.ended.is_set():
            address, began = self.addresses[turn % len(self.addresses)], time.monotonic()
            status, body = fetch(address, "/api/products", seconds=ANSWER_S_MAX)
            took = time.monotonic() - began
            turn += 1
            with self.lock:
                self.count, self.slowest_s = self.count + 1, max(self.slowest_s, took)
                if status != 200:
                    self.failures.append(f"{address} after {took:.2f} s: {status} {body[:200]!r}")

    def stop(self, failed_max=0):
        self.ended.set()
        for thread in self.threads:
            thread.join()
        print(f"    {self.count} requests, {len(self.failures)} failed, the slowest {self.slowest_s:.2f} s", flush=True)
        if len(self.failures) > failed_max:
            raise AssertionError("failed requests:\n" + "\n".join(self.failures[:10]))


def ready_nodes(machines):
    path = '{range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status}{"\\n"}{end}'
    lines = machines.kubectl("get", "nodes", "-o", f"jsonpath={path}").split()
    return {line.split("=")[0] for line in lines if line.endswith("=True")}


def endpoints(machines, name):
    """The nodes of a Service's ready endpoints."""
    path = '{range .items[*].endpoints[?(@.conditions.ready==true)]}{.nodeName}{"\\n"}{end}'
    return set(machines.kubectl("-n", "shop", "get", "endpointslices", "-l", f"kubernetes.io/service-name={name}", "-o", f"jsonpath={path}").split())


def whole(machines):
    """All nodes are ready, and the frontend has a pod on each again."""
    names = {node.name for node in machines.nodes}
    until("all nodes are ready", lambda: ready_nodes(machines) == names, REPLACED_S_MAX)
    for name in ["catalog", "users", "payments", "frontend"]:
        machines.kubectl("-n", "shop", "rollout", "status", f"deployment/{name}", "--timeout=60s", seconds=70)


def lose_node(machines, lose, find):
    """Requests to the other nodes go on while a node is lost; its endpoints leave."""
    lost, *others = machines.nodes
    spread(machines)
    load = Load(machines, others)
    try:
        until("some requests", lambda: load.count > 20)
        began = time.monotonic()
        lose(lost)
        until("its endpoints have left", lambda: lost.name not in endpoints(machines, "frontend"), 30)
        gone_s = time.monotonic() - began
        until("requests without it", lambda: load.count > 200 and time.monotonic() - began > 6)
        for node in others:
            # Payments has one pod: where that was on the lost node, another one starts elsewhere first.
            until(f"orders at {node.name}", lambda: ordered(machines, node), REPLACED_S_MAX)
    finally:
        find(lost)
        load.stop()
    print(f"    endpoints left after {gone_s:.1f} s", flush=True)
    if gone_s > ENDPOINTS_GONE_S_MAX:
        raise AssertionError(f"endpoints left after {gone_s:.1f} s")
    whole(machines)


def spread(machines):
    """The frontend has a pod on each node: a preference of the scheduler, so that it may take a second rollout."""
    names = {node.name for node in machines.nodes}
    for _ in range(ROLLOUTS_MAX):
        if endpoints(machines, "frontend") == names:
            return
        machines.kubectl("-n", "shop", "rollout", "restart", "deployment/frontend")
        whole(machines)
    expect(names, endpoints(machines, "frontend"), "nodes of the frontend's pods")


def killed_node(machines):
    lose_node(machines, lambda node: node.kill(), lambda node: node.start())


def frozen_node(machines):
    lose_node(machines, lambda node: node.signal(signal.SIGSTOP), lambda node: node.signal(signal.SIGCONT))


def cut_node(machines):
    lose_node(machines, lambda node: node.port.black_hole(), lambda node: node.port.heal())


def lossy_links(machines):
    """Every node loses packets and is slow; requests take longer and succeed."""
    for node in machines.nodes:
        machines.run("tc", "qdisc", "add", "dev", node.port.outer, "root", "netem", "loss", "2%", "delay", "10ms", check=False)
    shaped = machines.run("tc", "qdisc", "show", "dev", machines.nodes[0].port.outer, check=False)
    if "netem" not in shaped:
        print("    left out: no netem here", flush=True)
        return
    load = Load(machines, machines.nodes)
    try:
        until("some requests", lambda: load.count > 60)
        for node in machines.nodes:
            order(machines, node)
    finally:
        for node in machines.nodes:
            machines.run("tc", "qdisc", "del", "dev", node.port.outer, "root")
        load.stop()
    whole(machines)


def hostile_node(machines):
    """A node's certificate and a token give no more than their own."""
    node, other = machines.nodes[0], machines.nodes[1]
    identity = os.path.join(node.data, "pki", "kubelet-client.pem")
    server = f"https://{machines.servers[0].address}"
    as_node = ["kubectl", "--kubeconfig", os.devnull, "--server", server, "--certificate-authority", os.path.join(node.data, "pki", "kubelet-ca.pem"),
               "--client-certificate", identity, "--client-key", identity]
    expect(f"system:node:{node.name}", machines.run(*as_node, "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"), "who the certificate is")
    pod = next(name for name, at, _ in machines.pods("app=frontend") if at == other.name)
    request = machines.kubectl("get", "csr", "-o", "jsonpath={.items[0].metadata.name}")
    tunnel = json.dumps({"metadata": {"annotations": {"coracle.dev/tunnel": "10.77.0.99:1"}}})
    address = json.dumps({"status": {"loadBalancer": {"ingress": [{"ip": "10.77.0.99"}]}}})
    for what, command in {
        "another node's tunnel": ["patch", "node", other.name, "--type=merge", "-p", tunnel],
        "another node's pod": ["-n", "shop", "delete", "pod", pod],
        "another node's pod status": ["-n", "shop", "patch", "pod", pod, "--subresource=status", "--type=merge", "-p", '{"status": {"podIP": "10.244.9.9"}}'],
        "a Service's address": ["-n", "shop", "patch", "service", "frontend", "--subresource=status", "--type=merge", "-p", address],
        "a Secret of no pod of its own": ["-n", "kube-system", "get", "secrets"],
        "a token for a node": ["-n", "kube-system", "create", "secret", "generic", "x"],
        "another's certificate": ["patch", "csr", request, "--subresource=approval", "--type=merge", "-p", '{"status": {"conditions": []}}'],
    }.items():
        refused = subprocess.run([*as_node, *command], capture_output=True, text=True, timeout=30)
        if refused.returncode == 0 or "orbidden" not in refused.stderr:
            raise AssertionError(f"{what}: exit code {refused.returncode}: {refused.stdout} {refused.stderr}")
    # A deleted token joins no more; a joined node doesn't need it.
    line = machines.token()
    machines.run(machines.program, "token", "delete", line[line.index("--token") + 1], "--data-dir", machines.servers[0].data)
    late = subprocess.run([*machines.nodes[2].port.inside, machines.program, "node", *line, "--node-name", "late", "--kubelet-port", "0", "--tunnel-port", "0",
                           "--data-dir", os.path.join(machines.folder, "late")], capture_output=True, text=True, timeout=60)
    if late.returncode != 1 or "token" not in late.stderr:
        raise AssertionError(f"a deleted token: exit code {late.returncode}: {late.stderr}")
    # Bytes that are no TLS, and TLS without a node's certificate, at the tunnel.
    for sent in (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 4096):
        with socket.create_connection((other.port.address, 10265), timeout=10) as stream:
            stream.sendall(sent)
            stream.settimeout(15)
            try:
                while stream.recv(4096):
                    pass
            except OSError:
                pass
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["coracle/1"])
    try:
        with context.wrap_socket(socket.create_connection((other.port.address, 10265), timeout=10)) as stream:
            stream.settimeout(15)
            stream.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            if stream.recv(4096):
                raise AssertionError("the tunnel answers without a certificate")
    except OSError:
        pass
    for each in machines.nodes:
        order(machines, each)


def hostile_names(machines):
    """Forged answers and answers about other names change nothing, and a flood of large answers is cut."""
    node = machines.nodes[0]
    address, port = open(os.path.join(node.data, "dns-address")).read().strip().rsplit(":", 1)
    dig = lambda *query: machines.run("dig", "+time=5", "+tries=1", f"@{address}", "-p", port, *query, inside=node.port)
    for name, true in [*TRUE.items(), *TRUE.items()]:
        expect([true], [line for line in dig("+short", name, "A").split() if line.startswith("192.")], f"the addresses of {name}")
    if not set(TRUE) <= machines.resolver.queries:
        raise AssertionError(f"only {machines.resolver.queries} were queried")
    # Another machine gets no answer: the address is this machine's.
    forwarded = machines.run("dig", "+time=1", "+tries=1", f"@{node.port.address}", "-p", port, "kubernetes.default.svc.cluster.local", check=False)
    if "status: NOERROR" in forwarded:
        raise AssertionError(f"another machine has an answer: {forwarded}")


def lost_server(machines):
    """One API server is enough: nodes go on with the other one."""
    load = Load(machines, machines.nodes)
    try:
        machines.servers[0].kill()
        until("all nodes stay ready by the other server", lambda: len(ready_nodes_at(machines, 1)) == NODES, 30)
        machines.kubectl("-n", "shop", "rollout", "restart", "deployment/catalog", server=1)
        machines.kubectl("-n", "shop", "rollout", "status", "deployment/catalog", "--timeout=60s", seconds=70, server=1)
    finally:
        machines.servers[0].start()
        load.stop()
    machines.await_servers()
    whole(machines)


def ready_nodes_at(machines, server):
    path = '{range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status}{"\\n"}{end}'
    lines = machines.kubectl("get", "nodes", "-o", f"jsonpath={path}", server=server).split()
    return {line.split("=")[0] for line in lines if line.endswith("=True")}


def no_control_plane(machines):
    """Without any API server the data path goes on, and a node that restarts serves its pods again."""
    load = Load(machines, machines.nodes[1:])
    try:
        for server in machines.servers:
            server.kill()
        restarted = machines.nodes[0]
        restarted.kill()
        restarted.start()
        until("the restarted node serves", lambda: fetch(address_of_shop(machines, restarted), "/api/products")[0] == 200, 60)
        for node in machines.nodes:
            order(machines, node)
    finally:
        for server in machines.servers:
            server.start()
        load.stop()
    machines.await_servers()
    whole(machines)
    for name, node, _ in machines.pods("app=frontend"):
        if not machines.kubectl("-n", "shop", "logs", name).strip():
            raise AssertionError(f"no log of {name} on {node}")


CHECKS = {
    "shop": shop,
    "kubelets": kubelets,
    "compiled-modules": compiled_modules,
    "load-balancer": load_balancer,
    "killed-node": killed_node,
    "frozen-node": frozen_node,
    "cut-node": cut_node,
    "lossy-links": lossy_links,
    "hostile-node": hostile_node,
    "hostile-names": hostile_names,
    "lost-server": lost_server,
    "no-control-plane": no_control_plane,
}

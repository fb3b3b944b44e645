"""What must hold on a cluster of many machines: each check is a function of the cluster, and leaves it whole."""
import json, signal, threading, time

from cluster import until
from machines import NODES, fetch

# What a user waits at most for a dead node's endpoints to leave, with fast failover (issue 36), and for a pod elsewhere.
ENDPOINTS_GONE_S_MAX = 3
REPLACED_S_MAX = 60
LOADERS = 4


def expect(wanted, found, what):
    if wanted != found:
        raise AssertionError(f"{what}: {found!r}, wanted {wanted!r}")


def shop(machines):
    """The shop answers on the NodePort of every node, whichever node its pods are on."""
    machines.deploy_shop()
    machines.port_of_shop = machines.node_port("frontend")
    spread = {node for _, node, _ in machines.pods("app=frontend")}
    expect({node.name for node in machines.nodes}, spread, "nodes of the frontend's pods")
    for node in machines.nodes:
        order(machines, node)


def address_of_shop(machines, node):
    return f"{node.port.address}:{machines.port_of_shop}"


def order(machines, node):
    """An order goes through four Services."""
    status, body = fetch(address_of_shop(machines, node), "/api/products")
    expect(200, status, f"products at {node.name} ({body[:200]!r})")
    body = json.dumps({"product": json.loads(body)[0]["id"], "user": "ada", "quantity": 2}).encode()
    status, body = fetch(address_of_shop(machines, node), "/api/orders", body)
    expect("paid", json.loads(body)["status"] if status == 200 else (status, body), f"an order at {node.name}")



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
            status, body = fetch(address, "/api/products", seconds=10)
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
    if lost.name not in endpoints(machines, "frontend"):
        machines.kubectl("-n", "shop", "rollout", "restart", "deployment/frontend")
        whole(machines)
    load = Load(machines, others)
    try:
        until("some requests", lambda: load.count > 20)
        began = time.monotonic()
        lose(lost)
        until("its endpoints have left", lambda: lost.name not in endpoints(machines, "frontend"), 30)
        gone_s = time.monotonic() - began
        until("requests without it", lambda: load.count > 200 and time.monotonic() - began > 6)
        for node in others:
            order(machines, node)
    finally:
        find(lost)
        load.stop()
    print(f"    endpoints left after {gone_s:.1f} s", flush=True)
    if gone_s > ENDPOINTS_GONE_S_MAX:
        raise AssertionError(f"endpoints left after {gone_s:.1f} s")
    whole(machines)


def killed_node(machines):
    lose_node(machines, lambda node: node.kill(), lambda node: node.start())


def frozen_node(machines):
    lose_node(machines, lambda node: node.signal(signal.SIGSTOP), lambda node: node.signal(signal.SIGCONT))


def cut_node(machines):
    lose_node(machines, lambda node: node.port.black_hole(), lambda node: node.port.heal())


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
    "killed-node": killed_node,
    "frozen-node": frozen_node,
    "cut-node": cut_node,
    "lost-server": lost_server,
    "no-control-plane": no_control_plane,
}

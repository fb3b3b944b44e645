"""A cluster on many machines: three etcd members, two control-plane machines and three nodes, each in a network namespace of its own.

Everything is made as docs/nodes.md says, "Several machines": the second server and the nodes join with the lines that `coracle token create` prints.
"""
import json, os, re, subprocess, sys, time, urllib.request

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "histories"))
from cluster import EtcdCluster, Process, until
from clients import Unexpected
from resolver import LyingResolver

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
NODES = 3
SERVER_PORT = 6443
METRICS_PORT = 9100
BALANCER = "10.77.0.200"
SHOP = ["shop-frontend", "shop-catalog", "shop-users", "shop-payments"]


class Machines(EtcdCluster):
    """`nodes` are `coracle node` processes."""

    servers_wanted = 2

    def __init__(self, program, network):
        super().__init__(program, network)
        self.nodes, self.resolver = [], None

    def all(self):
        return self.members + self.servers + self.nodes

    def start(self):
        super().start()
        # An outside name server without an answer would delay all names that aren't the cluster's.
        self.resolver = LyingResolver(f"{self.network.SUBNET}.1")
        self.start_nodes()

    def close(self):
        super().close()
        if self.resolver:
            self.resolver.close()

    def run(self, *command, inside=None, seconds=60, stdin=None, check=True):
        """A command's output."""
        inside = inside.inside if inside else []
        done = subprocess.run([*inside, *command], capture_output=True, text=True, timeout=seconds, input=stdin)
        if check and done.returncode:
            raise Unexpected(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()[-1500:]}")
        return done.stdout

    def kubectl(self, *command, server=0, **kwargs):
        kubeconfig = os.path.join(self.servers[server].data, "kubeconfig")
        return self.run("kubectl", "--kubeconfig", kubeconfig, *command, **kwargs)

    def token(self, *flags):
        """The flags of the line that a token's creation prints."""
        line = self.run(self.program, "token", "create", *flags, "--data-dir", self.servers[0].data).split()
        return line[2:]

    def start_servers(self, places):
        for n, (address, _, _, inside) in enumerate(places):
            server = self.server(n, address, SERVER_PORT, *self.store(), "--fast-failover", "--load-balancer-pool", BALANCER, inside=inside)
            server.command[1] = "server"
            if n > 0:
                server.command += self.token("--control-plane")
            server.start()
            self.await_ready_line(server)
        self.read_credentials(os.path.join(self.servers[0].data, "kubeconfig"))

    def start_nodes(self):
        join, resolv_conf = self.token(), os.path.join(self.folder, "resolv.conf")
        with open(resolv_conf, "w") as file:
            file.write(f"nameserver {self.network.SUBNET}.1\n")
        for n in range(NODES):
            port = self.network.Port(31 + n)
            self.ports.append(port)
            node = Process(f"node-{n + 1}", self.folder, f"{port.address}:10250", port)
            node.data = os.path.join(self.folder, node.name)
            # The host's name server resolves names outside the cluster.
            node.command = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"', resolv_conf, self.program, "node", *join, "--node-name", node.name, "--data-dir", node.data, "--fast-failover",
                            "--share-compiled-modules", "--metrics-bind", f"{port.address}:{METRICS_PORT}"]
            node.start()
            self.nodes.append(node)
        for node in self.nodes:
            self.await_ready_line(node)

    def push(self, name):
        """Pushes a sample. Each API server has a registry of its own: an image that only one has is lost with it."""
        for server in self.servers:
            self.run(self.program, "push", sample(name), f"registry.local/{name}:v1", "--data-dir", server.data)

    def metric(self, node, line):
        """The value of a node's metric, 0 if it has none."""
        status, body = fetch(f"{node.port.address}:{METRICS_PORT}", "/metrics")
        if status != 200:
            raise Unexpected(f"metrics of {node.name}: {body[:200]!r}")
        values = [each.rsplit(" ", 1)[1] for each in body.decode().splitlines() if each.startswith(line + " ")]
        return float(values[0]) if values else 0

    def deploy_shop(self):
        for name in SHOP:
            self.push(name)
        self.kubectl("apply", "-f", os.path.join(ROOT, "sample-workloads", "manifests", "shop.yaml"))
        for name in ["catalog", "users", "payments", "frontend"]:
            self.kubectl("-n", "shop", "rollout", "status", f"deployment/{name}", "--timeout=120s", seconds=130)

    def node_port(self, name, namespace="shop"):
        return int(self.kubectl("-n", namespace, "get", "service", name, "-o", "jsonpath={.spec.ports[0].nodePort}"))

    def pods(self, selector, namespace="shop"):
        """Each pod's name, node and IP."""
        path = '{range .items[*]}{.metadata.name} {.spec.nodeName} {.status.podIP}{"\\n"}{end}'
        return [line.split() for line in self.kubectl("-n", namespace, "get", "pods", "-l", selector, "-o", f"jsonpath={path}").splitlines()]


def sample(name):
    return os.path.join(ROOT, "sample-workloads", "bin", f"{name}.wasm")


def fetch(address, path="/", body=None, seconds=5):
    """The status and body of a request, or (0, reason)."""
    request = urllib.request.Request(f"http://{address}{path}", data=body, headers={"content-type": "application/json"} if body else {})
    try:
        with urllib.request.urlopen(request, timeout=seconds) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError as error:
        return 0, str(error).encode()

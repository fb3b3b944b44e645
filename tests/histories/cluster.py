"""Clusters for the test: one API server with the embedded store, or three API servers over three etcd members with TLS.

Every process is a child of the test and is killed by its id, or by the system if the test ends first (`setpriv --pdeathsig`).
"""
import base64, http.client, json, os, re, shutil, signal, socket, ssl, subprocess, tempfile, threading, time

from clients import Connection, Unexpected

SERVERS = MEMBERS = 3
READY_S_MAX = 60
POLL_S = 0.02
# A history has some seconds: elections take less time than with etcd's defaults of 100 and 1,000 ms.
HEARTBEAT_MS, ELECTION_MS = 50, 500
HOST = "127.0.0.1"


def free_ports(count):
    """Ports below those of outgoing connections, since a restarted process needs its own again."""
    found = []
    for port in range(20000 + os.getpid() * 7 % 9000, 32000):
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)):
                found.append(port)
        if len(found) == count:
            return found
    raise Unexpected("no free ports")


def until(what, holds, seconds=READY_S_MAX):
    """Waits until this holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise Unexpected(f"{what}: not within {seconds} s")
        time.sleep(POLL_S)


class Process:
    """A process of the cluster that is killed, suspended and started again."""

    def __init__(self, name, folder, address, port=None):
        self.name, self.folder, self.address, self.port = name, folder, address, port
        self.command, self.process, self.runs = [], None, 0
        self.log_path = os.path.join(folder, f"{name}.log")

    def start(self):
        self.runs += 1
        leash = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        inside = self.port.inside if self.port else []
        with open(self.log_path, "a") as log:
            self.process = subprocess.Popen([*leash, *inside, *self.command], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def signal(self, number):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self):
        self.signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def ended(self):
        return self.process is not None and self.process.poll() is not None

    def log(self):
        with open(self.log_path, errors="replace") as file:
            return file.read()


class Cluster:
    """Processes in a temporary folder. `servers` serve the API, `members` are etcd's."""

    def __init__(self, program):
        self.program, self.folder = program, tempfile.mkdtemp(prefix="coracle-linearizable-")
        self.servers, self.members, self.ports, self.tls = [], [], [], None

    def all(self):
        return self.members + self.servers

    def server(self, number, address, port, *flags, inside=None):
        server = Process(f"server{number}", self.folder, f"{address}:{port}", inside)
        server.data = os.path.join(self.folder, server.name)
        server.command = [self.program, "apiserver", "--data-dir", server.data, "--bind", address, "--port", str(port), *flags]
        self.servers.append(server)
        return server

    def read_credentials(self, kubeconfig):
        with open(kubeconfig) as file:
            text = file.read()
        value = lambda name: base64.b64decode(re.search(name + r': "?([^"\s]+)', text).group(1))
        self.tls = ssl.create_default_context(cadata=value("certificate-authority-data").decode())
        with tempfile.NamedTemporaryFile(dir=self.folder) as pem:
            pem.write(value("client-certificate-data") + value("client-key-data"))
            pem.flush()
            self.tls.load_cert_chain(pem.name)

    def await_ready_line(self, server):
        until(f"{server.name} is ready", lambda: server.ended() or re.search("^ready ", server.log(), re.M))
        if server.ended():
            raise Unexpected(f"{server.name} ended at its start: {server.log()[-2000:]}")

    def await_servers(self):
        """Waits until each server serves a consistent list, which needs the store."""
        for server in self.servers:
            until(f"{server.name} responds", lambda: self.ask(server, "GET", "/api/v1/namespaces/default/configmaps")[0] == 200)

    def ask(self, server, method, path, body=None):
        connection = Connection(server.address, self.tls)
        try:
            return connection.send(method, path, body, timeout=2) or (0, {})
        except (OSError, http.client.HTTPException):
            return 0, {}
        finally:
            connection.close()

    def heal(self):
        """Ends all faults."""
        for port in self.ports:
            port.heal()
        for process in self.all():
            process.signal(signal.SIGCONT)
            if process.ended():
                process.start()
        self.await_servers()

    def panics(self):
        return [f"{process.name}: {line}" for process in self.servers for line in process.log().splitlines() if "panicked at" in line]

    def leader(self):
        return None

    def close(self):
        for process in self.all():
            process.kill()
        for port in self.ports:
            port.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class EmbeddedCluster(Cluster):
    """One API server with the embedded store, on loopback."""

    name = "embedded"

    def start(self):
        server = self.server(0, HOST, free_ports(1)[0])
        server.start()
        self.await_ready_line(server)
        self.read_credentials(os.path.join(server.data, "kubeconfig"))


class EtcdCluster(Cluster):
    """Three API servers over three etcd members. With `network` each process has a network namespace of its own."""

    name = "etcd"
    servers_wanted = SERVERS

    def __init__(self, program, network=None):
        super().__init__(program)
        self.network = network

    def start(self):
        places = self.places()
        self.make_certificates([address for address, *_ in places])
        self.start_members(places[:MEMBERS])
        self.start_servers(places[MEMBERS:])

    def places(self):
        """(address, client port, peer port, namespace) of each process."""
        if self.network is None:
            ports = free_ports(2 * (MEMBERS + self.servers_wanted))
            return [(HOST, ports[2 * n], ports[2 * n + 1], None) for n in range(MEMBERS + self.servers_wanted)]
        for n in range(MEMBERS + self.servers_wanted):
            self.ports.append(self.network.Port(10 + n))
        return [(port.address, 2379, 2380, port) for port in self.ports]

    def make_certificates(self, addresses):
        """One authority, and one certificate for all members and the API servers' connections to them."""
        self.keys = {name: os.path.join(self.folder, name) for name in ("ca", "ca.key", "cert", "key", "csr", "names")}
        k, new = self.keys, ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        with open(k["names"], "w") as file:
            file.write("subjectAltName=" + ",".join(f"IP:{address}" for address in sorted({HOST, *addresses})))
        for command in [
            ["req", "-x509", *new, "-keyout", k["ca.key"], "-out", k["ca"], "-days", "2", "-subj", "/CN=authority"],
            ["req", *new, "-keyout", k["key"], "-out", k["csr"], "-subj", "/CN=root"],
            ["x509", "-req", "-in", k["csr"], "-CA", k["ca"], "-CAkey", k["ca.key"], "-CAcreateserial", "-days", "2", "-out", k["cert"], "-extfile", k["names"]],
        ]:
            subprocess.run(["openssl", *command], check=True, capture_output=True)

    def start_members(self, places):
        k = self.keys
        peers = ",".join(f"m{n}=https://{address}:{peer}" for n, (address, _, peer, _) in enumerate(places))
        self.urls = [f"https://{address}:{client}" for address, client, _, _ in places]
        for n, (address, client, peer, inside) in enumerate(places):
            member = Process(f"m{n}", self.folder, f"{address}:{client}", inside)
            client, peer = f"https://{address}:{client}", f"https://{address}:{peer}"
            member.command = ["etcd", "--name", f"m{n}", "--data-dir", os.path.join(self.folder, f"m{n}"), "--listen-client-urls", client, "--advertise-client-urls", client,
                              "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", peers, "--log-level", "error",
                              "--heartbeat-interval", str(HEARTBEAT_MS), "--election-timeout", str(ELECTION_MS),
                              "--cert-file", k["cert"], "--key-file", k["key"], "--client-cert-auth", "--trusted-ca-file", k["ca"],
                              "--peer-cert-file", k["cert"], "--peer-key-file", k["key"], "--peer-client-cert-auth", "--peer-trusted-ca-file", k["ca"]]
            self.members.append(member)
            member.start()
        self.etcd_tls = ssl.create_default_context(cafile=k["ca"])
        self.etcd_tls.load_cert_chain(k["cert"], k["key"])

    def store(self):
        """The flags of an API server's store."""
        k = self.keys
        return ["--store", "etcd:" + ",".join(self.urls), "--etcd-cafile", k["ca"], "--etcd-certfile", k["cert"], "--etcd-keyfile", k["key"]]

    def start_servers(self, places):
        """The first server makes the cluster's keys; the others get a copy."""
        store = self.store()
        for n, (address, port, _, inside) in enumerate(places):
            server = self.server(n, address, port, *store, inside=inside)
            if n > 0:
                os.mkdir(server.data, 0o700)
                ignored = shutil.ignore_patterns("apiserver.*")
                shutil.copytree(os.path.join(self.servers[0].data, "pki"), os.path.join(server.data, "pki"), ignore=ignored)
            server.start()
            if n == 0:
                self.await_ready_line(server)
        for server in self.servers:
            self.await_ready_line(server)
        self.read_credentials(os.path.join(self.servers[0].data, "kubeconfig"))

    def gateway(self, member, path, body):
        """The response of a member over etcd's JSON gateway, or None."""
        connection = Connection(member.address, self.etcd_tls)
        try:
            answer = connection.send("POST", path, body, timeout=0.5)
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        return answer[1] if answer and answer[0] == 200 else None

    def status(self, member):
        return self.gateway(member, "/v3/maintenance/status", {})

    def compact(self):
        """Compacts etcd's history up to the newest revision that a member knows."""
        for member in self.members:
            status = self.status(member)
            if status and self.gateway(member, "/v3/kv/compaction", {"revision": status["header"]["revision"]}):
                return

    def leader(self):
        """The member that leads, or None."""
        for member in self.members:
            status = None if member.ended() else self.status(member)
            if status and status.get("leader") == status["header"]["member_id"]:
                return member
        return None

    def await_servers(self):
        for member in self.members:
            until(f"{member.name} has a leader", lambda: (self.status(member) or {}).get("leader", "0") != "0")
        super().await_servers()

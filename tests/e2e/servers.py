#!/usr/bin/env python3
"""servers.py decide|load KUBECONFIG…: clients of several API servers that share a store.

decide: what servers decide must hold at all of them at once: reads after writes, Service addresses and node ports, quotas, new kinds.
load: reads, writes and watches at all servers until SIGTERM; prints `started`, and fails if a request failed other than by a broken connection.
"""
import base64, concurrent.futures, http.client, json, re, signal, ssl, sys, tempfile, threading, time

AT_ONCE = 12
RETRIES_MAX = 50
RETRY_AFTER_S = 0.1


class Server:
    """An API server, as the administrator of its kubeconfig."""

    def __init__(self, kubeconfig):
        text = open(kubeconfig).read()
        value = lambda name: re.search(name + r': "?([^"\s]+)', text).group(1)
        self.address = value("server").removeprefix("https://")
        self.tls = ssl.create_default_context(cadata=base64.b64decode(value("certificate-authority-data")).decode())
        with tempfile.NamedTemporaryFile() as pem:
            pem.write(base64.b64decode(value("client-certificate-data")) + base64.b64decode(value("client-key-data")))
            pem.flush()
            self.tls.load_cert_chain(pem.name)
        self.kept = threading.local()

    def once(self, method, path, body=None):
        """The status and the body of one request; the connection is kept."""
        connection = getattr(self.kept, "connection", None)
        if connection is None:
            connection = self.kept.connection = http.client.HTTPSConnection(self.address, context=self.tls, timeout=30)
        try:
            connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except Exception:
            connection.close()
            self.kept.connection = None
            raise

    def ask(self, method, path, body=None):
        return self.once(method, path, body)


def wanted(want, got, what):
    if want != got:
        sys.exit(f"{what}: wanted {want!r}, got {got!r}")


def object_of(kind, name, **fields):
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, **fields}


MAPS = "/api/v1/namespaces/default/configmaps"
SERVICES = "/api/v1/namespaces/default/services"


def reads_follow_writes(servers):
    for n in range(30):
        a, b, c = (servers[(n + i) % 3] for i in range(3))
        name = f"follows-{n}"
        wanted(201, a.ask("POST", MAPS, object_of("ConfigMap", name))[0], "create")
        status, found = b.ask("GET", f"{MAPS}/{name}")
        wanted(200, status, "a read at another server right after the create")
        wanted(409, c.ask("POST", MAPS, object_of("ConfigMap", name))[0], "the same name at the third server")
        found["data"] = {"n": "1"}
        wanted(200, b.ask("PUT", f"{MAPS}/{name}", found)[0], "an update of what was read")
        wanted(409, c.ask("PUT", f"{MAPS}/{name}", found)[0], "an update of an outdated version at another server")
        wanted({"n": "1"}, a.ask("GET", f"{MAPS}/{name}")[1]["data"], "the update at another server")
        wanted(200, c.ask("DELETE", f"{MAPS}/{name}")[0], "delete")
        wanted(404, a.ask("GET", f"{MAPS}/{name}")[0], "a read at another server right after the delete")


def spread(servers, count, request):
    """The answers of `count` requests at all servers at once."""
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda n: servers[n % 3].ask(*request(n)), range(count)))


def addresses_are_given_once(servers):
    service = lambda name, **spec: object_of("Service", name, spec={"type": "NodePort", "ports": [{"port": 80}], **spec})
    made = spread(servers, 60, lambda n: ("POST", SERVICES, service(f"s{n}")))
    wanted({201}, {status for status, _ in made}, "60 Services")
    wanted(60, len({body["spec"]["clusterIP"] for _, body in made}), "distinct cluster IPs")
    wanted(60, len({body["spec"]["ports"][0]["nodePort"] for _, body in made}), "distinct node ports")
    same = spread(servers, 12, lambda n: ("POST", SERVICES, service(f"same{n}", clusterIP="10.96.77.77")))
    wanted([201] + [422] * 11, sorted(status for status, _ in same), "twelve Services with one address")
    port = [{"port": 80, "nodePort": 30077}]
    same = spread(servers, 12, lambda n: ("POST", SERVICES, service(f"port{n}", ports=port)))
    wanted([201] + [422] * 11, sorted(status for status, _ in same), "twelve Services with one node port")
    found = servers[0].ask("GET", SERVICES)[1]["items"]
    names = [item["metadata"]["name"] for item in found if item["metadata"]["name"] != "kubernetes"]
    done = spread(servers, len(names), lambda n: ("DELETE", f"{SERVICES}/{names[n]}"))
    wanted({200}, {status for status, _ in done}, "deletes")
    again = spread(servers, 3, lambda n: ("POST", SERVICES, service(f"again{n}", clusterIP=f"10.96.77.7{7 + n}")))
    wanted({201}, {status for status, _ in again}, "an address that was given back")


def quotas_hold(servers):
    wanted(201, servers[0].ask("POST", "/api/v1/namespaces", object_of("Namespace", "bound"))[0], "namespace")
    at = "/api/v1/namespaces/bound"
    quota = object_of("ResourceQuota", "q", spec={"hard": {"count/secrets": "5"}})
    wanted(201, servers[1].ask("POST", f"{at}/resourcequotas", quota)[0], "quota")
    deadline = time.monotonic() + 30
    while "used" not in servers[2].ask("GET", f"{at}/resourcequotas/q")[1].get("status", {}):
        if time.monotonic() > deadline:
            sys.exit("the quota has no status")
        time.sleep(0.05)
    made = spread(servers, 24, lambda n: ("POST", f"{at}/secrets", object_of("Secret", f"s{n}")))
    kept = servers[0].ask("GET", f"{at}/secrets")[1]["items"]
    wanted(5, len(kept), f"Secrets within a quota of 5 (answers {sorted(status for status, _ in made)})")


def kinds_are_served_at_once(servers):
    at = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    for n in range(6):
        a, b, c = (servers[(n + i) % 3] for i in range(3))
        plural = f"boats{n}"
        version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object"}}}
        names = {"plural": plural, "kind": f"Boat{n}"}
        spec = {"group": "acme.dev", "scope": "Namespaced", "names": names, "versions": [version]}
        definition = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
        definition |= {"metadata": {"name": f"{plural}.acme.dev"}, "spec": spec}
        wanted(201, a.ask("POST", at, definition)[0], "definition")
        deadline = time.monotonic() + 20
        conditions = lambda found: {c["type"]: c["status"] for c in found.get("status", {}).get("conditions") or []}
        established = lambda found: conditions(found).get("Established") == "True"
        while not established(b.ask("GET", f"{at}/{plural}.acme.dev")[1]):
            if time.monotonic() > deadline:
                sys.exit("the definition is not established")
        boat = {"apiVersion": "acme.dev/v1", "kind": f"Boat{n}", "metadata": {"name": "one"}}
        for server, method, path, body, want in [
            (c, "POST", "", boat, 201),
            (b, "GET", "/one", None, 200),
            (a, "DELETE", "/one", None, 200),
        ]:
            got = server.ask(method, f"/apis/acme.dev/v1/namespaces/default/{plural}{path}", body)
            wanted(want, got[0], f"{method} of a new kind at {server.address}: {got[1]}")


def decide(servers):
    for check in [reads_follow_writes, addresses_are_given_once, quotas_hold, kinds_are_served_at_once]:
        check(servers)
        print(check.__name__, "ok", flush=True)


def load(servers):
    """A client retries a request whose connection broke, at the next server, as a client behind a balancer does."""
    ends = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ends.set())
    failures, counts, retries = [], [0] * 6, [0]

    def patient(n, method, path, body=None, fine=()):
        for attempt in range(RETRIES_MAX):
            try:
                status, answer = servers[(n + attempt) % 3].once(method, path, body)
            except (OSError, http.client.HTTPException):
                retries[0] += 1
                time.sleep(RETRY_AFTER_S)
                continue
            # After a broken connection the first try may have been carried out.
            if status < 400 or (attempt > 0 and status in fine):
                return
            failures.append(f"{method} {path}: {status} {answer.get('message', '')}")
            return
        failures.append(f"{method} {path}: no server answers")

    def work(n):
        while not ends.is_set() and len(failures) < 5:
            name = f"load-{n}-{counts[n]}"
            patient(n, "POST", MAPS, object_of("ConfigMap", name), fine=(409,))
            patient(n, "GET", f"{MAPS}/{name}")
            patient(n, "GET", f"{MAPS}?limit=5")
            patient(n, "DELETE", f"{MAPS}/{name}", fine=(404,))
            counts[n] += 1

    workers = [threading.Thread(target=work, args=(n,)) for n in range(len(counts))]
    for worker in workers:
        worker.start()
    print("started", flush=True)
    for worker in workers:
        worker.join()
    print(f"{sum(counts)} rounds, {retries[0]} broken connections", *failures, sep="\n")
    if failures or min(counts) == 0:
        sys.exit(1)


if __name__ == "__main__":
    {"decide": decide, "load": load}[sys.argv[1]]([Server(path) for path in sys.argv[2:]])

"""The API server, the registry and the kubelet under input that nobody should send. `hostile.py KUBECONFIG DATA-DIR [CHECK…]`: exits 1 and says what went wrong.

Every check is bounded in count and by socket timeouts; the random bytes come from a fixed seed, so that a failure can be repeated.
"""
import base64, http.client, json, os, random, socket, ssl, sys, time

from cluster import Cluster

KUBECONFIG, DATA = sys.argv[1:3]
CLUSTER = Cluster(KUBECONFIG)
HOST, PORT, TLS = CLUSTER.host, CLUSTER.port, CLUSTER.tls
RANDOM = random.Random(20260101)
TIMEOUT_S = 30
found = []


def wrong(what):
    found.append(what)
    print("WRONG:", what, file=sys.stderr)


def connect():
    return CLUSTER.connect(TIMEOUT_S)


def ask(method, path, body=None, headers=None, on=None):
    """(status, headers, bytes) of one request; a connection closed without a response is a finding."""
    c = on or connect()
    if isinstance(body, (dict, list)):
        body = json.dumps(body)
    if isinstance(body, str):
        body = body.encode()
    headers = dict(headers or {})
    if body is not None:
        headers.setdefault("Content-Type", "application/json")
    try:
        c.request(method, path, body, headers)
        r = c.getresponse()
        return r.status, r.headers, r.read()
    except (OSError, http.client.HTTPException) as e:
        wrong(f"{method} {path[:120]} ({(body or b'')[:60]!r}): no answer: {e!r}")
        return 0, {}, b""
    finally:
        if on is None:
            c.close()


def wants(want, method, path, body=None, headers=None, says=None):
    """Sends and compares; every rejection but those of unknown paths has to be a Status with the response's code."""
    status, head, data = ask(method, path, body, headers)
    want = want if isinstance(want, tuple) else (want,)
    if status not in want:
        wrong(f"{method} {path[:120]}: wanted {want}, got {status}: {data[:300]!r}")
        return status, data
    if status >= 400 and "json" in (head.get("Content-Type") or ""):
        answer = json.loads(data)
        if answer.get("kind") != "Status" or answer.get("code") != status or not answer.get("message"):
            wrong(f"{method} {path[:120]}: {status} without a proper Status: {data[:300]!r}")
        if says and says not in answer.get("message", ""):
            wrong(f"{method} {path[:120]}: message {answer.get('message')!r} does not say {says!r}")
    return status, data


NS = "/api/v1/namespaces/default"
MAPS = NS + "/configmaps"
PROTOBUF = "application/vnd.kubernetes.protobuf"


def configmap(name, **more):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, **more}


def malformed_bodies():
    for body in ("", "{", "null", "[]", "1", '"x"', "{}{}", '{"a":1,}', "\x00", "{" * 200_000, "[" * 200_000, '{"metadata":' * 50_000, '{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":1}}',
                 '{"kind":"ConfigMap","apiVersion":"v1","metadata":[]}', '{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x"},"data":[1]}', '{"kind":"Pod","apiVersion":"v1","metadata":{"name":"x"}}',
                 '{"kind":"ConfigMap","apiVersion":"v2","metadata":{"name":"x"}}', '{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x","resourceVersion":"5"}}',
                 '{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x","labels":{"a":1e999}}}', '{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"\\ud800"}}'):
        wants((400, 409, 422), "POST", MAPS, body)
    for body in ("a: [", "&a [*a]", "a: &a [x]\nb: *c", "\t", "a: b: c", "--- \n---\n", "!!python/object:x {}", "%YAML 9\n---\n", "? ? ? ?", "- " * 100_000, "{" * 100_000,
                 "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12))):
        wants((400, 422), "POST", MAPS, body, {"Content-Type": "application/yaml"})
    raw = b"k8s\x00"
    unknown = raw + b"\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12"
    for body in (b"", raw, raw[:2], raw + b"\xff" * 50, unknown + b"\xff\xff\xff\xff\x0f", unknown + b"\x04\x0a\x02\x0a\xff", unknown + b"\x80" * 20, unknown + b"\x06" + b"\x0b" * 6, unknown[:-1] + b"\x12\x00" * 10_000):
        wants((400, 409, 415, 422), "POST", MAPS, body, {"Content-Type": PROTOBUF})
    wants(400, "POST", "/apis/apps/v1/namespaces/default/deployments", "not json")
    for kind in ("text/plain", "application/xml", "application/json-patch+json", "x", "application/;;;=", "application/json; charset=\"", "multipart/form-data"):
        wants((400, 415), "POST", MAPS, configmap("wrong-type") if kind == "x" else "<a/>", {"Content-Type": kind})
    for kind in ("application/json", "text/plain", "application/yaml", PROTOBUF):
        wants(415, "PATCH", MAPS + "/kube-root-ca.crt", "{}", {"Content-Type": kind})
    for body in ("[", "- a", "1", "{}", "kind: ConfigMap", "a: &a [*a]", "a: " + "[" * 5000, json.dumps(configmap("x", nope=1)), json.dumps(configmap("x", data=[]))):
        wants(400, "PATCH", MAPS + "/x?fieldManager=me", body, {"Content-Type": "application/apply-patch+yaml"})
    wants(422, "PATCH", MAPS + "/x", configmap("x"), {"Content-Type": "application/apply-patch+yaml"})
    wants(415, "PATCH", MAPS + "/x?fieldManager=me", configmap("x"), {"Content-Type": "application/apply-patch+cbor"})
    for kind, body in (("application/merge-patch+json", "["), ("application/merge-patch+json", "[]"), ("application/json-patch+json", "{}"), ("application/json-patch+json", '[{"op":"move"}]'),
                       ("application/json-patch+json", '[{"op":"add","path":"x","value":1}]'), ("application/json-patch+json", '[{"op":"remove","path":"/data/none"}]'),
                       ("application/json-patch+json", json.dumps([{"op": "copy", "from": "/data", "path": f"/data/x{i}"} for i in range(40)])),
                       ("application/strategic-merge-patch+json", "1"), ("application/strategic-merge-patch+json", '{"metadata":{"$patch":"nonsense"}}'),
                       ("application/strategic-merge-patch+json", '{"metadata":{"$retainKeys":1,"ownerReferences":{}}}'), ("application/merge-patch+json", '{"metadata":' * 20_000)):
        wants((400, 409, 413, 422), "PATCH", MAPS + "/kube-root-ca.crt", body, {"Content-Type": kind})


def unknown_fields():
    body = configmap("unknown-field", dta={"a": "b"}, metadata={"name": "unknown-field", "lables": {}})
    wants(400, "POST", MAPS + "?fieldValidation=Strict", body, says='unknown field "dta"')
    status, head, data = ask("POST", MAPS, body)
    warnings = head.get_all("Warning") or []
    if status != 201 or not any("dta" in w for w in warnings) or not any("metadata.lables" in w for w in warnings):
        wrong(f"unknown fields: {status}, warnings {warnings}")
    if b"dta" in data:
        wrong("an unknown field was stored")
    wants(400, "POST", MAPS + "?fieldValidation=Strict", '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"twice"},"data":{"a":"1","a":"2"}}', says="duplicate")
    for query in ("fieldValidation=Nonsense", "dryRun=Some", "dryRun=All&dryRun=None", "limit=x", "limit=-1", "timeoutSeconds=x", "continue=%FF", "continue=abc", "resourceVersion=x", "resourceVersion=-1", "resourceVersion=99999999999999999999",
                  "labelSelector=%2C%2C%3D%3D", "labelSelector=a+in+(", "fieldSelector=nope%3Dx", "resourceVersionMatch=Exact", "resourceVersionMatch=Nonsense&resourceVersion=1", "sendInitialEvents=true", "watch=maybe&timeoutSeconds=1", "watch=1&timeoutSeconds=1&resourceVersion=x"):
        for method, body in (("GET", None), ("POST", configmap("unknown-field"))):
            wants((200, 400, 409, 422), method, f"{MAPS}?{query}", body)


def sizes():
    mib = 1 << 20
    wants(422, "POST", MAPS, configmap("huge", data={"a": "x" * (2 * mib)}), says="Too long")
    wants(422, "POST", MAPS, configmap("large", data={"a": "x" * (mib + mib // 4)}), says="Too long")
    annotation = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "large"}, "spec": {"containers": [{"name": "a", "image": "registry.local/a", "env": [{"name": "A", "value": "x" * (mib + 600_000)}]}]}}
    wants(413, "POST", NS + "/pods", annotation)
    for kind in ("application/json", "application/yaml", PROTOBUF):
        wants(413, "POST", MAPS, b"{" + b" " * (3 * mib + 10), {"Content-Type": kind}, says="limit")
    # A body without a length that exceeds the bound.
    c = connect()
    try:
        c.putrequest("POST", MAPS)
        c.putheader("Transfer-Encoding", "chunked")
        c.putheader("Content-Type", "application/json")
        c.endheaders()
        try:
            for _ in range(5):
                c.send(b"100000\r\n" + b" " * mib + b"\r\n")
            c.send(b"0\r\n\r\n")
        except OSError:
            pass  # the server may stop reading; its response is still readable
        if (got := c.getresponse().status) != 413:
            wrong(f"5 MiB in chunks: {got}")
    except (OSError, http.client.HTTPException) as e:
        wrong(f"5 MiB in chunks: {e!r}")
    c.close()
    patch = json.dumps([{"op": "add", "path": f"/data/x{i}", "value": ""} for i in range(10_001)])
    wants(413, "PATCH", MAPS + "/kube-root-ca.crt", patch, {"Content-Type": "application/json-patch+json"})
    wants((400, 414, 431), "GET", MAPS + "?labelSelector=" + "a" * 300_000)
    wants((200, 400, 431), "GET", MAPS, headers={f"x-{i}": "y" * 4000 for i in range(90)})


def names():
    for name in ("", "Upper", "under_score", "-a", "a-", "a..b", "a/b", "x" * 254, "ünï", "a b", "..", ".", "%00", "a\nb"):
        wants(422, "POST", MAPS, configmap(name))
        wants((422, 400), "POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    for name in ("a.b", "x" * 64, "A"):
        wants(422, "POST", NS + "/services", {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}})
    for path in ("/api/v1/namespaces/default/configmaps/%00", "/api/v1//namespaces", "//", "/api/v1/namespaces/default/configmaps/a/b/c/d", "/%ff%fe", "/api/v1/namespaces/" + "a/" * 500, "/apis/%20/v1",
                 "/api/v1/namespaces/default/pods/x/log?tailLines=x", "/api/v1/namespaces/default/pods/x/log?limitBytes=x", "/api/v1/watch/", "/api/v1/watch/namespaces/default/none", "/openapi/v3/none", "/apis/apps/v2", "/.well-known/none"):
        wants((301, 307, 400, 403, 404), "GET", path)


def random_bytes():
    index = json.loads(ask("GET", "/api/v1")[2])["resources"]
    paths = ["/api/v1/namespaces/default/" + r["name"].replace("/", "/x/") if r["namespaced"] else "/api/v1/" + r["name"].replace("/", "/x/") for r in index]
    for group in json.loads(ask("GET", "/apis")[2])["groups"]:
        version = group["preferredVersion"]["groupVersion"]
        for r in json.loads(ask("GET", f"/apis/{version}")[2])["resources"]:
            place = f"/apis/{version}/namespaces/default/" if r["namespaced"] else f"/apis/{version}/"
            paths.append(place + r["name"].replace("/", "/x/"))
    types = ("application/json", "application/yaml", PROTOBUF, "application/merge-patch+json", "application/json-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml")
    c = connect()
    for path in paths:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "NONSENSE"):
            kind = RANDOM.choice(types)
            body = None if method in ("GET", "TRACE") else RANDOM.randbytes(RANDOM.randrange(200))
            if body is not None and RANDOM.random() < 0.3 and kind == PROTOBUF:
                body = b"k8s\x00" + body
            tail = RANDOM.choice(("", "/x", "?watch=1&timeoutSeconds=1&resourceVersion=1", "?dryRun=All", "?limit=1", "?" + RANDOM.randbytes(12).hex()))
            if method == "DELETE":
                tail = "/x" + tail.replace("/x", "")
            accept = RANDOM.choice(("*/*", "application/json", "text/html", PROTOBUF, "application/json;as=Table;v=v1;g=meta.k8s.io", "a/b;;q=x"))
            status, _, data = ask(method, path + tail, body, {"Content-Type": kind, "Accept": accept, "Connection": "keep-alive"}, on=c)
            if status == 0:
                c = connect()
            elif status >= 500 and status != 504:
                wrong(f"{method} {path + tail} {kind} {body!r}: {status} {data[:200]!r}")
            elif status < 300 and method in ("POST", "PUT", "PATCH") and body:
                wrong(f"{method} {path + tail} {kind} {body!r}: {status}")
    c.close()


def typed_nonsense():
    """Well-formed bodies whose values have another type, size or sign than a field requires."""
    values = (None, True, -1, 0, 1 << 62, 1e300, 1.5, "", "x", "9" * 400, "1e999999999", [], {}, [None], [[]], [{}], {"a": None}, {"": ""}, "2020-13-45T00:00:00Z")
    bodies = [
        (NS + "/pods", {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "typed"}, "spec": {"containers": [{"name": "a", "image": "registry.local/a", "resources": {"limits": {"memory": "1Mi"}}, "ports": [{"containerPort": 1}], "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}], "tolerations": [{"key": "a"}], "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}], "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{}]}}}, "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "a", "whenUnsatisfiable": "DoNotSchedule"}]}}),
        (NS + "/services", {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "typed"}, "spec": {"clusterIP": "", "ports": [{"port": 80, "targetPort": 1, "nodePort": 0}], "selector": {"a": "b"}, "type": "NodePort", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1}}}}),
        ("/apis/apps/v1/namespaces/default/deployments", {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "typed", "annotations": {"a": "b"}, "ownerReferences": [{"apiVersion": "v1", "kind": "X", "name": "a", "uid": "b"}]}, "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "strategy": {"rollingUpdate": {"maxSurge": "1%"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "a", "image": "registry.local/a"}]}}}}),
        ("/apis/batch/v1/namespaces/default/jobs", {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "typed"}, "spec": {"suspend": True, "parallelism": 0, "completions": 1, "podFailurePolicy": {"rules": []}, "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "registry.local/a"}]}}}}),
        ("/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles", {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "typed"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]}),
        ("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "typed"}, "addressType": "IPv4", "ports": [{"port": 1}], "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}}]}),
        ("/apis/coordination.k8s.io/v1/namespaces/default/leases", {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "typed"}, "spec": {"renewTime": "2020-01-01T00:00:00.000000Z", "leaseDurationSeconds": 1}}),
        ("/apis/authorization.k8s.io/v1/subjectaccessreviews", {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {"user": "a", "groups": ["b"], "extra": {"a": ["b"]}, "resourceAttributes": {"verb": "get", "resource": "pods"}}}),
        (NS + "/serviceaccounts/default/token", {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": ["a"], "expirationSeconds": 600, "boundObjectRef": {"kind": "Pod", "name": "a", "uid": "b"}}}),
    ]

    def places(value, at=()):
        yield at
        if isinstance(value, dict):
            for k in value:
                yield from places(value[k], at + (k,))
        elif isinstance(value, list):
            for i in range(len(value)):
                yield from places(value[i], at + (i,))

    c = connect()
    for path, body in bodies:
        for at in list(places(body)):
            if not at or at[0] in ("apiVersion", "kind"):
                continue
            for value in RANDOM.sample(values, 5):
                copy = json.loads(json.dumps(body))
                inner = copy
                for k in at[:-1]:
                    inner = inner[k]
                inner[at[-1]] = value
                status, _, data = ask("POST", path + "?dryRun=All", copy, on=c)
                if status == 0:
                    c = connect()
                elif status >= 500:
                    wrong(f"POST {path} with {'.'.join(map(str, at))} = {str(value)[:40]!r}: {status} {data[:200]!r}")
    c.close()


def raw(data, read_s=10.0, tls=True):
    """Sends bytes and reads until the end or `read_s`; returns the data."""
    s = socket.create_connection((HOST, PORT), timeout=read_s)
    try:
        if tls:
            s = TLS.wrap_socket(s, server_hostname=HOST)
        s.sendall(data)
        got = b""
        while True:
            piece = s.recv(65536)
            if not piece:
                return got
            got += piece
            if b"\r\n\r\n" in got and not got.startswith(b"HTTP/1.1 1"):
                return got
    except OSError as e:
        return b"" if not isinstance(e, TimeoutError) else None
    finally:
        s.close()


def broken_clients():
    line = b"POST " + MAPS.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    for data in (b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01" + b"\xff" * 100, line + b"Content-Length: -1\r\n\r\n", line + b"Content-Length: 99999999999999999999\r\n\r\n", line + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
                 line + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", line + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n", line + b"X: \x00\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
                 b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n", b"GET http://evil/version HTTP/1.1\r\nHost: evil\r\n\r\n"):
        got = raw(data)
        if got is None:
            wrong(f"{data[:80]!r}: neither answered nor closed")
        elif got.startswith(b"HTTP/1.1 5"):
            wrong(f"{data[:80]!r}: {got[:80]!r}")
    raw(b"\x00" * 1000, tls=False)
    raw(b"GET / HTTP/1.1\r\n\r\n", tls=False)
    # Truncated in the middle: of a handshake, of a head, of a body, of a response.
    for i in range(60):
        s = socket.create_connection((HOST, PORT), timeout=TIMEOUT_S)
        if i % 4:
            s = TLS.wrap_socket(s, server_hostname=HOST)
            s.sendall((b"GET /api", line + b"Content-Length: 1000\r\n\r\n{\"kind\"", b"GET /api/v1/pods?watch=1 HTTP/1.1\r\nHost: x\r\n\r\n")[i % 4 - 1])
        else:
            s.sendall(b"\x16\x03\x01\x02")
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        s.close()


def slow_clients():
    """300 slow heads and 300 slow bodies of one ordinary user at once, more than writes may run: others are served meanwhile, and the server drops them by itself."""
    rbac = "/apis/rbac.authorization.k8s.io/v1/clusterrole"
    wants(201, "POST", rbac + "s", {"metadata": {"name": "hostile"}, "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]}]})
    wants(201, "POST", rbac + "bindings", {"metadata": {"name": "hostile"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "hostile"},
                                          "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name} for name in ("slow", "quick")]})
    slow = []
    for i in range(600):
        s = TLS.wrap_socket(socket.create_connection((HOST, PORT), timeout=TIMEOUT_S), server_hostname=HOST)
        s.sendall(b"GET /api HTTP/1.1\r\nHo" if i % 2 else b"POST " + MAPS.encode() + b" HTTP/1.1\r\nHost: x\r\nImpersonate-User: slow\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{")
        slow.append(s)
    for i in range(10):
        start = time.monotonic()
        wants(200, "GET", NS)
        wants(201, "POST", MAPS, configmap(f"beside-slow-{i}"))
        status, _, data = ask("POST", MAPS, configmap(f"quick-{i}"), {"Impersonate-User": "quick"})
        if status != 201:
            wrong(f"beside slow bodies of another user: {status} {data[:200]!r}")
        if time.monotonic() - start > 5:
            wrong("slow clients hold up others")
    return slow


def slow_clients_end(slow):
    """The slow bodies get a response without a server error, the slow heads are closed."""
    deadline = time.monotonic() + 60
    for s in slow:
        s.settimeout(max(0.1, deadline - time.monotonic()))
        try:
            answer = s.recv(4096)
            if answer and not answer.startswith(b"HTTP/1.1 4"):
                wrong(f"a slow client: {answer[:80]!r}")
                break
        except TimeoutError:
            wrong("a slow client may go on for more than 60 s")
            break
        except OSError:
            pass
    for s in slow:
        s.close()


def pages():
    c = connect()
    for i in range(600):
        ask("POST", MAPS, configmap(f"page-{i:04}", metadata={"name": f"page-{i:04}", "labels": {"page": "x"}}), on=c)
    seen, version, token = [], None, ""
    for _ in range(100):
        status, _, data = ask("GET", f"{MAPS}?limit=97&labelSelector=page&continue={token}", on=c)
        page = json.loads(data)
        version = version or page["metadata"]["resourceVersion"]
        if status != 200 or page["metadata"]["resourceVersion"] != version:
            wrong(f"a page of another revision: {data[:200]!r}")
        seen += [o["metadata"]["name"] for o in page["items"]]
        token = page["metadata"].get("continue", "")
        if len(seen) < 300:
            ask("DELETE", f"{MAPS}/page-{599 - len(seen):04}", on=c)
        if not token:
            break
    if seen != [f"page-{i:04}" for i in range(600)]:
        wrong(f"pages: {len(seen)} of 600 objects of the first page's moment")
    # The token of another list, and a modified one.
    token = json.loads(ask("GET", f"{MAPS}?limit=1")[2])["metadata"]["continue"]
    for t in (token[:-3], token + "A", "A" * 5000, base64.urlsafe_b64encode(b'{"v":"meta.k8s.io/v1","rv":-1,"start":"../../secrets/"}').decode().rstrip("=")):
        wants((200, 400, 410), "GET", f"{MAPS}?limit=1&continue={t}")
    wants((200, 400), "GET", f"{NS}/secrets?limit=1&continue={token}")
    wants(200, "DELETE", f"{MAPS}?labelSelector=page")
    c.close()


def frame(kind, flags, stream, data=b""):
    return len(data).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + data


def watches():
    """2,000 watches over 20 HTTP/2 connections: each gets the one event. The protocol is implemented here, as Python has no client for it."""
    version = json.loads(ask("GET", MAPS + "?limit=1")[2])["metadata"]["resourceVersion"]
    TLS.set_alpn_protocols(["h2"])
    fields = ((":method", "GET"), (":scheme", "https"), (":authority", "x"), (":path", f"{MAPS}?watch=1&resourceVersion={version}"))
    head = b"".join(b"\x00" + bytes((len(k),)) + k.encode() + bytes((len(v),)) + v.encode() for k, v in fields)
    connections = []
    for _ in range(20):
        s = TLS.wrap_socket(socket.create_connection((HOST, PORT), timeout=TIMEOUT_S), server_hostname=HOST)
        s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0) + frame(8, 0, 0, (1 << 24).to_bytes(4, "big")) + b"".join(frame(1, 5, 1 + 2 * i, head) for i in range(100)))
        connections.append(s)

    def streams(s, kind, says, seen):
        """Reads frames until each of the 100 streams has one of this kind with this content."""
        rest = b""
        while len(seen) < 100:
            piece = s.recv(65536)
            if not piece:
                return
            rest += piece
            while len(rest) >= 9 and len(rest) >= 9 + int.from_bytes(rest[:3], "big"):
                end = 9 + int.from_bytes(rest[:3], "big")
                if rest[3] == kind and says in rest[9:end]:
                    seen.add(int.from_bytes(rest[5:9], "big"))
                rest = rest[end:]

    for kind, says, what in ((1, b"", "began"), (0, b"seen-by-all", "saw the event")):
        if kind == 0:
            wants(201, "POST", MAPS, configmap("seen-by-all"))
        count = 0
        for s in connections:
            seen = set()
            try:
                streams(s, kind, says, seen)
            except OSError:
                pass
            count += len(seen)
        if count != 2000:
            wrong(f"{count} of 2000 watches {what}")
    for s in connections:
        s.close()
    TLS.set_alpn_protocols(["http/1.1"])
    wants(200, "GET", NS)


def anonymous():
    context = ssl._create_unverified_context()
    for path, want in (("/livez", 200), ("/readyz", 200), ("/healthz", 200), ("/version", 200), ("/livez/ping", (401, 403, 200)), ("/", (401, 403)), ("/api", (401, 403)), ("/apis", (401, 403)), ("/metrics", (401, 403)), ("/openapi/v3", (401, 403)),
                       (NS, (401, 403)), ("/api/v1/nodes", (401, 403)), ("/none", (401, 403)), ("/.well-known/openid-configuration", (401, 403)), ("/version/", (200, 301, 401, 403, 404))):
        c = http.client.HTTPSConnection(HOST, PORT, context=context, timeout=TIMEOUT_S)
        c.request("GET", path)
        status = c.getresponse().status
        if status not in (want if isinstance(want, tuple) else (want,)):
            wrong(f"anonymous GET {path}: {status}")
        c.close()
    for token in ("x", "a.b.c", "." * 1000, "eyJhbGciOiJub25lIn0.e30.", "A" * 20_000, "\x7f"):
        c = http.client.HTTPSConnection(HOST, PORT, context=context, timeout=TIMEOUT_S)
        c.request("GET", NS, headers={"Authorization": "Bearer " + token})
        status = c.getresponse().status
        if status not in (400, 401, 431):
            wrong(f"bearer {token[:20]!r}: {status}")
        c.close()
    for name, value in (("Impersonate-User", ""), ("Impersonate-Group", "x"), ("Impersonate-Uid", "x"), ("Impersonate-Extra-%zz", "x")):
        wants((200, 400, 403, 404), "GET", NS, headers={name: value})


def registry():
    host, port = open(os.path.join(DATA, "registry-address")).read().strip().rsplit(":", 1)
    password = open(os.path.join(DATA, "registry-password")).read().strip()
    auth = {"Authorization": "Basic " + base64.b64encode(f"coracle:{password}".encode()).decode()}

    def send(method, path, body=None, headers=None):
        c = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT_S)
        try:
            try:
                c.request(method, path, body, headers or {})
            except BrokenPipeError:
                pass  # an early rejection is still readable
            r = c.getresponse()
            return r.status, r.headers, r.read()
        except (OSError, http.client.HTTPException) as e:
            wrong(f"registry: {method} {path[:100]}: no answer: {e!r}")
            return 0, {}, b""
        finally:
            c.close()

    for method, path in (("GET", "/v2/"), ("GET", "/v2"), ("GET", "/v2/_catalog"), ("GET", "/v2/a/tags/list"), ("GET", "/v2/a/manifests/b"), ("HEAD", "/v2/a/manifests/b"), ("PUT", "/v2/a/manifests/b"), ("POST", "/v2/a/blobs/uploads/"), ("GET", "/v2/a/blobs/sha256:" + "0" * 64), ("DELETE", "/v2/a/manifests/b"), ("GET", "/v2/a/referrers/sha256:" + "0" * 64)):
        for headers in ({}, {"Authorization": "Basic x"}, {"Authorization": "Basic " + base64.b64encode(b"coracle:wrong").decode()}, {"Authorization": "Bearer x"}):
            status, head, _ = send(method, path, b"{}" if method in ("PUT", "POST") else None, headers)
            if status != 401 or not (head.get("WWW-Authenticate") or "").startswith("Basic"):
                wrong(f"registry: {method} {path} without a password: {status}")
    for method, path, body in [(m, p, b) for m in ("GET", "PUT", "POST", "PATCH", "DELETE", "HEAD") for p in ("/v2/../../etc/passwd", "/v2/%2e%2e/%2e%2e/x/manifests/y", "/v2/a/blobs/sha256:../../x", "/v2/a/blobs/" + "x" * 3000, "/v2/A/manifests/x", "/v2/a/manifests/" + "x" * 200, "/v2/a/blobs/uploads/none", "/v2/a/blobs/uploads/../../x", "/v2//manifests/x", "/v2/a/manifests/sha256:zz", "/v2/a/tags/list?n=x") for b in (b"\xff\x00{",)]:
        status, _, data = send(method, path, None if method in ("GET", "HEAD") else body, auth)
        if status >= 500 or status in (200, 201, 202) and method in ("PUT", "POST", "PATCH", "DELETE"):
            wrong(f"registry: {method} {path[:60]}: {status} {data[:100]!r}")
    for body in (b"", b"{", b"[]", b"null", b'{"schemaVersion":2}', b"[" * 100_000, json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": {"mediaType": "application/vnd.wasm.config.v0+json", "digest": "sha256:" + "0" * 64, "size": 1}, "layers": []}).encode(), b" " * (9 << 20)):
        status, _, data = send("PUT", "/v2/hostile/manifests/v1", body, dict(auth, **{"Content-Type": "application/vnd.oci.image.manifest.v1+json"}))
        if not 400 <= status < 500:
            wrong(f"registry: manifest {body[:40]!r}: {status} {data[:100]!r}")
    status, head, _ = send("POST", "/v2/hostile/blobs/uploads/", b"", auth)
    where = (head.get("Location") or "").replace(f"http://{host}:{port}", "")
    status, _, data = send("PUT", where + ("&" if "?" in where else "?") + "digest=sha256:" + "0" * 64, b"other bytes", auth)
    if not 400 <= status < 500:
        wrong(f"registry: a blob of another digest: {status} {data[:100]!r}")


def kubelet():
    node = json.loads(ask("GET", "/api/v1/nodes")[2])["items"]
    if not node:
        return
    port = node[0]["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
    context = ssl._create_unverified_context()
    for path in ("/pods", "/metrics", "/metrics/resource", "/stats/summary", "/containerLogs/default/x/y", "/exec/default/x/y", "/run/default/x/y", "/logs/", "/configz", "/debug/pprof", "/none", "/containerLogs/../../x", "/containerLogs/%2e%2e/%2e%2e/x"):
        for method in ("GET", "POST"):
            c = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=TIMEOUT_S)
            try:
                c.request(method, path)
                status = c.getresponse().status
                if status not in (400, 401, 403, 404, 405):
                    wrong(f"kubelet: anonymous {method} {path}: {status}")
            except (OSError, http.client.HTTPException) as e:
                wrong(f"kubelet: {method} {path}: {e!r}")
            c.close()


def control_frames():
    """Frames of HTTP/2 that no request needs, from clients without credentials: the connection ends, and others are served."""
    def frame(kind, content=b"", stream=0):
        return len(content).to_bytes(3, "big") + bytes((kind, 0)) + stream.to_bytes(4, "big") + content

    def floods(what, address, tls):
        for kind, flood in (("PING", frame(6, b"\0" * 8)), ("SETTINGS", frame(4)), ("PRIORITY", frame(2, b"\0\0\0\3\1", 1)), ("of an unknown type", frame(200))):
            with socket.create_connection(address, TIMEOUT_S) as plain:
                s = tls.wrap_socket(plain, server_hostname=address[0]) if tls else plain
                try:
                    s.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4))
                    for _ in range(1000):
                        s.sendall(flood * 100)
                    while s.recv(1 << 16):  # the frames may only have been buffered
                        pass
                except TimeoutError:
                    wrong(f"{what}: 100,000 frames {kind} are taken")
                except OSError:
                    pass

    anyone = ssl._create_unverified_context()
    anyone.set_alpn_protocols(["h2"])
    node = json.loads(ask("GET", "/api/v1/nodes")[2])["items"][0]["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
    service = json.loads(ask("GET", NS + "/services/hello")[2])["spec"]
    registry = open(f"{DATA}/registry-address").read().strip().rsplit(":", 1)
    floods("the API server", (HOST, PORT), anyone)
    floods("a kubelet", ("127.0.0.1", node), anyone)
    floods("the registry", (registry[0], int(registry[1])), None)
    floods("a Service", (service["clusterIP"], service["ports"][0]["port"]), None)


started = time.monotonic()
slow = slow_clients()
for check in [globals()[n] for n in sys.argv[3:]] or (malformed_bodies, unknown_fields, sizes, names, typed_nonsense, random_bytes, broken_clients, anonymous, registry, kubelet, control_frames, pages, watches):
    before = time.monotonic()
    try:
        check()
    except Exception as e:  # a response of an unforeseen shape is a finding, and the other checks still have to run
        wrong(f"{check.__name__}: {e!r}")
    print(f"· {check.__name__}: {time.monotonic() - before:.1f} s", flush=True)
slow_clients_end(slow)
wants(200, "GET", "/readyz")
print(f"· {time.monotonic() - started:.1f} s, {len(found)} findings")
sys.exit(1 if found else 0)

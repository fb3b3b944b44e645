"""policies.py KUBECONFIG PID: admission policies and conditions of webhooks that mean harm, while another client goes on: what
they cost that client, and in memory. Whoever is refused is told by which policy, and nobody gets a 500."""
import json, sys, threading, time

from cluster import Cluster
from harmless import harmless

cluster, PID = Cluster(sys.argv[1]), sys.argv[2]
GROUP = "/apis/admissionregistration.k8s.io/v1"
SECRETS = "/api/v1/namespaces/default/secrets"
class Client:
    """One connection, reopened if it is lost."""

    def __init__(self):
        self.connection = None

    def ask(self, method, path, body=None, timeout=120):
        for last in (False, True):
            self.connection = self.connection or cluster.connect(timeout)
            try:
                data = None if body is None else json.dumps(body).encode()
                self.connection.request(method, path, data, {"Content-Type": "application/json"})
                answer = self.connection.getresponse()
                return answer.status, json.loads(answer.read())
            except (OSError, ValueError) as error:
                self.connection.close()
                self.connection = None
                if last or isinstance(error, ValueError):
                    raise


CLIENT = Client()
ask = CLIENT.ask


def rules(resource="secrets", operations=("CREATE", "UPDATE")):
    return [{"apiGroups": [""], "apiVersions": ["v1"], "operations": list(operations), "resources": [resource]}]


def policy(name, kind="Validating", bind=True, **spec):
    spec = {"matchConstraints": {"resourceRules": rules()}, **spec}
    if kind == "Mutating":
        spec.setdefault("reinvocationPolicy", "Never")
    code, answer = ask("POST", f"{GROUP}/{kind.lower()}admissionpolicies", {"metadata": {"name": name}, "spec": spec})
    return (code, answer) if code != 201 or not bind else binding(name, kind)


def binding(name, kind="Validating", policy=None, **spec):
    spec = {"policyName": policy or name, **({"validationActions": ["Deny"]} if kind == "Validating" else {}), **spec}
    return ask("POST", f"{GROUP}/{kind.lower()}admissionpolicybindings", {"metadata": {"name": name}, "spec": spec})


def gone(*kinds):
    for kind in kinds or ("Validating", "Mutating"):
        for what in ("policies", "policybindings"):
            code, answer = ask("DELETE", f"{GROUP}/{kind.lower()}admission{what}")
            assert code == 200, (code, answer)


def secret(name, **data):
    return ask("POST", SECRETS, {"metadata": {"name": name}, "stringData": data})


def refused(answer, *says):
    code, body = answer
    assert 400 <= code < 500, (says, code, str(body)[:500])
    assert any(word in body["message"] for word in says), body["message"][:500]
    return code


def hostile_expressions():
    """Invalid expressions are rejected at definition."""
    codes = []
    for expression, says in [
        ("(" * 3000 + "true" + ")" * 3000, "compilation failed"),
        ("object" + ".map(a, [a, a])" * 200 + ".size() > 0", "compilation failed"),
        ("'a'.matches('(a{1,1000}){1,1000}')", "compilation failed"),
        ("true && " * 50000 + "true", "compilation failed"),
    ]:
        code, answer = policy("p", validations=[{"expression": expression}], bind=False)
        if code == 201:
            gone("Validating")
        else:
            refused((code, answer), says, "Too long", "Too many")
        codes.append(code)
    return codes


def expensive_expressions():
    """Policies that cost too much during evaluation reject their own requests, by name."""
    said = []
    data = {f"k{n}": "v" * 100 for n in range(60)}
    long = "object.data.map(k, object.data[k])"
    for name, validation in {
        "loops": {"expression": "object.data.all(a, object.data.all(b, object.data.all(c, object.data.all(d, object.data.all(e, true)))))"},
        "lists": {"expression": f"{long}.map(x, {long}.map(y, {long}.map(z, [x, y, z]))).size() > 0"},
        "strings": {"expression": "'" + "a" * 100 + "'" + ".replace('a', 'aaaaaaaaaa')" * 9 + " != ''"},
        "patterns": {"expression": "object.data.all(k, !('a'.matches('(' + k + '{1,1000}){1,1000}')))"},
        "messages": {"expression": "false", "messageExpression": "'" + "a" * 100 + "'" + ".replace('a', 'aaaaaaaaaa')" * 9},
    }.items():
        code, answer = policy(name, validations=[validation])
        assert code == 201, (name, code, answer)
        said.append(refused(secret(name, **data), f"ValidatingAdmissionPolicy '{name}' with binding '{name}' denied request"))
        gone("Validating")
    expression = "Object{metadata: Object.metadata{labels: {'a': '" + "a" * 100 + "'" + ".replace('a', 'aaaaaaaaaa')" * 9 + "}}}"
    mutation = {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}
    code, answer = policy("grows", "Mutating", mutations=[mutation])
    assert code == 201, (code, answer)
    said.append(refused(secret("grows"), "policy 'grows' with binding 'grows' denied request"))
    patch = "dyn(object.data).map(a, dyn(object.data).map(b, dyn(object.data).map(c, a))).map(x, JSONPatch{op: 'add', path: '/data/a', value: 'YQ=='})"
    gone("Mutating")
    code, answer = policy("patches", "Mutating", mutations=[{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}])
    assert code == 201, (code, answer)
    code, answer = secret("patches", **data)
    assert code < 500, (code, answer)
    gone("Mutating")
    return said + [code]


def parameters():
    """Parameters of a megabyte, and parameters that no longer exist."""
    maps = "/api/v1/namespaces/default/configmaps"
    for n in range(20):
        body = {"metadata": {"name": f"param{n}", "labels": {"param": "yes"}}, "data": {"text": "x" * (1000 << 10)}}
        code, answer = ask("POST", maps, body)
        assert code == 201, (code, str(answer)[:300])
    kind = {"apiVersion": "v1", "kind": "ConfigMap"}
    code, answer = policy("large", paramKind=kind, bind=False, validations=[{"expression": "params.data.text.contains(object.metadata.name)"}])
    assert code == 201, (code, answer)
    reference = {"selector": {"matchLabels": {"param": "yes"}}, "parameterNotFoundAction": "Deny"}
    code, answer = binding("large", paramRef=reference)
    assert code == 201, (code, answer)
    said = [refused(secret("large"), "ValidatingAdmissionPolicy 'large' with binding 'large' denied request")]
    for n in range(20):
        assert ask("DELETE", f"{maps}/param{n}")[0] == 200
    deadline = time.monotonic() + 60
    while "no params found" not in (answer := secret("large"))[1]["message"]:
        assert time.monotonic() < deadline and answer[0] < 500, answer
    said.append(refused(answer, "no params found for policy binding with `Deny` parameterNotFoundAction"))
    gone("Validating")
    return said


def conditions():
    """Conditions that fail or cost too much: of a policy, and of a webhook without a server."""
    data = {f"k{n}": "v" for n in range(60)}
    loops = "object.data.all(a, object.data.all(b, object.data.all(c, object.data.all(d, object.data.all(e, true)))))"
    said = []
    for name, expression in {"fails": "object.nothing == 1", "costs": loops}.items():
        code, answer = policy(name, matchConditions=[{"name": "c", "expression": expression}], validations=[{"expression": "true"}])
        assert code == 201, (code, answer)
        said.append(refused(secret(name, **data), f"ValidatingAdmissionPolicy '{name}' with binding '{name}' denied request"))
        gone("Validating")
        hook = {"name": f"{name}.example.com", "clientConfig": {"url": "https://127.0.0.1:1/"}, "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "rules": rules(), "matchConditions": [{"name": "c", "expression": expression}]}
        at = f"{GROUP}/validatingwebhookconfigurations"
        code, answer = ask("POST", at, {"metadata": {"name": name}, "webhooks": [hook]})
        assert code == 201, (code, answer)
        said.append(refused(secret(name, **data), name, "condition"))
        assert ask("DELETE", f"{at}/{name}")[0] == 200
    return said


def many():
    """A thousand policies, each with a binding, then a hundred bindings of a costly one: all are evaluated for one object."""
    for n in range(1000):
        code, answer = policy(f"many{n:04}", validations=[{"expression": f"object.metadata.name != 'many{n}' && size(object.metadata.name) < {100 + n}"}])
        assert code == 201, (code, answer)
    began = time.monotonic()
    assert secret("fine")[0] == 201
    took = time.monotonic() - began
    refused(secret("many500"), "ValidatingAdmissionPolicy 'many0500' with binding 'many0500' denied request")
    gone("Validating")
    loops = "object.data.all(a, object.data.all(b, object.data.all(c, true)))"
    code, answer = policy("loops", bind=False, validations=[{"expression": loops}])
    assert code == 201, (code, answer)
    for n in range(100):
        code, answer = binding(f"loops{n}", policy="loops")
        assert code == 201, (code, answer)
    code, answer = secret("loops", **{f"k{n}": "v" for n in range(50)})
    assert code in (201, 422), (code, answer)
    gone("Validating")
    return f"{took * 1000:.0f} ms for an object that a thousand are asked about, {code}"


def large():
    """Policies of the maximum size, and many clients at once while they change."""
    expression = " && ".join(f"object.metadata.name != 'n{n}'" for n in range(2500))
    spec = {"validations": [{"expression": expression} for _ in range(15)]}
    code, answer = policy("large", **spec)
    assert code in (201, 413, 422), (code, str(answer)[:300])
    if code != 201:
        return code
    wrong = []

    def some():
        client = Client()
        for n in range(5):
            code, answer = client.ask("POST", f"{SECRETS}?dryRun=All", {"metadata": {"name": "s"}})
            if code != 201:
                wrong.append((code, str(answer)[:300]))

    threads = [threading.Thread(target=some) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[0]
    gone("Validating")
    return code


for what, run in [
    ("hostile expressions", hostile_expressions),
    ("expensive expressions", expensive_expressions),
    ("parameters", parameters),
    ("conditions", conditions),
    ("many policies", many),
    ("large policies", large),
]:
    if len(sys.argv) < 4 or what.split()[0] in sys.argv[3:]:
        harmless(what, run, Client().ask, PID)

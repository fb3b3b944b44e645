"""definitions.py KUBECONFIG PID: CustomResourceDefinitions that mean harm, while another client goes on: what they cost that
client, and in memory."""
import json, sys, threading, time

from cluster import Cluster
from harmless import harmless

cluster, PID = Cluster(sys.argv[1]), sys.argv[2]
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


def ask(method, path, body=None, timeout=300):
    connection = cluster.connect(timeout)
    try:
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, {"message": text.decode(errors="replace")}
    finally:
        connection.close()


def definition(name, properties=None, schema=None):
    schema = schema or {"type": "object", "properties": {"spec": {"type": "object", "properties": properties or {}}}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": f"{name}s.harm.example.com"},
        "spec": {"group": "harm.example.com", "scope": "Namespaced", "names": {"plural": f"{name}s", "kind": name.capitalize()},
                 "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}]},
    }


def refused(body, *says):
    code, answer = ask("POST", DEFINITIONS, body)
    assert 400 <= code < 500, (code, str(answer)[:500])
    assert any(word in answer["message"] for word in says), answer["message"][:500]
    return code


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def huge_schemas():
    wide = {f"field{n}": {"type": "string", "description": "x" * 20} for n in range(20000)}
    code = refused(definition("wide", wide), "must not hold more than", "request is too large", "Request entity too large")
    text = json.dumps(definition("deep", {"a": {"type": "object"}}))
    deep = text.replace('"a": {"type": "object"}', '"a": ' + '{"type":"object","properties":{"a":' * 5000 + '{"type":"string"}' + "}}" * 5000)
    return code, refused(deep.encode(), "recursion limit", "exceeded max depth", "nest deeper"), refused(definition("deep", {"a": nested(100)}), "nest deeper")


def rule(expression, **schema):
    return {"type": "object", "properties": {"spec": {**schema, "x-kubernetes-validations": [{"rule": expression}]}}}


def exponential_rules():
    strings = {"type": "array", "items": {"type": "string"}}
    power = "self.all(a, self.all(b, self.all(c, self.all(d, self.all(e, a + b + c + d != e)))))"
    grown = "'" + "a" * 100 + "'" + ".replace('a', 'aaaaaaaaaa')" * 12 + " == self"
    nested = "(" * 3000 + "true" + ")" * 3000
    long = " && ".join(["self.size() > 0"] * 50000)
    macros = "self" + ".map(a, [a, a])" * 200 + ".size() > 0"
    return [
        refused(definition("power", schema=rule(power, **strings)), "exceeds budget"),
        refused(definition("grown", schema=rule(grown, type="string")), "exceeds budget", "compilation failed"),
        refused(definition("nested", schema=rule(nested, type="string")), "compilation failed", "recursion"),
        refused(definition("long", schema=rule(long, type="string", maxLength=5)), "compilation failed", "exceeds budget", "Too long", "must not be longer"),
        refused(definition("macros", schema=rule(macros, **strings)), "exceeds budget", "compilation failed"),
    ]


def bombs_of_patterns():
    codes = []
    for pattern in ["(a{1,1000}){1,1000}", "((a{0,100}){0,100}){0,100}", "(" * 2000 + "a" + ")" * 2000, r"\pL{1000}{1000}"]:
        code, answer = ask("POST", DEFINITIONS, definition("bomb", {"a": {"type": "string", "pattern": pattern}}))
        assert code in (201, 422, 400), (code, answer)
        codes.append(code)
        if code == 201:
            ask("DELETE", f"{DEFINITIONS}/bombs.harm.example.com")
            gone("bombs.harm.example.com")
    # A pattern that takes exponential time in other engines.
    body = definition("evil", {"a": {"type": "string", "pattern": "^(a+)+$"}})
    assert ask("POST", DEFINITIONS, body)[0] == 201
    at = "/apis/harm.example.com/v1/namespaces/default/evils"
    served(at)
    evil = {"apiVersion": "harm.example.com/v1", "kind": "Evil", "metadata": {"name": "a"}, "spec": {"a": "a" * 100000 + "b"}}
    code, answer = ask("POST", at, evil)
    assert code == 422, (code, str(answer)[:300])
    return codes + [code]


def recursive_references():
    own = {"type": "object", "properties": {"spec": {"$ref": "#/properties/spec"}}}
    local = {"type": "object", "definitions": {"a": {"$ref": "#/definitions/a"}}, "properties": {"spec": {"$ref": "#/definitions/a"}}}
    return refused(definition("own", schema=own), "$ref"), refused(definition("local", schema=local), "$ref", "definitions")


def served(at):
    deadline = time.monotonic() + 240
    while ask("GET", at)[0] != 200:
        assert time.monotonic() < deadline, f"{at} is not served"
        time.sleep(0.05)


def gone(name):
    deadline = time.monotonic() + 240
    while ask("GET", f"{DEFINITIONS}/{name}")[0] != 404:
        assert time.monotonic() < deadline, f"{name} does not go"
        time.sleep(0.05)


def objects_that_cost():
    """A rule within its estimate, over objects that use all of it."""
    schema = {"type": "object", "properties": {"spec": {"type": "array", "maxItems": 500, "items": {"type": "string", "maxLength": 20},
              "x-kubernetes-validations": [{"rule": "self.all(a, self.exists_one(b, a == b))"}]}}}
    code, answer = ask("POST", DEFINITIONS, definition("cost", schema=schema))
    assert code in (201, 422), (code, answer)
    if code == 422:
        return code
    at = "/apis/harm.example.com/v1/namespaces/default/costs"
    served(at)
    codes = set()
    for n in range(20):
        body = {"apiVersion": "harm.example.com/v1", "kind": "Cost", "metadata": {"name": f"c{n}"}, "spec": [f"text{i}" for i in range(500)]}
        codes.add(ask("POST", at, body)[0])
    assert codes <= {201, 422}, codes
    return sorted(codes)


def a_thousand():
    """Definitions with schemas in sequence, by four clients at once."""
    properties = {f"field{n}": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer", "default": n}}} for n in range(10)}
    todo, wrong = list(range(1000)), []

    def some():
        while todo:
            try:
                n = todo.pop()
            except IndexError:
                return
            code, answer = ask("POST", DEFINITIONS, definition(f"many{n:04}x", properties))
            if code != 201:
                wrong.append((code, answer))
                return

    threads = [threading.Thread(target=some) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[0]
    served("/apis/harm.example.com/v1/namespaces/default/many0000xs")
    code, listed = ask("GET", "/apis/harm.example.com/v1")
    assert code == 200 and len(listed["resources"]) >= 1000, (code, len(listed.get("resources", [])))
    code, answer = ask("DELETE", DEFINITIONS)
    assert code == 200, (code, str(answer)[:300])
    deadline = time.monotonic() + 300
    while left := len(ask("GET", DEFINITIONS)[1]["items"]):
        assert time.monotonic() < deadline, f"{left} definitions do not go"
        time.sleep(0.5)
    return "made, served and gone"


for what, run in [
    ("huge schemas", huge_schemas),
    ("exponential rules", exponential_rules),
    ("bombs of patterns", bombs_of_patterns),
    ("recursive references", recursive_references),
    ("objects that cost", objects_that_cost),
    ("a thousand definitions", a_thousand),
]:
    harmless(what, run, ask, PID)

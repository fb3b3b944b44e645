#!/usr/bin/env python3
"""load.py FOLDER: requests of every kind to the test's cluster, two rounds a second, until it is killed. Prints `tunnel` once a request has
gone from one node to another."""
import json, socket, subprocess, sys, time, urllib.error, urllib.request

ROUND_S = 0.5
TIMEOUT_S = 3


def kubectl(*words, input=None):
    return subprocess.run(["kubectl", *words], input=input, capture_output=True, text=True)


def service(name, namespace="default"):
    return json.loads(kubectl("-n", namespace, "get", "service", name, "-o", "json").stdout)["spec"]


def get(url):
    """The status code, or 0 without a response."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            response.read()
            return response.status
    except urllib.error.HTTPError as problem:
        return problem.code
    except OSError:
        return 0


def ask(address, name, kind=1, opcode=0):
    """Sends a question to cluster DNS; an empty name sends a datagram that is no question. Opcode 2 is a status query, which no server
    implements."""
    host, port = address.rsplit(":", 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(TIMEOUT_S)
        labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
        question = b"\x12\x34" + bytes([opcode << 3 | 1]) + b"\0\0\1\0\0\0\0\0\0" + labels + b"\0" + kind.to_bytes(2, "big") + b"\0\1"
        client.sendto(question if name else b"no", (host, int(port)))
        if name:
            client.recv(4096)


def refused(webhook):
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "try-", "labels": {"webhook": webhook}}}
    kubectl("create", "-f", "-", input=json.dumps(config_map))


def main():
    with open(f"{sys.argv[1]}/data/dns-address") as file:
        dns = file.read().strip()
    paths = {"hello": "/", "endless": "/loop", "glutton": "/eat?mb=512", "trap": "/trap", "nothing": ""}
    urls = [f"http://{service(name)['clusterIP']}{':443' if name == 'nothing' else ''}{path}" for name, path in paths.items()]
    front = service("frontend", "shop")["ports"][0]["nodePort"]
    urls += [f"http://127.0.0.1:{front}/", f"http://127.0.0.1:{front}/api/products"]
    far = f"http://127.0.0.2:{service('far')['ports'][0]['nodePort']}/"
    crossed = False
    while True:
        began = time.monotonic()
        codes = [get(url) for url in urls]
        if get(far) == 200 and not crossed:
            print("tunnel", flush=True)
            crossed = True
        for name, kind in (("kubernetes.default.svc.cluster.local", 1), ("nothing.default.svc.cluster.local", 28), ("", 0)):
            ask(dns, name, kind)
        ask(dns, "kubernetes.default.svc.cluster.local", opcode=2)
        kubectl("rollout", "restart", "deployment/restarted")
        refused("needed")
        refused("ignored")
        kubectl("get", "--raw", "/api/v1/namespaces/default/services/nothing:443/proxy/")
        print(codes, flush=True)
        time.sleep(max(0.0, ROUND_S - (time.monotonic() - began)))


main()

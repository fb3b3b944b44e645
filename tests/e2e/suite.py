"""Code shared by suites of independent cases: `SUITE.py KUBECONFIG [CASE…]` runs them in parallel, prints the failures and exits 1.
Cases wait for conditions with a deadline and never sleep for a result.
"""
import concurrent.futures, json, subprocess, sys, time

from cluster import Cluster

KUBECONFIG = sys.argv[1]
CLUSTER = Cluster(KUBECONFIG)
# A deadline bounds a hang and says nothing about speed: the machine may be busy with other things.
HANG_S = 240
SOON_S = HANG_S
POLL_S = 0.05
NS = "/api/v1/namespaces/default"


class Wrong(Exception):
    pass


def expect(want, got, what):
    if want != got:
        raise Wrong(f"{what}: wanted {want!r}, got {got!r}")


def run_kubectl(*args, given=None):
    return subprocess.run(["kubectl", "--kubeconfig", KUBECONFIG, *args], input=given, capture_output=True, text=True)


def kubectl(*args, given=None):
    done = run_kubectl(*args, given=given)
    if done.returncode:
        raise Wrong(f"kubectl {' '.join(args)}: {done.stderr.strip()}")
    return done.stdout


def apply(*objects):
    kubectl("apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))


def ask_api(path, method="GET", body=None, media="application/json", timeout=SOON_S):
    """The status and the response as JSON."""
    c = CLUSTER.connect(timeout)
    try:
        body = json.dumps(body) if isinstance(body, (dict, list)) else body
        c.request(method, path, body, {"Content-Type": media} if body is not None else {})
        r = c.getresponse()
        return r.status, json.loads(r.read())
    finally:
        c.close()


def get(path):
    status, answer = ask_api(path)
    return answer if status == 200 else None


def until(what, check, seconds=SOON_S):
    """The first true result of `check`. `seconds` is what it may take on a quiet machine."""
    seconds = max(seconds, HANG_S)
    deadline = time.monotonic() + seconds
    while True:
        got = check()
        if got:
            return got
        if time.monotonic() > deadline:
            raise Wrong(f"not within {seconds} s: {what}")
        time.sleep(POLL_S)


def run(case):
    began = time.monotonic()
    try:
        note, problem = case(), None
    except Exception as e:  # whatever it is, the other cases still report their findings
        note, problem = None, e if isinstance(e, Wrong) else repr(e)
    took = f"{time.monotonic() - began:.1f} s"
    print(f"· {case.__name__}: {took}{f', {note}' if note else ''}" if problem is None else f"WRONG: {case.__name__} ({took}): {problem}", flush=True)
    return problem is None


def main(cases, at_once):
    """The end of the program."""
    wanted = [case for case in cases if not sys.argv[2:] or case.__name__ in sys.argv[2:]]
    unknown = set(sys.argv[2:]) - {case.__name__ for case in cases}
    if unknown:
        sys.exit(f"no such case: {', '.join(sorted(unknown))}")
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        sys.exit(0 if all(list(pool.map(run, wanted))) else 1)

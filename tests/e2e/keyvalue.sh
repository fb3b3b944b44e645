#!/usr/bin/env bash
# State and settings of guests from outside: wasi:keyvalue of a plugin and of a server, over pods, a crash, a flood and the end
# of a namespace; wasi:config as it changes.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

up
export CORACLE_DATA_DIR="$WORK/data"
for sample in counter visits; do "$CORACLE" push "${SAMPLES_BIN:-sample-workloads/bin}/$sample.wasm" "registry.local/$sample:v1" >/dev/null; done
kubectl create namespace other >/dev/null
for namespace in default other; do
  for sample in counter visits; do kubectl apply -n "$namespace" -f "sample-workloads/manifests/$sample.yaml" >/dev/null; done
done
ready() { local name; for name in counter visits; do kubectl rollout status -n "$1" "deployment/$name" --timeout=60s >/dev/null; done; }
ready default; ready other
url() { echo "http://$(kubectl get service -n "$1" "$2" -o jsonpath='{.spec.clusterIP}')"; }
ours=$(url default counter) theirs=$(url other counter)
call() { curl -sS -m 60 "$1/coracle:samples/counter/$2" -d "$3"; }
eventually 20 call "$ours" read '{"names": []}'
eventually 20 call "$theirs" read '{"names": []}'

# Two pods of a namespace count together, whichever responds; another namespace has separate data.
cat > "$WORK/calls.py" << 'PYTHON'
"""calls.py URL FUNCTION BODY… : all of them, eight at once; prints the results."""
import json, sys, urllib.request
from concurrent.futures import ThreadPoolExecutor
def call(body):
    with urllib.request.urlopen(f"{sys.argv[1]}/coracle:samples/counter/{sys.argv[2]}", body.encode(), timeout=60) as answer:
        return json.load(answer)
with ThreadPoolExecutor(8) as pool:
    print(json.dumps(list(pool.map(call, sys.argv[3:]))))
PYTHON
calls() { python3 "$WORK/calls.py" "$@"; }
bodies=(); for _ in $(seq 40); do bodies+=('{"name": "n", "by": 1}'); done
expect '[{"ok":1},{"ok":2},{"ok":3}]' "$(calls "$ours" add "${bodies[@]}" | python3 -c 'import json,sys; print(json.dumps(sorted(json.load(sys.stdin), key=lambda a: a["ok"])[:3], separators=(",", ":")))')" "forty additions at once"
expect '{"ok":41}' "$(call "$ours" add '{"name": "n", "by": 1}')" "after forty additions"
expect '{"ok":1}' "$(call "$theirs" add '{"name": "n", "by": 1}')" "another namespace's first"
bodies=(); for n in $(seq 40); do bodies+=("{\"name\": \"best\", \"score\": $((n * 7 % 41))}"); done
calls "$ours" highest "${bodies[@]}" >/dev/null
expect '{"ok":40}' "$(call "$ours" highest '{"name": "best", "score": -5}')" "the highest of forty, by compare and swap"
expect '{"ok":["40",null,"41"]}' "$(call "$ours" read '{"names": ["best", "none", "n"]}')" "a batch"
expect '{"ok":["best","n"]}' "$(call "$ours" names '{"bucket": ""}')" "names of the default bucket"
expect '{"ok":null}' "$(call "$ours" keep '{"bucket": "b.2", "key": "k", "value": "AAE="}')" "bytes in a bucket of their own"
expect '{"ok":["k"]}' "$(call "$ours" names '{"bucket": "b.2"}')" "its names"
expect '{"err":"Error::NoSuchStore"}' "$(call "$ours" names '{"bucket": "no/bucket"}')" "no name of a bucket"
call "$ours" add '{"name": "text", "by": 1}' >/dev/null
call "$ours" keep '{"bucket": "", "key": "text", "value": "eHk="}' >/dev/null
expect '{"err":"the value is no number (decimal digits of 64 bits)"}' "$(call "$ours" add '{"name": "text", "by": 1}')" "an increment of text"
expect '{"ok":null}' "$(call "$ours" forget '{"names": ["text", "best", "none"]}')" "what is forgotten"
expect '{"ok":["n"]}' "$(call "$ours" names '{"bucket": ""}')" "is gone"

# A server with state, and settings that change while it runs.
visits=$(url default visits)
eventually 20 curl -fsS -m 10 "$visits/settings"
expect "good morning, visit 1" "$(curl -fsS -m 20 "$visits/")" "the first visit"
expect "good morning, visit 2" "$(curl -fsS -m 20 "$visits/")" "the second visit"
grep -qxF 'GREETING=good morning' <<< "$(curl -fsS -m 20 "$visits/settings")" || fail "settings: $(curl -sS "$visits/settings")"
kubectl patch configmap visits -p '{"data": {"GREETING": "good evening"}}' >/dev/null
eventually 20 has '^good evening, visit [0-9]+$' curl -fsS -m 20 "$visits/"
expect 0 "$(kubectl get pods -l app=visits -o jsonpath='{.items[*].status.containerStatuses[0].restartCount}' | tr ' ' '+' | python3 -c 'print(eval(input()))')" "restarts for a setting"

# The same image as a command, in a Job; a server that can't be one reports it.
kubectl create -f - > /dev/null << 'YAML'
apiVersion: batch/v1
kind: Job
metadata: {name: report}
spec:
  template:
    metadata: {annotations: {kind.coracle.dev/report: command, host.coracle.dev/report: "config,keyvalue"}}
    spec: {restartPolicy: Never, containers: [{name: report, image: "registry.local/visits:v1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: no-command, annotations: {kind.coracle.dev/counter: command, host.coracle.dev/counter: keyvalue}}
spec: {containers: [{name: counter, image: "registry.local/counter:v1"}]}
YAML
kubectl wait --for=condition=Complete job/report --timeout=60s >/dev/null || fail "the report doesn't end"
has '^([3-9]|[1-9][0-9]+) visits$' kubectl logs job/report || fail "the report: $(kubectl logs job/report)"
no_command() { has '^CreateContainerConfigError annotation kind.coracle.dev/counter: the module exports neither wasi:cli/run nor _start' kubectl get pod no-command -o 'jsonpath={.status.containerStatuses[0].state.waiting.reason} {.status.containerStatuses[0].state.waiting.message}'; }
eventually 20 no_command

# Not granted: the container waits, and names the missing grant.
python3 - << 'PYTHON' | kubectl apply -f - >/dev/null
import json
print(json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bare"}, "spec": {"containers": [{"name": "bare", "image": "registry.local/counter:v1"}]}}))
PYTHON
told() { has 'wasi:keyvalue.*not granted.*keyvalue' kubectl get pod bare -o jsonpath='{.status.containerStatuses[0].state.waiting.message}'; }
eventually 20 told

# A flood of one namespace: its quota ends it, and the other's calls continue meanwhile. While others hold the disk for long, a write
# fails with that, and its client tries again.
python3 - "$theirs" > "$WORK/flood" << 'PYTHON' & flood=$!
import base64, json, sys, urllib.request
from concurrent.futures import ThreadPoolExecutor
value = base64.b64encode(bytes(700_000)).decode()
def keep(n):
    body = json.dumps({"bucket": f"flood{n % 50}", "key": f"k{n}", "value": value}).encode()
    for _ in range(5):
        with urllib.request.urlopen(sys.argv[1] + "/coracle:samples/counter/keep", body, timeout=120) as answer:
            result = json.load(answer)
        if not result.get("err", "").endswith("held the disk for too long"):
            break
    return result
with ThreadPoolExecutor(8) as pool:
    answers = list(pool.map(keep, range(100)))
print(sum("ok" in a for a in answers), {a["err"] for a in answers if "err" in a})
PYTHON
for n in $(seq 42 61); do expect "{\"ok\":$n}" "$(call "$ours" add '{"name": "n", "by": 1}')" "an addition beside a flood"; done
wait $flood || fail "the flood ended otherwise"
expect "95 {\"the namespace's quota of 67108864 bytes is used up\"}" "$(cat "$WORK/flood")" "what a flood could keep"
expect '{"ok":2}' "$(call "$theirs" add '{"name": "n", "by": 1}')" "a small write beside a full store"
long=$(head -c 600 /dev/zero | tr '\0' k)
expect '{"err":"a key has 600 bytes: at most 512"}' "$(call "$ours" add "{\"name\": \"$long\", \"by\": 1}")" "a huge key"

# Killed during writes: no acknowledged write is lost.
python3 - "$ours" > "$WORK/acknowledged" << 'PYTHON' & writer=$!
import json, sys, urllib.request
while True:
    try:
        with urllib.request.urlopen(sys.argv[1] + "/coracle:samples/counter/add", b'{"name": "n", "by": 1}', timeout=20) as answer:
            print(json.load(answer)["ok"], flush=True)
    except Exception:
        break
PYTHON
some() { [ "$(wc -l < "$WORK/acknowledged")" -ge 30 ]; }
eventually 60 some
down KILL
wait $writer || true
up; ready default; ready other
last=$(tail -n 1 "$WORK/acknowledged")
eventually 30 call "$ours" read '{"names": ["n"]}'
now=$(call "$ours" read '{"names": ["n"]}' | tr -dc 0-9)
{ [ "$now" -ge "$last" ] && [ "$now" -le $((last + 1)) ]; } || fail "acknowledged $last, found $now"

# The data of a deleted namespace is removed; a new one of the name starts empty.
store() { compgen -G "$WORK/data/keyvalue/other.*.redb" >/dev/null; }
store || fail "the other namespace has no store"
old=$(compgen -G "$WORK/data/keyvalue/other.*.redb")
kubectl delete namespace other --timeout=60s >/dev/null
kubectl create namespace other >/dev/null
kubectl apply -n other -f sample-workloads/manifests/counter.yaml >/dev/null
kubectl rollout status -n other deployment/counter --timeout=60s >/dev/null
theirs=$(url other counter)
eventually 20 call "$theirs" read '{"names": []}'
expect '{"ok":1}' "$(call "$theirs" add '{"name": "n", "by": 1}')" "a namespace of the same name"
gone() { [ ! -e "$old" ]; }
eventually 60 gone
expect "{\"ok\":$((now + 1))}" "$(call "$ours" add '{"name": "n", "by": 1}')" "the first namespace's"
down
echo PASS

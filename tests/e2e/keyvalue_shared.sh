#!/usr/bin/env bash
# wasi:keyvalue of several nodes and processes in a Redis: docs/shared-stores.md, "Key-value data of several nodes". Concurrent increments,
# restarts of the cluster and of Redis, a Redis that is away or hangs, and the end of a namespace.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

REDIS_PID= NODE_PID=
stop_redis() { [ -z "$REDIS_PID" ] || { kill -CONT "$REDIS_PID"; kill "$1" "$REDIS_PID"; wait "$REDIS_PID" || true; } 2>/dev/null; REDIS_PID=; }
stop_node() { [ -z "$NODE_PID" ] || { kill "$NODE_PID"; wait "$NODE_PID" || true; } 2>/dev/null; NODE_PID=; }
trap 'stop_node; stop_redis -KILL; cleanup' EXIT
redis_port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
mkdir "$WORK/redis"
server=$(command -v redis-server || command -v valkey-server) || fail "no redis-server in PATH: install Debian's package redis-server or valkey-server"
start_redis() {
  "$server" --port "$redis_port" --bind 127.0.0.1 --requirepass "a secret" --appendonly yes --appendfsync always --dir "$WORK/redis" --loglevel warning > "$WORK/redis.log" 2>&1 & REDIS_PID=$!
  eventually 20 redis PING
}
# redis COMMAND…: one answer in the protocol's form
redis() { python3 - "$redis_port" "$@" << 'PYTHON'
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5) as connection:
    def call(*words):
        connection.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in (w.encode() for w in words)))
        answer = connection.recv(65536).decode()
        if answer.startswith("-"): sys.exit(answer)
        return answer
    call("AUTH", "a secret")
    call("SELECT", "1")
    print(call(*sys.argv[2:]))
PYTHON
}

printf 'a secret\n' > "$WORK/password"; chmod 600 "$WORK/password"
shared=(--nodes 2 --keyvalue "redis://127.0.0.1:$redis_port/1" --keyvalue-password-file "$WORK/password")
exits 2 "$CORACLE" up --data-dir "$WORK/none" --keyvalue "redis://:a-secret@127.0.0.1:$redis_port/x"
! grep -q 'a-secret' "$WORK/err" || fail "a password in an error: $(cat "$WORK/err")"
exits 2 "$CORACLE" up --data-dir "$WORK/none" --keyvalue "redis://127.0.0.1:$redis_port" --keyvalue-password-file "$WORK/none"

# A cluster starts without Redis; its guests get an error that says what to check.
up "${shared[@]}"
export CORACLE_DATA_DIR="$WORK/data"
for sample in counter visits; do "$CORACLE" push "${SAMPLES_BIN:-sample-workloads/bin}/$sample.wasm" "registry.local/$sample:v1" >/dev/null; done
kubectl create namespace other >/dev/null
for namespace in default other; do kubectl apply -n "$namespace" -f sample-workloads/manifests/counter.yaml >/dev/null; done
kubectl apply -f sample-workloads/manifests/visits.yaml >/dev/null
ready() {
  for namespace in default other; do kubectl rollout status -n "$namespace" deployment/counter --timeout=60s >/dev/null; done
  kubectl rollout status deployment/visits --timeout=60s >/dev/null
}
ready
expect 'coracle-1 coracle-2' "$(kubectl get pods -l app=counter -o jsonpath='{.items[*].spec.nodeName}' | tr ' ' '\n' | sort | tr '\n' ' ' | sed 's/ $//')" "nodes of the pods"
url() { echo "http://$(kubectl get service -n "$1" "$2" -o jsonpath='{.spec.clusterIP}')"; }
ours=$(url default counter) theirs=$(url other counter)
call() { curl -sS -m 60 "$1/coracle:samples/counter/$2" -d "$3"; }
away='the shared key-value store does not answer; a write may have been done. Check that the Redis of the node'"'"'s --keyvalue runs and that the node reaches it'
eventually 20 has 'does not answer' call "$ours" add '{"name": "n", "by": 1}'
expect "{\"err\":\"$away\"}" "$(call "$ours" add '{"name": "n", "by": 1}')" "an increment without Redis"
start_redis
counted() { has '^{"ok":1}$' call "$ours" add '{"name": "n", "by": 1}'; }
eventually 20 counted

# Two hundred increments through both nodes: each sum once.
cat > "$WORK/calls.py" << 'PYTHON'
"""calls.py URL FUNCTION COUNT BODY: eight at once; prints the results as a sorted list."""
import json, sys, urllib.request
from concurrent.futures import ThreadPoolExecutor
def call(_):
    with urllib.request.urlopen(f"{sys.argv[1]}/coracle:samples/counter/{sys.argv[2]}", sys.argv[4].encode(), timeout=60) as answer:
        return json.load(answer)
with ThreadPoolExecutor(8) as pool:
    print(sorted(answer.get("ok", -1) for answer in pool.map(call, range(int(sys.argv[3])))))
PYTHON
expect "$(python3 -c 'print(list(range(2, 202)))')" "$(python3 "$WORK/calls.py" "$ours" add 200 '{"name": "n", "by": 1}')" "two hundred increments at once"
expect '{"ok":1}' "$(call "$theirs" add '{"name": "n", "by": 1}')" "another namespace's first"
expect '{"ok":["n"]}' "$(call "$ours" names '{"bucket": ""}')" "names"
[ ! -e "$WORK/data/keyvalue" ] || fail "there are files beside Redis"

# A node in a process of its own: a Job there reads what the others counted.
visits=$(url default visits)
for n in 1 2 3; do curl -fsS -m 20 "$visits/" >/dev/null; done
cp "${SAMPLES_BIN:-sample-workloads/bin}/visits.wasm" "$WORK/redis/visits.wasm"
"$CORACLE" node --kubeconfig "$KUBECONFIG" --data-dir "$WORK/two" --node-name two --node-ip 127.0.0.1 --kubelet-port 0 --tunnel-port 0 --allow-file-images "$WORK/redis" "${shared[@]:2}" > "$WORK/two.out" 2> "$WORK/two.log" & NODE_PID=$!
await_ready "node two" "$NODE_PID" "$WORK/two.out"
kubectl apply -f - > /dev/null << YAML
apiVersion: v1
kind: Pod
metadata: {name: report, annotations: {kind.coracle.dev/report: command, host.coracle.dev/report: "config,keyvalue"}}
spec: {nodeName: two, restartPolicy: Never, containers: [{name: report, image: "file://$WORK/redis/visits.wasm"}]}
YAML
kubectl wait --for=jsonpath='{.status.phase}'=Succeeded pod/report --timeout=60s >/dev/null || fail "the report: $(kubectl describe pod report; tail -n 20 "$WORK/two.log")"
expect "3 visits" "$(kubectl logs report)" "visits, counted by another process"
stop_node

# Redis ends and returns: errors soon, then the counts of before. A hanging one is given up after seconds.
stop_redis -KILL
expect "{\"err\":\"$away\"}" "$(curl -sS -m 5 "$ours/coracle:samples/counter/add" -d '{"name": "n", "by": 1}')" "an increment without Redis"
start_redis
answers() { has '^{"ok":' call "$ours" add '{"name": "n", "by": 0}'; }
eventually 20 answers
expect '{"ok":201}' "$(call "$ours" add '{"name": "n", "by": 0}')" "the count after a restart of Redis"
kill -STOP "$REDIS_PID"
expect "{\"err\":\"$away\"}" "$(curl -sS -m 20 "$ours/coracle:samples/counter/read" -d '{"names": ["n"]}')" "a read while Redis hangs"
kill -CONT "$REDIS_PID"
eventually 20 answers
down
up "${shared[@]}"; ready
ours=$(url default counter)
eventually 20 answers
expect '{"ok":202}' "$(call "$ours" add '{"name": "n", "by": 1}')" "the count after a restart of the cluster"
! grep -rq 'a secret' "$WORK/up.log" "$WORK/two.log" || fail "a password in a log"

# A deleted namespace's data goes; what other programs have in this Redis stays.
redis SET coracle:others kept >/dev/null
kept() { python3 - "$redis_port" << 'PYTHON'
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5) as connection:
    connection.sendall(b"AUTH \"a secret\"\r\nSELECT 1\r\nKEYS *\r\nQUIT\r\n")
    data = b""
    while part := connection.recv(65536): data += part
print(*sorted(line for line in data.decode().split("\r\n") if line.startswith("coracle:")), sep="\n")
PYTHON
}
uid=$(kubectl get namespace other -o jsonpath='{.metadata.uid}')
has "$uid:values" kept || fail "the other namespace has no data: $(kept)"
kubectl delete namespace other --timeout=60s >/dev/null
gone() { ! has "$uid:values" kept; }
eventually 90 gone
has "$uid:removed" kept || fail "late writes would be taken: $(kept)"
expect '{"ok":203}' "$(call "$ours" add '{"name": "n", "by": 1}')" "the first namespace's"
has 'kept' redis GET coracle:others || fail "another program's key is gone"
down
echo PASS

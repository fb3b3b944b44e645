#!/usr/bin/env bash
# Guests that listen: `kv` (Redis' protocol over TCP) and `dns` (UDP and TCP), by redis-cli and dig. All ways to them, their limits, their data
# over kills and restarts, and what they leave behind.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
BIN=${SAMPLES_BIN:-sample-workloads/bin}
MANIFESTS=sample-workloads/manifests
cli=$(command -v redis-cli || command -v valkey-cli) || fail "no redis-cli in PATH: install Debian's package redis-tools or valkey-tools"
server=$(command -v redis-server || command -v valkey-server) || fail "no redis-server in PATH: install Debian's package redis-server or valkey-server"
driver() { python3 "$(dirname "${BASH_SOURCE[0]}")/sockets.py" "$@"; }
REDIS_PID= FORWARD_PID=
end() { [ -z "$1" ] || { kill "$1"; wait "$1" || true; } 2>/dev/null; }
trap 'end "$REDIS_PID"; end "$FORWARD_PID"; cleanup' EXIT

up
export CORACLE_DATA_DIR="$WORK/data"
for sample in kv dns; do "$CORACLE" push "$BIN/$sample.wasm" "registry.local/$sample:v1" >/dev/null; done
kubectl apply -f $MANIFESTS/kv.yaml -f $MANIFESTS/dns.yaml >/dev/null
ready() { kubectl rollout status statefulset/kv --timeout=60s >/dev/null; kubectl rollout status deployment/dns --timeout=60s >/dev/null; }
ready
kv=$(kubectl get service kv -o jsonpath='{.spec.clusterIP}')
dns=$(kubectl get service dns -o jsonpath='{.spec.clusterIP}')
redis() { "$cli" -h "$kv" "$@"; }
restarts() { kubectl get pod kv-0 -o jsonpath='{.status.containerStatuses[0].restartCount}'; }

# All ways to the pod.
expect PONG "$(redis ping)" "the Service's address"
kubectl patch service kv -p '{"spec": {"type": "NodePort"}}' >/dev/null
node_port=$(kubectl get service kv -o jsonpath='{.spec.ports[0].nodePort}')
eventually 10 "$cli" -h 127.0.0.1 -p "$node_port" set way node-port
expect node-port "$(redis -3 get way)" "a value that came through the NodePort"
kubectl port-forward pod/kv-0 :6379 > "$WORK/forward" 2>&1 & FORWARD_PID=$!
eventually 20 grep -q '^Forwarding from 127.0.0.1' "$WORK/forward"
forwarded=$(sed -n 's/^Forwarding from 127.0.0.1:\([0-9]*\) .*/\1/p' "$WORK/forward" | head -n 1)
expect node-port "$("$cli" -h 127.0.0.1 -p "$forwarded" get way)" "a value through port-forward"
end "$FORWARD_PID"; FORWARD_PID=
expect +PONG "$(kubectl exec kv-0 -- sh -c "printf 'PING\r\nQUIT\r\n' | nc kv 6379" | head -n 1 | tr -d '\r')" "a session of a pod to the Service"
kubectl apply -f - >/dev/null <<'YAML'
apiVersion: batch/v1
kind: Job
metadata: {name: client}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers: [{name: client, image: "registry.local/kv:v1", args: [call, "kv:6379", GET, way]}]
YAML
kubectl wait --for=condition=complete job/client --timeout=60s >/dev/null || fail "the client: $(kubectl logs job/client)"
expect node-port "$(kubectl logs job/client)" "a value that another pod reads"
echo "· a Service's address, a NodePort, port-forward, a session, a pod"

# The same replies as the real server's, and connections that behave badly.
redis_port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$server" --port "$redis_port" --bind 127.0.0.1 --save "" --dir "$WORK" --loglevel warning > "$WORK/redis.out" 2>&1 & REDIS_PID=$!
eventually 20 "$cli" -p "$redis_port" ping
driver compare "$kv:6379" "127.0.0.1:$redis_port"
end "$REDIS_PID"; REDIS_PID=
driver hostile "$kv:6379"
expect 0 "$(restarts)" "restarts after hostile connections"

# DNS over both transports.
ask() { dig +short +time=5 +tries=2 "@$dns" "$@" | sort | tr '\n' ' '; }
for transport in +notcp +tcp; do
  expect "192.0.2.2 192.0.2.3 " "$(ask $transport www.example.test)" "addresses ($transport)"
  expect '"hello from a guest" ' "$(ask $transport text.example.test TXT)" "a text ($transport)"
done
dig "@$dns" none.example.test > "$WORK/none"; grep -q 'status: NXDOMAIN' "$WORK/none" || fail "a name that doesn't exist: $(cat "$WORK/none")"
dig "@$dns" example.com > "$WORK/none"; grep -q 'status: REFUSED' "$WORK/none" || fail "a name of another zone: $(cat "$WORK/none")"
kubectl get configmap dns -o json | sed 's/192.0.2.3/192.0.2.4/' | kubectl replace -f - >/dev/null
follows() { [ "$(ask www.example.test)" = "192.0.2.2 192.0.2.4 " ]; }
eventually 90 follows
echo "· dns over UDP and TCP, and a change of its zone"

# A thousand idle connections: their memory, and what is over the limits. Nothing of them is left.
driver idle "$kv:6379" "$UP_PID"
expect 0 "$(restarts)" "restarts after many connections"

# No acknowledged write is lost when the process is killed, nor when the pod is replaced. Clients connect again.
driver write "$kv:6379" "$WORK/acknowledged" & WRITER_PID=$!
eventually 20 test -s "$WORK/acknowledged"
sleep 1
down KILL
wait "$WRITER_PID" || fail "the writer"
acknowledged=$(tail -n 1 "$WORK/acknowledged")
up --guest-connections 40
eventually 60 redis ping
[ "$(redis get counter)" -ge "$acknowledged" ] || fail "$acknowledged writes were acknowledged, $(redis get counter) are there"
expect node-port "$(redis get way)" "a value after a kill"
echo "· $acknowledged acknowledged writes, and then a kill"
driver over "$kv:6379" 40
node_metrics() { kubectl get --raw "/api/v1/nodes/$(kubectl get nodes -o 'jsonpath={.items[0].metadata.name}')/proxy/metrics"; }
counted() { has '^coracle_guest_rejections_total\{container="kv",level="pod",namespace="default",pod="kv-0",resource="sockets"\} [1-9]' node_metrics; }
eventually 10 counted
has '^coracle_guest_resources\{container="kv",namespace="default",pod="kv-0",resource="listeners"\} 1$' node_metrics || fail "the ports of a server"
uid=$(kubectl get pod kv-0 -o jsonpath='{.metadata.uid}')
kubectl delete pod kv-0 --timeout=60s >/dev/null
replaced() { [ "$(kubectl get pod kv-0 -o jsonpath='{.metadata.uid}')" != "$uid" ] && redis ping; }
eventually 60 replaced
expect node-port "$(redis get way)" "a value in the next pod"

kubectl delete -f $MANIFESTS/kv.yaml -f $MANIFESTS/dns.yaml --timeout=60s >/dev/null
nothing() { [ -z "$(kubectl get pods,pvc,pv -o name -l '!batch.kubernetes.io/job-name')" ] && [ -z "$(find "$WORK/data" -name 'appendonly.aof*')" ]; }
eventually 60 nothing
! redis ping >/dev/null 2>&1 || fail "something answers at a deleted Service's address"
down
echo PASS

#!/usr/bin/env bash
# `--takeover`: a process takes the listening sockets of the running one, and no request of any client fails.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
HERE=$(dirname "${BASH_SOURCE[0]}")
TIMES=3

# taken NAME VERB [flags…]: a process that takes over; sets TAKEN to its id when it is ready. Its log is $WORK/NAME.log.
taken() {
  local name=$1; shift
  : > "$WORK/$name.ready"
  "$CORACLE" "$@" --takeover > "$WORK/$name.ready" 2> "$WORK/$name.log" & TAKEN=$!
  await_ready "$name" "$TAKEN" "$WORK/$name.ready" 60
}
# ended PID: the process that was taken over ends by itself, with success.
ended() { local rc=0; wait "$1" || rc=$?; expect 0 "$rc" "exit code of the process before"; }

# Writes that the API server has acknowledged are kept; none fails.
writes() {
  local n=0
  until [ -e "$WORK/enough" ]; do
    kubectl create configmap "write-$n" --from-literal=n=$n > "$WORK/write.out" 2>&1 || cat "$WORK/write.out" >> "$WORK/writes.failed"
    echo "write-$n" >> "$WORK/writes"
    n=$((n + 1))
  done
}
# finish: ends clients and writers, and checks their results.
finish() {
  sleep 1 # of requests after the last takeover
  touch "$WORK/enough"
  wait "$CLIENTS" || { cat "$WORK/clients.out"; fail "requests failed"; }
  cat "$WORK/clients.out"
  wait "$WRITES"
  [ ! -e "$WORK/writes.failed" ] || { head -5 "$WORK/writes.failed"; fail "writes failed"; }
  kubectl get configmaps -o jsonpath='{range .items[*]}{.metadata.name}{"\n"}{end}' | sort > "$WORK/found"
  expect "" "$(sort "$WORK/writes" | comm -23 - "$WORK/found")" "acknowledged writes that are lost"
  rm "$WORK/enough" "$WORK/writes"
}
# beside SERVER COMMAND: a pod that has a command beside its server, so that it ends before the new process has it. Sets BESIDE to its URL.
beside() {
  kubectl apply -f - >/dev/null <<YAML
apiVersion: apps/v1
kind: Deployment
metadata: {name: beside}
spec:
  selector: {matchLabels: {app: beside}}
  template:
    metadata: {labels: {app: beside}}
    spec:
      containers:
      - {name: c, image: "$1", ports: [{containerPort: 8080}], readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 10}}
      - {name: command, image: "$2", command: [sleep, "100000"]}
---
apiVersion: v1
kind: Service
metadata: {name: beside}
spec: {type: NodePort, selector: {app: beside}, ports: [{port: 8080, targetPort: 8080}]}
YAML
  kubectl rollout status deployment beside --timeout=180s >/dev/null || fail "the pod with a command did not become ready"
  BESIDE=http://127.0.0.1:$(kubectl get service beside -o jsonpath='{.spec.ports[0].nodePort}')/
}
restarts() { kubectl get pods -l app=web -o jsonpath='{.items[*].status.phase} {.items[*].status.containerStatuses[0].restartCount}'; }

# web IMAGE: two pods behind a ClusterIP and a NodePort.
web() {
  kubectl apply -f - >/dev/null <<YAML
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: c, image: "$1", ports: [{containerPort: 8080}],
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 10}}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 8080, targetPort: 8080}]}
YAML
  kubectl rollout status deployment web --timeout=180s >/dev/null || fail "the pods did not become ready"
  node_port=$(kubectl get service web -o jsonpath='{.spec.ports[0].nodePort}')
}

up --takeover
grep -q 'no process runs with .*: this is a normal start' "$WORK/up.log" || fail "a normal start is not said"
"$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/hello.wasm" registry.local/hello:v1 >/dev/null
kubectl create configmap kept --from-literal=a=b >/dev/null
"$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/toolbox.wasm" registry.local/toolbox:v1 >/dev/null
web registry.local/hello:v1
beside registry.local/hello:v1 registry.local/toolbox:v1
cluster_ip=$(kubectl get service web -o jsonpath='{.spec.clusterIP}')
server=$(kubectl config view -o jsonpath='{.clusters[0].cluster.server}')
eventually 10 curl -fsS --max-time 5 "http://$cluster_ip:8080/"

echo "· $TIMES takeovers of a whole cluster under load"
python3 "$HERE/takeover.py" "$WORK/enough" "http://$cluster_ip:8080/" "http://127.0.0.1:$node_port/" "http://127.0.0.1:$node_port/slow?ms=700" "$BESIDE" > "$WORK/clients.out" 2>&1 & CLIENTS=$!
writes & WRITES=$!
for n in $(seq $TIMES); do
  before=$UP_PID
  taken "up-$n" up --data-dir "$WORK/data" --port 0
  UP_PID=$TAKEN
  ended "$before"
  grep "took over .* sockets from process $before; .* ms without answers" "$WORK/up-$n.log" || fail "no line about the takeover"
  expect "$server" "$(sed -n 's/^ready server=\([^ ]*\) .*/\1/p' "$WORK/up-$n.ready")" "the API server's address"
  kubectl wait --for=condition=Ready pod -l app=web --timeout=30s >/dev/null || fail "the pods are not Ready"
  kubectl wait --for=condition=Ready pod -l app=beside --timeout=30s >/dev/null || fail "the pod with a command is not Ready"
done
finish
grep -qx kept "$WORK/found" || fail "an object is lost"
expect "Running Running $TIMES $TIMES" "$(restarts)" "phases and restarts of the pods"

# paused NAME: a takeover with clients of the Service and of the API; sets LONGEST to the longest time of a request in ms.
paused() {
  python3 "$HERE/takeover.py" "$WORK/enough" "http://$cluster_ip:8080/" "http://127.0.0.1:$node_port/" "$server/readyz" > "$WORK/clients.out" 2>&1 & CLIENTS=$!
  local before=$UP_PID
  taken "$1" up --data-dir "$WORK/data" --port 0
  UP_PID=$TAKEN
  touch "$WORK/enough"
  wait "$CLIENTS" || { cat "$WORK/clients.out"; fail "requests failed"; }
  rm "$WORK/enough"
  ended "$before"
  cat "$WORK/clients.out"
  LONGEST=$(sed -n '1s/.*longest took \([0-9]*\)\.\([0-9]*\) s.*/\1\2/p' "$WORK/clients.out")
  LONGEST=$((10#$LONGEST * 10))
}
kubectl delete deployment/beside service/beside --wait=false >/dev/null
echo "· strangers and streams don't hold up a takeover"
kubectl scale deployment web --replicas="${TAKEOVER_PODS:-20}" >/dev/null
"$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/crash.wasm" registry.local/crash:v1 >/dev/null
kubectl create deployment crashing --image=registry.local/crash:v1 --replicas=3 >/dev/null
kubectl rollout status deployment web --timeout=180s >/dev/null || fail "the pods did not become ready"
paused quiet
QUIET=$LONGEST
kubectl wait --for=condition=Ready pod -l app=web --timeout=60s >/dev/null || fail "the pods are not Ready"
python3 "$HERE/takeover_strangers.py" "${server#https://}" "127.0.0.1:$node_port" > "$WORK/strangers.out" 2>&1 & STRANGERS=$!
eventually 60 grep -qx open "$WORK/strangers.out"
paused crowded
wait "$STRANGERS" || { cat "$WORK/strangers.out"; fail "a stream was cut"; }
echo "the longest request: $QUIET ms in a quiet takeover, $LONGEST ms with strangers"
# Half of the time that the old process has for its streams: a machine's load is in both figures.
[ "$LONGEST" -lt $((QUIET + 5000)) ] || fail "strangers hold up a takeover"
kubectl delete deployment crashing --wait=false >/dev/null
kubectl scale deployment web --replicas=2 >/dev/null

echo "· a process that can't start leaves the running one as it is"
exits 2 "$CORACLE" up --data-dir "$WORK/data" --port 0 --takeover --store sled:
# refused PATTERN FLAG…: a mistake that shows before the running process gives anything away.
refused() {
  local pattern=$1; shift
  exits 1 "$CORACLE" up --data-dir "$WORK/data" --takeover "$@"
  grep -q 'the running process goes on' "$WORK/err" && grep -qE -- "$pattern" "$WORK/err" || { cat "$WORK/err"; fail "wanted: $pattern"; }
  curl -fsS --max-time 5 "http://$cluster_ip:8080/" >/dev/null || fail "the cluster does not answer after $*"
}
refused 'load-balancer-pool .* overlap' --port 0 --load-balancer-pool "${cluster_ip%.*}.0/24"
refused 'store etcd:' --port 0 --store etcd:http://127.0.0.1:1
python3 -c 'import socket, sys, time; s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen(); print(s.getsockname()[1], flush=True); time.sleep(600)' > "$WORK/port" & LISTENER=$!
eventually 10 test -s "$WORK/port"
refused 'port: cannot listen' --port "$(cat "$WORK/port")"
kill "$LISTENER"; wait "$LISTENER" 2>/dev/null || true
echo nonsense > "$WORK/data/pki/revoked"
refused 'pki/revoked' --port 0
rm "$WORK/data/pki/revoked"
curl -fsS --max-time 5 "http://$cluster_ip:8080/" >/dev/null || fail "the cluster does not answer"
down

echo "· a node and an API server of their own, one after the other"
taken server server --data-dir "$WORK/server" --port 0
SERVER=$TAKEN UP_PID=$TAKEN
KUBECONFIG=$WORK/server/kubeconfig
BIN=$(realpath "${SAMPLES_BIN:-sample-workloads/bin}")
node() { taken "$1" node --data-dir "$WORK/node" --kubeconfig "$KUBECONFIG" --node-name one --node-ip 127.0.0.1 --kubelet-port 0 --tunnel-port 0 --allow-file-images "$BIN"; }
node node-0
NODE=$TAKEN
trap '{ kill -KILL $NODE && wait $NODE; } 2>/dev/null || true; cleanup' EXIT
web "file://$BIN/hello.wasm"
eventually 10 curl -fsS --max-time 5 "http://127.0.0.1:$node_port/"
python3 "$HERE/takeover.py" "$WORK/enough" "http://127.0.0.1:$node_port/" > "$WORK/clients.out" 2>&1 & CLIENTS=$!
writes & WRITES=$!
for n in 1 2; do
  before=$NODE
  node "node-$n"
  NODE=$TAKEN
  ended "$before"
  grep "took over .* sockets from process $before; .* ms without answers" "$WORK/node-$n.log" || fail "no line about the takeover"
done
taken server-1 server --data-dir "$WORK/server" --port 0
UP_PID=$TAKEN
ended "$SERVER"
grep "took over .* sockets from process $SERVER" "$WORK/server-1.log" || fail "no line about the takeover"
finish
expect "Running Running 2 2" "$(restarts)" "phases and restarts of the pods"
kill "$NODE"
ended "$NODE"
down
echo PASS

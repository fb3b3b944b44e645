#!/usr/bin/env bash
# Components of WASI 0.3 as pods: a server behind a Service and a command as a Job, reuse, fuel, sessions. The modules are the texts of
# wasm-node/runtime/src/engine/tests/service_guest.rs, and two of WASI's own test suite.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
MODULES=tests/e2e/wasi3

"$CORACLE" inspect $MODULES/service.wasm > "$WORK/inspected"
grep -q 'wasi:http/service@0.3.0' "$WORK/inspected" || fail "inspect of the service: $(cat "$WORK/inspected")"
"$CORACLE" inspect $MODULES/command.wasm > "$WORK/inspected"
grep -q 'wasi:cli/command@0.3.0' "$WORK/inspected" || fail "inspect of the command: $(cat "$WORK/inspected")"

up
tar -xJf tests/wasi/testsuite.tar.xz -C "$WORK" --wildcards '*/cli-stdio-roundtrip.wasm' '*/multi-clock-wait.wasm'
for name in cli-stdio-roundtrip multi-clock-wait; do
  "$CORACLE" push "$WORK"/tests/rust/testsuite/wasm32-wasip3/$name.wasm "registry.local/$name:v1" --data-dir "$WORK/data" >/dev/null
done
for name in service command; do "$CORACLE" push $MODULES/$name.wasm "registry.local/$name:v1" --data-dir "$WORK/data" >/dev/null; done
kubectl create deployment service --image=registry.local/service:v1 --port=8080 >/dev/null
kubectl expose deployment service --port=80 --target-port=8080 >/dev/null
kubectl create job command --image=registry.local/command:v1 >/dev/null
kubectl rollout status deployment/service --timeout=60s >/dev/null
ip=$(kubectl get service service -o jsonpath='{.spec.clusterIP}')
eventually 10 curl -fsS "http://$ip/"
expect partial "$(curl -fsS "http://$ip/")" "the service's response"
expect partial "$(curl -fsS --http2-prior-knowledge "http://$ip/")" "the same over HTTP/2"
kubectl wait --for=condition=complete job/command --timeout=60s >/dev/null
expect partial "$(kubectl logs job/command)" "the command's output"

# pod NAME IMAGE ANNOTATIONS: a pod with an open standard input
pod() {
  kubectl apply -f - >/dev/null <<Y
apiVersion: v1
kind: Pod
metadata: {name: $1, labels: {run: $1}, annotations: {$3}}
spec:
  restartPolicy: Never
  containers: [{name: c, image: "registry.local/$2:v1", stdin: true, ports: [{containerPort: 8080}]}]
Y
}
pod reused service '"reuse.coracle.dev/c": "count=5,idle=1h"'
pod starved multi-clock-wait '"fuel.coracle.dev/c": "2000"'
pod waiting cli-stdio-roundtrip ''
kubectl wait --for=condition=Ready pod/reused pod/waiting --timeout=120s >/dev/null

# An instance serves several requests.
node=$(kubectl get pod reused -o jsonpath='{.spec.nodeName}')
started() { kubectl get --raw "/api/v1/nodes/$node/proxy/metrics" | sed -n 's/^coracle_instances_started_total{.*pod="reused".*} //p'; }
kubectl expose pod reused --port=80 --target-port=8080 >/dev/null
ip=$(kubectl get service reused -o jsonpath='{.spec.clusterIP}')
eventually 10 curl -fsS "http://$ip/"
before=$(started)
for _ in $(seq 20); do expect partial "$(curl -fsS "http://$ip/")" "a reused server's response"; done
made=$(($(started) - before))
[ "$made" -ge 3 ] && [ "$made" -le 5 ] || fail "20 requests, 5 by each instance: $made were made"

# Fuel ends a command between its waits.
kubectl wait --for=jsonpath='{.status.phase}'=Failed pod/starved --timeout=120s >/dev/null
expect "137 FuelExhausted" "$(kubectl get pod starved -o jsonpath='{.status.containerStatuses[0].state.terminated.exitCode} {.status.containerStatuses[0].state.terminated.reason}')" "the end of a command without fuel"

# A session's input reaches a command of 0.3, which writes it to both outputs.
printf 'Hello, world!' | kubectl exec -i waiting -- cli-stdio-roundtrip > "$WORK/out" 2> "$WORK/err" || fail "exec: $(cat "$WORK/err")"
expect "Hello, world!" "$(cat "$WORK/out")" "a session's output"
expect "Hello, world!" "$(cat "$WORK/err")" "a session's error output"

# Policies name imports of 0.3.
kubectl create namespace strict >/dev/null
eventually 20 kubectl get serviceaccount -n strict default
kubectl annotate namespace strict 'imports.coracle.dev/enforce=*,-wasi:http/types@0.3.0' >/dev/null
exits 1 kubectl -n strict run refused --image=registry.local/service:v1
grep -qF 'imports wasi:http/types@0.3.0' "$WORK/err" || fail "a refused import: $(cat "$WORK/err")"
down
echo PASS

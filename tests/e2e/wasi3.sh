#!/usr/bin/env bash
# Components of WASI 0.3 as pods: a server behind a Service and a command as a Job. The modules are the texts of
# wasm-node/runtime/src/engine/tests/service_guest.rs.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
MODULES=tests/e2e/wasi3

"$CORACLE" inspect $MODULES/service.wasm > "$WORK/inspected"
grep -q 'wasi:http/service@0.3.0' "$WORK/inspected" || fail "inspect of the service: $(cat "$WORK/inspected")"
"$CORACLE" inspect $MODULES/command.wasm > "$WORK/inspected"
grep -q 'wasi:cli/command@0.3.0' "$WORK/inspected" || fail "inspect of the command: $(cat "$WORK/inspected")"

up
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

# Policies name imports of 0.3.
kubectl create namespace strict >/dev/null
eventually 20 kubectl get serviceaccount -n strict default
kubectl annotate namespace strict 'imports.coracle.dev/enforce=*,-wasi:http/types@0.3.0' >/dev/null
exits 1 kubectl -n strict run refused --image=registry.local/service:v1
grep -qF 'imports wasi:http/types@0.3.0' "$WORK/err" || fail "a refused import: $(cat "$WORK/err")"
down
echo PASS

#!/usr/bin/env bash
# Requests that the API server proxies: pods/proxy, services/proxy, nodes/proxy, with every method, path and body, and upgrades.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

up
"$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/hello.wasm" registry.local/hello:v1 >/dev/null
"$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/unruly.wasm" registry.local/unruly:v1 >/dev/null
kubectl apply -f sample-workloads/manifests/hello.yaml >/dev/null
kubectl create deployment unruly --image=registry.local/unruly:v1 --port=8080 >/dev/null
kubectl expose deployment unruly --port=80 --target-port=8080 >/dev/null
kubectl rollout status deployment/hello --timeout=60s >/dev/null
kubectl rollout status deployment/unruly --timeout=60s >/dev/null
pod=$(kubectl get pods -l app=hello -o jsonpath='{.items[0].metadata.name}')
pods=/api/v1/namespaces/default/pods services=/api/v1/namespaces/default/services

expect "hello from $pod" "$(kubectl get --raw "$pods/$pod/proxy/")" "a pod's first port"
expect "hello from $pod" "$(kubectl get --raw "$pods/$pod:8080/proxy/")" "a pod's port by number"
for name in hello hello:80 http:hello:80; do has "^hello from hello-" kubectl get --raw "$services/$name/proxy/" || fail "service $name"; done
for _ in $(seq 40); do kubectl get --raw "$services/hello/proxy/"; done | sort -u > "$WORK/seen"
expect 2 "$(wc -l < "$WORK/seen")" "pods that answered for the Service"
echo "· a pod and a Service answer"

# no EXPECTED PATH…: upstream's rejection
no() { exits 1 kubectl get --raw "$2"; grep -qF -- "$1" "$WORK/err" || fail "$2: wanted '$1', got $(cat "$WORK/err")"; }
no 'invalid pod request "a:b:c:d"' "$pods/a:b:c:d/proxy/"
no 'pods "none" not found' "$pods/none/proxy/"
no 'services "none" not found' "$services/none/proxy/"
no 'services "none" not found' "$services/none:80/proxy/"
no 'no service port 81 found for service "hello"' "$services/hello:81/proxy/"
no 'no endpoints available for service "hello:web"' "$services/hello:web/proxy/"
no 'connect: connection refused' "$pods/$pod:99/proxy/"
no 'unknown port' "$pods/$pod:web/proxy/"
no 'error trying to reach service' "$pods/https:$pod:8080/proxy/"
no 'address not allowed' /api/v1/nodes/coracle-1:22/proxy/
no 'nodes "none" not found' /api/v1/nodes/none/proxy/
echo "· refusals are upstream's"

has 'kubelet_running_pods 3' kubectl get --raw /api/v1/nodes/coracle-1/proxy/metrics || fail "a kubelet's metrics"
expect ok "$(kubectl get --raw /api/v1/nodes/coracle-1/proxy/healthz)" "a kubelet's health"

kubectl create serviceaccount viewer >/dev/null
kubectl create role proxy-get --verb=get --resource=services/proxy --resource-name=hello:80 >/dev/null
kubectl create rolebinding proxy-get --role=proxy-get --serviceaccount=default:viewer >/dev/null
as=(--as=system:serviceaccount:default:viewer)
has '^hello from' kubectl get "${as[@]}" --raw "$services/hello:80/proxy/" || fail "a role that names service and port"
exits 1 kubectl get "${as[@]}" --raw "$services/hello/proxy/"
grep -q 'cannot get resource "services/proxy"' "$WORK/err" || fail "another name: $(cat "$WORK/err")"
exits 1 kubectl get "${as[@]}" --raw "/api/v1/nodes/coracle-1/proxy/metrics"
echo "· who may"

python3 "$(dirname "${BASH_SOURCE[0]}")/proxy.py" "$pod"
down
echo PASS

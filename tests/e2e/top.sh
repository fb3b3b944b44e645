#!/usr/bin/env bash
# metrics.k8s.io: kubectl top, with nothing added.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

up --nodes 2
for name in hello endless; do
  "$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/$name.wasm" "registry.local/$name:v1" >/dev/null
  kubectl apply -f "sample-workloads/manifests/$name.yaml" >/dev/null
done
kubectl rollout status deployment/hello deployment/endless --timeout=60s >/dev/null

eventually 30 has '^coracle-1 .*\n?' kubectl top node
eventually 30 has '^coracle-2 ' kubectl top node
expect 3 "$(kubectl top node | wc -l)" "lines of kubectl top node"
kubectl top node | awk 'NR > 1 { exit !($2 ~ /^[0-9]+m$/ && $3 ~ /^[0-9]+%$/ && $4 ~ /^[0-9]+Mi$/) }' || fail "kubectl top node: $(kubectl top node)"
echo "· nodes"

# Metrics of `pods` in custom.metrics.k8s.io are no second resource of that name: k9s would show it in place of the pods.
expect "" "$(kubectl api-resources --api-group=custom.metrics.k8s.io -o name)" "resources beside the metrics"
python3 - "$(kubectl get --raw /apis/custom.metrics.k8s.io/v1beta2)" "$(curl -fsS --cacert "$WORK/data/pki/ca.crt" -H "Authorization: Bearer $(kubectl create token default -n kube-system)" \
  -H 'Accept: application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList' "$(kubectl config view -o jsonpath='{.clusters[0].cluster.server}')/apis")" <<'PY' || fail "discovery of metrics"
import json, sys
names = [each["name"] for each in json.loads(sys.argv[1])["resources"]]
assert names and all("/" in name for name in names), names
[group] = [each for each in json.loads(sys.argv[2])["items"] if each["metadata"]["name"] == "custom.metrics.k8s.io"]
for each in group["versions"][0]["resources"]:
    assert each["responseKind"] == {"group": "", "version": "", "kind": ""} and each["subresources"], each
PY
echo "· discovery"

three() { [ "$(kubectl top pod --no-headers 2>/dev/null | wc -l)" = 3 ]; }
eventually 30 three
expect 2 "$(kubectl top pod -l app=hello --no-headers | wc -l)" "pods of a label"
expect 3 "$(kubectl top pod -A --no-headers | wc -l)" "pods of all namespaces"
pod=$(kubectl get pods -l app=hello -o jsonpath='{.items[0].metadata.name}')
has "^$pod +hello +[0-9]+m +[0-9]+Mi" kubectl top pod "$pod" --containers || fail "one pod's containers"
exits 1 kubectl top pod none
grep -q 'NotFound\|not found' "$WORK/err" || fail "a pod that isn't there: $(cat "$WORK/err")"
echo "· pods"

# A looping pod with half a core shows the usage that its limit allows.
kubectl set resources deployment/endless --limits=cpu=500m >/dev/null
kubectl rollout status deployment/endless --timeout=60s >/dev/null
endless=$(kubectl get service endless -o jsonpath='{.spec.clusterIP}')
curl -s -m 60 "http://$endless/loop" >/dev/null & looping=$!
busy() { local use; use=$(kubectl top pod -l app=endless --no-headers | awk '{ print $2 }'); [ "${use%m}" -gt 100 ] && [ "${use%m}" -lt 700 ]; }
eventually 60 busy
kill "$looping" 2>/dev/null || true
echo "· a loop is seen, as long as its limit lets it"

expect "nodes pods" "$(kubectl get --raw /apis/metrics.k8s.io/v1beta1 | python3 -c 'import json,sys; print(*sorted(r["name"] for r in json.load(sys.stdin)["resources"]))')" "resources"
exits 1 kubectl delete --raw "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods/$pod"
grep -q 'MethodNotAllowed\|does not allow this method' "$WORK/err" || fail "a delete: $(cat "$WORK/err")"
kubectl create serviceaccount viewer >/dev/null
exits 1 kubectl top pod --as=system:serviceaccount:default:viewer
grep -q 'cannot list resource "pods" in API group "metrics.k8s.io"' "$WORK/err" || fail "without rights: $(cat "$WORK/err")"
has 'Cores in use' kubectl explain pods.containers.usage --api-version=metrics.k8s.io/v1beta1 || fail "kubectl explain"
echo "· verbs, rights, descriptions"
down
echo PASS

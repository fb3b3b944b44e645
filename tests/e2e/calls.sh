#!/usr/bin/env bash
# Measurements of responses: by status class and duration in each node's metrics; rates, errors, durations and callers as custom
# metrics of pods and Services; who may read them; a crowd of callers; the store's metrics.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

up --nodes 2
for name in trap toolbox greeter; do
  "$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/$name.wasm" "registry.local/$name:v1" >/dev/null
done
kubectl create namespace blue >/dev/null
kubectl -n blue apply -f sample-workloads/manifests/trap.yaml -f sample-workloads/manifests/greeter.yaml >/dev/null
kubectl -n blue scale deployment trap --replicas=2 >/dev/null
kubectl -n blue create service clusterip nobody --tcp=80 >/dev/null
kubectl -n blue run caller --image=registry.local/toolbox:v1 --command -- sleep 3600 >/dev/null
kubectl -n blue rollout status deployment/trap deployment/greeter --timeout=120s >/dev/null
kubectl -n blue wait --for=condition=Ready pod/caller --timeout=60s >/dev/null
trap=$(kubectl -n blue get service trap -o jsonpath='{.spec.clusterIP}')
pod=$(kubectl -n blue get pods -l app=trap -o jsonpath='{.items[0].metadata.name}')
ip=$(kubectl -n blue get pod "$pod" -o jsonpath='{.status.podIP}')

# 30 calls of a pod through the Service, half of them fail; 8 of this process through the Service; 4 through the API server and 3
# of the pod to a pod's own address, not the Service's.
# shellcheck disable=SC2016
kubectl -n blue exec caller -- sh -c 'i=0; while [ $i -lt 15 ]; do wget -q -O /dev/null http://trap/; wget -q -O /dev/null http://trap/trap; i=$((i+1)); done; true' >/dev/null 2>&1
for _ in 1 2 3 4 5 6 7 8; do curl -fsS -m 20 -o /dev/null "http://$trap/"; done
for _ in 1 2 3 4; do kubectl get --raw /api/v1/namespaces/blue/services/trap:80/proxy/ >/dev/null; done
kubectl -n blue exec caller -- sh -c "for i in 1 2 3; do wget -q -O /dev/null http://$ip:8080/; done"
greeter=$(kubectl -n blue get service greeter -o jsonpath='{.spec.clusterIP}')
expect 404 "$(curl -s -m 20 -o /dev/null -w '%{http_code}' -X POST "http://$greeter/no-such")" "a function that is not there"

cat > "$WORK/metrics.py" <<'PY'
"""sums NAME PATTERN…: the sum of a metric's samples with these texts, over both nodes"""
import subprocess, sys
total = 0.0
for node in ("coracle-1", "coracle-2"):
    text = subprocess.check_output(["kubectl", "get", "--raw", f"/api/v1/nodes/{node}/proxy/metrics"], text=True)
    for line in text.splitlines():
        if line.startswith(sys.argv[1] + "{") and all(part in line for part in sys.argv[2:]):
            total += float(line.rsplit(" ", 1)[1])
print(round(total, 6))
PY
sums() { python3 "$WORK/metrics.py" "$@"; }
expect 30.0 "$(sums coracle_responses_total 'container="trap"' 'code="2xx"')" "responses without the node's probes"
expect 15.0 "$(sums coracle_responses_total 'container="trap"' 'code="5xx"')" "failed responses"
expect 1.0 "$(sums coracle_responses_total 'container="greeter"' 'code="4xx"')" "a plugin's responses"
expect 45.0 "$(sums coracle_request_duration_seconds_count 'container="trap"')" "durations"
expect 45.0 "$(sums coracle_request_duration_seconds_bucket 'container="trap"' 'le="+Inf"')" "durations in buckets"
python3 -c 'import sys; assert 0 < float(sys.argv[1]) < 60' "$(sums coracle_request_duration_seconds_sum 'container="trap"')" || fail "the sum of durations"
echo "· responses by class and duration"

cat > "$WORK/values.py" <<'PY'
"""values PATH: each value of a list: its object, caller, value in millionths, and window"""
import json, subprocess, sys
UNITS = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3}
out = subprocess.check_output(["kubectl", "get", "--raw", "/apis/custom.metrics.k8s.io/v1beta2/namespaces/blue/" + sys.argv[1]])
for item in json.loads(out)["items"]:
    value, labels = item["value"], (item["metric"]["selector"] or {}).get("matchLabels", {})
    number = float(value[:-1]) * UNITS[value[-1]] if value[-1] in UNITS else float(value)
    caller = labels and labels["caller-namespace"] + "/" + labels["caller-pod"] or "-"
    print(item["describedObject"]["name"], caller, round(number * 1e6), item["windowSeconds"])
PY
values() { python3 "$WORK/values.py" "$@"; }
# The same calls on and on: half of those of the pod fail, and none of the host's.
kubectl -n blue exec caller -- sh -c 'while true; do wget -q -O /dev/null http://trap/; wget -q -O /dev/null http://trap/trap; sleep 0.1; done' >/dev/null 2>&1 & loader=$!
( while [ -d "$WORK" ] && [ ! -e "$WORK/enough" ]; do curl -s -m 20 -o /dev/null "http://$trap/" || true; sleep 0.1; done ) & asker=$!
cat > "$WORK/ratios.py" <<'PY'
"""exits 0 if the callers and their errors in the files are as expected"""
import sys
def read(name):
    rows = [line.split() for line in open(f"{sys.argv[1]}/{name}")]
    return {row[1]: int(row[2]) for row in rows}
calls, errors = read("calls"), read("errors")
expected = set(calls) == set(errors) == {"-", "blue/caller"} and min(calls.values()) > 0
sys.exit(not (expected and 0.4 < errors["blue/caller"] / calls["blue/caller"] < 0.6 and errors["-"] == 0))
PY
called() {
  values services/trap/http_calls_per_second > "$WORK/calls" && values services/trap/http_call_errors_per_second > "$WORK/errors" &&
    python3 "$WORK/ratios.py" "$WORK"
}
eventually 60 called
expect 1 "$(values 'services/trap/http_calls_per_second?metricLabelSelector=caller-pod%3Dcaller' | wc -l)" "calls of one caller"
expect 1 "$(values 'services/trap/http_calls_per_second?metricLabelSelector=%21caller-pod' | wc -l)" "calls from outside of pods"
expect 2 "$(values services/trap/http_call_duration_p50_seconds | awk '$3 > 0' | wc -l)" "durations by caller"
echo "· calls by caller"

both() { [ "$(values "pods/%2A/http_errors_per_second?labelSelector=app%3Dtrap" | awk '$3 > 0' | wc -l)" = 2 ]; }
eventually 60 both
for metric in http_requests_per_second http_errors_per_second http_request_duration_p50_seconds http_request_duration_p99_seconds; do
  expect 2 "$(values "pods/%2A/$metric?labelSelector=app%3Dtrap" | awk '$3 > 0' | wc -l)" "pods with $metric"
  expect 1 "$(values "services/%2A/$metric?labelSelector=app%3Dtrap" | awk '$3 > 0' | wc -l)" "Services with $metric"
done
expect trap "$(values 'services/%2A/http_calls_per_second' | awk '$2 == "blue/caller" { print $1 }')" "called Services"
[ "$(values services/trap/http_request_duration_p99_seconds | awk '{ print $3 }')" -ge "$(values services/trap/http_request_duration_p50_seconds | awk '{ print $3 }')" ] || fail "p99 below p50"
expect 0 "$(values services/nobody/http_requests_per_second | awk '{ print $3 }')" "requests of a Service without any"
for path in services/nobody/http_request_duration_p99_seconds services/nobody/http_calls_per_second services/no-such/http_calls_per_second pods/caller/http_request_duration_p50_seconds "pods/$pod/http_calls_per_second"; do
  exits 1 kubectl get --raw "/apis/custom.metrics.k8s.io/v1beta2/namespaces/blue/$path"
  grep -q 'NotFound\|not find' "$WORK/err" || fail "$path: $(cat "$WORK/err")"
done
echo "· pods and Services"

kubectl -n blue create serviceaccount viewer >/dev/null
kubectl -n blue create rolebinding viewer --clusterrole=view --serviceaccount=blue:viewer >/dev/null
as() { kubectl "$@" --as=system:serviceaccount:blue:viewer; }
custom=/apis/custom.metrics.k8s.io/v1beta2/namespaces
eventually 30 as get --raw "$custom/blue/services/%2A/http_calls_per_second"
eventually 30 as get --raw "$custom/blue/pods/%2A/http_requests_per_second"
eventually 30 as top pod -n blue
exits 1 as get --raw "$custom/default/pods/%2A/http_requests_per_second"
grep -q 'cannot get resource' "$WORK/err" || fail "another namespace: $(cat "$WORK/err")"
exits 1 as top pod -n default
echo "· a viewer of a namespace reads its metrics, and no others"

touch "$WORK/enough"; wait "$asker"
kill "$loader" 2>/dev/null || true
wait "$loader" || true
# A crowd: more callers than a node counts separately. All their calls are counted.
kubectl -n blue scale deployment trap --replicas=1 >/dev/null
kubectl -n blue create deployment crowd --replicas=80 --image=registry.local/toolbox:v1 -- sh -c 'while true; do wget -q -O /dev/null http://trap/; sleep 3; done' >/dev/null
crowded() { [ "$(values services/trap/http_calls_per_second | awk '$2 == "/other" && $3 > 0' | wc -l)" = 1 ]; }
eventually 240 crowded
[ "$(values services/trap/http_calls_per_second | wc -l)" -le 65 ] || fail "callers: $(values services/trap/http_calls_per_second | wc -l)"
kubectl -n blue delete deployment crowd --wait=false >/dev/null
kubectl -n blue delete pod caller --wait=false >/dev/null
uncrowded() { ! values services/trap/http_calls_per_second > "$WORK/left" 2>/dev/null || [ ! -s "$WORK/left" ]; }
eventually 180 uncrowded
echo "· a crowd of callers is bounded, and forgotten"

kubectl get --raw /metrics > "$WORK/page"
for line in '^apiserver_storage_objects\{resource="deployments.apps"\} [1-9]' '^apiserver_resource_objects\{group="",resource="pods"\} [1-9]' \
  '^apiserver_storage_size_bytes\{storage_cluster_id="embedded"\} [1-9]' '^coracle_store_log_bytes [1-9]' \
  '^coracle_store_commit_duration_seconds_count [1-9]' '^coracle_store_commit_duration_seconds_bucket\{le="\+Inf"\} [1-9]'; do
  grep -qE "$line" "$WORK/page" || fail "no line $line: $(grep -E 'store|storage_|resource_objects' "$WORK/page" | head -20)"
done
grep -q '_objects{.*resource="events' "$WORK/page" || fail "events are not counted"
echo "· the store"
down
echo PASS

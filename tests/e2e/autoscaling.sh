#!/usr/bin/env bash
# HorizontalPodAutoscalers: a module scales by its traffic, to zero and back with no lost request.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

up --nodes 2 --horizontal-pod-autoscaler-sync-period 2s --horizontal-pod-autoscaler-downscale-stabilization 4s
"$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/hello.wasm" registry.local/hello:v1 >/dev/null
kubectl apply -f sample-workloads/manifests/hello.yaml >/dev/null
kubectl rollout status deployment/hello --timeout=300s >/dev/null
hello=$(kubectl get service hello -o jsonpath='{.spec.clusterIP}')
size() { [ "$(kubectl get deployment hello -o jsonpath='{.spec.replicas}')" = "$1" ]; }

# Missing measurements are reported: hello has no CPU request.
kubectl autoscale deployment hello --cpu-percent=50 --min=1 --max=3 >/dev/null
eventually 60 has 'missing request for cpu in container hello of Pod hello-' kubectl describe hpa hello
eventually 60 has 'FailedGetResourceMetric' kubectl describe hpa hello
eventually 60 has '^hello +Deployment/hello +cpu: <unknown>/50% +1 +3 +2 ' kubectl get hpa
kubectl delete hpa hello >/dev/null
echo "· a metric that is missing is told"

kubectl apply -f - >/dev/null <<'YAML'
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: hello}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: hello}
  minReplicas: 1
  maxReplicas: 3
  metrics:
    - type: Pods
      pods: {metric: {name: http_requests_per_second}, target: {type: AverageValue, averageValue: "1"}}
YAML
asking() { while [ ! -e "$WORK/enough" ]; do curl -s -m 60 -o /dev/null "http://$hello/" || true; done; }
# Several, as one alone may have less than the target on a busy machine.
askers=(); for n in 1 2 3 4; do asking & askers+=($!); done
eventually 180 size 3
touch "$WORK/enough"; wait "${askers[@]}"
eventually 180 size 1
eventually 30 has 'SuccessfulRescale' kubectl describe hpa hello
echo "· up by its traffic, and down without"

kubectl delete hpa hello >/dev/null
kubectl apply -f - >/dev/null <<'YAML'
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: hello}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: hello}
  minReplicas: 0
  maxReplicas: 3
  metrics:
    - type: Object
      object:
        describedObject: {apiVersion: v1, kind: Service, name: hello}
        metric: {name: http_requests_per_second}
        target: {type: AverageValue, averageValue: "50"}
YAML
none() { local pods; pods=$(kubectl get pods -l app=hello -o name) && [ -z "$pods" ]; }
for round in one two; do
  eventually 180 none
  eventually 30 has 'ScaledToZero +True' kubectl describe hpa hello
  askers=()
  for n in 1 2 3 4 5; do curl -s -m 240 -o "$WORK/$round-$n" -w '%{http_code}' "http://$hello/" >"$WORK/$round-$n.code" & askers+=($!); done
  for asker in "${askers[@]}"; do wait "$asker" || fail "a request was lost"; done
  for n in 1 2 3 4 5; do expect 200 "$(cat "$WORK/$round-$n.code")" "answer $n of round $round"; done
done
eventually 30 has 'ScaledToZero +False' kubectl describe hpa hello
echo "· to zero and back, no request lost"

pod_metrics="fuel_per_second http_errors_per_second http_request_duration_p50_seconds http_request_duration_p99_seconds http_requests_per_second"
call_metrics="http_call_duration_p50_seconds http_call_errors_per_second http_calls_per_second"
# shellcheck disable=SC2086
expect "$({ printf 'pods/%s\n' $pod_metrics; printf 'services/%s\n' $pod_metrics $call_metrics; } | LC_ALL=C sort | xargs)" \
  "$(kubectl get --raw /apis/custom.metrics.k8s.io/v1beta2 | python3 -c 'import json,sys; print(*sorted(r["name"] for r in json.load(sys.stdin)["resources"] if "/" in r["name"]))')" "metrics"
exits 1 kubectl get --raw /apis/custom.metrics.k8s.io/v1beta2/namespaces/default/pods/%2A/nope
has 'the server could not find the metric nope for pods' cat "$WORK/err" || fail "an unknown metric: $(cat "$WORK/err")"
echo "· metrics by name"

# A workload that never gets a pod: its clients affect no other client.
kubectl apply -f - >/dev/null <<'YAML'
apiVersion: apps/v1
kind: Deployment
metadata: {name: never}
spec:
  replicas: 1
  selector: {matchLabels: {app: never}}
  template:
    metadata: {labels: {app: never}}
    spec: {containers: [{name: never, image: registry.local/nowhere:v1}]}
---
apiVersion: v1
kind: Service
metadata: {name: never}
spec: {selector: {app: never}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: never}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: never}
  minReplicas: 0
  maxReplicas: 2
  metrics:
    - type: Object
      object:
        describedObject: {apiVersion: v1, kind: Service, name: never}
        metric: {name: http_requests_per_second}
        target: {type: AverageValue, averageValue: "50"}
YAML
never=$(kubectl get service never -o jsonpath='{.spec.clusterIP}')
kubectl delete hpa hello >/dev/null
kubectl scale deployment hello --replicas=1 >/dev/null
kubectl rollout status deployment/hello --timeout=300s >/dev/null
holds() { local rc=0; curl -s -m 2 -o /dev/null "http://$never/" || rc=$?; [ $rc = 28 ]; }
eventually 120 holds
python3 tests/e2e/waiting.py "$never:80" "$hello" kubectl delete service never || fail "hostile clients of a workload at zero"
echo "· ten thousand requests for what never comes, answered, and a neighbour served"
down
echo PASS

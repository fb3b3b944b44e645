#!/usr/bin/env bash
# Graceful shutdown of nodes: pods end in order and with their hooks, and their end is reported before the process ends.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

up --shutdown-grace-period 20 --shutdown-grace-period-critical-pods 8
"$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/hello.wasm" registry.local/hello:v1 >/dev/null
pod() {
  cat <<YAML | kubectl apply -f - >/dev/null
{apiVersion: v1, kind: Pod, metadata: {name: $1, namespace: kube-system}, spec: {terminationGracePeriodSeconds: $2, priorityClassName: ${3:-}, containers: [{name: c, image: "registry.local/hello:v1",
  ports: [{containerPort: 80}], lifecycle: {preStop: {sleep: {seconds: 1}}}}]}}
YAML
  kubectl wait -n kube-system --for=condition=Ready "pod/$1" --timeout=60s >/dev/null || fail "pod $1 is not ready"
}
pod plain 5 '""'
pod critical 5 system-node-critical
down
up --shutdown-grace-period 20 --shutdown-grace-period-critical-pods 8
of() { kubectl get pod -n kube-system "$1" -o jsonpath="{$2}"; }
for name in plain critical; do
  expect "Failed Terminated" "$(of $name '.status.phase} {.status.reason')" "$name"
  expect "Pod was terminated in response to imminent node shutdown." "$(of $name .status.message)" "what is said of $name"
  expect "TerminationByKubelet" "$(of $name '.status.conditions[?(@.type=="DisruptionTarget")].reason')" "its condition"
done
ended() { date -d "$(of "$1" '.status.containerStatuses[0].state.terminated.finishedAt')" +%s; }
[ "$(ended plain)" -le "$(ended critical)" ] || fail "the critical pod went first"
[ "$(kubectl get node coracle-1 -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}')" = True ] || fail "the node is not Ready again"
echo "· pods end with their node, the critical ones last"
down
up
kubectl run -n kube-system on --image=registry.local/hello:v1 >/dev/null
kubectl wait -n kube-system --for=condition=Ready pod/on --timeout=60s >/dev/null
down
up
kubectl wait -n kube-system --for=condition=Ready pod/on --timeout=60s >/dev/null
expect "1" "$(of on '.status.containerStatuses[0].restartCount')" "without it the next start takes it up"
down
echo PASS

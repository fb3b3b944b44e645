#!/usr/bin/env bash
# A StatefulSet's pod whose node is gone with its volume: it waits for its node, returns with its data, or is recreated on another
# node when claim and pod are deleted. A cluster that starts with one node fewer has lost one.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

up --nodes 2 --fast-failover
"$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/hello.wasm" registry.local/hello:v1 >/dev/null
is() { [ "$(kubectl get "$1" -o jsonpath="$2")" = "$3" ]; }
gone() { [ -z "$(kubectl get "$1" --ignore-not-found -o name)" ]; }
on() { is pod/db-0 '{.spec.nodeName} {.status.conditions[?(@.type=="Ready")].status}' "$1 True"; }
unreachable() { has 'node.kubernetes.io/unreachable' kubectl get node coracle-2 -o jsonpath='{.spec.taints}'; }
# Volumes are inspected from outside: a session would wait for the compilation of its tools.
folders() { find "$WORK/data" -path "*/volumes/*/data${1-/kept}"; }

kubectl cordon coracle-1 >/dev/null
kubectl apply -f - >/dev/null <<'YAML'
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: c, image: "registry.local/hello:v1", volumeMounts: [{name: data, mountPath: /data}]}]
  volumeClaimTemplates: [{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}]
YAML
eventually 120 on coracle-2
echo safe > "$(folders '')/kept"
kubectl uncordon coracle-1 >/dev/null
uid=$(kubectl get pod db-0 -o jsonpath='{.metadata.uid}')
volume=$(kubectl get pvc data-db-0 -o jsonpath='{.spec.volumeName}')

down KILL
up --nodes 1 --fast-failover
eventually 120 unreachable
eventually 120 has Terminating kubectl get pod db-0
expect "$uid" "$(kubectl get pod db-0 -o jsonpath='{.metadata.uid}')" "the pod whose end nobody has seen"
echo "· nobody takes the place of a pod that may still run on a node which nobody hears of"

kubectl delete pod db-0 --force --grace-period=0 >/dev/null 2>&1
another() { local now; now=$(kubectl get pod db-0 -o jsonpath='{.metadata.uid}') && [ -n "$now" ] && [ "$now" != "$uid" ]; }
eventually 120 another
eventually 120 has "FailedScheduling .*1 node\(s\) didn't match PersistentVolume's node affinity" kubectl describe pod db-0
is pvc/data-db-0 '{.status.phase} {.spec.volumeName}' "Bound $volume" || fail "the claim lost its volume"
down
up --nodes 2 --fast-failover
eventually 120 on coracle-2
expect "safe coracle-2 $volume" "$(cat "$(folders)") $(folders | grep -o 'coracle-[12]') $(kubectl get pvc data-db-0 -o jsonpath='{.spec.volumeName}')" "what it kept on its node"
echo "· it waits for its node, and comes back with its data"

uid=$(kubectl get pod db-0 -o jsonpath='{.metadata.uid}')
down KILL
up --nodes 1 --fast-failover
eventually 120 unreachable
kubectl delete pvc data-db-0 --wait=false >/dev/null
kubectl delete pod db-0 --force --grace-period=0 >/dev/null 2>&1
elsewhere() { on coracle-1 && another && ! is pvc/data-db-0 '{.spec.volumeName}' "$volume"; }
eventually 90 elsewhere
expect 2 "$(folders '' | grep -c .)" "volumes on the disk"
expect 1 "$(folders | grep -c .)" "volumes with what was written: the new one is empty"
[ -n "$(folders)" ] && ! gone "pv/$volume" || fail "the volume of a node that nobody hears of is said to be removed"
echo "· claim and pod given up together have a new place"

down
up --nodes 2 --fast-failover
eventually 120 gone "pv/$volume"
expect "" "$(folders)" "what the node that is back still holds of it"
eventually 120 on coracle-1
echo "· what was given up goes when its node is back"
down
echo PASS

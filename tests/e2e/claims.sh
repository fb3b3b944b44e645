#!/usr/bin/env bash
# Claims of StatefulSets by their retention policy, the protection of claims in use, and manually created volumes.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

mkdir -p "$WORK/disk"
up --allow-host-path "$WORK/disk"
"$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/hello.wasm" registry.local/hello:v1 >/dev/null

is() { [ "$(kubectl get "$1" -o jsonpath="$2")" = "$3" ]; }
gone() { [ -z "$(kubectl get "$1" --ignore-not-found -o name)" ]; }
# db REPLICAS WHEN-SCALED WHEN-DELETED
db() {
  kubectl apply -f - >/dev/null <<YAML
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: $1
  selector: {matchLabels: {app: db}}
  persistentVolumeClaimRetentionPolicy: {whenScaled: $2, whenDeleted: $3}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: c
        image: registry.local/hello:v1
        env: [{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
        volumeMounts: [{name: data, mountPath: /data, subPathExpr: of/\$(NAME)}]
  volumeClaimTemplates: [{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}]
YAML
}
folders() { find "$WORK/data" -path '*/volumes/*/data/of/*' -printf '%f\n' | sort | tr '\n' ' '; }
has_folders() { [ "$(folders)" = "$1" ]; }
owner='{range .metadata.ownerReferences[*]}{.kind} {.controller},{end}'

db 2 Delete Delete
kubectl rollout status statefulset/db --timeout=180s >/dev/null
expect "db-0 db-1 " "$(folders)" "what lies in the volumes"
for claim in data-db-0 data-db-1; do eventually 60 is "pvc/$claim" "$owner" 'StatefulSet true,'; done
kubectl scale statefulset db --replicas=1 >/dev/null
eventually 120 gone pvc/data-db-1
eventually 120 has_folders "db-0 "
kubectl patch statefulset db -p '{"spec":{"persistentVolumeClaimRetentionPolicy":{"whenDeleted":"Retain"}}}' >/dev/null
eventually 60 is pvc/data-db-0 "$owner" ''
uid=$(kubectl get pvc data-db-0 -o jsonpath='{.metadata.uid}')
kubectl delete statefulset db --timeout=60s >/dev/null
eventually 60 gone pod/db-0
db 1 Retain Delete
kubectl rollout status statefulset/db --timeout=180s >/dev/null
expect "$uid" "$(kubectl get pvc data-db-0 -o jsonpath='{.metadata.uid}')" "the claim that was kept"
eventually 60 is pvc/data-db-0 "$owner" 'StatefulSet true,'
echo "· a set's claims go and stay by its policy"

volume=$(kubectl get pvc data-db-0 -o jsonpath='{.spec.volumeName}')
kubectl delete pvc data-db-0 --wait=false >/dev/null
kubectl delete pv "$volume" --wait=false >/dev/null
eventually 60 has Terminating kubectl get pvc data-db-0
has pvc-protection kubectl get pvc data-db-0 -o jsonpath='{.metadata.finalizers}' || fail "nothing protects the claim"
has pv-protection kubectl get pv "$volume" -o jsonpath='{.metadata.finalizers}' || fail "nothing protects the volume"
expect "Running Bound" "$(kubectl get pod db-0 -o jsonpath='{.status.phase}') $(kubectl get pv "$volume" -o jsonpath='{.status.phase}')" "the pod that uses them"
kubectl delete statefulset db --timeout=60s >/dev/null
eventually 120 gone pvc/data-db-0
eventually 120 gone "pv/$volume"
eventually 120 has_folders ""
echo "· what is used goes after its last user"

for name in one two; do
  kubectl apply -f - >/dev/null <<YAML
apiVersion: v1
kind: PersistentVolume
metadata: {name: $name, labels: {disk: $name}}
spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], storageClassName: hand, hostPath: {path: $WORK/disk}}
YAML
done
# by NAME FIELDS
by() {
  kubectl apply -f - >/dev/null <<YAML
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: $1}
spec: {accessModes: [ReadWriteOnce], storageClassName: hand, resources: {requests: {storage: 1Gi}}, $2}
YAML
}
by selects 'selector: {matchLabels: {disk: two}}'
eventually 60 is pvc/selects '{.status.phase} {.spec.volumeName}' 'Bound two'
by names 'volumeName: two'
eventually 60 has 'FailedBinding .*volume "two" already bound to a different claim' kubectl get events --field-selector involvedObject.name=names
by device 'volumeMode: Block, volumeName: one'
eventually 60 has 'VolumeMismatch .*incompatible volumeMode' kubectl get events --field-selector involvedObject.name=device
kubectl delete pvc selects --timeout=60s >/dev/null
eventually 60 is pv/two '{.status.phase}' Released
is pvc/names '{.status.phase}' Pending || fail "a volume that was let go is another one's, which nobody said"
echo "· volumes made by hand are chosen, named and refused"
down
echo PASS

#!/usr/bin/env bash
# Volumes that outlive pods: binding, creation, persistence, growth, deletion; and a full one affects no other.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

mkdir -p "$WORK/disk"
up --nodes 2 --allow-host-path "$WORK/disk"
for name in toolbox hello; do
  "$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/$name.wasm" "registry.local/$name:v1" >/dev/null
done

# claim NAME SIZE [FIELDS]
claim() {
  kubectl apply -f - >/dev/null <<YAML
{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: $1}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: $2}}${3:+, $3}}}
YAML
}
# pod NAME VOLUME SCRIPT: runs a script with a volume at /data, to its end
pod() {
  kubectl apply -f - >/dev/null <<YAML
{apiVersion: v1, kind: Pod, metadata: {name: $1}, spec: {restartPolicy: Never, terminationGracePeriodSeconds: 0, volumes: [{name: data, $2}],
  containers: [{name: c, image: "registry.local/toolbox:v1", command: [sh, -c, "$3"], volumeMounts: [{name: data, mountPath: /data}]}]}}
YAML
}
of() { echo "persistentVolumeClaim: {claimName: $1}"; }
ended() { kubectl wait --for=jsonpath='{.status.phase}'=Succeeded "pod/$1" --timeout=120s >/dev/null || fail "pod $1: $(kubectl describe pod "$1" | tail -n 12)"; }
is() { [ "$(kubectl get "$1" -o jsonpath="$2")" = "$3" ]; }
gone() { [ -z "$(kubectl get "$1" --ignore-not-found -o name)" ]; }

expect "local.coracle.dev true" "$(kubectl get storageclass local -o jsonpath='{.provisioner} {.allowVolumeExpansion}')" "the class of a new cluster"
claim one 1Mi
eventually 60 has 'WaitForFirstConsumer' kubectl get events --field-selector involvedObject.name=one
is pvc/one '{.status.phase}' Pending || fail "a claim is bound before its pod comes"
pod write "$(of one)" 'echo kept > /data/file'
ended write
eventually 60 is pvc/one '{.status.phase}' Bound
has 'ProvisioningSucceeded' kubectl get events --field-selector involvedObject.name=one || fail "nothing tells that the volume was made"
volume=$(kubectl get pvc one -o jsonpath='{.spec.volumeName}')
expect "Bound 1Mi" "$(kubectl get pv "$volume" -o jsonpath='{.status.phase} {.spec.capacity.storage}')" "its volume"
echo "· made where its pod runs"

kubectl delete pod write --wait --timeout=60s >/dev/null
down KILL
up --nodes 2 --allow-host-path "$WORK/disk"
pod read "$(of one)" 'cat /data/file'
ended read
expect kept "$(kubectl logs read)" "what a volume holds after kill -9"
node=$(kubectl get pod read -o jsonpath='{.spec.nodeName}')
file=$(find "$WORK/data" -path '*/volumes/*/data/file')
expect 1 "$(grep -c . <<< "$file")" "places of its file"
grep "$node" <<< "$file" >/dev/null || fail "$file is not on $node"
echo "· outlives its pods and the process"

kubectl delete pod read --wait --timeout=60s >/dev/null
kubectl apply -f - >/dev/null <<YAML
{apiVersion: v1, kind: Pod, metadata: {name: full}, spec: {terminationGracePeriodSeconds: 0, volumes: [{name: data, $(of one)}],
  containers: [{name: c, image: "registry.local/hello:v1", volumeMounts: [{name: data, mountPath: /data}]}]}}
YAML
kubectl wait --for=condition=Ready pod/full --timeout=120s >/dev/null || fail "pod full: $(kubectl describe pod full | tail -n 12)"
head -c 262144 /dev/zero > "$WORK/quarter"
write() { kubectl exec -i full -- sh -c "cat > /data/$1" < "$WORK/quarter" 2>&1; }
n=0; while [ $n -lt 9 ] && write $((n + 1)) >/dev/null; do n=$((n + 1)); done
[ $n -ge 2 ] && [ $n -le 4 ] || fail "$n files of 256 KiB fit into 1 MiB"
claim two 1Mi
pod beside "$(of two)" 'echo fine > /data/file; cat /data/file'
ended beside
expect fine "$(kubectl logs beside)" "another claim beside a full one"
kubectl exec full -- sh -c 'rm /data/1 /data/2' || fail "nothing can be removed from a full volume"
eventually 30 write again
is pod/full '{.status.phase} {.status.containerStatuses[0].restartCount}' "Running 0" || fail "the pod did not go on"
kubectl exec full -- sh -c 'rm -f /data/2 /data/3 /data/4' || fail "nothing can be removed"
# The usual replacement of files: the space of the old ones is freed.
kubectl exec full -- sh -c 'for n in 1 2 3 4 5 6 7 8 9; do cp /data/again /data/tmp && mv /data/tmp /data/kept || exit 1; done' ||
  fail "a file that is replaced again and again does not fit beside itself"
kubectl exec full -- sh -c 'for n in 1 2 3; do cp /data/again "/data/more-$n" || exit 0; done; exit 1' >/dev/null 2>&1 || fail "the volume has no end any more"
echo "· a claim that fills harms no other"

kubectl patch pvc one -p '{"spec":{"resources":{"requests":{"storage":"2Mi"}}}}' >/dev/null
eventually 60 write grown
eventually 60 is pvc/one '{.status.capacity.storage}' 2Mi
is pod/full '{.status.containerStatuses[0].restartCount}' 0 || fail "a pod was started anew for its claim's size"
echo "· grows while a pod writes"

kubectl patch pvc two -p '{"spec":{"resources":{"requests":{"storage":"3Mi"}}}}' >/dev/null
eventually 60 is pvc/two '{.status.capacity.storage}' 3Mi
eventually 60 is pvc/two '{.status.conditions[*].type}' ''
expect 3Mi "$(kubectl get pv "$(kubectl get pvc two -o jsonpath='{.spec.volumeName}')" -o jsonpath='{.spec.capacity.storage}')" "the volume's new size"
echo "· grows"

kubectl apply -f - >/dev/null <<YAML
{apiVersion: v1, kind: Pod, metadata: {name: alone}, spec: {terminationGracePeriodSeconds: 0, volumes: [{name: data, $(of two)}],
  containers: [{name: c, image: "registry.local/hello:v1", volumeMounts: [{name: data, mountPath: /etc/app/file, subPath: file}]}]}}
YAML
eventually 60 has "/etc/app/file is a single file of a claim's volume: mount it read-only, or the folder" kubectl describe pod alone
echo "· what is written to a single file could not be counted, and is refused"

kubectl delete storageclass local >/dev/null
exits 1 kubectl patch pvc one -p '{"spec":{"resources":{"requests":{"storage":"3Mi"}}}}'
has 'only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize' cat "$WORK/err" || fail "$(cat "$WORK/err")"
claim orphan 1Mi 'storageClassName: local'
eventually 60 has 'ProvisioningFailed .*storageclass.storage.k8s.io "local" not found' kubectl get events --field-selector involvedObject.name=orphan
kubectl delete pvc orphan --timeout=60s >/dev/null
kubectl exec full -- cat /data/kept >/dev/null || fail "a claim's volume went with its class"
echo "· claims outlive their class, and no new one is made for it"

kubectl delete pod --all --wait --timeout=60s >/dev/null
kept=$(kubectl get pvc two -o jsonpath='{.spec.volumeName}')
kubectl patch pv "$kept" -p '{"spec":{"persistentVolumeReclaimPolicy":"Retain"}}' >/dev/null
kubectl delete pvc one two --wait --timeout=60s >/dev/null
eventually 60 gone "pv/$volume"
[ ! -e "$file" ] || fail "$file outlives its volume"
eventually 60 is "pv/$kept" '{.status.phase}' Released
[ -n "$(find "$WORK/data" -path '*/volumes/*/data/file')" ] || fail "what was to be kept is gone"
echo "· Delete removes what a volume holds, Retain keeps it"

kubectl apply -f - >/dev/null <<YAML
{apiVersion: v1, kind: PersistentVolume, metadata: {name: disk}, spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], storageClassName: by-hand, hostPath: {path: "$WORK/disk"}}}
---
{apiVersion: v1, kind: PersistentVolume, metadata: {name: etc}, spec: {capacity: {storage: 2Gi}, accessModes: [ReadWriteOnce], storageClassName: by-hand, hostPath: {path: /etc}}}
YAML
claim static 1Gi 'storageClassName: by-hand'
claim outside 2Gi 'storageClassName: by-hand'
eventually 60 is pvc/static '{.spec.volumeName}' disk
pod static "$(of static)" 'echo there > /data/static'
ended static
expect there "$(cat "$WORK/disk/static")" "a folder that a person named"
pod outside "$(of outside)" 'true'
eventually 60 has 'FailedMount.*allow-host-path' kubectl get events --field-selector involvedObject.name=outside
kubectl delete pod outside --wait --timeout=60s >/dev/null
echo "· volumes made by hand, where the node allows them"

kubectl apply -f - >/dev/null <<YAML
{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: again, annotations: {storageclass.kubernetes.io/is-default-class: "true"}},
 provisioner: local.coracle.dev, volumeBindingMode: WaitForFirstConsumer}
YAML
pod own 'ephemeral: {volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}}' 'echo own > /data/file; cat /data/file'
ended own
expect Pod "$(kubectl get pvc own-data -o jsonpath='{.metadata.ownerReferences[0].kind}')" "the owner of a pod's own claim"
kubectl delete pod own --wait --timeout=60s >/dev/null
eventually 60 gone pvc/own-data
echo "· a pod's own claim goes with it"
down
echo PASS

#!/usr/bin/env bash
# Volumes that are more than whole folders of a pod: subPath and subPathExpr, and folders of the machine.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

mkdir -p "$WORK/shared/texts" "$WORK/private"
echo "one two three" > "$WORK/shared/texts/three"
ln -s "$WORK/private" "$WORK/shared/out"
up --allow-host-path "$WORK/shared"
for name in wordcount late; do
  "$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/$name.wasm" "registry.local/$name:v1" >/dev/null
done
kubectl create configmap texts --from-literal=a.txt="a b c d" --from-literal=b.txt="e f" --from-literal=c.txt="g" >/dev/null

# pod NAME VOLUMES MOUNTS ARGS [ENV]: a pod that counts words
pod() {
  cat <<YAML | kubectl apply -f - >/dev/null
{apiVersion: v1, kind: Pod, metadata: {name: $1}, spec: {restartPolicy: Never, volumes: [$2], containers: [{name: count,
  image: "registry.local/wordcount:v1", args: [$4], volumeMounts: [$3], env: [${5:-}]}]}}
YAML
}
ended() { kubectl wait --for=jsonpath='{.status.phase}'=Succeeded "pod/$1" --timeout=30s >/dev/null || fail "pod $1: $(kubectl describe pod "$1" | tail -n 12)"; }
counted() { ended "$1"; kubectl logs "$1" | python3 -c 'import json,sys; d=json.loads(sys.stdin.read()); print(d["files"], d["words"])'; }
map='{name: texts, configMap: {name: texts}}'

pod files "$map" '{name: texts, mountPath: /etc/app/one.txt, subPath: a.txt}, {name: texts, mountPath: /etc/app/two.txt, subPath: b.txt}' /etc/app
expect "2 6" "$(counted files)" "two files of a ConfigMap, mounted alone"
pod expr "$map, {name: own, emptyDir: {}}" '{name: texts, mountPath: /own/a.txt, subPathExpr: "$(WHICH).txt"}, {name: own, mountPath: /else, subPathExpr: "$(POD)/deep"}' \
  '/own, /else' '{name: WHICH, value: c}, {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}'
expect "1 1" "$(counted expr)" "paths with variables"
echo "· subPath and subPathExpr"

pod missing "$map" '{name: texts, mountPath: /t, subPathExpr: "$(NONE)"}' /t
eventually 20 has 'missing value for NONE' kubectl get pod missing -o jsonpath='{.status.containerStatuses[0].state.waiting.message}'
pod within "$map, {name: own, emptyDir: {}}" '{name: own, mountPath: /own}, {name: texts, mountPath: /own/a.txt, subPath: a.txt}' /own
eventually 20 has 'a guest is given folders' kubectl get pod within -o jsonpath='{.status.containerStatuses[0].state.waiting.message}'
expect CreateContainerConfigError "$(kubectl get pod within -o jsonpath='{.status.containerStatuses[0].state.waiting.reason}')" "its reason"
echo "· what can't be mounted is told"

of_host() { echo "{name: host, hostPath: {path: \"$1\", type: \"${2:-}\"}}"; }
pod host "$(of_host "$WORK/shared/texts")" '{name: host, mountPath: /texts}' /texts
expect "1 3" "$(counted host)" "a folder of the machine"
pod made "$(of_host "$WORK/shared/new" DirectoryOrCreate)" '{name: host, mountPath: /texts, subPath: deep}' /texts
expect "0 0" "$(counted made)" "a folder that is made"
[ -d "$WORK/shared/new/deep" ] || fail "the folder is not there"
n=0
for path in "$WORK/private" "$WORK/shared/out" "$WORK/shared/../private" / /etc; do
  n=$((n + 1))
  pod "refused-$n" "$(of_host "$path")" '{name: host, mountPath: /texts}' /texts 2>/dev/null || { grep -q '\.\.' <<< "$path" && continue; fail "the API refuses $path"; }
  eventually 20 has 'FailedMount.*allow-host-path' kubectl get events --field-selector "involvedObject.name=refused-$n"
done
pod none "$(of_host "$WORK/shared/none" Directory)" '{name: host, mountPath: /texts}' /texts
eventually 20 has 'hostPath type check failed: .* is not a directory' kubectl get events --field-selector involvedObject.name=none
mkdir "$WORK/shared/none"
expect "0 0" "$(counted none)" "a folder that comes later"
kubectl delete pods --all --wait --timeout=60s >/dev/null
[ "$(cat "$WORK/shared/texts/three")" = "one two three" ] || fail "what lies on the machine went with its pod"
echo "· folders of the machine, where the node allows them"
down
echo PASS

#!/usr/bin/env bash
# Parts of volumes: subPath and subPathExpr, and folders of the machine.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

mkdir -p "$WORK/shared/texts" "$WORK/private"
echo "one two three" > "$WORK/shared/texts/three"
ln -s "$WORK/private" "$WORK/shared/out"
up --allow-host-path "$WORK/shared"
for name in wordcount late hello toolbox; do
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
ended() { kubectl wait --for=jsonpath='{.status.phase}'=Succeeded "pod/$1" --timeout=120s >/dev/null || fail "pod $1: $(kubectl describe pod "$1" | tail -n 12)"; }
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

# The modes requested by the volume, as the kernel has them and as a guest sees them (coracle:host/stat).
kubectl apply -f - >/dev/null <<'YAML'
{apiVersion: v1, kind: Pod, metadata: {name: modes}, spec: {restartPolicy: Never,
  volumes: [{name: map, configMap: {name: texts, defaultMode: 0400, items: [{key: a.txt, path: a}, {key: b.txt, path: deep/b, mode: 0750}]}}, {name: own, emptyDir: {}}],
  containers: [{name: look, image: "registry.local/toolbox:v1", command: [sh, -c, "stat -L -c '%a %A' /map/a /map/deep/b; touch /own/new; stat -c %a /own/new /own; ls -l /map/..data/"],
    volumeMounts: [{name: map, mountPath: /map}, {name: own, mountPath: /own}]}]}}
YAML
ended modes
kubectl logs modes > "$WORK/out"
expect "400 -r--------,750 -rwxr-x---" "$(head -n 2 "$WORK/out" | paste -sd,)" "modes of a ConfigMap's files"
grep -qE '^-r-------- .* a$' "$WORK/out" || fail "ls does not show modes: $(cat "$WORK/out")"
echo "· modes of files"

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

echo "five six" > "$WORK/shared/line"
pod file "$(of_host "$WORK/shared/line" File)" '{name: host, mountPath: /etc/app/line.txt, readOnly: true}' /etc/app
expect "1 2" "$(counted file)" "a file of the machine, alone in its folder"
pod touched "$(of_host "$WORK/shared/touched" FileOrCreate)" '{name: host, mountPath: /etc/app/line.txt}' /etc/app
expect "1 0" "$(counted touched)" "a file that is made"
[ -f "$WORK/shared/touched" ] || fail "the file is not there"
ln -s "$WORK/private/secret" "$WORK/shared/leak"; echo secret > "$WORK/private/secret"
pod leak "$(of_host "$WORK/shared/leak" File)" '{name: host, mountPath: /etc/app/line.txt}' /etc/app
eventually 20 has 'FailedMount.*allow-host-path' kubectl get events --field-selector involvedObject.name=leak
pod dir "$(of_host "$WORK/shared/texts" File)" '{name: host, mountPath: /etc/app/line.txt}' /etc/app
eventually 20 has 'hostPath type check failed: .*/texts is not a file' kubectl get events --field-selector involvedObject.name=dir
echo "· files of the machine"

cat <<'YAML' | kubectl apply -f - >/dev/null
{apiVersion: v1, kind: Pod, metadata: {name: env}, spec: {restartPolicy: Never, volumes: [{name: env, emptyDir: {}}],
  initContainers: [{name: writer, restartPolicy: Always, image: "registry.local/hello:v1", volumeMounts: [{name: env, mountPath: /env}]}],
  containers: [{name: count, image: "registry.local/wordcount:v1", args: ["$(WHICH)"], volumeMounts: [{name: env, mountPath: /env}], env: [
    {name: WHICH, valueFrom: {fileKeyRef: {volumeName: env, path: vars, key: FOLDER}}},
    {name: NONE, valueFrom: {fileKeyRef: {volumeName: env, path: vars, key: NONE, optional: true}}}]}]}}
YAML
eventually 20 has "CreateContainerConfigError couldn't parse env file" \
  kubectl get pod env -o jsonpath='{.status.containerStatuses[0].state.waiting.reason} {.status.containerStatuses[0].state.waiting.message}'
kubectl exec env -c writer -- sh -c "echo OTHER=\'x\' > /env/vars"
eventually 30 has 'environment variable key "FOLDER" not found in file' kubectl get pod env -o jsonpath='{.status.containerStatuses[0].state.waiting.message}'
kubectl exec env -c writer -- sh -c "echo FOLDER=\'/env\' >> /env/vars"
eventually 60 has '"files":1' kubectl logs env -c count
echo "· variables from a file"

cat <<'YAML' | kubectl apply -f - >/dev/null
{apiVersion: v1, kind: Pod, metadata: {name: memory}, spec: {volumes: [{name: m, emptyDir: {medium: Memory, sizeLimit: 32Mi}}],
  containers: [{name: hello, image: "registry.local/hello:v1", resources: {limits: {memory: 128Mi}}, volumeMounts: [{name: m, mountPath: /m}]}]}}
YAML
kubectl wait --for=condition=Ready pod/memory --timeout=120s >/dev/null
head -c 4194304 /dev/zero > "$WORK/four"
write() { kubectl exec -i memory -- sh -c "cat > /m/$1" < "$WORK/four" 2>&1; }
write 1 || fail "4 MiB do not fit into 32"
UID_OF_POD=$(kubectl get pod memory -o jsonpath='{.metadata.uid}')
FOLDER=$(ls -d /dev/shm/coracle-*/"$UID_OF_POD") || fail "it does not lie in memory"
[ -f "$FOLDER/m/1" ] || fail "it does not lie in memory: $(ls "$FOLDER")"
n=1; while [ $n -lt 14 ] && write $((n + 1)) >/dev/null; do n=$((n + 1)); done
[ $n -ge 7 ] && [ $n -le 8 ] || fail "$n files of 4 MiB fit into 32 MiB"
kubectl exec memory -- sh -c 'rm /m/1 /m/2' && write again || fail "what is removed makes no room: $(write again)"
[ "$(kubectl get pod memory -o jsonpath='{.status.phase} {.status.containerStatuses[0].restartCount}')" = "Running 0" ] || fail "the pod did not go on"
kubectl delete pod memory --timeout=30s >/dev/null
gone() { [ ! -e "$FOLDER" ]; }
eventually 10 gone
cat <<'YAML' | kubectl apply -f - >/dev/null
{apiVersion: v1, kind: Pod, metadata: {name: over}, spec: {volumes: [{name: m, emptyDir: {medium: Memory, sizeLimit: 1Mi}}, {name: more, emptyDir: {medium: Memory}}],
  containers: [{name: hello, image: "registry.local/hello:v1", volumeMounts: [{name: m, mountPath: /m}]}]}}
YAML
kubectl wait --for=condition=Ready pod/over --timeout=120s >/dev/null
kubectl exec -i over -- sh -c "cat > /m/f" < "$WORK/four"
eventually 20 has 'Evicted Usage of EmptyDir volume "m" exceeds the limit "1Mi"' kubectl get pod over -o jsonpath='{.status.reason} {.status.message}'
echo "· volumes in memory"
down
[ ! -e "$(dirname "$FOLDER")" ] || fail "the node left its folder in memory"
echo PASS

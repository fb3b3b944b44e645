#!/usr/bin/env bash
# In-place resize: the changes that the API permits, their effect while containers run, and the changes that wait.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

up
"$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/hello.wasm" registry.local/hello:v1 >/dev/null
"$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/glutton.wasm" registry.local/glutton:v1 >/dev/null

# pod NAME RESOURCES [POLICY [IMAGE]]
pod() {
  cat <<YAML | kubectl apply -f - >/dev/null
{apiVersion: v1, kind: Pod, metadata: {name: $1}, spec: {containers: [{name: c, image: "registry.local/${4:-hello}:v1",
  ports: [{containerPort: 80}], resources: $2, resizePolicy: [${3:-}]}]}}
YAML
  kubectl wait --for=condition=Ready "pod/$1" --timeout=60s >/dev/null || fail "pod $1 is not ready"
}
resize() { kubectl patch pod "$1" --subresource resize --type strategic -p "{\"spec\":{\"containers\":[{\"name\":\"c\",\"resources\":$2}]}}" 2>&1; }
of() { kubectl get pod "$1" -o jsonpath="{$2}"; }
has() { [ "$(of "$1" "$2")" = "$3" ]; }
said() { kubectl get events --field-selector "involvedObject.name=$1" -o jsonpath='{range .items[*]}{.reason} {.message}{"\n"}{end}' > "$WORK/events" && grep -q -- "$2" "$WORK/events"; }
cpu='.status.containerStatuses[0].resources.limits.cpu'
memory='.status.containerStatuses[0].resources.limits.memory'

pod live '{requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}'
resize live '{"requests":{"cpu":"150m"},"limits":{"cpu":"300m","memory":"96Mi"}}' >/dev/null || fail "a resize is refused"
eventually 20 has live "$cpu" 300m
eventually 20 has live "$memory" 96Mi
expect "150m" "$(of live '.status.containerStatuses[0].allocatedResources.cpu')" "what was given"
expect "0" "$(of live '.status.containerStatuses[0].restartCount')" "restarts"
eventually 20 said live 'ResizeStarted Pod resize started: {"containers"'
eventually 20 said live 'ResizeCompleted Pod resize completed: {"containers"'
eventually 20 has live '.status.observedGeneration' 2
none() { [ -z "$(of "$1" '.status.conditions[?(@.type=="PodResizeInProgress")].type}{.status.conditions[?(@.type=="PodResizePending")].type')" ]; }
eventually 20 none live
echo "· a container that runs gets other limits"

grep -q 'QOS Class may not change' <<< "$(resize live '{"requests":{"cpu":"300m","memory":"96Mi"}}')" || fail "the class changed"
grep -q 'limits cannot be removed' <<< "$(resize live '{"limits":{"memory":null}}')" || fail "a limit was removed"
grep -q 'only cpu and memory resources are mutable' <<< "$(resize live '{"requests":{"ephemeral-storage":"1Gi"}}')" || fail "other resources changed"
grep -q "node didn't have enough allocatable resources: cpu" <<< "$(resize live '{"requests":{"cpu":"9000"},"limits":{"cpu":"9000"}}')" || fail "the node has 9000 cores"
expect "300m" "$(of live "$cpu")" "what was refused changed nothing"
kubectl patch pod live -p '{"spec":{"containers":[{"name":"c","resources":{"limits":{"cpu":"1"}}}]}}' >/dev/null 2>&1 && fail "a resize without its subresource"
echo "· what may not change is told"

pod anew '{limits: {memory: 64Mi}}' '{resourceName: memory, restartPolicy: RestartContainer}'
resize anew '{"requests":{"memory":"48Mi"},"limits":{"memory":"48Mi"}}' >/dev/null
eventually 30 has anew '.status.containerStatuses[0].restartCount' 1
eventually 30 has anew "$memory" 48Mi
eventually 20 said anew 'Killing Container c resize requires restart'
echo "· a policy starts it anew"

cores=$(kubectl get node coracle-1 -o jsonpath='{.status.allocatable.cpu}'); cores=${cores%m}
[ "$cores" -gt 500 ] || cores=$((cores * 1000))
pod first "{requests: {cpu: $((cores / 2))m}}"
pod second "{requests: {cpu: 100m}}"
resize second "{\"requests\":{\"cpu\":\"$((cores * 3 / 4))m\"}}" >/dev/null
eventually 20 has second '.status.conditions[?(@.type=="PodResizePending")].reason' Deferred
eventually 20 said second "ResizeDeferred Pod resize Deferred: .*Node didn't have enough resource: cpu"
expect "100m" "$(of second '.status.containerStatuses[0].allocatedResources.cpu')" "what it has meanwhile"
kubectl delete pod first live --timeout=60s >/dev/null
eventually 30 has second '.status.containerStatuses[0].allocatedResources.cpu' "$((cores * 3 / 4))m"
eventually 20 none second
echo "· what does not fit waits until it does"

for n in $(seq 1 60); do resize anew "{\"requests\":{\"cpu\":\"${n}m\"}}" >/dev/null || fail "resize $n"; done
eventually 30 has anew '.status.containerStatuses[0].resources.requests.cpu' 60m
expect "1" "$(of anew '.status.containerStatuses[0].restartCount')" "restarts after many of them"
eventually 30 none anew
echo "· many in a row"

cat <<'YAML' | kubectl apply -f - >/dev/null
{apiVersion: v1, kind: Pod, metadata: {name: whole}, spec: {resources: {requests: {cpu: 100m}, limits: {memory: 64Mi, cpu: "1"}},
  containers: [{name: c, image: "registry.local/hello:v1", ports: [{containerPort: 80}]}]}}
YAML
kubectl wait --for=condition=Ready pod/whole --timeout=60s >/dev/null || fail "a pod with limits of its own is not ready"
kubectl patch pod whole --subresource resize -p '{"spec":{"resources":{"limits":{"memory":"96Mi"}}}}' >/dev/null || fail "it cannot be resized"
eventually 20 has whole '.status.resources.limits.memory' 96Mi
eventually 20 said whole ResizeCompleted
echo "· a pod as a whole"

down
up
kubectl wait --for=condition=Ready pod/anew pod/second --timeout=60s >/dev/null
expect "60m" "$(of anew '.status.containerStatuses[0].allocatedResources.cpu')" "after a restart of the node"
down
echo PASS

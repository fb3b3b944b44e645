#!/usr/bin/env bash
# Static pods: a folder of manifests, their mirrors, and what garbage in it does.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

mkdir "$WORK/manifests"
manifest() { echo "{apiVersion: v1, kind: Pod, metadata: {name: $1, labels: {app: $1}}, spec: {containers: [{name: c, image: 'registry.local/hello:v1', ports: [{containerPort: 80}], env: [{name: VERSION, value: '$2'}]}]}}"; }
manifest web one > "$WORK/manifests/web.yaml"
echo 'a: [' > "$WORK/manifests/garbage.yaml"
head -c 100000 /dev/urandom > "$WORK/manifests/bytes"
ln -s /dev/zero "$WORK/manifests/zero"
for n in $(seq 1 500); do echo x > "$WORK/manifests/x$n"; done
up --pod-manifest-path "$WORK/manifests"
"$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/hello.wasm" registry.local/hello:v1 >/dev/null
of() { kubectl get pod "$1" -o jsonpath="{$2}" 2>/dev/null; }
is() { [ "$(of "$1" "$2")" = "$3" ]; }
there() { kubectl get pod "$1" >/dev/null 2>&1; }
gone() { ! there "$1"; }
ready='.status.conditions[?(@.type=="Ready")].status'
eventually 60 is web-coracle-1 "$ready" True
expect "file" "$(of web-coracle-1 '.metadata.annotations.kubernetes\.io/config\.source')" "its source"
expect "$(of web-coracle-1 '.metadata.annotations.kubernetes\.io/config\.hash')" "$(of web-coracle-1 '.metadata.annotations.kubernetes\.io/config\.mirror')" "its hash"
expect "Node coracle-1 true" "$(of web-coracle-1 '.metadata.ownerReferences[0].kind} {.metadata.ownerReferences[0].name} {.metadata.ownerReferences[0].controller')" "its owner"
kubectl logs web-coracle-1 >/dev/null || fail "it has no logs"
echo "· a manifest is a pod with a mirror"

before=$(of web-coracle-1 '.metadata.uid') started=$(of web-coracle-1 '.status.containerStatuses[0].containerID')
kubectl delete pod web-coracle-1 --wait=false >/dev/null
back() { [ -n "$(of web-coracle-1 .metadata.uid)" ] && [ "$(of web-coracle-1 .metadata.uid)" != "$before" ]; }
eventually 30 back
eventually 30 is web-coracle-1 '.status.containerStatuses[0].containerID' "$started"
eventually 30 is web-coracle-1 "$ready" True
echo "· a mirror that is deleted comes back, and its pod ran on"
grep -q 'static pods cannot be resized' <<< "$(kubectl patch pod web-coracle-1 --subresource resize -p '{"spec":{"containers":[{"name":"c","resources":{"requests":{"cpu":"1m"}}}]}}' 2>&1)" || fail "a static pod was resized"

manifest web two > "$WORK/manifests/web.yaml"
eventually 30 is web-coracle-1 '.spec.containers[0].env[0].value' two
eventually 60 is web-coracle-1 "$ready" True
manifest second one > "$WORK/manifests/second.json"
eventually 60 is second-coracle-1 "$ready" True
rm "$WORK/manifests/second.json"
eventually 60 gone second-coracle-1
echo "· changes are followed"

down
up --pod-manifest-path "$WORK/manifests"
eventually 60 is web-coracle-1 "$ready" True
expect 1 "$(of web-coracle-1 '.status.containerStatuses[0].restartCount')" "restarts after one of the node"
rm "$WORK/manifests/web.yaml"
eventually 60 gone web-coracle-1
down
echo PASS

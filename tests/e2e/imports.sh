#!/usr/bin/env bash
# A namespace with restricted imports, from outside: the declared imports of images are evaluated, recorded and enforced by the node, also
# when a tag moves after the evaluation, when a program comes by exec, and when a policy reads them.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

up
export CORACLE_DATA_DIR="$WORK/data"
samples=${SAMPLES_BIN:-sample-workloads/bin}
for sample in hello counter crash; do "$CORACLE" push "$samples/$sample.wasm" "registry.local/$sample:v1" >/dev/null; done
put foreign "$samples/counter.wasm"
kubectl create namespace pure >/dev/null
eventually 20 kubectl get serviceaccount -n pure default
exits 1 kubectl annotate namespace pure imports.coracle.dev/enforce=-wasi:keyvalue
grep -qF 'names only what is denied: begin with "*"' "$WORK/err" || fail "$(cat "$WORK/err")"
kubectl annotate namespace pure 'imports.coracle.dev/enforce=*,-wasi:keyvalue,-wasi:sockets,-wasi:filesystem' >/dev/null

# Rejected at apply with the import's name; unknown imports are rejected, too. The other tool's artifact declares nothing, its module does.
run() { kubectl run -n pure --restart=Never "$@"; }
for image in counter foreign; do
  exits 1 run --image="registry.local/$image:v1" no
  grep -qF "container \"no\" (image \"registry.local/$image:v1\") imports wasi:keyvalue/store@0.2.0-draft2" "$WORK/err" || fail "$image: $(cat "$WORK/err")"
done
exits 1 run --image=registry.local/none:v1 no
grep -qF 'imports is not known: registry.local: not found (push it with `coracle push`' "$WORK/err" || fail "$(cat "$WORK/err")"
expect "" "$(kubectl get pods -n pure -o name)" "pods that were refused"

# Permitted pods run and have their declared list.
run --image=registry.local/hello:v1 hello >/dev/null
kubectl wait -n pure --for=condition=Ready pod/hello --timeout=60s >/dev/null
note=$(kubectl get pod -n pure hello -o jsonpath='{.metadata.annotations.imports\.coracle\.dev/hello}')
[[ $note == *wasi:http/types@* ]] || fail "the annotation: $note"
run --image=registry.local/crash:v1 crash >/dev/null
eventually 60 has '^(Failed|Succeeded)$' kubectl get pod -n pure crash -o jsonpath='{.status.phase}'
note=$(kubectl get pod -n pure crash -o jsonpath='{.metadata.annotations.imports\.coracle\.dev/crash}')
[[ $note == *wasi_snapshot_preview1/proc_exit* ]] || fail "the annotation of a core module: $note"
kubectl annotate --overwrite -n pure pod/hello 'imports.coracle.dev/hello=*' >/dev/null
has 'wasi:http/types@' kubectl get pod -n pure hello -o jsonpath='{.metadata.annotations}' || fail "the annotation is gone"

# A program that the pod brings in by exec is restricted, too: the toolbox has files.
! kubectl exec -n pure hello -- ls / > "$WORK/out" 2> "$WORK/err" || fail "the toolbox ran"
grep -qF 'imports.coracle.dev/hello' "$WORK/err" || fail "exec: $(cat "$WORK/err")"

# A template gets a warning, and its pods are rejected one by one.
out=$(kubectl create deployment -n pure --image=registry.local/counter:v1 keeps 2>&1)
grep -qF 'Warning: would violate the namespace'"'"'s imports.coracle.dev/enforce' <<< "$out" || fail "no warning: $out"
eventually 60 has 'FailedCreate.*imports wasi:keyvalue/store' kubectl get events -n pure

# A tag that moves between evaluation and pull: the node checks the module itself.
"$CORACLE" push "$samples/hello.wasm" registry.local/moves:v1 >/dev/null
kubectl apply -f - >/dev/null << 'YAML'
{apiVersion: v1, kind: Pod, metadata: {name: moved, namespace: pure}, spec: {schedulingGates: [{name: test/wait}], containers: [{name: main, image: "registry.local/moves:v1"}]}}
YAML
"$CORACLE" push "$samples/counter.wasm" registry.local/moves:v1 >/dev/null
kubectl patch pod -n pure moved --type=json -p '[{"op": "remove", "path": "/spec/schedulingGates"}]' >/dev/null
eventually 60 has 'the module imports \\?"wasi:keyvalue/' kubectl get pod -n pure moved -o jsonpath='{.status.containerStatuses[0].state}'
expect 0 "$(kubectl get pod -n pure moved -o jsonpath='{.status.containerStatuses[0].restartCount}')" "starts of what moved"

# A policy reads the list if a namespace only requests an audit annotation.
kubectl create namespace noted >/dev/null
eventually 20 kubectl get serviceaccount -n noted default
kubectl annotate namespace noted 'imports.coracle.dev/audit=*' >/dev/null
kubectl apply -f - >/dev/null << 'YAML'
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: no-keyvalue}
spec:
  matchConstraints: {resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}]}
  validations:
    - expression: >-
        object.spec.containers.all(c, has(object.metadata.annotations) && ('imports.coracle.dev/' + c.name) in object.metadata.annotations
        && !object.metadata.annotations['imports.coracle.dev/' + c.name].split(',').exists(i, i.startsWith('wasi:keyvalue/')))
      message: no keyvalue here
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: no-keyvalue}
spec: {policyName: no-keyvalue, validationActions: [Deny], matchResources: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: noted}}}}
YAML
refused() { ! kubectl run -n noted --dry-run=server --image=registry.local/counter:v1 no > "$WORK/out" 2> "$WORK/err" && grep -qF 'no keyvalue here' "$WORK/err"; }
eventually 30 refused
kubectl run -n noted --image=registry.local/hello:v1 hello >/dev/null
kubectl wait -n noted --for=condition=Ready pod/hello --timeout=60s >/dev/null
down

#!/usr/bin/env bash
# CustomResourceDefinitions by kubectl: schemas, rules, versions with a conversion webhook, subresources, columns, discovery,
# deletion, and hostile definitions.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# A conversion webhook over TLS.
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=hooks -keyout "$WORK/ca.key" -out "$WORK/ca.crt" 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=hook -keyout "$WORK/hook.key" -out "$WORK/hook.csr" 2>/dev/null
openssl x509 -req -in "$WORK/hook.csr" -CA "$WORK/ca.crt" -CAkey "$WORK/ca.key" -CAcreateserial -days 1 -extfile <(echo subjectAltName=IP:127.0.0.1) -out "$WORK/hook.crt" 2>/dev/null
python3 tests/e2e/conversion.py "$WORK" & HOOK_PID=$!
trap 'kill $HOOK_PID 2>/dev/null || true; cleanup' EXIT
eventually 20 test -s "$WORK/port"
up --nodes 0

# definition PATH [MAXIMUM]: webhook's path, and the largest spec.replicas
definition() {
  cat << YAML
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: things, singular: thing, kind: Thing, shortNames: [thg], categories: [all]}
  conversion:
    strategy: Webhook
    webhook:
      conversionReviewVersions: [v1]
      clientConfig: {url: "https://127.0.0.1:$(cat "$WORK/port")$1", caBundle: $(base64 -w0 "$WORK/ca.crt")}
  versions:
  - name: v1
    served: true
    storage: true
    additionalPrinterColumns:
    - {name: Size, type: integer, jsonPath: .spec.size}
    - {name: Phase, type: string, jsonPath: .status.phase, priority: 1}
    selectableFields: [{jsonPath: .spec.color}]
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas, labelSelectorPath: .status.selector}
    schema:
      openAPIV3Schema:
        type: object
        description: A thing of the end-to-end tests.
        properties:
          spec:
            type: object
            description: What it shall be.
            x-kubernetes-validations:
            - {rule: "self.color == oldSelf.color", message: "a thing keeps its color"}
            required: [color]
            properties:
              size: {type: integer, default: 1, minimum: 1, description: How large it is.}
              color: {type: string, enum: [red, blue], default: red}
              replicas: {type: integer, maximum: ${2:-10}}
              names: {type: array, maxItems: 5, x-kubernetes-list-type: set, items: {type: string, maxLength: 10}}
          status:
            type: object
            properties: {phase: {type: string}, replicas: {type: integer}, selector: {type: string}}
  - name: v1beta1
    served: true
    storage: false
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, properties: {sizes: {type: array, items: {type: integer}}, color: {type: string}, replicas: {type: integer}}}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
YAML
}
# defined PATH [MAXIMUM]: waits until the definition is in effect, which its maximum shows
defined() {
  definition "$@" | kubectl apply -f - >/dev/null
  local at=/openapi/v3/apis/example.com/v1 want="\"maximum\":${2:-10}[,}]"
  eventually 20 has "$want" kubectl get --raw "$at"
}
# thing NAME SPEC
thing() { printf 'apiVersion: example.com/v1\nkind: Thing\nmetadata: {name: %s}\nspec: %s\n' "$1" "$2"; }
# heading COMMAND…: the first line of its output
heading() { "$@" > "$WORK/table"; sed -n '1s/  */ /gp' "$WORK/table"; }
# refuses PATTERN YAML [flags…]
refuses() {
  local pattern=$1 yaml=$2; shift 2
  if kubectl create "$@" -f - <<< "$yaml" > "$WORK/out" 2> "$WORK/err"; then fail "was taken: $yaml"; fi
  grep -qE -- "$pattern" "$WORK/err" || fail "wanted '$pattern': $(cat "$WORK/err")"
}

echo "· what is defined is there"
began=$(date +%s%N)
defined /good
kubectl wait --for=condition=Established crd/things.example.com --timeout=240s >/dev/null
eventually 20 kubectl get things
echo "  in $((($(date +%s%N) - began) / 1000000)) ms, kubectl's own time included"
eventually 20 has things.example.com kubectl api-resources --api-group=example.com --cached=false -o name
expect "v1 v1beta1" "$(kubectl get --raw /apis/example.com | python3 -c 'import json, sys; print(*sorted(v["version"] for v in json.load(sys.stdin)["versions"]))')" "versions"

echo "· schemas: validation, defaults, pruning, rules"
refuses 'spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1' "$(thing a '{size: 0}')"
refuses 'spec.color: Unsupported value: "green": supported values: "red", "blue"' "$(thing a '{color: green}')"
refuses 'spec.names\[1\]: Duplicate value: "x"' "$(thing a '{names: [x, x]}')"
refuses 'unknown field "spec.unknown"' "$(thing a '{unknown: 1}')"
kubectl create --validate=ignore -f - >/dev/null <<< "$(thing a '{unknown: 1, replicas: 8}')"
expect '{"color":"red","replicas":8,"size":1}' "$(kubectl get thing a -o jsonpath='{.spec}')" "defaults, and nothing unknown"
exits 1 kubectl patch thing a --type=merge -p '{"spec": {"color": "blue"}}'
grep -qF 'a thing keeps its color' "$WORK/err" || fail "$(cat "$WORK/err")"
# Ratcheting: an object from before a stricter schema stays, and is validated by it once it changes.
defined /good 5
kubectl label thing a touched=yes >/dev/null
exits 1 kubectl patch thing a --type=merge -p '{"spec": {"replicas": 9}}'
grep -qF 'should be less than or equal to 5' "$WORK/err" || fail "$(cat "$WORK/err")"
defined /good

echo "· status and scale"
kubectl patch thing a --subresource=status --type=merge -p '{"status": {"phase": "Ready", "replicas": 8, "selector": "a=b"}, "spec": {"size": 7}}' >/dev/null
expect "Ready 1 1" "$(kubectl get thing a -o jsonpath='{.status.phase} {.spec.size} {.metadata.generation}')" "status alone"
kubectl scale thing a --replicas=3 >/dev/null
expect "3 2" "$(kubectl get thing a -o jsonpath='{.spec.replicas} {.metadata.generation}')" "scaled"
expect "3 8 a=b" "$(kubectl get thing a --subresource=scale -o jsonpath='{.spec.replicas} {.status.replicas} {.status.selector}')" "scale"
exits 1 kubectl scale thing a --replicas=11
grep -qF 'should be less than or equal to 10' "$WORK/err" || fail "$(cat "$WORK/err")"

echo "· columns, selectable fields, explain, server-side apply"
kubectl create -f - >/dev/null <<< "$(thing b '{color: blue, size: 4}')"
expect "NAME SIZE" "$(heading kubectl get things)" "columns"
expect "NAME SIZE PHASE" "$(heading kubectl get thg -o wide)" "wide columns"
expect thing.example.com/b "$(kubectl get things --field-selector spec.color=blue -o name)" "selectable fields"
exits 1 kubectl get things --field-selector spec.size=4
eventually 20 has 'How large it is' kubectl explain thing.spec.size
eventually 20 has '^thing.example.com/a$' kubectl get all -o name
kubectl apply --server-side --field-manager=one -f - >/dev/null <<< "$(thing c '{size: 2}')"
exits 1 kubectl apply --server-side --field-manager=two -f - <<< "$(thing c '{size: 3}')"
grep -qF 'conflict with "one": .spec.size' "$WORK/err" || fail "$(cat "$WORK/err")"
kubectl delete thing c >/dev/null

echo "· versions by a webhook: good ones convert, bad ones are named and hold up nobody"
expect '[4]' "$(kubectl get things.v1beta1.example.com b -o jsonpath='{.spec.sizes}')" "converted"
kubectl patch things.v1beta1.example.com b --type=merge -p '{"spec": {"sizes": [6]}}' >/dev/null
expect 6 "$(kubectl get thing b -o jsonpath='{.spec.size}')" "converted back"
grep -q ' kube-apiserver-admission$' "$WORK/asked" || fail "$(cat "$WORK/asked")"
# named PATH PATTERN [SECONDS]: reads a version that was not read before; the request's own timeout is SECONDS, where no answer comes
named() {
  defined "/$1" "$((++maximum))"
  kubectl label --overwrite thing b "turn=$1" >/dev/null
  if kubectl get things.v1beta1.example.com b --request-timeout="${3:-240}s" > "$WORK/out" 2> "$WORK/err"; then fail "$1: $(cat "$WORK/out")"; fi
  grep -qE -- "$2" "$WORK/err" || fail "$1: wanted '$2': $(cat "$WORK/err")"
  kubectl get thing b >/dev/null
}
maximum=10
named slow 'deadline exceeded|did not complete within|Timeout' 5
named redirect 'conversion webhook for example.com/v1, Kind=Thing failed: .*redirects'
named html 'json parse error'
named deep 'json parse error: recursion limit'
named fails 'an error on the server \("on fire"\)'
named wrong_uid 'expected response.uid='
named fewer 'returned 0 objects, expected 1'
named more 'returned 2 objects, expected 1'
named rename 'must have the same name: b != other'
named kind 'invalid kind \(expected Thing, received Other\)'
named version 'invalid groupVersion \(expected example.com/v1beta1, received example.com/v9\)'
named bare 'must have the same name: b != '
named numbers 'json: cannot unmarshal'
named failure 'failed: not today'
named nothing 'no response provided'
# These are cut off, by their length or by the request's time.
named huge 'length limit exceeded|deadline exceeded|did not complete within|Timeout' 10
named endless 'length limit exceeded|deadline exceeded|did not complete within|Timeout' 10
defined /good "$((++maximum))"
expect '[6]' "$(kubectl get things.v1beta1.example.com b -o jsonpath='{.spec.sizes}')" "once it answers well"

echo "· the end of a definition"
kubectl patch thing a --type=merge -p '{"metadata": {"finalizers": ["example.com/held"]}}' >/dev/null
kubectl delete crd things.example.com --wait=false >/dev/null
eventually 20 has True kubectl get crd things.example.com -o jsonpath='{.status.conditions[?(@.type=="Terminating")].status}'
refuses 'not allowed while custom resource definition is terminating' "$(thing d '{}')" --validate=ignore
eventually 20 has '^thing.example.com/a$' kubectl get things -o name
kubectl patch thing a --type=merge -p '{"metadata": {"finalizers": null}}' >/dev/null
kubectl wait --for=delete crd/things.example.com --timeout=240s >/dev/null
gone() { ! "$@"; }
eventually 20 gone kubectl get --raw /apis/example.com/v1

echo "· definitions that mean harm"
python3 tests/e2e/definitions.py "$KUBECONFIG" "$UP_PID"
down
echo "ok"

#!/usr/bin/env bash
# `coracle explain-reconcile`: what the controllers of an object would do now. The controllers of Deployments and Jobs are off, so that there
# is something left to do.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

up --controllers='-deployment-controller,-job-controller,*'
kubectl apply -f - >/dev/null <<'YAML'
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: registry.local/none:v1}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: batch/v1
kind: Job
metadata: {name: sum}
spec:
  template:
    spec: {restartPolicy: Never, containers: [{name: c, image: registry.local/none:v1}]}
YAML
slice_exists() { [ -n "$(kubectl get endpointslices -l kubernetes.io/service-name=web -o name)" ]; }
eventually 30 slice_exists

explain() { exits 0 "$CORACLE" explain-reconcile --data-dir "$WORK/data" "$@"; cp "$WORK/out" "$WORK/explained"; }
prints() { has "$1" cat "$WORK/explained" || fail "$(cat "$WORK/explained")"; }
explain deployment/web
prints '^Deployment default/web at 20'
prints '^deployment-controller$'
prints '^  create ReplicaSet default/web-[a-z0-9]+: spec\.replicas=2; '
prints '^  requeue in '
explain job/sum
prints '^job-controller$'
prints '^    create Pod default/sum-\*: '
sleep 1
expect "" "$(kubectl get replicasets,pods -o name)" "what an explanation creates"
echo "· the plans of controllers, and nothing is done"

settled() { explain svc/web && has 'nothing to do' cat "$WORK/explained"; }
eventually 30 settled
prints '^endpoints-controller$'
prints '^endpointslice-controller$'
prints '^other controllers that watch its kind .*resourcequota-controller'
explain deploy/web --controller deployment -o json
expect "create ReplicaSet" "$(python3 -c 'import json, sys; plan = json.load(open(sys.argv[1]))["controllers"][0]["plan"]; print(next(a["verb"] + " " + a["kind"] for a in plan["actions"] if a["verb"] == "create"))' "$WORK/explained")" "an action in JSON"
printf '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"settings","ownerReferences":[{"apiVersion":"v1","kind":"Service","name":"web","uid":"%s"}]}}' "$(kubectl get service web -o jsonpath='{.metadata.uid}')" | kubectl create -f - >/dev/null
explain configmap/settings --controller garbage-collector-controller
prints '^garbage-collector-controller, key [0-9a-f-]+$'
echo "· an object that is settled, JSON, and a controller by name"

refused() { exits 1 "$CORACLE" explain-reconcile "${@:2}"; has "$1" cat "$WORK/err" || fail "$(cat "$WORK/err")"; expect 1 "$(wc -l < "$WORK/err")" "lines of an error"; }
refused 'deployments.apps "none" not found' --data-dir "$WORK/data" deployment/none
refused 'no controller reconciles ConfigMap default/settings by its name; .*name one with --controller' --data-dir "$WORK/data" configmap/settings
refused 'no controller watches roles.rbac.authorization.k8s.io; kinds with a controller: ' --data-dir "$WORK/data" -n kube-system role/extension-apiserver-authentication-reader
refused 'the server has no kind "unicorn": see kubectl api-resources' --data-dir "$WORK/data" unicorn/u
refused 'there is no controller "deploy"; these watch deployments.apps: deployment-controller' --data-dir "$WORK/data" deployment/web --controller deploy
refused 'wanted an object, KIND/NAME' --data-dir "$WORK/data" web
exits 2 "$CORACLE" explain-reconcile
echo "· errors name the next step"

kubectl create serviceaccount viewer >/dev/null
sed '/client-\(certificate\|key\)-data/d' "$KUBECONFIG" > "$WORK/viewer"
kubectl --kubeconfig "$WORK/viewer" config set-credentials "$(kubectl config view -o jsonpath='{.users[0].name}')" --token="$(kubectl create token viewer)" >/dev/null
refused 'system:serviceaccount:default:viewer" cannot get resource "deployments"' --kubeconfig "$WORK/viewer" deployment/web
kubectl create rolebinding viewers --clusterrole=view --serviceaccount=default:viewer >/dev/null
may_read() { "$CORACLE" explain-reconcile --kubeconfig "$WORK/viewer" deployment/web > "$WORK/explained" 2>/dev/null; }
eventually 10 may_read
prints '^  create ReplicaSet default/web-'
refused 'cannot list resource "nodes" in API group "" at the cluster scope' --kubeconfig "$WORK/viewer" service/web
echo "· with the user's own rights, in one namespace"

explain deployment/web --record "$WORK/record.json"
down
exits 0 "$CORACLE" explain-reconcile --replay "$WORK/record.json"
cmp "$WORK/out" "$WORK/explained" || fail "a recording explains something else than what was recorded"
head -c 300 "$WORK/record.json" > "$WORK/broken.json"
refused 'broken.json' --replay "$WORK/broken.json"
echo "· a recording replays without a cluster"
echo PASS

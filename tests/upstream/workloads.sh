# shellcheck shell=bash
# A Deployment, a StatefulSet, a Job and a CronJob on fake nodes, with any controllers. Sourced after tests/e2e/lib.sh, with a
# cluster in KUBECONFIG.
work_through() {
kubectl create namespace trial >/dev/null
eventually 30 kubectl -n trial get serviceaccount default

cat > "$WORK/objects.yaml" <<'YAML'
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: web, image: registry.local/hello:v1, ports: [{containerPort: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec:
  clusterIP: None
  selector: {app: db}
  ports: [{port: 5432}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 3
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      containers: [{name: db, image: registry.local/hello:v1}]
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick}
spec:
  schedule: "* * * * *"
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          containers: [{name: tick, image: registry.local/wordcount:v1}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: count}
spec:
  completions: 3
  parallelism: 2
  completionMode: Indexed
  template:
    spec:
      restartPolicy: Never
      containers: [{name: count, image: registry.local/wordcount:v1}]
YAML
kubectl -n trial apply -f "$WORK/objects.yaml" >/dev/null
since=$SECONDS

kubectl -n trial rollout status deployment/web --timeout=60s >/dev/null || fail "the Deployment did not roll out"
addresses() { kubectl -n trial get endpointslices -l kubernetes.io/service-name=web -o jsonpath='{range .items[*].endpoints[*]}{.addresses[0]}{"\n"}{end}'; }
three() { [ "$(addresses | wc -l)" = 3 ]; }
eventually 30 three
kubectl -n trial set image deployment/web web=registry.local/hello:v2 >/dev/null
kubectl -n trial rollout status deployment/web --timeout=60s >/dev/null || fail "the Deployment did not roll over"
expect 2 "$(kubectl -n trial get replicasets -l app=web -o name | wc -l)" "ReplicaSets after a rollout"
kubectl -n trial rollout undo deployment/web >/dev/null
kubectl -n trial rollout status deployment/web --timeout=60s >/dev/null || fail "the Deployment did not roll back"
echo "deployment: rolled out, over and back"

kubectl -n trial rollout status statefulset/db --timeout=60s >/dev/null || fail "the StatefulSet did not roll out"
pods() { kubectl -n trial get pods -l app=db -o jsonpath='{.items[*].metadata.name}'; }
expect "db-0 db-1 db-2" "$(pods)" "pods of the StatefulSet"
has . kubectl -n trial get controllerrevisions -o name || fail "the StatefulSet has no ControllerRevision"
kubectl -n trial scale statefulset/db --replicas=1 >/dev/null
last() { [ "$(pods)" = db-0 ]; }
eventually 60 last
kubectl -n trial patch statefulset db -p '{"spec": {"template": {"metadata": {"annotations": {"round": "two"}}}}}' >/dev/null
kubectl -n trial rollout status statefulset/db --timeout=60s >/dev/null || fail "the StatefulSet did not update"
expect two "$(kubectl -n trial get pod db-0 -o jsonpath='{.metadata.annotations.round}')" "annotation of the updated pod"
echo "statefulset: ordered, scaled and updated"

kubectl -n trial wait --for=condition=complete job/count --timeout=60s >/dev/null || fail "the Job did not complete"
expect 0-2 "$(kubectl -n trial get job count -o jsonpath='{.status.completedIndexes}')" "completed indexes of the Job"
echo "job: all of its indexes completed"

completed() { has '^[1-9]' kubectl -n trial get jobs -o jsonpath='{.items[?(@.metadata.ownerReferences[0].kind=="CronJob")].status.succeeded}'; }
eventually 100 completed
has . kubectl -n trial get cronjob tick -o jsonpath='{.status.lastScheduleTime}' || fail "the CronJob has no lastScheduleTime"
echo "cronjob: its first Job completed $((SECONDS - since)) s after it was created"

kubectl delete namespace trial --timeout=90s >/dev/null || fail "the namespace did not go"
exits 1 kubectl get namespace trial
}

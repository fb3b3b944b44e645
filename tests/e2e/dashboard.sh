#!/usr/bin/env bash
# The dashboard in a browser: each page, by the keyboard too; scale, undo and exec; a slow and a lost API; 5,000 pods; an account that may
# see one namespace; no request elsewhere and no error.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

up --nodes 2
for name in shop-frontend shop-catalog shop-users shop-payments greeter crash; do
  "$CORACLE" push "sample-workloads/bin/$name.wasm" "registry.local/$name:v1" --data-dir "$WORK/data" >/dev/null
done
kubectl apply -f sample-workloads/manifests/shop.yaml -f sample-workloads/manifests/greeter.yaml -f sample-workloads/manifests/crash.yaml >/dev/null
kubectl apply -f - >/dev/null <<'YAML'
apiVersion: v1
kind: Pod
metadata: {name: nowhere, namespace: shop}
spec:
  nodeSelector: {disk: ssd}
  containers: [{name: a, image: "registry.local/crash:v1"}]
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: catalog-load, namespace: shop}
spec:
  minReplicas: 2
  maxReplicas: 4
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: catalog}
  metrics: [{type: Pods, pods: {metric: {name: http_requests_per_second}, target: {type: AverageValue, averageValue: "1000"}}}]
---
apiVersion: v1
kind: Namespace
metadata: {name: one}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: viewer, namespace: one}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: viewer, namespace: one}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: view}
subjects: [{kind: ServiceAccount, name: viewer, namespace: one}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: lonely, namespace: one}
spec:
  selector: {matchLabels: {app: lonely}}
  template:
    metadata: {labels: {app: lonely}}
    spec:
      containers: [{name: greeter, image: "registry.local/greeter:v1", ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: admin, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: dashboard-admin}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{kind: ServiceAccount, name: admin, namespace: default}]
YAML
for name in frontend catalog users payments; do kubectl -n shop rollout status "deployment/$name" --timeout=120s >/dev/null; done
kubectl rollout status deployment/greeter --timeout=60s >/dev/null
kubectl -n one rollout status deployment/lonely --timeout=60s >/dev/null

kubectl config view --raw -o jsonpath='{.clusters[0].cluster.certificate-authority-data}' | base64 -d > "$WORK/ca.crt"
SERVER=$(kubectl config view -o jsonpath='{.clusters[0].cluster.server}')
ADMIN=$(kubectl create token admin) VIEWER=$(kubectl -n one create token viewer)
SHOP=http://127.0.0.1:$(kubectl -n shop get service frontend -o jsonpath='{.spec.ports[0].nodePort}')
export SERVER ADMIN VIEWER SHOP WORK
python3 "$(dirname "${BASH_SOURCE[0]}")/dashboard.py" || fail "see above"
down
echo PASS

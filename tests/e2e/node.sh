#!/usr/bin/env bash
# A node that was silent, one whose object was deleted, and the resources of a pod that was deleted by force.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

up --nodes 1 --max-pods 90
"$CORACLE" push "${SAMPLES_BIN:-sample-workloads/bin}/hello.wasm" registry.local/hello:v1 --data-dir "$WORK/data" >/dev/null
NODE=coracle-1
kubectl create deployment web --image=registry.local/hello:v1 --replicas=3 >/dev/null
kubectl expose deployment web --port=80 >/dev/null
kubectl rollout status deployment web --timeout=60s >/dev/null
ip=$(kubectl get service web -o jsonpath='{.spec.clusterIP}')
node_is() { expect "$2" "$(kubectl get node $NODE -o jsonpath="$1")" "the node's $1" ; }
ready() { [ "$(kubectl get node $NODE -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}')" = True ]; }
untainted() { [ -z "$(kubectl get node $NODE -o jsonpath='{.spec.taints}')" ]; }
pods_ready() { [ "$(kubectl get pods -l app=web -o jsonpath='{.items[*].status.conditions[?(@.type=="Ready")].status}')" = "True True True" ]; }
same_pods() { kubectl get pods -l app=web -o jsonpath='{range .items[*]}{.metadata.uid} {.status.containerStatuses[0].restartCount}{"\n"}{end}' | sort; }

versions() { kubectl get pods -l app=web -o jsonpath='{.items[*].metadata.resourceVersion}'; }
eventually 30 pods_ready
before=$(versions)
node_is "{.status.capacity.pods} {.status.allocatable.pods}" "90 90"

echo "· a process that stands still for 45 s: its node and pods are as before, soon after"
pods=$(same_pods)
renewed() { date +%s -d "$(kubectl get lease -n kube-node-lease $NODE -o jsonpath='{.spec.renewTime}')"; }
first=$(renewed)
compared() { [ $(($(renewed) - first)) -ge 12 ]; } # a status is compared each 10 s, between two renewals
eventually 60 compared
expect "$before" "$(versions)" "versions of pods that nobody touches"
last=$(renewed)
kill -STOP "$UP_PID"
silent() { [ $(($(date +%s) - last)) -ge 45 ]; } # longer than the grace period of 40 s
eventually 60 silent
kill -CONT "$UP_PID"
eventually 30 ready
eventually 30 untainted
eventually 30 pods_ready
eventually 30 curl -fsS --max-time 5 "http://$ip/"
expect "$pods" "$(same_pods)" "pods and their restarts"

echo "· a Ready that another writes over is put right"
name=$(kubectl get pods -l app=web -o jsonpath='{.items[0].metadata.name}')
kubectl patch pod "$name" --subresource=status -p '{"status":{"conditions":[{"type":"Ready","status":"False"}]}}' >/dev/null
eventually 30 pods_ready

echo "· a Node that is deleted comes back, with its addresses, and pods run on it"
cidr=$(kubectl get node $NODE -o jsonpath='{.spec.podCIDR}')
uid=$(kubectl get node $NODE -o jsonpath='{.metadata.uid}')
kubectl delete node $NODE >/dev/null
eventually 30 ready
[ "$uid" != "$(kubectl get node $NODE -o jsonpath='{.metadata.uid}')" ] || fail "the Node was not deleted"
node_is '{.spec.podCIDR}' "$cidr"
owner() { [ "$(kubectl get lease -n kube-node-lease $NODE -o jsonpath='{.metadata.ownerReferences[0].uid}')" = "$(kubectl get node $NODE -o jsonpath='{.metadata.uid}')" ]; }
eventually 30 owner
eventually 60 pods_ready

echo "· what a pod held that was deleted by force is free at once"
kubectl delete deployment web --wait=false >/dev/null
no_pods() { [ -z "$(kubectl get pods -o name)" ]; }
eventually 60 no_pods
cpu=$(kubectl get node $NODE -o jsonpath='{.status.allocatable.cpu}')
whole() { kubectl apply -f - >/dev/null <<YAML
{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "$1"}, "spec": {"nodeName": "$NODE", "containers": [
  {"name": "c", "image": "registry.local/hello:v1", "resources": {"requests": {"cpu": "$cpu"}}}]}}
YAML
}
whole a
kubectl wait --for=condition=Ready pod/a --timeout=60s >/dev/null
last=a
for next in b c d e; do
  kubectl delete pod $last --force --grace-period=0 >/dev/null 2>&1
  whole $next
  kubectl wait --for=condition=Ready pod/$next --timeout=30s >/dev/null || fail "$next: $(kubectl get pod $next -o jsonpath='{.status.message}')"
  last=$next
done
down

echo "· more nodes than ranges for pods: the one without a range says so, and which flags give more"
octet=$(cut -d. -f2 <<< "${E2E_BLOCK:-127.248.0.0/14}")
few="127.$((octet + 1))"
"$CORACLE" up --data-dir "$WORK/few" --port 0 --nodes 3 --service-cidr "$few.128.0/17" --cluster-cidr "$few.0.0/23" --node-cidr-mask-size 24 \
  >/dev/null 2> "$WORK/few.log" & UP_PID=$!
eventually 20 grep -q 'the node has no range for its pods (spec.podCIDR).*--node-cidr-mask-size.*coracle-' "$WORK/few.log"
expect 1 "$(grep -c 'has no range for its pods' "$WORK/few.log")" "nodes without a range"
down
echo PASS

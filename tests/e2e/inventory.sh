#!/usr/bin/env bash
# Nodes with an inventory: they wait for it, get its data, follow it, and are deleted if they are missing in it and dead.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

inventory() { cat > "$WORK/next" && mv "$WORK/next" "$WORK/nodes.yaml"; }
of() { kubectl get node "$1" -o jsonpath="$2"; }
is() { [ "$(of "$1" "$2")" = "$3" ]; }
taint=node.cloudprovider.kubernetes.io/uninitialized

echo 'nodes: [{name: A}]' | inventory
exits 1 timeout 60 "$CORACLE" up --data-dir "$WORK/refused" --port 0 --node-inventory "$WORK/nodes.yaml"
has 'node "A": name: ' cat "$WORK/err" || fail "a wrong file is not named: $(cat "$WORK/err")"

inventory <<YAML
nodes:
- name: coracle-1
  providerID: rack://7/1
  instanceType: large
  zone: z1
  region: r1
  labels: {example.com/rack: "7"}
  addresses: [{type: InternalIP, address: 127.0.0.1}, {type: ExternalIP, address: 192.0.2.1}]
- name: coracle-2
  addresses: [{type: InternalIP, address: 192.0.2.2}]
YAML
up --nodes 3 --node-inventory "$WORK/nodes.yaml"
eventually 60 is coracle-1 '{.spec.providerID}' rack://7/1
eventually 60 is coracle-1 '{range .status.addresses[*]}{.type}={.address} {end}' 'InternalIP=127.0.0.1 ExternalIP=192.0.2.1 Hostname=coracle-1 '
expect "z1 r1 large 7" "$(of coracle-1 '{.metadata.labels.topology\.kubernetes\.io/zone} {.metadata.labels.topology\.kubernetes\.io/region} {.metadata.labels.node\.kubernetes\.io/instance-type} {.metadata.labels.example\.com/rack}')" "its labels"
expect "" "$(of coracle-1 '{.spec.taints[*].key}')" "its taints"
eventually 60 has 'Synced .*Node synced successfully' kubectl describe node coracle-1
eventually 60 has 'InvalidNodeIP .*matches ip: 127.0.0.1' kubectl describe node coracle-2
for node in coracle-2 coracle-3; do expect "$taint" "$(of $node '{.spec.taints[*].key}')" "the taint of $node"; done
"$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/hello.wasm" registry.local/hello:v1 >/dev/null
kubectl create deployment web --image registry.local/hello:v1 --replicas 3 >/dev/null
kubectl rollout status deployment/web --timeout=120s >/dev/null
expect "coracle-1 coracle-1 coracle-1" "$(kubectl get pods -o jsonpath='{.items[*].spec.nodeName}')" "where its pods are"
kubectl logs deploy/web >/dev/null || fail "the node is not reached by its address"
echo "· a node takes what is known of it, and waits until something is"

echo 'nodes: [{name: coracle-1, addr' | inventory
eventually 60 has 'inventory cannot be used' cat "$WORK/up.log"
inventory <<YAML
nodes:
- {name: coracle-1, providerID: "rack://7/1", addresses: [{type: InternalIP, address: 127.0.0.1}, {type: ExternalIP, address: 192.0.2.9}]}
- {name: coracle-3, zone: z3}
YAML
eventually 60 is coracle-1 '{.status.addresses[?(@.type=="ExternalIP")].address}' 192.0.2.9
eventually 60 is coracle-3 '{.spec.providerID} {.metadata.labels.topology\.kubernetes\.io/zone}' 'inventory://coracle-3 z3'
expect "" "$(of coracle-3 '{.spec.taints[*].key}')" "its taints"
expect z1 "$(of coracle-1 '{.metadata.labels.topology\.kubernetes\.io/zone}')" "a label that was given"
echo "· the file is followed, and half of one changes nothing"

# A node missing in the inventory stays while it is ready; a dead one is deleted, or keeps waiting if its machine is shut down.
for name in ghost asleep; do
  kubectl apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Node
metadata: {name: $name}
spec: {providerID: "rack://$name"}
YAML
done
inventory <<YAML
nodes: [{name: coracle-3}, {name: asleep, providerID: "rack://asleep", shutdown: true}]
YAML
gone() { [ -z "$(kubectl get node ghost --ignore-not-found -o name)" ]; }
eventually 60 gone
eventually 60 has 'DeletingNode .*Deleting node ghost because it does not exist in the cloud provider' kubectl get events -A
off() { has 'node.cloudprovider.kubernetes.io/shutdown' of asleep '{.spec.taints[*].key}'; }
eventually 60 off
expect True "$(of coracle-1 '{.status.conditions[?(@.type=="Ready")].status}')" "the node that is ready, and in no file"
echo "· what is dead and gone is deleted, and nothing else"
down
echo PASS

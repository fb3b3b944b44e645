#!/usr/bin/env bash
# LoadBalancer Services: addresses of a pool, allocated once, served, filtered, released.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# A block of Linux' loopback, where any address is local, outside of the cluster's own and of other scripts'.
net=127.59.$((RANDOM % 250 + 1))
up --load-balancer-pool "$net.1-$net.2"
"$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/hello.wasm" registry.local/hello:v1 >/dev/null
kubectl apply -f sample-workloads/manifests/hello.yaml >/dev/null
kubectl rollout status deployment/hello --timeout=300s >/dev/null

service() { # NAME PORT [more of its spec]
  kubectl apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Service
metadata: {name: $1}
spec: {type: LoadBalancer, selector: {app: hello}, ports: [{port: $2, targetPort: 8080}]${3:+, $3}}
YAML
}
address() { kubectl get service "$1" -o jsonpath='{.status.loadBalancer.ingress[*].ip}'; }
has_address() { [ "$(address "$1")" = "$2" ]; }
serves() { curl -fsS -m 10 "http://$1/" >/dev/null; }
refuses() { ! curl -sS -m 10 "http://$1/" >/dev/null 2>&1; }

freed() { local all; all=$(kubectl get ipaddresses -o name) && [[ $all != *"$1"* ]]; }

service one 80
eventually 60 has_address one "$net.1"
eventually 60 serves "$net.1:80"
expect "VIP" "$(kubectl get service one -o jsonpath='{.status.loadBalancer.ingress[0].ipMode}')" "the mode"
expect "service.kubernetes.io/load-balancer-cleanup" "$(kubectl get service one -o jsonpath='{.metadata.finalizers[*]}')" "the finalizer"
expect "services/one" "$(kubectl get ipaddress "$net.1" -o jsonpath='{.spec.parentRef.resource}/{.spec.parentRef.name}')" "the holder"
eventually 60 has 'EnsuredLoadBalancer' kubectl describe service one
echo "· an address is given and served"

service two 80 'allocateLoadBalancerNodePorts: false'
eventually 60 has_address two "$net.2"
expect "" "$(kubectl get service two -o jsonpath='{.spec.ports[0].nodePort}')" "a node port"
service three 80
eventually 60 has "SyncLoadBalancerFailed .*no address is left in the pool $net.1-$net.2" kubectl describe service three
kubectl delete service two --timeout=60s >/dev/null
eventually 60 has_address three "$net.2"
eventually 60 serves "$net.2:80"
echo "· the pool ends, and what is released is given at once"

service three 80 'loadBalancerSourceRanges: [192.0.2.0/24]'
eventually 60 refuses "$net.2:80"
serves "$(kubectl get service three -o jsonpath='{.spec.clusterIP}'):80" || fail "its cluster IP asks for no source"
service three 80 'loadBalancerSourceRanges: [192.0.2.0/24, 127.0.0.0/8]'
eventually 60 serves "$net.2:80"
echo "· only those from its source ranges come in by its address"

service foreign 80 'loadBalancerClass: example.com/cloud'
kubectl patch service one --type merge -p '{"spec": {"type": "ClusterIP"}}' >/dev/null
released() { has_address one "" && [ -z "$(kubectl get service one -o jsonpath='{.metadata.finalizers}')" ] && refuses "$net.1:80"; }
eventually 60 released
eventually 60 freed "$net.1"
serves "$(kubectl get service one -o jsonpath='{.spec.clusterIP}'):80" || fail "its cluster IP doesn't serve any more"
expect "" "$(address foreign)" "the address of another provider's"
echo "· what isn't a balancer any more has no address, and another provider's none of ours"

kubectl delete service three foreign --timeout=60s >/dev/null
eventually 60 freed "$net.2"

service near 80 'externalTrafficPolicy: Local'
eventually 60 has_address near "$net.1"
eventually 60 serves "$net.1:80"
health=$(kubectl get service near -o jsonpath='{.spec.healthCheckNodePort}')
says() { [ "$(curl -sS -m 10 -o "$WORK/health" -w '%{http_code}' "http://127.0.0.1:$health/any/path")" = "$1" ]; }
refused_with() { [ "$(curl -sS -m 10 -o /dev/null -w '%{http_code}' "http://$net.1/")" = "$1" ]; }
eventually 30 says 200
expect "default/near 2" "$(python3 -c 'import json,sys; it=json.load(sys.stdin); print("/".join(it["service"].values()), it["localEndpoints"])' < "$WORK/health")" "what its health check says"
kubectl scale deployment/hello --replicas=0 >/dev/null
eventually 60 says 503
# Terminating endpoints serve meanwhile, if there are no others.
eventually 60 refused_with 503
kubectl scale deployment/hello --replicas=1 >/dev/null
eventually 60 says 200
eventually 60 serves "$net.1:80"
service near 80 'externalTrafficPolicy: Cluster'
eventually 60 refuses "127.0.0.1:$health"
serves "$net.1:80" || fail "a policy's change closed its address"
echo "· what comes in stays on its machine where the Service says so, and load balancers are told"

# Datagrams reach endpoints outside of the cluster: here, this machine's own address.
here=$(python3 -c 'import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(("192.0.2.1", 9)); print(s.getsockname()[0])' 2>/dev/null) || here=
case $here in ""|127.*) echo "· this machine has no address but its loopback: no datagrams" ;; *)
  cat > "$WORK/udp.py" << 'PYTHON'
"""udp.py serve ADDRESS NAME: answers datagrams by NAME and the client's text, on a port that it prints.
udp.py ask ADDRESS PORT N: the answers to N datagrams of one socket, each once, on one line; nothing without an answer."""
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
if sys.argv[1] == "serve":
    s.bind((sys.argv[2], 0)); print(s.getsockname()[1], flush=True)
    while True:
        text, client = s.recvfrom(65535); s.sendto(sys.argv[3].encode() + text, client)
s.settimeout(2); s.connect((sys.argv[2], int(sys.argv[3]))); answers = []
for n in range(int(sys.argv[4])):
    try: s.send(b"%d" % n); answers.append(s.recv(65535).decode().rstrip("0123456789"))
    except OSError: pass
print(*sorted(set(answers)))
PYTHON
  servers=()
  for name in a b; do
    python3 "$WORK/udp.py" serve "$here" "$name" > "$WORK/udp-$name" & servers+=($!)
    eventually 10 test -s "$WORK/udp-$name"
  done
  slice() { # NAME: leads to one of the two servers
    printf '{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"datagrams-1","labels":{"kubernetes.io/service-name":"datagrams"}},"addressType":"IPv4","ports":[{"name":"udp","port":%s,"protocol":"UDP"}],"endpoints":[{"addresses":["%s"]}]}' "$(cat "$WORK/udp-$1")" "$here" | kubectl apply -f - >/dev/null
  }
  kubectl apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Service
metadata: {name: datagrams}
spec: {type: LoadBalancer, ports: [{name: udp, port: 5300, protocol: UDP}]}
YAML
  slice a
  eventually 60 has_address datagrams "$net.2"
  answers() { [ "$(python3 "$WORK/udp.py" ask "$2" "$3" 3)" = "$1" ]; }
  cluster=$(kubectl get service datagrams -o jsonpath='{.spec.clusterIP}') node=$(kubectl get service datagrams -o jsonpath='{.spec.ports[0].nodePort}')
  eventually 30 answers a "$cluster" 5300
  eventually 30 answers a "$net.2" 5300
  eventually 30 answers a 127.0.0.1 "$node"
  slice b
  eventually 30 answers b "$cluster" 5300
  kubectl delete endpointslice datagrams-1 >/dev/null
  eventually 30 answers "" 127.0.0.1 "$node"
  kill "${servers[@]}"; wait "${servers[@]}" 2>/dev/null || true
  kubectl delete service datagrams --timeout=60s >/dev/null
  eventually 60 freed "$net.2"
  echo "· datagrams reach the endpoint that there is, at each of the Service's addresses" ;;
esac

# External addresses are of the pool, and none of the loopback (the API's rule): this machine's own again.
case $here in ""|127.*) ;; *)
  outer() { kubectl apply -f - >/dev/null 2>&1 <<YAML
apiVersion: v1
kind: Service
metadata: {name: outer}
spec: {selector: {app: hello}, externalIPs: ["$1"], ports: [{port: $2, targetPort: 8080}]}
YAML
  }
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("0.0.0.0", 0)); print(s.getsockname()[1])')
  outer "$here" "$port" || fail "the Service wasn't taken"
  eventually 60 has "NoAddress .*spec.externalIPs\[0\]: $here" kubectl describe service outer
  refuses "$here:$port" || fail "an address outside of the pool is served"
  kubectl delete service near >/dev/null
  down
  up --load-balancer-pool "$here"
  kubectl rollout status deployment/hello --timeout=300s >/dev/null
  eventually 60 serves "$here:$port"
  kubectl apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Service
metadata: {name: late}
spec: {type: LoadBalancer, selector: {app: nobody}, ports: [{port: $port}]}
YAML
  eventually 60 has_address late "$here"
  has_no_endpoint() { [ "$(curl -sS -m 10 -o /dev/null -w '%{http_code}' "http://$here:$port/")" = 503 ]; }
  eventually 60 has_no_endpoint
  kubectl delete service late --timeout=60s >/dev/null
  eventually 60 serves "$here:$port"
  echo "· an external address is of the pool, and gives way to a load balancer" ;;
esac
down
echo PASS

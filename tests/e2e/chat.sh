#!/usr/bin/env bash
# A guest's WebSocket server behind Services: the cases of Autobahn's test suite, clients of the Python package `websockets`, and hostile
# clients. A handler of requests rejects upgrades.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
BIN=${SAMPLES_BIN:-sample-workloads/bin}
cache=${CORACLE_TEST_CACHE:-$HOME/.cache/coracle-test}
export PYTHONPATH=$cache/websockets${PYTHONPATH:+:$PYTHONPATH}
python3 -c 'import websockets.sync' 2>/dev/null || python3 -m pip install -q --target "$cache/websockets" websockets==17.4
driver() { python3 "$(dirname "${BASH_SOURCE[0]}")/chat.py" "$@"; }

up
export CORACLE_DATA_DIR="$WORK/data"
for sample in chat hello; do "$CORACLE" push "$BIN/$sample.wasm" "registry.local/$sample:v1" >/dev/null; done
# The second Service has no `appProtocol`: connections are passed on, not requests.
kubectl apply -f sample-workloads/manifests/chat.yaml -f sample-workloads/manifests/hello.yaml -f - >/dev/null <<'YAML'
apiVersion: v1
kind: Service
metadata: {name: bytes}
spec: {selector: {app: chat}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: handler}
spec: {selector: {app: hello}, ports: [{port: 80, targetPort: 8080, appProtocol: kubernetes.io/ws}]}
---
apiVersion: v1
kind: Service
metadata: {name: small}
spec: {selector: {app: small}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: small, labels: {app: small}}
spec:
  containers:
    - name: chat
      image: registry.local/chat:v1
      args: [--ping-seconds, "1", --max-clients, "20", --max-echo-bytes, "1000"]
      ports: [{containerPort: 8080}]
      readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
YAML
# The largest message of the cases has 1 MiB.
kubectl patch deployment chat --type=json -p '[{"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": ["--max-echo-bytes", "1048576"]}]' >/dev/null
kubectl rollout status deployment/chat --timeout=240s >/dev/null
kubectl rollout status deployment/hello --timeout=240s >/dev/null
kubectl wait --for=condition=Ready pod/small --timeout=240s >/dev/null
ip() { kubectl get service "$1" -o jsonpath='{.spec.clusterIP}'; }
restarts() { kubectl get pods -l 'app in (chat, small)' -o jsonpath='{.items[*].status.containerStatuses[0].restartCount}'; }
requests=$(ip chat) bytes=$(ip bytes) small=$(ip small)

# Both ways of a connection: its request is passed on, then its bytes; or bytes alone.
driver cases "$requests:80" "requests are passed on"
driver cases "$bytes:80" "connections are passed on"
for address in "$requests:80" "$bytes:80"; do
  driver handshakes "$address"
  driver clients "$address"
  driver slow "$address"
  driver random "$address"
done
driver limits "$small:80"
expect "0 0" "$(restarts)" "restarts after hostile clients"

upgrade=(-H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' -H 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==')
for service in handler hello; do
  curl -sS -D "$WORK/head" -o /dev/null "${upgrade[@]}" "http://$(ip $service)/"
  { grep -q '^HTTP/1.1 501' "$WORK/head" && grep -qi '^coracle-reason: upgrade' "$WORK/head"; } || fail "an upgrade to a handler: $(cat "$WORK/head")"
done
echo "· a handler of requests has no WebSocket"
down
echo PASS

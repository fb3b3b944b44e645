#!/usr/bin/env bash
# Upgraded connections: kubectl port-forward by both of its protocols, and the older WebSocket protocol.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

up
"$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/hello.wasm" registry.local/hello:v1 >/dev/null
kubectl apply -f sample-workloads/manifests/hello.yaml >/dev/null
kubectl rollout status deployment/hello --timeout=60s >/dev/null
pod=$(kubectl get pods -l app=hello -o jsonpath='{.items[0].metadata.name}')

# forward ARGUMENTS…: kubectl port-forward to a free local port; sets local_port and FORWARD_PID
forward() {
  : > "$WORK/forward"
  kubectl port-forward "$@" > "$WORK/forward" 2>&1 & FORWARD_PID=$!
  eventually 20 grep -q '^Forwarding from 127.0.0.1' "$WORK/forward"
  local_port=$(sed -n 's/^Forwarding from 127.0.0.1:\([0-9]*\) .*/\1/p' "$WORK/forward" | head -n 1)
}
stop_forward() { kill "$FORWARD_PID" 2>/dev/null || true; wait "$FORWARD_PID" 2>/dev/null || true; }

for websockets in true false; do
  export KUBECTL_PORT_FORWARD_WEBSOCKETS=$websockets
  forward service/hello :80
  for _ in 1 2 3; do has '^hello from hello-' curl -s -m 10 "http://127.0.0.1:$local_port/" || fail "no answer through port-forward (WebSockets: $websockets)"; done
  seq 20 | xargs -P 10 -I{} curl -s -m 10 -o /dev/null -w '%{http_code}\n' "http://127.0.0.1:$local_port/" > "$WORK/codes"
  expect "20 200" "$(sort "$WORK/codes" | uniq -c | sed 's/^ *//')" "twenty connections, ten at once"
  # A client that closes its sending half still gets a response.
  expect "HTTP/1.0 200 OK" "$(python3 - "$local_port" <<'P'
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=20) as s:
    s.sendall(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
    s.shutdown(socket.SHUT_WR)
    print(s.makefile("rb").read().split(b"\r\n")[0].decode())
P
)" "an answer to a client that has closed its half (WebSockets: $websockets)"
  # A body that is longer than every buffer on the way, to a server that rejects it.
  head -c 3000000 /dev/zero | curl -s -m 20 -o "$WORK/body" -w '%{http_code}' --data-binary @- "http://127.0.0.1:$local_port/" > "$WORK/codes"
  expect 405 "$(cat "$WORK/codes")" "a long body"
  stop_forward
  forward "pod/$pod" :99
  curl -s -m 10 "http://127.0.0.1:$local_port/" >/dev/null && fail "a port on which nothing listens answers"
  eventually 10 grep -q "error forwarding port 99 to pod $pod, uid .*connect: connection refused" "$WORK/forward"
  stop_forward
done
unset KUBECTL_PORT_FORWARD_WEBSOCKETS
echo "· kubectl port-forward, over WebSocket and over SPDY"

kubectl create serviceaccount viewer >/dev/null
kubectl create clusterrole forward-get --verb=get --resource=pods,pods/portforward >/dev/null
kubectl create clusterrolebinding forward-get --clusterrole=forward-get --serviceaccount=default:viewer >/dev/null
exits 1 kubectl port-forward "$pod" :8080 --as=system:serviceaccount:default:viewer
grep -q 'cannot create resource "pods/portforward"' "$WORK/err" || fail "get alone opens a way into a pod: $(cat "$WORK/err")"
exits 1 kubectl get --raw "/api/v1/namespaces/default/pods/$pod/portforward"
grep -q 'Upgrade request required' "$WORK/err" || fail "no upgrade: $(cat "$WORK/err")"
echo "· who may, and what is no upgrade"

kubectl create clusterrolebinding viewer --clusterrole=view --serviceaccount=default:viewer >/dev/null
python3 "$(dirname "${BASH_SOURCE[0]}")/streams.py" "$pod" "$(kubectl create token viewer)"

# The session's module is compiled by now, or soon.
compiled() { compgen -G "$WORK/data/compiled/$(sha256sum sample-workloads/bin/toolbox.wasm | cut -d' ' -f1)-*.cwasm"; }
eventually 120 compiled

# Open sessions are counted until they end, under upstream's names.
node=$(kubectl get node -o jsonpath='{.items[0].metadata.name}')
counted() { kubectl get --raw "/api/v1/nodes/$node/proxy/metrics" | sed -n "s/^$1{$2} //p"; }
labels() { echo "long_running=\"$1\",method=\"GET\",path=\"$2\",server_type=\"readwrite\""; }
is() { [ "$(counted kubelet_http_inflight_requests "$(labels true exec)")" = "$1" ]; }
# Long-running requests at the API server, by resource and subresource.
lasting() { kubectl get --raw /metrics | sed -n "s/^apiserver_longrunning_requests{verb=\"$1\".*resource=\"$2\",subresource=\"$3\".*} //p"; }
last() { [ "$(lasting "$2" "$3" "$4" | awk '{n += $1} END {print n + 0}')" = "$1" ]; }
watches=$(lasting WATCH configmaps '' | awk '{n += $1} END {print n + 0}')
kubectl exec -i "$pod" -- cat < <(sleep 600) > /dev/null 2>&1 & session=$!
kubectl get configmaps -w > /dev/null 2>&1 & watch=$!
kubectl logs -f "$pod" > /dev/null 2>&1 & log=$!
eventually 60 is 1
eventually 20 last 1 GET pods exec
eventually 20 last 1 GET pods log
eventually 20 last $((watches + 1)) WATCH configmaps ''
kill $session $watch $log; wait $session $watch $log 2>/dev/null || true
eventually 20 is 0
eventually 20 last 0 GET pods exec
eventually 20 last 0 GET pods log
eventually 20 last "$watches" WATCH configmaps ''
expect 1 "$(counted kubelet_http_requests_total "$(labels true exec)")" "sessions in all"
expect 1 "$(counted kubelet_http_requests_duration_seconds_count "$(labels true exec)")" "sessions that ended"
expect 1 "$(counted kubelet_websocket_streaming_requests_total 'subresource="exec"')" "sessions by WebSocket"
kubectl get --raw /metrics > "$WORK/metrics"
grep -qx 'apiserver_websocket_streaming_requests_total{subresource="exec",proxy_type="proxied_to_kubelet"} 1' "$WORK/metrics" || fail "not counted by the API server: $(grep websocket "$WORK/metrics")"
echo "· what is counted"

# Connections to the node are reused: a hundred sequential requests do not take a hundred connections.
port=$(kubectl get node "$node" -o jsonpath='{.status.daemonEndpoints.kubeletEndpoint.Port}')
# New sockets of the process with the kubelet's port at their other end, in any state.
to_kubelet() { awk -v port="$(printf ':%04X' "$port")" 'index($3, port) {print $2}' /proc/net/tcp | sort -u; }
to_kubelet > "$WORK/before"
for _ in $(seq 50); do kubectl logs "$pod" --tail=1 >/dev/null; kubectl get --raw "/api/v1/nodes/$node/proxy/healthz" >/dev/null; done
made=$(to_kubelet | comm -13 "$WORK/before" - | wc -l)
[ "$made" -le 8 ] || fail "$made connections for a hundred questions"
echo "· connections to nodes are kept"

# A page in an administrator's browser, which adds the certificate, opens no terminal at the kubelet. The API server judges the pages itself.
of_user() { kubectl config view --raw -o jsonpath="{.users[0].user.$1}" | base64 -d; }
of_user client-certificate-data > "$WORK/user.crt"; of_user client-key-data > "$WORK/user.key"
code() { curl -sk --http1.1 --max-time 3 -o "$WORK/answer" -w '%{http_code}' "$@" || true; }
kubelet=https://$(kubectl get node "$node" -o jsonpath='{.status.addresses[?(@.type=="InternalIP")].address}'):$port
container=$(kubectl get pod "$pod" -o jsonpath='{.spec.containers[0].name}')
shell() {
  code --cert "$WORK/user.crt" --key "$WORK/user.key" -H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' \
    -H 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==' -H 'Sec-WebSocket-Protocol: v4.channel.k8s.io' "$kubelet/exec/default/$pod/$container?command=true&output=1" "$@"
}
expect 101 "$(shell)" "a program's session at the kubelet"
for page in 'Origin: https://evil.example' 'Origin: null' 'Sec-Fetch-Site: cross-site'; do
  expect "403 a page of another site" "$(shell -H "$page") $(cut -c1-22 "$WORK/answer")" "$page"
done
kubectl create clusterrolebinding viewer-of-nodes --clusterrole=cluster-admin --serviceaccount=default:viewer >/dev/null
server=$(kubectl config view --raw -o jsonpath='{.clusters[0].cluster.server}')
token=$(kubectl create token viewer)
expect "200 ok" "$(code -H "Authorization: Bearer $token" -H 'Origin: https://console.example' -H 'Sec-Fetch-Site: cross-site' "$server/api/v1/nodes/$node/proxy/healthz") $(cat "$WORK/answer")" "a page with a token"
echo "· pages of other sites"
down

# An idle session ends; one with occasional data continues.
up --streaming-connection-idle-timeout 5
kubectl rollout status deployment/hello --timeout=60s >/dev/null
told() { kubectl exec "$pod" -- true; }
eventually 60 told
for websockets in true false; do
  export KUBECTL_REMOTE_COMMAND_WEBSOCKETS=$websockets
  expect "1 2 3 4 5 6 7 8" "$(kubectl exec "$pod" -- sh -c 'for n in 1 2 3 4 5 6 7 8; do echo $n; sleep 1; done' | paste -sd' ')" "a session that is heard of (WebSockets: $websockets)"
done
unset KUBECTL_REMOTE_COMMAND_WEBSOCKETS
kubectl exec -i "$pod" -- cat < <(sleep 600) > "$WORK/out" 2> "$WORK/err" & session=$!
gone() { ! kill -0 "$session" 2>/dev/null; }
eventually 60 gone
wait "$session" && fail "a session on which nothing moves ends well"
echo "· sessions that stand still"
down
echo PASS

#!/usr/bin/env bash
# Every sample behaves as in sample-workloads/README.md, on the real node. SAMPLES_BIN names other builds of the modules
# (CI rebuilds them from source and runs this on the result).
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
BIN=${SAMPLES_BIN:-sample-workloads/bin}
MANIFESTS=sample-workloads/manifests

up
for file in "$BIN"/*.wasm; do
  name=$(basename "$file" .wasm)
  "$CORACLE" push "$file" "registry.local/$name:v1" --data-dir "$WORK/data" >/dev/null
done
kubectl apply -f $MANIFESTS >/dev/null 2>&1 || kubectl apply -f $MANIFESTS >/dev/null # the shop's namespace may come after its first object
address() { kubectl get service "$1" -o jsonpath='{.spec.clusterIP}'; }
for name in hello hello-c endless glutton trap late chatter unruly greeter; do kubectl rollout status "deployment/$name" --timeout=60s >/dev/null; done
for name in frontend catalog users payments; do kubectl -n shop rollout status "deployment/$name" --timeout=60s >/dev/null; done
kubectl -n shop rollout status statefulset/orders --timeout=60s >/dev/null
status() { curl -s -m 20 -o "$WORK/body" -w '%{http_code}' "$@"; }

for name in hello hello-c; do
  ip=$(address $name)
  eventually 10 curl -fsS "http://$ip/"
  pod=$(curl -fsS -D "$WORK/head" "http://$ip/" | sed -n 's/^hello from //p')
  kubectl get pod "$pod" >/dev/null || fail "$name greets with $pod, which is no pod"
  grep -qi "^x-pod: $pod" "$WORK/head" || fail "$name: no x-pod header"
  expect one "$(curl -fsS "http://$ip/version")" "$name /version"
  expect 404 "$(status "http://$ip/none")" "$name: an unknown path"
  expect 405 "$(status -X DELETE "http://$ip/")" "$name: a wrong method"
  expect 400 "$(status "http://$ip/slow?ms=x")" "$name: a bad number"
  head -c 3000000 /dev/urandom > "$WORK/sent"
  curl -fsS --data-binary "@$WORK/sent" "http://$ip/echo" > "$WORK/back"
  cmp "$WORK/sent" "$WORK/back" || fail "$name: the echo differs"
  expect 5 "$(curl -fsSN "http://$ip/stream?n=5" | wc -l)" "$name: lines of a stream"
  eventually 10 has 'GET /' kubectl logs "deployment/$name"
done

# redis and dig are in sockets.sh.
for name in statefulset/kv deployment/dns; do kubectl rollout status "$name" --timeout=60s >/dev/null; done
exec 3<> "/dev/tcp/$(address kv)/6379"; printf 'PING\r\nQUIT\r\n' >&3
expect "+PONG +OK " "$(tr '\r\n' '  ' <&3 | tr -s ' ')" "kv"; exec 3>&-
has 'ready on port 5353 with 3 names' kubectl logs deployment/dns || fail "dns: $(kubectl logs deployment/dns)"

expect '"hello ada"' "$(curl -fsS "http://$(address greeter)/coracle:samples/greeter/greet" -d '{"name": "ada"}')" "greeter"
eventually 20 curl -fsS "http://$(address late)/"
curl -s -m 5 -o /dev/null "http://$(address chatter)/flood" & flood=$!
for _ in 1 2 3; do curl -fsS -m 2 "http://$(address hello)/" >/dev/null || fail "hello suffers from a log flood"; done
wait $flood || true
expect 502 "$(status "http://$(address trap)/trap")" "trap"
expect 200 "$(status "http://$(address unruly)/headers?set=connection:close,coracle-reason:none")" "unruly"
expect 503 "$(status "http://$(address glutton)/eat?mb=512")" "glutton"

kubectl wait --for=condition=complete job/burglar job/wordcount --timeout=30s >/dev/null
kubectl logs job/burglar | python3 -c 'import json,sys; d=json.loads(sys.stdin.read().strip().splitlines()[-1]); assert d["reached"] == [], d["reached"]; assert len(d["tried"]) > 20'
kubectl logs job/wordcount | python3 -c 'import json,sys; assert json.loads(sys.stdin.read().strip().splitlines()[-1])["words"] > 0'
exit_code() { kubectl get pods -l app=crash -o jsonpath='{.items[0].status.containerStatuses[0].lastState.terminated.exitCode}'; }
eventually 30 has '^3$' exit_code

port=$(kubectl -n shop get service frontend -o jsonpath='{.spec.ports[0].nodePort}')
has '<html' curl -fsS "http://127.0.0.1:$port/" || fail "the shop's page"
order() { status -X POST -H 'content-type: application/json' -d "$1" "http://127.0.0.1:$port/api/orders"; }
product=$(curl -fsS "http://127.0.0.1:$port/api/products" | python3 -c 'import json,sys; print(json.load(sys.stdin)[0]["id"])')
expect 200 "$(order "{\"product\":\"$product\",\"user\":\"ada\",\"quantity\":2}")" "an order"
expect 422 "$(order "{\"product\":\"$product\",\"user\":\"ada\",\"quantity\":0}")" "a bad quantity"
expect 400 "$(order 'no json')" "an order that is no JSON"
down
echo PASS

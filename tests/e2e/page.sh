#!/usr/bin/env bash
# The shop's page in a browser: Chromium shows the products, and an order placed in the form is paid.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

up --nodes 2
for name in frontend catalog users payments; do
  "$CORACLE" push "sample-workloads/bin/shop-$name.wasm" "registry.local/shop-$name:v1" --data-dir "$WORK/data" >/dev/null
done
kubectl apply -f sample-workloads/manifests/shop.yaml >/dev/null
for name in frontend catalog users payments; do kubectl -n shop rollout status "deployment/$name" --timeout=60s >/dev/null; done
port=$(kubectl -n shop get service frontend -o jsonpath='{.spec.ports[0].nodePort}')
eventually 10 curl -fsS "http://127.0.0.1:$port/api/products"
python3 "$(dirname "${BASH_SOURCE[0]}")/page.py" "http://127.0.0.1:$port/" "$WORK" || fail "see above"
down
echo PASS

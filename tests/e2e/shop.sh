#!/usr/bin/env bash
# The shop's database: acknowledged orders survive their pod, kill -9 of the process under load, and scaling; the nightly
# report counts them; deleting the set removes them.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

up --nodes 2
for name in shop-frontend shop-catalog shop-users shop-payments shop-orders shop-report; do
  "$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/$name.wasm" "registry.local/$name:v1" >/dev/null
done
kubectl apply -f sample-workloads/manifests/shop.yaml >/dev/null
shop() { kubectl -n shop "$@"; }
is() { [ "$(shop get "$1" -o jsonpath="$2" 2>/dev/null)" = "$3" ]; }
gone() { [ -z "$(shop get "$1" --ignore-not-found -o name)" ]; }
front() { SHOP=http://127.0.0.1:$(shop get service frontend -o jsonpath='{.spec.ports[0].nodePort}'); }
settled() { local name; for name in frontend catalog users payments; do shop rollout status "deployment/$name" --timeout=300s >/dev/null || fail "$name is not there"; done; }
# order: its id, as soon as it is paid
order() {
  curl -fsS -m 20 -X POST -H 'content-type: application/json' -d '{"product":"coracle","user":"ada","quantity":1}' "$SHOP/api/orders" |
    python3 -c 'import json,sys; o=json.load(sys.stdin); assert o["status"]=="paid", o; print(o["id"])'
}
kept() { has '"status": ?"paid"' curl -fsS -m 20 "$SHOP/api/orders/$1"; }
settled; front
eventually 120 order
exits 22 curl -fsS "$SHOP/api/orders/order-0000000000000000"
echo "· a shop without a database sells"

kubectl apply -f sample-workloads/manifests/shop-orders.yaml >/dev/null
shop rollout status statefulset/orders --timeout=300s >/dev/null || fail "$(shop describe pod orders-0 | tail -n 12)"
kept_order() { ID=$(order) && kept "$ID"; }
eventually 120 kept_order
expect 404 "$(curl -s -o /dev/null -w '%{http_code}' "$SHOP/api/orders/no-such")" "an unknown order"
shop delete pod orders-0 --wait --timeout=60s >/dev/null
shop rollout status statefulset/orders --timeout=300s >/dev/null || fail "orders did not come back"
eventually 120 kept "$ID"
echo "· an order outlives its pod"

# Several clients at once, each recording its acknowledged orders; then the kill during the load.
: > "$WORK/answered"
for _ in 1 2 3; do
  ( for _ in $(seq 2000); do id=$(order 2>/dev/null) || exit 0; echo "$id" >> "$WORK/answered"; done ) &
done
many() { [ "$(wc -l < "$WORK/answered")" -ge "$1" ]; }
eventually 120 many 12
down KILL
wait
answered=$(wc -l < "$WORK/answered")
up --nodes 2
settled; front
shop rollout status statefulset/orders --timeout=300s >/dev/null || fail "orders did not come back"
eventually 120 kept "$ID"
while read -r id; do eventually 120 kept "$id"; done < "$WORK/answered"
echo "· so it does kill -9 of the process, with all of $answered others"

shop create job once --from=cronjob/report >/dev/null
shop wait --for=condition=complete job/once --timeout=300s >/dev/null || fail "$(shop describe job once | tail -n 12)"
shop logs job/once > "$WORK/report"
python3 - "$WORK/report" "$answered" <<'PY' || fail "the report: $(cat "$WORK/report")"
import json, sys
report = json.load(open(sys.argv[1]))
# The first one, the acknowledged ones, and at most what each of the three had in flight.
assert report["paid"] >= int(sys.argv[2]) + 1 and report["total"] == 249 * report["paid"], report
assert report["paid"] <= report["orders"] <= int(sys.argv[2]) + 4, report
PY
echo "· the report has all of them"

eventually 120 is hpa/catalog '{.status.conditions[?(@.type=="ScalingActive")].status}' True
echo "· the catalog's autoscaler reads its load"

shop scale statefulset orders --replicas=0 >/dev/null
eventually 120 gone pod/orders-0
is pvc/data-orders-0 '{.status.phase}' Bound || fail "its claim did not stay"
exits 22 curl -fsS -m 20 -X POST -d '{"product":"coracle","user":"ada","quantity":1}' "$SHOP/api/orders"
shop scale statefulset orders --replicas=1 >/dev/null
eventually 120 kept "$ID"
echo "· scaled down and up, it has what it had; meanwhile nothing is sold that cannot be kept"

volume=$(shop get pvc data-orders-0 -o jsonpath='{.spec.volumeName}')
shop delete statefulset orders >/dev/null
eventually 120 gone pvc/data-orders-0
eventually 120 gone "pv/$volume"
[ -z "$(find "$WORK/data" -path '*/volumes/*' -name 'order-*')" ] || fail "the volume's files are still there"
down
echo PASS

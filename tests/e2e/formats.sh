#!/usr/bin/env bash
# Data folders that earlier versions wrote: the program starts with each, serves what is in it, and keeps it. One of a newer version is refused
# and not changed.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# Format 1 was written by commit 7a29936. Format 2 is that folder, read and written again by 8ce123e3.
FIXTURES=apiserver/server/tests/fixtures
NEWEST=3

# holds: the objects of the folder, as their owner would look for them
holds() {
  expect Opaque "$(kubectl -n team get secret s -o jsonpath='{.type}')" "the Secret's type"
  expect s "$(kubectl -n team get secrets --field-selector type=Opaque -o jsonpath='{.items[*].metadata.name}')" "Secrets by field"
  expect team "$(kubectl get namespaces -l tier=gold -o jsonpath='{.items[*].metadata.name}')" "namespaces by label"
  expect é "$(kubectl -n team get configmap held -o jsonpath='{.data.k}')" "a ConfigMap's text"
  has . kubectl -n team get configmap held -o jsonpath='{.metadata.deletionTimestamp}' || fail "the held ConfigMap isn't being deleted"
  exits 1 kubectl -n team get configmap gone
  grep -q NotFound "$WORK/err" || fail "a deleted ConfigMap: $(cat "$WORK/err")"
}

for fixture in "$FIXTURES"/store-format-*; do
  number=${fixture##*-}
  expect "$number" "$(cat "$fixture/format")" "the fixture's format"
  rm -rf "$WORK/data"; mkdir -p "$WORK/data"
  cp -r "$fixture" "$WORK/data/store"
  up
  holds
  expect $NEWEST "$(cat "$WORK/data/store/format")" "the format after the start"
  uid=$(kubectl -n team get secret s -o jsonpath='{.metadata.uid}')
  kubectl -n team create configmap written --from-literal=by=newest >/dev/null
  kubectl -n team patch configmap held --type merge -p '{"metadata":{"finalizers":null}}' >/dev/null
  kubectl -n team wait --for=delete configmap/held --timeout=30s >/dev/null
  kubectl -n team apply --server-side -f - >/dev/null <<< '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"after"},"data":{"applied":"yes"}}'
  down
  up
  expect "$uid" "$(kubectl -n team get secret s -o jsonpath='{.metadata.uid}')" "the Secret's uid after a restart"
  expect newest "$(kubectl -n team get configmap written -o jsonpath='{.data.by}')" "a new object after a restart"
  expect yes "$(kubectl -n team get configmap after -o jsonpath='{.data.applied}')" "an applied field after a restart"
  exits 1 kubectl -n team get configmap held
  # A deployment over what the old folder had: controllers, node and proxy work with its records.
  "$CORACLE" push --data-dir "$WORK/data" sample-workloads/bin/hello.wasm registry.local/hello:v1 >/dev/null
  kubectl -n team create deployment hello --image=registry.local/hello:v1 >/dev/null
  kubectl -n team rollout status deployment/hello --timeout=60s >/dev/null
  down
  echo "· a folder of format $number"
done

echo $((NEWEST + 1)) > "$WORK/data/store/format"
find "$WORK/data/store" -type f -exec sha256sum {} + | sort > "$WORK/before"
exits 1 timeout 30 "$CORACLE" up --data-dir "$WORK/data" --port 0
grep -q "format $((NEWEST + 1)), this program reads up to $NEWEST: use the newer coracle" "$WORK/err" || fail "a newer format: $(cat "$WORK/err")"
find "$WORK/data/store" -type f -exec sha256sum {} + | sort | diff - "$WORK/before" || fail "a newer folder was changed"
echo "· a folder of a newer version is refused"
echo PASS

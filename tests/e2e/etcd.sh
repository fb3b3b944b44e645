#!/usr/bin/env bash
# A cluster over a real etcd with TLS: docs/shared-stores.md, "etcd". What a start refuses; etcd dies and returns; the next start finds all objects.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$(dirname "${BASH_SOURCE[0]}")/members.bash"

trap 'stop_members; cleanup' EXIT
tls=("${ETCD_TLS[@]}")

# Without etcd, and with another authority.
plan_members 1
at=$ETCD_URLS
exits 1 "$CORACLE" up --data-dir "$WORK/data" --port 0 --store "etcd:$at" "${tls[@]}"
has 'does not answer within 10s; .*Connection refused' cat "$WORK/err" || fail "no etcd: $(cat "$WORK/err")"
start_member 0
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$WORK/o.key" -out "$WORK/other" -days 2 -subj /CN=other 2>/dev/null
exits 1 "$CORACLE" up --data-dir "$WORK/data" --port 0 --store "etcd:$at" --etcd-cafile "$WORK/other"
exits 2 "$CORACLE" up --data-dir "$WORK/data" --port 0 --store "etcd:$at"
has 'etcd-cafile' cat "$WORK/err" || fail "no authority: $(cat "$WORK/err")"
exits 1 "$CORACLE" backup "$WORK/none" --store "etcd:$at" "${tls[@]}"
has 'etcd has no keys below /registry: .*--etcd-prefix' cat "$WORK/err" || fail "a backup of nothing: $(cat "$WORK/err")"

up --store "etcd:$at" "${tls[@]}"
"$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/hello.wasm" registry.local/hello:v1 >/dev/null
kubectl create deployment web --image=registry.local/hello:v1 --replicas=2 >/dev/null
kubectl rollout status deployment/web --timeout=60s >/dev/null
kubectl create configmap kept --from-literal=n=1 >/dev/null
uid=$(kubectl get deployment/web -o jsonpath='{.metadata.uid}')
expect ok "$(kubectl get --raw /readyz)" "readyz over etcd"
[ ! -e "$WORK/data/store" ] || fail "there is an embedded store beside etcd"
kubectl get configmaps --watch -o name > "$WORK/seen" 2>/dev/null & watcher=$!
eventually 15 grep -q configmap/kept "$WORK/seen"

# A dead etcd: writes and /readyz fail with a reason, and the watch goes on when etcd returns.
stop_member 0
not_ready() { ! kubectl get --raw /readyz 2> "$WORK/err"; }
eventually 15 not_ready
has 'etcd failed' cat "$WORK/err" || fail "readyz without etcd: $(cat "$WORK/err")"
! kubectl create configmap lost 2> "$WORK/err" || fail "a write without etcd"
has 'the store is not available' cat "$WORK/err" || fail "a write without etcd: $(cat "$WORK/err")"
start_member 0
eventually 15 kubectl get --raw /readyz
eventually 15 kubectl create configmap after
eventually 15 grep -q configmap/after "$WORK/seen"
kill $watcher; wait $watcher 2>/dev/null || true
expect 1 "$(kubectl get configmap kept -o jsonpath='{.data.n}')" "an object of before"
down

# The next start, on another machine with the cluster's authority, images and addresses.
mv "$WORK/data" "$WORK/old"
mkdir -m 700 "$WORK/data"
cp -a "$WORK"/old/{pki,images,network*} "$WORK/data/"
up --store "etcd:$at" "${tls[@]}"
expect "$uid" "$(kubectl get deployment/web -o jsonpath='{.metadata.uid}')" "uid after a start elsewhere"
kubectl rollout status deployment/web --timeout=60s >/dev/null
! has 'moved from' cat "$WORK/up.log" || fail "the addresses moved: $(cat "$WORK/up.log")"

# etcd goes back in time under the running cluster: lists, watches and pods follow.
stop_member 0
cp -a "$WORK/m0" "$WORK/older"
start_member 0
eventually 15 kubectl get --raw /readyz
kubectl create configmap gone >/dev/null
kubectl delete configmap after >/dev/null
kubectl get configmaps --watch -o name > "$WORK/seen" 2>/dev/null & watcher=$!
eventually 15 grep -q configmap/gone "$WORK/seen"
stop_member 0
rm -rf "$WORK/m0"
mv "$WORK/older" "$WORK/m0"
start_member 0
eventually 30 kubectl get configmap after
! kubectl get configmap gone >/dev/null 2>&1 || fail "an object of the lost history"
kubectl create configmap returned >/dev/null
has configmap/returned kubectl get configmaps -o name || fail "a new object is in no list"
has '^coracle_etcd_replaced_histories_total 1$' kubectl get --raw /metrics || fail "the replaced history isn't counted"
has 'etcd went back in time' cat "$WORK/up.log" || fail "the log has nothing of it"
wait $watcher 2>/dev/null || true
kubectl scale deployment/web --replicas=3 >/dev/null
kubectl rollout status deployment/web --timeout=60s >/dev/null
kubectl delete configmap returned >/dev/null

# etcd's own restore of a snapshot, in the order of docs/shared-stores.md, "etcd". A client's watch from before lists again.
ctl=(etcdctl --endpoints "$at" --cacert "$WORK/tls/ca" --cert "$WORK/tls/cert" --key "$WORK/tls/key")
"${ctl[@]}" snapshot save "$WORK/etcd.snapshot" > /dev/null 2> "$WORK/err" || fail "a snapshot: $(cat "$WORK/err")"
kubectl create configmap lost >/dev/null
latest=$(kubectl get configmap lost -o jsonpath='{.metadata.resourceVersion}')
down
stop_member 0
rm -rf "$WORK/m0"
read -r _ peer <<< "${MEMBERS[0]}"
etcdutl snapshot restore "$WORK/etcd.snapshot" --bump-revision 1000000000 --mark-compacted --data-dir "$WORK/m0" --name m0 \
  --initial-cluster "$MEMBER_PEERS" --initial-advertise-peer-urls "$peer" > "$WORK/out" 2>&1 || fail "etcdutl: $(cat "$WORK/out")"
start_member 0
up --store "etcd:$at" "${tls[@]}"
expect "$uid" "$(kubectl get deployment/web -o jsonpath='{.metadata.uid}')" "uid after etcd's restore"
! kubectl get configmap lost >/dev/null 2>&1 || fail "an object of after the snapshot"
has '"code":410' kubectl get --raw "/api/v1/configmaps?watch=true&timeoutSeconds=5&resourceVersion=$latest" || fail "a watch goes on over etcd's restore"
kubectl create configmap found >/dev/null
[ "$(kubectl get configmap found -o jsonpath='{.metadata.resourceVersion}')" -gt $((latest + 900000000)) ] || fail "etcd's revisions aren't higher"
kubectl delete configmap found >/dev/null
kubectl scale deployment/web --replicas=2 >/dev/null
kubectl rollout status deployment/web --timeout=60s >/dev/null

# Backups from etcd into another prefix and into the embedded store, and from there into etcd.
exits 0 "$CORACLE" backup "$WORK/shop.backup" --store "etcd:$at" "${tls[@]}"
grep -Eq "^$WORK/shop.backup: [0-9]+ objects at revision [0-9]+$" "$WORK/out" || fail "backup printed: $(cat "$WORK/out")"
kubectl create configmap later >/dev/null
before=$(kubectl get configmap later -o jsonpath='{.metadata.resourceVersion}')
exits 1 "$CORACLE" restore "$WORK/shop.backup" --store "etcd:$at" "${tls[@]}"
has 'etcd has keys below /registry: .*--etcd-prefix' cat "$WORK/err" || fail "a restore over a cluster: $(cat "$WORK/err")"
down
# is_restored: the objects of the backup, and revisions above all that clients know
is_restored() {
  expect "$uid" "$(kubectl get deployment/web -o jsonpath='{.metadata.uid}')" "uid of a restored Deployment"
  ! kubectl get configmap later >/dev/null 2>&1 || fail "an object of after the backup was restored"
  has '"code":410' kubectl get --raw "/api/v1/configmaps?watch=true&timeoutSeconds=5&resourceVersion=$before" || fail "a watch goes on over a restore"
  kubectl create configmap next >/dev/null
  [ "$(kubectl get configmap next -o jsonpath='{.metadata.resourceVersion}')" -gt $((before + 1000000)) ] || fail "revisions aren't higher"
  kubectl rollout status deployment/web --timeout=60s >/dev/null
}
exits 0 "$CORACLE" restore "$WORK/shop.backup" --store "etcd:$at" "${tls[@]}" --etcd-prefix /moved
grep -Eq "^$at/moved: [0-9]+ objects at revision [0-9]+$" "$WORK/out" || fail "restore printed: $(cat "$WORK/out")"
up --store "etcd:$at" "${tls[@]}" --etcd-prefix /moved
is_restored
down
exits 0 "$CORACLE" restore "$WORK/shop.backup" --data-dir "$WORK/data"
up
is_restored
exits 0 "$CORACLE" backup "$WORK/again.backup" --data-dir "$WORK/data"
kubectl delete configmap next >/dev/null
before=$(kubectl get configmap kept -o jsonpath='{.metadata.resourceVersion}')
down
exits 0 "$CORACLE" restore "$WORK/again.backup" --store "etcd:$at" "${tls[@]}" --etcd-prefix /again
up --store "etcd:$at" "${tls[@]}" --etcd-prefix /again
expect 1 "$(kubectl get configmap next -o name | wc -l)" "an object of the second backup"
kubectl delete configmap next >/dev/null
is_restored

# From there to a second machine: docs/shared-stores.md, "Several API servers".
exits 0 "$CORACLE" token create --control-plane --data-dir "$WORK/data"
read -ra line < "$WORK/out"
: > "$WORK/two.ready"
"$CORACLE" "${line[@]:1}" --data-dir "$WORK/two" --bind 127.0.0.2 --port "${line[3]##*:}" --store "etcd:$at" "${tls[@]}" --etcd-prefix /again \
  > "$WORK/two.ready" 2> "$WORK/two.log" & two=$!
await_ready "the second server" "$two" "$WORK/two.ready"
expect "$uid" "$(kubectl --kubeconfig "$WORK/two/kubeconfig" get deployment/web -o jsonpath='{.metadata.uid}')" "uid at the second machine"
kubectl --kubeconfig "$WORK/two/kubeconfig" scale deployment/web --replicas=3 >/dev/null
kubectl rollout status deployment/web --timeout=60s >/dev/null
kill -TERM $two; wait $two || fail "the second server: $(cat "$WORK/two.log")"
down
echo PASS

#!/usr/bin/env bash
# A cluster over a real etcd with TLS: docs/operations.md, "etcd". What a start refuses; etcd dies and returns; the next start finds all objects.
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
exits 2 "$CORACLE" backup "$WORK/b" --data-dir "$WORK/data" --store "etcd:$at" "${tls[@]}"
has 'etcdctl snapshot save' cat "$WORK/err" || fail "a backup of etcd: $(cat "$WORK/err")"

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
down
! has 'moved from' cat "$WORK/up.log" || fail "the addresses moved: $(cat "$WORK/up.log")"
echo PASS

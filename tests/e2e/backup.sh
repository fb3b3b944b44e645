#!/usr/bin/env bash
# `coracle backup` of a cluster that runs and is written to, and `coracle restore` into a new folder: docs/backup.md, "Backup". What both refuse.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

up
"$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/hello.wasm" registry.local/hello:v1 >/dev/null
kubectl create deployment web --image=registry.local/hello:v1 --replicas=2 >/dev/null
kubectl create secret generic kept --from-literal=password=only-in-the-store >/dev/null
kubectl rollout status deployment/web --timeout=60s >/dev/null
version_of() { kubectl get "$1" -o jsonpath='{.metadata.resourceVersion}'; }
uid=$(kubectl get deployment/web -o jsonpath='{.metadata.uid}')
(for n in $(seq 15); do for name in a b; do
  printf '{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"%s"},"data":{"n":"%s"}}' "$name" "$n" | kubectl apply -f - >/dev/null
done; done) & writer=$!
eventually 20 kubectl get configmap b
exits 0 "$CORACLE" backup "$WORK/shop.backup" --data-dir "$WORK/data"
grep -Eq "^$WORK/shop.backup: [0-9]+ objects at revision [0-9]+$" "$WORK/out" || fail "backup printed: $(cat "$WORK/out")"
expect 600 "$(stat -c %a "$WORK/shop.backup")" "mode of a file with secrets"
head -c 32 /dev/urandom | base64 > "$WORK/key"
exits 0 "$CORACLE" backup "$WORK/sealed.backup" --data-dir "$WORK/data" --key-file "$WORK/key"
secret=$(printf only-in-the-store | base64)
grep -qa "$secret" "$WORK/shop.backup" || fail "a backup without the Secret"
! grep -qa "$secret" "$WORK/sealed.backup" || fail "an encrypted backup shows a Secret"
exits 1 "$CORACLE" backup "$WORK/shop.backup" --data-dir "$WORK/data"
has 'exists: remove it' cat "$WORK/err" || fail "$(cat "$WORK/err")"
wait "$writer"
kubectl create configmap later >/dev/null
before=$(version_of configmap/later)
exits 1 "$CORACLE" restore "$WORK/shop.backup" --data-dir "$WORK/data"
has 'in use by another' cat "$WORK/err" || fail "a running cluster: $(cat "$WORK/err")"
down
exits 1 "$CORACLE" restore "$WORK/shop.backup" --data-dir "$WORK/data"
has 'is not empty' cat "$WORK/err" || fail "a stopped cluster: $(cat "$WORK/err")"
exits 1 "$CORACLE" backup "$WORK/none.backup" --data-dir "$WORK/none"
has 'there is no store in .*--data-dir' cat "$WORK/err" || fail "no cluster: $(cat "$WORK/err")"
head -c 2000 "$WORK/shop.backup" > "$WORK/cut.backup"
exits 1 "$CORACLE" restore "$WORK/cut.backup" --data-dir "$WORK/none"
has 'not a whole backup' cat "$WORK/err" || fail "a cut backup: $(cat "$WORK/err")"
exits 1 "$CORACLE" restore "$WORK/shop.backup" --store etcd:http://127.0.0.1:1
has 'etcd does not answer within 10s' cat "$WORK/err" || fail "no etcd: $(cat "$WORK/err")"
exits 1 "$CORACLE" restore "$WORK/sealed.backup" --data-dir "$WORK/none"
has 'is encrypted: .*--key-file' cat "$WORK/err" || fail "no key: $(cat "$WORK/err")"
echo short > "$WORK/bad"
exits 2 "$CORACLE" restore "$WORK/sealed.backup" --data-dir "$WORK/none" --key-file "$WORK/bad"
has 'urandom' cat "$WORK/err" || fail "a wrong key: $(cat "$WORK/err")"

# The runbook: authority and images move with the backup.
mv "$WORK/data" "$WORK/old"
mkdir -m 700 "$WORK/data"
cp -a "$WORK/old/pki" "$WORK/old/images" "$WORK/data/"
exits 0 "$CORACLE" restore "$WORK/sealed.backup" --data-dir "$WORK/data" --key-file "$WORK/key"
grep -Eq "^$WORK/data/store: [0-9]+ objects at revision [0-9]+$" "$WORK/out" || fail "restore printed: $(cat "$WORK/out")"
up
expect "$uid" "$(kubectl get deployment/web -o jsonpath='{.metadata.uid}')" "uid of the restored Deployment"
expect only-in-the-store "$(kubectl get secret kept -o jsonpath='{.data.password}' | base64 -d)" "the restored Secret"
! kubectl get configmap later >/dev/null 2>&1 || fail "an object of after the backup was restored"
a=$(kubectl get configmap a -o jsonpath='{.data.n}') b=$(kubectl get configmap b -o jsonpath='{.data.n}')
[ "$a" = "$b" ] || [ "$a" = $((b + 1)) ] || fail "the backup has a=$a and b=$b, which never were together"
kubectl rollout status deployment/web --timeout=60s >/dev/null
# Every informer notices: its version is too old, and new versions are higher than all that it knows.
has '"code":410' kubectl get --raw "/api/v1/configmaps?watch=true&timeoutSeconds=5&resourceVersion=$before" || fail "a watch goes on over a restore"
kubectl create configmap next >/dev/null
[ "$(version_of configmap/next)" -gt $((before + 1000000)) ] || fail "versions begin at $(version_of configmap/next) after $before"
down
echo PASS

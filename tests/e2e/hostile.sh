#!/usr/bin/env bash
# Invalid input and faults: clients, images, guests, ports, folders and files. Each gets a precise
# response, no other client is affected, and no acknowledged write is lost.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
PUT="$CORACLE push --data-dir $WORK/data"
pod() { # pod NAME IMAGE [fields of the spec] [annotations] [fields of the container]
  printf '{"apiVersion":"v1","kind":"Pod","metadata":{"name":"%s","labels":{"app":"%s"},"annotations":{%s}},"spec":{"restartPolicy":"Never",%s"containers":[{%s"name":"c","image":"%s"}]}}' \
    "$1" "$1" "${4:-}" "${3:+$3,}" "${5:-}" "$2" | kubectl apply -f - >/dev/null
}
waits() { kubectl get pod "$1" -o jsonpath='{.status.containerStatuses[0].state.waiting.reason}: {.status.containerStatuses[0].state.waiting.message}'; }
ended() { kubectl get pod "$1" -o jsonpath='{.status.containerStatuses[0].state.terminated.reason} {.status.containerStatuses[0].state.terminated.exitCode}'; }
events() { kubectl get events --field-selector "involvedObject.name=$1" -o jsonpath='{range .items[*]}{.reason}: {.message}{"\n"}{end}'; }
serves() { curl -fsS -m 5 "http://$HELLO/" >/dev/null || fail "hello suffers from $1"; }

up --nodes 2
PYTHONPATH=tests/e2e python3 - "$WORK" <<'PY'
import sys
from modules import LOOP, command, knot, named, section, subtype
hello = open("sample-workloads/bin/hello.wasm", "rb").read()
modules = {
    "foreign": hello.replace(b"wasi:cli/environment@", b"evil:cli/environment@"),
    "thief": command(b"", section(2, b"\1" + named(b"vault") + named(b"steal") + b"\0\0"), 1),
    "nostart": b"\0asm\1\0\0\0",
    "loop": LOOP,
    "boom": command(b"\x00"),  # unreachable
    "bomb": command(b"\x03\x40\x41\x80\x01\x40\x00\x1a\x0c\x00\x0b", memory=section(5, b"\1\0\1")),  # grow by 128 pages for ever
    "huge": command(b"", memory=section(5, b"\1\0\x80\x80\x04")),  # 4 GiB from the first
    "knot": knot(),
    "subtype": subtype(),  # aborts a process whose wasmtime lacks the garbage collector
}
for name, data in modules.items():
    open(f"{sys.argv[1]}/{name}.wasm", "wb").write(data)
open(f"{sys.argv[1]}/cut.wasm", "wb").write(hello[:20000])
PY
put knot "$WORK/knot.wasm"
for m in foreign thief nostart loop boom bomb huge subtype; do $PUT "$WORK/$m.wasm" "registry.local/$m:v1" >/dev/null; done
exits 1 $PUT "$WORK/cut.wasm" registry.local/cut:v1
for m in hello chatter crash; do $PUT "sample-workloads/bin/$m.wasm" "registry.local/$m:v1" >/dev/null; done
kubectl apply -f sample-workloads/manifests/hello.yaml -f sample-workloads/manifests/chatter.yaml >/dev/null
kubectl rollout status deployment/hello deployment/chatter --timeout=60s >/dev/null
HELLO=$(kubectl get service hello -o jsonpath='{.spec.clusterIP}')
eventually 10 curl -fsS "http://$HELLO/"

# One of the two compilers is kept busy from here on; the result is checked below.
pod knot registry.local/knot:v1

echo "· guests"
for m in foreign thief nostart subtype; do pod $m registry.local/$m:v1; done
pod loop registry.local/loop:v1 '"activeDeadlineSeconds":5'
pod spender registry.local/loop:v1 '' '"fuel.coracle.dev/c":"1000000"'
pod endless registry.local/loop:v1
pod boom registry.local/boom:v1
for m in bomb huge; do pod $m registry.local/$m:v1 '' '' '"resources":{"limits":{"memory":"64Mi"}},'; done
eventually 30 has 'evil:cli/environment' waits foreign
eventually 30 has 'vault.*steal' waits thief
eventually 30 has '_start' waits nostart
eventually 30 has 'gc proposal must be enabled' waits subtype
eventually 30 has '^Error 134$' ended boom
eventually 30 has '^FuelExhausted 137$' ended spender
eventually 30 has 'DeadlineExceeded' kubectl get pod loop -o jsonpath='{.status.reason}'
for m in bomb huge; do eventually 60 has '^OOMKilled 137$' ended $m; done
serves "an endless loop beside it"
kubectl delete pod endless --timeout=40s >/dev/null
serves "guests"

echo "· images"
for line in 'never registry.local/none:v1 ErrImageNeverPull' 'upper registry.local/UPPER:v1 InvalidImageName' 'missing registry.local/none:v1 Err?ImagePull|ImagePullBackOff' 'foreigner example.invalid/a:v1 Err?ImagePull|ImagePullBackOff|RegistryUnavailable' \
  'file file:///etc/passwd allow-file-images' 'digest registry.local/hello@sha256:0000000000000000000000000000000000000000000000000000000000000000 ImagePull'; do
  read -r name image want <<< "$line"
  if [ "$name" = never ]; then
    kubectl run never --image="$image" --image-pull-policy=Never --restart=Never >/dev/null
  else pod "$name" "$image"; fi
  eventually 30 has "$want" waits "$name"
done

echo "· fields and annotations that the node does not act on"
pod second registry.local/hello:v1 '"volumes":[{"name":"huge","emptyDir":{"medium":"HugePages-2Mi"}},{"name":"far","nfs":{"server":"a.test","path":"/"}}]'
for path in 'spec.volumes\[0\].emptyDir.medium' 'spec.volumes\[1\].nfs'; do
  eventually 20 has "^CreateContainerConfigError: .*$path" waits second
  eventually 20 has "^Unsupported: .*$path" events second
done
expect Pending "$(kubectl get pod second -o jsonpath='{.status.phase}')" "phase of a pod with unsupported fields"
for annotation in fuel:x fuel:0 timeout:2 concurrency:0 concurrency:-1 stop:now host:blobstore reuse:often; do
  name=bad-${annotation%%:*}; value=${annotation#*:}
  kubectl delete pod "$name" --ignore-not-found >/dev/null
  pod "$name" registry.local/hello:v1 '' "\"${annotation%%:*}.coracle.dev/c\":\"$value\""
  eventually 20 has "^CreateContainerConfigError: .*${annotation%%:*}.coracle.dev/c" waits "$name"
done

echo "· a log flood"
CHATTER=$(kubectl get service chatter -o jsonpath='{.spec.clusterIP}')
kubectl config view --raw -o jsonpath='{.users[0].user.client-certificate-data}' | base64 -d > "$WORK/cert"
(umask 077; kubectl config view --raw -o jsonpath='{.users[0].user.client-key-data}' | base64 -d > "$WORK/key")
PORTS=$(kubectl get nodes -o jsonpath='{.items[*].status.daemonEndpoints.kubeletEndpoint.Port}')
dropped() { # a node has counted bytes of logs over the rate
  for port in $PORTS; do curl -sk -m 5 --cert "$WORK/cert" --key "$WORK/key" "https://127.0.0.1:$port/metrics"; done |
    awk '/^coracle_log_dropped_bytes_total/ {sum += $NF} END {exit !(sum > 0)}'
}
floods=
for _ in 1 2 3 4; do curl -s -m 60 -o /dev/null "http://$CHATTER/flood" & floods="$floods $!"; done
until=$((SECONDS + 20))
until dropped || [ $SECONDS -ge $until ]; do serves "a log flood"; done
dropped || echo "  (too slow a machine to log faster than a container may)"
serves "a log flood"
# shellcheck disable=SC2086
kill $floods && wait $floods 2>/dev/null || true
weight=$(du -sm "$WORK/data/nodes" | cut -f1)
[ "$weight" -le 200 ] || fail "a log flood weighs $weight MiB on disk"
kubectl delete deployment chatter >/dev/null

echo "· a port of the host that is taken, and fields of a Service that mean nothing"
kubectl expose deployment hello --name=free --port=8081 --target-port=8080 >/dev/null
FREE=$(kubectl get service free -o jsonpath='{.spec.clusterIP}')
eventually 10 curl -fsS "http://$FREE:8081/"
kubectl delete service free >/dev/null
python3 -c '
import socket, sys
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("127.0.0.1", 0)); s.listen()
for port in range(30000, 32768):
    t = socket.socket()
    try: t.bind(("127.0.0.1", port)); t.listen(); print(port, flush=True); break
    except OSError: t.close()
sys.stdin.read()' < <(tail -f /dev/null --pid=$$) > "$WORK/taken" & holder=$!
eventually 10 test -s "$WORK/taken"
taken=$(cat "$WORK/taken")
printf '{"apiVersion":"v1","kind":"Service","metadata":{"name":"taken"},"spec":{"type":"NodePort","selector":{"app":"hello"},"ports":[{"port":80,"targetPort":8080,"nodePort":%s}]}}' "$taken" | kubectl apply -f - >/dev/null
eventually 20 has "^FailedToListen: .*$taken" events taken
eventually 10 curl -fsS "http://$(kubectl get service taken -o jsonpath='{.spec.clusterIP}')/"
kill $holder; wait $holder 2>/dev/null || true
eventually 40 curl -fsS "http://127.0.0.1:$taken/"
kubectl apply -f - >/dev/null <<< '{"apiVersion":"v1","kind":"Service","metadata":{"name":"odd"},"spec":{"externalIPs":["192.0.2.1"],"selector":{"app":"hello"},"ports":[{"port":80,"protocol":"SCTP"}]}}'
eventually 20 has '^NoAddress: .*spec.externalIPs\[0\]: 192.0.2.1' events odd
eventually 20 has '^Unsupported: .*spec.ports\[0\].protocol' events odd

echo "· modules that compile for minutes"
eventually 150 has '^Failed: .*does not compile within 120 s, which the node.s --module-compile-timeout raises' events knot
eventually 10 has '^(ErrImagePull|ImagePullBackOff): .*does not compile within 120 s' waits knot
# The next user gets the error at once, and no compiler continues.
pod again registry.local/knot:v1
eventually 15 has '^Failed: .*does not compile within 120 s' events again
pgrep -f "coracle-compile-worker.*$WORK" >/dev/null && fail "a compiler goes on"
serves "modules that compile for minutes"

echo "· clients"
python3 "$(dirname "${BASH_SOURCE[0]}")/hostile.py" "$KUBECONFIG" "$WORK/data" || fail "see above"
serves "hostile clients"

echo "· SIGTERM under load"
load() { while curl -s -m 5 -o /dev/null "http://$HELLO/echo" -d x && kubectl create configmap "load-$1-$RANDOM$RANDOM" >/dev/null 2>&1; do :; done; }
for i in 1 2 3 4; do load $i & done
kubectl get pods --watch >/dev/null 2>&1 & watcher=$!
kubectl rollout restart deployment/hello >/dev/null
before=$(date +%s%N)
down TERM
took=$((($(date +%s%N) - before) / 1000000))
[ $took -le 5000 ] || fail "SIGTERM under load took $took ms"
wait $watcher || true

echo "· kill -9 in the middle of a rollout, three times"
up --nodes 2
uid=$(kubectl get deployment hello -o jsonpath='{.metadata.uid}')
for version in k1 k2 k3; do
  kubectl set env deployment/hello VERSION=$version >/dev/null
  down KILL 2>/dev/null
  up --nodes 2
done
kubectl rollout status deployment/hello --timeout=90s >/dev/null
expect "$uid" "$(kubectl get deployment hello -o jsonpath='{.metadata.uid}')" "uid of a Deployment after kill -9"
eventually 20 has k3 curl -fsS "http://$(kubectl get service hello -o jsonpath='{.spec.clusterIP}')/version"
down

echo "· damaged files"
rm -rf "$WORK"/data/store/sled*
up --nodes 0
expect "$uid" "$(kubectl get deployment hello -o jsonpath='{.metadata.uid}')" "uid after sled's files were deleted"
down
find "$WORK/data/store" -path '*sled*' -type f -exec sh -c 'head -c 4096 /dev/urandom | dd of="$1" conv=notrunc status=none' - {} \;
up --nodes 0
expect "$uid" "$(kubectl get deployment hello -o jsonpath='{.metadata.uid}')" "uid after sled's files were garbled"
down
log=$(find "$WORK/data/store/log" -type f | sort | head -1)
cp -a "$WORK/data/store" "$WORK/kept"
# A torn tail is the result of a crash, and no damage; a hole in the middle is damage and reported.
printf '\x40\x00\x00\x00torn' >> "$(find "$WORK/data/store/log" -type f | sort | tail -1)"
up --nodes 0
expect "$uid" "$(kubectl get deployment hello -o jsonpath='{.metadata.uid}')" "uid after a torn tail"
down
rm -rf "$WORK/data/store" && cp -a "$WORK/kept" "$WORK/data/store" && rm -rf "$WORK"/data/store/sled*
head -c 64 /dev/urandom | dd of="$log" bs=1 seek=$(($(stat -c %s "$log") / 2)) conv=notrunc status=none
exits 1 timeout 30 "$CORACLE" up --data-dir "$WORK/data" --port 0 --nodes 0
expect 1 "$(wc -l < "$WORK/err")" "lines about a damaged log: $(cat "$WORK/err")"
grep -q "$(basename "$log")" "$WORK/err" || fail "the damaged file is not named: $(cat "$WORK/err")"
grep -q 'coracle restore FILE --data-dir' "$WORK/err" || fail "no way back is named: $(cat "$WORK/err")"
expect 0 "$(wc -c < "$WORK/out")" "bytes on stdout of a start that failed"
# A missing store beside other files of a cluster is no new cluster.
rm -rf "$WORK/data/store"
exits 1 timeout 30 "$CORACLE" up --data-dir "$WORK/data" --port 0 --nodes 0
expect 1 "$(wc -l < "$WORK/err")" "lines about a store that is gone: $(cat "$WORK/err")"
grep -q 'put a copy of the store back' "$WORK/err" || fail "no way back is told: $(cat "$WORK/err")"
[ ! -e "$WORK/data/store/format" ] || fail "a store was begun in place of the one that is gone"
mv "$WORK/kept" "$WORK/data/store"
chmod 755 "$WORK/data"
up --nodes 0
expect "$uid" "$(kubectl get deployment hello -o jsonpath='{.metadata.uid}')" "uid once the files are back"
expect 700 "$(stat -c %a "$WORK/data")" "mode of a data folder that others could read"
down
echo PASS

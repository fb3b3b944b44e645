#!/usr/bin/env bash
# Static pods: a folder of manifests, their mirrors, and the effect of garbage in it.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

mkdir "$WORK/manifests"
manifest() { echo "{apiVersion: v1, kind: Pod, metadata: {name: $1, labels: {app: $1}}, spec: {containers: [{name: c, image: 'registry.local/hello:v1', ports: [{containerPort: 80}], env: [{name: VERSION, value: '$2'}]}]}}"; }
manifest web one > "$WORK/manifests/web.yaml"
echo 'a: [' > "$WORK/manifests/garbage.yaml"
head -c 100000 /dev/urandom > "$WORK/manifests/bytes"
ln -s /dev/zero "$WORK/manifests/zero"
for n in $(seq 1 500); do echo x > "$WORK/manifests/x$n"; done
up --pod-manifest-path "$WORK/manifests"
"$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/hello.wasm" registry.local/hello:v1 >/dev/null
of() { kubectl get pod "$1" -o jsonpath="{$2}" 2>/dev/null; }
is() { [ "$(of "$1" "$2")" = "$3" ]; }
there() { kubectl get pod "$1" >/dev/null 2>&1; }
gone() { ! there "$1"; }
ready='.status.conditions[?(@.type=="Ready")].status'
eventually 60 is web-coracle-1 "$ready" True
expect "file" "$(of web-coracle-1 '.metadata.annotations.kubernetes\.io/config\.source')" "its source"
expect "$(of web-coracle-1 '.metadata.annotations.kubernetes\.io/config\.hash')" "$(of web-coracle-1 '.metadata.annotations.kubernetes\.io/config\.mirror')" "its hash"
expect "Node coracle-1 true" "$(of web-coracle-1 '.metadata.ownerReferences[0].kind} {.metadata.ownerReferences[0].name} {.metadata.ownerReferences[0].controller')" "its owner"
kubectl logs web-coracle-1 >/dev/null || fail "it has no logs"
echo "· a manifest is a pod with a mirror"

before=$(of web-coracle-1 '.metadata.uid') started=$(of web-coracle-1 '.status.containerStatuses[0].containerID')
kubectl delete pod web-coracle-1 --wait=false >/dev/null
back() { [ -n "$(of web-coracle-1 .metadata.uid)" ] && [ "$(of web-coracle-1 .metadata.uid)" != "$before" ]; }
eventually 30 back
eventually 30 is web-coracle-1 '.status.containerStatuses[0].containerID' "$started"
eventually 30 is web-coracle-1 "$ready" True
echo "· a mirror that is deleted comes back, and its pod ran on"
grep -q 'static pods cannot be resized' <<< "$(kubectl patch pod web-coracle-1 --subresource resize -p '{"spec":{"containers":[{"name":"c","resources":{"requests":{"cpu":"1m"}}}]}}' 2>&1)" || fail "a static pod was resized"

manifest web two > "$WORK/manifests/web.yaml"
eventually 30 is web-coracle-1 '.spec.containers[0].env[0].value' two
eventually 60 is web-coracle-1 "$ready" True
manifest second one > "$WORK/manifests/second.json"
eventually 60 is second-coracle-1 "$ready" True
rm "$WORK/manifests/second.json"
eventually 60 gone second-coracle-1
echo "· changes are followed"

manifest store one | sed 's|labels: {|annotations: {host.coracle.dev/c: keyvalue}, labels: {|' > "$WORK/manifests/store.yaml"
eventually 60 is store-coracle-1 "$ready" True
rm "$WORK/manifests/store.yaml"
eventually 60 gone store-coracle-1
echo "· a static pod has the key-value store of its namespace"

down
up --pod-manifest-path "$WORK/manifests"
eventually 60 is web-coracle-1 "$ready" True
expect 1 "$(of web-coracle-1 '.status.containerStatuses[0].restartCount')" "restarts after one of the node"
rm "$WORK/manifests/web.yaml"
eventually 60 gone web-coracle-1

echo "· a hostile folder: what runs goes on, and the next manifest is followed"
manifest calm one > "$WORK/manifests/calm.yaml"
eventually 60 is calm-coracle-1 "$ready" True
calm=$(of calm-coracle-1 '.status.containerStatuses[0].containerID')
python3 - "$WORK/manifests" <<'PY' & ATTACK_PID=$!
import os, sys, time
at = lambda name: os.path.join(sys.argv[1], name)
pod = lambda name, image="registry.local/hello:v1", **more: __import__("json").dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **more}, "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": image}]}})
def write(name, data):
    with open(at(name), "wb" if isinstance(data, bytes) else "w") as file:
        file.write(data)
for n in range(2500):
    write(f"zz{n:04}", "x")
write("deep.yaml", "a: " + "[" * 1000000)
write("laughs.yaml", "a0: &a0 [x, x, x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n-1}'] * 9)}]\n" for n in range(1, 40)))
write("huge.yaml", b" " * (200 << 20))
write("latin.yaml", pod("latin").replace("latin", "l\u00e4tin").encode("latin-1"))
for n in range(3):
    write(f"same{n}.yaml", pod("same", uid="aaaaaaaa-0000-4000-8000-000000000000"))
    write(f"uid{n}.yaml", pod(f"uid{n}", uid="aaaaaaaa-0000-4000-8000-000000000000"))
    write(f"refused{n}.yaml", pod(f"refused{n}", namespace="nonesuch"))
os.mkfifo(at("pipe.yaml"))
os.symlink(at("around"), at("around")); os.symlink("/", at("root")); os.symlink("/proc/self/mem", at("mem.yaml")); os.symlink("/dev/zero", at("endless.yaml"))
until, turn = time.monotonic() + 20, 0
while time.monotonic() < until:  # the path is a file, half a file, a pipe, a folder, or missing
    turn += 1
    write("turns.tmp", pod("turns", labels={"turn": str(turn)}))
    os.replace(at("turns.tmp"), at("turns.yaml"))
    write("half.yaml", pod("half", labels={"turn": str(turn)})[:turn % 150])
    try:
        os.mkfifo(at("swap.tmp")); os.replace(at("swap.tmp"), at("swap.yaml"))
    except FileExistsError:
        pass
    write("swap.tmp2", pod("swap")); os.replace(at("swap.tmp2"), at("swap.yaml"))
PY
eventually 60 is uid0-coracle-1 "$ready" True
eventually 60 is uid2-coracle-1 "$ready" True
eventually 60 is same-coracle-1 "$ready" True
wait "$ATTACK_PID"
expect "$calm" "$(of calm-coracle-1 '.status.containerStatuses[0].containerID')" "the container of a pod beside them"
expect 0 "$(of calm-coracle-1 '.status.containerStatuses[0].restartCount')" "its restarts"
manifest behind one > "$WORK/manifests/behind.yaml"
eventually 60 is behind-coracle-1 "$ready" True
find "$WORK/manifests" -mindepth 1 -delete
for name in calm behind uid0 uid1 uid2 same turns; do eventually 60 gone "$name-coracle-1"; done
down
echo PASS

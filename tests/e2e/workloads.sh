#!/usr/bin/env bash
# Guarantees for a running workload and its neighbours: headers, bodies, stops, drains, limits on requests,
# volumes, tokens, ports, environments, probes, ends, rejections; no request lost while pods start and stop; and a killed process.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

up --nodes 2
python3 - "$WORK" <<'PY' # (func (export "_start") (loop (br 0)))
import sys
open(f"{sys.argv[1]}/loop.wasm", "wb").write(b"\0asm\1\0\0\0" b"\1\4\1\x60\0\0" b"\3\2\1\0" b"\7\n\1\6_start\0\0" b"\n\t\1\7\0\3\x40\x0c\0\x0b\x0b")
PY
BIN=${SAMPLES_BIN:-sample-workloads/bin}
for file in "$BIN/hello.wasm" "$BIN/unruly.wasm" "$BIN/crash.wasm" "$WORK/loop.wasm"; do
  "$CORACLE" push "$file" "registry.local/$(basename "$file" .wasm):v1" --data-dir "$WORK/data" >/dev/null
done
# shellcheck disable=SC2086
python3 "$(dirname "${BASH_SOURCE[0]}")/workloads.py" "$KUBECONFIG" ${CASES:-} || fail "see above"
[ -z "${CASES:-}" ] || { down; echo PASS; exit; }

echo "· a process that is killed: what ran comes back with its name and uid, one restart more"
pods() { kubectl get pods -l app=load -o jsonpath='{range .items[*]}{.metadata.name} {.metadata.uid} {.status.containerStatuses[0].restartCount}{"\n"}{end}' | sort; }
ip=$(kubectl get service load -o jsonpath='{.spec.clusterIP}')
pods | awk '{print $1, $2, $3 + 1}' > "$WORK/wanted"
killed_at=$(date -u +%Y-%m-%dT%H:%M:%SZ)
down KILL 2>/dev/null
up --nodes 2
back() { pods > "$WORK/seen"; cmp -s "$WORK/wanted" "$WORK/seen"; }
eventually 30 back
kubectl wait --for=condition=Ready pod -l app=load --timeout=30s >/dev/null
expect "255 255 255" "$(kubectl get pods -l app=load -o jsonpath='{.items[*].status.containerStatuses[0].lastState.terminated.exitCode}')" "exit codes of what was killed"
for ready_at in $(kubectl get pods -l app=load -o jsonpath='{.items[*].status.conditions[?(@.type=="Ready")].lastTransitionTime}'); do
  [[ ! $ready_at < $killed_at ]] || fail "a pod's Ready did not go through False: it is of $ready_at"
done
expect "$ip" "$(kubectl get service load -o jsonpath='{.spec.clusterIP}')" "the Service's address"
eventually 10 curl -fsS "http://$ip/"
down
echo PASS

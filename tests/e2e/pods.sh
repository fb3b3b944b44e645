#!/usr/bin/env bash
# Pods of several containers: ports, the loopback and a conflict of ports; init containers, sidecars, their order, failures and
# ends; restart policies of containers; and hostile uses of these.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

up
python3 - "$WORK" <<'PY' # (func (export "_start") (loop (br 0))) and (func (export "_start"))
import sys
head = b"\0asm\1\0\0\0" b"\1\4\1\x60\0\0" b"\3\2\1\0" b"\7\n\1\6_start\0\0"
open(f"{sys.argv[1]}/loop.wasm", "wb").write(head + b"\n\t\1\7\0\3\x40\x0c\0\x0b\x0b")
open(f"{sys.argv[1]}/nothing.wasm", "wb").write(head + b"\n\4\1\2\0\x0b")
PY
BIN=${SAMPLES_BIN:-sample-workloads/bin}
for file in "$BIN"/{hello,unruly,late,crash,wordcount,toolbox,conformance-web}.wasm "$WORK"/{loop,nothing}.wasm; do
  "$CORACLE" push "$file" "registry.local/$(basename "$file" .wasm):v1" --data-dir "$WORK/data" >/dev/null
done
# shellcheck disable=SC2086
python3 "$(dirname "${BASH_SOURCE[0]}")/pods.py" "$KUBECONFIG" ${CASES:-} || fail "see above"
[ -z "${CASES:-}" ] || { down; echo PASS; exit; }

echo "· a process that is killed: each container comes back with one restart more, init containers run again"
restarts() { kubectl get pod again -o jsonpath='{.status.initContainerStatuses[*].restartCount} {.status.containerStatuses[*].restartCount}'; }
expect "0 0 0 0" "$(restarts)" "restarts before"
down KILL 2>/dev/null
up
back() { [ "$(restarts)" = "1 1 1 1" ]; }
eventually 30 back
kubectl wait --for=condition=Ready pod/again --timeout=30s >/dev/null
down
echo PASS

#!/usr/bin/env bash
# Attacks through the interfaces of a node: sessions, port-forwards, hundreds of containers, plugins' arguments, probes, warm
# instances, keyvalue stores. Each ends with its documented status, a neighbour is served meanwhile, and the attackers can be deleted.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

PYTHONPATH=tests/e2e python3 - "$WORK" <<'PY'
import sys
from modules import LOOP, nothing
for name, data in {"loop": LOOP, "nothing": nothing()}.items():
    open(f"{sys.argv[1]}/{name}.wasm", "wb").write(data)
PY
up
BIN=${SAMPLES_BIN:-sample-workloads/bin}
for file in "$BIN"/{hello,toolbox,chatter,greeter,counter,visits}.wasm "$WORK"/{loop,nothing}.wasm; do
  "$CORACLE" push "$file" "registry.local/$(basename "$file" .wasm):v1" --data-dir "$WORK/data" >/dev/null
done
# shellcheck disable=SC2086
UP_PID=$UP_PID DATA=$WORK/data python3 "$(dirname "${BASH_SOURCE[0]}")/doors.py" "$KUBECONFIG" ${CASES:-} || fail "see above"
kill -0 "$UP_PID" || fail "the cluster is gone"
down
echo PASS

#!/usr/bin/env bash
# The node is killed (kill -9) in every step of a pod's life, and so are its containers: each pod resumes once, and the history of its
# status is checked version by version. CASES names the steps (all).
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
here=$(dirname "${BASH_SOURCE[0]}")

python3 "$here/history.py" || fail "the checker does not find what is wrong"
mkdir "$WORK/shared"
: > "$WORK/kills.log"
trap '[ ! -f "$WORK/pid" ] || kill -KILL "$(cat "$WORK/pid")" 2>/dev/null || true; cleanup' EXIT
up
for name in hello toolbox crash; do
  "$CORACLE" push --data-dir "$WORK/data" "${SAMPLES_BIN:-sample-workloads/bin}/$name.wasm" "registry.local/$name:v1" >/dev/null
done
down
# shellcheck disable=SC2086
CORACLE=$CORACLE WORK=$WORK python3 "$here/kills.py" "$KUBECONFIG" ${CASES:-} || { tail -n 30 "$WORK/kills.log" >&2; exit 1; }
grep -i 'panic' "$WORK/kills.log" && fail "something panicked"
echo PASS

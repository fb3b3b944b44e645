#!/usr/bin/env bash
# Faults of the first version that were visible from outside: each case fails there (docs/testing.md has the table). FAULTS names the
# cases to run (all).
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
PUSH="$CORACLE push --data-dir $WORK/data"
BIN=${SAMPLES_BIN:-sample-workloads/bin}
PYTHONPATH=tests/e2e python3 - "$WORK" <<'PY'
import sys
from modules import LOOP, knot, nothing
modules = {"loop": LOOP, "knot1": knot(501), "knot2": knot(502), "knot3": knot(503), "knot4": knot(504), **{f"quick{n}": nothing(b"%d" % n) for n in range(10)}}
for name, data in modules.items():
    open(f"{sys.argv[1]}/{name}.wasm", "wb").write(data)
PY
cases=" ${FAULTS:-folder push cluster backtraces compilers store} "
wanted() { [[ $cases = *" $1 "* ]]; }
compilers() { pgrep -f "coracle-compile-worker.*$WORK"; }

if wanted folder; then
  echo "· a data folder that others can read is closed, or refused"
  mkdir -m 755 "$WORK/data"
  up --nodes 0
  expect 700 "$(stat -c %a "$WORK/data")" "the mode of the data folder"
  down
fi

export RUST_BACKTRACE=1 # the node's own frames are nobody's business
up --nodes 10
for file in "$BIN"/{hello,trap}.wasm "$WORK"/{loop,quick?}.wasm; do $PUSH "$file" "registry.local/$(basename "$file" .wasm):v1" >/dev/null; done
for name in knot1 knot2 knot4; do put $name "$WORK/$name.wasm"; done

if wanted push; then
  echo "· a push looks into a module and compiles nothing; the same bytes have the same digest"
  # Its time is compared with that of a push without a compilation, in the same minute.
  began=$(date +%s%N)
  $PUSH "$BIN/hello.wasm" registry.local/control:v1 >/dev/null
  control=$((($(date +%s%N) - began) / 1000000)); seconds=$((10 + control / 50))
  timeout $seconds $PUSH "$WORK/knot3.wasm" registry.local/knot3:v1 >/dev/null || fail "a push of what compiles for minutes, within $seconds s: exit code $?"
  $PUSH "$BIN/hello.wasm" registry.local/same:v1 > "$WORK/first"
  at=$(date +%s); tick() { [ "$(date +%s)" -gt "$at" ]; }
  eventually 5 tick # a date within the manifest would be another one
  $PUSH "$BIN/hello.wasm" registry.local/same:v1 > "$WORK/second"
  digest() { grep -o 'sha256:[0-9a-f]*' "$1" | tail -1; }
  expect "$(digest "$WORK/first")" "$(digest "$WORK/second")" "the digest of the same bytes, pushed a second later"
  [ -n "$(digest "$WORK/first")" ] || fail "no digest: $(cat "$WORK/first")"
fi

if wanted cluster; then
  # shellcheck disable=SC2086
  UP_PID=$UP_PID python3 "$(dirname "${BASH_SOURCE[0]}")/faults.py" "$KUBECONFIG" ${CASES:-} || fail "see above"
fi

if wanted backtraces; then
  echo "· a trap's log has the guest's frames and none of the host's"
  kubectl apply -f sample-workloads/manifests/trap.yaml >/dev/null
  kubectl rollout status deployment/trap --timeout=240s >/dev/null
  curl -s -m 120 -o /dev/null "http://$(kubectl get service trap -o jsonpath='{.spec.clusterIP}')/trap" || true
  eventually 10 has 'wasm' kubectl logs deployment/trap
  has 'tokio::|std::|wasmtime::' kubectl logs deployment/trap && fail "the log has frames of the host: $(kubectl logs deployment/trap | grep -m 3 -E 'tokio::|std::|wasmtime::')"
fi

if wanted compilers; then
  echo "· compilers end with the process that started them"
  kubectl run knot4 --image=registry.local/knot4:v1 --restart=Never >/dev/null
  eventually 20 compilers
  down KILL 2>/dev/null
  gone() { ! compilers; }
  eventually 5 gone
  up --nodes 0
fi

if wanted store; then
  echo "· a store that is gone beside other state is told, and no empty cluster takes its place"
  down
  mv "$WORK/data/store" "$WORK/elsewhere"
  exits 1 timeout 240 "$CORACLE" up --data-dir "$WORK/data" --port 0 --nodes 0
  grep -q 'store' "$WORK/err" || fail "it says: $(cat "$WORK/err")"
  mv "$WORK/elsewhere" "$WORK/data/store"
  up --nodes 0
fi
down
echo PASS

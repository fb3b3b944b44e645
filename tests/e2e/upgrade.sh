#!/usr/bin/env bash
# The program's file is replaced while it runs, as a package upgrade does before the restart: new modules still compile.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
SAMPLES=${SAMPLES_BIN:-sample-workloads/bin}

INSTALLED=$CORACLE CORACLE=$WORK/coracle
cp "$INSTALLED" "$CORACLE"
up

# served NAME: the sample as a new module, in a pod that becomes ready
served() {
  "$INSTALLED" push --data-dir "$WORK/data" "$SAMPLES/$1.wasm" "registry.local/$1:v1" >/dev/null
  kubectl run "$1" --image="registry.local/$1:v1" --port=8080 >/dev/null
  kubectl wait --for=condition=Ready "pod/$1" --timeout=120s >/dev/null || { kubectl describe pod "$1" | tail -5; fail "pod $1 is not ready: $2"; }
}

rm "$CORACLE"
served hello "the program's file is removed"
echo "· a module compiles after the program's file is removed"

# Another version takes other arguments: it must not be started.
printf '#!/bin/sh\ntouch "%s"\nexit 1\n' "$WORK/started" > "$WORK/next"
chmod +x "$WORK/next"
mv "$WORK/next" "$CORACLE"
served hello-c "another program has its path"
[ ! -e "$WORK/started" ] || fail "another program was started in place of the running one"
echo "· a module compiles after another program has its path"

CORACLE=$INSTALLED
down
up
kubectl wait --for=condition=Ready pod/hello pod/hello-c --timeout=60s >/dev/null || fail "the pods are not ready after the restart"
down
echo PASS

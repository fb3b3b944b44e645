#!/usr/bin/env bash
# The README's commands, as a reader would type them: those of "Try it with kubectl" and of "Deploy your own module" that
# need no toolchain beside this repository's. `cargo` lines are what tests/run itself does before this script.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

section() { awk -v from="## $1" '$0 == from {on = 1; next} /^## / {on = 0} on' README.md; }
commands() { section "$1" | awk '/^```console/ {on = 1; next} /^```/ {on = 0} on'; }
try=$(commands 'Try it with kubectl')
[ -n "$try" ] || fail "the README has no section to try"

up --nodes 2
mkdir -p "$WORK/bin" && ln -sf "$CORACLE" "$WORK/bin/coracle"
# The same lines; PATH and the folder are this run's.
grep -q 'export PATH=.*CORACLE_DATA_DIR=' <<< "$try" || fail "the README does not export the folder once"
export PATH="$WORK/bin:$PATH" CORACLE_DATA_DIR="$WORK/data"
# Helm is not among what the tests install.
lines=$(grep -vE '^(cargo|coracle up|export|helm) ?' <<< "$try")
while IFS= read -r line; do
  [ -n "$line" ] || continue
  case $line in
    # A rate is measured over a second at least.
    'kubectl top '*) eventually 20 bash -c "set -e; $line";;
    curl*) eventually 10 bash -c "set -e; ${line/curl/curl -fsS}";;
    *) bash -c "set -e; $line" >/dev/null || fail "README: $line";;
  esac
done <<< "$lines"
kubectl rollout status deployment/hello --timeout=60s >/dev/null

own=$(commands 'Deploy your own module' | grep -E '^(coracle|kubectl)' | sed "s|target/wasm32-wasip2/release/app.wasm|$WORK/app.wasm|")
cp sample-workloads/bin/hello.wasm "$WORK/app.wasm"
while IFS= read -r line; do bash -c "set -e; $line" >/dev/null || fail "README: $line"; done <<< "$own"
for own in app own; do kubectl rollout status "deployment/$own" --timeout=60s >/dev/null; done
down
echo PASS

#!/usr/bin/env bash
# The README's commands in two terminals. Every line of every console block runs here or is named below with
# the test that runs it; any other line fails.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# elsewhere LINE: the test that runs this line with this repository's own names, as it can't run here.
elsewhere() {
  case $1 in
    'cargo run --release -- demo') echo .ci/run;;
    tests/run | 'cargo build --release') echo .ci/run;;
    # The toolchain of wasm32-wasip2 can't be downloaded everywhere; the templates have the same commands.
    'rustup target add wasm32-wasip2' | 'cargo build --release --target wasm32-wasip2') echo tests/templates/run;;
    'coracle new '* | 'cd shop-api' | 'coracle run --dev') echo tests/templates/run;;
    'helm install '*) echo tests/helm/run;;
    'coracle up --data-dir shop --bind 10.0.0.1' | 'coracle token create --data-dir shop' | 'coracle node '*) echo tests/nodes/run;;
    *' shop.backup '* | 'coracle up --data-dir shop '* | 'coracle token create '* | 'coracle server '*) echo tests/e2e/etcd.sh;;
    *) return 1;;
  esac
}
section() { awk -v from="## $1" '$0 == from {on = 1; next} /^## / {on = 0} on' README.md; }
commands() { awk '/^```console/ {on = 1; next} /^```/ {on = 0} on'; }
all=$(commands < README.md)
try=$(section 'Try it with kubectl' | commands) own=$(section 'Deploy your own module' | commands)
[ -n "$try" ] && [ -n "$own" ] || fail "the README has no section to try"
# The README calls the shell after `coracle up` the other terminal.
first=$(sed '/^coracle up/q' <<< "$try") second=$(sed '1,/^coracle up/d' <<< "$try")
grep -q '^coracle up' <<< "$first" || fail "the README does not start a cluster"
while IFS= read -r line; do
  [ -n "$line" ] || continue
  if runs=$(elsewhere "$line"); then [ -f "$runs" ] || fail "README: $runs, which runs '$line', does not exist"
  else grep -qxF -- "$line" <<< "$first"$'\n'"$second"$'\n'"$own" || fail "no test runs this line of README: $line"; fi
done <<< "$all"

# A checkout with the files that the commands read, and the program at cargo's path.
mkdir -p "$WORK/checkout/target/release" "$WORK/checkout/target/wasm32-wasip2/release"
ln -s "$PWD/sample-workloads" "$WORK/checkout/sample-workloads"
ln -s "$(realpath "$CORACLE")" "$WORK/checkout/target/release/coracle"
cp sample-workloads/bin/hello.wasm "$WORK/checkout/target/wasm32-wasip2/release/app.wasm"
here() { while IFS= read -r line; do [ -z "$line" ] || elsewhere "$line" >/dev/null || printf '%s\n' "$line"; done; }

# The first terminal. Its last line stays in the foreground; port 0 because several tests run at once.
terminal=$(here <<< "$first" | sed 's/^coracle up/exec &/')
(cd "$WORK/checkout" && CORACLE_PORT=0 exec bash -euo pipefail -c "$terminal") > "$WORK/ready" 2> "$WORK/up.log" & UP_PID=$!
await_ready "the README's cluster" "$UP_PID" "$WORK/ready"

# The second one. A request or a metric may need a moment after the command before it.
cat > "$WORK/second" << 'SHELL'
attempt() {
  local line=$1 deadline=$((SECONDS + 20))
  until (set -e; eval "$line") > "$WORK/said" 2>&1; do
    case $line in
      curl*|'kubectl top '*) [ $SECONDS -lt $deadline ] || return 1; sleep 0.1;;
      *) return 1;;
    esac
  done
}
curl() { command curl -fsS "$@"; }
while IFS= read -r line <&3; do
  case $line in
    export*) eval "$line";;
    *) attempt "$line" || { echo "README: $line: $(cat "$WORK/said")"; exit 1; };;
  esac
done
SHELL
{ here <<< "$second"; here <<< "$own"; } > "$WORK/lines"
export WORK
(cd "$WORK/checkout" && bash -uo pipefail "$WORK/second" 3< "$WORK/lines" < /dev/null) > "$WORK/out" 2>&1 || fail "$(cat "$WORK/out")"
grep -q 'http://127.0.0.1:' "$WORK/said" || fail "the last command prints no address: $(cat "$WORK/said")"
export KUBECONFIG=$WORK/checkout/target/cluster/kubeconfig
for name in hello app; do kubectl rollout status "deployment/$name" --timeout=60s >/dev/null; done
down
echo PASS

# shellcheck shell=bash
# Helpers of the end-to-end tests. Source this at the repository's root; CORACLE names the program.
set -euo pipefail
CORACLE=${CORACLE:-${CARGO_TARGET_DIR:-$PWD/target}/debug/coracle}
WORK=$(mktemp -d)
UP_PID=
export KUBECACHEDIR=$WORK/kube-cache PYTHONDONTWRITEBYTECODE=1
unset KUBECONFIG

fail() {
  local log
  echo "FAIL: $*" >&2
  for log in "$WORK"/*.log; do [ ! -s "$log" ] || { echo "last lines of ${log##*/}:"; tail -n 30 "$log"; } >&2; done
  exit 1
}
expect() { [ "$1" = "$2" ] || fail "$3: wanted '$1', got '$2'"; }
# A deadline bounds a hang and says nothing about speed: the machine may be busy with other things.
HANG_S=240
# eventually SECONDS COMMAND…: runs it until it succeeds. SECONDS is what it may take on a quiet machine.
eventually() {
  local deadline=$((SECONDS + ($1 > HANG_S ? $1 : HANG_S))); shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $deadline ] || fail "never true: $*"
    sleep 0.1
  done
}
# has PATTERN COMMAND…
has() { local pattern=$1 out; shift; out=$("$@" 2>&1) || return 1; grep -E -- "$pattern" <<< "$out" >/dev/null; }
# exits CODE COMMAND…: its output goes to $WORK/out and $WORK/err
exits() {
  local want=$1 got=0; shift
  "$@" > "$WORK/out" 2> "$WORK/err" || got=$?
  [ "$want" = "$got" ] || fail "exit code of: $*: wanted $want, got $got. Its last lines: $(tail -n 5 "$WORK/err" "$WORK/out")"
}
# await_ready NAME PID FILE [SECONDS]: until the process has written its `ready` line to the file, and no longer than it lives
await_ready() {
  local deadline=$((SECONDS + ${4:-$HANG_S}))
  until grep -qs '^ready ' "$3"; do
    kill -0 "$2" 2>/dev/null || fail "$1 ended before it was ready"
    [ $SECONDS -lt $deadline ] || fail "$1 was not ready in time"
    sleep 0.05
  done
}
# up [flags…]: a cluster in $WORK/data; sets KUBECONFIG, REGISTRY. E2E_BLOCK is the block of addresses that a new folder prefers.
up() {
  [ -z "${E2E_BLOCK:-}" ] || [ -e "$WORK/data" ] || { mkdir -m 700 "$WORK/data"; echo "$E2E_BLOCK" > "$WORK/data/network"; }
  : > "$WORK/ready"
  "$CORACLE" up --data-dir "$WORK/data" --port 0 "$@" > "$WORK/ready" 2> "$WORK/up.log" & UP_PID=$!
  await_ready "coracle up" "$UP_PID" "$WORK/ready"
  KUBECONFIG=$(sed -n 's/^ready .*kubeconfig=\([^ ]*\).*/\1/p' "$WORK/ready"); export KUBECONFIG
  REGISTRY=$(cat "$WORK/data/registry-address"); export REGISTRY
}
# put NAME FILE: into the registry as any client may, without the checks of `coracle push`
put() {
  local user="coracle:$(cat "$WORK/data/registry-password")" at="http://$REGISTRY/v2/$1" module config='{}'
  module=$(sha256sum "$2" | cut -d' ' -f1)
  curl -fsS -u "$user" -X POST --data-binary "@$2" "$at/blobs/uploads/?digest=sha256:$module"
  curl -fsS -u "$user" -X POST --data-binary "$config" "$at/blobs/uploads/?digest=sha256:$(printf %s "$config" | sha256sum | cut -d' ' -f1)"
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.wasm.config.v0+json","digest":"sha256:%s","size":2},"layers":[{"mediaType":"application/wasm","digest":"sha256:%s","size":%s}]}' \
    "$(printf %s "$config" | sha256sum | cut -d' ' -f1)" "$module" "$(stat -c %s "$2")" |
    curl -fsS -u "$user" -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' --data-binary @- "$at/manifests/v1"
}
# panics: fails if a program has panicked, also if that was caught and retried; prints the place. Every script that sources this fails
# then. Panics of guests are in their pods' logs, not in these.
panics() {
  grep -sE 'panicked at|the decision panicked' "$WORK"/*.log /dev/null >&2 || return 1
  echo "FAIL: something panicked (lines above)" >&2
}
down() {
  local rc=0
  kill -s "${1:-TERM}" "$UP_PID"; wait "$UP_PID" || rc=$?
  UP_PID=
  [ "${1:-TERM}" = KILL ] || expect 0 "$rc" "exit code of coracle up"
  # The next start begins a new log.
  ! panics || fail "something panicked"
}
cleanup() {
  local panicked=
  # Time of waiting is counted as this script's CPU time.
  [ -z "$UP_PID" ] || { kill -KILL "$UP_PID" && wait "$UP_PID"; } 2>/dev/null || true
  panics && panicked=yes
  rm -rf "$WORK"
  # Otherwise the script's own exit code stays.
  [ -z "$panicked" ] || exit 1
}
trap cleanup EXIT

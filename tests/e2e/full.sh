#!/usr/bin/env bash
# The disk is full in a pull, in a compilation, for a log, for a volume's update and for the store. Each of these folders is on a separate
# file system in a mount namespace of this script: shrinking it fills the disk, enlarging it frees it. CASES names the cases to run.
if [ -z "${OWN_MOUNTS:-}" ]; then
  own=(unshare --mount --propagation private)
  # An ordinary user is root for these mounts only.
  "${own[@]}" true 2>/dev/null || own+=(--user --map-root-user)
  "${own[@]}" true || { echo "FAIL: this wants to mount file systems of its own: run it as root, or where unshare(1) may make a user namespace" >&2; exit 1; }
  OWN_MOUNTS=1 exec "${own[@]}" -- bash "$0" "$@"
fi
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
here=$(dirname "${BASH_SOURCE[0]}")
BIN=${SAMPLES_BIN:-sample-workloads/bin}
FOLDERS=(images compiled nodes store)

REGISTRY_PID=
unmounted() {
  [ -z "$REGISTRY_PID" ] || kill "$REGISTRY_PID" 2>/dev/null || true
  [ -z "$UP_PID" ] || kill -KILL "$UP_PID" 2>/dev/null || true
  for folder in "${FOLDERS[@]}"; do umount -l "$WORK/data/$folder" 2>/dev/null || true; done
  cleanup
}
trap unmounted EXIT
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=registry -keyout "$WORK/key.pem" -out "$WORK/server.pem" 2>/dev/null
python3 "$here/registry.py" "$BIN/wordcount.wasm" "$WORK/server.pem" "$WORK/key.pem" "$WORK/requests" > "$WORK/ports" & REGISTRY_PID=$!
eventually 20 grep -q . "$WORK/ports"
read -r _ plain < "$WORK/ports"
printf 'mirrors: {"127.0.0.1:%s": {endpoint: ["http://127.0.0.1:%s"]}}\n' "$plain" "$plain" > "$WORK/registries.yaml"

# No cluster starts in a folder with content.
up --nodes 0
down
for folder in "${FOLDERS[@]}"; do
  mkdir -p "$WORK/data/$folder" "$WORK/mounted"
  mount --no-mtab -t tmpfs -o size=8g,mode=700 coracle-full "$WORK/mounted" || fail "no file system can be mounted here"
  cp -a "$WORK/data/$folder/." "$WORK/mounted"
  mount --no-mtab --move "$WORK/mounted" "$WORK/data/$folder"
done
up --registries "$WORK/registries.yaml"
for name in hello toolbox shop-frontend shop-catalog; do
  "$CORACLE" push --data-dir "$WORK/data" "$BIN/$name.wasm" "registry.local/$name:v1" >/dev/null
done
# shellcheck disable=SC2086
CORACLE=$CORACLE DATA=$WORK/data ELSEWHERE=127.0.0.1:$plain PUSHED=$BIN/visits.wasm python3 "$here/full.py" "$KUBECONFIG" ${CASES:-} || fail "see above"
kill -0 "$UP_PID" || fail "coracle up has ended"
down
echo PASS
